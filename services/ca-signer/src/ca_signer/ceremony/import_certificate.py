"""``ca-signer ca import``: take a CA certificate that another process signed, after checking it.

The key stayed where it was made, in a token; its request went to the CA above, and what came
back is checked here as a client would check it later, before the signer uses it.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from ca_signer.ceremony.offline_ca import requested_key
from ca_signer.issuers.issuer import check_chain, read_certificates
from estcore.clock import Clock
from estcore.errors import ConfigurationError
from estcore.pki.keys import spki_der


def import_certificate(
    folder: Path, *, certificate_file: Path, chain_file: Path, csr_file: Path, clock: Clock
) -> None:
    """Check a CA certificate and write ``issuing.pem`` and ``chain.pem`` into ``folder``.

    ``chain_file`` holds the certificates above it up to the root; that the root is the right one
    is for people to know. Does not look for revocation.

    Raises:
        ConfigurationError: not for the key of the request, no chain, not a CA that may issue
            now, or the folder holds a CA already.
    """
    if (folder / "issuing.pem").exists():
        raise ConfigurationError(f"{folder} holds a CA already", code="ca.exists")
    certificate, *more = read_certificates(certificate_file)
    if more:
        raise ConfigurationError(f"{certificate_file} holds more than one certificate")
    chain = read_certificates(chain_file)
    if spki_der(certificate.public_key()) != spki_der(requested_key(csr_file)):
        raise ConfigurationError(f"{certificate_file} is not for the key of {csr_file}")
    check_chain(certificate, chain, f"the chain in {chain_file}")
    for above, authority in enumerate([certificate, *chain]):
        _check_authority(authority, below=above)
        now = clock.now()
        if not authority.not_valid_before_utc <= now <= authority.not_valid_after_utc:
            raise ConfigurationError(f"{_name(authority)} is not valid now")
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    (folder / "chain.pem").write_bytes(_pem(chain))
    (folder / "issuing.pem").write_bytes(_pem([certificate]))


def _check_authority(certificate: x509.Certificate, *, below: int) -> None:
    """RFC 5280 sections 4.2.1.2, 4.2.1.3 and 4.2.1.9, with ``below`` CAs under this one."""
    extensions = certificate.extensions
    try:
        constraints = extensions.get_extension_for_class(x509.BasicConstraints)
        usage = extensions.get_extension_for_class(x509.KeyUsage).value
        extensions.get_extension_for_class(x509.SubjectKeyIdentifier)
    except (x509.ExtensionNotFound, ValueError) as exc:
        raise ConfigurationError(
            f"{_name(certificate)} lacks an extension every CA certificate has"
        ) from exc
    if not constraints.value.ca or not constraints.critical:
        raise ConfigurationError(f"{_name(certificate)} is not a CA certificate")
    length = constraints.value.path_length
    if length is not None and length < below:
        raise ConfigurationError(f"{_name(certificate)} allows {length} CAs below it, not {below}")
    if not usage.key_cert_sign:
        raise ConfigurationError(f"{_name(certificate)} may not sign certificates")


def _name(certificate: x509.Certificate) -> str:
    return certificate.subject.rfc4514_string()


def _pem(certificates: Sequence[x509.Certificate]) -> bytes:
    return b"".join(certificate.public_bytes(Encoding.PEM) for certificate in certificates)
