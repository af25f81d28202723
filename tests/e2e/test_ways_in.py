"""Every way in and every operation, over the wire. Numbers are those of the conformance list."""

from __future__ import annotations

import asyncio
import base64
import datetime as dt
import email
import hashlib
import os
import shutil
import signal
import socket
import ssl
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_der_private_key,
    load_pem_private_key,
)
from cryptography.x509.oid import AttributeOID, NameOID
from e2e_stack import (
    POLICY,
    Stack,
    certificate_in,
    make_csr,
    same_key,
    start_stack,
    stop_stack,
    write_key,
)
from OpenSSL import SSL
from raw_client import BASE, Client, b64

from est_frontend.users import HASHER
from estclient.client import ESTClient
from estcore.errors import ConfigurationError
from estcore.est.csr_demands import csr_builder
from estcore.est.csrattrs import parse_csrattrs
from estcore.est.http_digest import verifier
from estcore.est.keygen_response import parse_keygen_response

pytestmark = [pytest.mark.e2e, pytest.mark.asyncio(loop_scope="module")]

PASSWORD = "correct horse battery"


def self_signed(name: str) -> tuple[x509.Certificate, ec.EllipticCurvePrivateKey]:
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    now = dt.datetime.now(dt.UTC)
    built = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - dt.timedelta(hours=1))
        .not_valid_after(now + dt.timedelta(days=1))
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, SHA256())
    )
    return built, key


def device(
    name: str,
    maker: tuple[x509.Certificate, ec.EllipticCurvePrivateKey],
    attribute: x509.ObjectIdentifier = NameOID.COMMON_NAME,
) -> tuple[x509.Certificate, ec.EllipticCurvePrivateKey]:
    key = ec.generate_private_key(ec.SECP256R1())
    now = dt.datetime.now(dt.UTC)
    built = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(attribute, name)]))
        .issuer_name(maker[0].subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - dt.timedelta(hours=1))
        .not_valid_after(now + dt.timedelta(days=1))
        .sign(maker[1], SHA256())
    )
    return built, key


class World:
    """A running suite, a maker of devices, a client."""

    def __init__(
        self,
        stack: Stack,
        maker: tuple[x509.Certificate, ec.EllipticCurvePrivateKey],
        folder: Path,
    ) -> None:
        self.stack, self.maker, self.folder = stack, maker, folder
        self.client = Client.of(stack)
        self.basic = self.client.basic
        self.secrets: dict[str, str] = {}

    def write(
        self, name: str, pair: tuple[x509.Certificate, ec.EllipticCurvePrivateKey]
    ) -> ssl.SSLContext:
        file = self.folder / f"{name}.pem"
        file.write_bytes(pair[0].public_bytes(Encoding.PEM))
        return self.stack.client_context(file, write_key(self.folder / f"{name}.key", pair[1]))

    async def enrolled(self, name: str) -> ssl.SSLContext:
        """A client context with a certificate of the suite."""
        key, csr = make_csr(name)
        answer = await self.client.enroll(b64(csr))
        assert answer.status == 200, answer.text
        return self.write(name, (certificate_in(answer.body), key))


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def world(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[World]:
    folder = tmp_path_factory.mktemp("ways")
    maker = self_signed("maker root")
    pem = maker[0].public_bytes(Encoding.PEM).decode().strip().replace("\n", "\n      ")
    policy = folder / "policy.yaml"
    policy.write_text((POLICY.parent / "ways.yaml").read_text().replace("MAKER", pem))
    users, kek = folder / "users.yaml", folder / "kek.yaml"
    digests = {a: verifier("alice", "est", PASSWORD, a) for a in ("MD5", "SHA-256")}
    users.write_text(
        f"users:\n  alice:\n    argon2id: '{HASHER.hash(PASSWORD)}'\n    digest: {digests}\n"
    )
    secret = base64.b64encode(bytes(range(32))).decode()
    kek.write_text(f"device-kek: {secret}\n")
    overrides = {
        "est-frontend": {
            "users_file": str(users),
            "keygen_secrets_file": str(kek),
            "reload_every_s": 0.2,
        },
        "ca-signer": {"reload_every_s": 0.2},
    }
    stack = await start_stack(folder / "suite", overrides=overrides, policy=policy)
    config = str(stack.layout.config_file("ca-signer"))
    world = World(stack, maker, folder)
    for name in ("twice", "registrar"):
        made = await stack.suite.run("estctl", "secret", "create", "--id", name, "--config", config)
        world.secrets[name] = made.strip()
    try:
        yield world
    finally:
        await stop_stack(stack)


def basic(name: str, secret: str) -> str:
    return "Basic " + base64.b64encode(f"{name}:{secret}".encode()).decode()


# HTTP authentication.


async def test_L17_a_persons_password_enrolls(world: World) -> None:
    path = f"{BASE}/people/simpleenroll"
    answer = await world.client.request(
        "POST", path, b64(make_csr("dev-alice")[1]), auth=basic("alice", PASSWORD)
    )
    assert answer.status == 200, answer.text
    wrong = await world.client.request(
        "POST", path, b64(make_csr("dev-alice")[1]), auth=basic("alice", "wrong")
    )
    assert wrong.status == 401
    assert "auth.password" in wrong.text
    assert wrong.headers["WWW-Authenticate"] == 'Basic realm="est"'


async def test_L6_a_secret_without_a_name_is_enough(world: World) -> None:
    answer = await world.client.request(
        "POST",
        f"{BASE}/simpleenroll",
        b64(make_csr("dev-pin")[1]),
        auth=basic("", world.stack.secret),
    )
    assert answer.status == 200, answer.text


async def test_L2_basic_comes_first_and_each_scheme_has_its_line(world: World) -> None:
    answer = await world.client.request(
        "POST", f"{BASE}/mixed/simpleenroll", b64(make_csr("dev-x")[1])
    )
    assert answer.status == 401
    lines = [x for x in answer.lines if x.startswith("WWW-Authenticate: ")]
    assert [line.split(" ")[1] for line in lines] == ["Basic", "Digest"]
    assert lines[1].endswith('qop="auth", algorithm=MD5, opaque="est"')


def curl(world: World, *arguments: str, label: str = "", operation: str = "simpleenroll") -> str:
    """The status, after the body, of a request by curl."""
    port = world.stack.layout.ports.est
    middle = f"/{label}" if label else ""
    done = subprocess.run(
        [
            shutil.which("curl") or "curl",
            *("-sS", "--cacert", str(world.stack.layout.root_file), "-w", "\n%{http_code}"),
            *("--resolve", f"localhost:{port}:127.0.0.1"),
            *arguments,
            f"https://localhost:{port}{BASE}{middle}/{operation}",
        ],
        capture_output=True,
        timeout=30,
        check=True,
    )
    return done.stdout.decode()


async def test_L3_K4_curl_enrolls_with_digest_and_a_nonce_is_good_once(world: World) -> None:
    body = world.folder / "digest.b64"
    body.write_bytes(b64(make_csr("dev-digest")[1]))
    common = ("-H", "Content-Type: application/pkcs10", "--data-binary", f"@{body}")
    out = await asyncio.to_thread(
        curl, world, "--digest", "-u", f"alice:{PASSWORD}", *common, label="legacy"
    )
    assert out.endswith("\n200"), out
    wrong = await asyncio.to_thread(
        curl, world, "--digest", "-u", "alice:wrong", *common, label="legacy"
    )
    assert wrong.endswith("\n401"), wrong


def digest_answer(challenge: str, path: str, *, password: str = PASSWORD, nc: str = "1") -> str:
    nonce = challenge.split('nonce="')[1].split('"')[0]
    ha1 = verifier("alice", "est", password, "MD5")
    ha2 = hashlib.md5(f"POST:{path}".encode(), usedforsecurity=False).hexdigest()
    count = nc.zfill(8)
    text = f"{ha1}:{nonce}:{count}:abc:auth:{ha2}"
    response = hashlib.md5(text.encode(), usedforsecurity=False).hexdigest()
    return (
        f'Digest username="alice", realm="est", nonce="{nonce}", uri="{path}", '
        f'response="{response}", qop=auth, nc={count}, cnonce="abc", algorithm=MD5'
    )


async def test_L5_a_replayed_digest_answer_is_refused(world: World) -> None:
    path = f"{BASE}/legacy/simpleenroll"
    csr = b64(make_csr("dev-replay")[1])
    first = await world.client.request("POST", path, csr)
    challenge = first.headers["WWW-Authenticate"]
    answer = digest_answer(challenge, path)
    assert (await world.client.request("POST", path, csr, auth=answer)).status == 200
    again = await world.client.request("POST", path, csr, auth=answer)
    assert again.status == 401
    assert "auth.replayed" in again.text
    counted = digest_answer(challenge, path, nc="2")
    assert (await world.client.request("POST", path, csr, auth=counted)).status == 200


async def test_L4_libest_leaves_the_label_out_of_the_digest_uri(world: World) -> None:
    path = f"{BASE}/legacy/simpleenroll"
    csr = b64(make_csr("dev-libest")[1])
    challenge = (await world.client.request("POST", path, csr)).headers["WWW-Authenticate"]
    answer = digest_answer(challenge, f"{BASE}/simpleenroll")
    assert (await world.client.request("POST", path, csr, auth=answer)).status == 200
    other = digest_answer(challenge, f"{BASE}/simplereenroll", nc="3")
    assert (await world.client.request("POST", path, csr, auth=other)).status == 401


async def test_L9_a_label_can_need_certificate_and_secret(world: World) -> None:
    path = f"{BASE}/both/simpleenroll"
    csr = b64(make_csr("dev-both")[1])
    context = await world.enrolled("dev-both-cert")
    ask = world.client.request
    assert (await ask("POST", path, csr, auth=world.basic)).status == 401
    assert (await ask("POST", path, csr, context=context)).status == 401
    assert (await ask("POST", path, csr, context=context, auth=world.basic)).status == 200
    # Renewal wants both as well.
    renew, own = f"{BASE}/both/simplereenroll", b64(make_csr("dev-both-cert")[1])
    assert (await ask("POST", renew, own, context=context)).status == 401
    renewed = await ask("POST", renew, own, context=context, auth=world.basic)
    assert renewed.status == 200, renewed.text


async def test_L7_wrong_passwords_are_slowed_down(world: World) -> None:
    statuses = []
    for _ in range(8):
        answer = await world.client.request(
            "POST", f"{BASE}/people/simpleenroll", b64(make_csr("dev-x")[1]), auth=basic("eve", "x")
        )
        statuses.append(answer.status)
    assert statuses[:5] == [401] * 5
    assert 429 in statuses
    assert int(answer.headers["Retry-After"]) >= 1
    good = await world.client.request(
        "POST",
        f"{BASE}/people/simpleenroll",
        b64(make_csr("dev-alice2")[1]),
        auth=basic("alice", PASSWORD),
    )
    assert good.status == 200, "another account is not slowed down"


async def test_L12_a_bad_token_is_told_so_by_the_challenge(world: World) -> None:
    path = f"{BASE}/tokens/simpleenroll"
    csr = b64(make_csr("dev-token")[1])
    plain = await world.client.request("POST", path, csr)
    assert (plain.status, plain.headers["WWW-Authenticate"]) == (401, 'Bearer realm="est"')
    for token in ("nonsense", "a.b.c", base64.b64encode(b"x.y.z").decode()):
        answer = await world.client.request("POST", path, csr, auth=f"Bearer {token}")
        assert answer.status == 401
        assert answer.headers["WWW-Authenticate"] == 'Bearer realm="est", error="invalid_token"'
        assert token not in answer.text
    other = await world.client.request("POST", path, csr, auth=world.basic)
    assert (other.status, "auth.scheme" in other.text) == (401, True)


# Certificates of other CAs.


async def test_K8_a_makers_device_gets_its_own_name_and_no_other(world: World) -> None:
    context = world.write("pump-1", device("pump-1", world.maker))
    path = f"{BASE}/devices/simpleenroll"
    ask = world.client.request
    answer = await ask("POST", path, b64(make_csr("pump-1")[1]), context=context)
    assert answer.status == 200, answer.text
    other = await ask("POST", path, b64(make_csr("pump-2")[1]), context=context)
    assert (other.status, "policy.subject" in other.text) == (403, True)
    stranger = world.write("valve-1", device("valve-1", world.maker))
    refused = await ask("POST", path, b64(make_csr("valve-1")[1]), context=stranger)
    assert (refused.status, "policy.no_rule" in refused.text) == (403, True)
    # Its new certificate renews itself, with the name it has and no other.
    key, csr = make_csr("pump-1")
    first = await ask("POST", path, b64(csr), context=context)
    ours = world.write("pump-1-ours", (certificate_in(first.body), key))
    for name, status in (("pump-1", 200), ("pump-2", 403)):
        again = await ask(
            "POST", f"{BASE}/devices/simplereenroll", b64(make_csr(name)[1]), context=ours
        )
        assert again.status == status, again.text
    # The maker's does not open other labels, and it cannot be renewed here.
    elsewhere = await ask("POST", f"{BASE}/simpleenroll", b64(make_csr("x")[1]), context=context)
    assert elsewhere.status == 401
    renewal = await ask(
        "POST", f"{BASE}/devices/simplereenroll", b64(make_csr("pump-1")[1]), context=context
    )
    assert (renewal.status, "auth.certificate_foreign" in renewal.text) == (403, True)


async def test_N2_a_makers_identity_becomes_one_of_ours_and_is_renewed_with_it(
    world: World,
) -> None:
    """IDevID to LDevID: the profile makes the names, the maker's certificate says which."""
    ask, path = world.client.request, f"{BASE}/identities"
    theirs = world.write("idevid", device("4711", world.maker, NameOID.SERIAL_NUMBER))
    key = ec.generate_private_key(ec.SECP256R1())
    csr = x509.CertificateSigningRequestBuilder(
        x509.Name(
            [
                x509.NameAttribute(NameOID.SERIAL_NUMBER, "4711"),
                x509.NameAttribute(NameOID.ORGANIZATION_NAME, "Whatever the factory wrote"),
            ]
        )
    ).sign(key, SHA256())
    answer = await ask("POST", f"{path}/simpleenroll", b64(csr.public_bytes(Encoding.DER)),
                       context=theirs)  # fmt: skip
    assert answer.status == 200, answer.text
    ours = certificate_in(answer.body)
    assert ours.subject.rfc4514_string() == "2.5.4.5=4711,OU=pumps,O=Clinic"
    san = ours.extensions.get_extension_for_class(x509.SubjectAlternativeName)
    assert [name.value for name in san.value] == ["urn:device:4711"]
    again = x509.CertificateSigningRequestBuilder(ours.subject).add_extension(
        san.value, critical=False
    )
    renewed = await ask(
        "POST",
        f"{path}/simplereenroll",
        b64(again.sign(key, SHA256()).public_bytes(Encoding.DER)),
        context=world.write("ldevid", (ours, key)),
    )
    assert renewed.status == 200, renewed.text
    assert certificate_in(renewed.body).subject == ours.subject
    other = x509.CertificateSigningRequestBuilder(
        x509.Name([x509.NameAttribute(NameOID.SERIAL_NUMBER, "4712")])
    ).sign(key, SHA256())
    refused = await ask("POST", f"{path}/simpleenroll", b64(other.public_bytes(Encoding.DER)),
                        context=theirs)  # fmt: skip
    assert (refused.status, "policy.subject" in refused.text) == (403, True)


# Registration authorities.


async def test_M11_M13_M14_F9_a_registrar_enrolls_and_renews_for_others_within_its_scope(
    world: World,
) -> None:
    key, csr = make_csr("registrar")
    answer = await world.client.request(
        "POST",
        f"{BASE}/registrars/simpleenroll",
        b64(csr),
        auth=basic("registrar", world.secrets["registrar"]),
    )
    assert answer.status == 200, answer.text
    leaf = certificate_in(answer.body)
    usage = leaf.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    assert x509.ObjectIdentifier("1.3.6.1.5.5.7.3.28") in usage
    context = world.write("registrar", (leaf, key))
    ask = world.client.request
    enroll, renew = f"{BASE}/wards/simpleenroll", f"{BASE}/wards/simplereenroll"
    nothing = await ask("POST", renew, b64(make_csr("bed-1")[1]), context=context)
    assert (nothing.status, "registrar.nothing" in nothing.text) == (403, True)
    first = await ask("POST", enroll, b64(make_csr("bed-1")[1]), context=context)
    assert first.status == 200, first.text
    # M14: the predecessor is the subject's, not the registrar's own certificate.
    for _ in range(2):
        renewed = await ask("POST", renew, b64(make_csr("bed-1")[1]), context=context)
        assert renewed.status == 200, renewed.text
    ledger = (await world.stack.exports())["ledger"]
    slots = [row["slot_id"] for row in ledger if row["service"] == "ward"]
    assert len(slots) == 3
    assert len(set(slots)) == 1
    outside = await ask("POST", enroll, b64(make_csr("dev-other")[1]), context=context)
    assert (outside.status, "policy.subject" in outside.text) == (403, True)
    second = await ask("POST", enroll, b64(make_csr("bed-1")[1]), context=context)
    assert second.status == 200, second.text
    ambiguous = await ask("POST", renew, b64(make_csr("bed-1")[1]), context=context)
    assert (ambiguous.status, "registrar.ambiguous" in ambiguous.text) == (409, True)


async def test_M12_a_rule_without_a_certificate_of_profile_ra_gives_no_rights(
    world: World,
) -> None:
    context = await world.enrolled("dev-impostor")
    for operation in ("simpleenroll", "simplereenroll"):
        answer = await world.client.request(
            "POST", f"{BASE}/wards/{operation}", b64(make_csr("bed-9")[1]), context=context
        )
        assert answer.status == 403, answer.text


# Linking.


def bound_csr(name: str, challenge: str) -> bytes:
    key = ec.generate_private_key(ec.SECP256R1())
    return (
        x509.CertificateSigningRequestBuilder(
            x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        )
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), critical=False)
        .add_attribute(AttributeOID.CHALLENGE_PASSWORD, challenge.encode())
        .sign(key, SHA256())
        .public_bytes(Encoding.DER)
    )


async def over_one_connection(world: World, label: str, change: str = "") -> tuple[int, str]:
    context = world.stack.client_context()
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    reader, writer = await world.client.connect(context)
    binding = writer.get_extra_info("ssl_object").get_channel_binding("tls-unique")
    challenge = base64.b64encode(binding).decode()
    body = b64(bound_csr("dev-bound", change or challenge))
    writer.write(
        f"POST {BASE}/{label}/simpleenroll HTTP/1.1\r\nHost: localhost\r\n"
        f"Authorization: {world.basic}\r\nContent-Type: application/pkcs10\r\n"
        f"Content-Length: {len(body)}\r\nConnection: close\r\n\r\n".encode()
        + body
    )
    async with asyncio.timeout(15):
        answer = await reader.read()
    writer.close()
    head, _, text = answer.partition(b"\r\n\r\n")
    return int(head.split(b" ")[1]), text.decode()


async def test_M1_tls_unique_is_checked_where_it_is_sent(world: World) -> None:
    for label in ("bound", "lenient"):
        status, text = await over_one_connection(world, label)
        assert status == 200, text
    for wrong in ("A" * 16, "x" * 300, base64.b64encode(os.urandom(12)).decode() + " "):
        status, text = await over_one_connection(world, "lenient", wrong)
        assert status in {400, 403}, text
        assert "linking.failed" in text or "csr.attribute_too_long" in text
    status, text = await over_one_connection(world, "open", "not a binding")
    assert status == 200, text


async def test_M4_M10_the_binding_is_that_of_the_connection_that_carries_it(
    world: World,
) -> None:
    context = world.stack.client_context()
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    first_reader, first = await world.client.connect(context)
    binding = first.get_extra_info("ssl_object").get_channel_binding("tls-unique")
    body = b64(bound_csr("dev-twice-bound", base64.b64encode(binding).decode()))
    octets = (
        f"POST {BASE}/bound/simpleenroll HTTP/1.1\r\nHost: localhost\r\n"
        f"Authorization: {world.basic}\r\nContent-Type: application/pkcs10\r\n"
        f"Content-Length: {len(body)}\r\n\r\n".encode()
        + body
    )
    for _ in range(2):  # on the same connection it is good again
        first.write(octets)
        head = await asyncio.wait_for(first_reader.readuntil(b"\r\n\r\n"), 10)
        assert b" 200 " in head.split(b"\r\n")[0]
        length = int(head.split(b"Content-Length: ")[1].split(b"\r\n")[0])
        await first_reader.readexactly(length)
    second_reader, second = await world.client.connect(context)
    second.write(octets)
    head = await asyncio.wait_for(second_reader.readuntil(b"\r\n\r\n"), 10)
    assert b" 403 " in head.split(b"\r\n")[0]
    first.close()
    second.close()
    async with asyncio.timeout(10):
        while True:
            leaves = (await world.stack.exports())["audit"]
            if any('"linked":"tls-unique"' in str(line.get("leaf")) for line in leaves):
                return
            await asyncio.sleep(0.3)


@pytest.mark.parametrize("operation", ["simpleenroll", "simplereenroll", "serverkeygen"])
async def test_M3_every_operation_checks_the_binding(world: World, operation: str) -> None:
    context = await world.enrolled("dev-m3")
    csr = bound_csr("dev-m3", base64.b64encode(os.urandom(12)).decode())
    label = "generated" if operation == "serverkeygen" else "services"
    answer = await world.client.request(
        "POST", f"{BASE}/{label}/{operation}", b64(csr), context=context, auth=world.basic
    )
    assert (answer.status, "linking.failed" in answer.text) == (403, True), answer.text


def over_tls_13(world: World) -> tuple[int, str]:
    """Enroll with a CSR bound by tls-exporter, which needs another TLS client than Python's."""
    context = SSL.Context(SSL.TLS_CLIENT_METHOD)
    context.load_verify_locations(str(world.stack.layout.root_file))
    context.set_verify(SSL.VERIFY_PEER, lambda *seen: bool(seen[-1]))
    with socket.create_connection(("127.0.0.1", world.stack.layout.ports.est), 10) as plain:
        plain.settimeout(None)
        connection = SSL.Connection(context, plain)
        connection.set_tlsext_host_name(b"localhost")
        connection.set_connect_state()
        connection.do_handshake()
        assert connection.get_protocol_version_name() == "TLSv1.3"
        binding = connection.export_keying_material(b"EXPORTER-Channel-Binding", 32, b"")
        body = b64(bound_csr("dev-exporter", base64.b64encode(binding).decode()))
        connection.sendall(
            f"POST {BASE}/bound/simpleenroll HTTP/1.1\r\nHost: localhost\r\n"
            f"Authorization: {world.basic}\r\nContent-Type: application/pkcs10\r\n"
            f"Content-Length: {len(body)}\r\nConnection: close\r\n\r\n".encode()
            + body
        )
        answer = b""
        while True:
            try:
                answer += connection.recv(65_536)
            except (SSL.ZeroReturnError, SSL.SysCallError):
                break
    return int(answer.split(b" ")[1]), answer.decode()


async def test_M7_tls_exporter_binds_in_tls_13(world: World) -> None:
    status, text = await asyncio.to_thread(over_tls_13, world)
    assert status == 200, text


async def test_M2_a_label_can_demand_the_binding(world: World) -> None:
    answer = await world.client.enroll(
        b64(make_csr("dev-unbound")[1]), path=f"{BASE}/bound/simpleenroll"
    )
    assert (answer.status, "linking.required" in answer.text) == (403, True)


async def test_M8_tls_13_without_exporter_is_refused_with_advice(world: World) -> None:
    csr = bound_csr("dev-new", base64.b64encode(os.urandom(36)).decode())
    answer = await world.client.enroll(b64(csr))
    assert answer.status == 403
    assert "tls-exporter" in answer.text


# csrattrs.


async def test_I4_B9_csrattrs_list_the_challenge_and_are_met_by_a_client(world: World) -> None:
    answer = await world.client.request("GET", f"{BASE}/bound/csrattrs", auth=world.basic)
    assert answer.status == 200
    assert answer.headers["Content-Type"] == "application/csrattrs"
    demands = parse_csrattrs(base64.b64decode(answer.body))
    assert demands.challenge_password


async def test_I2_csrattrs_without_anything_to_say_are_204(world: World) -> None:
    answer = await world.client.request("GET", f"{BASE}/open/csrattrs")
    assert (answer.status, answer.body) == (204, b"")


async def test_I16_a_csr_made_from_csrattrs_is_accepted(world: World) -> None:
    for label in ("services", "lenient"):
        answer = await world.client.request("GET", f"{BASE}/{label}/csrattrs", auth=world.basic)
        assert answer.status == 200
        demands = parse_csrattrs(base64.b64decode(answer.body))
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"dev-attrs-{label}")])
        key = ec.generate_private_key(ec.SECP256R1())
        csr = csr_builder(demands, subject=subject).sign(key, SHA256())
        made = await world.client.enroll(
            b64(csr.public_bytes(Encoding.DER)), path=f"{BASE}/{label}/simpleenroll"
        )
        assert made.status == 200, made.text


async def test_I1_csrattrs_ask_nobody_who_they_are(world: World) -> None:
    for auth in (None, basic("load", "wrong")):
        answer = await world.client.request("GET", f"{BASE}/services/csrattrs", auth=auth)
        assert answer.status == 200, answer.text


# serverkeygen.


async def test_H2_nobody_gets_a_generated_key_without_authentication(world: World) -> None:
    answer = await world.client.request(
        "POST", f"{BASE}/generated/serverkeygen", b64(make_csr("dev-x")[1])
    )
    assert answer.status == 401


async def test_H1_serverkeygen_is_off_unless_the_label_offers_it(world: World) -> None:
    answer = await world.client.enroll(
        b64(make_csr("dev-x")[1]), path=f"{BASE}/services/serverkeygen"
    )
    assert answer.status == 501
    assert answer.headers["Content-Type"].startswith("text/plain")


async def test_H4_B10_a_generated_key_comes_with_its_certificate(world: World) -> None:
    der = bytearray(make_csr("dev-generated")[1])
    der[-1] ^= 1  # H3: its signature does not count
    answer = await world.client.enroll(b64(bytes(der)), path=f"{BASE}/generated/serverkeygen")
    assert answer.status == 200, answer.text
    assert int(answer.headers["Content-Length"]) == len(answer.body)
    message = email.message_from_bytes(
        f"Content-Type: {answer.headers['Content-Type']}\r\n\r\n".encode() + answer.body
    )
    kinds = [part.get_content_type() for part in message.get_payload()]
    assert kinds == ["application/pkcs8", "application/pkcs7-mime"]
    found = parse_keygen_response(answer.headers["Content-Type"], answer.body)
    key = load_der_private_key(found.key, None)
    certificate = certificate_in(base64.b64encode(found.certificate))
    assert same_key(certificate, key)
    # H14: nothing of the key is anywhere in the data folder (database, streams, logs, spool).
    secret = key.private_bytes(Encoding.DER, PrivateFormat.PKCS8, NoEncryption())[-40:]
    for file in world.stack.layout.folder.rglob("*"):
        if file.is_file() and not file.is_symlink():
            octets = file.read_bytes()
            assert secret not in octets
            assert base64.b64encode(found.key)[:60] not in octets


async def test_H16_asking_again_makes_a_new_key_and_supersedes_what_got_lost(
    world: World,
) -> None:
    csr = b64(make_csr("dev-lost")[1])
    serials = []
    for _ in range(2):
        answer = await world.client.enroll(csr, path=f"{BASE}/generated/serverkeygen")
        assert answer.status == 200, answer.text
        found = parse_keygen_response(answer.headers["Content-Type"], answer.body)
        serials.append(certificate_in(base64.b64encode(found.certificate)).serial_number)
    assert serials[0] != serials[1]
    ledger = (await world.stack.exports())["ledger"]
    revoked = {int(row["serial"], 16): row["revoked"] for row in ledger}
    assert [revoked[serial] for serial in serials] == [True, False]


async def test_H11_an_unknown_key_to_encrypt_with_never_falls_back(world: World) -> None:
    csr = keygen_csr("dev-sealed", b"nobody-knows")
    answer = await world.client.enroll(b64(csr), path=f"{BASE}/generated/serverkeygen")
    assert (answer.status, "keygen.key_unknown" in answer.text) == (400, True)


async def test_H8_a_key_sealed_for_a_shared_secret_opens_with_openssl(world: World) -> None:
    answer = await world.client.enroll(
        b64(keygen_csr("dev-sealed", b"device-kek")), path=f"{BASE}/generated/serverkeygen"
    )
    assert answer.status == 200, answer.text
    found = parse_keygen_response(answer.headers["Content-Type"], answer.body)
    assert found.sealed
    sealed = world.folder / "sealed.der"
    sealed.write_bytes(found.key)
    secret, identifier = bytes(range(32)).hex(), b"device-kek".hex()
    opened = await asyncio.to_thread(
        subprocess.run,
        [
            *("openssl", "cms", "-decrypt", "-inform", "DER", "-in", str(sealed)),
            *("-secretkey", secret, "-secretkeyid", identifier),
        ],
        capture_output=True,
        check=False,
    )
    assert opened.returncode == 0, opened.stderr


def keygen_csr(name: str, identifier: bytes) -> bytes:
    """A CSR that wants its generated key sealed: DecryptKeyIdentifier and SMIMECapabilities."""
    from estcore.pki import der
    from estcore.pki.attributes import attribute

    parsed = make_csr(name)[1]
    info, algorithm, signature = der.children(parsed)
    version, subject, spki, *_ = der.children(info)
    wraps = ["2.16.840.1.101.3.4.1.45", "2.16.840.1.101.3.4.1.42"]  # AES-256 wrap, AES-256-CBC
    capabilities = der.tlv(der.SEQUENCE, *(der.tlv(der.SEQUENCE, der.oid(o)) for o in wraps))
    attributes = der.tlv(
        0xA0,
        attribute("1.2.840.113549.1.9.16.2.37", der.tlv(der.OCTET_STRING, identifier)),
        attribute("1.2.840.113549.1.9.15", capabilities),
    )
    body = der.tlv(der.SEQUENCE, version, subject, spki, attributes)
    return der.tlv(der.SEQUENCE, body, algorithm, signature)


# TLS.


def s_client(world: World, *arguments: str, send: bytes = b"") -> str:
    done = subprocess.run(
        [
            *("openssl", "s_client", "-connect", f"127.0.0.1:{world.stack.layout.ports.est}"),
            *("-CAfile", str(world.stack.layout.root_file), "-servername", "localhost"),
            *arguments,
        ],
        input=send,
        capture_output=True,
        timeout=20,
        check=False,
    )
    return (done.stdout + done.stderr).decode()


async def test_K10_renegotiation_is_refused(world: World) -> None:
    out = await asyncio.to_thread(s_client, world, "-tls1_2", send=b"R\n")
    assert "RENEGOTIATING" in out
    assert "no renegotiation" in out.lower() or "handshake failure" in out.lower(), out[-500:]


async def test_K9_K11_K12_no_session_is_resumed_and_no_ca_is_named(world: World) -> None:
    kept = world.folder / "session.pem"
    for version in ("-tls1_2", "-tls1_3"):
        out = await asyncio.to_thread(s_client, world, version, "-sess_out", str(kept))
        assert "No client certificate CA names sent" in out
        if kept.exists():
            again = await asyncio.to_thread(s_client, world, version, "-sess_in", str(kept))
            assert "Reused, TLS" not in again


# Time.


async def test_G1_G7_E14_C9_a_slow_signer_is_202_with_seconds_and_text_or_503(world: World) -> None:
    signer = world.stack.suite.services["ca-signer"].process
    os.kill(signer.pid, signal.SIGSTOP)
    try:
        pending, busy = await asyncio.gather(
            world.client.enroll(b64(make_csr("dev-slow")[1])),
            world.client.enroll(b64(make_csr("dev-slow")[1]), path=f"{BASE}/hasty/simpleenroll"),
        )
    finally:
        os.kill(signer.pid, signal.SIGCONT)
    assert pending.status == 202
    assert pending.headers["Retry-After"].isdigit()
    assert pending.text.strip()
    assert busy.status == 503
    assert busy.headers["Retry-After"].isdigit()
    # C9: CA certificates are never "later".
    assert (await world.client.request("GET", f"{BASE}/cacerts")).status == 200


# Limits of a rule.


async def test_N4_a_rules_quota_and_lifetime_hold(world: World) -> None:
    auth = basic("twice", world.secrets["twice"])
    for n in range(2):
        answer = await world.client.request(
            "POST", f"{BASE}/simpleenroll", b64(make_csr(f"dev-q{n}")[1]), auth=auth
        )
        assert answer.status == 200, answer.text
        leaf = certificate_in(answer.body)
        life = leaf.not_valid_after_utc - dt.datetime.now(dt.UTC)
        assert dt.timedelta(days=1, hours=23) < life <= dt.timedelta(days=2)
    third = await world.client.request(
        "POST", f"{BASE}/simpleenroll", b64(make_csr("dev-q3")[1]), auth=auth
    )
    assert (third.status, "policy.quota" in third.text) == (403, True)


async def test_N4_a_label_has_a_rate_of_its_own(world: World) -> None:
    path = f"{BASE}/narrow/cacerts"
    answers = [await world.client.request("GET", path) for _ in range(5)]
    limited = [a for a in answers if a.status == 429]
    assert limited, [a.status for a in answers]
    assert int(limited[0].headers["Retry-After"]) >= 1
    assert "rate.limited" in limited[0].text
    assert (await world.client.request("GET", f"{BASE}/cacerts")).status == 200


# Bodies.


async def test_B4_a_lenient_label_takes_pem_and_der(world: World) -> None:
    key, der = make_csr("dev-pem")
    pem = x509.load_der_x509_csr(der).public_bytes(Encoding.PEM)
    for body in (pem, der, pem.replace(b"\n", b"\r\n")):
        answer = await world.client.enroll(body, path=f"{BASE}/lenient/simpleenroll")
        assert answer.status == 200, answer.text
        strict = await world.client.enroll(body, path=f"{BASE}/services/simpleenroll")
        assert strict.status == 400
    assert key is not None


# The first trust.


async def test_C10_bootstrap_pins_the_root_after_comparison(world: World) -> None:
    out = world.folder / "pinned.pem"
    url = f"https://localhost:{world.stack.layout.ports.est}"
    root = world.stack.layout.root_file
    shown = subprocess.run(
        ["openssl", "x509", "-in", str(root), "-noout", "-fingerprint", "-sha256"],
        capture_output=True,
        check=True,
    )
    fingerprint = shown.stdout.decode().strip().partition("=")[2]
    common = ("bootstrap", "--url", url, "--out", str(out), "--fingerprint")
    wrong = fingerprint.replace(fingerprint[0], "0" if fingerprint[0] != "0" else "1", 1)
    with pytest.raises(ConfigurationError, match=r"bootstrap\.fingerprint"):
        await world.stack.suite.run("estctl", *common, wrong)
    assert not out.exists()
    told = await world.stack.suite.run("estctl", *common, fingerprint)
    assert fingerprint in told
    pinned = x509.load_pem_x509_certificate(out.read_bytes())
    assert pinned == x509.load_pem_x509_certificate(root.read_bytes())


async def test_our_own_client_follows_csrattrs_and_gets_generated_keys(world: World) -> None:
    url = f"https://localhost:{world.stack.layout.ports.est}"
    trust = world.stack.layout.root_file
    secret = ("load", world.stack.secret)
    client = ESTClient(url, trust=trust, label="services", secret=secret)
    demands = await client.csrattrs()
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "dev-follows")])
    enrolled = await client.simpleenroll(csr_builder(demands, subject=subject).sign(key, SHA256()))
    assert same_key(enrolled.certificate, key)
    assert (await ESTClient(url, trust=trust, label="open").csrattrs()).empty
    maker = ESTClient(url, trust=trust, label="generated", secret=secret)
    made = await maker.serverkeygen(make_csr("dev-ours")[1])
    generated = load_der_private_key(made.key, None)
    assert same_key(certificate_in(base64.b64encode(made.certificate)), generated)


# What changes while it runs.


async def test_K13_a_new_server_certificate_is_served_without_a_restart(world: World) -> None:
    server = world.stack.layout.ca / "server"
    before = (server / "server.pem").read_bytes()
    reader, writer = await world.client.connect()
    layout = world.stack.layout
    new = world.folder / "new-server"
    await world.stack.suite.run(
        *("ca-signer", "ca", "server-certificate", "--folder", str(layout.ca)),
        *("--passphrase-file", str(layout.secrets / "ca.passphrase")),
        *("--out", str(new), "--host", "localhost"),
    )
    stop = asyncio.Event()

    async def keep_connecting() -> int:
        count = 0
        while not stop.is_set():
            _, connected = await world.client.connect()  # a failed handshake fails the test
            connected.close()
            count += 1
        return count

    connecting = asyncio.ensure_future(keep_connecting())
    # First the certificate, then its key: in between the pair is bad and refused.
    (server / "server.pem").write_bytes((new / "server.pem").read_bytes())
    await asyncio.sleep(0.7)
    assert (await served(world)) == serial(before)
    (server / "server.key").write_bytes((new / "server.key").read_bytes())
    async with asyncio.timeout(5):
        while await served(world) == serial(before):
            await asyncio.sleep(0.1)
    assert await served(world) == serial((new / "server.pem").read_bytes())
    stop.set()
    assert await connecting > 10
    # The connection from before the change still answers.
    writer.write(f"GET {BASE}/cacerts HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
    assert (await reader.readline()).startswith(b"HTTP/1.1 200")
    writer.close()
    assert load_pem_private_key((server / "server.key").read_bytes(), None)


def serial(pem: bytes) -> int:
    return x509.load_pem_x509_certificates(pem)[0].serial_number


async def served(world: World) -> int:
    _, writer = await world.client.connect()
    der = writer.get_extra_info("ssl_object").getpeercert(True)
    writer.close()
    return x509.load_der_x509_certificate(der).serial_number


async def test_a_bad_policy_is_refused_and_a_good_one_taken_by_front_end_and_signer(
    world: World,
) -> None:
    file = world.stack.layout.config / "policy.yaml"
    good = file.read_text()
    file.write_text(good + "\nunknown: true\n")
    await asyncio.sleep(0.7)
    assert (await world.client.enroll(b64(make_csr("dev-still")[1]))).status == 200
    # Another name for the same secret: both have to know it before it is given.
    file.write_text(good.replace('["dev-*"], dns: ["dev-*"]', '["new-*"], dns: ["new-*"]'))
    try:
        async with asyncio.timeout(15):
            while (await world.client.enroll(b64(make_csr("new-name")[1]))).status != 200:
                await asyncio.sleep(0.2)
        refused = await world.client.enroll(b64(make_csr("dev-name")[1]))
        assert (refused.status, "policy.subject" in refused.text) == (403, True)
    finally:
        file.write_text(good)
    async with asyncio.timeout(15):
        while (await world.client.enroll(b64(make_csr("dev-name")[1]))).status != 200:
            await asyncio.sleep(0.2)


async def test_a_changed_profile_is_signed_by_and_told_in_csrattrs(world: World) -> None:
    file = world.stack.layout.config / "profiles.yaml"
    good = file.read_text()
    first = "key_algorithms: [ec-p256, ec-p384, rsa-2048, rsa-3072, ed25519]"
    assert first in good
    file.write_text(good.replace(first, "key_algorithms: [ed25519]", 1))
    try:
        async with asyncio.timeout(15):
            while True:
                answer = await world.client.request("GET", f"{BASE}/services/csrattrs")
                demands = parse_csrattrs(base64.b64decode(answer.body))
                if demands.key_algorithm == "ed25519":
                    break
                await asyncio.sleep(0.2)
        refused = await world.client.enroll(b64(make_csr("dev-p256")[1]))
        assert (refused.status, "profile.key_algorithm" in refused.text) == (400, True)
    finally:
        file.write_text(good)
    async with asyncio.timeout(15):
        while (await world.client.enroll(b64(make_csr("dev-p256")[1]))).status != 200:
            await asyncio.sleep(0.2)
