"""Fixtures that fail for an error line which no test asked for, wherever it is logged.

- While a test runs, and in the set-up of its fixtures: the test fails.
- While fixtures of a module stop, such as a whole suite: the module's last test has an error.
- While fixtures of the session stop: the session's last test has an error.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator

import pytest

from estsuite_testing.error_log import ERRORS


def _check(expected: set[str]) -> None:
    lines = ERRORS.unexpected(expected)
    assert not lines, "error lines that no test asked for (logs_errors):\n" + "\n".join(lines)


def _listen() -> None:
    # Services in this process configure logging anew.
    root = logging.getLogger()
    if ERRORS not in root.handlers:
        root.addHandler(ERRORS)


@pytest.fixture(scope="session", autouse=True)
def all_expected_errors() -> Iterator[set[str]]:
    """Messages at level error that any test so far has asked for."""
    expected: set[str] = set()
    _listen()
    yield expected
    _check(expected)
    logging.getLogger().removeHandler(ERRORS)


@pytest.fixture(scope="module", autouse=True)
def expected_errors(all_expected_errors: set[str]) -> Iterator[set[str]]:
    """Messages at level error that the module's tests so far have asked for."""
    expected: set[str] = set()
    _listen()
    yield expected
    all_expected_errors |= expected
    _check(expected)


@pytest.fixture(autouse=True)
def no_unexpected_error_is_logged(
    request: pytest.FixtureRequest, expected_errors: set[str]
) -> Iterator[None]:
    """Fail the test after which a log has an error line that no test asked for."""
    for mark in request.node.iter_markers("logs_errors"):
        expected_errors.update(mark.args)
    _listen()
    yield
    _check(expected_errors)
