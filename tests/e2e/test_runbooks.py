"""The fault pages of the runbooks on a running suite under light traffic.

Each test makes a fault, waits for every quoted text under "Seen" of its page (readiness, metric,
code, log line, stream), runs the page's commands as written, and waits for "Over when". The
texts are read from the page, so page and product cannot differ.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import shlex
import shutil
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import pytest_asyncio
import yaml

from estcore.messages import topics
from estcore.runtime.bus import Bus
from estcore.runtime.settings import BusSettings
from estdev.layout import COMMANDS
from estdev.local import admin_get
from estsuite_testing.e2e_stack import POLICY, Stack, make_csr, start_stack, stop_stack
from estsuite_testing.raw_client import BASE, Client, b64

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.slow,
    pytest.mark.timeout(240),
    pytest.mark.asyncio(loop_scope="module"),
]
PAGE = Path(__file__).parents[2] / "docs" / "operations" / "runbooks.md"
NAMES_NO_SYMPTOM = {
    "/readyz": "what is asked",
    "answer_timeout_s": "a setting",
    "migrate": "a command",
    "consumers": "beside `streams`: whichever a process notices first",
    "dead.<service>.<reason>": "a topic, in the stream that is looked at",
    "CANARY": "the stream that is lost",
}
STREAMS = (topics.EST_REQUESTS, topics.AUDIT_ISSUE, topics.AUDIT_REFUSAL, topics.DEAD_LETTERS)


def section(heading: str) -> str:
    return PAGE.read_text(encoding="utf-8").split(f"\n## {heading}\n", 1)[1].split("\n## ", 1)[0]


def symptoms(heading: str) -> list[str]:
    """Return what is quoted in the paragraph "Seen" of a page."""
    seen = section(heading).split("**Seen.**", 1)[1].split("\n\n", 1)[0]
    quoted = [" ".join(text.split()) for text in re.findall(r"`([^`]+)`", seen)]
    assert quoted, heading
    return [text for text in quoted if text not in NAMES_NO_SYMPTOM]


@dataclass
class Watched:
    """A suite with clients that never stop asking, and everything an operator can see of it."""

    stack: Stack
    bus: Bus
    answers: list[str] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)
    _before: dict[str, float] = field(default_factory=dict)
    _logs: dict[Path, int] = field(default_factory=dict)

    async def traffic(self, path: str) -> None:
        """Enroll, one after another."""
        number = 0
        client = Client.of(self.stack)
        while True:
            number += 1
            _, csr = make_csr(f"dev-runbook-{number}")
            with contextlib.suppress(OSError, TimeoutError, asyncio.IncompleteReadError):
                async with asyncio.timeout(30):
                    answer = await client.enroll(b64(csr), path=path)
                self.answers.append(f"{answer.status} {answer.body.decode(errors='replace')}")
            await asyncio.sleep(0.5)

    async def begin(self) -> None:
        """Forget what was seen until now."""
        self.texts.clear()
        self.answers.clear()
        self._before = await self.values()
        self._logs = {p: p.stat().st_size for p in self.stack.layout.logs.glob("*.log")}

    async def values(self) -> dict[str, float]:
        """Metrics of all processes with their labels, and the lengths of the streams."""
        values: dict[str, float] = {}
        for instance, running in list(self.stack.suite.services.items()):
            for line in (await admin_get(running.admin_port, "/metrics")).splitlines():
                if line and line[0] != "#" and " " in line:
                    name, value = line.rsplit(" ", 1)
                    with contextlib.suppress(ValueError):  # a process that does not answer
                        values[f"{instance} {name}"] = float(value)
        with contextlib.suppress(Exception):  # NATS is what was stopped
            async with asyncio.timeout(2):
                for stream in STREAMS:
                    info = await self.bus.client.jetstream().stream_info(stream)
                    values[f"nats {stream}"] = info.state.messages
        return values

    async def look(self) -> None:
        for running in list(self.stack.suite.services.values()):
            self.texts.append(await admin_get(running.admin_port, "/readyz"))
        for path in self.stack.layout.logs.glob("*.log"):
            with path.open("rb") as file:
                file.seek(self._logs.get(path, 0))
                self.texts.append(file.read().decode(errors="replace"))

    def is_seen(self, symptom: str, values: dict[str, float]) -> bool:
        name, _, labels = symptom.strip("…").rstrip("}").partition("{")
        for key, value in values.items():
            ours = name in key if symptom[0] == "…" else f" {name}" in key
            if ours and labels in key and value != self._before.get(key, 0.0):
                return True
        if symptom.startswith("not ready: "):
            part = symptom.removeprefix("not ready: ")
            return any(t.startswith("not ready: ") and part in t for t in self.texts)
        pattern = re.sub(r"<\w+>", r"[\\w.-]+", re.escape(symptom))
        return any(re.search(pattern, text) for text in [*self.texts, *self.answers])

    async def until_seen(self, heading: str, *more: str, within_s: float = 45) -> None:
        """Wait until every symptom of the page was there, with ``more`` that the test knows."""
        waiting = [*symptoms(heading), *more]
        loop = asyncio.get_running_loop()
        end = loop.time() + within_s
        while waiting:
            assert loop.time() < end, f"{heading}: never seen: {waiting}; {self.answers[-5:]}"
            await self.look()
            values = await self.values()
            waiting = [text for text in waiting if not self.is_seen(text, values)]
            await asyncio.sleep(0.5)

    async def run_page(self, heading: str) -> None:
        """Run the commands of a page as written; the variables name the settings, as here."""
        services = {command: service for service, command in COMMANDS.items()}
        for block in re.findall(r"^```\n(.*?)^```$", section(heading), re.M | re.S):
            for line in block.splitlines():
                command, *arguments = shlex.split(line, comments=True)
                config = self.stack.layout.config_file(services[command])
                await self.stack.suite.run(command, *arguments, "--config", str(config))

    async def until_over(self, within_s: float = 90) -> None:
        """Wait until every service is ready and a client gets a certificate."""
        async with asyncio.timeout(within_s):
            for running in list(self.stack.suite.services.values()):
                while not (await admin_get(running.admin_port, "/readyz")).startswith("ready"):
                    await asyncio.sleep(0.2)
            self.answers.clear()
            while not any(answer.startswith("200") for answer in self.answers):
                await asyncio.sleep(0.2)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def watched(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Watched]:
    folder = tmp_path_factory.mktemp("runbooks")
    policy = yaml.safe_load(POLICY.read_text())
    policy["labels"]["strict"]["authentication"] = ["certificate", "secret"]
    policy["rules"][0]["labels"] = ["services", "strict"]
    path = folder / "policy.yaml"
    path.write_text(yaml.safe_dump(policy))
    stack = await start_stack(folder, policy=path)
    seed = stack.layout.nats.seed_file("migrate")
    settings = BusSettings(url=stack.layout.nats.url, nkey_seed_file=seed)
    bus = await Bus.connect(settings, "migrate", "test", seed=seed.read_text().strip())
    whole = Watched(stack, bus)
    # One label that answers 202 when it takes long, and one that answers 503.
    traffic = [
        asyncio.create_task(whole.traffic(f"{BASE}/{label}simpleenroll"))
        for label in ("", "strict/")
    ]
    try:
        yield whole
    finally:
        for task in traffic:
            task.cancel()
        await asyncio.gather(*traffic, return_exceptions=True)
        await bus.close()
        await stop_stack(stack)


async def test_PostgreSQL_is_down(watched: Watched) -> None:
    await watched.begin()
    await watched.stack.layout.postgres.stop(immediate=True)
    await watched.until_seen("PostgreSQL is down", "not ready: database")
    assert all(answer[:3] in {"200", "202", "503"} for answer in watched.answers)
    await watched.stack.layout.postgres.start()
    await watched.until_over()


async def test_ca_signer_is_down(watched: Watched) -> None:
    await watched.begin()
    await watched.stack.suite.stop_service("ca-signer", kill=True)
    await watched.until_seen("ca-signer is down", "202")
    front_end = watched.stack.suite.services["est-frontend"]
    assert (await admin_get(front_end.admin_port, "/readyz")).startswith("ready")
    config = str(watched.stack.layout.config_file("ca-signer"))
    assert "`ca-signer check-config`" in section("ca-signer is down")
    await watched.stack.suite.run("ca-signer", "check-config", "--config", config)
    await watched.stack.suite.start_service("ca-signer", "ca-signer", wait=True)
    await watched.until_over()


async def test_NATS_is_down_and_its_streams_are_lost(watched: Watched) -> None:
    await watched.begin()
    nats = watched.stack.layout.nats
    await nats.stop(kill=True)
    await watched.until_seen("NATS is down")
    shutil.rmtree(nats.store)
    await nats.start()
    stored = "NATS is connected and stores nothing"
    await watched.until_seen(stored, "bus.storage", "does not exist")
    await watched.run_page("NATS is down")
    await watched.until_over()
    values = await watched.values()
    assert values["est-frontend est_frontend_spooled_records"] == 0
    assert values["est-frontend estsuite_streams_writable"] == 1


@pytest.mark.logs_errors("audit message unreadable")
async def test_dead_letters(watched: Watched) -> None:
    await watched.begin()
    seed = watched.stack.layout.nats.seed_file("est-frontend")
    nats = watched.stack.layout.nats
    settings = BusSettings(url=nats.url, nkey_seed_file=seed, senders_file=nats.senders_file)
    bus = await Bus.connect(settings, "est-frontend", "runbook")
    try:
        await bus.publish_unconfirmed("audit.refusal.est-frontend.default", b"no JSON")
        await watched.until_seen("Dead letters")
    finally:
        await bus.close()
    await watched.until_over()
