"""Keys made by the server, and the first trust, over the wire."""

from __future__ import annotations

import asyncio
import base64
import email
import subprocess

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_der_private_key,
)
from cryptography.x509.oid import NameOID

from estclient.est.client import ESTClient
from estcore.errors import ConfigurationError
from estcore.est.csr_demands import csr_builder
from estcore.est.keygen_response import parse_keygen_response
from estsuite_testing.e2e_stack import (
    certificate_in,
    make_csr,
    same_key,
)
from estsuite_testing.raw_client import BASE, b64
from estsuite_testing.ways import World

pytestmark = [pytest.mark.e2e, pytest.mark.asyncio(loop_scope="module")]


# serverkeygen.


async def test_H2_no_generated_key_without_authentication(world: World) -> None:
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
    kinds = [part.get_content_type() for part in message.walk() if not part.is_multipart()]
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
    ledger = await world.stack.ledger()
    revoked = {int(row["serial"], 16): row["revoked"] for row in ledger}
    assert [revoked[serial] for serial in serials] == [True, False]


async def test_H11_an_unknown_key_to_encrypt_with_never_falls_back(world: World) -> None:
    csr = keygen_csr("dev-sealed", b"unknown-kek")
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
    common = ("trust", "--url", url, "--out", str(out), "--fingerprint")
    wrong = fingerprint.replace(fingerprint[0], "0" if fingerprint[0] != "0" else "1", 1)
    with pytest.raises(ConfigurationError, match=r"bootstrap\.fingerprint"):
        await world.stack.suite.run("estctl", *common, wrong)
    assert not out.exists()
    output = await world.stack.suite.run("estctl", *common, fingerprint)
    assert fingerprint in output
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
