"""One suite, and the clients, for all tests of ``make interop``; programs are built at the first use."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from estsuite_testing.foreign.scenarios import World, running_world


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def world(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[World]:
    """A suite with one label for every client."""
    async with running_world(tmp_path_factory.mktemp("interop")) as found:
        yield found
