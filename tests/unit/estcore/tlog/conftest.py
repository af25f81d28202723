"""Fixtures: a log in memory and its records."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from estsuite_testing import memory_log
from estsuite_testing.memory_log import MemoryLog, Record


@pytest.fixture
def make_record() -> Callable[..., Record]:
    return memory_log.record


@pytest.fixture
def make_log() -> Callable[..., MemoryLog]:
    return memory_log.make_log
