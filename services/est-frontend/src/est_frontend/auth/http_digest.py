"""HTTP Digest (RFC 7616) for labels that opt in: old devices that know nothing else.

Nonces need no memory: time, random octets and a MAC by a key all front ends share. A nonce and
its count are good for one request; the signer's ledger sees to that, across all front ends. The
challenge has the parameters old clients know and no others (conformance L3).
"""

from __future__ import annotations

import hashlib
import hmac
import os
import re
import secrets
from dataclasses import dataclass

from est_frontend.auth.password_file import PasswordFile
from estcore.clock import Clock
from estcore.errors import NotAuthenticated
from estcore.est.http_digest import DIGESTS, digest

_NONCE_S = 300
_NONCE_BYTES = 8 + 8 + 16
_PARAMETER = re.compile(r'\s*([A-Za-z0-9_-]+)\s*=\s*(?:"((?:[^"\\]|\\.)*)"|([^\s",]+))\s*(?:,|$)')
_LIMIT = 2048
_DEFAULT_ALGORITHM = "MD5"
_NEEDED = ("username", "realm", "nonce", "uri", "response", "qop", "nc", "cnonce")
_NC = re.compile(r"[0-9a-f]{8}", re.I)


@dataclass(frozen=True)
class DigestUse:
    """A correct answer: by whom, and what it used up."""

    user: str
    spent: str


class DigestVerifier:
    """Makes challenges and checks answers."""

    def __init__(self, users: PasswordFile, clock: Clock, *, realm: str, key: bytes | None) -> None:
        self._users = users
        self._clock = clock
        self._realm = realm
        # Without a shared key the nonces of this process are good here alone.
        self._key = key or os.urandom(32)

    def challenge(self, algorithm: str) -> str:
        """Return the value of WWW-Authenticate for an algorithm.

        MD5 is what a missing parameter means (RFC 7616 section 3.3), and BouncyCastle cannot read
        the parameter without quotes, which the RFC demands.
        """
        named = "" if algorithm == _DEFAULT_ALGORITHM else f"algorithm={algorithm}, "
        return (
            f'Digest realm="{self._realm}", nonce="{self._nonce()}", qop="auth", '
            f'{named}opaque="est"'
        )

    def _nonce(self) -> str:
        moment = int(self._clock.now().timestamp()).to_bytes(8, "big")
        fresh = moment + secrets.token_bytes(8)
        return (fresh + self._mac(fresh)).hex()

    def _mac(self, octets: bytes) -> bytes:
        return hmac.digest(self._key, octets, "sha256")[:16]

    def check(self, credentials: str, *, method: str, paths: tuple[str, ...]) -> DigestUse:
        """Check what came after ``Digest``; ``paths`` are the spellings of the URI accepted.

        Raises:
            NotAuthenticated: malformed, stale, for another request, or wrong.
        """
        parameters = _parameters(credentials)
        name = parameters.get("algorithm", _DEFAULT_ALGORITHM)
        if any(part not in parameters for part in _NEEDED) or name not in DIGESTS:
            raise _refused("the Digest credentials are malformed", "auth.digest")
        if (
            parameters["realm"] != self._realm
            or parameters["qop"] != "auth"
            or not _NC.fullmatch(parameters["nc"])
        ):
            raise _refused("the Digest credentials are malformed", "auth.digest")
        if parameters["uri"] not in paths:
            raise _refused("the Digest credentials are for another path", "auth.digest")
        self._check_nonce(parameters["nonce"])
        verifier = self._users.digest_verifier(parameters["username"], name)
        expected = _response(name, verifier or "0" * 32, method, parameters)
        equal = hmac.compare_digest(expected.encode(), parameters["response"].lower().encode())
        if not equal or verifier is None:
            raise _refused("unknown user or wrong password", "auth.password")
        spent = hashlib.sha256(
            f"{parameters['nonce']}/{parameters['nc'].lower()}".encode()
        ).hexdigest()
        return DigestUse(parameters["username"], spent)

    def _check_nonce(self, nonce: str) -> None:
        try:
            octets = bytes.fromhex(nonce)
        except ValueError:
            octets = b""
        fresh, mac = octets[:16], octets[16:]
        if len(octets) != _NONCE_BYTES or not hmac.compare_digest(mac, self._mac(fresh)):
            raise _refused("the nonce is not ours", "auth.digest_nonce")
        age = self._clock.now().timestamp() - int.from_bytes(fresh[:8], "big")
        if not -5 <= age <= _NONCE_S:  # noqa: PLR2004 - replicas' clocks differ a little
            raise _refused("the nonce is too old, use the new one", "auth.digest_nonce")


def _response(algorithm: str, verifier_: str, method: str, parameters: dict[str, str]) -> str:
    second = digest(algorithm, f"{method}:{parameters['uri']}")
    middle = ":".join((parameters["nonce"], parameters["nc"], parameters["cnonce"], "auth"))
    return digest(algorithm, f"{verifier_}:{middle}:{second}")


def _parameters(credentials: str) -> dict[str, str]:
    if len(credentials) > _LIMIT:
        raise _refused("the Digest credentials are too long", "auth.digest")
    parameters: dict[str, str] = {}
    place = 0
    while place < len(credentials):
        match = _PARAMETER.match(credentials, place)
        if match is None or match[1].lower() in parameters:
            raise _refused("the Digest credentials are malformed", "auth.digest")
        quoted = match[2]
        parameters[match[1].lower()] = (
            match[3] if quoted is None else re.sub(r"\\(.)", r"\1", quoted)
        )
        place = match.end()
    return parameters


def _refused(reason: str, code: str) -> NotAuthenticated:
    return NotAuthenticated(reason, code=code)
