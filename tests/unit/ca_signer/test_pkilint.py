"""The nightly check with pkilint reports what RFC 5280 forbids, and not the rules of the public web."""

from __future__ import annotations

import datetime as dt

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding

from ca_signer.store_lint.pkilint import linters

CODE = "pkix.invalid_domain_name_syntax"
NOW = dt.datetime(2026, 1, 1, tzinfo=dt.UTC)
KEY = ec.generate_private_key(ec.SECP256R1())


def codes(name: str) -> list[str]:
    """Return the codes of all errors of a certificate with this dNSName."""
    issuer = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "Issuing CA")])
    certificate = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([]))
        .issuer_name(issuer)
        .public_key(KEY.public_key())
        .serial_number(2**70 + 1)
        .not_valid_before(NOW)
        .not_valid_after(NOW + dt.timedelta(days=1))
        .add_extension(
            x509.SubjectAlternativeName([x509.DNSName._init_without_validation(name)]),
            critical=True,
        )
        .sign(KEY, SHA256())
    )
    lint, _ = linters("error")
    return [code for _, code, _ in lint(certificate.public_bytes(Encoding.DER))]


@pytest.mark.parametrize(
    "name", ["localhost", "web", "web.clinic.example", "*.clinic.example", "3com.example", "db.dc1"]
)
def test_a_name_in_the_preferred_syntax_is_no_finding(name: str) -> None:
    assert CODE not in codes(name)


@pytest.mark.parametrize("name", ["-web.example", "web-.example", "a..example", "we b", "a" * 64])
def test_a_name_outside_the_preferred_syntax_is_a_finding(name: str) -> None:
    assert CODE in codes(name)
