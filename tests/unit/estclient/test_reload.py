"""A server that takes new certificates while it serves; whatever does not fit changes nothing."""

from __future__ import annotations

import asyncio
import contextlib
import datetime as dt
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding

from estclient.errors import BundleInvalid
from estclient.est.keys import key_pem
from estclient.reload import ServerCertificate

NOW = dt.datetime.now(dt.UTC).replace(microsecond=0)


def authority(name: str) -> tuple[ec.EllipticCurvePrivateKey, x509.Certificate]:
    key = ec.generate_private_key(ec.SECP256R1())
    return key, _certificate(name, key, name, key, ca=True)


def _certificate(
    name: str,
    key: ec.EllipticCurvePrivateKey,
    issuer: str,
    issuer_key: ec.EllipticCurvePrivateKey,
    *,
    ca: bool = False,
) -> x509.Certificate:
    subject, above = (
        x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, n)]) for n in (name, issuer)
    )
    builder = x509.CertificateBuilder(
        above, subject, key.public_key(), x509.random_serial_number(), NOW, NOW + dt.timedelta(1)
    ).add_extension(x509.BasicConstraints(ca=ca, path_length=None), critical=True)
    if not ca:
        san = x509.SubjectAlternativeName([x509.DNSName("localhost")])
        builder = builder.add_extension(san, critical=False)
    return builder.sign(issuer_key, SHA256())


ROOT_KEY, ROOT = authority("root")


def pair() -> tuple[bytes, bytes]:
    """A certificate and its key, PEM."""
    key = ec.generate_private_key(ec.SECP256R1())
    certificate = _certificate("localhost", key, "root", ROOT_KEY)
    return certificate.public_bytes(Encoding.PEM), key_pem(key)


def put(folder: Path, certificate: bytes, key: bytes) -> tuple[Path, Path]:
    files = folder / "cert.pem", folder / "key.pem"
    files[0].write_bytes(certificate)
    files[1].write_bytes(key)
    return files


@asynccontextmanager
async def serving(context: ssl.SSLContext) -> AsyncIterator[int]:
    async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while line := await reader.readline():
                writer.write(line)
        except OSError:
            pass
        finally:
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()

    server = await asyncio.start_server(echo, "127.0.0.1", 0, ssl=context)
    async with server:
        yield server.sockets[0].getsockname()[1]


def client_context(pair_files: tuple[Path, Path] | None = None) -> ssl.SSLContext:
    context = ssl.create_default_context(cadata=ROOT.public_bytes(Encoding.PEM).decode())
    if pair_files is not None:
        context.load_cert_chain(*pair_files)
    return context


@asynccontextmanager
async def connected(
    port: int, context: ssl.SSLContext
) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    reader, writer = await asyncio.open_connection(
        "127.0.0.1", port, ssl=context, server_hostname="localhost"
    )
    try:
        writer.write(b"hello\n")
        assert await reader.readline() == b"hello\n"
        yield reader, writer
    finally:
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()


async def presented(port: int, context: ssl.SSLContext | None = None) -> bytes:
    """Connect, exchange a line; return the server's certificate (DER)."""
    async with connected(port, context or client_context()) as (_, writer):
        certificate: bytes = writer.get_extra_info("ssl_object").getpeercert(True)
        return certificate


def der(pem: bytes) -> bytes:
    return x509.load_pem_x509_certificate(pem).public_bytes(Encoding.DER)


async def test_new_handshakes_get_the_new_certificate_and_connections_go_on(tmp_path: Path) -> None:
    first, second = pair(), pair()
    files = put(tmp_path, *first)
    server = ServerCertificate(*files)
    async with serving(server.context) as port:
        assert await presented(port) == der(first[0])
        assert not server.reload()
        async with connected(port, client_context()) as (reader, writer):
            put(tmp_path, *second)
            assert server.reload()
            assert await presented(port) == der(second[0])
            writer.write(b"still here\n")
            assert await reader.readline() == b"still here\n"


@pytest.mark.parametrize("broken", ["key", "certificate", "empty", "missing", "text"])
async def test_files_that_do_not_fit_change_nothing_and_good_ones_heal_it(
    tmp_path: Path, broken: str
) -> None:
    first, second, third = pair(), pair(), pair()
    files = put(tmp_path, *first)
    server = ServerCertificate(*files)
    async with serving(server.context) as port:
        match broken:
            case "key":
                files[1].write_bytes(second[1])
            case "certificate":
                files[0].write_bytes(second[0])
            case "empty":
                files[0].write_bytes(b"")
            case "missing":
                files[1].unlink()
            case _:
                files[1].write_bytes(
                    b"-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n"
                )
        for _ in range(2):
            with pytest.raises(BundleInvalid):
                server.reload()
        assert await presented(port) == der(first[0])
        put(tmp_path, *third)
        assert server.reload()
        assert await presented(port) == der(third[0])


async def test_a_link_that_moves_is_a_change(tmp_path: Path) -> None:
    first, second = pair(), pair()
    for name, each in (("1", first), ("2", second)):
        (tmp_path / name).mkdir()
        put(tmp_path / name, *each)
    current = tmp_path / "current"
    current.symlink_to("1")
    server = ServerCertificate(current / "cert.pem", current / "key.pem")
    task = asyncio.ensure_future(server.watch(0.02))
    async with serving(server.context) as port:
        fresh = tmp_path / "fresh"
        fresh.symlink_to("2")
        fresh.replace(current)
        async with asyncio.timeout(5):
            while await presented(port) != der(second[0]):
                await asyncio.sleep(0.02)
        task.cancel()


async def test_clients_need_a_certificate_of_the_trust_file_also_after_it_changed(
    tmp_path: Path,
) -> None:
    other_key, other = authority("other")
    own = ec.generate_private_key(ec.SECP256R1())
    client = _certificate("client", own, "other", other_key)
    (tmp_path / "client").mkdir()
    client_files = put(tmp_path / "client", client.public_bytes(Encoding.PEM), key_pem(own))
    trust = tmp_path / "trust.pem"
    trust.write_bytes(ROOT.public_bytes(Encoding.PEM))
    server = ServerCertificate(*put(tmp_path, *pair()), trust=trust)
    async with serving(server.context) as port:
        for context in (client_context(), client_context(client_files)):
            with pytest.raises((OSError, AssertionError)):
                await presented(port, context)
        trust.write_bytes(other.public_bytes(Encoding.PEM))
        assert server.reload()
        await presented(port, client_context(client_files))
        with pytest.raises((OSError, AssertionError)):
            await presented(port)


def test_a_server_without_a_usable_certificate_does_not_start(tmp_path: Path) -> None:
    certificate, _ = pair()
    with pytest.raises(BundleInvalid):
        ServerCertificate(*put(tmp_path, certificate, pair()[1]))
    with pytest.raises(BundleInvalid):
        ServerCertificate(tmp_path / "none", tmp_path / "none")


def test_a_thread_reloads_and_says_once_what_does_not_fit(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    files = put(tmp_path, *pair())
    server = ServerCertificate(*files)
    looks = 0
    look = server._look

    def counted() -> None:
        nonlocal looks
        look()
        looks += 1

    server._look = counted  # type: ignore[method-assign]
    files[1].write_bytes(pair()[1])
    server.start(0.01)
    while looks < 5:
        pass
    server.stop()
    assert sum("not reloaded" in record.message for record in caplog.records) == 1
