"""EST clients of other makers against a suite: BouncyCastle and GlobalSign's.

What each is expected to do is in ``estsuite_testing/foreign/expected.yaml``, from which
docs/interoperability.md is written. curl and strongSwan are in ``tests/e2e/test_foreign_clients.py``.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest
import pytest_asyncio

from estsuite_testing.foreign.bouncycastle import BouncyCastle
from estsuite_testing.foreign.calls import ForeignClient
from estsuite_testing.foreign.globalsign import GlobalSign
from estsuite_testing.foreign.results import cases, has_expected_result
from estsuite_testing.foreign.scenarios import World

pytestmark = [pytest.mark.e2e, pytest.mark.asyncio(loop_scope="session")]

CLIENTS: dict[str, Callable[[], ForeignClient]] = {
    client.name: client for client in (BouncyCastle, GlobalSign)
}


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def built() -> dict[str, ForeignClient]:
    """Clients that were built, by name."""
    return {}


@pytest.mark.parametrize(("name", "scenario"), cases(*CLIENTS))
async def test_B12_C4_L2_a_client_of_others_works(
    world: World, built: dict[str, ForeignClient], name: str, scenario: str
) -> None:
    if name not in built:
        built[name] = await asyncio.to_thread(CLIENTS[name])
    await has_expected_result(world, built[name], scenario)
