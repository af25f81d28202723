"""An agent that does not end: wrong clocks, damaged stores, full disks, every legal Retry-After."""

from __future__ import annotations

import asyncio
import datetime as dt
import json
import shutil
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml
from aiohttp import web

from estclient.agent.agent import Agent, run_agent
from estclient.agent.credential_store import CredentialStore
from estclient.agent.settings import AgentSettings
from estclient.cli import main
from estclient.errors import CredentialMissing, ServerRefused
from estcore.clock import SystemClock
from estcore.testing.clock import FakeClock
from estsuite_testing.est_server import ESTServer

NOW = SystemClock().now
DAMAGED = "credential file is damaged"


def values(server: ESTServer, **changes: Any) -> dict[str, Any]:
    trust = server.folder / "trust.pem"
    trust.write_bytes(server.ca.pem)
    return {
        "server": {"urls": [server.url], "trust_file": str(trust), "timeout_s": 5},
        "store": str(server.folder / "store"),
        "retry_s": 0.1,
        "longest_retry_s": 0.1,
        "attention_retry_s": 0.1,
        "ack_timeout_s": 3,
    } | changes


def settings(server: ESTServer, **changes: Any) -> AgentSettings:
    return AgentSettings.model_validate(values(server, **changes))


def bootstrap(server: ESTServer) -> dict[str, Any]:
    secret = server.folder / "secret"
    secret.touch(mode=0o600)
    secret.write_text("s3cret\n")
    return {"subject": "CN=web.demo", "user": "device-1", "secret_file": str(secret)}


class Steps:
    """What the agent said; ``reached`` waits for a step."""

    def __init__(self) -> None:
        self.steps: list[tuple[str, dict[str, Any]]] = []

    async def __call__(self, step: str, details: dict[str, Any]) -> None:
        self.steps.append((step, details))

    def names(self) -> list[str]:
        return [step for step, _ in self.steps]

    async def reached(self, name: str, count: int = 1) -> list[dict[str, Any]]:
        async with asyncio.timeout(20):
            while self.names().count(name) < count:
                await asyncio.sleep(0.02)
        return [details for step, details in self.steps if step == name]


@asynccontextmanager
async def running(configured: AgentSettings, **more: Any) -> AsyncIterator[Steps]:
    """An agent that runs until the end of the block, and must not end before."""
    steps, stop = Steps(), asyncio.Event()
    async with asyncio.TaskGroup() as group:
        task = group.create_task(run_agent(configured, stop, on_step=steps, **more))
        yield steps
        assert not task.done()
        stop.set()


# Clocks.


async def test_a_clock_that_jumps_past_the_end_and_back_ends_nothing(server: ESTServer) -> None:
    """The Date of an answer shows that the certificate has not expired."""
    store = CredentialStore(server.folder / "store")
    kept = store.save(server.ca.bundle(life=dt.timedelta(hours=1)), now=NOW())
    clock = FakeClock(NOW())
    steps = Steps()
    agent = Agent(settings(server), clock=clock, on_step=steps)
    for days in (400, -400, -400, 400):
        clock.forward(days=days)
        await agent.advance()
    assert steps.names() == []
    found = store.load()
    assert found is not None
    assert found.fingerprint == kept.fingerprint
    # Near the end of the lifetime it renews, as if nothing had happened.
    clock.forward(minutes=55)
    server.clock = clock
    await agent.advance()
    assert "stored" in steps.names()


@pytest.mark.logs_errors("agent needs attention")
async def test_without_any_answer_the_machine_decides_and_returns(server: ESTServer) -> None:
    store = CredentialStore(server.folder / "store")
    store.save(server.ca.bundle(life=dt.timedelta(hours=1)), now=NOW())
    await server.stop()
    clock = FakeClock(NOW())
    async with running(settings(server), clock=clock) as steps:
        clock.forward(days=400)
        failed = await steps.reached("failed", 3)
        assert "expired since" in failed[0]["error"]
        assert "no bootstrap" in failed[0]["error"]
        clock.forward(days=-400)
        await asyncio.sleep(0.5)
        count = steps.names().count("failed")
        await asyncio.sleep(0.5)
        assert steps.names().count("failed") == count


@pytest.mark.parametrize("wrong", [{"minutes": 10}, {"minutes": -10}, {"days": 40}, {"days": -40}])
async def test_a_wrong_clock_neither_renews_in_a_loop_nor_misses(
    server: ESTServer, wrong: dict[str, int]
) -> None:
    server.life = dt.timedelta(hours=1)
    # Clocks that stand still, a little later than certificates of this test begin.
    server.clock = FakeClock(NOW() + dt.timedelta(seconds=30))
    machine = FakeClock(server.clock.now())
    machine.forward(**wrong)
    recorder = Steps()
    agent = Agent(settings(server, bootstrap=bootstrap(server)), clock=machine, on_step=recorder)
    for _ in range(3):
        await agent.advance()
    assert recorder.names() == ["bootstrapping", "stored"]
    assert agent.progress.clock_offset_s == pytest.approx(
        -dt.timedelta(**wrong).total_seconds(), abs=5
    )
    for clock in (server.clock, machine):
        clock.forward(minutes=58)
    # Another process: nothing is remembered but the store.
    again = Agent(settings(server, bootstrap=bootstrap(server)), clock=machine, on_step=recorder)
    for _ in range(3):
        await again.advance()
    assert recorder.names()[2:] == ["due_by_lifetime", "enrolling", "stored", "proven"]


async def test_a_clock_behind_the_certificate_ends_nothing(server: ESTServer) -> None:
    CredentialStore(server.folder / "store").save(server.ca.bundle(), now=NOW())
    clock = FakeClock(NOW() - dt.timedelta(days=4000))
    async with running(settings(server, cacerts_every_s=0.1), clock=clock) as steps:
        await asyncio.sleep(0.6)
        assert "stored" not in steps.names()


async def test_renewal_information_that_is_always_past_makes_no_loop(server: ESTServer) -> None:
    CredentialStore(server.folder / "store").save(server.ca.bundle(), now=NOW())
    past = (NOW() - dt.timedelta(days=1)).strftime("%Y-%m-%dT%H:%M:%SZ")
    end = (NOW() - dt.timedelta(hours=1)).strftime("%Y-%m-%dT%H:%M:%SZ")
    window = {"suggestedWindow": {"start": past, "end": end}}
    server.info = lambda _: web.json_response(window, headers={"Retry-After": "21600"})
    agent = Agent(settings(server))
    pauses = [await agent.advance() for _ in range(4)]
    assert server.operations().count("simplereenroll") == 1
    assert min(pauses[1:]) > 60


# Stores.


@pytest.mark.logs_errors(DAMAGED)
@pytest.mark.parametrize("name", ["key.pem", "cert.pem", "ca.pem"])
@pytest.mark.parametrize("octets", [b"", b"\x00" * 64, b"-----BEGIN CERTIFICATE-----\n"])
async def test_a_damaged_generation_is_replaced_by_an_older_one(
    server: ESTServer, name: str, octets: bytes
) -> None:
    store = CredentialStore(server.folder / "store")
    old = store.save(server.ca.bundle(), now=NOW())
    new = store.save(server.ca.bundle(), now=NOW())
    assert new.folder is not None
    (new.folder / name).write_bytes(octets)
    reloads: list[str] = []

    async def hook(bundle: Any) -> None:
        reloads.append(bundle.fingerprint)

    async with running(settings(server), hook=hook) as steps:
        fallback = (await steps.reached("fallback"))[0]
        await steps.reached("reloaded")
    damage = [details for step, details in steps.steps if step == "damaged"]
    assert [Path(d["file"]).name for d in damage] == [name]
    assert damage[0]["damage"]
    assert fallback["serial"] == old.serial
    assert store.current.resolve() == old.folder
    assert reloads == [old.fingerprint]


@pytest.mark.logs_errors(DAMAGED)
async def test_a_damaged_progress_file_costs_a_reload_and_nothing_more(server: ESTServer) -> None:
    store = CredentialStore(server.folder / "store")
    kept = store.save(server.ca.bundle(), now=NOW())
    assert kept.folder is not None
    (kept.folder / "bundle.json").write_bytes(b"")
    hook = {"command": [sys.executable, "-c", ""]}
    async with running(settings(server, hook=hook)) as steps:
        await steps.reached("reloaded")
    assert steps.names() == ["damaged", "reloaded"]
    found = store.load()
    assert found is not None
    assert found.in_use
    assert store.damage == {}


@pytest.mark.logs_errors(DAMAGED)
async def test_without_a_good_generation_the_agent_bootstraps(server: ESTServer) -> None:
    store = CredentialStore(server.folder / "store")
    for _ in range(2):
        kept = store.save(server.ca.bundle(), now=NOW())
        assert kept.folder is not None
        (kept.folder / "key.pem").write_bytes(b"")
    async with running(settings(server, bootstrap=bootstrap(server))) as steps:
        await steps.reached("stored")
    assert steps.names() == ["damaged", "damaged", "bootstrapping", "stored"]
    found = store.load()
    assert found is not None
    assert not found.is_fallback


@pytest.mark.logs_errors(DAMAGED, "agent needs attention")
async def test_without_a_bootstrap_the_agent_waits_for_the_store(server: ESTServer) -> None:
    store = CredentialStore(server.folder / "store")
    kept = store.save(server.ca.bundle(), now=NOW())
    assert kept.folder is not None
    file = kept.folder / "key.pem"
    octets = file.read_bytes()
    file.write_bytes(b"")
    async with running(settings(server)) as steps:
        failed = await steps.reached("failed", 2)
        assert "missing or damaged" in failed[0]["error"]
        # On record once, not at each attempt.
        assert steps.names().count("damaged") == 1
        file.write_bytes(octets)
        await asyncio.sleep(0.5)
        count = len(steps.steps)
        await asyncio.sleep(0.5)
        assert len(steps.steps) == count


@pytest.mark.logs_errors(DAMAGED)
async def test_an_older_generation_that_the_server_refuses_leads_to_bootstrap(
    server: ESTServer,
) -> None:
    """Its successor was in use, so it may be revoked."""
    store = CredentialStore(server.folder / "store")
    store.save(server.ca.bundle(life=dt.timedelta(seconds=100)), now=NOW())
    new = store.save(server.ca.bundle(), now=NOW())
    assert new.folder is not None
    (new.folder / "cert.pem").write_bytes(b"")
    clock = server.clock = FakeClock(NOW() + dt.timedelta(seconds=90))
    server.script = [web.Response(status=403, text="revoked [auth.certificate_revoked]")]
    steps = Steps()
    agent = Agent(settings(server, bootstrap=bootstrap(server)), clock=clock, on_step=steps)
    with pytest.raises(ServerRefused):
        await agent.advance()
    await agent.advance()
    assert server.operations()[:2] == ["simplereenroll", "simpleenroll"]
    assert steps.names()[-2:] == ["bootstrapping", "stored"]


async def test_a_current_generation_that_is_refused_leads_to_no_bootstrap(
    server: ESTServer,
) -> None:
    """An operator may have revoked it."""
    CredentialStore(server.folder / "store").save(
        server.ca.bundle(life=dt.timedelta(seconds=100)), now=NOW()
    )
    clock = server.clock = FakeClock(NOW() + dt.timedelta(seconds=90))
    server.script = [lambda: web.Response(status=403, text="revoked")] * 2
    agent = Agent(settings(server, bootstrap=bootstrap(server)), clock=clock)
    for _ in range(2):
        with pytest.raises(ServerRefused):
            await agent.advance()
    assert server.operations() == ["simplereenroll", "simplereenroll"]


@pytest.mark.logs_errors("agent needs attention")
async def test_a_file_that_is_missing_for_a_while_ends_nothing(server: ESTServer) -> None:
    configured = settings(server, bootstrap=bootstrap(server))
    secret, trust = server.folder / "secret", server.folder / "trust.pem"
    for file in (secret, trust):
        file.rename(f"{file}.away")
    async with running(configured) as steps:
        failed = await steps.reached("failed", 2)
        assert str(secret) in failed[0]["error"]
        Path(f"{secret}.away").rename(secret)
        secret.write_bytes(b"\xff\xfe")
        await steps.reached("failed", len(steps.names()) + 2)
        secret.write_text("s3cret")
        async with asyncio.timeout(20):
            while not any(str(trust) in d.get("error", "") for _, d in steps.steps):
                await asyncio.sleep(0.02)
        Path(f"{trust}.away").rename(trust)
        await steps.reached("stored")


async def test_a_damaged_nkey_seed_costs_the_events_only(server: ESTServer) -> None:
    CredentialStore(server.folder / "store").save(server.ca.bundle(), now=NOW())
    seed = server.folder / "seed"
    seed.touch(mode=0o600)
    seed.write_text("garbage")
    bus = {"url": "nats://127.0.0.1:9", "nkey_seed_file": str(seed)}
    owner = {"tenant": "demo", "service": "web"}
    async with running(settings(server, bus=bus, owner=owner)):
        for octets in (b"garbage", b"", b"\xff"):
            seed.write_bytes(octets)
            await asyncio.sleep(0.3)


# Answers.


@pytest.mark.parametrize("status", [202, 503, 429])
@pytest.mark.parametrize(
    "form",
    [
        lambda at: "1",
        lambda at: at.strftime("%a, %d %b %Y %H:%M:%S GMT"),
        lambda at: at.strftime("%A, %d-%b-%y %H:%M:%S GMT"),
        lambda at: at.ctime(),
        lambda at: "0" * 300 + "1",
        lambda at: "soon",
        lambda at: "²",
        lambda at: "Sat, 31 Feb 2026 12:00:00 GMT",
    ],
)
async def test_any_retry_after_is_waited_for_and_ends_nothing(
    server: ESTServer, status: int, form: Callable[[dt.datetime], str]
) -> None:
    def later() -> web.Response:
        at = NOW() + dt.timedelta(seconds=1)
        return web.Response(status=status, headers={"Retry-After": form(at)})

    server.script = [later]
    raw = values(server, bootstrap=bootstrap(server))
    raw["server"]["pending_limit_s"] = 0.5
    configured = AgentSettings.model_validate(raw)
    async with running(configured) as steps:
        await steps.reached("stored")
    assert server.operations().count("simpleenroll") == 2


@pytest.mark.parametrize("text", ["9" * 400, "Sat, 28 Nov 9999 12:00:00 GMT", "86401"])
async def test_an_absurd_retry_after_of_a_busy_server_is_bounded(
    server: ESTServer, text: str
) -> None:
    server.script = [lambda: web.Response(status=503, headers={"Retry-After": text})] * 3
    async with running(settings(server, bootstrap=bootstrap(server))) as steps:
        await steps.reached("stored")
        failed = await steps.reached("failed", 3)
    assert {details["retry_in_s"] for details in failed} == {0.1}


@pytest.mark.parametrize(
    "body", [b"", b"\xff\xfe", b"MIIB", b"<html>", b"0" * 2_000_000, b"\x30\x80"]
)
async def test_an_answer_of_anything_ends_nothing(server: ESTServer, body: bytes) -> None:
    server.script = [lambda: web.Response(body=body)] * 2
    async with running(settings(server, bootstrap=bootstrap(server))) as steps:
        await steps.reached("stored")


# Disks.

_FULL = """
import pathlib, resource, subprocess, sys
folder, config, fill = map(pathlib.Path, sys.argv[1:4])
subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", folder], check=True)
subprocess.run(["cp", "-a", f"{folder}.kept/.", folder], check=True)
filling = folder / "filling"
try:
    with filling.open("wb") as file:
        while True:
            file.write(b"x" * 4096)
            file.flush()
except OSError:
    pass
import threading
def room():
    fill.touch()
    while fill.exists():
        threading.Event().wait(0.05)
    filling.unlink()
threading.Thread(target=room, daemon=True).start()
from estclient.cli import main
sys.exit(main(["agent", "--config", str(config)]))
"""


def _can_mount(folder: Path) -> list[str] | None:
    """The words before a command by which it may mount a file system of its own; None if not."""
    folder.mkdir()
    for words in (["unshare", "-m"], ["unshare", "-rm"]):
        try:
            done = subprocess.run(
                [*words, "mount", "-t", "tmpfs", "tmpfs", str(folder)],
                check=False,
                capture_output=True,
            )
        except FileNotFoundError:
            return None
        if done.returncode == 0:
            return words
    return None


async def test_a_full_disk_is_named_and_renewal_goes_on_when_there_is_room(
    server: ESTServer,
) -> None:
    words = _can_mount(server.folder / "probe")
    if words is None:
        await _with_a_file_size_limit(server)
        return
    store = server.folder / "store"
    CredentialStore(store).save(server.ca.bundle(life=dt.timedelta(seconds=10)), now=NOW())
    shutil.copytree(store, f"{store}.kept", symlinks=True)
    config, fill = server.folder / "agent.yaml", server.folder / "full"
    config.write_text(yaml.safe_dump(values(server, renew_at=0.5)))
    process = await asyncio.create_subprocess_exec(
        *words,
        *(sys.executable, "-c", _FULL, str(store), str(config), str(fill)),
        stderr=asyncio.subprocess.PIPE,
    )
    assert process.stderr is not None
    try:
        entry = await _line(process.stderr, "agent step failed, retrying")
        assert entry["error"].startswith("No space left on device")
        assert str(store) in entry["error"]
        fill.unlink()
        stored = await _line(process.stderr, "agent step", step="stored")
        assert stored["serial"]
    finally:
        process.terminate()
        assert await process.wait() == 0


async def _with_a_file_size_limit(server: ESTServer) -> None:
    """Where nothing can be mounted: files that may not grow, a true error of the system too."""
    CredentialStore(server.folder / "store").save(
        server.ca.bundle(life=dt.timedelta(seconds=10)), now=NOW()
    )
    config = server.folder / "agent.yaml"
    config.write_text(yaml.safe_dump(values(server, renew_at=0.5)))
    limited = (
        "import resource, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100));"
        "from estclient.cli import main; sys.exit(main(['agent', '--config', sys.argv[1]]))"
    )
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", limited, str(config)), stderr=asyncio.subprocess.PIPE
    )
    assert process.stderr is not None
    try:
        entry = await _line(process.stderr, "agent step failed, retrying")
        assert entry["error"].startswith("File too large")
        assert str(server.folder) in entry["error"]
    finally:
        process.terminate()
        assert await process.wait() == 0


async def _line(stream: asyncio.StreamReader, message: str, **more: Any) -> dict[str, Any]:
    """The next log line with this message and these fields."""
    async with asyncio.timeout(40):
        while True:
            line = await stream.readline()
            assert line, "the agent ended"
            entry: dict[str, Any] = json.loads(line)
            if entry["message"] == message and more.items() <= entry.items():
                return entry


# Settings.


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({}, "no credential and there is no bootstrap"),
        ({"server": {"urls": ["http://localhost"], "trust_file": "x"}}, "urls"),
        ({"server": {"urls": ["https://"], "trust_file": "x"}}, "urls"),
        ({"bootstrap": {"subject": "web", "user": "u", "secret_file": "s"}}, "web"),
        ({"bootstrap": {"subject": "CN=", "user": "u", "secret_file": "s"}}, "'cn='"),
        (
            {"bootstrap": {"subject": "CN=w", "san": ["x:y"], "user": "u", "secret_file": "s"}},
            "x:y",
        ),
        (
            {"bootstrap": {"subject": "CN=w", "san": ["ip:x"], "user": "u", "secret_file": "s"}},
            "'x'",
        ),
        ({"renew_at": 2}, "renew_at"),
    ],
)
def test_settings_that_can_never_work_end_it_with_2(
    tmp_path: Path,
    changes: dict[str, Any],
    words: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    server = {"urls": ["https://localhost:1"], "trust_file": "trust.pem"}
    config = tmp_path / "agent.yaml"
    whole = {"server": server, "store": str(tmp_path / "store")} | changes
    config.write_text(yaml.safe_dump(whole))
    assert main(["agent", "--config", str(config)]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert words in lines[-1]
    assert lines[-1].startswith("estctl: ")
    assert not any("Traceback" in line for line in lines)


async def test_an_agent_without_any_way_says_so(server: ESTServer) -> None:
    with pytest.raises(CredentialMissing, match="no bootstrap"):
        await Agent(settings(server)).advance()
