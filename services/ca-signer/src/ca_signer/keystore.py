"""Software keys: encrypted PKCS#8 files, deterministic ECDSA, RSA off the event loop."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Protocol

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa
from cryptography.hazmat.primitives.asymmetric.types import CertificateIssuerPrivateKeyTypes
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from ca_signer.settings import IssuerSettings
from estcore.errors import ConfigurationError, TBSMismatch
from estcore.pki.certificate import IssuerCertificate, signing_hash
from estcore.pki.keys import spki_der
from estcore.runtime.settings import read_secret


class KeyStore(Protocol):
    """What signs. The software key here; a token speaks the same two words later."""

    async def sign(self, tbs: bytes) -> bytes:
        """Return the signature over ``tbs`` in the form certificates carry."""
        ...


class SoftwareKey:
    """A private key in memory, decrypted from a file.

    ECDSA is deterministic (RFC 6979), so an intent that is signed again after a crash gives
    the same octets.
    """

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


class Issuer:
    """An issuer ready to sign: certificate, chain, key store."""

    def __init__(
        self, certificate: IssuerCertificate, chain: list[x509.Certificate], keystore: KeyStore
    ) -> None:
        self.certificate = certificate
        self.chain = chain
        self.keystore = keystore

    @property
    def issuer_id(self) -> str:
        """The issuer's name in policy, topics and records."""
        return self.certificate.issuer_id

    def check_signature(self, tbs: bytes, signature: bytes) -> None:
        """Step 8: the signature must verify over exactly these bytes with the issuer's key.

        Raises:
            TBSMismatch: it does not.
        """
        key = self.certificate.public_key
        algorithm = signing_hash(key)
        try:
            if isinstance(key, ec.EllipticCurvePublicKey) and algorithm is not None:
                key.verify(signature, tbs, ec.ECDSA(algorithm))
            elif isinstance(key, rsa.RSAPublicKey) and algorithm is not None:
                key.verify(signature, tbs, padding.PKCS1v15(), algorithm)
            elif isinstance(key, ed25519.Ed25519PublicKey):
                key.verify(signature, tbs)
            else:
                raise TBSMismatch("the issuer's key cannot verify", code="tbs.signature")
        except InvalidSignature as exc:
            raise TBSMismatch("the key store's signature is wrong", code="tbs.signature") from exc


def load_issuer(settings: IssuerSettings) -> Issuer:
    """Read an issuer's files and check that they belong together.

    Raises:
        ConfigurationError: unreadable, key unencrypted or of another certificate, broken chain.
    """
    certificate = _certificates(settings.certificate_file)[0]
    chain = _certificates(settings.chain_file)
    key = _private_key(settings)
    if spki_der(key.public_key()) != spki_der(certificate.public_key()):
        raise ConfigurationError(f"{settings.key_file} is not the key of {settings.issuer_id}")
    child = certificate
    for parent in chain:
        try:
            child.verify_directly_issued_by(parent)
        except (ValueError, TypeError, InvalidSignature) as exc:
            raise ConfigurationError(
                f"{settings.chain_file}: the chain of {settings.issuer_id} breaks at "
                f"{parent.subject.rfc4514_string()}"
            ) from exc
        child = parent
    if child.subject != child.issuer:
        raise ConfigurationError(f"{settings.chain_file} does not end in a root")
    constraints = certificate.extensions.get_extension_for_class(x509.BasicConstraints)
    if not constraints.value.ca:
        raise ConfigurationError(f"{settings.certificate_file} is not a CA certificate")
    return Issuer(IssuerCertificate(settings.issuer_id, certificate), chain, SoftwareKey(key))


def _certificates(path: Path) -> list[x509.Certificate]:
    try:
        return x509.load_pem_x509_certificates(path.read_bytes())
    except (OSError, ValueError) as exc:
        raise ConfigurationError(f"cannot read certificates from {path}") from exc


def _private_key(settings: IssuerSettings) -> CertificateIssuerPrivateKeyTypes:
    passphrase = read_secret(settings.passphrase_file, f"the passphrase of {settings.issuer_id}")
    try:
        key = load_pem_private_key(settings.key_file.read_bytes(), passphrase.encode())
    except TypeError as exc:
        raise ConfigurationError(f"{settings.key_file} is not encrypted") from exc
    except (OSError, ValueError, UnsupportedAlgorithm) as exc:
        raise ConfigurationError(f"cannot open the key in {settings.key_file}") from exc
    allowed = (ec.EllipticCurvePrivateKey, rsa.RSAPrivateKey, ed25519.Ed25519PrivateKey)
    if not isinstance(key, allowed):
        raise ConfigurationError(f"{settings.key_file}: EC, RSA and Ed25519 keys can sign")
    return key
