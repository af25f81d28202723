"""What any EST server must do, seen from outside: by default ours, else the one that is named.

Each test carries the numbers of the items it shows; docs/conformance.md lists them all.
"""

from __future__ import annotations

import asyncio
import base64
import re
import socket
import ssl
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa, x25519
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, pkcs7
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from e2e_stack import certificate_in, same_key, write_key
from est_target import Target
from raw_client import Answer, b64

from estcore.est.csr_demands import csr_builder
from estcore.est.csrattrs import parse_csrattrs
from estcore.est.keygen_response import parse_keygen_response

pytestmark = [pytest.mark.e2e, pytest.mark.asyncio(loop_scope="session")]

_OK, _NO_CONTENT = 200, 204
_HEAD_LIMIT = 1000
Key = ec.EllipticCurvePrivateKey


def name_of(target: Target) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, target.common_name)])


def request(target: Target, key: Key | None = None) -> tuple[Key, bytes]:
    key = key or ec.generate_private_key(ec.SECP256R1())
    built = x509.CertificateSigningRequestBuilder(name_of(target)).sign(key, SHA256())
    return key, built.public_bytes(Encoding.DER)


async def enroll(target: Target, body: bytes, **more: str) -> Answer:
    client = target.client()
    return await client.request(
        "POST", target.path("simpleenroll"), body, auth=client.basic, **more
    )


async def enrolled(target: Target, folder: Path) -> tuple[ssl.SSLContext, x509.Certificate]:
    key, csr = request(target)
    answer = await enroll(target, b64(csr))
    assert answer.status == _OK, answer.text
    certificate = certificate_in(answer.body)
    pem = folder / "client.pem"
    pem.write_bytes(certificate.public_bytes(Encoding.PEM))
    context = target.context()
    context.load_cert_chain(pem, write_key(folder / "client.key", key))
    return context, certificate


# Paths and HTTP.


async def test_A1_the_mandatory_operations_are_there(target: Target) -> None:
    client = target.client()
    assert (await client.request("GET", target.path("cacerts"))).status == _OK
    for operation in ("simpleenroll", "simplereenroll"):
        answer = await client.request("POST", target.path(operation), b"x")
        assert answer.status not in {404, 501}, operation


async def test_A2_a_label_is_one_more_segment_and_may_be_left_out(target: Target) -> None:
    client = target.client()
    assert (await client.request("GET", "/.well-known/est/cacerts")).status == _OK
    if target.label:
        path = f"/.well-known/est/{target.label}/cacerts"
        assert (await client.request("GET", path)).status == _OK


async def test_A4_A5_A21_unknown_paths_are_refused_without_redirect(target: Target) -> None:
    client = target.client()
    for path in (
        "/.well-known/est/no-such-label/cacerts",
        "/.well-known/est/../est/cacerts",
        "/.well-known/est/%2e%2e/cacerts",
        "/.well-known/est//cacerts",
        "/.well-known/est/" + "x" * 300 + "/cacerts",
    ):
        answer = await client.request("GET", path)
        assert 400 <= answer.status < 500, path
        assert "Location" not in answer.headers
    slashed = await client.request("POST", target.path("simpleenroll/"), b"x")
    assert not 300 <= slashed.status < 400


async def test_A6_A7_methods_are_kept(target: Target) -> None:
    client = target.client()
    for method, operation in (("POST", "cacerts"), ("GET", "simpleenroll"), ("PUT", "cacerts")):
        answer = await client.request(method, target.path(operation))
        assert (answer.status, "Allow" in answer.headers) == (405, True), (method, operation)
    head = await client.request("HEAD", target.path("cacerts"))
    assert (head.status, head.body) == (_OK, b"")


async def test_A9_A11_A13_connections_persist_and_heads_are_small(target: Target) -> None:
    client = target.client()
    reader, writer = await client.connect()
    for _ in range(2):
        writer.write(
            f"GET {target.path('cacerts')} HTTP/1.1\r\nHost: {target.host}\r\n\r\n".encode()
        )
        head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 10)
        assert len(head) < _HEAD_LIMIT
        assert head.count(b"\r\n") <= 16
        assert b"\r\ntransfer-encoding" not in head.lower()
        length = re.search(rb"Content-Length: (\d+)\r\n", head)
        assert length is not None
        await reader.readexactly(int(length[1]))
    writer.close()


async def test_A12_A14_header_names_are_in_the_usual_case(target: Target) -> None:
    answer = await target.client().request("GET", target.path("cacerts"))
    assert b"\r\nContent-Type: " in answer.head
    assert b"\r\nContent-Length: " in answer.head


async def test_A15_A10_an_extra_line_end_is_ignored_and_close_is_honoured(target: Target) -> None:
    head = f"GET {target.path('cacerts')} HTTP/1.1\r\nHost: {target.host}\r\n"
    octets = await target.client().raw(
        f"{head}\r\n\r\n\r\n{head}Connection: close\r\n\r\n".encode()
    )
    assert octets.count(b"HTTP/1.1 200 ") == 2


async def test_A16_chunked_requests_are_read(target: Target) -> None:
    client = target.client()
    _, csr = request(target)
    body = b64(csr)
    half = len(body) // 2
    chunks = b"".join(
        b"%x\r\n%s\r\n" % (len(part), part) for part in (body[:half], body[half:], b"")
    )
    answer = Answer(
        await client.raw(
            f"POST {target.path('simpleenroll')} HTTP/1.1\r\nHost: {target.host}\r\n"
            f"Authorization: {client.basic}\r\nContent-Type: application/pkcs10\r\n"
            "Transfer-Encoding: chunked\r\nConnection: close\r\n\r\n".encode()
            + chunks
        )
    )
    assert answer.status == _OK, answer.text


async def test_A17_expect_continue_is_answered(target: Target) -> None:
    client = target.client()
    _, csr = request(target)
    body = b64(csr)
    reader, writer = await client.connect()
    writer.write(
        f"POST {target.path('simpleenroll')} HTTP/1.1\r\nHost: {target.host}\r\n"
        f"Authorization: {client.basic}\r\nContent-Type: application/pkcs10\r\n"
        f"Content-Length: {len(body)}\r\nExpect: 100-continue\r\nConnection: close\r\n\r\n".encode()
    )
    first = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 10)
    assert first.startswith(b"HTTP/1.1 100 ")
    writer.write(body)
    answer = Answer(await asyncio.wait_for(reader.read(), 15))
    writer.close()
    assert answer.status == _OK, answer.text


async def test_A18_a_large_body_is_refused(target: Target) -> None:
    client = target.client()
    reader, writer = await client.connect()
    writer.write(
        f"POST {target.path('simpleenroll')} HTTP/1.1\r\nHost: {target.host}\r\n"
        f"Authorization: {client.basic}\r\nContent-Type: application/pkcs10\r\n"
        f"Content-Length: {10_000_000}\r\nConnection: close\r\n\r\n".encode()
    )
    line = await asyncio.wait_for(reader.readline(), 15)
    writer.close()
    assert b" 413 " in line


async def test_A19_http_1_0_is_answered_and_a_missing_host_is_not(target: Target) -> None:
    client = target.client()
    old = await client.raw(f"GET {target.path('cacerts')} HTTP/1.0\r\n\r\n".encode())
    assert b" 200 " in old.split(b"\r\n", 1)[0]
    bad = await client.raw(
        f"GET {target.path('cacerts')} HTTP/1.1\r\nConnection: close\r\n\r\n".encode()
    )
    assert b" 400 " in bad.split(b"\r\n", 1)[0]


async def test_A22_A23_A24_no_cookies_no_compression_no_negotiation(target: Target) -> None:
    client = target.client()
    path = target.path("cacerts")
    plain = await client.request("GET", path)
    packed = await client.request("GET", path, Accept_Encoding="gzip, br")
    picky = await client.request("GET", path, Accept="*/*")
    for answer in (plain, packed, picky):
        assert answer.status == _OK
        assert "Set-Cookie" not in answer.headers
        assert "Content-Encoding" not in answer.headers
        assert answer.body == plain.body


# Encoding.


async def test_B1_B2_any_transfer_encoding_and_white_space(target: Target) -> None:
    _, csr = request(target)
    text = b64(csr)
    lines = [text[i : i + 64] for i in range(0, len(text), 64)]
    bodies = (text, b"\n".join(lines), b"\r\n".join(lines) + b"\r\n", b" \t".join(lines))
    for body in bodies:
        assert (await enroll(target, body)).status == _OK
    for value in ("base64", "binary", "nonsense"):
        answer = await enroll(target, text, Content_Transfer_Encoding=value)
        assert answer.status == _OK, value


async def test_B3_B13_B15_L16_what_is_not_a_csr_is_refused_in_plain_text(target: Target) -> None:
    _, csr = request(target)
    for body in (
        b"not base64!!",
        b64(csr)[:-3],
        b64(csr[:-10]),
        b64(csr + b"junk"),
        b64(b"\x30\x80" * 2000),
        b64(bytes(200)),
        base64.urlsafe_b64encode(bytes([251, 255]) * 60),
    ):
        answer = await enroll(target, body)
        assert answer.status == 400, (body[:20], answer.text)
        assert answer.headers["Content-Type"].startswith("text/plain")
        assert len(answer.text.strip().splitlines()) == 1
        assert "<" not in answer.text


async def test_B5_the_media_type_is_wanted_parameters_do_not_count(target: Target) -> None:
    client = target.client()
    _, csr = request(target)
    for kind, statuses in (
        ("application/x-www-form-urlencoded", {400, 415}),
        ("Application/PKCS10; charset=x", {_OK}),
    ):
        answer = await client.request(
            "POST",
            target.path("simpleenroll"),
            b64(csr),
            auth=client.basic,
            Content_Type=kind,
        )
        assert answer.status in statuses, kind


async def test_B7_B11_B12_E3_E4_the_answer_is_one_certificate_in_exact_form(
    target: Target,
) -> None:
    key, csr = request(target)
    answer = await enroll(target, b64(csr))
    assert answer.status == _OK, answer.text
    assert answer.headers["Content-Type"] == "application/pkcs7-mime; smime-type=certs-only"
    assert answer.headers["Content-Transfer-Encoding"] == "base64"
    assert answer.body.endswith(b"\n")
    assert not answer.body.endswith(b"\n\n")
    assert same_key(certificate_in(answer.body), key)


# /cacerts.


async def test_B8_C1_C2_C3_C6_cacerts_is_the_chain_up_to_the_root(target: Target) -> None:
    client = target.client()
    answer = await client.request("GET", target.path("cacerts"))
    assert answer.headers["Content-Type"] == "application/pkcs7-mime"
    found = pkcs7.load_der_pkcs7_certificates(base64.b64decode(answer.body))
    assert len({c.fingerprint(SHA256()) for c in found}) == len(found)
    roots = [c for c in found if c.subject == c.issuer]
    assert roots
    for certificate in found:
        constraints = certificate.extensions.get_extension_for_class(x509.BasicConstraints)
        assert constraints.value.ca
    leaf = certificate_in((await enroll(target, b64(request(target)[1]))).body)
    place, steps = leaf, 0
    while place not in roots:
        issuers = [c for c in found if c.subject == place.issuer]
        assert issuers, "no way from the certificate to the root"
        place.verify_directly_issued_by(issuers[0])
        place, steps = issuers[0], steps + 1
        assert steps < 10


async def test_C4_cacerts_asks_nobody_who_they_are(target: Target) -> None:
    client = target.client()
    wrong = "Basic " + base64.b64encode(b"bad:bad").decode()
    assert (await client.request("GET", target.path("cacerts"), auth=wrong)).status == _OK


# Enrolling.


async def test_E1_L1_L2_who_says_nothing_is_challenged(target: Target) -> None:
    _, csr = request(target)
    answer = await target.client().request("POST", target.path("simpleenroll"), b64(csr))
    assert answer.status == 401
    challenges = [x for x in answer.lines if x.lower().startswith("www-authenticate:")]
    assert challenges[0].startswith("WWW-Authenticate: Basic ")


async def test_E2_M15_possession_of_the_key_is_checked(target: Target) -> None:
    key, csr = request(target)
    broken = bytearray(csr)
    broken[-3] ^= 1
    assert (await enroll(target, b64(bytes(broken)))).status == 400
    # A key that cannot sign proves nothing.
    agreement = x25519.X25519PrivateKey.generate().public_key()
    spki = agreement.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    own = key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    assert (await enroll(target, b64(csr.replace(own, spki)))).status == 400


async def test_E5_weak_requests_are_refused(target: Target) -> None:
    weak = rsa.generate_private_key(65537, 1024)  # noqa: S505 - to be refused
    csr = x509.CertificateSigningRequestBuilder(name_of(target)).sign(weak, SHA256())
    answer = await enroll(target, b64(csr.public_bytes(Encoding.DER)))
    assert 400 <= answer.status < 500


async def test_E6_rights_of_a_ca_are_never_granted(target: Target) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    builder = (
        x509.CertificateSigningRequestBuilder(name_of(target))
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .add_extension(
            x509.ExtendedKeyUsage(
                [
                    x509.ObjectIdentifier("1.3.6.1.5.5.7.3.28"),
                    ExtendedKeyUsageOID.OCSP_SIGNING,
                    ExtendedKeyUsageOID.ANY_EXTENDED_KEY_USAGE,
                ]
            ),
            critical=False,
        )
        .add_extension(
            x509.KeyUsage(True, False, False, False, False, True, True, False, False),
            critical=True,
        )
    )
    answer = await enroll(target, b64(builder.sign(key, SHA256()).public_bytes(Encoding.DER)))
    if answer.status != _OK:
        assert 400 <= answer.status < 500
        return
    leaf = certificate_in(answer.body).extensions
    assert not leaf.get_extension_for_class(x509.BasicConstraints).value.ca
    assert not leaf.get_extension_for_class(x509.KeyUsage).value.key_cert_sign
    granted = set(leaf.get_extension_for_class(x509.ExtendedKeyUsage).value)
    assert not granted & {
        x509.ObjectIdentifier("1.3.6.1.5.5.7.3.28"),
        ExtendedKeyUsageOID.OCSP_SIGNING,
        ExtendedKeyUsageOID.ANY_EXTENDED_KEY_USAGE,
    }


async def test_E10_serial_numbers_are_long_and_positive(target: Target) -> None:
    serials = set()
    for _ in range(3):
        leaf = certificate_in((await enroll(target, b64(request(target)[1]))).body)
        serials.add(leaf.serial_number)
    assert len(serials) == 3
    assert all(0 < serial < 1 << 159 for serial in serials)
    assert min(serials).bit_length() >= 64


async def test_F1_F3_F7_F13_renewal_keeps_the_identity(target: Target, tmp_path: Path) -> None:
    context, current = await enrolled(target, tmp_path)
    client = target.client()
    path = target.path("simplereenroll")
    key, csr = request(target)
    answer = await client.request("POST", path, b64(csr), context=context)
    assert answer.status == _OK, answer.text
    assert answer.headers["Content-Type"] == "application/pkcs7-mime; smime-type=certs-only"
    renewed = certificate_in(answer.body)
    assert (renewed.subject, same_key(renewed, key)) == (current.subject, True)
    other = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, target.common_name + "-x")])
    changed = x509.CertificateSigningRequestBuilder(other).sign(key, SHA256())
    refused = await client.request(
        "POST", path, b64(changed.public_bytes(Encoding.DER)), context=context
    )
    assert 400 <= refused.status < 500


async def test_F4_renewal_without_a_certificate_is_refused(target: Target) -> None:
    client = target.client()
    answer = await client.request(
        "POST", target.path("simplereenroll"), b64(request(target)[1]), auth=client.basic
    )
    assert answer.status in {401, 403}


async def test_M1_a_challenge_of_another_session_is_refused(target: Target) -> None:
    from cryptography.x509.oid import AttributeOID

    key = ec.generate_private_key(ec.SECP256R1())
    csr = (
        x509.CertificateSigningRequestBuilder(name_of(target))
        .add_attribute(AttributeOID.CHALLENGE_PASSWORD, base64.b64encode(bytes(12)))
        .sign(key, SHA256())
    )
    answer = await enroll(target, b64(csr.public_bytes(Encoding.DER)))
    assert 400 <= answer.status < 500, "a wrong tls-unique value must not be ignored"


async def test_I2_I3_I6_I16_csrattrs_can_be_read_and_followed(target: Target) -> None:
    client = target.client()
    answer = await client.request("GET", target.path("csrattrs"), auth=client.basic)
    assert answer.status in {_OK, _NO_CONTENT, 404, 501}
    if answer.status != _OK:
        assert answer.status != _NO_CONTENT or not answer.body
        return
    assert answer.headers["Content-Type"] == "application/csrattrs"
    demands = parse_csrattrs(base64.b64decode(answer.body))
    if demands.key_algorithm not in {None, "ec-p256"} or demands.challenge_password:
        return
    key = ec.generate_private_key(ec.SECP256R1())
    csr = csr_builder(demands, subject=name_of(target)).sign(key, SHA256())
    assert (await enroll(target, b64(csr.public_bytes(Encoding.DER)))).status == _OK


async def test_H4_H5_H6_H7_a_generated_key_fits_its_certificate(target: Target) -> None:
    client = target.client()
    answer = await client.request(
        "POST", target.path("serverkeygen"), b64(request(target)[1]), auth=client.basic
    )
    if not target.serverkeygen:
        assert answer.status != _OK or "multipart" in answer.headers["Content-Type"]
        return
    assert answer.status == _OK, answer.text
    assert int(answer.headers["Content-Length"]) == len(answer.body)
    found = parse_keygen_response(answer.headers["Content-Type"], answer.body)
    from cryptography.hazmat.primitives.serialization import (
        load_der_private_key,
    )

    key = load_der_private_key(found.key, None)
    assert isinstance(
        key, (ec.EllipticCurvePrivateKey, rsa.RSAPrivateKey, ed25519.Ed25519PrivateKey)
    )
    assert same_key(certificate_in(base64.b64encode(found.certificate)), key)


# TLS.


async def test_K1_K2_K6_versions_and_clients_without_certificate(target: Target) -> None:
    client = target.client()
    for version in (ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3):
        context = target.context()
        context.minimum_version = context.maximum_version = version
        answer = await client.request("GET", target.path("cacerts"), context=context)
        assert answer.status == _OK, version
    old = target.context()
    old.set_ciphers("DEFAULT:@SECLEVEL=0")
    with pytest.warns(DeprecationWarning, match="TLSv1_1"):
        old.minimum_version = old.maximum_version = ssl.TLSVersion.TLSv1_1
    with pytest.raises((ssl.SSLError, ConnectionError)):
        await client.request("GET", target.path("cacerts"), context=old)


async def test_K5_L8_certificates_identify_in_both_versions(target: Target, tmp_path: Path) -> None:
    context, _ = await enrolled(target, tmp_path)
    client = target.client()
    for version in (ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3):
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.maximum_version = version
        answer = await client.request(
            "POST", target.path("simplereenroll"), b64(request(target)[1]), context=context
        )
        assert answer.status == _OK, (version, answer.text)


async def test_A8_there_is_no_plain_http(target: Target) -> None:
    def plain() -> bytes:
        with socket.create_connection((target.host, target.port), 5) as connection:
            connection.sendall(b"GET /.well-known/est/cacerts HTTP/1.1\r\nHost: x\r\n\r\n")
            try:
                return connection.recv(200)
            except ConnectionError:
                return b""

    assert not (await asyncio.to_thread(plain)).startswith(b"HTTP/1.1 200")
