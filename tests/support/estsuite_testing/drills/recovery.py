"""Time to recover: from the end of a fault until the whole path works for a new client."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Any

from audit.packed_leaf import LEAF, unpack
from estsuite_testing.chaos.faults import connect
from estsuite_testing.chaos.world import World
from estsuite_testing.drills.report import Recovery
from estsuite_testing.e2e_stack import StubbornClient

_NEWEST = "select coalesce(max(log_index), 0) from audit.record"
_OUTCOMES = f"""
select record_id::text, {LEAF} from audit.record where log_index >= $1 and phase = 'outcome'
"""
_AGAIN_S = 0.2


async def recover(world: World, name: str, over_s: float, give_up_s: float) -> Recovery:
    """Wait for readiness, and meanwhile for a certificate, its audit record and its delivery.

    ``over_s`` is when the fault ended (monotonic). Nothing is waited for longer than ``give_up_s``
    from then.
    """
    client = StubbornClient(world.stack(), list(world.ports.values()), deadline_s=give_up_s)
    enrolled: list[float] = []

    async def deliver() -> None:
        ((newest,),) = await _in_database(world, _NEWEST)
        _, certificate = await client.enroll(name)
        enrolled.append(time.monotonic() - over_s)
        await _delivered(world, newest, f"{certificate.serial_number:x}")

    async def be_ready() -> None:
        while not all(world.is_running(i) for _, i in world.instances()) or await world.unready():
            await asyncio.sleep(_AGAIN_S)

    async def timed(wait: Callable[[], Awaitable[None]]) -> float | None:
        try:
            async with asyncio.timeout(max(0.0, over_s + give_up_s - time.monotonic())):
                await wait()
        except TimeoutError:
            return None
        return round(time.monotonic() - over_s, 2)

    ready_s, delivered_s = await asyncio.gather(timed(be_ready), timed(deliver))
    enrolled_s = round(enrolled[0], 2) if enrolled else None
    return Recovery(ready_s=ready_s, enrolled_s=enrolled_s, delivered_s=delivered_s)


async def _delivered(world: World, newest: int, serial: str) -> None:
    """Wait until the outcome of an issuance is in the audit log, then at the SIEM."""
    siem = world.suite.siem
    assert siem is not None
    while True:
        outcomes = await _in_database(world, _OUTCOMES, newest)
        names = [name for name, leaf in outcomes if serial in unpack(leaf).lower()]
        messages = siem.messages() if names else []
        if any(name in message for name in names for message in messages):
            return
        await asyncio.sleep(_AGAIN_S)


async def _in_database(world: World, query: str, *arguments: object) -> list[Any]:
    """Return the rows of a query, past the proxy, once PostgreSQL accepts connections."""
    connection = await connect(world)
    try:
        return [tuple(row) for row in await connection.fetch(query, *arguments)]
    finally:
        await connection.close()
