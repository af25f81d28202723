"""Compact JWS (RFC 7515), read once and strictly: what is checked is what is believed.

The algorithms are joserfc's; the text is taken apart here, so that no second reader can see
another header in the same octets. There is one spelling of everything: base64url without padding
or spare bits, UTF-8, no member twice, nothing that cannot be written again.
"""

from __future__ import annotations

import base64
import json
import re
from dataclasses import dataclass
from typing import Any, NoReturn

from joserfc import jws
from joserfc.errors import JoseError
from joserfc.jwk import ECKey, OKPKey, RSAKey

from estcore.errors import NotAuthenticated

PublicKey = ECKey | OKPKey | RSAKey
KEY_KINDS = {
    "RS256": "RSA", "PS256": "RSA", "ES256": "EC", "ES384": "EC", "EdDSA": "OKP", "Ed25519": "OKP",
}  # fmt: skip
_CURVES = {"ES256": "P-256", "ES384": "P-384", "EdDSA": "Ed25519", "Ed25519": "Ed25519"}
# RFC 9864 gave EdDSA with this curve the name Ed25519; issuers say either.
_REGISTRY = jws.JWSRegistry(algorithms=[name for name in KEY_KINDS if name != "EdDSA"])
_ALGORITHMS = {
    name: _REGISTRY.get_alg("Ed25519" if name == "EdDSA" else name) for name in KEY_KINDS
}
_PARTS = 3
_BASE64URL = re.compile(r"[A-Za-z0-9_-]+")


@dataclass(frozen=True)
class CompactJWS:
    """Header, payload and signature; not believed before ``verify`` returned."""

    header: dict[str, Any]
    payload: dict[str, Any]
    signed: bytes
    signature: bytes
    code: str
    """Of the error when it turns out to be wrong in form."""


def read(text: str, code: str) -> CompactJWS:
    """Return the parts of a JWS whose payload is a JSON object.

    Raises:
        NotAuthenticated: with ``code``, for anything else.
    """
    parts = text.split(".")
    if len(parts) != _PARTS:
        raise refuse("this is not a signed JWT", code)
    octets = [_decode(part, code) for part in parts]
    signed = f"{parts[0]}.{parts[1]}".encode()
    return CompactJWS(_object(octets[0], code), _object(octets[1], code), signed, octets[2], code)


def fits(key: PublicKey, algorithm: str) -> bool:
    """Tell whether the algorithm is for keys of this kind, curve and declared purpose."""
    curve = _CURVES.get(algorithm)
    declared = key.get("alg")
    names = {"EdDSA", "Ed25519"} if algorithm in {"EdDSA", "Ed25519"} else {algorithm}
    return (
        key.key_type == KEY_KINDS[algorithm]
        and (declared is None or declared in names)
        and (curve is None or key.get("crv") == curve)
    )


def signature_matches(found: CompactJWS, key: PublicKey, algorithm: str) -> bool:
    """Tell whether the key made the signature; ``fits`` was asked before."""
    try:
        return bool(_ALGORITHMS[algorithm].verify(found.signed, found.signature, key))
    except (JoseError, ValueError):
        return False


def refuse(reason: str, code: str) -> NotAuthenticated:
    """Return the error to raise; the reason never has a part of the token in it."""
    return NotAuthenticated(reason, code=code)


def _decode(part: str, code: str) -> bytes:
    if not _BASE64URL.fullmatch(part):
        raise refuse("this is not base64url", code)
    try:
        octets = base64.urlsafe_b64decode(part + "=" * (-len(part) % 4))
    except ValueError as exc:
        raise refuse("this is not base64url", code) from exc
    # Spare bits of the last character would let one signature be spelled in several ways.
    if base64.urlsafe_b64encode(octets).rstrip(b"=").decode() != part:
        raise refuse("this is not base64url", code)
    return octets


def _object(octets: bytes, code: str) -> dict[str, Any]:
    try:
        value = read_json(octets)
    except ValueError as exc:
        raise refuse("this is not JSON", code) from exc
    if not isinstance(value, dict):
        raise refuse("this is not a JSON object", code)
    return value


def read_json(octets: bytes) -> Any:
    r"""Return the value of a JSON text in UTF-8.

    Half a character (``\ud800``) is refused because it cannot be written to a log or a message,
    a repeated member because readers differ on which one counts.

    Raises:
        ValueError: anything else than one JSON value, or nested too deeply.
    """
    try:
        text = octets.decode()
        value = json.loads(text, object_pairs_hook=_members, parse_constant=_no_constant)
        if "\\u" in text:
            json.dumps(value, ensure_ascii=False).encode()
    except RecursionError as exc:
        raise ValueError("nested too deeply") from exc
    return value


def _members(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a member stands twice")
    return found


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")
