"""The fixture that watches for error lines fails when it should, and only then."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from estsuite_testing.error_log import ErrorLog

STORIES = """
import logging
from pathlib import Path

import pytest
from estsuite_testing.error_log import ERRORS

LINE = '{"level": "error", "message": "%s"}\\n'
log = logging.getLogger("service")


def test_quiet():
    log.warning("we will retry")


def test_unexpected():
    log.error("a person must look")


@pytest.mark.logs_errors("asked for")
def test_expected():
    log.error("asked for")


def test_expected_until_the_end_of_the_module():
    log.error("asked for")


@pytest.fixture
def suite(tmp_path):
    ERRORS.follow(tmp_path)
    yield tmp_path / "ca-signer.log"
    ERRORS.stopped(tmp_path)


def test_unexpected_line_of_a_service(suite):
    suite.write_text(LINE % "ledger broken")


def test_traceback_of_a_service(suite):
    suite.write_text("Traceback (most recent call last):\\n  File x\\n")


@pytest.mark.logs_errors("ledger unavailable")
def test_expected_line_of_a_service(suite):
    suite.write_text(LINE % "ledger unavailable" + "not JSON\\n")
"""
STOPPING = """
import pytest
from estsuite_testing.error_log import ERRORS


@pytest.fixture(scope="module")
def suite(tmp_path_factory):
    folder = tmp_path_factory.mktemp("logs")
    ERRORS.follow(folder)
    yield
    (folder / "audit.log").write_text('{"level": "critical", "message": "lost a record"}')
    ERRORS.stopped(folder)


def test_first(suite):
    pass


def test_last(suite):
    pass
"""
CONFTEST = """
from estsuite_testing.error_fixtures import *
from estsuite_testing.error_fixtures import all_expected_errors, expected_errors
"""


def outcomes(folder: Path, tests: str) -> dict[str, str]:
    """Run the tests in a process of their own; return what is not a pass, by test."""
    (folder / "conftest.py").write_text(CONFTEST)
    (folder / "test_story.py").write_text(tests)
    (folder / "pytest.ini").write_text("[pytest]\nmarkers = logs_errors: messages\n")
    command = [sys.executable, "-m", "pytest", "-q", "-rfE", "--tb=line", "-p", "no:randomly"]
    done = subprocess.run(
        [*command, "-p", "no:cacheprovider", str(folder)],
        capture_output=True,
        text=True,
        check=False,
        env={"PYTHONPATH": str(Path(__file__).parents[2] / "support")},
        cwd=folder,
    )
    bad = [line.split() for line in done.stdout.splitlines() if "test_story.py::" in line]
    assert bad, done.stdout + done.stderr
    return {words[1].rpartition("::")[2]: words[0] for words in bad}


def test_unexpected_errors_fail_the_test_that_caused_them(tmp_path: Path) -> None:
    assert outcomes(tmp_path, STORIES) == {
        "test_unexpected": "ERROR",
        "test_unexpected_line_of_a_service": "ERROR",
        "test_traceback_of_a_service": "ERROR",
    }


def test_errors_of_a_suite_that_stops_after_the_last_test_count(tmp_path: Path) -> None:
    assert outcomes(tmp_path, STOPPING) == {"test_last": "ERROR"}


def test_a_line_that_is_not_whole_is_read_later(tmp_path: Path) -> None:
    errors, log = ErrorLog(), tmp_path / "audit.log"
    errors.follow(tmp_path)
    line = json.dumps({"level": "error", "message": "chain broken"})
    log.write_text(line)
    assert errors.unexpected(set()) == []
    log.write_text(line + "\n")
    assert errors.unexpected(set()) == [f"audit.log: {line}"]
    assert errors.unexpected(set()) == []
