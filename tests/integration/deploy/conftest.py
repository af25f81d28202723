"""Fixtures: what ``prepare`` makes with real paths, and what kustomize renders."""

from __future__ import annotations

import pytest

from estsuite_testing.deployment import context, prepared, root
from estsuite_testing.installing import Installation

__all__ = ["context", "prepared", "root"]


@pytest.fixture(scope="module")
def installation(tmp_path_factory: pytest.TempPathFactory) -> Installation:
    """The environment into which a module's tests install, one after another."""
    return Installation(tmp_path_factory.mktemp("installation"))
