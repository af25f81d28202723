"""One running suite per module."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
import pytest_asyncio
from e2e_stack import Stack, start_stack, stop_stack


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def stack(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Stack]:
    """One suite for the module."""
    started = await start_stack(tmp_path_factory.mktemp("stack"))
    try:
        yield started
    finally:
        await stop_stack(started)
