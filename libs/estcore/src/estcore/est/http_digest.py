"""HA1 of HTTP Digest (RFC 7616 section 3.4.2): what a server keeps instead of a password."""

from __future__ import annotations

import hashlib

DIGESTS = {"MD5": hashlib.md5, "SHA-256": hashlib.sha256}
"""Algorithms by their name in HTTP."""


def digest(algorithm: str, text: str) -> str:
    """Return the hash of a text in hexadecimal."""
    return DIGESTS[algorithm](text.encode(), usedforsecurity=False).hexdigest()


def verifier(user: str, realm: str, password: str, algorithm: str) -> str:
    """Return HA1 in hexadecimal; as good as the password for this realm, keep it so."""
    return digest(algorithm, f"{user}:{realm}:{password}")
