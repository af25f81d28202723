"""A TLS server changes its certificate under load while agent and renewal are killed.

Twenty rotations of two-minute certificates are a benchmark (``make renewal-figures``); the servers
of docs/onboarding, of many makers, are in ``tests/interop/test_reload.py``.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from renewalbench.rotations import rotate

pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.timeout(240)]


async def test_no_handshake_fails_while_agent_and_renewal_are_killed(tmp_path: Path) -> None:
    found = await rotate(
        tmp_path, 2, print, lifetime_s=60, reaction_s=50, every_s=5, clients=2, seed=3
    )
    assert (found.failed, found.connections_ended, found.stalled) == (0, 0, 0)
    assert found.agent_ended == 0
    assert min(found.agent_kills, found.renewal_kills) >= 1
    assert found.handshakes > 50
