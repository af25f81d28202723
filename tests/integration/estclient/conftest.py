"""A small EST server with a real CA: the stand-in for est-frontend, the client's peer."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from estsuite_testing.est_server import CA, ESTServer


@pytest.fixture(scope="session")
def ca() -> CA:
    return CA()


@pytest.fixture
async def server(ca: CA, tmp_path: Path) -> AsyncIterator[ESTServer]:
    server = ESTServer(ca, tmp_path)
    await server.start()
    yield server
    await server.stop()
    await asyncio.sleep(0)
