"""The queue of keys: each once at a time, the earliest moment counts, nothing is lost."""

from __future__ import annotations

import asyncio

from hypothesis import given
from hypothesis import strategies as st

from est_issuer.work_queue import WorkQueue


async def drained(queue: WorkQueue[str], count: int) -> list[str]:
    async with asyncio.timeout(5):
        return [await queue.get() for _ in range(count)]


@given(st.lists(st.sampled_from("abcde"), min_size=1))
def test_keys_come_once_in_their_order(keys: list[str]) -> None:
    async def run() -> list[str]:
        queue: WorkQueue[str] = WorkQueue()
        for key in keys:
            queue.add(key)
        return await drained(queue, len(set(keys)))

    assert asyncio.run(run()) == list(dict.fromkeys(keys))


async def test_a_key_added_while_it_is_processed_comes_again_afterwards() -> None:
    queue: WorkQueue[str] = WorkQueue()
    queue.add("a")
    assert await queue.get() == "a"
    queue.add("a")
    queue.add("b")
    assert await queue.get() == "b"
    queue.done("a")
    queue.done("b")
    assert await drained(queue, 1) == ["a"]
    queue.done("a")
    assert len(queue) == 0


async def test_the_earliest_moment_counts() -> None:
    queue: WorkQueue[str] = WorkQueue()
    queue.add("late", 3600)
    queue.add("soon", 0.01)
    queue.add("soon", 3600)
    assert await drained(queue, 1) == ["soon"]
    queue.add("late")
    assert await drained(queue, 1) == ["late"]


async def test_a_waiting_worker_gets_a_key_that_is_added_later() -> None:
    queue: WorkQueue[str] = WorkQueue()
    workers = [asyncio.ensure_future(queue.get()) for _ in range(2)]
    await asyncio.sleep(0)
    queue.add("a")
    queue.add("b", 0.01)
    assert {*await asyncio.wait_for(asyncio.gather(*workers), 5)} == {"a", "b"}
