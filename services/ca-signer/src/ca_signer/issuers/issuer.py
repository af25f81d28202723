"""CA certificate of an issuer with its chain, as decisions use it. No key is loaded here."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature

from estcore.errors import ConfigurationError
from estcore.pki.certificate import IssuerCertificate
from estcore.pki.crl_shards import PLACEHOLDER, Partition, filled
from estcore.pki.parsers import parser_errors


@dataclass(frozen=True)
class CRLParts:
    """In which parts the revocation list of an issuer is made besides the full one."""

    issuer_id: str
    counts: tuple[int, ...] = ()
    urls: tuple[str, ...] = ()

    def urls_of(self, part: Partition | None, templates: Sequence[str]) -> list[str]:
        """Return what certificates call a part; nothing for the full list."""
        if part is None:
            return []
        named = (t for t in (*templates, *self.urls) if PLACEHOLDER in t)
        return list(dict.fromkeys(filled(t, self.issuer_id, part) for t in named))


class CACertificate:
    """An issuer's certificate and the certificates above it up to the root."""

    def __init__(
        self,
        certificate: IssuerCertificate,
        chain: list[x509.Certificate],
        *,
        family: str | None = None,
        cross: Sequence[x509.Certificate] = (),
    ) -> None:
        """``family`` is the issuer this is a generation of; ``cross`` links their roots."""
        self.certificate = certificate
        self.chain = chain
        self.name_constraints = tuple(_name_constraints([certificate.certificate, *chain]))
        self.family = family or certificate.issuer_id
        self.cross = tuple(cross)

    @property
    def issuer_id(self) -> str:
        """The issuer's name in policy, topics and records."""
        return self.certificate.issuer_id

    @property
    def root(self) -> x509.Certificate:
        """The end of the chain."""
        return self.chain[-1]


def _name_constraints(chain: Sequence[x509.Certificate]) -> Iterator[x509.NameConstraints]:
    for certificate in chain:
        try:
            yield certificate.extensions.get_extension_for_class(x509.NameConstraints).value
        except x509.ExtensionNotFound:
            continue


def check_is_ca(certificate: x509.Certificate, path: Path) -> None:
    """Check that a certificate is that of a CA.

    Raises:
        ConfigurationError: it is not; the line begins with ``path``.
    """
    try:
        constraints = certificate.extensions.get_extension_for_class(x509.BasicConstraints)
    except (x509.ExtensionNotFound, ValueError) as exc:
        raise ConfigurationError(f"{path} is not a CA certificate") from exc
    if not constraints.value.ca:
        raise ConfigurationError(f"{path} is not a CA certificate")


def check_chain(
    certificate: x509.Certificate, chain: Sequence[x509.Certificate], name: str
) -> None:
    """Check that each certificate is issued by the next, the last by itself.

    Raises:
        ConfigurationError: it is not; the line begins with ``name``.
    """
    child = certificate
    for parent in [*chain, chain[-1]]:
        try:
            child.verify_directly_issued_by(parent)
        except (ValueError, TypeError, InvalidSignature) as exc:
            if child is parent:
                raise ConfigurationError(f"{name} does not end in a root") from exc
            raise ConfigurationError(f"{name} breaks at {parent.subject.rfc4514_string()}") from exc
        child = parent


def read_certificates(path: Path) -> list[x509.Certificate]:
    """Return the certificates in a PEM file, at least one.

    Raises:
        ConfigurationError: unreadable, or none in it.
    """
    try:
        pem = path.read_bytes()
    except OSError as exc:
        raise ConfigurationError(f"cannot read certificates from {path}") from exc
    with parser_errors(
        f"cannot read certificates from {path}",
        code=ConfigurationError.default_code,
        error=ConfigurationError,
    ):
        # These name the issuer in certificates and CRLs, octet for octet: DER or nothing.
        return x509.load_pem_x509_certificates(pem)
