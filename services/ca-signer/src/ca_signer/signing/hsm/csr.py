"""Certification requests for CA keys in a token (pure): the token only signs.

The builder signs with private keys in memory, so it makes the request with a throw-away key of
the same kind; the public key is then replaced, and the token signs what came of it.
"""

from __future__ import annotations

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.types import CertificatePublicKeyTypes
from cryptography.hazmat.primitives.serialization import Encoding

from estcore.errors import ConfigurationError
from estcore.pki import der
from estcore.pki.certificate import signing_hash, throw_away_key
from estcore.pki.keys import spki_der

CA_KEY_USAGE = x509.KeyUsage(
    digital_signature=False,
    key_cert_sign=True,
    crl_sign=True,
    content_commitment=False,
    key_encipherment=False,
    data_encipherment=False,
    key_agreement=False,
    encipher_only=False,
    decipher_only=False,
)


def request_info(subject: str, public_key: CertificatePublicKeyTypes) -> tuple[bytes, bytes]:
    """Return (CertificationRequestInfo, signatureAlgorithm) of a request for an issuing CA.

    ``subject`` is an RFC 4514 name. Asks for CA with path length 0 (RFC 2986 section 4).

    Raises:
        ConfigurationError: the subject is no name.
    """
    try:
        name = x509.Name.from_rfc4514_string(subject)
    except ValueError as exc:
        raise ConfigurationError(f"not a name as of RFC 4514: {subject}") from exc
    key = throw_away_key(public_key)
    builder = (
        x509.CertificateSigningRequestBuilder()
        .subject_name(name)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(CA_KEY_USAGE, critical=True)
    )
    model = builder.sign(key, signing_hash(public_key))
    version, subject_der, _, attributes = der.children(model.tbs_certrequest_bytes)
    _, algorithm, _ = der.children(model.public_bytes(Encoding.DER))
    info = der.tlv(der.SEQUENCE, version, subject_der, spki_der(public_key), attributes)
    return info, algorithm


def assemble(info: bytes, algorithm: bytes, signature: bytes) -> x509.CertificateSigningRequest:
    """Return the request made of its three parts."""
    bits = der.tlv(der.BIT_STRING, b"\x00", signature)
    return x509.load_der_x509_csr(der.tlv(der.SEQUENCE, info, algorithm, bits))
