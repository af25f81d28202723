"""Certification requests (RFC 2986): parsed once, possession proven, nothing trusted.

Used by est-frontend for cheap early refusals and again by ca-signer, which does not trust
the front end. Does not decide whether the names are allowed: that is ``estcore.policy``.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from hashlib import sha256

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.types import CertificatePublicKeyTypes
from cryptography.x509.oid import SignatureAlgorithmOID

from estcore.errors import InvalidCSR, MalformedRequest, WeakKey
from estcore.ids import digest
from estcore.pki import der as der_codec
from estcore.pki.keys import key_algorithm, spki_der
from estcore.pki.names import canonical_name, display_name, san_entries
from estcore.pki.weak_keys import check_strength

MAX_CSR_BYTES = 32_768
MAX_SAN_ENTRIES = 100
CHALLENGE_PASSWORD_OID = "1.2.840.113549.1.9.7"  # noqa: S105 - an object identifier
_ECDSA_OIDS = frozenset(
    {
        SignatureAlgorithmOID.ECDSA_WITH_SHA256,
        SignatureAlgorithmOID.ECDSA_WITH_SHA384,
        SignatureAlgorithmOID.ECDSA_WITH_SHA512,
    }
)
_STRING_TAGS = {0x0C, 0x13, 0x16}
"""What RFC 5280 section 4.1.2.4 lets a CA write, and IA5String for DC and e-mail."""
_HASHES = (hashes.SHA256, hashes.SHA384, hashes.SHA512)


@dataclass(frozen=True)
class CertificationRequest:
    """One CSR whose signature has been verified with the key inside it (RFC 7030 section 3.4)."""

    der: bytes
    parsed: x509.CertificateSigningRequest
    public_key: CertificatePublicKeyTypes
    key_algorithm: str
    spki: bytes
    subject_der: bytes
    attributes: bytes
    san_extension: x509.SubjectAlternativeName | None
    san: tuple[str, ...]
    subject: x509.Name

    @cached_property
    def subject_canonical(self) -> str:
        """The subject as RFC 5280 section 7.1 compares it."""
        return canonical_name(self.subject)

    @cached_property
    def subject_text(self) -> str:
        """The subject for people and records."""
        return display_name(self.subject)

    @cached_property
    def spki_sha256(self) -> bytes:
        """SHA-256 of the SubjectPublicKeyInfo."""
        return sha256(self.spki).digest()

    @cached_property
    def sha256(self) -> bytes:
        """SHA-256 of the whole CSR."""
        return sha256(self.der).digest()

    @cached_property
    def requested(self) -> bytes:
        """Digest of extensions and attributes asked for, without what binds to a session.

        A channel-bound CSR changes its challengePassword (or estIdentityLinking, RFC 7894) with
        each TLS session and still is the same request (RFC 7030 section 4.2.3).
        """
        if not self.attributes:
            return b""
        _, start, end = der_codec.header(self.attributes, 0)
        elements = der_codec.elements(self.attributes, start, end)
        values = [self.attributes[a:d] for _, a, _, d in elements]
        return digest(
            sorted(v for v in values if not any(prefix in v[:18] for prefix in _BINDINGS))
        )


_BINDINGS = (
    bytes.fromhex("06092a864886f70d010907"),  # challengePassword
    bytes.fromhex("060b2a864886f70d010910023a"),  # id-aa-estIdentityLinking
)


def parse_csr(der: bytes) -> CertificationRequest:
    """Return the request in ``der`` after checking its signature and its public key.

    Raises:
        MalformedRequest: not one DER CertificationRequest, or too large.
        InvalidCSR: the signature does not verify, or uses a hash that is not accepted.
        WeakKey: key kind, size or encoding not accepted, or a key that can be broken.
    """
    if len(der) > MAX_CSR_BYTES:
        raise MalformedRequest(f"CSR is larger than {MAX_CSR_BYTES} bytes", code="csr.too_large")
    try:
        parsed = x509.load_der_x509_csr(der)
        public_key = parsed.public_key()
        subject = parsed.subject
        san_extension = _san(parsed)
    except WeakKey:
        raise
    except UnsupportedAlgorithm as exc:
        raise WeakKey("the key algorithm is not accepted", code="key.type") from exc
    except (ValueError, TypeError, x509.DuplicateExtension, x509.InvalidVersion) as exc:
        raise MalformedRequest("not a PKCS#10 certification request", code="csr.malformed") from exc
    algorithm = key_algorithm(public_key)
    check_strength(public_key)
    subject_der, spki, attributes = _certified_parts(der, public_key, subject)
    _prove_possession(parsed, public_key)
    san = san_entries(san_extension)
    if san_extension is not None and not san:
        # RFC 5280 section 4.2.1.6: the sequence has at least one entry.
        raise InvalidCSR("the subjectAltName extension is empty", code="csr.san_empty")
    if len(san) > MAX_SAN_ENTRIES:
        raise InvalidCSR(f"more than {MAX_SAN_ENTRIES} SAN entries", code="csr.san_too_many")
    if any(not entry.isprintable() for entry in san):
        raise InvalidCSR("a SAN entry has unprintable characters", code="csr.san_characters")
    return CertificationRequest(
        der=der,
        parsed=parsed,
        public_key=public_key,
        key_algorithm=algorithm,
        spki=spki,
        subject_der=subject_der,
        attributes=attributes,
        san_extension=san_extension,
        san=san,
        subject=subject,
    )


def _san(parsed: x509.CertificateSigningRequest) -> x509.SubjectAlternativeName | None:
    try:
        return parsed.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return None


def _certified_parts(
    der: bytes, public_key: CertificatePublicKeyTypes, subject: x509.Name
) -> tuple[bytes, bytes, bytes]:
    """Return subject, key and attributes as encoded, once they are what we may certify."""
    outer = der_codec.children(der)
    info = der_codec.children(outer[0])
    _, bits, _ = der_codec.header(outer[2], 0)
    if outer[2][bits] != 0:
        raise InvalidCSR("the signature is not whole octets", code="csr.signature")
    spki = spki_der(public_key)
    if len(info) < 3 or info[2] != spki:  # noqa: PLR2004 - version, subject, key
        raise WeakKey(
            "keys are named-curve uncompressed EC, rsaEncryption or Ed25519", code="key.encoding"
        )
    if info[1] != subject.public_bytes() or not _string_types(info[1]) <= _STRING_TAGS:
        raise InvalidCSR(
            "the subject is not DER of UTF8String, PrintableString or IA5String",
            code="csr.subject_encoding",
        )
    return info[1], spki, info[3] if len(info) > 3 else b""  # noqa: PLR2004 - attributes


def _string_types(name: bytes) -> set[int]:
    """Return the tags of all attribute values of a name."""
    return {
        der_codec.children(attribute)[1][0]
        for rdn in der_codec.children(name)
        for attribute in der_codec.children(rdn)
    }


def _prove_possession(
    parsed: x509.CertificateSigningRequest, public_key: CertificatePublicKeyTypes
) -> None:
    try:
        algorithm = parsed.signature_hash_algorithm
    except UnsupportedAlgorithm as exc:
        raise InvalidCSR("signature algorithm is not accepted", code="csr.hash") from exc
    if algorithm is not None and not isinstance(algorithm, _HASHES):
        raise InvalidCSR(f"signed with {algorithm.name}; use SHA-256 or better", code="csr.hash")
    try:
        _verify(parsed, public_key, algorithm)
    except (InvalidSignature, UnsupportedAlgorithm, ValueError, TypeError) as exc:
        raise InvalidCSR("the CSR's signature does not verify", code="csr.signature") from exc


def _verify(
    parsed: x509.CertificateSigningRequest,
    public_key: CertificatePublicKeyTypes,
    algorithm: hashes.HashAlgorithm | None,
) -> None:
    # ``parsed.is_signature_valid`` does the same at more than twice the price for EC keys.
    if isinstance(public_key, ec.EllipticCurvePublicKey) and algorithm is not None:
        if parsed.signature_algorithm_oid not in _ECDSA_OIDS:
            raise InvalidSignature
        public_key.verify(parsed.signature, parsed.tbs_certrequest_bytes, ec.ECDSA(algorithm))
    elif not parsed.is_signature_valid:
        raise InvalidSignature
