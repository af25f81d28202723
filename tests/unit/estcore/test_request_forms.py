"""Bodies and request targets in every form that the RFCs allow."""

from __future__ import annotations

import base64

import pytest
from hypothesis import given
from hypothesis import strategies as st

from estcore.errors import MalformedRequest
from estcore.est.paths import Target, is_served, parse_path, parse_target
from estcore.est.transfer import decode_request
from estcore.pki.pem import pem_blocks, pem_text
from estsuite_testing.encodings import signed_csr

DER = signed_csr()
PEM = pem_text("CERTIFICATE REQUEST", DER)
TEXT = base64.b64encode(DER).decode()


def block(text: str, label: str = "CERTIFICATE REQUEST") -> str:
    return f"-----BEGIN {label}-----\n{text}\n-----END {label}-----\n"


def decoded(body: str | bytes, *, lenient: bool = True) -> bytes:
    octets = body.encode() if isinstance(body, str) else body
    return decode_request(octets, max_der_bytes=32_768, lenient=lenient)


def code_of(body: str | bytes, *, lenient: bool = True) -> str:
    with pytest.raises(MalformedRequest) as caught:
        decoded(body, lenient=lenient)
    return caught.value.code


@pytest.mark.parametrize(
    "body",
    [
        PEM,
        PEM.rstrip("\n"),
        PEM.replace("\n", "\r\n"),
        PEM.replace("\n", "\r"),
        "Certificate Request:\n    Data:\n        Version: 1 (0x0)\n" + PEM,
        PEM + "\nmade by hand\n",
        "before\n\n" + PEM + "\nafter",
        "\ufeff" + PEM,
        block(TEXT),
        "\n".join(f"  {line} " for line in PEM.splitlines()),
        block("\n".join(TEXT[i : i + 17] for i in range(0, len(TEXT), 17))),
        block("\n\n" + TEXT[:40] + "\n\n\t" + TEXT[40:] + "\n\n"),
        pem_text("NEW CERTIFICATE REQUEST", DER),
        pem_text("CERTIFICATE", b"a certificate") + PEM,
        PEM + pem_text("EC PARAMETERS", b"curve"),
    ],
    ids=["plain", "no last line end", "CRLF", "CR", "text before", "text after", "text around",
         "byte order mark", "one line", "indented", "short lines", "empty lines", "NEW",
         "certificate before", "parameters after"],
)  # fmt: skip
def test_B4_pem_of_rfc_7468_is_taken_on_a_lenient_label(body: str) -> None:
    assert decoded(body) == DER
    assert code_of(body, lenient=False) == "body.pem"


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (PEM + PEM, "body.pem"),
        (PEM + pem_text("NEW CERTIFICATE REQUEST", DER), "body.pem"),
        (pem_text("CERTIFICATE", DER), "body.pem"),
        (PEM[:-20], "body.pem"),
        (PEM.replace("END CERTIFICATE REQUEST", "END CERTIFICATE"), "body.pem"),
        ("-----BEGIN CERTIFICATE REQUEST-----", "body.pem"),
        ("-----BEGIN", "body.pem"),
        (block(TEXT[:-1]), "body.not_base64"),
        (block("Proc-Type: 4,ENCRYPTED\n\n" + TEXT), "body.not_base64"),
        (block(TEXT[:20] + "!" + TEXT[20:]), "body.not_base64"),
        (f"{PEM[:40]}\n{PEM}", "body.pem"),
    ],
)
def test_pem_that_is_cut_or_holds_another_number_of_requests_is_refused(
    body: str, code: str
) -> None:
    assert code_of(body) == code


@given(st.binary(max_size=300), st.binary(max_size=300))
def test_text_around_a_block_changes_nothing(before: bytes, after: bytes) -> None:
    marks = (b"-----BEGIN", b"-----END")
    if any(mark in before + after for mark in marks):
        return
    if before[:1] == b"\x30":
        return  # raw DER
    body = before + b"\n" + PEM.encode() + after
    assert decoded(body) == DER


@given(st.lists(st.sampled_from(["-----BEGIN ", "-----", "-----END ", "A", "\n", " ", "CSR"])))
def test_any_boundaries_give_blocks_or_one_error(parts: list[str]) -> None:
    try:
        blocks = pem_blocks("".join(parts).encode())
    except MalformedRequest as exc:
        assert exc.code == "pem.incomplete"
    else:
        for found in blocks:
            assert found.label


def test_many_boundaries_are_read_in_one_pass() -> None:
    with pytest.raises(MalformedRequest):
        decoded(b"x-----BEGIN " * 5000)
    assert len(pem_blocks(block("QUJD").encode() * 5000)) == 5000


# Request targets.

EST = "/.well-known/est/cacerts"


@pytest.mark.parametrize(
    ("target", "path", "host"),
    [
        (EST, EST, None),
        (EST + "?x=https://evil.test/", EST, None),
        (f"https://est.test{EST}", EST, "est.test"),
        (f"HTTPS://EST.test:8443{EST}?a=b", EST, "est.test"),
        (f"https://[::1]:8443{EST}", EST, "::1"),
        (f"https://127.0.0.1{EST}", EST, "127.0.0.1"),
        ("https://est.test", "", "est.test"),
        (f"https://est.test?{EST}", "", "est.test"),
        (f"http://est.test{EST}", EST, ""),
        (f"https://est.test@evil.test{EST}", EST, ""),
        (f"https://{EST}", EST, ""),
        (f"ftp://est.test{EST}", f"ftp://est.test{EST}", None),
        ("*", "*", None),
        ("est.test:443", "est.test:443", None),
        (f"//est.test{EST}", f"//est.test{EST}", None),
    ],
)
def test_a_request_target_has_one_path_and_one_host(
    target: str, path: str, host: str | None
) -> None:
    found = parse_target(target)
    assert (found.path, found.host) == (path, host)


def test_no_form_of_a_target_reaches_a_path_in_another_way() -> None:
    assert parse_path(parse_target(f"https://est.test/{EST}").path) is None
    assert parse_path(parse_target(f"//est.test{EST}").path) is None
    assert parse_path(parse_target("*").path) is None


@given(st.text(max_size=60))
def test_any_text_is_a_target(text: str) -> None:
    assert isinstance(parse_target(text), Target)


@pytest.mark.parametrize(
    ("host", "served"),
    [
        ("est.test", True),
        ("a.pool.test", True),
        ("a.b.pool.test", False),
        ("pool.test", False),
        ("", False),
        ("evil.test", False),
        ("*.pool.test", True),
    ],
)
def test_a_host_is_served_if_the_certificate_names_it(host: str, served: bool) -> None:
    assert is_served(host, {"est.test", "*.pool.test"}) is served
