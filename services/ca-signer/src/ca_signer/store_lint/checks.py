"""Lint of a stored certificate or CRL against its row (pure).

The certificate was linted before it was signed. This lint finds a row changed by hand, a disk
error, or a violation of a rule that was added later.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import sha256

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes

from estcore.errors import WeakKey
from estcore.pki.keys import spki_der
from estcore.pki.names import display_name, fold, san_entries
from estcore.pki.parsers import READING_ERRORS
from estcore.pki.weak_keys import check_strength

_HASHES = (hashes.SHA256, hashes.SHA384, hashes.SHA512)
Fault = tuple[str, str]
"""The name of a check and what it found."""


@dataclass(frozen=True)
class StoredCertificate:
    """What a row of the ledger says."""

    certificate: bytes
    sha256: bytes
    serial_number: int
    subject: str
    san: tuple[str, ...]
    spki_sha256: bytes
    not_before: dt.datetime
    not_after: dt.datetime


def lint_stored(row: StoredCertificate, issuer: x509.Certificate | None) -> list[Fault]:
    """Return everything that is wrong; without ``issuer`` its signature is not looked at."""
    try:
        certificate = x509.load_der_x509_certificate(row.certificate)
        return [*_row(row, certificate), *_content(certificate), *_origin(certificate, issuer)]
    except READING_ERRORS as exc:
        return [("unreadable", f"the certificate cannot be read: {type(exc).__name__}")]


def _row(row: StoredCertificate, certificate: x509.Certificate) -> Iterator[Fault]:
    facts = (
        ("fingerprint", sha256(row.certificate).digest(), row.sha256),
        ("serial_number", certificate.serial_number, row.serial_number),
        ("subject", fold(display_name(certificate.subject)), fold(row.subject)),
        ("san", set(san_entries(_san(certificate))), set(row.san)),
        ("key", sha256(spki_der(certificate.public_key())).digest(), row.spki_sha256),
        ("not_before", certificate.not_valid_before_utc, row.not_before),
        ("not_after", certificate.not_valid_after_utc, row.not_after),
    )
    for name, in_certificate, in_row in facts:
        if in_certificate != in_row:
            yield name, f"the row has another {name.replace('_', ' ')} than the certificate"


def _content(certificate: x509.Certificate) -> Iterator[Fault]:
    extensions = certificate.extensions
    try:
        if extensions.get_extension_for_class(x509.BasicConstraints).value.ca:
            yield "ca", "it is a CA certificate"
    except x509.ExtensionNotFound:
        pass
    try:
        usage = extensions.get_extension_for_class(x509.KeyUsage).value
        if usage.key_cert_sign or usage.crl_sign:
            yield "key_usage", "its key may sign certificates or lists"
    except x509.ExtensionNotFound:
        yield "key_usage", "it has no keyUsage"
    algorithm = certificate.signature_hash_algorithm
    if algorithm is not None and not isinstance(algorithm, _HASHES):
        yield "hash", f"it is signed over {algorithm.name}"
    try:
        check_strength(certificate.public_key())
    except WeakKey as exc:
        yield "weak_key", exc.reason


def _origin(certificate: x509.Certificate, issuer: x509.Certificate | None) -> Iterator[Fault]:
    if issuer is None:
        return
    try:
        certificate.verify_directly_issued_by(issuer)
    except (InvalidSignature, ValueError, TypeError):
        yield "signature", "its issuer did not sign it"
    if certificate.not_valid_after_utc > issuer.not_valid_after_utc:
        yield "outlives", "it outlives its issuer"


def lint_list(
    crl: bytes, issuer: x509.Certificate | None, *, number: int, now: dt.datetime
) -> list[Fault]:
    """Return everything that is wrong with a stored revocation list."""
    try:
        return list(_list(x509.load_der_x509_crl(crl), issuer, number, now))
    except READING_ERRORS as exc:
        return [("unreadable", f"the list cannot be read: {type(exc).__name__}")]


def _list(
    crl: x509.CertificateRevocationList,
    issuer: x509.Certificate | None,
    number: int,
    now: dt.datetime,
) -> Iterator[Fault]:
    if crl.extensions.get_extension_for_class(x509.CRLNumber).value.crl_number != number:
        yield "number", "the row has another number than the list"
    if crl.next_update_utc is None or crl.next_update_utc <= now:
        yield "late", "its nextUpdate is over"
    if issuer is not None and not crl.is_signature_valid(issuer.public_key()):  # type: ignore[arg-type]  # a CA's key can sign
        yield "signature", "its issuer did not sign it"


def _san(certificate: x509.Certificate) -> x509.SubjectAlternativeName | None:
    try:
        return certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return None
