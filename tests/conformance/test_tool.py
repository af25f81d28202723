"""``make conformance TARGET=…`` against servers that are not ours."""

from __future__ import annotations

import base64
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from xml.etree import ElementTree

import pytest

from estsuite_testing.conformance_check import FAIL, NOT_JUDGED, PASS, Check, Verdict
from estsuite_testing.conformance_report import ConformanceReport, Redactor
from estsuite_testing.conformance_run import PASSWORD, TOOL, USER, Run, run_against
from estsuite_testing.est_target import Target
from estsuite_testing.foreign_server import ForeignServer


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    return tmp_path_factory.mktemp


@pytest.fixture(scope="module")
def refusing(folder: Callable[[str], Path]) -> Iterator[Run]:
    """Every POST is answered 415."""
    place = folder("refusing")
    server = ForeignServer(place, refuse=415)
    yield run_against(server.url, server.ca_file, place)
    server.close()


@pytest.fixture(scope="module")
def open_server(folder: Callable[[str], Path]) -> Iterator[tuple[ForeignServer, Run]]:
    """Anybody gets anything."""
    place = folder("open")
    server = ForeignServer(place)
    yield server, run_against(server.url, server.ca_file, place)
    server.close()


@pytest.mark.slow
def test_where_everything_is_refused_no_refusal_counts(refusing: Run) -> None:
    assert refusing.verdict("E3") == (
        "M", "FAIL", "a good CSR was answered 415: got Basic [password]",
    )  # fmt: skip
    for item in ("E5", "E6", "M1", "E2", "B3", "A16", "A18", "F4", "E1"):
        _, state, sentence = refusing.verdict(item)
        assert state == "not judged", item
        assert sentence == "a good CSR was not accepted: the answer was 415: got Basic [password]"
    assert refusing.verdict("C4")[:2] == ("S", "pass")
    assert refusing.code == 1


@pytest.mark.slow
def test_where_anybody_enrolls_the_missing_refusals_fail(
    open_server: tuple[ForeignServer, Run],
) -> None:
    run = open_server[1]
    assert run.verdict("E1") == ("M", "FAIL", "a CSR without credentials was answered 200")
    assert run.verdict("L1")[1] == "not judged"
    assert run.verdict("E5")[:2] == ("M", "FAIL")
    assert run.verdict("M1") == ("M", "FAIL", "a wrong tls-unique value was answered 200")
    assert run.verdict("E3")[1] == "pass"
    assert run.verdict("E10")[1] == "pass"
    assert run.verdict("H4")[1:] == ("not judged", "not said to make keys (--serverkeygen)")
    assert run.code == 1


@pytest.mark.slow
def test_what_a_server_does_not_do_is_said_in_a_sentence(
    open_server: tuple[ForeignServer, Run],
) -> None:
    run = open_server[1]
    level, state, sentence = run.verdict("A18")
    assert (level, state) == ("X", "FAIL")
    assert sentence == (
        "the head of a request of 10000000 bytes, and then nothing: "
        "the server did not answer in time"
    )
    assert run.verdict("A6")[2].startswith("POST cacerts was answered ")
    for word in ("Error:", "Traceback", "KeyError", "assert "):
        assert word not in run.everything


@pytest.mark.slow
def test_requests_are_labelled_base64_but_for_one(open_server: tuple[ForeignServer, Run]) -> None:
    """RFC 7030 clients send Content-Transfer-Encoding; only B1 tries without and with others."""
    encodings = open_server[0].encodings
    assert encodings.count(None) == 1
    assert set(encodings) == {None, "base64", "binary", "nonsense"}
    assert encodings.count("base64") > 20


def test_a_server_that_cannot_be_used_is_said_before_anything_is_tried(tmp_path: Path) -> None:
    server, stranger = tmp_path / "server", tmp_path / "stranger"
    server.mkdir()
    stranger.mkdir()
    reachable, other = ForeignServer(server), ForeignServer(stranger)
    other.close()
    (tmp_path / "password").write_text(PASSWORD)
    for url, ca, sentence in (
        (reachable.url, other.ca_file, "the server's certificate is not trusted: "),
        (other.url, other.ca_file, "the connection failed: Connection refused"),
        ("https://u:secret@localhost", other.ca_file, "--target is a URL of the form"),
        (reachable.url, tmp_path / "password", "TLS failed: "),
        (reachable.url, tmp_path / "missing", "cannot read "),
    ):
        done = subprocess.run(
            [
                sys.executable, TOOL, "--target", url, "--ca", ca,
                "--password-file", tmp_path / "password",
            ],
            capture_output=True,
            text=True,
            check=False,
        )  # fmt: skip
        assert (done.returncode, done.stdout) == (2, "")
        assert sentence in done.stderr
    reachable.close()


@pytest.mark.slow
def test_levels_are_counted_and_reported(open_server: tuple[ForeignServer, Run]) -> None:
    run = open_server[1]
    counts = re.search(r"^M +must of an RFC +(\d+) +(\d+) +(\d+)$", run.output, re.MULTILINE)
    assert counts is not None
    passed, failed, open_ = map(int, counts.groups())
    assert failed > 2
    assert f"| M, must of an RFC | {passed} | {failed} | {open_} |" in run.markdown
    assert "| E1 | M | FAIL | no certificate without authentication" in run.markdown
    assert run.junit.get("failures") == str(failed)
    failures = run.junit.findall(".//testcase/failure/..")
    assert all(re.match(r"[A-P]\d+ \(M\) ", str(case.get("name"))) for case in failures)


@pytest.mark.slow
def test_the_password_is_in_no_output(
    refusing: Run, open_server: tuple[ForeignServer, Run]
) -> None:
    """Both servers repeat the Authorization header in their errors."""
    basic = base64.b64encode(f"{USER}:{PASSWORD}".encode()).decode()
    for run in (refusing, open_server[1]):
        assert "[password]" in run.everything
        for secret in (PASSWORD, basic, PASSWORD[:10], PASSWORD[-10:], basic[:20], basic[-20:]):
            assert secret not in run.everything


def test_a_target_does_not_show_its_password() -> None:
    target = Target("h", 1, Path("ca"), USER, PASSWORD, "/", "", "cn", serverkeygen=False)
    assert PASSWORD not in repr(target)
    assert PASSWORD[:5] not in repr(target)


@pytest.mark.parametrize(
    "form",
    [
        PASSWORD,
        base64.b64encode(PASSWORD.encode()).decode(),
        base64.b64encode(f"{USER}:{PASSWORD}".encode()).decode().rstrip("="),
        "Zq7%21uK2%25wX9%7CbN4%3CvM6",
    ],
)
def test_the_redactor_knows_the_forms_of_a_password(form: str) -> None:
    assert Redactor(USER, PASSWORD)(f"a {form} b") == "a [password] b"


def verdicts(**states: str) -> ConformanceReport:
    found = {item: Verdict(state, f"{item} | <seen>") for item, state in states.items()}
    return ConformanceReport.of("https://h:1", found, Redactor("", ""))


@pytest.mark.parametrize(
    ("states", "met"),
    [
        ({"A1": PASS, "A18": FAIL, "C4": FAIL, "B11": FAIL}, True),
        ({"A1": PASS, "E5": NOT_JUDGED}, True),
        ({"A1": PASS, "E5": FAIL}, False),
        ({"E5": NOT_JUDGED, "C4": PASS}, False),
        ({}, False),
    ],
)
def test_the_musts_decide(states: dict[str, str], met: bool) -> None:
    assert verdicts(**states).musts_met == met


def test_a_report_survives_what_a_server_writes() -> None:
    report = verdicts(A1=FAIL)
    assert "A1 \\| &lt;seen>" in report.markdown()
    assert "A1 | &lt;seen&gt;" in report.junit()
    hostile = {"A1": Verdict(FAIL, "\x1b[31mred\x00\n\n| end")}
    text = ConformanceReport.of("h", hostile, Redactor("", ""))
    assert "?[31mred? | end" in text.table()
    ElementTree.fromstring(text.junit())  # noqa: S314 - written by the tool


def test_every_item_of_a_test_gets_its_own_verdict() -> None:
    check = Check("test_A9_A11_A13_connections")
    check("A9", True, "")
    check("A13", False, "the head is long")
    check("A13", True, "")
    check.aborted(TimeoutError())
    assert check.verdicts == {
        "A9": Verdict(FAIL, "the server did not answer in time"),
        "A13": Verdict(FAIL, "the head is long"),
        "A11": Verdict(NOT_JUDGED, "A9 failed: the server did not answer in time"),
    }
    with pytest.raises(LookupError):
        check("B1", True, "")
