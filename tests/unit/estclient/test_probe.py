"""The probe's settings, its SIEM file, and what it relies on in OCSP responses and CRLs."""

from __future__ import annotations

import datetime as dt
import tempfile
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509 import ocsp
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from hypothesis import given
from hypothesis import strategies as st

from estclient.probe import revocation
from estclient.probe.private_files import private_files
from estclient.probe.report import StepFailed, StepResult
from estclient.probe.settings import ProbeSettings
from estclient.probe.siem_file import SIEMFile
from estcore.errors import ConfigurationError
from estcore.pki.parsers import PARSER_ERRORS
from estcore.pki.profile import parse_model

NOW = dt.datetime(2026, 3, 1, 12, tzinfo=dt.UTC)
HOUR = dt.timedelta(hours=1)
URL = "http://crl.test/issuing.crl"
SERIAL = 4711
VALID: dict[str, Any] = {
    "server": {"urls": ["https://est.test:8443"], "trust_file": "root.pem"},
    "subject": "CN=probe.test",
    "secret": {"user": "probe", "secret_file": "secret"},
}
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3)
    ),
    max_leaves=6,
)


def settings(**changes: Any) -> ProbeSettings:
    return parse_model(ProbeSettings, {**VALID, **changes}, Path("probe.yaml"))


@given(field=st.sampled_from([*ProbeSettings.model_fields, "unknown"]), value=JSON)
def test_any_value_of_a_setting_is_taken_or_refused_in_one_line(field: str, value: Any) -> None:
    try:
        settings(**{field: value})
    except ConfigurationError as exc:
        assert "\n" not in exc.reason


@given(seconds=st.floats(allow_nan=True, allow_infinity=True))
def test_every_duration_has_an_end(seconds: float) -> None:
    try:
        taken = settings(step_timeout_s=seconds, every_s=seconds)
    except ConfigurationError:
        assert not 1 <= seconds <= 600
    else:
        assert 1 <= taken.step_timeout_s <= 600


@pytest.mark.parametrize(
    "changes",
    [
        {"secret": None},
        {"credential": {"certificate_file": "c", "key_file": "k"}},
        {"commands": [{"name": "slot", "command": ["a"]}, {"name": "slot", "command": ["b"]}]},
        {"server": {"urls": ["http://est.test"], "trust_file": "root.pem"}},
        {"san": ["host:probe.test"]},
    ],
)
def test_settings_that_contradict_themselves_are_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError):
        settings(**changes)


@given(before=st.binary(max_size=40), parts=st.lists(st.integers(0, 30), max_size=4))
def test_a_serial_is_found_wherever_the_file_is_cut(before: bytes, parts: list[int]) -> None:
    line = b"x" * 7 + b'serial="00abcdef0123"\n'
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "siem.log"
        path.write_bytes(before + b"00abcdef0123")  # an earlier round's
        siem = SIEMFile(path)
        place = 0
        for part in sorted(parts):
            with path.open("ab") as file:
                file.write(line[place:part])
            place = max(place, part)
            assert siem.has("00abcdef0123") == (b"00abcdef0123" in line[:place])
            if siem.has("00abcdef0123"):
                return
        with path.open("ab") as file:
            file.write(line[place:])
        assert siem.has("00abcdef0123")


def test_a_rotated_file_is_read_from_its_beginning(tmp_path: Path) -> None:
    path = tmp_path / "siem.log"
    path.write_bytes(b"old " * 100)
    siem = SIEMFile(path)
    path.unlink()
    assert not siem.has("abc")
    path.write_bytes(b"abc")
    assert siem.has("abc")


def test_keys_are_in_files_that_end_with_the_block() -> None:
    with private_files(b"certificate", b"key") as (first, second):
        assert (first.read_bytes(), second.read_bytes()) == (b"certificate", b"key")
    assert not second.exists()


def test_a_step_is_one_line() -> None:
    line = StepResult("ocsp", "failed", 1.234, "probe.ocsp_not_good", "revoked").line()
    assert line == "ocsp               failed      1.23 s  revoked [probe.ocsp_not_good]"


KEYS = [ec.generate_private_key(ec.SECP256R1()) for _ in range(4)]
ISSUER_KEY, LEAF_KEY, RESPONDER_KEY, STRANGER_KEY = KEYS


def name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])


def certificate(
    subject: str, key: Any, signer: Any, *, serial: int, usage: x509.ObjectIdentifier | None = None
) -> x509.Certificate:
    builder = x509.CertificateBuilder(
        name("issuing"), name(subject), key.public_key(), serial, NOW - HOUR, NOW + HOUR
    )
    if usage is not None:
        builder = builder.add_extension(x509.ExtendedKeyUsage([usage]), critical=False)
    return builder.sign(signer, hashes.SHA256())


ISSUER = certificate("issuing", ISSUER_KEY, ISSUER_KEY, serial=1)
LEAF = certificate("leaf", LEAF_KEY, ISSUER_KEY, serial=SERIAL)
OTHER = certificate("other", LEAF_KEY, ISSUER_KEY, serial=SERIAL + 1)
NONCE = b"n" * 32


def responder(usage: x509.ObjectIdentifier = ExtendedKeyUsageOID.OCSP_SIGNING) -> x509.Certificate:
    return certificate("responder", RESPONDER_KEY, ISSUER_KEY, serial=2, usage=usage)


def response(
    *,
    about: x509.Certificate = LEAF,
    status: ocsp.OCSPCertStatus = ocsp.OCSPCertStatus.GOOD,
    of: dt.datetime = NOW,
    nonce: bytes | None = NONCE,
    by: x509.Certificate | None = None,
    key: Any = RESPONDER_KEY,
) -> bytes:
    revoked = of if status is ocsp.OCSPCertStatus.REVOKED else None
    signer = by or responder()
    builder = (
        ocsp.OCSPResponseBuilder()
        .add_response(about, ISSUER, hashes.SHA256(), status, of, of + HOUR, revoked, None)
        .responder_id(ocsp.OCSPResponderEncoding.HASH, signer)
        .certificates([signer])
    )
    if nonce is not None:
        builder = builder.add_extension(x509.OCSPNonce(nonce), critical=False)
    return builder.sign(key, hashes.SHA256()).public_bytes(Encoding.DER)


def read_ocsp(octets: bytes) -> str:
    return revocation.read_ocsp(octets, LEAF, ISSUER, nonce=NONCE, now=NOW)


@pytest.mark.parametrize(
    "octets", [response(), response(nonce=None), response(by=ISSUER, key=ISSUER_KEY)]
)
def test_a_good_response_is_relied_on(octets: bytes) -> None:
    assert read_ocsp(octets).startswith("good, 2026-03-01T13")


GOOD_RESPONSE = response()
_SIGNATURE = ocsp.load_der_ocsp_response(GOOD_RESPONSE).signature
WRONG_SIGNATURE = GOOD_RESPONSE.replace(_SIGNATURE[-4:], bytes(4))
TRY_LATER = ocsp.OCSPResponseBuilder.build_unsuccessful(ocsp.OCSPResponseStatus.TRY_LATER)
STRANGER = certificate("responder", STRANGER_KEY, STRANGER_KEY, serial=2)


@pytest.mark.parametrize(
    ("octets", "code"),
    [
        (response(status=ocsp.OCSPCertStatus.REVOKED), "probe.ocsp_not_good"),
        (response(status=ocsp.OCSPCertStatus.UNKNOWN), "probe.ocsp_not_good"),
        (response(about=OTHER), "probe.ocsp_invalid"),
        (response(nonce=b"m" * 32), "probe.ocsp_invalid"),
        (response(of=NOW - 2 * HOUR), "probe.ocsp_invalid"),
        (response(of=NOW + HOUR), "probe.ocsp_invalid"),
        (WRONG_SIGNATURE, "probe.ocsp_invalid"),
        (response(by=STRANGER, key=STRANGER_KEY), "probe.ocsp_invalid"),
        (response(by=responder(ExtendedKeyUsageOID.CLIENT_AUTH)), "probe.ocsp_invalid"),
        (TRY_LATER.public_bytes(Encoding.DER), "probe.ocsp_status"),
    ],
)
def test_a_response_that_must_not_be_relied_on_has_a_code(octets: bytes, code: str) -> None:
    with pytest.raises(StepFailed) as caught:
        read_ocsp(octets)
    assert caught.value.code == code


def crl(
    *serials: int, key: Any = ISSUER_KEY, by: str = "issuing", of: dt.datetime = NOW, url: str = URL
) -> bytes:
    point = x509.IssuingDistributionPoint(
        full_name=[x509.UniformResourceIdentifier(url)],
        relative_name=None,
        only_contains_user_certs=False,
        only_contains_ca_certs=False,
        only_some_reasons=None,
        indirect_crl=False,
        only_contains_attribute_certs=False,
    )
    builder = (
        x509.CertificateRevocationListBuilder(name(by), of, of + HOUR)
        .add_extension(x509.CRLNumber(1), critical=False)
        .add_extension(point, critical=True)
    )
    for serial in serials:
        entry = x509.RevokedCertificateBuilder(serial, of).build()
        builder = builder.add_revoked_certificate(entry)
    return builder.sign(key, hashes.SHA256()).public_bytes(Encoding.DER)


def read_crl(octets: bytes) -> str:
    return revocation.read_crl(octets, URL, LEAF, ISSUER, now=NOW)


def test_a_list_without_the_certificate_is_relied_on() -> None:
    assert read_crl(crl(SERIAL + 1)) == "1 entries"


@pytest.mark.parametrize(
    ("octets", "code"),
    [
        (crl(SERIAL), "probe.crl_listed"),
        (crl(key=STRANGER_KEY), "probe.crl_invalid"),
        (crl(by="other"), "probe.crl_invalid"),
        (crl(of=NOW - 2 * HOUR), "probe.crl_invalid"),
        (crl(of=NOW + HOUR), "probe.crl_invalid"),
        (crl(url="http://crl.test/other.crl"), "probe.crl_invalid"),
    ],
)
def test_a_list_that_must_not_be_relied_on_has_a_code(octets: bytes, code: str) -> None:
    with pytest.raises(StepFailed) as caught:
        read_crl(octets)
    assert caught.value.code == code


REFUSALS: tuple[type[Exception], ...] = (StepFailed, *PARSER_ERRORS)
GOOD_CRL = crl(SERIAL + 1)


@given(place=st.integers(0, 5000), octet=st.integers(0, 255))
def test_a_changed_octet_of_an_answer_is_never_an_unknown_error(place: int, octet: int) -> None:
    for good, read in ((GOOD_RESPONSE, read_ocsp), (GOOD_CRL, read_crl)):
        changed = bytearray(good)
        changed[place % len(good)] = octet
        try:
            read(bytes(changed))
        except REFUSALS:
            continue
