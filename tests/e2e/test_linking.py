"""The request bound to its TLS session, and what csrattrs demand. Over the wire."""

from __future__ import annotations

import asyncio
import base64
import os
import socket
import ssl

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import (
    Encoding,
)
from cryptography.x509.oid import AttributeOID, NameOID
from OpenSSL import SSL

from estcore.est.csr_demands import csr_builder
from estcore.est.csrattrs import parse_csrattrs
from estsuite_testing.e2e_stack import (
    make_csr,
)
from estsuite_testing.raw_client import BASE, b64
from estsuite_testing.ways import World, basic

pytestmark = [pytest.mark.e2e, pytest.mark.asyncio(loop_scope="module")]


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
    for label in ("bound", "exact"):
        status, text = await over_one_connection(world, label)
        assert status == 200, text
    for wrong in ("A" * 16, "x" * 300, base64.b64encode(os.urandom(12)).decode() + " "):
        status, text = await over_one_connection(world, "exact", wrong)
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
    async with asyncio.timeout(60):
        while not any('"linked":"tls-unique"' in leaf for leaf in await world.stack.leaves()):
            await asyncio.sleep(1)


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


async def test_a_password_typed_into_openssl_is_refused_with_advice(world: World) -> None:
    answer = await world.client.enroll(b64(bound_csr("dev-new", "my secret word")))
    assert answer.status == 403
    assert "leave the challenge password out" in answer.text


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
    for label in ("services", "exact"):
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


async def test_I1_csrattrs_need_no_authentication(world: World) -> None:
    for auth in (None, basic("load", "wrong")):
        answer = await world.client.request("GET", f"{BASE}/services/csrattrs", auth=auth)
        assert answer.status == 200, answer.text
