"""The listeners over plain HTTP: whatever comes in, nothing of it is answered or logged."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any, cast

import pytest

from est_frontend.auth.client_certificates import PeerValidator
from est_frontend.revocation.http_server import CRLServer
from est_frontend.revocation.ocsp_relay import OCSPRelay
from est_frontend.settings import CRLListenSettings
from est_frontend.signer_state.cache import SignerState
from estcore.clock import SystemClock
from estcore.runtime.admin import AdminServer
from estcore.runtime.settings import AdminSettings

SECRET = b"c2VjcmV0LW9jdGV0cw"
HEADS = [
    b"GET /crl/" + SECRET + b".crl HTTP/1.1\r\nIf-None-Match: " + SECRET + b"\r\n\r\n",
    b"POST /ocsp/" + SECRET + b" HTTP/1.1\r\nContent-Length: 5\r\n"
    b"Content-Type: application/ocsp-request\r\n\r\n" + SECRET,
    b"GET /ocsp/issuing/" + SECRET + b" HTTP/1.1\r\nAuthorization : Basic " + SECRET + b"\r\n\r\n",
    b"GET /metrics HTTP/1.1\r\nAccept: application/openmetrics-text;version=1.0.0\r\n\r\n",
    b"GET /metrics HTTP/1.1\r\nAuthorization : Basic " + SECRET + b"\r\n\r\n",
]


class NoBus:
    connected = False


@pytest.fixture
async def ports(tmp_path: Path) -> AsyncIterator[list[int]]:
    clock = SystemClock()
    state = SignerState(tmp_path, PeerValidator(clock).set_anchors, clock)
    state.load()
    crls = CRLServer(
        CRLListenSettings(host="127.0.0.1", port=0),
        state,
        clock,
        ocsp=OCSPRelay(cast("Any", NoBus()), state, clock, CRLListenSettings()),
    )
    admin = AdminServer(AdminSettings(port=0), {"never": lambda: False})
    try:
        yield [await crls.start(), await admin.start()]
    finally:
        await crls.stop()
        await admin.stop()


def damaged(head: bytes, octet: int) -> list[bytes]:
    places = range(octet % 23, len(head), 23)
    return [head[:place] + bytes([octet]) + head[place + 1 :] for place in places]


async def test_any_octet_anywhere_is_answered_or_not_and_never_logged(
    ports: list[int], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)

    async def send(port: int, octets: bytes) -> bytes:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(octets)
        writer.write_eof()
        try:
            async with asyncio.timeout(5):
                return await reader.read()
        except ConnectionError:
            return b""
        finally:
            writer.close()

    make: Callable[[bytes, int], list[bytes]] = damaged
    for octet in range(256):
        sent = [(p, o) for head in HEADS for o in make(head, octet) for p in ports]
        for answer in await asyncio.gather(*(send(port, octets) for port, octets in sent)):
            assert SECRET not in answer
            assert not answer or answer.startswith(b"HTTP/1.1 ")
            assert not answer.startswith(b"HTTP/1.1 500")
    assert [r for r in caplog.records if r.levelno >= logging.WARNING] == []
    assert not any(SECRET.decode() in r.getMessage() for r in caplog.records)
