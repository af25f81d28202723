"""Lists of any length and any issuer's kind read back as what was decided."""

from __future__ import annotations

import datetime as dt
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa
from cryptography.hazmat.primitives.hashes import SHA256, SHA384
from hypothesis import given
from hypothesis import strategies as st

from estcore.errors import LintFailed
from estcore.pki.certificate import IssuerCertificate, assemble, signing_hash
from estcore.pki.crl import (
    REASON_CODES,
    RevokedEntry,
    build_crl,
    check_crl,
    crl_signature_algorithm,
    plain_entries,
    read_crl,
)
from estcore.pki.crl_shards import COUNTS, all_of, partition_of, read_partition

NOW = dt.datetime(2030, 1, 1, tzinfo=dt.UTC)
NAME = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "CA")])


def issuer_of(key: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey | ed25519.Ed25519PrivateKey):  # type: ignore[no-untyped-def]
    ski = x509.SubjectKeyIdentifier.from_public_key(key.public_key())
    builder = x509.CertificateBuilder(
        NAME, NAME, key.public_key(), 7, NOW, NOW + dt.timedelta(days=9)
    )
    certificate = builder.add_extension(ski, critical=False).sign(
        key, signing_hash(key.public_key())
    )
    return IssuerCertificate("ca", certificate)


KEYS: list[Any] = [
    ec.generate_private_key(ec.SECP256R1()),
    ec.generate_private_key(ec.SECP384R1()),
    rsa.generate_private_key(65537, 2048),
    ed25519.Ed25519PrivateKey.generate(),
]


def signed(key: object, tbs: bytes) -> bytes:
    if isinstance(key, ec.EllipticCurvePrivateKey):
        kind = SHA256() if key.curve.key_size == 256 else SHA384()
        signature = key.sign(tbs, ec.ECDSA(kind))
    elif isinstance(key, rsa.RSAPrivateKey):
        signature = key.sign(tbs, padding.PKCS1v15(), SHA256())
    else:
        assert isinstance(key, ed25519.Ed25519PrivateKey)
        signature = key.sign(tbs)
    return assemble(tbs, crl_signature_algorithm(tbs), signature)


ENTRIES = st.frozensets(
    st.builds(
        RevokedEntry,
        st.integers(1, 2**159 - 1),
        st.integers(946_684_800, 4_102_444_799).map(lambda s: dt.datetime.fromtimestamp(s, dt.UTC)),
        st.sampled_from([None, "unspecified", *REASON_CODES]),
    ),
    max_size=20,
)


@given(
    entries=ENTRIES,
    number=st.integers(1, 2**63 - 1),
    index=st.integers(0, len(KEYS) - 1),
    urls=st.lists(st.from_regex(r"http://crl\.test/[a-z]{1,30}\.crl", fullmatch=True), max_size=3),
)
def test_what_is_built_is_read_back(
    entries: frozenset[RevokedEntry], number: int, index: int, urls: list[str]
) -> None:
    key, later = KEYS[index], NOW + dt.timedelta(days=1)
    issuer = issuer_of(key)
    tbs = build_crl(issuer, entries, number=number, this_update=NOW, next_update=later, urls=urls)
    crl = signed(key, tbs)
    check_crl(crl, issuer, entries, number=number, next_update=later, urls=urls)
    other = [*urls, "http://crl.test/other.crl"]
    with pytest.raises(LintFailed):
        check_crl(crl, issuer, entries, number=number, next_update=later, urls=other)
    parsed, found = read_crl(crl)
    assert found == plain_entries(entries)
    assert parsed.tbs_certlist_bytes == tbs


@given(serial=st.integers(1, 2**159 - 1), count=st.sampled_from(COUNTS))
def test_every_certificate_is_in_one_part(serial: int, count: int) -> None:
    holding = [part for part in all_of(count) if part.holds(serial)]
    assert holding == [partition_of(serial, count)]
    assert read_partition(holding[0].name) == holding[0]


@given(st.text("0123456789-x", max_size=9))
def test_any_text_is_the_name_of_one_part_or_none(text: str) -> None:
    try:
        part = read_partition(text)
    except ValueError:
        return
    assert part.name == text
    assert part in all_of(part.count)


@pytest.mark.parametrize("change", ["number", "entries", "next_update", "issuer", "octet"])
def test_anything_else_is_refused(change: str) -> None:
    key, later = KEYS[0], NOW + dt.timedelta(days=1)
    issuer = issuer_of(key)
    entries = {RevokedEntry(5, NOW, "superseded")}
    tbs = build_crl(issuer, entries, number=3, this_update=NOW, next_update=later)
    crl = bytearray(signed(key, tbs))
    number = 4 if change == "number" else 3
    if change == "entries":
        entries = {RevokedEntry(6, NOW, "superseded")}
    if change == "next_update":
        later += dt.timedelta(seconds=1)
    if change == "issuer":
        issuer = issuer_of(KEYS[1])
    if change == "octet":
        crl[-1] ^= 1
    with pytest.raises(LintFailed):
        check_crl(bytes(crl), issuer, entries, number=number, next_update=later)
