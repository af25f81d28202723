"""The TLS engine on a real loop: any cut of the octets, large bodies, both versions, bindings."""

from __future__ import annotations

import asyncio
import ssl
from pathlib import Path
from typing import Any

import pytest
import uvloop
from hypothesis import given
from hypothesis import strategies as st
from typing_extensions import override

from ca_signer.ceremony import offline_ca
from est_frontend.tls.engine import EngineContext, _whole_records
from estcore.clock import SystemClock
from estcore.errors import ConfigurationError
from estsuite_testing.tls_link import Link, client_context, engine


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tls")
    passphrase = folder / "passphrase"
    passphrase.write_text("a long enough passphrase")
    passphrase.chmod(0o600)
    clock = SystemClock()
    offline_ca.init(folder / "ca", name="T", passphrase_file=passphrase, clock=clock)
    offline_ca.server_certificate(
        folder / "ca",
        out=folder,
        names=["localhost"],
        passphrase_file=passphrase,
        days=9,
        clock=clock,
    )
    return folder


VERSIONS = [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3]


def test_a_request_behind_the_finished_is_not_swallowed(files: Path) -> None:
    """TLS 1.3: the client's Finished and its first request may come in one segment."""
    link = Link(files, ssl.TLSVersion.TLSv1_3)
    with pytest.raises(ssl.SSLWantReadError):
        link.client.do_handshake()
    link.to_server.write(link.from_client.read())
    with pytest.raises(ssl.SSLWantReadError):
        link.server.do_handshake()
    link.to_client.write(link.from_server.read())
    link.client.do_handshake()
    link.client.write(b"GET / HTTP/1.1\r\n\r\n")
    link.to_server.write(link.from_client.read())
    link.server.do_handshake()
    assert link.server_reads() == b"GET / HTTP/1.1\r\n\r\n"


@pytest.mark.parametrize("version", VERSIONS)
@given(
    cuts=st.lists(st.integers(1, 2000), max_size=12),
    sizes=st.lists(st.integers(1, 40_000), min_size=1, max_size=4),
)
def test_octets_may_be_cut_anywhere(
    files: Path, version: ssl.TLSVersion, cuts: list[int], sizes: list[int]
) -> None:
    link = Link(files, version)
    link.handshake()
    sent = b""
    for number, size in enumerate(sizes):
        part = bytes((number + 1,)) * size
        link.client.write(part)
        sent += part
    wire, received, place = link.from_client.read(), b"", 0
    for cut in [*cuts, len(wire)]:
        link.to_server.write(wire[place : place + cut])
        place += cut
        received += link.server_reads()
    assert received == sent


@given(st.lists(st.binary(max_size=300), max_size=5), st.binary(max_size=4))
def test_whole_records_are_counted(contents: list[bytes], rest: bytes) -> None:
    data = b"".join(b"\x17\x03\x03" + len(c).to_bytes(2, "big") + c for c in contents)
    assert _whole_records(data) == len(contents)
    if rest:
        assert _whole_records(data + rest) is None


def test_tls_unique_and_exporter(files: Path) -> None:
    old = Link(files, ssl.TLSVersion.TLSv1_2)
    old.handshake()
    assert old.server.tls_unique() == old.client.get_channel_binding("tls-unique")
    new = Link(files, ssl.TLSVersion.TLSv1_3)
    new.handshake()
    assert new.server.tls_unique() is None  # guarded by version: 1.3 has a Finished too
    assert len(new.server.tls_exporter()) == 32


def test_K9_sessions_are_not_resumed(files: Path) -> None:
    for version in VERSIONS:
        link = Link(files, version)
        link.handshake()
        link.server.write(b"x")
        link.to_client.write(link.from_server.read())
        assert link.client.read(1) == b"x"
        session = link.client.session
        again = Link(files, version)
        again.client = client_context(files, version).wrap_bio(
            again.to_client, again.from_client, server_hostname="localhost"
        )
        assert session is None or not again.client.session_reused


def test_a_bad_pair_is_refused(files: Path) -> None:
    with pytest.raises(ConfigurationError):
        EngineContext(files / "server.pem", files / "ca" / "root.pem")
    with pytest.raises(ConfigurationError):
        EngineContext(files / "missing.pem", files / "server.key")


class Echo(asyncio.Protocol):
    @override
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport: Any = transport

    @override
    def data_received(self, data: bytes) -> None:
        self.transport.write(data)


@pytest.mark.parametrize("version", VERSIONS)
def test_large_data_both_ways_and_a_clean_close_on_uvloop(
    files: Path, version: ssl.TLSVersion
) -> None:
    data = bytes(range(256)) * 4000

    async def story() -> None:
        loop = asyncio.get_running_loop()
        server = await loop.create_server(
            Echo, "127.0.0.1", 0, ssl=engine(files), ssl_shutdown_timeout=2
        )
        port = server.sockets[0].getsockname()[1]
        reader, writer = await asyncio.open_connection(
            "127.0.0.1", port, ssl=client_context(files, version), server_hostname="localhost"
        )
        writer.write(data)
        assert await reader.readexactly(len(data)) == data
        writer.close()
        await writer.wait_closed()
        server.close()

    uvloop.run(story())
    asyncio.run(story())
