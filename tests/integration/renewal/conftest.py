"""est-renewal in this process, on real servers, and everybody around it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from estsuite_testing.platform import Platform
from estsuite_testing.renewal_bench import Bench, prepare, renewal_bench, settings_for
from renewal.settings import RenewalSettings


@pytest.fixture(scope="module")
def migrated(platform: Platform) -> RenewalSettings:
    """Streams and the renewal schema, once a module."""
    settings = settings_for(platform)
    asyncio.run(prepare(platform, settings))
    return settings


@pytest.fixture
async def bench(platform: Platform, migrated: RenewalSettings) -> AsyncIterator[Bench]:
    """Connections of everybody around est-renewal; tables emptied."""
    async with renewal_bench(platform, migrated) as bench:
        yield bench
