"""Sealed text for one recipient: compact JWE (RFC 7516), ECDH-ES+A256KW with A256GCM on P-256.

The recipient makes a key for one message and signs the public half into the request, so that
only who asked can read the answer, wherever it is stored or repeated.
"""

from __future__ import annotations

import binascii
import json

from cryptography.hazmat.primitives.asymmetric import ec
from joserfc import jwe
from joserfc.errors import JoseError
from joserfc.jwk import ECKey

from estcore.errors import MalformedRequest

MAX_RECIPIENT = 300
_ALGORITHM, _ENCRYPTION = "ECDH-ES+A256KW", "A256GCM"
_HEADER = {"alg": _ALGORITHM, "enc": _ENCRYPTION}
_REGISTRY = jwe.JWERegistry(algorithms=[_ALGORITHM, _ENCRYPTION])
_ERRORS = (JoseError, ValueError, TypeError, KeyError, binascii.Error)
_MEMBERS = ("crv", "kty", "x", "y")


class RecipientKey:
    """A key pair for one sealed answer; the private half never leaves this object."""

    def __init__(self) -> None:
        self._key = ECKey.import_key(ec.generate_private_key(ec.SECP256R1()))

    @property
    def public(self) -> str:
        """The public half: a JWK (RFC 7517) as JSON."""
        members = self._key.as_dict(private=False)
        return json.dumps({name: members[name] for name in _MEMBERS}, separators=(",", ":"))

    def open(self, sealed: str) -> str:
        """Return the text that was sealed for this key.

        Raises:
            MalformedRequest: not a JWE for this key, or changed on its way.
        """
        try:
            opened = jwe.decrypt_compact(sealed, self._key, registry=_REGISTRY)
            if opened.plaintext is None:
                raise ValueError("no plaintext")
            return opened.plaintext.decode("utf-8")
        except _ERRORS as exc:
            raise MalformedRequest(
                "the answer is not sealed for this command", code="sealed.unreadable"
            ) from exc


def seal(text: str, recipient: str) -> str:
    """Return ``text`` sealed for the public half of a ``RecipientKey``.

    Raises:
        MalformedRequest: not the public half of a P-256 key, or with a private one.
    """
    try:
        members = json.loads(recipient)
        if sorted(members) != sorted(_MEMBERS) or (members["kty"], members["crv"]) != (
            "EC",
            "P-256",
        ):
            raise ValueError("not a public P-256 key")
        key = ECKey.import_key(members)
        return jwe.encrypt_compact(_HEADER, text.encode(), key, registry=_REGISTRY)
    except _ERRORS as exc:
        raise MalformedRequest(
            "recipient is not the public half of a P-256 key", code="sealed.recipient"
        ) from exc
