"""Issuers ready to sign: read the certificate, chain and key that the settings name.

A key is in an encrypted PKCS#8 file or in a PKCS#11 token (``ca_signer.signing.hsm``).
"""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.asymmetric.types import CertificateIssuerPrivateKeyTypes
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from ca_signer.issuance.decision_context import DecisionContext
from ca_signer.issuers.issuer import (
    CACertificate,
    CRLParts,
    check_chain,
    check_is_ca,
    read_certificates,
)
from ca_signer.settings import IssuerSettings, TokenSettings
from ca_signer.signing import signatures
from ca_signer.signing.hsm.token import Token, TokenKey
from ca_signer.signing.keystore import KeyStore, SoftwareKey
from estcore.errors import ConfigurationError, TBSMismatch
from estcore.pki.certificate import IssuerCertificate
from estcore.pki.keys import spki_der
from estcore.runtime.secret_files import read_secret, read_secret_octets


class SigningIssuer(CACertificate):
    """An issuer ready to sign: certificate, chain, key store."""

    def __init__(
        self,
        certificate: IssuerCertificate,
        chain: list[x509.Certificate],
        keystore: KeyStore,
        *,
        family: str | None = None,
        cross: Sequence[x509.Certificate] = (),
        crl: CRLParts | None = None,
    ) -> None:
        """``family`` is the issuer this is a generation of; ``cross`` links their roots."""
        super().__init__(certificate, chain, family=family, cross=cross)
        self.keystore = keystore
        self.crl = crl or CRLParts(certificate.issuer_id)

    def check_signature(self, tbs: bytes, signature: bytes) -> None:
        """Step 8: the signature must verify over exactly these bytes with the issuer's key.

        Raises:
            TBSMismatch: it does not.
        """
        try:
            signatures.verify(self.certificate.public_key, tbs, signature)
        except InvalidSignature as exc:
            raise TBSMismatch("the key store's signature is wrong", code="tbs.signature") from exc


@dataclass
class SigningContext(DecisionContext):
    """An authority whose issuers' keys are here."""

    issuers: Mapping[str, SigningIssuer]

    def can_sign(self, family: str) -> bool:
        """Return whether a signature for an issuer may be asked for now."""
        issuer = self.issuers.get(self.generations.signing(family))
        return issuer is not None and issuer.keystore.ready


def load_issuers(settings: Sequence[IssuerSettings]) -> dict[str, SigningIssuer]:
    """Read the issuers' files; keys in one token share it. No token is opened yet.

    Raises:
        ConfigurationError: unreadable, inconsistent, or one token with two different settings.
    """
    tokens: dict[tuple[Path, str | None, str | None], Token] = {}
    issuers = {}
    for issuer_settings in settings:
        token = issuer_settings.token
        if token is not None:
            name = (token.module, token.label, token.serial)
            shared = tokens.setdefault(name, Token(token))
            own = {"key_id": token.key_id, "key_label": token.key_label}
            if shared.settings.model_copy(update=own) != token:
                raise ConfigurationError(
                    f"{issuer_settings.issuer_id}: token {shared.name} has two different settings"
                )
            issuers[issuer_settings.issuer_id] = load_issuer(issuer_settings, shared)
        else:
            issuers[issuer_settings.issuer_id] = load_issuer(issuer_settings)
    return issuers


def tokens_of(issuers: Mapping[str, SigningIssuer]) -> list[Token]:
    """Return the tokens the issuers' keys are in, each once."""
    tokens = {
        id(k.token): k.token for i in issuers.values() if isinstance(k := i.keystore, TokenKey)
    }
    return list(tokens.values())


def load_issuer(settings: IssuerSettings, token: Token | None = None) -> SigningIssuer:
    """Read an issuer's files and check that they belong together.

    Raises:
        ConfigurationError: unreadable, key unencrypted or of another certificate, broken chain.
    """
    certificate = read_certificates(settings.certificate_file)[0]
    chain = read_certificates(settings.chain_file)
    keystore: KeyStore
    if settings.token is not None:
        check_token(settings.token)
        public_key = certificate.public_key()
        keystore = TokenKey(token or Token(settings.token), settings.token, public_key)
    else:
        keystore = SoftwareKey(_private_key(settings, certificate))
    check_chain(certificate, chain, f"{settings.chain_file}: the chain of {settings.issuer_id}")
    check_is_ca(certificate, settings.certificate_file)
    return SigningIssuer(
        IssuerCertificate(settings.issuer_id, certificate, (settings.crl_partitions or (1,))[0]),
        chain,
        keystore,
        crl=CRLParts(settings.issuer_id, settings.crl_partitions, settings.crl_urls),
        family=settings.generation_of,
        cross=read_certificates(settings.cross_file) if settings.cross_file else (),
    )


def check_token(settings: TokenSettings) -> None:
    """Check what can be known without the token.

    Raises:
        ConfigurationError: the extra, the module or the PIN file is not there.
    """
    if importlib.util.find_spec("pkcs11") is None:
        raise ConfigurationError(
            "keys in a token need the extra pkcs11: install estsuite-signer[pkcs11]",
            code="keystore.extra",
        )
    if not settings.module.is_file():
        raise ConfigurationError(f"there is no PKCS#11 module {settings.module}")
    read_secret(settings.pin_file, "the PIN of the token")


def _private_key(
    settings: IssuerSettings, certificate: x509.Certificate
) -> CertificateIssuerPrivateKeyTypes:
    path, passphrase_file = settings.key_file, settings.passphrase_file
    if path is None or passphrase_file is None:
        raise ConfigurationError(f"{settings.issuer_id} has no key")
    passphrase = read_secret(passphrase_file, f"the passphrase of {settings.issuer_id}")
    try:
        key = load_pem_private_key(
            read_secret_octets(path, f"the key of {settings.issuer_id}"), passphrase.encode()
        )
    except TypeError as exc:
        raise ConfigurationError(f"{path} is not encrypted") from exc
    except (OSError, ValueError, UnsupportedAlgorithm) as exc:
        raise ConfigurationError(f"cannot open the key in {path}") from exc
    allowed = (ec.EllipticCurvePrivateKey, rsa.RSAPrivateKey, ed25519.Ed25519PrivateKey)
    if not isinstance(key, allowed):
        raise ConfigurationError(f"{path}: EC, RSA and Ed25519 keys can sign")
    if spki_der(key.public_key()) != spki_der(certificate.public_key()):
        raise ConfigurationError(f"{path} is not the key of {settings.issuer_id}")
    return key
