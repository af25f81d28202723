"""``estctl inspect``: everything in a file is shown, or said to be unreadable; nothing else happens."""

from __future__ import annotations

import base64
import datetime as dt
import json
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, pkcs7
from cryptography.x509.oid import ExtendedKeyUsageOID
from hypothesis import given
from hypothesis import strategies as st

from estclient import cli
from estclient.est.keys import key_pem, make_csr, make_key
from estclient.files.description import describe, relative
from estcore.errors import MalformedRequest

NOW = dt.datetime(2026, 11, 29, 12, tzinfo=dt.UTC)
KEY = ec.generate_private_key(ec.SECP256R1())
NAME = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "web \x1b[31m")])
CERTIFICATE = (
    x509.CertificateBuilder(NAME, NAME, KEY.public_key(), 0x1234, NOW, NOW + dt.timedelta(30))
    .add_extension(x509.SubjectAlternativeName([x509.DNSName("web.example")]), critical=False)
    .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CLIENT_AUTH]), critical=False)
    .sign(KEY, SHA256())
)
DER = CERTIFICATE.public_bytes(Encoding.DER)
CSR = make_csr(KEY, "CN=web", ("dns:web.example",))
CRL = (
    x509.CertificateRevocationListBuilder(NAME, NOW, NOW + dt.timedelta(1))
    .sign(KEY, SHA256())
    .public_bytes(Encoding.DER)
)
BAG = pkcs7.serialize_certificates([CERTIFICATE, CERTIFICATE], Encoding.DER)


def pem(kind: str, der: bytes) -> bytes:
    return (
        f"-----BEGIN {kind}-----\n".encode()
        + base64.encodebytes(der)
        + f"-----END {kind}-----\n".encode()
    )


@pytest.mark.parametrize(
    ("der", "kind", "expected"),
    [
        (DER, "CERTIFICATE", ["certificate"]),
        (CSR, "CERTIFICATE REQUEST", ["certificate request"]),
        (CRL, "X509 CRL", ["certificate revocation list"]),
        (BAG, "PKCS7", ["certificate", "certificate"]),
    ],
)
def test_every_form_of_an_object_reads_the_same(der: bytes, kind: str, expected: list[str]) -> None:
    shown = describe(der, NOW)
    assert [item.kind for item in shown] == expected
    for octets in (pem(kind, der), base64.b64encode(der), base64.encodebytes(der)):
        assert describe(octets, NOW) == shown


def test_a_certificate_is_shown_with_what_people_ask_for() -> None:
    fields = dict(describe(DER, NOW)[0].fields)
    assert fields["names"] == "dns:web.example"
    assert fields["valid until"].endswith("(in 30 days)")
    assert fields["serial"] == "1234"
    assert fields["key"] == "ec-p256"
    assert fields["usage"] == "clientAuth"
    later = dict(describe(DER, NOW + dt.timedelta(31))[0].fields)
    assert later["valid until"].endswith("EXPIRED")
    earlier = dict(describe(DER, NOW - dt.timedelta(1))[0].fields)
    assert earlier["valid until"].endswith("NOT YET VALID")


def test_a_file_with_a_key_shows_its_certificate_and_never_the_key() -> None:
    secret = key_pem(make_key())
    items = describe(secret + pem("CERTIFICATE", DER), NOW)
    assert [item.kind for item in items] == ["private key", "certificate"]
    inner = b"".join(secret.split(b"-----")[2].split()).decode()
    assert inner[:40] not in str(items)


@given(st.binary(max_size=400))
def test_any_octets_are_read_or_refused(octets: bytes) -> None:
    try:
        assert describe(octets, NOW)
    except MalformedRequest as exc:
        assert exc.code == "inspect.unknown"


@given(st.sampled_from([DER, CSR, CRL, BAG]), st.data())
def test_damaged_objects_are_shown_as_far_as_they_go_or_refused(
    der: bytes, data: st.DataObject
) -> None:
    place = data.draw(st.integers(0, len(der) - 1))
    damaged = der[:place] + data.draw(st.binary(min_size=1, max_size=3)) + der[place + 1 :]
    for kind in ("CERTIFICATE", "CERTIFICATE REQUEST", "X509 CRL", "PKCS7"):
        try:
            describe(pem(kind, damaged), NOW)
        except MalformedRequest as exc:
            assert exc.code == "inspect.unknown"


@given(st.integers(-(10**9), 10**9))
def test_relative_times_name_the_side_and_at_least_half(seconds: int) -> None:
    text = relative(NOW + dt.timedelta(seconds=seconds), NOW)
    assert text.startswith("in ") == (seconds >= 0)
    count, unit = text.removeprefix("in ").removesuffix(" ago").split()
    size = {"second": 1, "minute": 60, "hour": 3600, "day": 86_400}[unit.removesuffix("s")]
    assert int(count) * size <= abs(seconds) < (int(count) + 1) * size


def test_the_command_escapes_names_and_prints_json(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "web.der"
    file.write_bytes(DER)
    assert cli.main(["inspect", str(file)]) == 0
    shown = capsys.readouterr().out
    assert "\x1b" not in shown
    assert "subject" in shown
    assert cli.main(["inspect", str(file), "--json"]) == 0
    (item,) = json.loads(capsys.readouterr().out)
    assert item["kind"] == "certificate"
    assert item["names"] == "dns:web.example"
    assert cli.main(["inspect", str(tmp_path / "none")]) == 2
    assert "cannot read" in capsys.readouterr().err
