"""One running suite per module."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from estsuite_testing.e2e_stack import Stack, start_stack, stop_stack
from estsuite_testing.ways import World, ways


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def stack(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Stack]:
    """One suite for the module."""
    started = await start_stack(tmp_path_factory.mktemp("stack"))
    try:
        yield started
    finally:
        await stop_stack(started)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def world(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[World]:
    """One suite with every way in for the module."""
    async with ways(tmp_path_factory.mktemp("ways")) as found:
        yield found
