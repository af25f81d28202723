"""DPoP proofs of a client (RFC 9449): the key that an access token is bound to signs each request.

The key lives in the memory of the process: a token bound to it is useless to a thief of the token.
"""

from __future__ import annotations

import base64
import datetime as dt
import json
import secrets
from collections.abc import Mapping
from hashlib import sha256
from typing import Any
from urllib.parse import urlsplit

from cryptography.hazmat.primitives.asymmetric import ec
from joserfc.jwk import ECKey

from estcore.pki.jws import sign_compact

_MAX_NONCE = 512


class DPoPKey:
    """A P-256 key with the nonces that servers asked for, by origin."""

    def __init__(self, key: ec.EllipticCurvePrivateKey | None = None) -> None:
        self._key = key or ec.generate_private_key(ec.SECP256R1())
        public: Mapping[str, Any] = ECKey.import_key(self._key.public_key()).as_dict(private=False)
        self._jwk = {name: public[name] for name in ("crv", "kty", "x", "y")}
        self._nonces: dict[str, str] = {}

    @property
    def thumbprint(self) -> str:
        """The JWK thumbprint (RFC 7638), which a bound token has in ``cnf.jkt``."""
        return _base64url(sha256(json.dumps(self._jwk, separators=(",", ":")).encode()).digest())

    def proof(self, method: str, url: str, *, now: dt.datetime, token: str | None = None) -> str:
        """Return the proof for one request (RFC 9449 section 4.2).

        ``token`` is the access token that goes with it; none at the token endpoint.
        """
        claims: dict[str, Any] = {
            "jti": secrets.token_urlsafe(18),
            "htm": method,
            "htu": urlsplit(url)._replace(query="", fragment="").geturl(),
            "iat": int(now.timestamp()),
        }
        if token is not None:
            claims["ath"] = _base64url(sha256(token.encode()).digest())
        nonce = self._nonces.get(_origin(url))
        if nonce is not None:
            claims["nonce"] = nonce
        payload = json.dumps(claims, separators=(",", ":")).encode()
        return sign_compact(payload, self._key, {"typ": "dpop+jwt", "jwk": self._jwk})

    def keep_nonce(self, url: str, nonce: str | None) -> bool:
        """Keep the nonce of an answer (RFC 9449 section 8); returns whether it is a new one."""
        if not nonce or len(nonce) > _MAX_NONCE or self._nonces.get(_origin(url)) == nonce:
            return False
        self._nonces[_origin(url)] = nonce
        return True


def _origin(url: str) -> str:
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc}"


def _base64url(octets: bytes) -> str:
    return base64.urlsafe_b64encode(octets).rstrip(b"=").decode()
