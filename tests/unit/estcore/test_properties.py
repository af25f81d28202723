"""Every parser and encoder: what is written can be read, and any bytes give a value or one error."""

from __future__ import annotations

import base64
import datetime as dt
import json

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa, x25519
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.x509.name import _ASN1Type
from cryptography.x509.oid import NameOID
from hypothesis import example, given
from hypothesis import strategies as st

from estcore import ids
from estcore.errors import (
    IdentityMismatch,
    MalformedRequest,
    NotAuthorized,
    RequestRejected,
)
from estcore.est.certs_only import certs_only, read_certs_only
from estcore.est.paths import EXTENSIONS, OPERATIONS, PREFIX, is_label, parse_path
from estcore.est.transfer import WrittenForm, decode_request, encode_response, written_form
from estcore.messages.enrollment import EnrollmentAnswered, EnrollmentRequested
from estcore.messages.envelope import decode, encode
from estcore.messages.topics import STREAMS, reply_topic, request_topic, token
from estcore.pki import der
from estcore.pki.csr import parse_csr
from estcore.pki.durations import format_duration, parse_duration
from estcore.pki.names import canonical_name
from estcore.pki.profile import Priority
from estcore.policy.decide import check_names, check_same_identity
from estcore.policy.document import Names
from estcore.policy.identity import enrollment_id

KEY = ec.generate_private_key(ec.SECP256R1())


def name(*pairs: tuple[x509.ObjectIdentifier, str]) -> x509.Name:
    return x509.Name([x509.NameAttribute(oid, value) for oid, value in pairs])


def csr(
    common_name: str = "web", san: list[str] | None = None, challenge: bytes | None = None
) -> bytes:
    builder = x509.CertificateSigningRequestBuilder(name((NameOID.COMMON_NAME, common_name)))
    if san:
        builder = builder.add_extension(
            x509.SubjectAlternativeName([x509.DNSName(s) for s in san]), critical=False
        )
    if challenge:
        builder = builder.add_attribute(x509.ObjectIdentifier("1.2.840.113549.1.9.7"), challenge)
    return builder.sign(KEY, SHA256()).public_bytes(Encoding.DER)


CSR = csr("web", ["web.test"])


# Bodies.


@given(st.binary(min_size=1, max_size=3000), st.sampled_from(["single-line", "wrapped"]))
def test_what_is_encoded_is_decoded(octets: bytes, form: WrittenForm) -> None:
    body = encode_response(octets, form)
    assert decode_request(body, max_der_bytes=4000) == octets
    assert not body.endswith(b"\n\n")
    if form == "wrapped" or len(body) % 1024:
        assert body.endswith(b"\n")


@pytest.mark.parametrize("size", [*range(760, 774), *range(1530, 1540)])
def test_B12_no_line_feed_is_left_behind_pieces_of_1024_characters(size: int) -> None:
    """BouncyCastle reads 1,024 characters at a time and fails for octets behind the last ones."""
    body = encode_response(bytes(size), "single-line")
    characters = len(base64.b64encode(bytes(size)))
    assert len(body) == characters + (1 if characters % 1024 else 0)
    assert encode_response(bytes(size), "wrapped").endswith(b"\n")


@given(st.binary(min_size=1, max_size=3000), st.sampled_from(["libest 3.2.0", "curl/8", None]))
def test_B12_auto_is_64_columns_for_libest_and_else_one_line(
    octets: bytes, agent: str | None
) -> None:
    lines = encode_response(octets, written_form("auto", agent)).splitlines()
    if agent is None or not agent.startswith("libest"):
        assert len(lines) == 1
    else:
        assert all(len(line) == 64 for line in lines[:-1])
        assert len(lines[-1]) <= 64


@pytest.mark.parametrize(
    ("agent", "form"),
    [
        ("libest", "wrapped"),
        ("libest 1.0", "wrapped"),
        (" LibEST/3.2.0p", "wrapped"),
        ("myproduct libest", "single-line"),
        ("lib", "single-line"),
        ("", "single-line"),
        (None, "single-line"),
    ],
)
def test_B12_auto_follows_the_user_agent_and_a_configured_form_does_not(
    agent: str | None, form: str
) -> None:
    assert written_form("auto", agent) == form
    assert written_form("single-line", agent) == "single-line"
    assert written_form("wrapped", agent) == "wrapped"


@given(st.binary(max_size=2000))
def test_any_body_gives_octets_or_malformed_request(body: bytes) -> None:
    try:
        assert isinstance(decode_request(body, max_der_bytes=1000), bytes)
    except MalformedRequest as exc:
        assert exc.code.startswith("body.")


@given(st.text("AB \r\n\t", max_size=50))
def test_B2_white_space_never_matters(noise: str) -> None:
    body = base64.b64encode(CSR).decode()
    spread = "".join(c + (noise[i % len(noise)] if noise else "") for i, c in enumerate(body))
    spaced = "".join(c for c in spread if c in body or c.isspace())
    clean = "".join(c for c in spaced if not c.isspace())
    if clean == body:
        assert decode_request(spaced.encode(), max_der_bytes=10_000) == CSR


# CSRs.


@given(st.binary(max_size=600))
@example(CSR + b"\x00")
@example(b"\x30\x80" + CSR[2:])
def test_B15_any_octets_give_a_csr_or_a_rejection(octets: bytes) -> None:
    try:
        parse_csr(octets)
    except RequestRejected as exc:
        assert exc.code


def test_B15_every_single_bit_of_a_csr() -> None:
    """All of them once, so that no exception of a library is left to chance."""
    for place in range(len(CSR)):
        for bit in range(8):
            damaged = bytearray(CSR)
            damaged[place] ^= 1 << bit
            with pytest.raises(RequestRejected):
                parse_csr(bytes(damaged))


@given(st.binary(max_size=300), st.integers(0, 300))
def test_B15_spliced_der_never_escapes(octets: bytes, place: int) -> None:
    spliced = CSR[:place] + octets + CSR[place + len(octets) :]
    try:
        parse_csr(spliced)
    except RequestRejected:
        return
    assert spliced == CSR


@pytest.mark.parametrize(
    ("key", "code"),
    [
        (rsa.generate_private_key(65537, 1024), "key.size"),  # noqa: S505
        (rsa.generate_private_key(3, 2048), "key.exponent"),
        (ec.generate_private_key(ec.SECP256K1()), "key.curve"),
    ],
)
def test_E5_weak_keys_are_refused(key: object, code: str) -> None:
    request = x509.CertificateSigningRequestBuilder(name((NameOID.COMMON_NAME, "x")))
    octets = request.sign(key, SHA256()).public_bytes(Encoding.DER)  # type: ignore[arg-type]
    with pytest.raises(RequestRejected) as caught:
        parse_csr(octets)
    assert caught.value.code == code


def test_E8_accepted_kinds() -> None:
    for key, kind in (
        (ed25519.Ed25519PrivateKey.generate(), "ed25519"),
        (ec.generate_private_key(ec.SECP384R1()), "ec-p384"),
        (rsa.generate_private_key(65537, 2048), "rsa-2048"),
    ):
        builder = x509.CertificateSigningRequestBuilder(name((NameOID.COMMON_NAME, "x")))
        algorithm = None if kind == "ed25519" else SHA256()
        octets = builder.sign(key, algorithm).public_bytes(Encoding.DER)
        assert parse_csr(octets).key_algorithm == kind


def test_compressed_point_is_refused() -> None:
    """What we certify is octet for octet what the client signed, so only one encoding counts."""
    point = KEY.public_key().public_bytes(Encoding.X962, PublicFormat.CompressedPoint)
    full = KEY.public_key().public_bytes(Encoding.X962, PublicFormat.UncompressedPoint)
    spki_head = bytes.fromhex("301306072a8648ce3d020106082a8648ce3d030107")
    spki = der.tlv(0x30, spki_head, der.tlv(0x03, b"\x00", point))
    subject = name((NameOID.COMMON_NAME, "x")).public_bytes()
    info = der.tlv(0x30, b"\x02\x01\x00", subject, spki, der.tlv(0xA0))
    signature = KEY.sign(info, ec.ECDSA(SHA256()))
    algorithm = bytes.fromhex("300a06082a8648ce3d040302")
    octets = der.tlv(0x30, info, algorithm, der.tlv(0x03, b"\x00", signature))
    with pytest.raises(RequestRejected):
        parse_csr(octets)
    assert len(full) == 65


def test_M15_keys_that_cannot_sign_have_no_csr() -> None:
    assert not hasattr(x25519.X25519PrivateKey.generate(), "sign")


# EnrollmentId.


def identity(octets: bytes, **changes: object) -> bytes:
    values: dict[str, object] = {
        "operation": "simpleenroll",
        "tenant": "t",
        "label": "l",
        "principal": "secret:a",
        "predecessor": b"",
    }
    return enrollment_id(parse_csr(octets), **(values | changes))  # type: ignore[arg-type]


def test_G3_a_new_challenge_password_is_the_same_enrollment() -> None:
    assert identity(csr(challenge=b"one")) == identity(csr(challenge=b"two")) == identity(csr())


@pytest.mark.parametrize(
    "change",
    [
        {"operation": "simplereenroll"},
        {"tenant": "u"},
        {"label": "m"},
        {"principal": "secret:b"},
        {"predecessor": b"x" * 32},
    ],
)
def test_G4_anything_else_is_another_enrollment(change: dict[str, object]) -> None:
    assert identity(csr(), **change) != identity(csr())


def test_other_names_are_another_enrollment() -> None:
    assert len({identity(csr("a")), identity(csr("b")), identity(csr("a", ["a.test"]))}) == 3


# Names.


def test_F1_names_compare_by_rfc_5280_section_7_1() -> None:
    printable = x509.NameAttribute(
        NameOID.COMMON_NAME, "Web  Server", _type=_ASN1Type.PrintableString
    )
    one = x509.Name([printable])
    other = name((NameOID.COMMON_NAME, " web server"))
    assert canonical_name(one) == canonical_name(other)
    reordered = name((NameOID.ORGANIZATION_NAME, "a"), (NameOID.COMMON_NAME, "b"))
    assert canonical_name(reordered) != canonical_name(
        name((NameOID.COMMON_NAME, "b"), (NameOID.ORGANIZATION_NAME, "a"))
    )


@given(st.text(min_size=1, max_size=7), st.text(min_size=1, max_size=7))
def test_canonical_names_cannot_be_forged_by_separators(a: str, b: str) -> None:
    two = name((NameOID.COMMON_NAME, a), (NameOID.ORGANIZATION_NAME, b))
    one = name((NameOID.COMMON_NAME, f"{a},O={b}"))
    assert canonical_name(two) != canonical_name(one)


def certificate(san: list[str]) -> x509.Certificate:
    subject = name((NameOID.COMMON_NAME, "web"))
    now = dt.datetime(2026, 1, 1, tzinfo=dt.UTC)
    builder = x509.CertificateBuilder(
        subject, subject, KEY.public_key(), 1, now, now + dt.timedelta(1)
    )
    if san:
        names = x509.SubjectAlternativeName([x509.DNSName(s) for s in san])
        builder = builder.add_extension(names, critical=False)
    return builder.sign(KEY, SHA256())


def test_F1_san_is_compared_as_a_set() -> None:
    check_same_identity(
        parse_csr(csr("WEB", ["b.test", "A.test"])), certificate(["a.test", "b.test"])
    )
    with pytest.raises(IdentityMismatch) as caught:
        check_same_identity(parse_csr(csr("web", ["b.test"])), certificate(["a.test"]))
    assert caught.value.code == "reenroll.san_differs"
    with pytest.raises(IdentityMismatch):
        check_same_identity(parse_csr(csr("web")), certificate(["a.test"]))


@pytest.mark.parametrize(
    ("san", "allowed"),
    [
        ("a.svc.test", True),
        ("A.SVC.TEST", True),
        ("svc.test", False),
        ("evilsvc.test", False),
        ("*.svc.test", False),
        ("a..svc.test", False),
        ("exact.test", True),
        ("x.exact.test", False),
    ],
)
def test_dns_names_must_be_allowed(san: str, allowed: bool) -> None:
    names = Names(common_names=("dev-*",), dns=("exact.test",), dns_suffixes=("svc.test",))
    request = parse_csr(csr("dev-1", [san]))
    if allowed:
        check_names(request, names)
        return
    with pytest.raises(NotAuthorized):
        check_names(request, names)


@pytest.mark.parametrize(
    ("pattern", "value", "allowed"),
    [
        ("dev-*", "dev-1", True),
        ("dev-*", "dev-", False),
        ("dev-*", "dev-a.b", False),
        ("dev-*", "xdev-1", False),
        ("*.test", "a.test", True),
        ("*.test", "a.b.test", False),
    ],
)
def test_a_star_stands_for_one_label(pattern: str, value: str, allowed: bool) -> None:
    request = parse_csr(csr(value))
    names = Names(common_names=(pattern,))
    if allowed:
        check_names(request, names)
        return
    with pytest.raises(NotAuthorized):
        check_names(request, names)


def test_nul_bytes_in_names_are_refused() -> None:
    request = parse_csr(csr("dev-1\0.evil"))
    with pytest.raises(NotAuthorized):
        check_names(request, Names(common_names=("dev-*",)))


# Paths.


@given(st.text(max_size=80))
def test_any_path_gives_a_route_or_nothing(text: str) -> None:
    route = parse_path(PREFIX + "/" + text)
    if route is not None:
        assert route.operation in OPERATIONS | EXTENSIONS
        assert route.label is None or is_label(route.label)


@pytest.mark.parametrize("operation", sorted(OPERATIONS))
def test_A1_A2_every_operation_with_and_without_label(operation: str) -> None:
    assert parse_path(f"{PREFIX}/{operation}").label is None  # type: ignore[union-attr]
    assert parse_path(f"{PREFIX}/dev/{operation}").label == "dev"  # type: ignore[union-attr]
    assert not is_label(operation)


# CMS.


@given(st.lists(st.sampled_from([b"a", b"b"]), max_size=0))
def test_certs_only_reads_back(nothing: list[bytes]) -> None:
    octets = certificate(["a.test"]).public_bytes(Encoding.DER)
    assert read_certs_only(certs_only([octets, *nothing])) == [octets]


@given(st.binary(max_size=200))
def test_any_octets_give_certificates_or_malformed(octets: bytes) -> None:
    try:
        read_certs_only(octets)
    except MalformedRequest as exc:
        assert exc.code == "cms.malformed"


# DER.


@given(st.binary(max_size=400))
def test_der_reader_never_escapes(octets: bytes) -> None:
    try:
        der.children(octets)
    except MalformedRequest as exc:
        assert exc.code == "der.malformed"


@given(st.lists(st.binary(max_size=300), max_size=5))
def test_der_elements_read_back(contents: list[bytes]) -> None:
    parts = [der.tlv(0x04, c) for c in contents]
    assert der.children(der.tlv(0x30, *parts)) == parts


# Messages.


@given(
    name=st.from_regex(r"[a-z0-9._-]{1,64}", fullmatch=True),
    octets=st.binary(max_size=200),
    priority=st.sampled_from(list(Priority)),
)
def test_requests_read_back(name: str, octets: bytes, priority: Priority) -> None:
    message = EnrollmentRequested.model_validate(
        {
            "id": ids.uuid7(),
            "source": "s",
            "time": dt.datetime.now(dt.UTC),
            "correlation_id": "c",
            "operation": "simpleenroll",
            "label": "l",
            "group": "g",
            "instance": "i",
            "issuer": "x",
            "priority": priority,
            "principal": {"method": "secret", "name": name},
            "csr": b"\x30" + octets,
        }
    )
    assert decode(EnrollmentRequested, encode(message)) == message


@given(
    st.binary(max_size=200)
    | st.recursive(st.none() | st.text(), st.lists).map(lambda v: json.dumps(v).encode())
)
def test_any_octets_give_a_message_or_malformed(octets: bytes) -> None:
    for model in (EnrollmentRequested, EnrollmentAnswered):
        try:
            decode(model, octets)
        except MalformedRequest as exc:
            assert exc.code == "message.malformed"


def test_unknown_fields_of_a_newer_sender_are_ignored() -> None:
    octets = b'{"request_id":"r","outcome":"pending","news":{"a":1}}'
    assert decode(EnrollmentAnswered, octets).outcome == "pending"


@given(st.text(max_size=70))
def test_no_text_changes_the_shape_of_a_topic(text: str) -> None:
    try:
        topic = request_topic(text, text, Priority.LOW)
        reply = reply_topic("g", "i", text)
    except Exception as exc:  # noqa: BLE001 - exactly one kind is allowed
        assert type(exc).__name__ == "ConfigurationError"
        return
    assert topic.count(".") == 4
    assert reply.count(".") == 4


def test_every_topic_has_a_stream_or_is_core() -> None:
    covered = [t for s in STREAMS for t in s.topics]
    assert {"est.request.>", "pki.certificate.>", "pki.state.>", "audit.issue.>"} <= set(covered)
    assert token("a-1") == "a-1"


# Small things.


@given(st.integers(1, 10**8), st.sampled_from("smhd"))
def test_durations_read_back(number: int, unit: str) -> None:
    try:
        value = parse_duration(f"{number}{unit}")
    except OverflowError:
        return
    assert parse_duration(format_duration(value)) == value


def test_uuid7_sorts_by_time_and_is_valid() -> None:
    import uuid

    early, late = ids.uuid7(now_ms=1000), ids.uuid7(now_ms=2000)
    assert early < late
    assert uuid.UUID(early).version == 7
    assert uuid.UUID(early).variant == uuid.RFC_4122
