"""Key stores sign with an issuer's private key: software keys here, tokens in ``hsm``."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Protocol

from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa
from cryptography.hazmat.primitives.asymmetric.types import CertificateIssuerPrivateKeyTypes

from estcore.pki.certificate import signing_hash


class KeyStore(Protocol):
    """What signs: a software key, or a key in a token."""

    @property
    def ready(self) -> bool:
        """Whether a signature may be asked for now."""
        ...

    async def sign(self, tbs: bytes) -> bytes:
        """Return the signature over ``tbs`` in the form certificates carry."""
        ...

    async def sign_many(self, tbs: Sequence[bytes]) -> list[bytes]:
        """Return the signatures over each of ``tbs``, all or none."""
        ...


class SoftwareKey:
    """A private key in memory, decrypted from a file.

    ECDSA is deterministic (RFC 6979), so an intent that is signed again after a crash gives
    the same octets.
    """

    ready = True

    def __init__(self, key: CertificateIssuerPrivateKeyTypes) -> None:
        self._key = key

    async def sign(self, tbs: bytes) -> bytes:
        """Return the signature over ``tbs``."""
        key = self._key
        if isinstance(key, ec.EllipticCurvePrivateKey):
            algorithm = signing_hash(key.public_key())
            assert algorithm is not None  # noqa: S101 - EC keys sign a hash
            return key.sign(tbs, ec.ECDSA(algorithm, deterministic_signing=True))
        if isinstance(key, rsa.RSAPrivateKey):
            algorithm = signing_hash(key.public_key())
            assert algorithm is not None  # noqa: S101 - RSA keys sign a hash
            return await asyncio.to_thread(key.sign, tbs, padding.PKCS1v15(), algorithm)
        assert isinstance(key, ed25519.Ed25519PrivateKey)  # noqa: S101 - checked when loaded
        return key.sign(tbs)

    async def sign_many(self, tbs: Sequence[bytes]) -> list[bytes]:
        """Return the signatures over each of ``tbs``."""
        return [await self.sign(octets) for octets in tbs]
