"""The front end's TLS transport in memory: every cut of the octets, both directions, every end."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from pathlib import Path
from typing import Any

import pytest
from OpenSSL import SSL
from typing_extensions import override

from est_frontend.tls.engine import EngineContext
from estsuite_testing.tls_key_update import CIPHER, KeyUpdates
from estsuite_testing.tls_link import engine
from estsuite_testing.tls_pipe import VERSIONS, Application, Pipe, server_files

REQUEST = b"GET /.well-known/est/cacerts HTTP/1.1\r\nHost: localhost\r\n\r\n"
both_versions = pytest.mark.parametrize("version", VERSIONS)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return server_files(tmp_path_factory.mktemp("tls"))


@pytest.fixture(scope="module")
def context(files: Path) -> EngineContext:
    return engine(files)


async def ended(pipe: Pipe) -> None:
    """The connection is over on both sides, and counted no more."""
    await asyncio.sleep(0)
    assert pipe.tcp.ended is not None
    assert pipe.server.is_closing()
    assert pipe.limits.total == pipe.limits.waiting == 0


# What arrives.


@both_versions
async def test_a_peer_may_send_one_octet_at_a_time(files: Path, version: ssl.TLSVersion) -> None:
    pipe = Pipe(files, version)
    pipe.handshake(size=1)
    pipe.client.write(REQUEST)
    pipe.to_server(pipe.from_client(), size=1)
    assert pipe.application.received == REQUEST


@both_versions
async def test_records_may_be_split_and_joined_at_every_octet(
    files: Path, context: EngineContext, version: ssl.TLSVersion
) -> None:
    pipe = Pipe(files, version, context=context)
    pipe.handshake()
    expected = b""
    for part in (b"first", b"second"):
        pipe.client.write(part)
    length = len(pipe.from_client())
    pipe = Pipe(files, version, context=context)
    pipe.handshake()
    for cut in range(length + 1):
        for part in (b"first", b"second"):
            pipe.client.write(part)
        wire = pipe.from_client()
        assert len(wire) == length
        pipe.to_server(wire[:cut])
        pipe.to_server(wire[cut:])
        expected += b"firstsecond"
        assert pipe.application.received == expected


@both_versions
async def test_a_fresh_connection_takes_its_first_records_cut_anywhere(
    files: Path, context: EngineContext, version: ssl.TLSVersion
) -> None:
    for cut in range(0, 60, 7):
        pipe = Pipe(files, version, context=context)
        pipe.handshake()
        pipe.client.write(b"first")
        pipe.client.write(b"second")
        wire = pipe.from_client()
        pipe.to_server(wire[:cut])
        pipe.to_server(wire[cut:])
        assert pipe.application.received == b"firstsecond"


async def test_a_request_in_the_segment_of_the_finished_is_delivered(files: Path) -> None:
    pipe = Pipe(files, ssl.TLSVersion.TLSv1_3)
    pipe.to_server(pipe.step())
    finished = pipe.step()
    pipe.client.write(REQUEST)
    pipe.to_server(finished + pipe.from_client())
    assert pipe.application.received == REQUEST


class Pausing(Application):
    """Reads nothing until it resumes."""

    @override
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self.transport.pause_reading()


@pytest.mark.parametrize("cut", [0, 1, 10, 1000])
async def test_what_comes_with_the_finished_waits_for_an_application_that_paused(
    files: Path, cut: int
) -> None:
    """Whole or in part, and in order with what comes after it."""
    pausing = Pausing()
    pipe = Pipe(files, ssl.TLSVersion.TLSv1_3, application=pausing)
    pipe.to_server(pipe.step())
    finished = pipe.step()
    pipe.client.write(b"first")
    request = pipe.from_client()
    pipe.to_server(finished + request[:cut])
    assert not pipe.tcp.reading
    await asyncio.sleep(0)
    assert pausing.received == b""
    pausing.transport.resume_reading()
    assert pipe.tcp.reading
    pipe.client.write(b"second")
    pipe.to_server(request[cut:] + pipe.from_client())
    await asyncio.sleep(0)
    assert pausing.received == b"firstsecond"


async def test_an_application_that_pauses_again_at_once_receives_nothing(files: Path) -> None:
    pausing = Pausing()
    pipe = Pipe(files, ssl.TLSVersion.TLSv1_3, application=pausing)
    pipe.to_server(pipe.step())
    finished = pipe.step()
    pipe.client.write(REQUEST)
    pipe.to_server(finished + pipe.from_client())
    pausing.transport.resume_reading()
    pausing.transport.pause_reading()
    await asyncio.sleep(0)
    assert pausing.received == b""
    pausing.transport.resume_reading()
    await asyncio.sleep(0)
    assert pausing.received == REQUEST


@both_versions
async def test_large_data_goes_both_ways(files: Path, version: ssl.TLSVersion) -> None:
    data = bytes(range(256)) * 1000
    pipe = Pipe(files, version)
    pipe.handshake()
    pipe.client.write(data)
    pipe.to_server(pipe.from_client(), size=50_000)
    assert pipe.application.received == data
    pipe.application.transport.writelines([data, memoryview(data), bytearray(b"end")])
    assert pipe.client_reads() == data + data + b"end"


@both_versions
async def test_a_handshake_that_ends_anywhere_leaves_nothing(
    files: Path, context: EngineContext, version: ssl.TLSVersion
) -> None:
    """Half of each message, a whole one, and every place between at a distance."""
    whole = Pipe(files, version, context=context)
    first = whole.step()
    whole.to_server(first)
    second = whole.step()
    for number, flight in enumerate((first, second)):
        for place in {0, 1, 4, 5, 6, *range(7, len(flight), 23), len(flight) - 1}:
            pipe = Pipe(files, version, context=context)
            if number:
                pipe.to_server(pipe.step())
            pipe.to_server(pipe.step()[:place])
            assert pipe.tcp.ended is None
            assert pipe.limits.waiting == 1
            assert not pipe.server.eof_received()
            pipe.tcp.close()  # as a loop does after ``eof_received``
            await ended(pipe)
            assert pipe.application.events == []


# Back-pressure.


async def test_an_application_that_does_not_read_stops_tcp(files: Path) -> None:
    pipe = Pipe(files, ssl.TLSVersion.TLSv1_3)
    pipe.handshake()
    transport = pipe.application.transport
    assert transport.is_reading()
    transport.pause_reading()
    assert not pipe.tcp.is_reading()
    assert not transport.is_reading()
    transport.resume_reading()
    assert pipe.tcp.is_reading()


async def test_a_peer_that_does_not_read_stops_the_application(files: Path) -> None:
    pipe = Pipe(files, ssl.TLSVersion.TLSv1_3)
    pipe.handshake()
    pipe.server.pause_writing()
    assert not pipe.tcp.is_reading()  # what OpenSSL answers by itself must not gather either
    pipe.server.resume_writing()
    assert pipe.tcp.is_reading()
    assert pipe.application.events == ["made", "pause", "resume"]


async def test_reading_goes_on_when_both_the_application_and_the_peer_take_more(
    files: Path,
) -> None:
    pipe = Pipe(files, ssl.TLSVersion.TLSv1_3)
    pipe.handshake()
    pipe.server.pause_writing()
    pipe.application.transport.pause_reading()
    pipe.server.resume_writing()
    assert not pipe.tcp.is_reading()
    pipe.server.pause_writing()
    pipe.application.transport.resume_reading()
    assert not pipe.tcp.is_reading()
    pipe.server.resume_writing()
    assert pipe.tcp.is_reading()


async def test_a_peer_that_asks_for_keys_and_reads_none_fills_no_memory(
    files: Path, tmp_path: Path
) -> None:
    """OpenSSL answers each KeyUpdate with one (RFC 8446 section 4.6.3)."""
    pipe = Pipe(files, ssl.TLSVersion.TLSv1_3, key_log=tmp_path / "keys")
    pipe.handshake()
    assert pipe.client.cipher() == (CIPHER, "TLSv1.3", 256)
    updates = KeyUpdates(tmp_path / "keys")
    sent = 0
    while pipe.tcp.is_reading() and sent < 10_000:
        pipe.to_server(updates.next_record())
        sent += 1
    assert 1000 < sent < 10_000
    assert pipe.tcp.get_write_buffer_size() < 70_000
    pipe.application.transport.write(b"answer")
    assert pipe.client_reads() == b"answer"  # its keys are those of all updates
    assert pipe.tcp.is_reading()
    pipe.application.transport.close()
    pipe.tcp.delivered()
    for _ in range(100):
        pipe.to_server(updates.next_record())
    assert pipe.tcp.sent == b""
    with pytest.raises(SSL.WantReadError):
        pipe.server._tls.bio_read(1)  # nor is it kept after close_notify


async def test_an_application_learns_of_a_full_buffer_from_its_beginning(files: Path) -> None:
    pipe = Pipe(files, ssl.TLSVersion.TLSv1_3)
    pipe.server.pause_writing()
    for _ in range(2):
        pipe.to_server(pipe.step())
    assert pipe.application.events == ["made", "pause"]


async def test_a_connection_that_closes_reads_again(files: Path) -> None:
    """Else the close_notify of the peer would never be seen."""
    pipe = Pipe(files, ssl.TLSVersion.TLSv1_3)
    pipe.handshake()
    pipe.application.transport.pause_reading()
    pipe.application.transport.close()
    assert pipe.tcp.is_reading()
    pipe.application.transport.pause_reading()
    assert pipe.tcp.is_reading()


# The end.


@both_versions
async def test_close_sends_what_was_written_then_waits_for_the_peer(
    files: Path, version: ssl.TLSVersion
) -> None:
    pipe = Pipe(files, version)
    pipe.handshake()
    pipe.application.transport.write(b"answer")
    pipe.application.transport.close()
    pipe.application.transport.write(b"too late")
    pipe.client.write(b"still sending")
    pipe.to_server(pipe.from_client())
    assert pipe.tcp.ended is None
    assert pipe.client_reads() == b"answer"
    with contextlib.suppress(ssl.SSLError):
        pipe.client.unwrap()
    pipe.to_server(pipe.from_client())
    assert pipe.tcp.ended == "closed"
    await ended(pipe)
    assert pipe.application.received == b""
    assert pipe.application.events == ["made", "lost"]


@both_versions
async def test_the_peers_close_notify_ends_both_directions(
    files: Path, version: ssl.TLSVersion
) -> None:
    pipe = Pipe(files, version)
    pipe.handshake()
    pipe.client.write(b"last")
    with pytest.raises(ssl.SSLWantReadError):
        pipe.client.unwrap()
    pipe.to_server(pipe.from_client())
    assert pipe.application.received == b"last"
    pipe.to_client()
    pipe.client.unwrap()  # raises unless our close_notify is there
    assert pipe.tcp.ended == "closed"
    await ended(pipe)
    assert pipe.application.events == ["made", "eof", "lost"]


async def test_a_peer_that_never_ends_is_not_waited_for_long(files: Path) -> None:
    pipe = Pipe(files, ssl.TLSVersion.TLSv1_3, shutdown_timeout_s=0.02)
    pipe.handshake()
    pipe.application.transport.close()
    await asyncio.sleep(0.05)
    assert pipe.tcp.ended == "aborted"
    await ended(pipe)


async def test_a_handshake_has_a_time(files: Path) -> None:
    pipe = Pipe(files, ssl.TLSVersion.TLSv1_3, handshake_timeout_s=0.02)
    pipe.to_server(pipe.step())
    await asyncio.sleep(0.05)
    assert pipe.tcp.ended == "aborted"
    await ended(pipe)
    assert pipe.application.events == []


async def test_the_time_for_the_handshake_is_over_with_it(files: Path) -> None:
    pipe = Pipe(files, ssl.TLSVersion.TLSv1_3, handshake_timeout_s=0.05)
    pipe.handshake()
    assert (pipe.limits.waiting, pipe.limits.total) == (0, 1)
    await asyncio.sleep(0.1)
    assert pipe.tcp.ended is None


async def test_a_connection_ended_before_tcp_is_there_is_aborted(files: Path) -> None:
    pipe = Pipe(files, ssl.TLSVersion.TLSv1_3)
    pipe.server.abort()
    tcp = type(pipe.tcp)(pipe.server)
    pipe.server.connection_made(tcp)
    assert tcp.ended == "aborted"


async def test_an_application_that_closes_at_once_gets_nothing(files: Path) -> None:
    class Closing(Application):
        @override
        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            super().connection_made(transport)
            transport.close()

    pipe = Pipe(files, ssl.TLSVersion.TLSv1_3, application=Closing())
    pipe.to_server(pipe.step())
    finished = pipe.step()
    pipe.client.write(REQUEST)
    pipe.to_server(finished + pipe.from_client())
    assert pipe.application.received == b""


async def test_a_client_learns_by_an_alert_why_its_handshake_failed(files: Path) -> None:
    """RFC 8446 section 6.2: "protocol_version" for a client of TLS 1.1 alone."""
    pipe = Pipe(files, ssl.TLSVersion.TLSv1_3)
    old = SSL.Context(SSL.TLS_CLIENT_METHOD)
    old.set_min_proto_version(SSL.TLS1_1_VERSION)
    old.set_max_proto_version(SSL.TLS1_1_VERSION)
    old.set_cipher_list(b"ALL:@SECLEVEL=0")
    client = SSL.Connection(old, None)
    client.set_connect_state()
    with pytest.raises(SSL.WantReadError):
        client.do_handshake()
    pipe.to_server(client.bio_read(65_536))
    assert pipe.tcp.sent[0] == 21
    assert pipe.tcp.sent[-2:] == b"\x02\x46"
    await ended(pipe)


@both_versions
async def test_a_record_that_is_forged_is_answered_by_an_alert(
    files: Path, version: ssl.TLSVersion
) -> None:
    pipe = Pipe(files, version)
    pipe.handshake()
    pipe.client.write(b"good")
    good = pipe.from_client()
    pipe.to_server(good + b"\x17\x03\x03\x00\x30" + b"x" * 48)
    assert pipe.application.received == b"good"
    pipe.to_client()
    with pytest.raises(ssl.SSLError, match=r"(?i)bad.record.mac"):
        pipe.client.read(1)
    await ended(pipe)


@pytest.mark.parametrize(
    "octets", [b"GET / HTTP/1.1\r\n\r\n", b"\x16\x03\x01\x00\x04x\0\0\0", b"\0" * 9]
)
async def test_what_is_no_handshake_ends_the_connection(files: Path, octets: bytes) -> None:
    pipe = Pipe(files, ssl.TLSVersion.TLSv1_3)
    pipe.to_server(octets)
    pipe.to_server(octets)  # what was under way is ignored
    await ended(pipe)
    assert pipe.application.events == []


async def test_renegotiation_is_refused(files: Path) -> None:
    pipe = Pipe(files, ssl.TLSVersion.TLSv1_2)
    asking = SSL.Context(SSL.TLS_CLIENT_METHOD)
    asking.set_max_proto_version(SSL.TLS1_2_VERSION)
    client: Any = SSL.Connection(asking, None)
    client.set_connect_state()
    for _ in range(2):
        with contextlib.suppress(SSL.WantReadError):
            client.do_handshake()
        pipe.to_server(client.bio_read(65_536))
        client.bio_write(pipe.tcp.sent)
        pipe.tcp.sent = b""
    client.do_handshake()
    client.renegotiate()
    with contextlib.suppress(SSL.Error):
        client.do_handshake()
    pipe.to_server(client.bio_read(65_536))
    client.bio_write(pipe.tcp.sent)
    with pytest.raises(SSL.Error, match="no renegotiation"):
        client.do_handshake()


async def test_handlers_find_the_facts_of_the_connection(files: Path) -> None:
    pipe = Pipe(files, ssl.TLSVersion.TLSv1_2)
    pipe.handshake()
    transport = pipe.application.transport
    facts = transport.get_extra_info("ssl_object")
    assert facts.version() == "TLSv1.2"
    assert facts.tls_unique() == pipe.client.get_channel_binding("tls-unique")
    assert facts.peer() is None
    assert transport.get_extra_info("peername") == ("192.0.2.1", 7)
    assert transport.get_extra_info("no such thing", 5) == 5
    assert transport.get_protocol() is pipe.application
