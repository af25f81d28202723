"""``estsuite demo``: the main job end to end, with real servers, shown step by step.

Enroll with curl and a secret, re-enroll over mutual TLS, let the agent rotate a certificate
that lives two minutes while a client connects all the time, read everything back from the audit
log and from the SIEM, verify the log. It ends well only if all of it was seen.
"""

from __future__ import annotations

import asyncio
import json
import shutil
import signal
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cryptography import x509

from estclient.agent.agent import run_agent
from estclient.agent.bundle import Bundle
from estclient.agent.settings import AgentSettings
from estcore.errors import ConfigurationError, ESTSuiteError
from estcore.ids import serial_hex
from estcore.messages.envelope import decode
from estcore.messages.events import RotationEvent
from estcore.runtime.bus import Bus, Incoming
from estcore.runtime.service import sleep_or_stop
from estcore.runtime.settings import BusSettings
from estdev.demo_client import CurlClient, DemoFailedError
from estdev.demo_server import RestlessClient, SwappingServer
from estdev.layout import Layout, Ports
from estdev.local import LocalSuite, log_to
from estdev.siem import without_body
from estdev.story import Story

NAME = "web.clinic.example"
ROTATING = "rotating.clinic.example"
_ROTATION_S = 150


@dataclass
class Observations:
    """What was seen of the rotation."""

    first: str | None = None
    second: str | None = None
    steps: list[str] = field(default_factory=list)
    correlation_id: str | None = None


class Demo:
    """One run of the demo in a folder of its own."""

    def __init__(self, folder: Path, story: Story) -> None:
        ports = Ports.free()
        ports.choose()
        self.story = story
        self.folder = folder
        self.suite = LocalSuite(Layout(folder / "suite", ports), progress=story.step)
        self.layout = self.suite.layout
        self.work = folder / "client"
        self.client = CurlClient(self.work, self.layout.root_file, self.suite.url)
        self.observations = Observations()
        self._stop = asyncio.Event()

    async def run(self) -> None:
        """Show everything.

        Raises:
            DemoFailedError: one line that says what is missing.
            ConfigurationError: something does not start.
        """
        self.work.mkdir(parents=True, exist_ok=True, mode=0o700)
        await self.suite.start()
        self.story.step(f"the suite is up: EST at {self.suite.url}")
        server = SwappingServer()
        async with asyncio.TaskGroup() as group:
            agent = group.create_task(self._agent(server))
            events = group.create_task(self._listen())
            try:
                await self._first_certificate()
                await self._renewed_certificate()
                await self._rotation(server)
                await self._audit()
            finally:
                self._stop.set()
                server.stop()
                agent.cancel()
                events.cancel()

    async def close(self) -> None:
        """Stop everything that was started."""
        await self.suite.stop()

    # Enroll and re-enroll with curl and openssl.

    async def _first_certificate(self) -> None:
        client = self.client
        count = await client.fetch_cacerts()
        self.story.step(f"curl /cacerts: {count} CA certificates")
        await client.make_csr("web", NAME)
        secret = await self._secret("web-bootstrap")
        certificate = await client.enroll("web", user=f"web-bootstrap:{secret}")
        self.observations.correlation_id = client.header("x-correlation-id")
        self.story.step("curl /simpleenroll with an enrollment secret: 200")
        self._describe(certificate)
        await self._verify("web")

    async def _renewed_certificate(self) -> None:
        await self.client.make_csr("web2", NAME)
        renewed = await self.client.reenroll("web2", certificate="web")
        self.story.step("curl /simplereenroll over mutual TLS with that certificate: 200")
        self._describe(renewed)
        await self._verify("web2")

    async def _verify(self, name: str) -> None:
        await self.client.verify(name)
        self.story.detail("openssl verify: OK")

    def _describe(self, certificate: x509.Certificate) -> None:
        serial = serial_hex(certificate.serial_number)
        self.story.detail(
            f"subject {certificate.subject.rfc4514_string()}, serial {serial}\n"
            f"valid until {certificate.not_valid_after_utc:%Y-%m-%d %H:%M:%S}Z"
        )

    async def _secret(self, name: str) -> str:
        config = str(self.layout.config_file("ca-signer"))
        made = await self.suite.command(
            "ca-signer", "secret", "create", "--id", name, "--one-time", "--config", config
        )
        await asyncio.sleep(0.5)  # front ends receive the new verifier
        return made.strip()

    # The rotation.

    async def _agent(self, server: SwappingServer) -> None:
        secret_file = self.work / "rotating.secret"
        secret_file.touch(mode=0o600)
        secret_file.write_text(await self._secret("rotating-bootstrap"))
        bus = BusSettings(
            url=self.layout.nats.url, nkey_seed_file=self.layout.nats.seed_file("agent-rotating")
        )
        await server.start()
        settings = AgentSettings.model_validate(
            {
                "name": "rotating",
                "server": {
                    "urls": (f"https://localhost:{self.layout.ports.est}",),
                    "trust_file": self.layout.root_file,
                    "label": "demo",
                },
                "store": self.folder / "rotating",
                "owner": {"tenant": "demo", "service": "rotating"},
                "bus": bus,
                "bootstrap": {
                    "subject": f"CN={ROTATING}",
                    "san": (f"dns:{ROTATING}", "dns:localhost"),
                    "user": "rotating-bootstrap",
                    "secret_file": secret_file,
                },
                "presence": {
                    "host": "127.0.0.1",
                    "port": server.port,
                    "server_name": ROTATING,
                    "timeout_s": 10,
                },
            }
        )

        async def use(bundle: Bundle) -> None:
            server.use(*bundle.files)
            if self.observations.first is None:
                self.observations.first = bundle.fingerprint
            elif bundle.fingerprint != self.observations.first:
                self.observations.second = bundle.fingerprint

        await run_agent(settings, self._stop, on_step=self._agent_step, hook=use)

    async def _agent_step(self, name: str, details: dict[str, Any]) -> None:
        self.observations.steps.append(f"agent.{name}")
        if name == "failed":
            self.story.detail(f"agent: {details.get('error')}")
        elif name in {"stored", "presented", "proven"}:
            serial = str(details.get("serial", ""))
            self.story.step(f"agent: {name} {serial}")

    async def _listen(self) -> None:
        settings = BusSettings(
            url=self.layout.nats.url, nkey_seed_file=self.layout.nats.seed_file("agent-rotating")
        )
        bus = await Bus.connect(settings, "demo-listener", "demo", signs=False)
        try:
            await bus.subscribe("pki.rotation.*.demo.rotating", self._handle_event, of_anyone=True)
            await self._stop.wait()
        finally:
            await bus.close()

    async def _handle_event(self, message: Incoming) -> None:
        event = decode(RotationEvent, message.payload)
        self.observations.steps.append(f"renewal.{event.step}")
        texts = {
            "due": "renewal due: two thirds of the lifetime are over",
            "overlap": "overlap: old and new certificate are both valid",
            "activated": f"the new certificate is proven in use ({event.proof})",
            "deprecated": "the old certificate is deprecated",
        }
        if event.step in texts:
            self.story.step(f"event: {texts[event.step]}")

    async def _rotation(self, server: SwappingServer) -> None:
        await self._until(
            lambda: self.observations.first is not None, "the agent's first certificate", 30
        )
        client = RestlessClient(server.port, self.layout.root_file, ROTATING)
        stop = asyncio.Event()
        async with asyncio.TaskGroup() as group:
            group.create_task(client.run(stop))
            self.story.step("a client connects 20 times a second; the certificate lives 2 minutes")
            try:
                for step, what in (
                    ("renewal.due", "renewal due at two thirds of two minutes"),
                    ("renewal.overlap", "the new certificate"),
                    ("renewal.activated", "proof of use"),
                    ("renewal.deprecated", "the end of the overlap"),
                ):
                    await self._until(
                        lambda s=step: s in self.observations.steps, what, _ROTATION_S
                    )
                second = self.observations.second
                await self._until(
                    lambda: second in client.handshakes, "a handshake with the new one", 10
                )
            finally:
                stop.set()
        total = sum(client.handshakes.values())
        self.story.step(f"{total} handshakes, {len(client.failures)} failed, during the rotation")
        if client.failures:
            raise DemoFailedError(f"a handshake failed: {client.failures[0]}")
        if (
            self.observations.first not in client.handshakes
            or self.observations.second not in client.handshakes
        ):
            raise DemoFailedError("the client did not see both certificates")
        steps = self.observations.steps
        if steps.index("renewal.deprecated") < steps.index("renewal.activated"):
            raise DemoFailedError("the old certificate was deprecated before proof of use")

    async def _until(self, condition: Any, what: str, seconds: float) -> None:
        begun = self.story.seconds
        while not condition():
            if self.story.seconds - begun > seconds:
                raise DemoFailedError(f"{what} was not seen within {seconds:.0f} s")
            self.story.waiting(f"waiting for {what}")
            if await sleep_or_stop(self._stop, 0.2):
                raise DemoFailedError("stopped")

    # What is on record.

    async def _audit(self) -> None:
        correlation = self.observations.correlation_id
        if correlation is None:
            raise DemoFailedError("the answer to /simpleenroll had no X-Correlation-ID")
        records = await self._records(correlation)
        self.story.step(f"audit records of the first enrollment, {correlation}, from Postgres:")
        for record in records:
            producer = record["producer"]["service"]
            self.story.detail(
                f"{record['occurred_at']}  {producer:13} {record['action']:20} {record['phase']}"
            )
        if not any(record["phase"] == "outcome" for record in records):
            raise DemoFailedError("the outcome of the first enrollment is not on record")
        await self._siem(correlation, {r["record_id"] for r in records})
        config = str(self.layout.config_file("audit"))
        verified = await self.suite.command("audit", "verify", "--config", config)
        self.story.step(f"audit log {verified.strip().splitlines()[-1]}")

    async def _records(self, correlation: str) -> list[dict[str, Any]]:
        config = str(self.layout.config_file("audit"))
        records: list[dict[str, Any]] = []
        for attempt in range(20):
            out = self.work / f"records-{attempt}.jsonl"
            await self.suite.command(
                "audit", "export", "--out", str(out), "--correlation-id", correlation,
                "--config", config,
            )  # fmt: skip
            lines = [json.loads(line) for line in out.read_text().splitlines()]
            records = [leaf["record"] for leaf in map(_leaf, lines) if leaf]
            if any(record["phase"] == "outcome" for record in records):
                break
            await asyncio.sleep(1)
        return records

    async def _siem(self, correlation: str, record_ids: set[str]) -> None:
        siem = self.suite.siem
        assert siem is not None  # noqa: S101 - started with the suite
        lines: list[str] = []

        def complete() -> bool:
            lines[:] = [m for m in siem.messages() if correlation in m]
            return all(any(r in m for m in lines) for r in record_ids)

        await self._until(complete, "the same records at the SIEM", 30)
        self.story.step("the same records, as the SIEM got them over TLS (RFC 5424):")
        for line in lines:
            self.story.detail("\n".join(without_body(line)))


def _leaf(line: dict[str, Any]) -> dict[str, Any] | None:
    """Return the leaf in a line of an audit export; None for its other lines."""
    leaf = line.get("leaf", line)
    if isinstance(leaf, str):
        leaf = json.loads(leaf)
    return leaf if isinstance(leaf, dict) and "record" in leaf else None


def _cancel_once_at(*signals: signal.Signals) -> None:
    """Cancel the running task at the first of these signals; what ends then is not cancelled."""
    task, loop = asyncio.current_task(), asyncio.get_running_loop()
    assert task is not None  # noqa: S101 - called by a coroutine
    stopping = asyncio.Event()

    def stop() -> None:
        if not stopping.is_set():
            stopping.set()
            task.cancel()

    for number in signals:
        loop.add_signal_handler(number, stop)


async def run_demo(keep: Path | None) -> None:
    """Run the demo; its folder is removed when all went well and ``keep`` is not given.

    SIGTERM and SIGINT end it: what was started is stopped, however often they come.

    Raises:
        ESTSuiteError: one line that says what is missing; the folder with the logs stays.
    """
    _cancel_once_at(signal.SIGTERM, signal.SIGINT)
    for tool in ("curl", "openssl"):
        if shutil.which(tool) is None:
            raise ConfigurationError(f"the demo needs {tool}")
    folder = keep or Path(tempfile.mkdtemp(prefix="estsuite-demo-"))
    log_to(folder / "suite" / "logs" / "estctl.log")
    story = Story()
    demo = Demo(folder, story)
    try:
        await demo.run()
    except* asyncio.CancelledError:
        raise DemoFailedError("stopped before its end", code="demo.stopped") from None
    except* ESTSuiteError as group:
        error = _first(group)
        raise DemoFailedError(
            f"{error.reason}; logs are in {demo.layout.logs}", code=error.code
        ) from None
    finally:
        await demo.close()
    story.step("done: enrolled, re-enrolled, rotated without downtime, all of it on record")
    if keep is None:
        shutil.rmtree(demo.layout.postgres.home, ignore_errors=True)
        shutil.rmtree(folder, ignore_errors=True)


def _first(group: BaseExceptionGroup[ESTSuiteError]) -> ESTSuiteError:
    error: BaseException = group
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    assert isinstance(error, ESTSuiteError)  # noqa: S101 - the group has nothing else
    return error
