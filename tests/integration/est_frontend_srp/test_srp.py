"""TLS-SRP without a suite: verifiers, and one connection octet by octet against tlslite's client."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import logging
import socket
import ssl
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from est_frontend.rate_limits import Backoff
from est_frontend.tls.channel_binding import check_linking
from est_frontend.tls.connection import ClientConnection
from est_frontend_srp.connection import Attempt, SRPConnection, SRPContext
from est_frontend_srp.listener import SRPListener
from est_frontend_srp.tlslite import GROUPS, HandshakeSettings, TLSConnection, verifier_of
from est_frontend_srp.verifier_file import Verifiers, set_user
from estcore.errors import ConfigurationError, NotAuthorized
from estcore.pki.attributes import read_attributes
from estcore.policy.labels import Label

PASSWORD = "correct horse battery"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "srp.yaml"
    set_user(path, "alice", PASSWORD)
    return path


def test_the_verifier_is_that_of_rfc_5054() -> None:
    """Appendix B, with the 2048-bit group instead of the 1024-bit one it uses."""
    salt = bytes.fromhex("BEB25379D1A8581EB5A727673A2441EE")
    x = int("94B7555AABE9127CC58CCF4993DB6CF84D16C124", 16)
    generator, prime = GROUPS[2048]
    assert verifier_of("alice", "password123", salt, 2048) == pow(generator, x, prime)


def test_the_groups_are_those_of_rfc_5054() -> None:
    assert hex(GROUPS[2048][1]).startswith("0xac6bdb41324a9a9b")
    assert GROUPS[2048][0] == 2
    assert GROUPS[3072][0] == GROUPS[4096][0] == 5


def test_the_file_holds_no_password_and_only_its_owner_reads_it(file: Path) -> None:
    assert PASSWORD not in file.read_text()
    assert file.stat().st_mode & 0o077 == 0


def test_an_unknown_user_has_a_salt_and_verifier_that_stay_and_look_like_any(file: Path) -> None:
    verifiers = Verifiers.load(file)
    known, unknown = verifiers.lookup(b"alice"), verifiers.lookup(b"mallory")
    assert unknown == Verifiers.load(file).lookup(b"mallory")
    assert unknown != verifiers.lookup(b"mallory2")
    assert known[:2] == unknown[:2]
    assert len(known[2]) == len(unknown[2])
    assert 1 < unknown[3] < unknown[0] - 1


def test_a_users_salt_does_not_change_when_the_user_comes_and_goes(file: Path) -> None:
    before = Verifiers.load(file).lookup(b"bob")
    set_user(file, "bob", PASSWORD)
    there = Verifiers.load(file).lookup(b"bob")
    set_user(file, "bob", None)
    assert before[2] == there[2]
    assert before[3] != there[3]
    assert Verifiers.load(file).lookup(b"bob") == before


@given(st.binary(max_size=255))
def test_any_name_has_an_entry(tmp_path_factory: pytest.TempPathFactory, name: bytes) -> None:
    path = tmp_path_factory.getbasetemp() / "empty-verifiers.yaml"
    if not path.exists():
        path.write_text(yaml.safe_dump({"group": 2048, "seed": "ab" * 32}))
        path.chmod(0o600)
    prime, _, salt, verifier = Verifiers.load(path).lookup(name)
    assert len(salt) == 16
    assert 1 < verifier < prime - 1


def test_a_short_password_an_open_file_and_a_verifier_that_is_none_are_refused(file: Path) -> None:
    with pytest.raises(ConfigurationError, match="12 characters"):
        set_user(file, "bob", "short")
    with pytest.raises(ConfigurationError, match="no user bob"):
        set_user(file, "bob", None)
    content = yaml.safe_load(file.read_text())
    content["users"]["alice"]["verifier"] = "01"
    bad = file.with_name("bad.yaml")
    bad.write_text(yaml.safe_dump(content))
    bad.chmod(0o600)
    with pytest.raises(ConfigurationError, match="no verifier of the group"):
        Verifiers.load(bad)
    file.chmod(0o644)
    with pytest.raises(ConfigurationError, match="others may read"):
        Verifiers.load(file)


class Talk:
    """A client of tlslite in a thread, our connection on memory."""

    def __init__(self, file: Path, password: str = PASSWORD, name: str = "alice") -> None:
        self.ours, theirs = socket.socketpair()
        self.ours.settimeout(10)
        self.client = TLSConnection(theirs)
        self.errors: list[str] = []
        self.refused: list[bool] = []
        self.incoming, self.outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.attempt = Attempt(Verifiers.load(file), Backoff(free=5, longest_s=300), "here")
        context = SRPContext(self.attempt, lambda: self.refused.append(True), bytearray())
        self.connection: SRPConnection = context.wrap_bio(self.incoming, self.outgoing)
        self.thread = threading.Thread(target=self._client, args=(name, password))
        self.thread.start()

    def _client(self, name: str, password: str) -> None:
        settings = HandshakeSettings()
        settings.maxVersion = (3, 3)
        settings.versions = [(3, 3)]
        try:
            self.client.handshakeClientSRP(name, password, settings=settings)
        except Exception as exc:  # noqa: BLE001 - returned to the test
            self.errors.append(str(exc))

    def shake(self) -> None:
        while not self.refused:
            try:
                self.connection.do_handshake()
            except ssl.SSLWantReadError:
                self.flush()
                if not self.refused:
                    self.incoming.write(self.ours.recv(65_536))
            else:
                break
        self.flush()
        self.thread.join(10)

    def flush(self) -> None:
        data = self.outgoing.read()
        if data:
            self.ours.sendall(data)

    def close(self) -> None:
        self.ours.close()
        self.client.sock.socket.close()


@pytest.fixture
def talks() -> Any:
    opened: list[Talk] = []

    def begin(*arguments: Any, **more: Any) -> Talk:
        opened.append(Talk(*arguments, **more))
        opened[-1].shake()
        return opened[-1]

    yield begin
    for one in opened:
        one.close()


def test_K15_the_user_is_known_after_the_handshake_and_not_before(file: Path, talks: Any) -> None:
    talk = talks(file)
    connection: ClientConnection = talk.connection
    assert connection.srp_user == "alice"
    assert connection.peer() is None
    assert connection.version() == "TLSv1.2"
    assert connection.cipher() == ("SRP-AES-256-CBC-SHA", "TLSv1.2", 256)
    assert talk.client.encryptThenMAC
    assert talk.client.extendedMasterSecret
    wrong = talks(file, password="another one")
    assert wrong.refused
    assert wrong.connection.srp_user is None


def test_K15_a_wrong_password_and_an_unknown_user_get_the_same_alert(
    file: Path, talks: Any
) -> None:
    wrong, unknown = talks(file, password="wrong"), talks(file, name="mallory")
    assert wrong.errors == unknown.errors == ["bad_record_mac"]


def test_octets_go_both_ways_in_any_pieces(file: Path, talks: Any) -> None:
    talk = talks(file)
    sent = bytes(range(256)) * 200
    talk.client.write(sent)
    got = b""
    while len(got) < len(sent):
        for octet in talk.ours.recv(5000):
            talk.incoming.write(bytes([octet]))
            try:
                got += talk.connection.read(100)
                while talk.connection.pending():
                    got += talk.connection.read(100)
            except ssl.SSLWantReadError:
                continue
    assert got == sent
    talk.connection.write(b"answer")
    talk.connection.unwrap()
    talk.flush()
    assert talk.client.read() == b"answer"


def test_a_peer_that_renegotiates_and_reads_nothing_is_ended(file: Path, talks: Any) -> None:
    """tlslite answers each ClientHello with a warning (RFC 5246 section 7.2.2)."""
    from tlslite.messages import ClientHello

    talk = talks(file)
    hello = ClientHello().create((3, 3), bytearray(32), bytearray(), [0xC020])
    with pytest.raises(ssl.SSLError, match="does not read"):  # noqa: PT012 - any of them
        for _ in range(40_000):
            for _ in talk.client._sendMsg(hello):
                pass
            talk.incoming.write(talk.ours.recv(65_536))
            with contextlib.suppress(ssl.SSLWantReadError):
                talk.connection.read()
    assert talk.outgoing.pending < 70_000


def test_K15_M1_a_csr_is_bound_to_the_session_by_tls_unique(file: Path, talks: Any) -> None:
    """RFC 7030 section 3.5 holds for TLS-SRP as well."""
    talk = talks(file)
    unique = talk.connection.tls_unique()
    assert unique is not None
    assert len(unique) == 12
    label = Label(issuer="issuing", profiles=("x",), authentication=("srp",), linking="require")
    assert check_linking(challenge(unique), talk.connection, label) == "tls-unique"
    with pytest.raises(NotAuthorized) as refused:
        check_linking(challenge(bytes(12)), talk.connection, label)
    assert refused.value.code == "linking.failed"


def challenge(binding: bytes) -> Any:
    text = base64.b64encode(binding)
    value = b"\x13" + bytes([len(text)]) + text
    values = b"\x31" + bytes([len(value)]) + value
    oid = bytes.fromhex("06092a864886f70d010907")
    attribute = b"\x30" + bytes([len(oid + values)]) + oid + values
    return read_attributes(b"\xa0" + bytes([len(attribute)]) + attribute)


@pytest.mark.parametrize(
    "error", [RuntimeError("closed"), TypeError("x"), ValueError(), OSError(), TimeoutError()]
)
async def test_whatever_start_tls_raises_the_door_goes_on(
    file: Path, error: Exception, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """An event loop refuses a connection that was closed before its handshake: RuntimeError."""
    settings = SimpleNamespace(
        srp=SimpleNamespace(verifiers_file=file, max_connections=9),
        listen=SimpleNamespace(
            host="127.0.0.1", port=0, backlog=9, handshake_timeout_s=1, max_connections=9
        ),
    )
    listener = SRPListener(cast("Any", settings))
    loop = asyncio.get_running_loop()

    async def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(loop, "start_tls", fail)
    server = cast("Any", _NoServer())
    listening = await listener.open(server, cast("Any", None))
    stop = asyncio.Event()
    (job,) = listener.jobs
    running = asyncio.ensure_future(job(stop))
    await asyncio.sleep(0)
    reader, writer = await asyncio.open_connection("127.0.0.1", listening.port)
    async with asyncio.timeout(3):
        with contextlib.suppress(ConnectionError):
            assert await reader.read() == b""
    assert not running.done()
    assert not listener._handshakes
    assert all(r.levelno < logging.WARNING for r in caplog.records)
    writer.close()
    listening.close()
    stop.set()
    await running


class _NoServer:
    connections: tuple[object, ...] = ()

    def __call__(self) -> asyncio.Protocol:
        return asyncio.Protocol()
