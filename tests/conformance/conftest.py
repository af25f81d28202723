"""The server under test: ``EST_TARGET`` and its friends, else a suite of our own."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio
from e2e_stack import POLICY, start_stack, stop_stack
from est_target import Target, from_environment
from raw_client import BASE


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def target(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Target]:
    """The server under test, running."""
    url = os.environ.get("EST_TARGET")
    if url:
        yield from_environment(url)
        return
    folder = tmp_path_factory.mktemp("conformance")
    policy = folder / "policy.yaml"
    generated = "operations: [simpleenroll, simplereenroll, serverkeygen]"
    policy.write_text(
        POLICY.read_text().replace("retry_after_s: 1", f"retry_after_s: 1\n    {generated}", 1)
    )
    stack = await start_stack(folder / "suite", policy=policy)
    try:
        yield Target(
            host="localhost",
            port=stack.layout.ports.est,
            ca=stack.layout.root_file,
            user="load",
            password=stack.secret,
            base=BASE,
            label="services",
            common_name="dev-conformance",
            serverkeygen=True,
        )
    finally:
        await stop_stack(stack)
