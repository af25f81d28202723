"""Fixtures of all tests: real servers, and no error line that a test does not expect.

Each test module gets its own servers, in a folder that is removed afterwards; where they come
from is described in ``estsuite_testing/servers.py``. Nothing here is ever skipped.
"""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck
from hypothesis import settings as hypothesis_settings

from estsuite_testing.error_fixtures import (
    all_expected_errors,
    expected_errors,
    no_unexpected_error_is_logged,
)
from estsuite_testing.platform import Platform, running_platform
from estsuite_testing.suite_template import share_template

__all__ = ["all_expected_errors", "expected_errors", "no_unexpected_error_is_logged", "platform"]

# How fast the machine is says nothing about the code.
any_speed = hypothesis_settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
hypothesis_settings.register_profile("quick", any_speed, max_examples=10)
hypothesis_settings.register_profile("dev", any_speed, max_examples=50)
hypothesis_settings.register_profile("ci", any_speed, max_examples=200, derandomize=True)
hypothesis_settings.load_profile("ci" if os.environ.get("CI") else "dev")


_FOLDERS = (
    "chaos",
    "drills",
    "e2e",
    "interop",
    "containers",
    "cluster",
    "cert_manager",
    "conformance",
    "integration",
    "fuzz",
    "deploy",
    "docs",
    "unit",
)
# Each takes a minute or more, the longest first: none of them is left for the end.
_LONG = (
    *("test_chaos.py", "test_documents.py", "test_faults.py", "test_upstream.py"),
    *("test_restore.py", "test_rollover.py", "test_keycloak.py", "test_operations.py"),
)


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with files that take minutes, so that the workers end together; random within."""
    tests = Path(__file__).parent

    def place(item: pytest.Item) -> tuple[int, int]:
        folder, *_, name = item.path.relative_to(tests).parts
        if name in _LONG:
            return 0, _LONG.index(name)
        return 1, _FOLDERS.index(folder)

    items.sort(key=place)


def pytest_collection_finish() -> None:
    """Leave what collecting made to itself: it lives to the end, and collectors need not visit it."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session", autouse=True)
def suite_template(tmp_path_factory: pytest.TempPathFactory) -> None:
    """One set-up suite for the whole run, also where several workers run it."""
    folder = tmp_path_factory.getbasetemp()
    if os.environ.get("PYTEST_XDIST_WORKER"):
        folder = folder.parent
    share_template(folder / "suite-template")


@pytest.fixture(scope="module")
def platform(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Platform]:
    """A fresh PostgreSQL and NATS for the module."""
    with running_platform(tmp_path_factory.mktemp("platform")) as servers:
        yield servers
