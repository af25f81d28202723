"""The agent of a host: many definitions in one process, each by itself."""

from __future__ import annotations

import asyncio
import datetime as dt
import functools
import json
import os
import signal
import socket
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import yaml
from aiohttp import web
from cryptography import x509

from estclient.agent.bundle import Bundle
from estclient.agent.credential_store import CredentialStore
from estclient.agent.definition_folder import load_agent
from estclient.agent.host import Host
from estclient.agent.service_manager import ServiceManager
from estclient.cli import main
from estclient.est.keys import make_key
from estcore.clock import SystemClock
from estcore.ids import uuid7
from estcore.messages.envelope import encode
from estcore.messages.events import CertificateRef, RotationEvent
from estcore.messages.topics import owned_by
from estcore.runtime.bus import Bus
from estcore.runtime.topology import declare
from estsuite_testing.command_folder import command_folder
from estsuite_testing.est_server import ESTServer
from estsuite_testing.platform import Platform

NOW = SystemClock().now
ATTENTION = "agent needs attention"
INVALID = "definition cannot be used"


class HostFolder:
    """Settings, definitions and state of one host below ``folder``."""

    def __init__(self, server: ESTServer, **changes: Any) -> None:
        self.folder, self.server = server.folder, server
        self.definitions, self.state = self.folder / "agent.d", self.folder / "state"
        self.definitions.mkdir()
        self.secret = self.folder / "secret"
        self.secret.touch(mode=0o600)
        self.secret.write_text("s3cret")
        trust = self.folder / "trust.pem"
        trust.write_bytes(server.ca.pem)
        self.config = self.folder / "host.yaml"
        defaults = {
            "server": {"urls": [server.url], "trust_file": str(trust), "timeout_s": 5},
            "retry_s": 0.1,
            "longest_retry_s": 0.2,
            "attention_retry_s": 0.2,
            "ack_timeout_s": 1,
        }
        host = {
            "definitions": str(self.definitions), "state_folder": str(self.state),
            "defaults": defaults, "admin": None, "reload_every_s": 0.1, "ready_timeout_s": 30,
            "stop_timeout_s": 1,
        } | changes  # fmt: skip
        self.config.write_text(yaml.safe_dump(host))

    def define(self, name: str, **values: Any) -> Path:
        bootstrap = {"subject": f"CN={name}", "user": "device-1", "secret_file": str(self.secret)}
        file = self.definitions / f"{name}.yaml"
        made = self.folder / f".{name}"
        made.write_text(yaml.safe_dump({"bootstrap": bootstrap} | values))
        made.replace(file)
        return file

    def host(self, manager: ServiceManager | None = None) -> Host:
        return Host(*load_agent(self.config), manager=manager or ServiceManager({}))

    @asynccontextmanager
    async def running(self, manager: ServiceManager | None = None) -> AsyncIterator[Host]:
        host, stop = self.host(manager), asyncio.Event()
        async with asyncio.TaskGroup() as group:
            group.create_task(host.run(stop))
            try:
                yield host
            finally:
                stop.set()

    def status(self) -> dict[str, Any]:
        report: dict[str, Any] = json.loads((self.state / "status.json").read_text())
        return report

    def written_states(self) -> list[str]:
        """The states in the status file, which is there after the first look."""
        if not (self.state / "status.json").exists():
            return []
        return [facts["state"] for facts in self.status()["definitions"].values()]

    def serial(self, name: str) -> str | None:
        file = self.state / name / "current" / "cert.pem"
        if not file.exists():
            return None
        return f"{x509.load_pem_x509_certificate(file.read_bytes()).serial_number:x}"


async def until(condition: Callable[[], Any]) -> None:
    async with asyncio.timeout(20):
        while not condition():
            await asyncio.sleep(0.02)


def rotation_due(bundle: Bundle) -> RotationEvent:
    old = CertificateRef(
        serial=bundle.serial,
        not_before=bundle.certificate.not_valid_before_utc,
        not_after=bundle.certificate.not_valid_after_utc,
        spki_sha256="00",
        fingerprint_sha256=bundle.fingerprint,
    )
    return RotationEvent(
        id=uuid7(), source="renewal/test", time=NOW(), correlation_id="r-1", step="due",
        tenant="demo", service="web", slot_id="s-1", rotation_id="r-1", generation=2,
        profile="tls", priority="normal", label="web", mode="agent", issuer_id="clinic",
        fence=1, old=old,
    )  # fmt: skip


def states(host: Host) -> dict[str, str]:
    return {name: facts["state"] for name, facts in host.report()["definitions"].items()}


async def test_definitions_come_change_and_go_while_it_runs(server: ESTServer) -> None:
    folder = HostFolder(server)
    folder.define("one")
    async with folder.running() as host:
        await until(lambda: states(host) == {"one": "valid"})
        folder.define("two")
        await until(lambda: states(host) == {"one": "valid", "two": "valid"})
        before = folder.serial("one")
        # Another setting: a new agent with the same store enrolls nothing.
        folder.define("one", renew_at=0.6)
        await until(lambda: host.report()["definitions"]["one"]["enrollments"] == 0)
        await until(lambda: states(host) == {"one": "valid", "two": "valid"})
        assert folder.serial("one") == before
        (folder.definitions / "two.yaml").unlink()
        await until(lambda: states(host) == {"one": "valid"})
    assert server.operations().count("simpleenroll") == 2
    assert set(folder.status()["definitions"]) == {"one"}


def _is_problem(host: Host, words: str) -> bool:
    return words in str(host.report()["problems"].get("one"))


@pytest.mark.logs_errors(INVALID)
async def test_an_invalid_definition_is_reported_and_the_good_one_stays(server: ESTServer) -> None:
    folder = HostFolder(server)
    file = folder.define("one")
    async with folder.running() as host:
        await until(lambda: states(host) == {"one": "valid"})
        for text, words in (
            ("renew_at: 7", "renew_at"),
            ("{", "is not YAML"),
            ("- 1", "must be a mapping"),
            ("unknown: 1", "unknown"),
            ("renew_at: 2020-01-01", "JSON"),
        ):
            file.write_text(text)
            await until(functools.partial(_is_problem, host, words))
            assert states(host) == {"one": "valid"}
        file.chmod(0o666)
        await until(lambda: "others may change it" in str(host.report()["problems"]))
        file.chmod(0o600)
        folder.define("one")
        await until(lambda: host.report()["problems"] == {})
    assert server.operations().count("simpleenroll") == 1


@pytest.mark.logs_errors(INVALID)
async def test_two_definitions_never_share_a_store_or_a_file(server: ESTServer) -> None:
    folder = HostFolder(server)
    out = folder.folder / "out"
    out.mkdir()
    outputs = [{"format": "combined-pem", "path": str(out / "web.pem")}]
    folder.define("one", outputs=outputs)
    folder.define("three", store=str(folder.state / "one"))
    folder.define("two", outputs=outputs)
    assert await folder.host().once(10) == 2
    problems = folder.status()["problems"]
    assert set(problems) == {"three", "two"}
    assert {p["code"] for p in problems.values()} == {"agent.definition_conflict"}


@pytest.mark.logs_errors("agent crashed")
async def test_a_crash_of_one_definition_ends_no_other(
    server: ESTServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = HostFolder(server)
    folder.define("bad", key_algorithm="rsa-2048")
    folder.define("good")

    def broken(*_: Any) -> None:
        raise RuntimeError("a fault of ours")

    place = "estclient.agent.enrollment.make_key"
    real = make_key

    def sometimes(algorithm: Any) -> Any:
        return broken() if algorithm == "rsa-2048" else real(algorithm)

    monkeypatch.setattr(place, sometimes)
    async with folder.running() as host:
        await until(lambda: states(host) == {"bad": "needs attention", "good": "valid"})
        assert host.report()["definitions"]["bad"]["code"] == "suite.error"
        monkeypatch.setattr(place, real)
        await until(lambda: states(host) == {"bad": "valid", "good": "valid"})


@pytest.mark.logs_errors(ATTENTION)
@pytest.mark.parametrize(
    ("status", "text"),
    [
        (403, "the secret was used [secret.spent]"),
        (401, "revoked [auth.certificate_revoked]"),
        (403, "no rule for this principal [policy.no_rule]"),
        (403, ""),
    ],
)
async def test_a_final_refusal_needs_attention_and_is_tried_slowly(
    server: ESTServer, status: int, text: str
) -> None:
    folder = HostFolder(server)
    folder.define("one", longest_retry_s=60, attention_retry_s=3600)
    server.script = [lambda: web.Response(status=status, text=text)] * 50
    assert await folder.host().once(10) == 3
    facts = folder.status()["definitions"]["one"]
    assert facts["state"] == "needs attention"
    assert facts["code"] == (text.partition("[")[2].rstrip("]") or "client.refused")
    async with folder.running() as host:
        await until(lambda: states(host) == {"one": "needs attention"})
        await asyncio.sleep(0.5)
    assert server.operations().count("simpleenroll") == 2


@pytest.mark.logs_errors(ATTENTION)
async def test_an_operator_who_corrects_the_cause_needs_no_restart(server: ESTServer) -> None:
    folder = HostFolder(server)
    folder.define("one")
    server.script = [lambda: web.Response(status=403, text="spent [secret.spent]")] * 3
    async with folder.running() as host:
        await until(lambda: states(host) == {"one": "needs attention"})
        await until(lambda: states(host) == {"one": "valid"})
    assert folder.status()["definitions"]["one"]["reason"] is None


@pytest.mark.logs_errors(ATTENTION)
async def test_once_says_by_its_exit_code_what_is_missing(server: ESTServer) -> None:
    folder = HostFolder(server)
    folder.define("one")
    assert await folder.host().once(10) == 0
    assert await folder.host().once(10) == 0
    assert server.operations().count("simpleenroll") == 1
    folder.define(
        "two",
        server={"urls": [server.url], "trust_file": "trust.pem", "pending_limit_s": 0},
    )
    folder.define("two", server={"pending_limit_s": 0})
    server.script = [lambda: web.Response(status=202, headers={"Retry-After": "60"})]
    assert await folder.host().once(10) == 4
    server.script = [lambda: web.Response(status=503)] * 20
    assert await folder.host().once(1) == 1
    server.script = [lambda: web.Response(status=403)]
    assert await folder.host().once(10) == 3


async def test_one_process_for_one_state_folder(server: ESTServer) -> None:
    folder = HostFolder(server)
    folder.define("one")
    async with folder.running() as host:
        await until(lambda: states(host) == {"one": "valid"})
        process = await asyncio.create_subprocess_exec(
            *(command_folder() / "estctl", "agent", "--config", folder.config, "--once"),
            stderr=asyncio.subprocess.PIPE,
        )
        _, error = await process.communicate()
        assert process.returncode == 2
        assert b"[agent.locked]" in error


async def test_a_person_at_a_terminal_sees_the_first_enrollment_as_text(
    server: ESTServer,
) -> None:
    folder = HostFolder(server)
    folder.define("one")
    ours, theirs = os.openpty()
    process = await asyncio.create_subprocess_exec(
        *(command_folder() / "estctl", "agent", "run", "--config", folder.config, "--once"),
        stderr=theirs,
    )
    os.close(theirs)
    assert await process.wait() == 0
    text = os.read(ours, 65_536).decode()
    os.close(ours)
    steps = [line.split("step=")[1].split()[0] for line in text.splitlines() if "step=" in line]
    assert steps == ["bootstrapping", "stored"]
    assert "agent step  definition=one step=bootstrapping subject=CN=one" in text


async def test_status_is_a_table_of_100_columns_and_knows_whether_it_runs(
    server: ESTServer, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = HostFolder(server)
    config = ["--config", str(folder.config)]
    assert await asyncio.to_thread(main, ["agent", "status", *config]) == 2
    assert "[agent.no_status]" in capsys.readouterr().err
    folder.define("a-name-that-is-longer-than-its-column")
    folder.define("one")
    async with folder.running() as host:
        await until(lambda: len(states(host)) == 2 and {*states(host).values()} == {"valid"})
        await until(lambda: folder.written_states() == ["valid", "valid"])
        assert await asyncio.to_thread(main, ["agent", "status", *config]) == 0
        lines = capsys.readouterr().out.splitlines()
        assert len(lines) == 3
        assert lines[0].split() == ["NAME", "STATE", "EXPIRES", "RENEWAL", "SUBJECT"]
        assert max(map(len, lines)) <= 100
        assert lines[2].split()[:4] == ["one", "valid", "in", "24h"]
    assert await asyncio.to_thread(main, ["agent", *config, "status", "--json"]) == 1
    report = json.loads(capsys.readouterr().out)
    assert report["running"] is False
    assert report["definitions"]["one"]["subject"] == "CN=one"


async def test_check_names_every_problem_without_a_connection(
    server: ESTServer, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = HostFolder(server)
    folder.define("good")
    assert await asyncio.to_thread(main, ["agent", "check", "--config", str(folder.config)]) == 0
    folder.define("bad", renew_at=3)
    folder.secret.chmod(0o644)
    assert await asyncio.to_thread(main, ["agent", "check", "--config", str(folder.config)]) == 2
    lines = capsys.readouterr().out.splitlines()
    assert any(line.startswith("bad: ") and "renew_at" in line for line in lines)
    assert any(line.startswith("good: ") and "[secret.exposed]" in line for line in lines)
    assert not server.seen


async def text_of(session: aiohttp.ClientSession, url: str) -> str:
    async with session.get(url) as answer:
        return await answer.text()


@pytest.mark.logs_errors(ATTENTION)
async def test_health_and_metrics_are_on_a_port_of_loopback(server: ESTServer) -> None:
    folder = HostFolder(server, admin={"port": 0})
    folder.define("one")
    folder.define("two")
    server.script = [lambda: web.Response(status=403, text="spent [secret.spent]")]
    async with folder.running() as host, aiohttp.ClientSession() as session:
        await until(lambda: sorted(states(host).values()) == ["valid", "valid"])
        for path, words in (
            ("healthz", "alive"),
            ("readyz", "ready"),
            ("metrics", 'est_agent_state{definition="one",state="valid"} 1.0'),
            ("metrics", 'est_agent_attempts_total{definition="two",outcome="received"} 1.0'),
            ("metrics", 'est_agent_certificate_not_after_seconds{definition="one"}'),
            ("metrics", 'est_agent_needs_attention{definition="one"} 0.0'),
        ):
            async with asyncio.timeout(10):
                while words not in await text_of(session, f"http://127.0.0.1:{host.port}/{path}"):
                    await asyncio.sleep(0.05)


@pytest.mark.integration
async def test_definitions_of_one_bus_share_a_connection(
    platform: Platform, server: ESTServer
) -> None:
    admin = await platform.provisioner()
    await declare(admin, owned_by("ca-signer"), [], replicas=1)
    await admin.close()
    folder = HostFolder(server)
    bus = platform.bus("agent").model_dump(mode="json")
    for name in ("one", "two", "three"):
        folder.define(name, bus=bus, owner={"tenant": "demo", "service": "web"})
    renewal = await Bus.connect(platform.bus("renewal"), "renewal", "test")
    async with folder.running() as host:
        await until(lambda: [*states(host).values()] == ["valid"] * 3)
        assert len(host._listeners) == 1
        for name in ("one", "two"):
            bundle, before = CredentialStore(folder.state / name).load(), folder.serial(name)
            assert bundle is not None
            due = rotation_due(bundle)
            async with asyncio.timeout(20):
                while folder.serial(name) == before:
                    await renewal.publish_unconfirmed("pki.rotation.due.demo.web", encode(due))
                    await asyncio.sleep(0.2)
        for name in ("one", "two", "three"):
            (folder.definitions / f"{name}.yaml").unlink()
        await until(lambda: not host._listeners)
    await renewal.close()
    renewals = [s for s in server.seen if s.operation == "simplereenroll"]
    assert len(renewals) == 2


# The service manager.


@pytest.fixture
def notified(tmp_path: Path) -> tuple[socket.socket, ServiceManager]:
    receiving = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    receiving.bind(str(tmp_path / "notify"))
    receiving.setblocking(False)
    environ = {
        "NOTIFY_SOCKET": str(tmp_path / "notify"),
        "WATCHDOG_USEC": "200000",
        "WATCHDOG_PID": str(os.getpid()),
    }
    return receiving, ServiceManager(environ)


def received(receiving: socket.socket, so_far: list[str]) -> list[str]:
    while True:
        try:
            so_far.append(receiving.recv(4096).decode())
        except BlockingIOError:
            return so_far


async def test_ready_is_sent_when_every_service_can_read_its_credential(
    server: ESTServer, notified: tuple[socket.socket, ServiceManager]
) -> None:
    receiving, manager = notified
    folder = HostFolder(server)
    folder.define("one")
    folder.define("two")
    server.script = [lambda: web.Response(status=503)] * 8
    messages: list[str] = []
    with receiving:
        async with folder.running(manager) as host:
            await until(lambda: "WATCHDOG=1" in received(receiving, messages))
            assert "READY=1" not in messages or not host.missing
            await until(lambda: "READY=1" in received(receiving, messages))
            assert sorted(states(host).values()) == ["valid", "valid"]
            await until(lambda: "STATUS=2 valid" in received(receiving, messages))
        assert received(receiving, messages)[-1] != "READY=1"
        assert "STOPPING=1" in messages
        assert messages.count("READY=1") == 1


@pytest.mark.logs_errors(ATTENTION)
async def test_ready_is_sent_after_a_bounded_time_all_the_same(
    server: ESTServer, notified: tuple[socket.socket, ServiceManager]
) -> None:
    receiving, manager = notified
    folder = HostFolder(server, ready_timeout_s=0.3)
    folder.define("one", attention_retry_s=60, longest_retry_s=60)
    server.script = [lambda: web.Response(status=403)]
    messages: list[str] = []
    with receiving:
        async with folder.running(manager):
            await until(lambda: "READY=1" in received(receiving, messages))
            await until(lambda: "STATUS=1 needs attention" in received(receiving, messages))


async def test_a_manager_that_is_gone_ends_nothing(server: ESTServer, tmp_path: Path) -> None:
    folder = HostFolder(server)
    folder.define("one")
    manager = ServiceManager({"NOTIFY_SOCKET": str(tmp_path / "gone")})
    async with folder.running(manager) as host:
        await until(lambda: states(host) == {"one": "valid"})
    assert ServiceManager({"WATCHDOG_USEC": "5", "WATCHDOG_PID": "1"}).watchdog_s is None
    assert ServiceManager({"WATCHDOG_USEC": "x"}).watchdog_s is None


# Processes.


async def test_killed_at_any_step_the_next_process_goes_on(server: ESTServer) -> None:
    """Every step says that it was done; the process is killed right after each of them."""
    folder = HostFolder(server)
    server.life = dt.timedelta(seconds=60)
    hooked = folder.folder / "hooked"
    code = f"open({str(hooked)!r}, 'a').write('x')"
    out = folder.folder / "out"
    out.mkdir()
    folder.define(
        "one",
        hook={"command": [sys.executable, "-c", code]},
        outputs=[{"format": "combined-pem", "path": str(out / "one.pem")}],
        renew_at=0.5,
    )
    first = ["bootstrapping", "stored", "written", "reloaded"]
    renewed = ["due_by_lifetime", "enrolling", "stored", "written", "reloaded", "proven"]
    for step in first:
        await _killed_after(folder, step)
    assert server.operations().count("simpleenroll") == 1
    bodies = {s.body for s in server.seen if s.operation == "simpleenroll"}
    assert len(bodies) == 1
    # Half of the lifetime later.
    for step in renewed:
        await _killed_after(folder, step, later_s=35)
    bodies = {s.body for s in server.seen if s.operation == "simplereenroll"}
    assert len(bodies) == 1
    assert len(server.seen) < 20
    assert (out / "one.pem").read_text().startswith("-----BEGIN CERTIFICATE-----")
    assert f"{x509.load_pem_x509_certificate((out / 'one.pem').read_bytes()).serial_number:x}" == (
        folder.serial("one")
    )


_KILLED = """
import asyncio, datetime, os, signal, sys
from estclient.agent import agent
from estcore.clock import SystemClock
from estcore.ids import uuid7
from estcore.messages.envelope import encode
from estcore.messages.events import CertificateRef, RotationEvent
from estcore.messages.topics import owned_by
from estcore.runtime.bus import Bus
from estcore.runtime.topology import declare
step, later = sys.argv[1], float(sys.argv[2])
say = agent.Agent._say
async def dying(self, name, **details):
    await say(self, name, **details)
    if name == step:
        os.kill(os.getpid(), signal.SIGKILL)
agent.Agent._say = dying
class Later:
    def now(self):
        return SystemClock().now() + datetime.timedelta(seconds=later)
from estclient.agent.credential_store import CredentialStore
from estclient.agent.definition_folder import load_agent
from estclient.agent.host import Host
async def serve():
    from pathlib import Path
    host = Host(*load_agent(Path(sys.argv[3])), clock=Later())
    await host.once(20)
asyncio.run(serve())
"""


async def _killed_after(folder: HostFolder, step: str, later_s: float = 0) -> None:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", _KILLED, step, str(later_s), str(folder.config)),
        stderr=asyncio.subprocess.DEVNULL,
    )
    assert await process.wait() == -signal.SIGKILL, step
