"""Renewal information (RFC 9773): ids of certificates, and the window of an answer."""

from __future__ import annotations

import datetime as dt
import json
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID
from hypothesis import given, settings
from hypothesis import strategies as st

from estcore.errors import MalformedRequest
from estcore.est.paths import PREFIX, Route, is_label, parse_path
from estcore.est.renewal_info import CertificateId, RenewalInfo, cert_id, identify, parse_cert_id

KEY = ec.generate_private_key(ec.SECP256R1())
NOW = dt.datetime(2026, 11, 29, 12, tzinfo=dt.UTC)
WINDOW = '{"suggestedWindow":{"start":"2025-01-02T04:00:00Z","end":"2025-01-03T04:00:00Z"}'
key_ids = st.binary(min_size=2, max_size=64)
serials = st.integers(0, (1 << 159) - 1).filter(lambda n: n > 0x7F)
moments = st.integers(0, 7 * 10**9).map(lambda s: dt.datetime.fromtimestamp(s, dt.UTC))


def certificate(key_id: bytes | None, serial_number: int) -> x509.Certificate:
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "web.test")])
    builder = (
        x509.CertificateBuilder(name, name, KEY.public_key(), serial_number)
        .not_valid_before(NOW)
        .not_valid_after(NOW + dt.timedelta(days=1))
    )
    if key_id is not None:
        aki = x509.AuthorityKeyIdentifier(key_id, None, None)
        builder = builder.add_extension(aki, critical=False)
    return builder.sign(KEY, hashes.SHA256())


def test_the_example_of_the_rfc() -> None:
    """RFC 9773 section 4.1: the example, with a serial number whose first bit is set."""
    named = certificate(bytes.fromhex("69885B6B87464041E1B37B847BD0AE2CDE01C8D4"), 0x87654321)
    assert cert_id(named) == "aYhba4dGQEHhs3uEe9CuLN4ByNQ.AIdlQyE"


@given(key_ids, serials)
def test_an_id_names_issuer_and_serial_number(key_id: bytes, serial_number: int) -> None:
    parsed = CertificateId(key_id, serial_number)
    assert parse_cert_id(str(parsed)) == parsed


@given(st.text(max_size=130) | st.from_regex(r"[A-Za-z0-9_-]{2,20}\.[A-Za-z0-9_-]{2,28}"))
def test_any_text_is_an_id_with_one_spelling_or_refused(text: str) -> None:
    try:
        parsed = parse_cert_id(text)
    except MalformedRequest as exc:
        assert exc.code == "renewal_info.certificate_id"
    else:
        assert str(parsed) == text


@pytest.mark.parametrize(
    "text", ["", ".", "aYhb", "aYhb.", "aYhb.AIdlQyE=", "aYhb.h2VD", "a/b.AId"]
)
def test_an_id_that_is_none_is_refused(text: str) -> None:
    """``h2VD`` is negative as an INTEGER; padding MUST be stripped."""
    with pytest.raises(MalformedRequest):
        parse_cert_id(text)


def test_a_certificate_without_key_identifier_has_no_id() -> None:
    with pytest.raises(MalformedRequest) as caught:
        cert_id(certificate(None, 4711))
    assert caught.value.code == "renewal_info.no_key_identifier"


@settings(deadline=None, max_examples=50)
@given(st.none() | st.binary(max_size=80), st.integers(1, (1 << 159) - 1))
def test_a_certificate_is_identified_as_its_id_is_read(
    key_id: bytes | None, serial_number: int
) -> None:
    named = certificate(key_id, serial_number)
    der = named.public_bytes(Encoding.DER)
    try:
        read = parse_cert_id(cert_id(named))
    except MalformedRequest as exc:
        with pytest.raises(MalformedRequest) as caught:
            identify(der)
        assert key_id is None or len(key_id) in {0, *range(65, 81)}, exc
        assert caught.value.code.startswith("renewal_info.")
    else:
        assert identify(der) == read


@pytest.mark.parametrize("der", [b"", b"0", b"0\0", b"\x30\x03\x02\x01\x05"])
def test_what_is_no_certificate_is_not_identified(der: bytes) -> None:
    with pytest.raises(MalformedRequest) as caught:
        identify(der)
    assert caught.value.code == "parse.certificate"


@given(
    moments,
    st.integers(1, 10**8),
    st.none() | st.uuids().map(str),
    st.none() | st.just("https://ca.test/why?"),
)
def test_an_answer_is_read_as_it_was_written(
    start: dt.datetime, seconds: int, rotation_id: str | None, url: str | None
) -> None:
    end = start + dt.timedelta(seconds=seconds)
    info = RenewalInfo(start, end, rotation_id, "lifetime", url, 30.0)
    assert RenewalInfo.decode(info.encode(), retry_after_s=30.0) == info


def test_unknown_members_are_ignored_and_ours_are_optional() -> None:
    info = RenewalInfo.decode(WINDOW.encode() + b',"more":[1]}')
    assert info.start == dt.datetime(2025, 1, 2, 4, tzinfo=dt.UTC)
    assert (info.rotation_id, info.explanation_url, info.retry_after_s) == (None, None, None)


@pytest.mark.parametrize(
    ("text", "hour"),
    [
        ("2025-01-02T04:00:00.999Z", 4),
        ("2025-01-02t04:00:00z", 4),
        ("2025-01-02T04:00:00+02:00", 2),
    ],
)
def test_each_form_of_a_timestamp_is_read(text: str, hour: int) -> None:
    """RFC 3339 section 5.6."""
    body = json.dumps({"suggestedWindow": {"start": text, "end": "2025-01-03T04:00:00Z"}})
    assert RenewalInfo.decode(body.encode()).start.hour == hour


@pytest.mark.parametrize("end", ["2025-01-02T04:00:00Z", "2025-01-02T03:59:59Z"])
def test_a_window_that_does_not_end_after_its_start_is_refused(end: str) -> None:
    body = json.dumps({"suggestedWindow": {"start": "2025-01-02T04:00:00Z", "end": end}})
    with pytest.raises(MalformedRequest) as caught:
        RenewalInfo.decode(body.encode())
    assert caught.value.code == "renewal_info.window"


json_values: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=30),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["suggestedWindow", "start", "end", "explanationURL", "rotationID"]),
            inner,
            max_size=4,
        )
    ),
    max_leaves=12,
)


@given(st.binary(max_size=200) | json_values.map(lambda v: json.dumps(v).encode()))
def test_any_octets_are_an_answer_or_refused(body: bytes) -> None:
    try:
        info = RenewalInfo.decode(body)
    except MalformedRequest:
        return
    assert info.start < info.end


def test_an_answer_that_is_nested_deeply_or_long_is_refused() -> None:
    for body in (b"[" * 10_000, WINDOW.encode() + b"," + b" " * 20_000 + b'"a":1}'):
        with pytest.raises(MalformedRequest):
            RenewalInfo.decode(body)


def test_a_path_goes_on_with_the_id_of_a_certificate() -> None:
    assert parse_path(f"{PREFIX}/web/renewal-info/aYhb.AIdl") == Route(
        "web", "renewal-info", "aYhb.AIdl"
    )
    assert parse_path(f"{PREFIX}/renewal-info/aYhb.AIdl") == Route(
        None, "renewal-info", "aYhb.AIdl"
    )
    assert not is_label("renewal-info")


@pytest.mark.parametrize(
    "path",
    [
        *("renewal-info", "renewal-info/", "web/renewal-info", "web/renewal-info/a/b"),
        *("a/b/c/d/e", "cacerts/aYhb.AIdl", "web/cacerts/aYhb.AIdl", "renewal-info/" + "a" * 129),
    ],
)
def test_no_other_path_goes_on(path: str) -> None:
    assert parse_path(f"{PREFIX}/{path}") is None
