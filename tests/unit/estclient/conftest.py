"""A CA for the client's tests."""

from __future__ import annotations

import pytest

from estsuite_testing.est_server import CA


@pytest.fixture(scope="session")
def ca() -> CA:
    return CA()
