"""EST clients of other makers against a suite: usg-est-client and est-ca, which take minutes to build.

A file of its own: while one worker builds them, another runs the other tests.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest
import pytest_asyncio

from estsuite_testing.foreign.calls import ForeignClient
from estsuite_testing.foreign.crates import ESTCA, USG
from estsuite_testing.foreign.results import cases, has_expected_result
from estsuite_testing.foreign.scenarios import World

pytestmark = [pytest.mark.e2e, pytest.mark.asyncio(loop_scope="session"), pytest.mark.timeout(1800)]

CLIENTS: dict[str, Callable[[], ForeignClient]] = {client.name: client for client in (USG, ESTCA)}


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def built() -> dict[str, ForeignClient]:
    """Clients that were built, by name."""
    return {}


@pytest.mark.parametrize(("name", "scenario"), cases(*CLIENTS))
async def test_B12_C4_a_client_of_crates_io_works(
    world: World, built: dict[str, ForeignClient], name: str, scenario: str
) -> None:
    if name not in built:
        built[name] = await asyncio.to_thread(CLIENTS[name])
    await has_expected_result(world, built[name], scenario)
