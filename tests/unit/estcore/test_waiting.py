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


@given(st.floats(min_value=1, max_value=86_400))
def test_long_sleeps_end_at_whole_seconds_near_the_wanted_time(seconds: float) -> None:
    now, until = _until(seconds)
    assert until == int(until)
    assert -0.6 <= until - now - seconds <= 0.6


@given(st.floats(min_value=0, max_value=0.999))
def test_short_sleeps_are_exact(seconds: float) -> None:
    now, until = _until(seconds)
    assert 0 <= until - now - seconds < 0.1


async def test_jobs_of_different_periods_wake_together() -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    await asyncio.sleep(1 - loop.time() % 1 + 0.1)  # no second ends while they begin

    async def woken(after_s: float) -> float:
        await asyncio.sleep(after_s)
        assert not await sleep_or_stop(stop, 1)
        return loop.time()

    moments = await asyncio.gather(*(woken(0.05 * n) for n in range(6)))
    assert max(moments) - min(moments) < 0.2
    stop.set()
    assert await sleep_or_stop(stop, 60)
