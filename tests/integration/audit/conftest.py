"""The audit service in this process, on real servers."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from estcore.messages.audit import AuditRecord
from estsuite_testing.audit_stack import AuditWorld, empty_world, make_record, ready
from estsuite_testing.platform import Platform


@pytest.fixture
async def world(platform: Platform, tmp_path: Path) -> AuditWorld:
    """Servers with an empty log."""
    return await empty_world(platform, tmp_path)


@pytest.fixture
def record() -> Callable[..., AuditRecord]:
    """A builder of records."""
    return make_record


@pytest.fixture
def readiness() -> Callable[[int], Awaitable[str]]:
    """Asks an admin port."""
    return ready
