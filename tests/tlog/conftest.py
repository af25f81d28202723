"""Fixtures: a log in memory and its records."""

from __future__ import annotations

from collections.abc import Callable

import memory_log
import pytest
from memory_log import MemoryLog, Record


@pytest.fixture
def make_record() -> Callable[..., Record]:
    return memory_log.record


@pytest.fixture
def make_log() -> Callable[..., MemoryLog]:
    return memory_log.make_log
