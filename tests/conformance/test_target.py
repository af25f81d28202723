"""What any EST server must do, seen from outside: by default ours, else the one that is named.

Each test carries the numbers of the items it shows; docs/conformance.md lists them all. A
failure is a sentence about the server. Where a refusal is expected, a good CSR has to be
accepted first: a server that refuses everything has shown nothing.
"""

from __future__ import annotations

import asyncio
import base64
import re
import socket
import ssl
import warnings
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa, x25519
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    PublicFormat,
    load_der_private_key,
    pkcs7,
)
from cryptography.x509.oid import AttributeOID, ExtendedKeyUsageOID, NameOID

from estcore.est.csr_demands import csr_builder
from estcore.est.csrattrs import parse_csrattrs
from estcore.est.keygen_response import parse_keygen_response
from estsuite_testing.conformance_check import Check, sentence_of
from estsuite_testing.e2e_stack import certificate_in, same_key, write_key
from estsuite_testing.est_target import Target
from estsuite_testing.raw_client import Answer, b64

pytestmark = [pytest.mark.e2e, pytest.mark.asyncio(loop_scope="session")]

_OK, _NO_CONTENT = 200, 204
_HEAD_LIMIT = 1000
_LARGE = 10_000_000
_CA_USAGES = {
    x509.ObjectIdentifier("1.3.6.1.5.5.7.3.28"),
    ExtendedKeyUsageOID.OCSP_SIGNING,
    ExtendedKeyUsageOID.ANY_EXTENDED_KEY_USAGE,
}
Key = ec.EllipticCurvePrivateKey


def name_of(target: Target) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, target.common_name)])


def request(target: Target, key: Key | None = None) -> tuple[Key, bytes]:
    key = key or ec.generate_private_key(ec.SECP256R1())
    built = x509.CertificateSigningRequestBuilder(name_of(target)).sign(key, SHA256())
    return key, built.public_bytes(Encoding.DER)


async def enroll(target: Target, body: bytes, **more: Any) -> Answer:
    client = target.client()
    return await client.request(
        "POST", target.path("simpleenroll"), body, auth=client.basic, **more
    )


async def a_good_csr_is_accepted(target: Target, check: Check) -> None:
    """Leave the test undecided where the server refuses everything; tried once."""
    if target.refusal is None:
        try:
            answer = await enroll(target, b64(request(target)[1]))
        except (OSError, EOFError, AssertionError) as exc:
            target.refusal = sentence_of(exc)
        else:
            target.refusal = "" if answer.status == _OK else f"the answer was {answer.seen}"
    if target.refusal:
        check.not_judged(f"a good CSR was not accepted: {target.refusal}")


async def enrolled(
    target: Target, check: Check, folder: Path
) -> tuple[ssl.SSLContext, x509.Certificate]:
    await a_good_csr_is_accepted(target, check)
    key, csr = request(target)
    certificate = certificate_in((await enroll(target, b64(csr))).body)
    pem = folder / "client.pem"
    pem.write_bytes(certificate.public_bytes(Encoding.PEM))
    context = target.context()
    context.load_cert_chain(pem, write_key(folder / "client.key", key))
    return context, certificate


def post_head(target: Target, *more: str) -> bytes:
    """The head of an enrollment, written by hand."""
    lines = (
        f"POST {target.path('simpleenroll')} HTTP/1.1",
        f"Host: {target.host}",
        f"Authorization: {target.client().basic}",
        "Content-Type: application/pkcs10",
        "Content-Transfer-Encoding: base64",
        *more,
        "Connection: close",
    )
    return "\r\n".join([*lines, "", ""]).encode()


def refused(answer: Answer) -> bool:
    return 400 <= answer.status < 500


def first_record(target: Target) -> bytes:
    """The first TLS record of an answer, which is what one write of the server becomes."""
    head = f"GET {target.path('cacerts')} HTTP/1.1\r\nHost: {target.host}\r\n\r\n"
    address = (target.host, target.port)
    with (
        socket.create_connection(address, target.timeout_s) as connection,
        target.context().wrap_socket(connection, server_hostname=target.host) as link,
    ):
        link.sendall(head.encode())
        return link.recv(1 << 16)


# Paths and HTTP.


async def test_A1_the_mandatory_operations_are_there(target: Target, check: Check) -> None:
    client = target.client()
    check.on("A1", "GET cacerts")
    answer = await client.request("GET", target.path("cacerts"))
    check("A1", answer.status == _OK, f"GET cacerts was answered {answer.seen}")
    for operation in ("simpleenroll", "simplereenroll"):
        check.on("A1", f"POST {operation}")
        answer = await client.request("POST", target.path(operation), b"x")
        there = answer.status not in {404, 501}
        check("A1", there, f"POST {operation} was answered {answer.seen}")


async def test_A2_a_label_is_one_more_segment_and_may_be_left_out(
    target: Target, check: Check
) -> None:
    client = target.client()
    answer = await client.request("GET", "/.well-known/est/cacerts")
    check.need("A2", answer.status == _OK, f"cacerts without a label was answered {answer.seen}")
    if not target.label:
        check.not_judged("cacerts works without a label; no label to try was given (--label)", "A2")
        return
    answer = await client.request("GET", f"/.well-known/est/{target.label}/cacerts")
    check("A2", answer.status == _OK, f"cacerts with the label was answered {answer.seen}")


async def test_A4_A5_A21_unknown_paths_are_refused_without_redirect(
    target: Target, check: Check
) -> None:
    client = target.client()
    good = await client.request("GET", target.path("cacerts"))
    if good.status != _OK:
        check.not_judged(f"cacerts itself was answered {good.seen}")
    for path in (
        "/.well-known/est/no-such-label/cacerts",
        "/.well-known/est/../est/cacerts",
        "/.well-known/est/%2e%2e/cacerts",
        "/.well-known/est//cacerts",
        "/.well-known/est/" + "x" * 300 + "/cacerts",
    ):
        check.on("A4", f"GET {path[:60]}")
        answer = await client.request("GET", path)
        check("A4", refused(answer), f"GET {path[:60]} was answered {answer.status}, not 404")
        redirected = "Location" in answer.headers
        check("A21", not redirected, f"GET {path[:60]} was redirected with {answer.status}")
    check.on("A5", "POST simpleenroll/")
    slashed = await client.request("POST", target.path("simpleenroll/"), b"x")
    redirected = 300 <= slashed.status < 400
    check("A5", not redirected, f"a trailing slash was redirected with {slashed.status}")


async def test_A6_A7_methods_are_kept(target: Target, check: Check) -> None:
    client = target.client()
    for method, operation in (("POST", "cacerts"), ("GET", "simpleenroll"), ("PUT", "cacerts")):
        check.on("A6", f"{method} {operation}")
        answer = await client.request(method, target.path(operation))
        allow = "with" if "Allow" in answer.headers else "without"
        check(
            "A6",
            (answer.status, allow) == (405, "with"),
            f"{method} {operation} was answered {answer.status} {allow} Allow, not 405 with Allow",
        )
    check.on("A7", "HEAD cacerts")
    head = await client.request("HEAD", target.path("cacerts"))
    check("A7", head.status == _OK, f"HEAD cacerts was answered {head.status}")
    check("A7", not head.body, "the answer to HEAD cacerts has a body")


async def test_A9_A11_A13_connections_persist_and_heads_are_small(
    target: Target, check: Check
) -> None:
    client = target.client()
    async with client.connection() as (reader, writer):
        for number in ("first", "second"):
            check.on("A9", f"the {number} request on a connection")
            head = f"GET {target.path('cacerts')} HTTP/1.1\r\nHost: {target.host}\r\n\r\n"
            writer.write(head.encode())
            answer = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), target.timeout_s)
            check("A13", len(answer) < _HEAD_LIMIT, f"the head has {len(answer)} bytes")
            lines = answer.count(b"\r\n") - 1
            check("A13", lines <= 16, f"the head has {lines} lines")
            length = re.search(rb"\r\nContent-Length: *(\d+)\r\n", answer, re.IGNORECASE)
            check.need("A11", length is not None, "the answer to cacerts has no Content-Length")
            assert length is not None
            check.on("A11", "reading as many octets as Content-Length says")
            await asyncio.wait_for(reader.readexactly(int(length[1])), target.timeout_s)


async def test_A12_A14_header_names_are_in_the_usual_case(target: Target, check: Check) -> None:
    answer = await target.client().request("GET", target.path("cacerts"))
    for name in ("Content-Type", "Content-Length"):
        if name not in answer.headers:
            check.not_judged(f"the answer has no {name}", "A12")
            continue
        usual = f"\r\n{name}: ".encode() in answer.head
        check("A12", usual, f"{name} is not written in this case")
    check.on("A14", "GET cacerts")
    head, _, body = (await asyncio.to_thread(first_record, target)).partition(b"\r\n\r\n")
    check("A14", bool(head and body), "the first TLS record has the head without the body")


async def test_A15_A10_an_extra_line_end_is_ignored_and_close_is_honoured(
    target: Target, check: Check
) -> None:
    head = f"GET {target.path('cacerts')} HTTP/1.1\r\nHost: {target.host}\r\n"
    close = f"{head}Connection: close\r\n\r\n".encode()
    check.on("A10", "GET with Connection: close")
    octets = await target.client().raw(close)
    check.need("A10", octets.count(b"HTTP/1.1 200 ") == 1, "GET with Connection: close got no 200")
    check.on("A15", "two empty lines between two requests")
    octets = await target.client().raw(f"{head}\r\n\r\n\r\n".encode() + close)
    answers = octets.count(b"HTTP/1.1 200 ")
    check("A15", answers == 2, f"{answers} of 2 requests with empty lines between them got 200")


async def test_A16_chunked_requests_are_read(target: Target, check: Check) -> None:
    await a_good_csr_is_accepted(target, check)
    body = b64(request(target)[1])
    half = len(body) // 2
    chunks = b"".join(
        b"%x\r\n%s\r\n" % (len(part), part) for part in (body[:half], body[half:], b"")
    )
    check.on("A16", "a chunked CSR")
    answer = Answer(
        await target.client().raw(post_head(target, "Transfer-Encoding: chunked") + chunks)
    )
    check("A16", answer.status == _OK, f"a chunked CSR was answered {answer.seen}")


async def test_A17_expect_continue_is_answered(target: Target, check: Check) -> None:
    await a_good_csr_is_accepted(target, check)
    body = b64(request(target)[1])
    check.on("A17", "a head with Expect: 100-continue")
    async with target.client().connection() as (reader, writer):
        writer.write(post_head(target, f"Content-Length: {len(body)}", "Expect: 100-continue"))
        first = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), target.timeout_s)
        line = first.split(b"\r\n")[0].decode("latin-1")
        check.need("A17", first.startswith(b"HTTP/1.1 100 "), f"Expect was answered with {line}")
        check.on("A17", "the body after 100 Continue")
        writer.write(body)
        answer = Answer(await asyncio.wait_for(reader.read(), target.timeout_s))
    check("A17", answer.status == _OK, f"the body after 100 Continue was answered {answer.seen}")


async def test_A18_a_large_body_is_refused(target: Target, check: Check) -> None:
    await a_good_csr_is_accepted(target, check)
    check.on("A18", f"the head of a request of {_LARGE} bytes, and then nothing")
    async with target.client().connection() as (reader, writer):
        writer.write(post_head(target, f"Content-Length: {_LARGE}"))
        line = await asyncio.wait_for(reader.readline(), target.timeout_s)
    seen = line.decode("latin-1").strip() or "a closed connection"
    check("A18", b" 413 " in line, f"a request of {_LARGE} bytes was answered with {seen}, not 413")


async def test_A19_http_1_0_is_answered_and_a_missing_host_is_not(
    target: Target, check: Check
) -> None:
    client = target.client()
    path = target.path("cacerts")
    check.on("A19", "GET with HTTP/1.0")
    request_head = f"GET {path} HTTP/1.0\r\nHost: {target.host}\r\n\r\n"
    old = (await client.raw(request_head.encode())).split(b"\r\n", 1)[0]
    seen = old.decode("latin-1") or "a closed connection"
    check("A19", b" 200 " in old, f"GET with HTTP/1.0 was answered with {seen}")
    check.on("A19", "GET without Host")
    bad = await client.raw(f"GET {path} HTTP/1.1\r\nConnection: close\r\n\r\n".encode())
    seen = bad.split(b"\r\n", 1)[0].decode("latin-1") or "a closed connection"
    check("A19", " 400 " in seen, f"GET without Host was answered with {seen}, not 400")


async def test_A22_A23_A24_no_cookies_no_compression_no_negotiation(
    target: Target, check: Check
) -> None:
    client = target.client()
    path = target.path("cacerts")
    plain = await client.request("GET", path)
    if plain.status != _OK:
        check.not_judged(f"cacerts itself was answered {plain.seen}")
    packed = await client.request("GET", path, Accept_Encoding="gzip, br")
    picky = await client.request("GET", path, Accept="*/*")
    for answer in (plain, packed, picky):
        check("A22", "Set-Cookie" not in answer.headers, "the answer to cacerts sets a cookie")
        check("A23", "Content-Encoding" not in answer.headers, "the answer is compressed")
    check("A23", packed.body == plain.body, "Accept-Encoding changes the body")
    check("A24", picky.status == _OK, f"Accept: */* was answered {picky.seen}")
    check("A24", picky.body == plain.body, "Accept: */* changes the body")


# Encoding.


async def test_B1_B2_any_transfer_encoding_and_white_space(target: Target, check: Check) -> None:
    await a_good_csr_is_accepted(target, check)
    text = b64(request(target)[1])
    for value in ("", "base64", "binary", "nonsense"):
        what = f"Content-Transfer-Encoding: {value}" if value else "no Content-Transfer-Encoding"
        check.on("B1", what)
        answer = await enroll(target, text, Content_Transfer_Encoding=value)
        check("B1", answer.status == _OK, f"a CSR with {what} was answered {answer.seen}")
    lines = [text[i : i + 64] for i in range(0, len(text), 64)]
    for what, body in (
        ("line feeds", b"\n".join(lines)),
        ("CRLF", b"\r\n".join(lines) + b"\r\n"),
        ("blanks and tabs", b" \t".join(lines)),
    ):
        check.on("B2", f"base64 with {what}")
        answer = await enroll(target, body)
        check("B2", answer.status == _OK, f"base64 with {what} was answered {answer.seen}")


async def test_B3_B13_B15_L16_what_is_not_a_csr_is_refused_in_plain_text(
    target: Target, check: Check
) -> None:
    await a_good_csr_is_accepted(target, check)
    _, csr = request(target)
    for item, what, body in (
        ("B3", "not base64", b"not base64!!"),
        ("B3", "base64 without its end", b64(csr)[:-3]),
        ("B15", "a truncated CSR", b64(csr[:-10])),
        ("B15", "a CSR with octets behind it", b64(csr + b"junk")),
        ("B15", "DER nested 2000 times", b64(b"\x30\x80" * 2000)),
        ("B15", "200 zeros", b64(bytes(200))),
        ("B3", "base64url", base64.urlsafe_b64encode(bytes([251, 255]) * 60)),
    ):
        check.on(item, what)
        answer = await enroll(target, body)
        check(item, answer.status == 400, f"{what} was answered {answer.seen}, not 400")
        kind = answer.headers.get("Content-Type") or "no media type"
        check("B13", kind.startswith("text/plain"), f"the error for {what} has {kind}")
        lines = len(answer.text.strip().splitlines())
        check("B13", lines <= 1, f"the error for {what} has {lines} lines")
        check("B13", "<" not in answer.text, f"the error for {what} has markup")
        check("L16", lines >= 1, f"the error for {what} has no text")


async def test_B5_the_media_type_is_wanted_parameters_do_not_count(
    target: Target, check: Check
) -> None:
    await a_good_csr_is_accepted(target, check)
    _, csr = request(target)
    for kind, statuses in (
        ("application/x-www-form-urlencoded", {400, 415}),
        ("Application/PKCS10; charset=x", {_OK}),
    ):
        check.on("B5", f"a CSR as {kind}")
        answer = await enroll(target, b64(csr), Content_Type=kind)
        check("B5", answer.status in statuses, f"a CSR as {kind} was answered {answer.seen}")


async def test_B7_B11_B12_E3_E4_the_answer_is_one_certificate_in_exact_form(
    target: Target, check: Check
) -> None:
    key, csr = request(target)
    check.on("E3", "a good CSR")
    answer = await enroll(target, b64(csr))
    check.need("E3", answer.status == _OK, f"a good CSR was answered {answer.seen}")
    kind = answer.headers.get("Content-Type") or "no media type"
    exact = kind == "application/pkcs7-mime; smime-type=certs-only"
    check("B7", exact, f"the certificate came as {kind}")
    encoding = answer.headers.get("Content-Transfer-Encoding") or "no"
    check("B11", encoding == "base64", f"the answer has {encoding} Content-Transfer-Encoding")
    ends = len(answer.body) - len(answer.body.rstrip(b"\n"))
    check("B12", ends == 1, f"the body ends with {ends} line feeds")
    check.on("E3", "reading certs-only")
    found = pkcs7.load_der_pkcs7_certificates(base64.b64decode(answer.body))
    check.need("E3", len(found) == 1, f"the answer has {len(found)} certificates")
    check("E4", same_key(found[0], key), "the certificate has another key than the CSR")


# /cacerts.


async def test_B8_C1_C2_C3_C6_cacerts_is_the_chain_up_to_the_root(
    target: Target, check: Check
) -> None:
    check.on("C1", "GET cacerts")
    answer = await target.client().request("GET", target.path("cacerts"))
    check.need("C1", answer.status == _OK, f"GET cacerts was answered {answer.seen}")
    kind = answer.headers.get("Content-Type") or "no media type"
    check("B8", kind == "application/pkcs7-mime", f"cacerts came as {kind}")
    check.on("C1", "reading certs-only")
    found = pkcs7.load_der_pkcs7_certificates(base64.b64decode(answer.body))
    distinct = len({c.fingerprint(SHA256()) for c in found})
    check("C6", distinct == len(found), "a certificate is there twice")
    roots = [c for c in found if c.subject == c.issuer]
    check.need("C2", bool(roots), "no certificate is self-issued, so the root is missing")
    for certificate in found:
        name = certificate.subject.rfc4514_string()
        check("C1", _is_ca(certificate), f"{name} is not the certificate of a CA")
    await a_good_csr_is_accepted(target, check)
    check.on("C3", "building the path")
    place = certificate_in((await enroll(target, b64(request(target)[1]))).body)
    for _ in range(10):
        if place in roots:
            break
        issuers = [c for c in found if c.subject == place.issuer]
        name = place.issuer.rfc4514_string()
        check.need("C3", bool(issuers), f"the certificate of {name} is missing")
        place.verify_directly_issued_by(issuers[0])
        place = issuers[0]
    check("C3", place in roots, "the path does not end at the root")


def _is_ca(certificate: x509.Certificate) -> bool:
    try:
        return certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    except x509.ExtensionNotFound:
        return False


async def test_C4_cacerts_needs_no_authentication(target: Target, check: Check) -> None:
    wrong = "Basic " + base64.b64encode(b"bad:bad").decode()
    for what, auth in (("without", None), ("with wrong", wrong)):
        check.on("C4", f"GET cacerts {what} credentials")
        answer = await target.client().request("GET", target.path("cacerts"), auth=auth)
        shown = answer.status == _OK
        check("C4", shown, f"GET cacerts {what} credentials was answered {answer.seen}")


# Enrolling.


async def test_E1_L1_L2_who_says_nothing_is_challenged(target: Target, check: Check) -> None:
    await a_good_csr_is_accepted(target, check)
    _, csr = request(target)
    check.on("E1", "a CSR without credentials")
    answer = await target.client().request("POST", target.path("simpleenroll"), b64(csr))
    seen = f"a CSR without credentials was answered {answer.seen}"
    check("E1", answer.status in {401, 403}, seen)
    if answer.status != 401:
        check.not_judged(f"{seen}, not 401", "L1", "L2")
        return
    challenges = [x for x in answer.lines if x.lower().startswith("www-authenticate:")]
    check.need("L1", bool(challenges), "401 came without WWW-Authenticate")
    basic = challenges[0].partition(":")[2].strip().startswith("Basic ")
    check("L2", basic, f"the first challenge is {challenges[0]}")


async def test_E2_M15_possession_of_the_key_is_checked(target: Target, check: Check) -> None:
    await a_good_csr_is_accepted(target, check)
    key, csr = request(target)
    broken = bytearray(csr)
    broken[-3] ^= 1
    check.on("E2", "a CSR with a wrong signature")
    answer = await enroll(target, b64(bytes(broken)))
    shown = answer.status == 400
    check("E2", shown, f"a CSR with a wrong signature was answered {answer.seen}, not 400")
    # A key that cannot sign proves nothing.
    agreement = x25519.X25519PrivateKey.generate().public_key()
    spki = agreement.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    own = key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    check.on("M15", "a CSR for an X25519 key")
    answer = await enroll(target, b64(csr.replace(own, spki)))
    shown = answer.status == 400
    check("M15", shown, f"a CSR for an X25519 key was answered {answer.seen}, not 400")


async def test_E5_weak_requests_are_refused(target: Target, check: Check) -> None:
    await a_good_csr_is_accepted(target, check)
    weak = rsa.generate_private_key(65537, 1024)  # noqa: S505 - to be refused
    csr = x509.CertificateSigningRequestBuilder(name_of(target)).sign(weak, SHA256())
    check.on("E5", "a CSR for RSA with 1024 bits")
    answer = await enroll(target, b64(csr.public_bytes(Encoding.DER)))
    check("E5", refused(answer), f"a CSR for RSA with 1024 bits was answered {answer.seen}")


async def test_E6_rights_of_a_ca_are_never_granted(target: Target, check: Check) -> None:
    await a_good_csr_is_accepted(target, check)
    key = ec.generate_private_key(ec.SECP256R1())
    builder = (
        x509.CertificateSigningRequestBuilder(name_of(target))
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .add_extension(x509.ExtendedKeyUsage(sorted(_CA_USAGES, key=str)), critical=False)
        .add_extension(
            x509.KeyUsage(True, False, False, False, False, True, True, False, False),
            critical=True,
        )
    )
    check.on("E6", "a CSR that asks for the rights of a CA")
    answer = await enroll(target, b64(builder.sign(key, SHA256()).public_bytes(Encoding.DER)))
    if answer.status != _OK:
        seen = f"a CSR that asks for the rights of a CA was answered {answer.seen}"
        check("E6", refused(answer), seen)
        return
    leaf = certificate_in(answer.body)
    check("E6", not _is_ca(leaf), "the certificate has cA TRUE")
    for extension in leaf.extensions:
        if isinstance(extension.value, x509.KeyUsage):
            check("E6", not extension.value.key_cert_sign, "the certificate has keyCertSign")
        if isinstance(extension.value, x509.ExtendedKeyUsage):
            granted = ", ".join(u.dotted_string for u in _CA_USAGES & set(extension.value))
            check("E6", not granted, f"the certificate has the extended key usage {granted}")


async def test_E10_serial_numbers_are_long_and_positive(target: Target, check: Check) -> None:
    await a_good_csr_is_accepted(target, check)
    serials = set()
    for _ in range(3):
        leaf = certificate_in((await enroll(target, b64(request(target)[1]))).body)
        serials.add(leaf.serial_number)
    check("E10", len(serials) == 3, "a serial number was used twice")
    for serial in serials:
        check("E10", 0 < serial < 1 << 159, "a serial number is not positive and below 2^159")
        bits = serial.bit_length()
        check("E10", bits >= 64, f"a serial number has {bits} bits, fewer than 64")


async def test_F1_F3_F7_F13_renewal_keeps_the_identity(
    target: Target, check: Check, tmp_path: Path
) -> None:
    context, current = await enrolled(target, check, tmp_path)
    client = target.client()
    path = target.path("simplereenroll")
    key, csr = request(target)
    check.on("F7", "renewing with the certificate")
    answer = await client.request("POST", path, b64(csr), context=context)
    check.need("F7", answer.status == _OK, f"a renewal was answered {answer.seen}")
    kind = answer.headers.get("Content-Type") or "no media type"
    exact = kind == "application/pkcs7-mime; smime-type=certs-only"
    check("F13", exact, f"the renewed certificate came as {kind}")
    check.on("F13", "reading certs-only")
    renewed = certificate_in(answer.body)
    check("F1", renewed.subject == current.subject, "the renewed certificate has another subject")
    check("F3", same_key(renewed, key), "the renewed certificate has another key than the CSR")
    other = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, target.common_name + "-x")])
    changed = x509.CertificateSigningRequestBuilder(other).sign(key, SHA256())
    check.on("F1", "renewing with another subject")
    answer = await client.request(
        "POST", path, b64(changed.public_bytes(Encoding.DER)), context=context
    )
    check("F1", refused(answer), f"a renewal with another subject was answered {answer.seen}")


async def test_F4_renewal_without_a_certificate_is_refused(target: Target, check: Check) -> None:
    await a_good_csr_is_accepted(target, check)
    client = target.client()
    check.on("F4", "renewing with the password alone")
    answer = await client.request(
        "POST", target.path("simplereenroll"), b64(request(target)[1]), auth=client.basic
    )
    shown = answer.status in {401, 403}
    check("F4", shown, f"a renewal without a certificate was answered {answer.seen}")


async def test_M1_a_challenge_of_another_session_is_refused(target: Target, check: Check) -> None:
    await a_good_csr_is_accepted(target, check)
    key = ec.generate_private_key(ec.SECP256R1())
    csr = (
        x509.CertificateSigningRequestBuilder(name_of(target))
        .add_attribute(AttributeOID.CHALLENGE_PASSWORD, base64.b64encode(bytes(12)))
        .sign(key, SHA256())
    )
    check.on("M1", "a CSR with a wrong tls-unique value")
    answer = await enroll(target, b64(csr.public_bytes(Encoding.DER)))
    check("M1", refused(answer), f"a wrong tls-unique value was answered {answer.seen}")


async def test_I2_I3_I6_I16_csrattrs_can_be_read_and_followed(target: Target, check: Check) -> None:
    client = target.client()
    check.on("I2", "GET csrattrs")
    answer = await client.request("GET", target.path("csrattrs"), auth=client.basic)
    if answer.status in {404, 501}:
        check.not_judged(f"the server has no csrattrs: {answer.status}")
    allowed = answer.status in {_OK, _NO_CONTENT}
    check.need("I2", allowed, f"GET csrattrs was answered {answer.seen}")
    if answer.status == _NO_CONTENT:
        check("I3", not answer.body, "the answer 204 has a body")
        check.not_judged("the server has nothing to say: 204", "I6", "I16")
        return
    check.not_judged("the server has attributes to say", "I3")
    kind = answer.headers.get("Content-Type") or "no media type"
    check("I2", kind == "application/csrattrs", f"csrattrs came as {kind}")
    check.on("I6", "reading csrattrs")
    demands = parse_csrattrs(base64.b64decode(answer.body))
    if demands.key_algorithm not in {None, "ec-p256"} or demands.challenge_password:
        check.not_judged("the attributes ask for what this test cannot do", "I16")
        return
    await a_good_csr_is_accepted(target, check)
    key = ec.generate_private_key(ec.SECP256R1())
    csr = csr_builder(demands, subject=name_of(target)).sign(key, SHA256())
    check.on("I16", "a CSR as csrattrs ask")
    answer = await enroll(target, b64(csr.public_bytes(Encoding.DER)))
    check("I16", answer.status == _OK, f"a CSR as csrattrs ask was answered {answer.seen}")


async def test_H4_H5_H6_H7_a_generated_key_fits_its_certificate(
    target: Target, check: Check
) -> None:
    if not target.serverkeygen:
        check.not_judged("not said to make keys (--serverkeygen)")
    await a_good_csr_is_accepted(target, check)
    client = target.client()
    check.on("H4", "POST serverkeygen")
    answer = await client.request(
        "POST", target.path("serverkeygen"), b64(request(target)[1]), auth=client.basic
    )
    check.need("H4", answer.status == _OK, f"POST serverkeygen was answered {answer.seen}")
    length = answer.headers.get("Content-Length") or "no"
    exact = length == str(len(answer.body))
    check("H7", exact, f"{length} Content-Length, with a body of {len(answer.body)} bytes")
    kind = answer.headers.get("Content-Type") or "no media type"
    check.need("H4", kind.startswith("multipart/mixed"), f"serverkeygen came as {kind}")
    check.on("H4", "reading multipart/mixed")
    found = parse_keygen_response(kind, answer.body)
    check.on("H5", "reading PKCS#8")
    key = load_der_private_key(found.key, None)
    known = (ec.EllipticCurvePrivateKey, rsa.RSAPrivateKey, ed25519.Ed25519PrivateKey)
    check.need("H5", isinstance(key, known), f"the key is a {type(key).__name__}")
    check.on("H6", "reading the certificate")
    certificate = certificate_in(base64.b64encode(found.certificate))
    check("H6", same_key(certificate, key), "the certificate has another key than the one sent")


# TLS.


async def test_K1_K2_K6_versions_and_clients_without_certificate(
    target: Target, check: Check
) -> None:
    client = target.client()
    for name, version in (("1.2", ssl.TLSVersion.TLSv1_2), ("1.3", ssl.TLSVersion.TLSv1_3)):
        context = target.context()
        context.minimum_version = context.maximum_version = version
        try:
            answer = await client.request("GET", target.path("cacerts"), context=context)
        except (OSError, AssertionError) as exc:
            check("K2", False, f"TLS {name} is not offered: {sentence_of(exc)}")
            continue
        seen = f"GET cacerts over TLS {name} without certificate was answered {answer.seen}"
        check("K6", answer.status == _OK, seen)
    old = target.context()
    old.set_ciphers("DEFAULT:@SECLEVEL=0")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        old.minimum_version = old.maximum_version = ssl.TLSVersion.TLSv1_1
    try:
        async with client.connection(old):
            check("K1", False, "a handshake with TLS 1.1 succeeded")
    except (ssl.SSLError, ConnectionError):
        pass


async def test_K5_L8_certificates_identify_in_both_versions(
    target: Target, check: Check, tmp_path: Path
) -> None:
    context, _ = await enrolled(target, check, tmp_path)
    client = target.client()
    for name, version in (("1.2", ssl.TLSVersion.TLSv1_2), ("1.3", ssl.TLSVersion.TLSv1_3)):
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.maximum_version = version
        check.on("K5", f"a renewal over TLS {name}")
        answer = await client.request(
            "POST", target.path("simplereenroll"), b64(request(target)[1]), context=context
        )
        seen = f"a renewal over TLS {name} with the certificate was answered {answer.seen}"
        item = "L8" if answer.status == 401 else "K5"
        check(item, answer.status == _OK, seen)


async def test_A8_there_is_no_plain_http(target: Target, check: Check) -> None:
    def plain() -> bytes:
        with socket.create_connection((target.host, target.port), 5) as connection:
            connection.sendall(b"GET /.well-known/est/cacerts HTTP/1.1\r\nHost: x\r\n\r\n")
            try:
                return connection.recv(200)
            except (ConnectionError, TimeoutError):
                return b""

    check.on("A8", "GET without TLS")
    octets = await asyncio.to_thread(plain)
    check("A8", not octets.startswith(b"HTTP/1.1 200"), "GET cacerts without TLS got 200")
