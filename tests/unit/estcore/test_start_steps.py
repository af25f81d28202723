"""Steps of a start that need bus or database: waited for, not ended by."""

from __future__ import annotations

import asyncio

import pytest

from estcore.errors import BusUnavailable, ConfigurationError
from estcore.runtime.service import done_or_stop


async def test_a_step_is_tried_until_it_is_done() -> None:
    tries: list[int] = []

    async def step() -> None:
        tries.append(1)
        if len(tries) < 3:
            raise BusUnavailable("away")

    assert await done_or_stop(asyncio.Event(), step, "publish state")
    assert len(tries) == 3


async def test_a_process_that_stops_waits_no_longer() -> None:
    stop = asyncio.Event()

    async def step() -> None:
        stop.set()
        raise BusUnavailable("away")

    assert not await done_or_stop(stop, step, "publish state")


async def test_what_does_not_pass_ends_the_start() -> None:
    async def step() -> None:
        raise ConfigurationError("wrong")

    with pytest.raises(ConfigurationError):
        await done_or_stop(asyncio.Event(), step, "publish state")
