"""The wire as clients see it: bytes, statuses, texts. Numbers are those of the conformance list."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import re
import ssl
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import pytest_asyncio
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID

from estcore.pki import der
from estcore.pki.attributes import EXTENSION_REQUEST_OID
from estcore.runtime.bus import Bus
from estcore.runtime.settings import BusSettings
from estsuite_testing.e2e_stack import Stack, StubbornClient, certificate_in, make_csr, write_key
from estsuite_testing.encodings import csr_attribute, extension, signed_csr
from estsuite_testing.encodings import name as encoded_name
from estsuite_testing.raw_client import BASE, Answer, Client, b64

pytestmark = [pytest.mark.e2e, pytest.mark.asyncio(loop_scope="module")]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def client(stack: Stack) -> Client:
    return Client.of(stack)


# What success looks like.


async def test_P_success_is_exactly_what_strict_clients_compare(client: Client) -> None:
    answer = await client.enroll(b64(make_csr("dev-wire")[1]))
    assert answer.head.startswith(b"HTTP/1.1 200 OK\r\n")
    assert b"Content-Type: application/pkcs7-mime; smime-type=certs-only\r\n" in answer.head
    assert b"Content-Transfer-Encoding: base64\r\n" in answer.head
    assert int(answer.headers["Content-Length"]) == len(answer.body)
    assert "Transfer-Encoding" not in answer.headers
    assert "Set-Cookie" not in answer.headers
    assert len(answer.head) < 600
    assert len(answer.lines) <= 8


async def test_E3_the_answer_has_only_the_issued_certificate(client: Client) -> None:
    key, csr = make_csr("dev-one")
    certificate = certificate_in((await client.enroll(b64(csr))).body)
    assert certificate.subject.rfc4514_string() == "CN=dev-one"
    spki = certificate.public_key().public_numbers()  # type: ignore[union-attr]
    assert spki == key.public_key().public_numbers()


async def test_B8_cacerts_has_no_smime_type(client: Client) -> None:
    answer = await client.request("GET", f"{BASE}/cacerts")
    assert answer.status == 200
    assert answer.headers["Content-Type"] == "application/pkcs7-mime"


@pytest.mark.parametrize("operation", ["cacerts", "csrattrs", "simpleenroll"])
async def test_B12_every_answer_is_one_line_and_for_libest_64_columns(
    client: Client, operation: str
) -> None:
    body = b64(make_csr("dev-line")[1]) if operation == "simpleenroll" else b""
    method = "POST" if body else "GET"

    async def lines(agent: str) -> list[bytes]:
        answer = await client.request(
            method, f"{BASE}/{operation}", body, auth=client.basic, User_Agent=agent
        )
        assert answer.status == 200, answer.text
        assert answer.body.endswith(b"\n")
        return answer.body.removesuffix(b"\n").split(b"\n")

    one, wrapped = await lines(""), await lines("libest 3.2.0")
    assert len(one) == 1
    assert b"".join(wrapped) == one[0]
    assert all(len(line) == 64 for line in wrapped[:-1])
    assert 0 < len(wrapped[-1]) <= 64


async def test_C1_C2_C3_cacerts_holds_root_and_issuing_ca(client: Client, tmp_path: Path) -> None:
    answer = await client.request("GET", f"{BASE}/services/cacerts")
    der = tmp_path / "ca.p7"
    der.write_bytes(base64.b64decode(answer.body))
    out = subprocess.run(
        ["openssl", "pkcs7", "-inform", "DER", "-in", der, "-print_certs", "-noout"],
        capture_output=True,
        check=True,
        text=True,
    ).stdout
    assert out.count("subject=") == 2
    shown = subprocess.run(
        ["openssl", "asn1parse", "-inform", "DER", "-in", der], capture_output=True, check=True
    )
    assert b"pkcs7-signedData" in shown.stdout


async def test_C4_cacerts_ignores_wrong_credentials(client: Client) -> None:
    wrong = "Basic " + base64.b64encode(b"bad:bad").decode()
    assert (await client.request("GET", f"{BASE}/cacerts", auth=wrong)).status == 200


@pytest.mark.parametrize("path", [f"{BASE}/simpleenroll", f"{BASE}/services/simpleenroll"])
async def test_A2_works_with_and_without_label(client: Client, path: str) -> None:
    name = f"dev-label-{len(path)}"
    assert (await client.enroll(b64(make_csr(name)[1]), path=path)).status == 200


async def test_A7_head_has_the_headers_and_no_body(client: Client) -> None:
    full = await client.request("GET", f"{BASE}/cacerts")
    head = await client.request("HEAD", f"{BASE}/cacerts")
    assert head.status == 200
    assert head.body == b""
    assert head.headers["Content-Length"] == full.headers["Content-Length"]


async def test_A9_two_requests_on_one_connection(client: Client) -> None:
    one = f"GET {BASE}/cacerts HTTP/1.1\r\nHost: localhost\r\n\r\n".encode()
    last = one.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n")
    answer = await client.raw(one + last)
    assert answer.count(b"HTTP/1.1 200 OK") == 2


async def test_A15_extra_line_ends_between_requests_are_ignored(client: Client) -> None:
    one = f"\r\nGET {BASE}/cacerts HTTP/1.1\r\nHost: localhost\r\n\r\n\r\n".encode()
    last = f"GET {BASE}/cacerts HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode()
    assert (await client.raw(one + last)).count(b"HTTP/1.1 200 OK") == 2


async def test_stray_line_end_after_a_body_is_ignored(client: Client) -> None:
    """libest sends CRLF behind its request body."""
    body = b64(make_csr("dev-stray")[1])
    head = (
        f"POST {BASE}/simpleenroll HTTP/1.1\r\nHost: localhost\r\nAuthorization: {client.basic}\r\n"
        f"Content-Type: application/pkcs10\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n"
    )
    answer = Answer(await client.raw(head.encode() + body + b"\r\n"))
    assert answer.status == 200


async def test_A16_chunked_request_bodies(client: Client) -> None:
    body = b64(make_csr("dev-chunked")[1])
    chunks = (
        b"".join(b"%x\r\n%s\r\n" % (len(p), p) for p in (body[:100], body[100:])) + b"0\r\n\r\n"
    )
    head = (
        f"POST {BASE}/simpleenroll HTTP/1.1\r\nHost: localhost\r\nAuthorization: {client.basic}\r\n"
        "Content-Type: application/pkcs10\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n"
    )
    assert Answer(await client.raw(head.encode() + chunks)).status == 200


@pytest.mark.parametrize("value", ["base64", "binary", "garbage", None])
async def test_B1_content_transfer_encoding_does_not_matter(
    client: Client, value: str | None
) -> None:
    more = {"Content_Transfer_Encoding": value or ""}  # None: not sent at all
    answer = await client.enroll(b64(make_csr(f"dev-cte-{value}")[1]), **more)
    assert answer.status == 200


@pytest.mark.parametrize("form", ["wrapped", "crlf", "spaces", "tail"])
async def test_B2_white_space_in_the_body(client: Client, form: str) -> None:
    der = make_csr(f"dev-{form}")[1]
    text = base64.encodebytes(der)
    bodies = {
        "wrapped": text,
        "crlf": text.replace(b"\n", b"\r\n"),
        "spaces": b" ".join(b64(der)[i : i + 4] for i in range(0, len(b64(der)), 4)),
        "tail": b64(der) + b"\n\n",
    }
    assert (await client.enroll(bodies[form])).status == 200


# What is refused, with which status and one line of text.


def flipped(der: bytes) -> bytes:
    return der[:-1] + bytes((der[-1] ^ 1,))


def weak() -> bytes:
    key = rsa.generate_private_key(65537, 1024)  # noqa: S505 - weak on purpose
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "dev-weak")])
    return (
        x509.CertificateSigningRequestBuilder(name).sign(key, SHA256()).public_bytes(Encoding.DER)
    )


def another_name() -> bytes:
    return make_csr("somebody-else")[1]


def with_san(entry: bytes) -> bytes:
    value = extension("2.5.29.17", der.tlv(der.SEQUENCE, entry))
    return signed_csr(
        csr_attribute(EXTENSION_REQUEST_OID, der.tlv(der.SEQUENCE, value)),
        subject=encoded_name(("2.5.4.3", 0x0C, b"dev-x")),
    )


REFUSED: list[tuple[str, Callable[[], bytes], int, str]] = [
    ("not base64", lambda: b"not base64!!", 400, "body.not_base64"),
    ("base64url", lambda: b64(make_csr("dev-x")[1]).replace(b"M", b"-"), 400, "body.not_base64"),
    ("empty", lambda: b" ", 400, "body.empty"),
    ("half PEM", lambda: b"-----BEGIN CERTIFICATE REQUEST-----\nAAAA\n", 400, "body.pem"),
    ("not a CSR", lambda: b64(b"\x30\x03\x02\x01\x00"), 400, "csr.malformed"),
    ("trailing data", lambda: b64(make_csr("dev-x")[1] + b"\x00"), 400, "csr.trailing_octets"),
    ("truncated", lambda: b64(make_csr("dev-x")[1][:-9]), 400, "csr.malformed"),
    ("bad signature", lambda: b64(flipped(make_csr("dev-x")[1])), 400, "csr.signature"),
    ("RSA-1024", lambda: b64(weak()), 400, "key.size"),
    ("another name", lambda: b64(another_name()), 403, "policy.subject"),
    ("too large", lambda: b"A" * 65_537, 413, "body.too_large"),
    ("SAN kind", lambda: b64(with_san(b"\xa3\x00")), 400, "csr.san_kind"),
    ("IP as text", lambda: b64(with_san(b"\x87\x0710.1.2.")), 400, "csr.san_value"),
    ("version", lambda: b64(signed_csr(version=1)), 400, "csr.version"),
    ("no attributes", lambda: b64(signed_csr(no_attributes=True)), 400, "csr.attributes_missing"),
]


@pytest.mark.parametrize(("what", "body", "status", "code"), REFUSED, ids=[r[0] for r in REFUSED])
async def test_B3_E2_E5_bad_requests_get_one_line(
    client: Client, what: str, body: object, status: int, code: str
) -> None:
    answer = await client.enroll(body())  # type: ignore[operator]
    assert answer.status == status, answer.text
    assert_one_line(answer, code)


def assert_challenge(answer: Answer) -> None:
    """A challenge has no body, which BouncyCastle cannot skip; its code is in a header."""
    assert answer.status == 401
    assert answer.body == b""
    assert answer.headers["Content-Length"] == "0"
    assert answer.headers["X-Error-Code"] == "auth.required"


def assert_one_line(answer: Answer, code: str) -> None:
    assert answer.headers["Content-Type"].startswith("text/plain")
    assert answer.body.endswith(b"\n")
    assert answer.body.count(b"\n") == 1
    assert f"[{code}]" in answer.text
    assert answer.headers["X-Error-Code"] == code
    assert int(answer.headers["Content-Length"]) == len(answer.body)


async def test_E1_L1_no_credentials_is_401_with_a_challenge(client: Client) -> None:
    answer = await client.request("POST", f"{BASE}/simpleenroll", b64(make_csr("dev-x")[1]))
    assert answer.status == 401
    assert answer.headers["WWW-Authenticate"] == 'Basic realm="est"'
    assert_challenge(answer)


@pytest.mark.parametrize(
    ("auth", "code"),
    [
        ("Basic " + base64.b64encode(b"load:wrong").decode(), "auth.secret"),
        ("Basic " + base64.b64encode(b"unknown:wrong").decode(), "auth.secret"),
        ("Basic !!!", "auth.basic"),
        ("Bearer abc", "auth.scheme"),
    ],
)
async def test_wrong_credentials_are_401(client: Client, auth: str, code: str) -> None:
    body = b64(make_csr("dev-x")[1])
    answer = await client.request("POST", f"{BASE}/simpleenroll", body, auth=auth)
    assert answer.status == 401
    assert_one_line(answer, code)


async def test_B5_wrong_media_type_is_415(client: Client) -> None:
    body = b64(make_csr("dev-x")[1])
    answer = await client.enroll(body, Content_Type="application/x-www-form-urlencoded")
    assert answer.status == 415
    assert_one_line(answer, "request.media_type")
    odd = "Application/PKCS10; charset=x"
    assert (await client.enroll(b64(make_csr("dev-type")[1]), Content_Type=odd)).status == 200


@pytest.mark.parametrize(
    "path",
    [
        f"{BASE}/nosuch/cacerts",
        f"{BASE}/{'x' * 5000}/cacerts",
        f"{BASE}/%2e%2e/cacerts",
        f"{BASE}/../est/cacerts",
        f"{BASE}//cacerts",
        f"{BASE}/cacerts/",
        f"{BASE}/",
        "/",
        f"{BASE}/services/pal",
    ],
)
async def test_A4_A5_N9_unknown_paths_are_404_without_redirect(client: Client, path: str) -> None:
    answer = await client.request("GET", path)
    assert answer.status == 404
    assert_one_line(answer, "request.not_found")


@pytest.mark.parametrize(
    ("target", "status", "code"),
    [
        ("https://localhost/.well-known/est/cacerts", 200, None),
        ("HTTPS://LOCALHOST:8443/.well-known/est/services/cacerts", 200, None),
        ("https://localhost/nothing", 404, "request.not_found"),
        ("https://localhost", 404, "request.not_found"),
        ("https://evil.example/.well-known/est/cacerts", 421, "request.wrong_host"),
        ("https://localhost@evil.example/.well-known/est/cacerts", 421, "request.wrong_host"),
        ("http://localhost/.well-known/est/cacerts", 421, "request.wrong_host"),
    ],
)
async def test_a_whole_url_as_the_request_target_is_for_its_own_host(
    client: Client, target: str, status: int, code: str | None
) -> None:
    """RFC 9112 section 3.2.2: "A server MUST accept the absolute-form in requests"."""
    head = f"GET {target} HTTP/1.1\r\nHost: other.example\r\nConnection: close\r\n\r\n"
    answer = Answer(await client.raw(head.encode()))
    assert answer.status == status
    if code is not None:
        assert_one_line(answer, code)


@pytest.mark.parametrize(
    ("method", "operation", "allow"),
    [
        ("POST", "cacerts", "GET, HEAD"),
        ("GET", "simpleenroll", "POST"),
        ("PUT", "simplereenroll", "POST"),
        ("OPTIONS", "cacerts", "GET, HEAD"),
    ],
)
async def test_A6_wrong_methods_are_405_with_allow(
    client: Client, method: str, operation: str, allow: str
) -> None:
    answer = await client.request(method, f"{BASE}/{operation}")
    assert answer.status == 405
    assert answer.headers["Allow"] == allow


@pytest.mark.parametrize("operation", ["fullcmc", "serverkeygen"])
async def test_J1_H1_operations_not_offered_are_501(client: Client, operation: str) -> None:
    answer = await client.enroll(b64(make_csr("dev-x")[1]), path=f"{BASE}/{operation}")
    assert answer.status == 501
    assert_one_line(answer, "request.not_implemented")


async def test_A8_plain_http_is_not_served(client: Client) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", client.stack.layout.ports.est)
    writer.write(f"GET {BASE}/cacerts HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
    answer = b""
    with contextlib.suppress(ConnectionError):
        answer = await reader.read()
    writer.close()
    assert b"HTTP/1.1 200" not in answer


# Certificates: re-enrollment and identities.


async def credential(client: Client, folder: Path, name: str) -> ssl.SSLContext:
    key, csr = make_csr(name)
    answer = await client.enroll(b64(csr))
    certificate = certificate_in(answer.body)
    pem = folder / f"{name}.pem"
    pem.write_bytes(certificate.public_bytes(Encoding.PEM))
    return client.stack.client_context(pem, write_key(folder / f"{name}.key", key))


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
async def test_F1_K5_reenroll_over_mutual_tls(
    client: Client, tmp_path: Path, version: ssl.TLSVersion
) -> None:
    name = f"dev-re-{version.value}"
    context = await credential(client, tmp_path, name)
    context.maximum_version = version
    answer = await client.request(
        "POST", f"{BASE}/simplereenroll", b64(make_csr(name)[1]), context=context
    )
    assert answer.status == 200, answer.text
    assert certificate_in(answer.body).subject.rfc4514_string() == f"CN={name}"


async def test_F1_reenroll_refuses_another_identity(client: Client, tmp_path: Path) -> None:
    context = await credential(client, tmp_path, "dev-mine")
    body = b64(make_csr("dev-yours")[1])
    answer = await client.request("POST", f"{BASE}/simplereenroll", body, context=context)
    assert answer.status == 403
    assert_one_line(answer, "reenroll.subject_differs")


async def test_F4_reenroll_with_a_secret_only_is_refused(client: Client) -> None:
    body = b64(make_csr("dev-x")[1])
    answer = await client.enroll(body, path=f"{BASE}/simplereenroll")
    assert answer.status == 401
    assert_one_line(answer, "auth.certificate_required")


def self_signed(folder: Path, *, before: str = "-1", days: str = "1") -> tuple[Path, Path]:
    pem, key = folder / "self.pem", folder / "self.key"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes",
         "-keyout", key, "-out", pem, "-subj", "/CN=dev-foreign", "-days", days],
        check=True, capture_output=True,
    )  # fmt: skip
    return pem, key


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
async def test_K7_untrusted_certificate_is_answered_not_aborted(
    client: Client, tmp_path: Path, version: ssl.TLSVersion
) -> None:
    context = client.stack.client_context(*self_signed(tmp_path))
    context.maximum_version = version
    body = b64(make_csr("dev-foreign")[1])
    answer = await client.request("POST", f"{BASE}/simplereenroll", body, context=context)
    assert answer.status == 401
    assert_one_line(answer, "auth.certificate_untrusted")
    assert (await client.request("GET", f"{BASE}/cacerts", context=context)).status == 200


async def test_K1_old_protocols_and_K3_weak_suites_are_refused(client: Client) -> None:
    port = client.stack.layout.ports.est
    for arguments in (
        ["-tls1_1", "-cipher", "DEFAULT@SECLEVEL=0"],
        ["-tls1_2", "-cipher", "NULL@SECLEVEL=0"],
        ["-tls1_2", "-cipher", "aNULL@SECLEVEL=0"],
        ["-tls1_2", "-cipher", "AES128-SHA"],
        ["-tls1_2", "-cipher", "kRSA"],
        ["-tls1_2", "-cipher", "DHE"],
        ["-tls1_2", "-cipher", "ECDHE+SHA256:ECDHE+SHA1:!AESGCM:!CHACHA20"],
    ):
        done = subprocess.run(
            ["openssl", "s_client", "-connect", f"127.0.0.1:{port}", *arguments],
            input=b"",
            capture_output=True,
            check=False,
        )
        assert b"Cipher is (NONE)" in done.stdout or done.returncode != 0, arguments
    for arguments in (["-tls1_2"], ["-tls1_3"]):
        done = subprocess.run(
            ["openssl", "s_client", "-connect", f"127.0.0.1:{port}", *arguments],
            input=b"",
            capture_output=True,
            check=True,
        )
        assert b"Cipher is ECDHE" in done.stdout or b"Cipher is TLS_" in done.stdout


async def test_A20_alpn_is_http_1_1_only(client: Client) -> None:
    done = subprocess.run(
        ["openssl", "s_client", "-connect", f"127.0.0.1:{client.stack.layout.ports.est}", "-alpn",
         "h2,http/1.1"],
        input=b"", capture_output=True, check=False,
    )  # fmt: skip
    assert b"ALPN protocol: http/1.1" in done.stdout


async def test_A10_connection_close_ends_with_close_notify(client: Client) -> None:
    done = subprocess.run(
        ["openssl", "s_client", "-connect", f"127.0.0.1:{client.stack.layout.ports.est}",
         "-ign_eof", "-quiet", "-tls1_2"],
        input=f"GET {BASE}/cacerts HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode(),
        capture_output=True, check=False, timeout=5,
    )  # fmt: skip
    assert b"200 OK" in done.stdout
    assert b"unexpected eof" not in done.stderr


# Same request, same certificate.


async def test_E12_a_repeated_enrollment_returns_the_same_certificate(client: Client) -> None:
    body = b64(make_csr("dev-again")[1])
    first, second = await client.enroll(body), await client.enroll(body)
    assert certificate_in(first.body) == certificate_in(second.body)


async def test_E12_the_same_request_at_the_same_time_gives_one_certificate(client: Client) -> None:
    body = b64(make_csr("dev-parallel")[1])
    answers = await asyncio.gather(*(client.enroll(body) for _ in range(5)))
    serials = {certificate_in(a.body).serial_number for a in answers if a.status == 200}
    assert len(serials) == 1
    assert {a.status for a in answers} <= {200, 202}


async def test_G4_a_different_client_does_not_get_it(client: Client) -> None:
    """The same CSR under another owner: the key belongs to the first."""
    _, csr = make_csr("dev-key")
    assert (await client.enroll(b64(csr))).status == 200
    config = str(client.stack.layout.config_file("ca-signer"))
    secret = await client.stack.suite.command(
        "ca-signer", "secret", "create", "--id", "other", "--config", config
    )
    await asyncio.sleep(0.5)
    auth = "Basic " + base64.b64encode(f"other:{secret.strip()}".encode()).decode()
    answer = await client.request("POST", f"{BASE}/simpleenroll", b64(csr), auth=auth)
    assert answer.status == 409
    assert_one_line(answer, "key.bound")


async def test_L7_one_time_secret_is_spent_on_success_only(client: Client) -> None:
    config = str(client.stack.layout.config_file("ca-signer"))
    secret = await client.stack.suite.command(
        "ca-signer", "secret", "create", "--id", "once", "--one-time", "--config", config
    )
    await asyncio.sleep(0.5)
    auth = "Basic " + base64.b64encode(f"once:{secret.strip()}".encode()).decode()

    async def send(der: bytes) -> Answer:
        return await client.request("POST", f"{BASE}/simpleenroll", b64(der), auth=auth)

    assert (await send(make_csr("not-allowed")[1])).status == 403
    mine = make_csr("dev-once")[1]
    first = await send(mine)
    assert first.status == 200
    again = await send(mine)
    assert certificate_in(again.body) == certificate_in(first.body)
    other = await send(make_csr("dev-once-more")[1])
    assert other.status == 403
    assert_one_line(other, "secret.spent")


# On record.


async def requests_so_far(stack: Stack) -> int:
    """Sequence number of the request stream, asked as the provisioner."""
    nats = stack.layout.nats
    settings = BusSettings(url=nats.url, nkey_seed_file=nats.seed_file("migrate"))
    bus = await Bus.connect(settings, "migrate", "test", signs=False)
    try:
        return (await bus.client.jetstream().stream_info("EST_REQUESTS")).state.last_seq
    finally:
        await bus.close()


async def test_F12_what_the_front_end_refuses_never_reaches_the_request_stream(
    client: Client, tmp_path: Path
) -> None:
    context = await credential(client, tmp_path, "dev-stream")
    before = await requests_so_far(client.stack)
    for what, body, status, _ in REFUSED:
        assert (await client.enroll(body())).status == status, what
    foreign = b64(make_csr("dev-else")[1])
    for answer in (
        await client.request("POST", f"{BASE}/simplereenroll", foreign, context=context),
        await client.request("POST", f"{BASE}/simpleenroll", foreign),
        await client.request("POST", f"{BASE}/nosuch/simpleenroll", foreign, auth=client.basic),
        await client.enroll(foreign, Content_Type="text/plain"),
    ):
        assert 400 <= answer.status < 500
    assert await requests_so_far(client.stack) == before
    assert (await client.enroll(b64(make_csr("dev-counted")[1]))).status == 200
    assert await requests_so_far(client.stack) == before + 1


async def test_E15_every_refusal_is_on_record(client: Client) -> None:
    answer = await client.enroll(b"not base64 at all!")
    correlation = answer.headers["X-Correlation-ID"]
    assert re.fullmatch(r"[0-9a-f-]{36}", correlation)
    records = []
    for _ in range(40):
        leaves = await client.stack.leaves()
        records = [leaf for leaf in leaves if correlation in leaf]
        if records:
            break
        await asyncio.sleep(1)
    assert len(records) == 1
    assert '"reason_code":"body.not_base64"' in records[0]
    assert '"service":"est-frontend"' in records[0]
    assert '"phase":"denied"' in records[0]


async def test_G8_one_correlation_id_reaches_every_service(client: Client) -> None:
    answer = await client.enroll(b64(make_csr("dev-walk")[1]))
    correlation = answer.headers["X-Correlation-ID"]
    services: set[str] = set()
    for _ in range(40):
        leaves = await client.stack.leaves()
        services = {
            s
            for s in ("est-frontend", "ca-signer", "renewal")
            if any(correlation in leaf and f'"service":"{s}"' in leaf for leaf in leaves)
        }
        if len(services) == 2:
            break
        await asyncio.sleep(1)
    assert services == {"ca-signer", "renewal"}
    (outcome,) = [
        record
        for record in await client.stack.records()
        if record["correlation_id"] == correlation and record["phase"] == "outcome"
        if record["action"] == "certificate.issue"
    ]
    # What the front end saw is on the record of the success, which is the only one.
    assert outcome["origin"]["peer"] == "127.0.0.1"
    assert outcome["origin"]["tls_version"].startswith("TLSv1.")
    assert outcome["details"]["frontend"].startswith("default/")


async def test_G9_no_secret_is_written_anywhere(client: Client) -> None:
    secrets = (client.stack.secret.encode(), client.basic.removeprefix("Basic ").encode())
    await client.enroll(b64(make_csr("dev-quiet")[1]))
    correlations = set()
    for octets in unreadable(client.basic.encode()):
        answer = Answer(await client.raw(octets))
        assert answer.head.startswith(b"HTTP/1.1 4")
        assert answer.headers["Server"] == "est"
        assert_one_line(answer, "request.malformed" if answer.status == 400 else LARGE)
        assert not any(secret in answer.head + answer.body for secret in secrets)
        correlations.add(answer.headers["X-Correlation-ID"])
    await asyncio.sleep(1)
    leaves = await client.stack.leaves()
    on_record = {c for c in correlations if any(c in leaf for leaf in leaves)}
    assert on_record == correlations
    for path in client.stack.folder.rglob("*"):
        if path.is_file() and not path.name.endswith(".password"):
            with contextlib.suppress(OSError):
                written = path.read_bytes()
                assert not any(secret in written for secret in secrets), path
    for path in client.stack.layout.logs.glob("est-frontend*"):
        assert "Traceback" not in path.read_text()


LARGE = "request.head_too_large"


def unreadable(basic: bytes) -> list[bytes]:
    """Requests with a credential that the HTTP library cannot read."""
    start = b"POST " + f"{BASE}/simpleenroll".encode() + b" HTTP/1.1\r\nHost: localhost\r\n"
    good = start + b"Authorization: " + basic + b"\r\n"
    chunked = good + b"Content-Type: application/pkcs10\r\nTransfer-Encoding: chunked\r\n\r\n"
    return [
        start + b"Authorization : " + basic + b"\r\n\r\n",
        start + b"Authorization\t: " + basic + b"\r\n\r\n",
        start + b"Authorization " + basic + b"\r\n\r\n",
        start + b"Authorization: " + basic + b"\0\r\n\r\n",
        start + b"Authorization: x\r\n " + basic + b"\r\n\r\n",
        start + b"Authorization: " + basic + b"\rX: y\r\n\r\n",
        good + b"Host: localhost\r\n\r\n",
        good + b"Content-Length: " + basic + b"\r\n\r\n",
        good + b"X: " + basic * 400 + b"\r\n\r\n",
        b"GET /" + basic + b" HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"GET /" + basic.replace(b" ", b"/") + b" HTTP/2.0\r\nHost: localhost\r\n\r\n",
        basic + b" / HTTP/1.1\r\nHost: localhost\r\n\r\n",
        chunked + basic + b"\r\n",
        chunked + b"5\r\nhello" + basic + b"\r\n",
    ]


async def test_C7_cacerts_outlives_nats_and_postgres(client: Client) -> None:
    layout = client.stack.layout
    await layout.nats.stop()
    await layout.postgres.stop(immediate=True)
    try:
        assert (await client.request("GET", f"{BASE}/cacerts")).status == 200
        answer = await client.enroll(b64(make_csr("dev-down")[1]))
        assert answer.status == 503
        assert int(answer.headers["Retry-After"]) >= 1
        assert_one_line(answer, "bus.unavailable")
    finally:
        await layout.postgres.start()
        await layout.nats.start()
    stubborn = StubbornClient(client.stack, client.stack.ports)
    await stubborn.enroll("dev-back")
