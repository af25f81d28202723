"""Clients of other makers that every machine can run: curl, and strongSwan's ``pki``.

The others are in ``tests/interop``; what each is expected to do is in
``estsuite_testing/foreign/expected.yaml``.
"""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
import pytest_asyncio

from estsuite_testing.foreign.calls import ForeignClient
from estsuite_testing.foreign.curl import Curl
from estsuite_testing.foreign.results import (
    are_answered_as_expected,
    cases,
    has_expected_result,
)
from estsuite_testing.foreign.scenarios import World, running_world
from estsuite_testing.foreign.strongswan import StrongSwan
from estsuite_testing.strongswan import Pki, strongswan_pki

pytestmark = [pytest.mark.e2e, pytest.mark.asyncio(loop_scope="module")]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def world(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[World]:
    async with running_world(tmp_path_factory.mktemp("foreign")) as found:
        yield found


@pytest.fixture(scope="module")
def pki() -> Iterator[Pki]:
    with strongswan_pki() as found:
        yield found


@pytest.fixture(scope="module")
def clients(pki: Pki) -> dict[str, ForeignClient]:
    return {client.name: client for client in (Curl(), StrongSwan(pki))}


@pytest.mark.parametrize(("name", "scenario"), cases("curl", "strongSwan pki"))
async def test_B12_C4_L3_a_client_of_others_works(
    world: World, clients: dict[str, ForeignClient], name: str, scenario: str
) -> None:
    await has_expected_result(world, clients[name], scenario)


async def test_B4_E5_requests_of_openssl_are_answered_as_expected(
    world: World, tmp_path: Path
) -> None:
    await are_answered_as_expected(world, "openssl", tmp_path)


async def test_G2_SW_polls_until_the_signer_is_back(world: World, pki: Pki, tmp_path: Path) -> None:
    made = world.request("dev-patient")
    layout = world.stack.layout
    signer = world.stack.suite.services["ca-signer"].process
    os.kill(signer.pid, signal.SIGSTOP)
    polling = asyncio.ensure_future(
        asyncio.to_thread(
            pki.run,
            *("--est", "--url", f"https://localhost:{layout.ports.est}", "--in", str(made.csr)),
            *("--cacert", str(layout.root_file), "--cacert", str(layout.ca / "issuing.pem")),
            *("--userpass", f"load:{world.stack.secret}", "--interval", "1", "--maxpolltime", "30"),
        )
    )
    await asyncio.sleep(7)  # longer than the front end waits: it answered 202
    assert not polling.done()
    os.kill(signer.pid, signal.SIGCONT)
    assert (await polling).stdout
