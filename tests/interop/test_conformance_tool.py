"""``make conformance`` against GlobalSign's EST server, which gives anybody a certificate."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from estsuite_testing.conformance_run import Run, run_against
from estsuite_testing.foreign.est_server import globalsign_server


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Run]:
    folder = tmp_path_factory.mktemp("globalsign")
    with globalsign_server(folder) as server:
        yield run_against(server.url, server.ca_file, folder, "--serverkeygen")


def test_what_the_server_does_wrong_is_said(run: Run) -> None:
    """RSA-1024 and a wrong tls-unique are signed there; 405 comes without Allow."""
    assert run.verdict("E5") == ("M", "FAIL", "a CSR for RSA with 1024 bits was answered 200")
    assert run.verdict("M1") == ("M", "FAIL", "a wrong tls-unique value was answered 200")
    assert run.verdict("E1") == ("M", "FAIL", "a CSR without credentials was answered 200")
    assert run.verdict("A6")[:2] == ("M", "FAIL")
    assert "without Allow" in run.verdict("A6")[2]
    assert run.verdict("B1")[1] == "FAIL"
    assert "415" in run.verdict("B1")[2]
    assert run.code == 1


def test_what_the_server_does_is_not_reported_as_missing(run: Run) -> None:
    """It wants Content-Transfer-Encoding, which every request but those of B1 has."""
    for item in ("A1", "A16", "A17", "A19", "C1", "C2", "C3", "E2", "E3", "E4", "F1", "F3", "F7", "F13",
                 "H4", "H5", "H6", "I2", "K1", "K5", "L8", "M15"):  # fmt: skip
        assert run.verdict(item)[1] == "pass", run.verdict(item)


def test_levels_that_are_not_musts_fail_without_counting(run: Run) -> None:
    """An answer with a length, HEAD and empty lines between requests are asked for by clients alone."""
    musts: list[bool] = []
    others: list[bool] = []
    for case in run.junit.findall(".//testcase"):
        failed = case.find("failure") is not None
        (musts if "(M)" in str(case.get("name")) else others).append(failed)
    assert sum(musts) == int(str(run.junit.get("failures"))) > 0
    assert not any(others)
    for item, level in (("A7", "I"), ("A15", "I"), ("H7", "I"), ("A18", "X")):
        assert run.verdict(item)[:2] == (level, "FAIL")


def test_every_failure_is_a_sentence(run: Run) -> None:
    """No name of a Python exception, and no header field as its whole text."""
    assert "Error" not in run.output
    assert run.verdict("A18")[2].endswith("the server did not answer in time")
    assert run.verdict("H7")[2].startswith("no Content-Length, with a body of ")
