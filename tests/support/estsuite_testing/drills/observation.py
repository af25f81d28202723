"""What an operator sees during a fault: readiness, and what the runbook's page says is seen."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterable

from estdev.local import admin_get
from estsuite_testing.chaos.world import World
from estsuite_testing.runbook_pages import Watched, symptoms

_EVERY_S = 0.5
_NOT_REACHABLE = "not reachable"


class Observer:
    """Asks every process for its readiness and its metrics, until it is stopped."""

    def __init__(self, world: World, watched: Watched, runbook: str) -> None:
        self._world, self._watched = world, watched
        self._waiting = symptoms(runbook) if runbook else []
        self.symptoms: list[str] = []
        """Texts of the page that were seen, in the order in which they were seen."""
        self._readiness: dict[str, set[str]] = {}

    async def run(self, stop: asyncio.Event) -> None:
        """Look twice a second until ``stop``."""
        while not stop.is_set():
            await asyncio.gather(*(self._ask(s, i) for s, i in self._world.instances()))
            if self._waiting:
                await self._watched.look()
                await self._look_for_symptoms()
            await asyncio.sleep(_EVERY_S)

    async def finish(self, answers: Iterable[str]) -> None:
        """Look for symptoms in what clients were answered, after ``run`` has returned."""
        self._watched.answers[:] = answers
        await self._look_for_symptoms()

    @property
    def readiness(self) -> dict[str, list[str]]:
        """Failing checks by service; ``not reachable`` without connection, empty without answer."""
        return {service: sorted(said) for service, said in self._readiness.items() if said}

    @property
    def unseen(self) -> list[str]:
        """Texts of the page that were not seen."""
        return self._waiting

    async def _ask(self, service: str, instance: str) -> None:
        running = self._world.suite.services.get(instance)
        answer = (
            _NOT_REACHABLE if running is None else await admin_get(running.admin_port, "/readyz")
        )
        if not answer.startswith("ready"):
            said = self._readiness.setdefault(service, set())
            said |= set(re.split(r",\s*", answer.strip().removeprefix("not ready: ")))

    async def _look_for_symptoms(self) -> None:
        values = await self._watched.values()
        seen = [text for text in self._waiting if self._watched.is_seen(text, values)]
        self._waiting = [text for text in self._waiting if text not in seen]
        self.symptoms += seen
