"""The clients of ``make interop`` notice a server that drops, refuses or forgets to reload."""

from __future__ import annotations

import asyncio
import functools
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.serialization import Encoding

from estclient.est.keys import key_pem
from estsuite_testing.est_server import CA
from estsuite_testing.reload.http import HTTPClient
from estsuite_testing.reload.load import Tally, load, recording_context

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nok\n"
Answer = Callable[[int, asyncio.StreamWriter], Awaitable[bool]]


def authority(folder: Path) -> Path:
    """Write a server's certificate chain and key; return the file of its root."""
    ca = CA()
    bundle = ca.bundle()
    issued = bundle.certificate.public_bytes(Encoding.PEM)
    (folder / "server.pem").write_bytes(issued + ca.issuer.public_bytes(Encoding.PEM))
    (folder / "server.key").write_bytes(key_pem(bundle.key))
    root = folder / "root.pem"
    root.write_bytes(ca.root.public_bytes(Encoding.PEM))
    return root


@asynccontextmanager
async def server(folder: Path, answer: Answer) -> AsyncIterator[int]:
    """A server that goes on with a connection while ``answer`` returns True."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "server.pem", folder / "server.key")

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        number = 0
        try:
            while await reader.readline():
                while (await reader.readline()).strip():
                    pass
                number += 1
                if not await answer(number, writer):
                    break
        except ConnectionError:
            pass
        finally:
            writer.close()

    started = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=context)
    async with started:
        yield started.sockets[0].getsockname()[1]


async def seen(folder: Path, answer: Answer) -> Tally:
    """Return what clients saw of a server after its kept connection had twelve requests."""
    root = authority(folder)
    tally, stop = Tally("server"), asyncio.Event()
    async with server(folder, answer) as port, asyncio.TaskGroup() as group:
        context = functools.partial(recording_context, root, tally, ())
        group.create_task(load(HTTPClient(), port, context, tally, stop))
        async with asyncio.timeout(20):
            while tally.requests + len(tally.failed) < 12:
                await asyncio.sleep(0.05)
        stop.set()
    return tally


async def write(writer: asyncio.StreamWriter, octets: bytes) -> bool:
    writer.write(octets)
    await writer.drain()
    return True


async def test_a_good_server_has_neither_failures_nor_ends(tmp_path: Path) -> None:
    tally = await seen(tmp_path, lambda _, writer: write(writer, OK))
    assert (tally.failed, tally.ended, tally.repeated) == ([], 0, 0)
    assert tally.handshakes >= 2
    assert len(tally.fingerprints) == 1


async def test_an_end_between_requests_is_counted_and_no_failure(tmp_path: Path) -> None:
    async def answer(number: int, writer: asyncio.StreamWriter) -> bool:
        await write(writer, OK)
        return number < 2

    tally = await seen(tmp_path, answer)
    assert tally.failed == []
    assert tally.ended > 0


async def test_an_end_in_place_of_an_answer_is_repeated_once_and_counted(tmp_path: Path) -> None:
    async def answer(number: int, writer: asyncio.StreamWriter) -> bool:
        return number < 2 and await write(writer, OK)

    tally = await seen(tmp_path, answer)
    assert tally.failed == []
    assert tally.repeated > 0


@pytest.mark.parametrize(
    "octets",
    [
        b"",
        b"HTTP/1.1 200 OK\r\nContent-Le",
        b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\no",
        b"HTTP/1.1 502 Bad Gateway\r\nContent-Length: 0\r\n\r\n",
    ],
    ids=["no answer", "half a head", "half a body", "502"],
)
async def test_a_request_without_a_good_answer_is_a_failure(tmp_path: Path, octets: bytes) -> None:
    async def answer(_: int, writer: asyncio.StreamWriter) -> bool:
        await write(writer, octets)
        return False

    tally = await seen(tmp_path, answer)
    assert tally.failed
    assert all("request" in line for line in tally.failed)
    assert tally.requests == 0


async def test_a_refused_connection_and_an_untrusted_certificate_are_failures(
    tmp_path: Path,
) -> None:
    for name in ("served", "trusted"):
        (tmp_path / name).mkdir()
    authority(tmp_path / "served")
    trusted = authority(tmp_path / "trusted")
    async with server(tmp_path / "served", lambda _, writer: write(writer, OK)) as port:
        untrusted = await failures_of(port, trusted)
    refused = await failures_of(port, trusted)
    assert "CERTIFICATE_VERIFY_FAILED" in untrusted[0]
    assert "ConnectionRefusedError" in refused[0]


async def failures_of(port: int, root: Path) -> list[str]:
    tally, stop = Tally("server"), asyncio.Event()
    async with asyncio.TaskGroup() as group:
        context = functools.partial(recording_context, root, tally, ())
        group.create_task(load(HTTPClient(), port, context, tally, stop))
        async with asyncio.timeout(10):
            while not tally.failed:
                await asyncio.sleep(0.02)
        stop.set()
    return tally.failed
