"""Lint what an upstream CA sent (pure): is it the certificate that was decided, and of that CA?

The pattern is the certificate a local issuer would have signed, so decision and lint cannot
drift apart. Narrower than decided is good (fewer usages, a shorter life); anything wider, other
or unreadable is wrong.
"""

from __future__ import annotations

import datetime as dt
from dataclasses import dataclass

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import ExtensionOID

from estcore.errors import ESTSuiteError, ProfileViolation
from estcore.pki import der as der_codec
from estcore.pki.csr import CertificationRequest
from estcore.pki.keys import spki_der
from estcore.pki.names import canonical_name, common_names, san_entries
from estcore.pki.parsers import READING_ERRORS

SKEW = dt.timedelta(seconds=60)
_SERIAL_BITS = 159
_HASHES = (hashes.SHA256, hashes.SHA384, hashes.SHA512)
_CRITICAL = {
    ExtensionOID.BASIC_CONSTRAINTS,
    ExtensionOID.KEY_USAGE,
    ExtensionOID.EXTENDED_KEY_USAGE,
    ExtensionOID.SUBJECT_ALTERNATIVE_NAME,
}
_USAGES = (
    "digital_signature",
    "content_commitment",
    "key_encipherment",
    "data_encipherment",
    "key_agreement",
    "key_cert_sign",
    "crl_sign",
)
_SCT_LIST = x509.ObjectIdentifier("1.3.6.1.4.1.11129.2.4.2")
_ADDED_BY_THE_CA = {
    ExtensionOID.SUBJECT_KEY_IDENTIFIER,
    ExtensionOID.AUTHORITY_KEY_IDENTIFIER,
    ExtensionOID.CRL_DISTRIBUTION_POINTS,
    ExtensionOID.AUTHORITY_INFORMATION_ACCESS,
    _SCT_LIST,
}
"""What a CA says about itself and its key; everything else is of the pattern or wrong."""
_CHECKED_BY_VALUE = {*_CRITICAL, *_ADDED_BY_THE_CA, ExtensionOID.CERTIFICATE_POLICIES}
_REQUESTABLE = (x509.SubjectAlternativeName, x509.KeyUsage, x509.ExtendedKeyUsage)


class UnexpectedCertificate(ESTSuiteError):
    """An upstream CA sent a certificate that is not what was asked for."""

    default_code = "upstream.wrong_certificate"

    def __init__(self, check: str, reason: str) -> None:
        super().__init__(reason)
        self.check = check


@dataclass(frozen=True)
class ResponseChecks:
    """What the certificate must be, and when that was asked for."""

    pattern: x509.Certificate
    issuer: x509.Certificate
    lifetime: dt.timedelta
    asked_at: dt.datetime
    backdating: dt.timedelta


def check_response(der: bytes, terms: ResponseChecks, *, now: dt.datetime) -> x509.Certificate:
    """Return the certificate in ``der`` if it is what was decided.

    Does not look for the serial number in the ledger; its unique index does. That the chain
    above the issuer is good was checked when the settings were read.

    Raises:
        UnexpectedCertificate: with the name of the first check that failed.
    """
    try:
        certificate = x509.load_der_x509_certificate(der)
        if certificate.public_bytes(Encoding.DER) != der:
            raise UnexpectedCertificate("der", "the certificate is followed by something else")
        for check, reason in (
            *_origin(certificate, terms),
            *_identity(certificate, terms),
            *_life(certificate, terms, now),
            *_extensions(certificate, terms),
        ):
            raise UnexpectedCertificate(check, reason)
    except UnexpectedCertificate:
        raise
    except READING_ERRORS as exc:
        raise UnexpectedCertificate("unreadable", "the certificate cannot be read") from exc
    return certificate


Found = list[tuple[str, str]]


def _origin(certificate: x509.Certificate, terms: ResponseChecks) -> Found:
    try:
        certificate.verify_directly_issued_by(terms.issuer)
    except (InvalidSignature, ValueError, TypeError):
        return [("issuer", "it is not signed by the configured issuer")]
    algorithm = certificate.signature_hash_algorithm
    if algorithm is not None and not isinstance(algorithm, _HASHES):
        return [("hash", f"it is signed over {algorithm.name}")]
    # RFC 5280 section 4.1.2.2: positive, 20 octets at most.
    if not 0 < certificate.serial_number < 2 ** (_SERIAL_BITS + 1):
        return [("serial", "its serial number is not allowed")]
    if certificate.version is not x509.Version.v3:
        return [("version", "it is not of version 3")]
    return []


def _identity(certificate: x509.Certificate, terms: ResponseChecks) -> Found:
    pattern = terms.pattern
    if _spki(certificate) != _spki(pattern):
        return [("key", "it is for another key")]
    if canonical_name(certificate.subject) != canonical_name(pattern.subject):
        return [("subject", "it has another subject than was decided")]
    if set(san_entries(_san(certificate))) != set(san_entries(_san(pattern))):
        return [("san", "it has other alternative names than were decided")]
    return []


def _spki(certificate: x509.Certificate) -> bytes:
    return spki_der(certificate.public_key())


def _life(certificate: x509.Certificate, terms: ResponseChecks, now: dt.datetime) -> Found:
    before, after = certificate.not_valid_before_utc, certificate.not_valid_after_utc
    if after > now + terms.lifetime + SKEW:
        return [("lifetime", "it lives longer than was decided")]
    if after > terms.issuer.not_valid_after_utc:
        return [("lifetime", "it outlives its issuer")]
    if after <= now:
        return [("lifetime", "it is over")]
    if before > now + SKEW:
        return [("not_before", "it begins in the future")]
    if before < terms.asked_at - terms.backdating - SKEW:
        return [("not_before", "it was made before it was asked for")]
    return []


def _extensions(certificate: x509.Certificate, terms: ResponseChecks) -> Found:
    faults = _allowed(certificate, terms.pattern)
    faults += _constraints(certificate)
    faults += _key_usage(certificate, terms.pattern)
    faults += _purposes(certificate, terms.pattern)
    faults += _key_identifiers(certificate, terms.issuer)
    return faults


def _allowed(certificate: x509.Certificate, pattern: x509.Certificate) -> Found:
    """Check that each extension is the pattern's own or one that a CA adds by itself.

    CAs copy what a CSR asks for; an extension may map the certificate to an account.
    """
    decided = {extension.oid: extension for extension in pattern.extensions}
    faults: Found = []
    for extension in certificate.extensions:
        oid, own = extension.oid, decided.get(extension.oid)
        if extension.critical and oid not in _CRITICAL and not (own and own.critical):
            faults.append(("critical", f"extension {oid.dotted_string} is critical"))
        elif own is None and oid not in _CHECKED_BY_VALUE:
            faults.append(("extension", f"extension {oid.dotted_string} was not decided"))
        elif own and oid not in _CHECKED_BY_VALUE and extension.value != own.value:
            faults.append(("extension", f"extension {oid.dotted_string} has another value"))
    return faults + _policies(certificate, pattern)


def _policies(certificate: x509.Certificate, pattern: x509.Certificate) -> Found:
    further = _policy_oids(certificate) - _policy_oids(pattern)
    names = ", ".join(sorted(oid.dotted_string for oid in further))
    return [("policies", f"its certificatePolicies have {names}")] if further else []


def _policy_oids(certificate: x509.Certificate) -> set[x509.ObjectIdentifier]:
    try:
        policies = certificate.extensions.get_extension_for_class(x509.CertificatePolicies).value
    except x509.ExtensionNotFound:
        return set()
    return {policy.policy_identifier for policy in policies}


def _constraints(certificate: x509.Certificate) -> Found:
    try:
        constraints = certificate.extensions.get_extension_for_class(x509.BasicConstraints).value
    except x509.ExtensionNotFound:
        return []  # RFC 5280 section 4.2.1.9: then it is no CA
    return [("ca", "it is a CA certificate")] if constraints.ca else []


def _key_usage(certificate: x509.Certificate, pattern: x509.Certificate) -> Found:
    try:
        theirs = certificate.extensions.get_extension_for_class(x509.KeyUsage).value
    except x509.ExtensionNotFound:
        return [("key_usage", "without keyUsage its key is good for everything")]
    ours = pattern.extensions.get_extension_for_class(x509.KeyUsage).value
    wider = [name for name in _USAGES if getattr(theirs, name) and not getattr(ours, name)]
    return [("key_usage", f"its keyUsage has {', '.join(wider)}")] if wider else []


def _purposes(certificate: x509.Certificate, pattern: x509.Certificate) -> Found:
    try:
        theirs = certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    except x509.ExtensionNotFound:
        return [("extended_key_usage", "without extendedKeyUsage it is good for everything")]
    ours = set(pattern.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value)
    wider = [oid.dotted_string for oid in theirs if oid not in ours]
    return [("extended_key_usage", f"its extendedKeyUsage has {', '.join(wider)}")] if wider else []


def _key_identifiers(certificate: x509.Certificate, issuer: x509.Certificate) -> Found:
    """RFC 5280 section 4.2.1.1: it names the key that signed it."""
    try:
        theirs = certificate.extensions.get_extension_for_class(x509.AuthorityKeyIdentifier).value
        ours = issuer.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
    except x509.ExtensionNotFound:
        return []
    if theirs.key_identifier is not None and theirs.key_identifier != ours.digest:
        return [("authority_key_identifier", "it names another issuer's key")]
    return []


def _san(certificate: x509.Certificate) -> x509.SubjectAlternativeName | None:
    try:
        return certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return None


def check_asked(csr: CertificationRequest, pattern: x509.Certificate) -> None:
    """Check that a CA which follows the CSR makes what was decided, and nothing besides.

    The CSR goes on as the client signed it, so an extension that a local issuer would leave out
    cannot be left out here. The CN as a DNS name, where there is no SAN, is what upstream CAs know
    too.

    Raises:
        ProfileViolation: the profile gives names that the CSR does not have, or the CSR asks for
            extensions other than SAN, KeyUsage and ExtendedKeyUsage (``upstream.extensions``).
        RequestRejected: an extension that cannot be read.
    """
    for oid in csr.unreadable:
        csr.require_readable(oid)
    others = [*csr.other_extensions, *(_oid(e) for e in csr.extensions if not _requestable(e))]
    if others:
        raise ProfileViolation(
            f"the CSR asks for the extension {others[0]}; an upstream CA may copy it, so a request "
            "for this issuer has SAN, KeyUsage and ExtendedKeyUsage only",
            code="upstream.extensions",
        )
    decided, has = set(san_entries(_san(pattern))), set(csr.san)
    if not has:
        has = {f"dns:{n.lower()}" for n in common_names(csr.subject)} & decided
    if decided != has or csr.subject_canonical != canonical_name(pattern.subject):
        raise ProfileViolation(
            "the profile adds names to the request, which an upstream CA cannot do; request them",
            code="upstream.names",
        )


def _oid(extension: x509.ExtensionType) -> str:
    return extension.oid.dotted_string


def _requestable(extension: x509.ExtensionType) -> bool:
    # cA FALSE, which openssl asks for by default, is what every certificate says.
    no_ca = isinstance(extension, x509.BasicConstraints) and not extension.ca
    return no_ca or isinstance(extension, _REQUESTABLE)


def expected_of(tbs: bytes) -> x509.Certificate:
    """Return linted TBS bytes as a certificate to read; its signature is nothing."""
    algorithm = der_codec.children(tbs)[2]
    nothing = der_codec.tlv(der_codec.BIT_STRING, b"\x00")
    return x509.load_der_x509_certificate(
        der_codec.tlv(der_codec.SEQUENCE, tbs, algorithm, nothing)
    )
