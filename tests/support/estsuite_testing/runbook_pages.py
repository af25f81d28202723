"""The pages of the runbooks, and what an operator can see of a running suite under light traffic."""

from __future__ import annotations

import asyncio
import contextlib
import re
import shlex
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from estcore.messages import topics
from estcore.runtime.bus import Bus
from estdev.layout import COMMANDS
from estdev.local import admin_get
from estsuite_testing.e2e_stack import Stack, make_csr
from estsuite_testing.raw_client import Client, b64

FOLDER = Path(__file__).parents[3] / "docs" / "operations" / "runbooks"
NAMES_NO_SYMPTOM = {
    "/readyz": "what is asked",
    "answer_timeout_s": "a setting",
    "migrate": "a command",
    "consumers": "beside `streams`: whichever a process notices first",
    "dead.<service>.<reason>": "a topic, in the stream that is looked at",
    "CANARY": "the stream that is lost",
    "Retry-After": "a header of the answers",
}
_ACTIONS = "select action, count(*) from audit.record group by action"
STREAMS = (topics.EST_REQUESTS, topics.AUDIT_ISSUE, topics.AUDIT_REFUSAL, topics.DEAD_LETTERS)


def section(heading: str) -> str:
    """Return a page by its heading, without it."""
    name = re.sub(r"[^a-z0-9 -]", "", heading.lower()).replace(" ", "-")
    first, _, rest = (FOLDER / f"{name}.md").read_text(encoding="utf-8").partition("\n")
    assert first == f"# {heading}"
    return rest


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
    bus: Bus | None
    """For the lengths of streams; without it, they are not looked at."""
    answers: list[str] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)
    _before: dict[str, float] = field(default_factory=dict)
    _logs: dict[Path, int] = field(default_factory=dict)
    _asking: asyncio.Event = field(default_factory=asyncio.Event)
    _under_way: int = 0

    def __post_init__(self) -> None:
        self._asking.set()

    async def traffic(self, path: str) -> None:
        """Enroll, one after another."""
        number = 0
        client = Client.of(self.stack)
        while True:
            await self._asking.wait()
            number += 1
            self._under_way += 1
            _, csr = make_csr(f"dev-runbook-{number}")
            with contextlib.suppress(OSError, TimeoutError, asyncio.IncompleteReadError):
                async with asyncio.timeout(30):
                    answer = await client.enroll(b64(csr), path=path)
                self.answers.append(f"{answer.status} {answer.body.decode(errors='replace')}")
            self._under_way -= 1
            await asyncio.sleep(0.5)

    @contextlib.asynccontextmanager
    async def quiet(self) -> AsyncIterator[None]:
        """No client asks for anything meanwhile: exports can be compared."""
        self._asking.clear()
        try:
            while self._under_way:
                await asyncio.sleep(0.1)
            yield
        finally:
            self._asking.set()

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
        with contextlib.suppress(Exception):  # PostgreSQL is what was stopped
            database = await self.stack.layout.postgres.superuser()
            try:
                for row in await database.fetch(_ACTIONS):
                    values[f"record {row['action']}"] = float(row["count"])
            finally:
                await database.close()
        if self.bus is None:
            return values
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
            if loop.time() > end:
                found = await self.values()
                changed = {k: v for k, v in found.items() if self._before.get(k) != v}
                raise AssertionError(
                    f"{heading}: never seen: {waiting}; {self.answers[-5:]}; {changed}"
                )
            await self.look()
            values = await self.values()
            waiting = [text for text in waiting if not self.is_seen(text, values)]
            await asyncio.sleep(0.5)

    async def run_page(self, heading: str, given: Mapping[str, str] | None = None) -> str:
        """Run the commands of a page as written, in a folder, with the names of this suite.

        The variables name the settings, as here. Returns what they printed.
        """
        printed = ""
        services = {command: service for service, command in COMMANDS.items()}
        for block in re.findall(r"^```\n(.*?)^```$", section(heading), re.M | re.S):
            for name, value in (given or {}).items():
                block = block.replace(name, value)
            for line in block.splitlines():
                command, *arguments = shlex.split(line, comments=True)
                config = self.stack.layout.config_file(services[command])
                printed += await self.stack.suite.run(command, *arguments, "--config", str(config))
        return printed

    async def until_over(self, within_s: float = 90) -> None:
        """Wait until every service is ready and a client gets a certificate."""
        async with asyncio.timeout(within_s):
            for running in list(self.stack.suite.services.values()):
                while not (await admin_get(running.admin_port, "/readyz")).startswith("ready"):
                    await asyncio.sleep(0.2)
            self.answers.clear()
            while not any(answer.startswith("200") for answer in self.answers):
                await asyncio.sleep(0.2)
