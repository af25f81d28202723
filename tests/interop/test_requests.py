"""CSRs by the tools that people make them with: each is answered as the table of results says."""

from __future__ import annotations

from pathlib import Path

import pytest

from estsuite_testing.foreign.results import are_answered_as_expected
from estsuite_testing.foreign.scenarios import World

pytestmark = [pytest.mark.e2e, pytest.mark.asyncio(loop_scope="session")]


@pytest.mark.parametrize("tool", ["strongswan", "keytool", "certtool", "cfssl", "certutil", "node"])
async def test_B4_E5_requests_of_a_tool_are_answered_as_expected(
    world: World, tool: str, tmp_path: Path
) -> None:
    await are_answered_as_expected(world, tool, tmp_path)
