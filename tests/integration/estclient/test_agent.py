"""The renewal agent: a rotation from the event to the proof, interrupted wherever it may be."""

from __future__ import annotations

import asyncio
import contextlib
import datetime as dt
import json
import ssl
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from cryptography.hazmat.primitives.asymmetric import ec
from joserfc import jws
from joserfc.jwk import ECKey

from estclient.agent.agent import Agent, run_agent
from estclient.agent.bundle import Bundle
from estclient.agent.credential_store import CredentialStore
from estclient.agent.settings import AgentSettings
from estclient.errors import NotInUse, ServerAway
from estcore.clock import SystemClock
from estcore.errors import ConfigurationError
from estcore.ids import uuid7
from estcore.messages.envelope import encode
from estcore.messages.events import CertificateRef, RotationEvent
from estcore.messages.topics import owned_by
from estcore.runtime.bus import Bus, Outgoing
from estcore.runtime.topology import declare
from estsuite_testing.est_server import ESTServer
from estsuite_testing.platform import Platform

NOW = SystemClock().now


def settings(server: ESTServer, **changes: Any) -> AgentSettings:
    trust = server.folder / "trust.pem"
    trust.write_bytes(server.ca.pem)
    values: dict[str, Any] = {
        "server": {"urls": [server.url], "trust_file": trust, "label": "web", "timeout_s": 5},
        "store": server.folder / "store",
        "retry_s": 0.2,
        "ack_timeout_s": 3,
    }
    return AgentSettings.model_validate(values | changes)


def event(bundle: Bundle, step: str = "due", **changes: Any) -> RotationEvent:
    ref = CertificateRef(
        serial=bundle.serial,
        not_before=bundle.certificate.not_valid_before_utc,
        not_after=bundle.certificate.not_valid_after_utc,
        spki_sha256="00",
        fingerprint_sha256=bundle.fingerprint,
    )
    values: dict[str, Any] = {
        "id": uuid7(),
        "source": "renewal/test",
        "time": NOW(),
        "correlation_id": "r-1",
        "step": step,
        "tenant": "demo",
        "service": "web",
        "slot_id": "s-1",
        "rotation_id": "r-1",
        "generation": 2,
        "profile": "tls",
        "priority": "normal",
        "label": "web",
        "mode": "agent",
        "issuer_id": "clinic",
        "fence": 1,
        "old" if step == "due" else "new": ref,
    }
    return RotationEvent(**(values | changes))


class StepRecorder:
    """What the agent said, in order."""

    def __init__(self) -> None:
        self.steps: list[str] = []
        self.details: dict[str, dict[str, Any]] = {}

    async def __call__(self, step: str, details: dict[str, Any]) -> None:
        self.steps.append(step)
        self.details[step] = details


def stored(server: ESTServer, **changes: Any) -> Bundle:
    return CredentialStore(server.folder / "store").save(server.ca.bundle(**changes), now=NOW())


@asynccontextmanager
async def service(store: Path) -> AsyncIterator[tuple[int, Any]]:
    """A TLS service that presents the current credential of its last reload."""
    outer = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    current: list[ssl.SSLContext] = []

    async def reload(_: Any) -> None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(store / "current/cert.pem", store / "current/key.pem")
        current[:] = [context]

    def pick(secured: Any, _name: str | None, _context: Any) -> None:
        secured.context = current[0]

    async def serve(_reader: Any, writer: asyncio.StreamWriter) -> None:
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()

    await reload(None)
    outer.load_cert_chain(store / "current/cert.pem", store / "current/key.pem")
    outer.sni_callback = pick
    listening = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=outer)
    try:
        yield listening.sockets[0].getsockname()[1], reload
    finally:
        listening.close()


async def test_a_whole_rotation(server: ESTServer) -> None:
    old = stored(server)
    recorder = StepRecorder()
    async with service(server.folder / "store") as (port, reload):
        place = {"host": "127.0.0.1", "port": port, "timeout_s": 5}
        agent = Agent(settings(server, presence=place), on_step=recorder, hook=reload)
        await agent.receive(event(old))
        await agent.advance()
    assert recorder.steps == ["due", "enrolling", "stored", "reloaded", "presented", "proven"]
    new = agent.store.load()
    assert new is not None
    assert new.proven
    assert new.certificate.subject == old.certificate.subject
    assert new.key.public_key() != old.key.public_key()
    assert server.operations() == ["simplereenroll", "cacerts", "rotation-ack"]
    reenroll, _, ack = server.seen
    assert reenroll.client == old.fingerprint
    assert ack.client == new.fingerprint
    public = new.key.public_key()
    assert isinstance(public, ec.EllipticCurvePublicKey)
    proof = jws.deserialize_compact(ack.body, ECKey.import_key(public), algorithms=["ES256"])
    claims = json.loads(proof.payload or b"")
    assert (claims["rotation_id"], claims["serial"]) == ("r-1", new.serial)


async def test_the_same_event_twice_renews_once(server: ESTServer) -> None:
    old = stored(server)
    agent = Agent(settings(server))
    due = event(old)
    for _ in range(3):
        await agent.receive(due)
        await agent.advance()
    assert server.operations().count("simplereenroll") == 1
    assert server.operations().count("rotation-ack") == 1


async def test_events_of_other_certificates_change_nothing(server: ESTServer) -> None:
    stored(server)
    agent = Agent(settings(server))
    await agent.receive(event(server.ca.bundle()))
    await agent.advance()
    assert not server.seen


async def test_a_lost_answer_is_asked_for_with_the_same_key(server: ESTServer) -> None:
    old = stored(server)
    server.script = [lambda: web.Response(status=503)] * 4
    agent = Agent(settings(server))
    await agent.receive(event(old))
    with pytest.raises(ServerAway):
        await agent.advance()
    again = Agent(settings(server))
    await again.receive(event(old))
    await again.advance()
    bodies = {s.body for s in server.seen if s.operation == "simplereenroll"}
    assert len(bodies) == 1


async def test_a_proof_not_yet_known_is_repeated(server: ESTServer) -> None:
    old = stored(server)
    server.script = [None, None, web.Response(status=409, text="unknown"), None]
    agent = Agent(settings(server))
    await agent.receive(event(old))
    await agent.advance()
    assert server.operations().count("rotation-ack") == 2


async def test_a_service_that_does_not_change_is_not_proven(server: ESTServer) -> None:
    old = stored(server)
    async with service(server.folder / "store") as (port, _):
        place = {"host": "127.0.0.1", "port": port, "timeout_s": 0.5}
        agent = Agent(settings(server, presence=place))
        await agent.receive(event(old))
        with pytest.raises(NotInUse):
            await agent.advance()
    assert "rotation-ack" not in server.operations()
    bundle = agent.store.load()
    assert bundle is not None
    assert not bundle.in_use


async def test_an_agent_killed_after_storing_goes_on_with_the_proof(server: ESTServer) -> None:
    old = stored(server)
    server.script = [None, None, *[lambda: web.Response(status=503)] * 4]
    agent = Agent(settings(server))
    await agent.receive(event(old))
    with pytest.raises(ServerAway):
        await agent.advance()
    recorder = StepRecorder()
    await Agent(settings(server), on_step=recorder).advance()
    assert recorder.steps == ["proven"]


async def test_without_an_event_the_certificate_is_renewed_at_85_percent(server: ESTServer) -> None:
    old = stored(server, life=dt.timedelta(seconds=10))

    class Later:
        def now(self) -> dt.datetime:
            return NOW() + dt.timedelta(seconds=8.6)

    recorder = StepRecorder()
    agent = Agent(settings(server), on_step=recorder, clock=Later())
    await agent.advance()
    assert recorder.steps == ["due_by_lifetime", "enrolling", "stored", "proven"]
    new = agent.store.load()
    assert new is not None
    assert new.fingerprint != old.fingerprint
    # No event named the rotation, so the connection by the new certificate is the proof.
    ack = server.seen[-1]
    assert (ack.operation, ack.body, ack.client) == ("rotation-ack", b"", new.fingerprint)
    await agent.advance()
    assert server.operations().count("rotation-ack") == 1


async def test_a_server_that_takes_no_proofs_is_not_asked_again(server: ESTServer) -> None:
    stored(server, life=dt.timedelta(seconds=10))
    server.script = [None, None, web.Response(status=501)]

    class Later:
        def now(self) -> dt.datetime:
            return NOW() + dt.timedelta(seconds=8.6)

    recorder = StepRecorder()
    agent = Agent(settings(server), on_step=recorder, clock=Later())
    await agent.advance()
    await agent.advance()
    assert recorder.steps == ["due_by_lifetime", "enrolling", "stored"]
    assert server.operations().count("rotation-ack") == 1


async def test_where_a_proof_must_be_signed_renewal_information_names_the_rotation(
    server: ESTServer,
) -> None:
    stored(server, life=dt.timedelta(seconds=10))
    times = [(NOW() + dt.timedelta(hours=h)).strftime("%Y-%m-%dT%H:%M:%SZ") for h in (-2, -1)]
    window = dict(zip(("start", "end"), times, strict=True))
    info = {"suggestedWindow": window, "rotationID": "r-9"}
    server.info = lambda _: web.json_response(info)
    unsigned = web.Response(status=403, text="send the JWS [proof.unsigned]")
    server.script = [None, None, unsigned]
    agent = Agent(settings(server))
    await agent.advance()
    new = agent.store.load()
    assert new is not None
    assert new.proven
    first, second = [s for s in server.seen if s.operation == "rotation-ack"]
    assert first.body == b""
    public = new.key.public_key()
    assert isinstance(public, ec.EllipticCurvePublicKey)
    proof = jws.deserialize_compact(second.body, ECKey.import_key(public), algorithms=["ES256"])
    assert json.loads(proof.payload or b"")["rotation_id"] == "r-9"


async def test_the_first_reload_may_be_left_out_and_later_ones_are_not(
    server: ESTServer,
) -> None:
    out = server.folder / "hook.txt"
    code = f"open({str(out)!r}, 'a').write('x')"
    secret = server.folder / "secret"
    secret.touch(mode=0o600)
    secret.write_text("s3cret")
    agent = Agent(
        settings(
            server,
            bootstrap={"subject": "CN=web.demo", "user": "device-1", "secret_file": secret},
            hook={"command": [sys.executable, "-c", code], "on_first": "skip"},
            presence={"host": "127.0.0.1", "port": 9, "timeout_s": 0.1},
        )
    )
    await agent.advance()
    assert not out.exists()
    bundle = agent.store.load()
    assert bundle is not None
    # A new CA certificate, or a file that was written again, is for a service that runs.
    agent.store.note(replace(bundle, in_use=False))
    with pytest.raises(NotInUse):
        await agent.advance()
    assert out.read_text() == "x"


async def test_a_hook_is_a_command_that_finds_the_files(server: ESTServer) -> None:
    old = stored(server)
    out = server.folder / "hook.txt"
    code = (
        "import os, pathlib;"
        f"pathlib.Path({str(out)!r}).write_text(os.environ['EST_CERTIFICATE_FILE'])"
    )
    agent = Agent(settings(server, hook={"command": [sys.executable, "-c", code]}))
    await agent.receive(event(old))
    await agent.advance()
    assert out.read_text().endswith("store/current/cert.pem")
    failing = Agent(settings(server, hook={"command": [sys.executable, "-c", "exit(3)"]}))
    bundle = failing.store.load()
    assert bundle is not None
    await failing.receive(event(bundle))
    with pytest.raises(NotInUse, match="ended with 3"):
        await failing.advance()


async def test_the_first_certificate_comes_by_secret(server: ESTServer) -> None:
    secret = server.folder / "secret"
    secret.touch(mode=0o600)
    secret.write_text("s3cret\n")
    bootstrap = {
        "subject": "CN=web.demo",
        "san": ["dns:web.demo"],
        "user": "device-1",
        "secret_file": secret,
    }
    recorder = StepRecorder()
    agent = Agent(settings(server, bootstrap=bootstrap), on_step=recorder)
    await agent.advance()
    assert recorder.steps == ["bootstrapping", "stored"]
    assert server.seen[0].authorization is not None
    assert agent.store.load() is not None


async def test_without_credential_and_bootstrap_the_agent_does_not_start(server: ESTServer) -> None:
    with pytest.raises(ConfigurationError, match="no bootstrap"):
        await run_agent(settings(server), asyncio.Event())


@pytest.mark.integration
async def test_the_agent_receives_events_on_the_bus(platform: Platform, server: ESTServer) -> None:
    old = stored(server)
    bus = platform.bus("agent")
    admin = await platform.provisioner()
    await declare(admin, owned_by("ca-signer"), [], replicas=1)
    await admin.close()
    recorder, stop = StepRecorder(), asyncio.Event()
    owner = {"tenant": "demo", "service": "web"}
    configured = settings(server, bus=bus.model_dump(), owner=owner)
    renewal = await Bus.connect(platform.bus("renewal"), "renewal", "test")
    due = event(old)
    message = Outgoing("pki.rotation.due.demo.web", encode(due), due.id)
    async with asyncio.TaskGroup() as group:
        group.create_task(run_agent(configured, stop, on_step=recorder))
        async with asyncio.timeout(15):
            while "proven" not in recorder.steps:
                await renewal.publish_unconfirmed(message.topic, message.payload)
                await asyncio.sleep(0.3)
        stop.set()
    await renewal.close()
    assert server.operations().count("simplereenroll") == 1
