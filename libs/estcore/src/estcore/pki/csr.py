"""Certification requests (RFC 2986): parsed once, possession proven, nothing trusted.

Used by est-frontend for cheap early refusals and again by ca-signer, which does not trust
the front end. Does not decide whether the names are allowed: that is ``estcore.policy``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from hashlib import sha256

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa
from cryptography.hazmat.primitives.asymmetric.types import CertificatePublicKeyTypes
from cryptography.x509.oid import SignatureAlgorithmOID

from estcore.errors import InvalidCSR, MalformedRequest, RequestRejected, WeakKey
from estcore.ids import digest
from estcore.pki import der as der_codec
from estcore.pki.attributes import read_attributes
from estcore.pki.csr_structure import (
    MAX_CSR_BYTES as MAX_CSR_BYTES,
)
from estcore.pki.csr_structure import (
    SAN_OID,
    CSRParts,
    RequestedExtension,
    load_for_reading,
    read_extensions,
    requested_extensions,
    split_csr,
)
from estcore.pki.keys import key_algorithm, key_encoding_fault, spki_der
from estcore.pki.names import canonical_name, display_name, san_entries
from estcore.pki.parsers import PARSER_ERRORS, describe, parser_errors
from estcore.pki.subject_der import check_subject_encoding
from estcore.pki.weak_keys import check_strength

MAX_SAN_ENTRIES = 100
_ECDSA_OIDS = frozenset(
    {
        SignatureAlgorithmOID.ECDSA_WITH_SHA256,
        SignatureAlgorithmOID.ECDSA_WITH_SHA384,
        SignatureAlgorithmOID.ECDSA_WITH_SHA512,
    }
)
_NULL = b"\x05\x00"
_HASHES = (hashes.SHA256, hashes.SHA384, hashes.SHA512)


@dataclass(frozen=True)
class CertificationRequest:
    """One CSR whose signature has been verified with the key inside it (RFC 7030 section 3.4)."""

    der: bytes
    public_key: CertificatePublicKeyTypes
    key_algorithm: str
    spki: bytes
    subject_der: bytes
    attributes: bytes
    san_extension: x509.SubjectAlternativeName | None
    san: tuple[str, ...]
    subject: x509.Name
    extensions: tuple[x509.ExtensionType, ...]
    """Those asked for that a profile may grant: SAN, KeyUsage, ExtendedKeyUsage, BasicConstraints;
    as they were asked for, whatever becomes of the names."""
    other_extensions: tuple[str, ...]
    """Identifiers of all others. Their values are not read."""
    unreadable: Mapping[str, RequestRejected]
    """Why an extension cannot be used, by its identifier; see ``require_readable``."""

    def require_readable(self, oid: str) -> None:
        """Raise the error of an extension that cannot be used, before its value counts.

        Raises:
            RequestRejected: what is wrong with the extension.
        """
        error = self.unreadable.get(oid)
        if error is not None:
            # A copy: one exception object must not collect the tracebacks of several threads.
            raise type(error)(error.reason, code=error.code)

    def with_san(self, san: x509.SubjectAlternativeName | None) -> CertificationRequest:
        """Return the request with this SAN in place of its own."""
        unreadable = {oid: e for oid, e in self.unreadable.items() if oid != SAN_OID}
        return replace(self, san_extension=san, san=san_entries(san), unreadable=unreadable)

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

    Extensions that cannot be read are kept as such (``unreadable``): the profile decides whether
    they matter.

    Raises:
        MalformedRequest: not one CertificationRequest, or too large; with what is wrong.
        InvalidCSR: the signature does not verify, or uses a hash that is not accepted; a subject
            that cannot be copied into a certificate; attributes that contradict each other.
        WeakKey: key kind, size or encoding not accepted, or a key that can be broken.
    """
    parts = split_csr(der)
    check_subject_encoding(parts.subject)
    requested = requested_extensions(read_attributes(parts.attributes))
    parsed = _load(parts, requested)
    public_key = _public_key(parsed)
    algorithm = key_algorithm(public_key)
    check_strength(public_key)
    if parts.spki != spki_der(public_key):
        raise WeakKey(key_encoding_fault(parts.spki), code="key.encoding")
    _prove_possession(parsed, parts, public_key)
    with parser_errors("the subject", code="csr.subject_encoding", error=InvalidCSR):
        subject = parsed.subject
    extensions = read_extensions(parsed, requested)
    unreadable = dict(extensions.errors)
    san_extension, san = _san(extensions.values, unreadable)
    return CertificationRequest(
        der=der,
        public_key=public_key,
        key_algorithm=algorithm,
        spki=parts.spki,
        subject_der=parts.subject,
        attributes=parts.attributes,
        san_extension=san_extension,
        san=san,
        subject=subject,
        extensions=extensions.values,
        other_extensions=extensions.other_oids,
        unreadable=unreadable,
    )


def _load(
    parts: CSRParts, requested: tuple[RequestedExtension, ...]
) -> x509.CertificateSigningRequest:
    try:
        return load_for_reading(parts, requested)
    except PARSER_ERRORS as exc:
        oid, *parameters = der_codec.children(parts.signature_algorithm) or [b""]
        if parameters == [_NULL]:
            raise InvalidCSR(
                f"the signature algorithm {der_codec.oid_text(oid)} has NULL parameters, which "
                "RFC 5758 leaves out",
                code="csr.signature_algorithm",
            ) from exc
        raise MalformedRequest(
            f"not a PKCS#10 certification request: {describe(exc)}", code="csr.malformed"
        ) from exc


def _public_key(parsed: x509.CertificateSigningRequest) -> CertificatePublicKeyTypes:
    try:
        return parsed.public_key()
    except UnsupportedAlgorithm as exc:
        raise WeakKey("the key algorithm is not accepted", code="key.type") from exc
    except PARSER_ERRORS as exc:
        raise MalformedRequest(
            f"the public key cannot be read: {describe(exc)}", code="csr.malformed"
        ) from exc


def _san(
    values: tuple[x509.ExtensionType, ...], unreadable: dict[str, RequestRejected]
) -> tuple[x509.SubjectAlternativeName | None, tuple[str, ...]]:
    """Return the SAN and its entries; one that no certificate can have becomes unreadable."""
    san = next((v for v in values if isinstance(v, x509.SubjectAlternativeName)), None)
    entries = san_entries(san)
    if san is not None and not entries:
        # RFC 5280 section 4.2.1.6: the sequence has at least one entry.
        error = InvalidCSR("the subjectAltName extension is empty", code="csr.san_empty")
    elif len(entries) > MAX_SAN_ENTRIES:
        error = InvalidCSR(f"more than {MAX_SAN_ENTRIES} SAN entries", code="csr.san_too_many")
    elif any(not entry.isprintable() for entry in entries):
        error = InvalidCSR("a SAN entry has unprintable characters", code="csr.san_characters")
    else:
        return san, entries
    unreadable[SAN_OID] = error
    return None, ()


def _prove_possession(
    parsed: x509.CertificateSigningRequest, parts: CSRParts, public_key: CertificatePublicKeyTypes
) -> None:
    try:
        algorithm = parsed.signature_hash_algorithm
    except PARSER_ERRORS as exc:
        raise InvalidCSR("signature algorithm is not accepted", code="csr.hash") from exc
    if algorithm is not None and not isinstance(algorithm, _HASHES):
        raise InvalidCSR(
            f"signed with {algorithm.name}; SHA-256, SHA-384 and SHA-512 are accepted",
            code="csr.hash",
        )
    try:
        _verify(parsed, parts, public_key, algorithm)
    except PARSER_ERRORS as exc:
        raise InvalidCSR("the CSR's signature does not verify", code="csr.signature") from exc


def _verify(
    parsed: x509.CertificateSigningRequest,
    parts: CSRParts,
    public_key: CertificatePublicKeyTypes,
    algorithm: hashes.HashAlgorithm | None,
) -> None:
    """Verify over the octets as they were sent, with the scheme that the CSR names."""
    oid = parsed.signature_algorithm_oid
    signature, signed = parts.signature, parts.info
    if isinstance(public_key, ec.EllipticCurvePublicKey) and algorithm is not None:
        if oid not in _ECDSA_OIDS:
            raise InvalidSignature
        public_key.verify(signature, signed, ec.ECDSA(algorithm))
    elif isinstance(public_key, ed25519.Ed25519PublicKey):
        if oid != SignatureAlgorithmOID.ED25519:
            raise InvalidSignature
        public_key.verify(signature, signed)
    elif isinstance(public_key, rsa.RSAPublicKey) and algorithm is not None:
        scheme = parsed.signature_algorithm_parameters
        if not isinstance(scheme, padding.PKCS1v15 | padding.PSS):
            raise InvalidSignature
        public_key.verify(signature, signed, scheme, algorithm)
    else:
        raise InvalidSignature
