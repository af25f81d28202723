"""How long jobs sleep: together where they look now and then, exactly where it is short."""

from __future__ import annotations

import asyncio

from hypothesis import given
from hypothesis import strategies as st

from estcore.runtime.service import sleep_or_stop, wake_at


def _until(seconds: float) -> tuple[float, float]:
    async def asked() -> tuple[float, float]:
        now = asyncio.get_running_loop().time()
        return now, wake_at(seconds)

    return asyncio.run(asked())


@given(st.floats(min_value=1, max_value=86_400), st.floats(min_value=1, max_value=86_400))
def test_long_sleeps_end_whole_seconds_apart_near_the_wanted_time(one: float, two: float) -> None:
    (now, first), (_, second) = _until(one), _until(two)
    assert abs(first - second - round(first - second)) < 1e-6
    assert -0.6 <= first - now - one <= 0.6


@given(st.floats(min_value=0, max_value=0.999))
def test_short_sleeps_are_exact(seconds: float) -> None:
    now, until = _until(seconds)
    assert 0 <= until - now - seconds < 0.1


async def test_a_sleep_lasts_until_its_moment_or_until_the_process_stops() -> None:
    stop, loop = asyncio.Event(), asyncio.get_running_loop()
    until = wake_at(1)
    assert not await sleep_or_stop(stop, 1)
    assert loop.time() >= until - 0.01
    stop.set()
    assert await sleep_or_stop(stop, 60)
