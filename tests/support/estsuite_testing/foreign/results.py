"""The expected results of foreign clients and makers of CSRs (``expected.yaml``), and their check."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from estsuite_testing.e2e_stack import certificate_in
from estsuite_testing.foreign.calls import Failed, ForeignClient
from estsuite_testing.foreign.producers import PRODUCERS
from estsuite_testing.foreign.scenarios import SCENARIOS, World
from estsuite_testing.raw_client import Client

FILE = Path(__file__).with_name("expected.yaml")
NOT_THERE = "-"
_BLOCK = re.compile(rb"-----BEGIN [^-]+-----(.+?)-----END", re.DOTALL)


def expected() -> dict[str, Any]:
    """Return the whole table."""
    table = yaml.safe_load(FILE.read_text(encoding="utf-8"))
    assert isinstance(table, dict)
    return table


def cases(*clients: str) -> list[tuple[str, str]]:
    """Return client and scenario of everything that the clients can do."""
    rows = expected()["clients"]
    return [(c, s) for c in clients for s in SCENARIOS if rows[c][s] != NOT_THERE]


async def has_expected_result(world: World, client: ForeignClient, scenario: str) -> None:
    """Let a client do it; it succeeds, or fails with what the table says."""
    wanted = expected()["clients"][client.name][scenario]
    if wanted == "ok":
        await SCENARIOS[scenario](world, client)
        return
    with pytest.raises(Failed) as failed:
        await SCENARIOS[scenario](world, client)
    assert re.search(wanted, str(failed.value), re.DOTALL), failed.value


async def answers(world: World, folder: Path) -> dict[str, str]:
    """Send every CSR of a folder, as base64 of DER and as PEM; return ``ok`` or the code by case."""
    client = Client.of(world.stack)
    found = {}
    for file in sorted(folder.glob("*.csr")):
        pem = file.read_bytes()
        block = _BLOCK.search(pem)
        assert block is not None, file
        seen = set()
        for form in (block[1], pem):
            answer = await client.enroll(form)
            seen.add("ok" if answer.status == 200 else answer.headers["X-Error-Code"])
            if answer.status == 200:
                certificate = certificate_in(answer.body)
                assert certificate.subject.rfc4514_string() == f"CN=dev-{file.stem}"
        assert len(seen) == 1, (file.stem, seen)
        found[file.stem] = seen.pop()
    return found


async def are_answered_as_expected(world: World, tool: str, folder: Path) -> None:
    """Let a tool make its CSRs; each is answered as the table says."""
    await asyncio.to_thread(PRODUCERS[tool], folder)
    found = await answers(world, folder)
    assert found == expected()["requests"][tool]["cases"]
