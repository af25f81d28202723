"""``make conformance``: the conformance tests against a suite of our own, or any EST server.

Prints a table of item, level, verdict and sentence; writes it as Markdown and JUnit XML on
request. Exit code 0: no must of an RFC failed (of our own suite: nothing failed at all);
1: something did, or no item has a verdict; 2: it could not run.
"""

from __future__ import annotations

import argparse
import os
import socket
import ssl
import subprocess
import sys
from pathlib import Path
from urllib.parse import urlsplit

import pytest

HERE = Path(__file__).parent
ROOT = HERE.parent.parent
sys.path.insert(0, str(ROOT / "tests" / "support"))

from estsuite_testing.conformance_check import FAIL, NOT_JUDGED, PASS, Verdict, sentence_of  # noqa: E402 - the folder above
from estsuite_testing.conformance_report import ConformanceReport, Redactor  # noqa: E402

OURS = "our own suite"
REPORT, JUNIT = Path("conformance-report.md"), Path("conformance-report.xml")
_SEVERITY = (PASS, NOT_JUDGED, FAIL)


class Verdicts:
    """A pytest plug-in that collects the verdicts of all tests."""

    def __init__(self) -> None:
        self.found: dict[str, Verdict] = {}
        self.broken: list[str] = []

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Take what a test decided; the worst verdict of an item counts."""
        if report.when != "call":
            if report.failed:
                self.broken.append(f"{report.nodeid}: {report.longrepr}")
            return
        for name, verdicts in report.user_properties:
            if name == "verdicts" and isinstance(verdicts, dict):
                for item, (state, sentence) in verdicts.items():
                    self._add(item, Verdict(state, sentence))

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        """Note what cannot be imported."""
        if report.failed:
            self.broken.append(str(report.longrepr))

    def _add(self, item: str, verdict: Verdict) -> None:
        before = self.found.get(item)
        if before is None or _SEVERITY.index(verdict.state) > _SEVERITY.index(before.state):
            self.found[item] = verdict


def main() -> int:
    """Run the tests; against our own suite, write docs/conformance.md afterwards."""
    parser = _parser()
    arguments = parser.parse_args()
    os.environ.pop("EST_TARGET", None)
    server, redact = OURS, Redactor("", "")
    if arguments.target is not None:
        server, redact = _foreign(arguments, parser)
        os.environ |= _environment(arguments)
    verdicts = Verdicts()
    sys.stdout.write(f"trying {server}, up to some minutes …\n\n")
    sys.stdout.flush()
    status = _run_tests(verdicts)
    report = ConformanceReport.of(server, verdicts.found, redact)
    sys.stdout.write(report.table())
    for file, text in ((arguments.report, report.markdown()), (arguments.junit, report.junit())):
        if file is not None:
            file.write_text(text, encoding="utf-8")
            sys.stdout.write(f"written: {file}\n")
    if verdicts.broken or status not in {pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED}:
        for text in verdicts.broken[:1]:
            sys.stderr.write(redact(text) + "\n")
        sys.stderr.write(f"the tests did not run to their end: {status.name}\n")
        return 2
    if arguments.target is not None:
        return 0 if report.musts_met else 1
    if status == pytest.ExitCode.OK:
        page = [sys.executable, str(ROOT / "docs" / "conformance.py")]
        return subprocess.run(page, check=False).returncode
    return 1


def _foreign(
    arguments: argparse.Namespace, parser: argparse.ArgumentParser
) -> tuple[str, Redactor]:
    """Return the name of the server to try, without credentials, and what hides the password."""
    if arguments.ca is None or arguments.password_file is None:
        parser.error("--target needs --ca and --password-file")
    parts = urlsplit(arguments.target)
    if parts.scheme != "https" or parts.hostname is None or parts.username is not None:
        parser.error("--target is a URL of the form https://host:8443")
    try:
        arguments.ca.read_bytes()
        password = arguments.password_file.read_text(encoding="utf-8").strip()
    except OSError as exc:
        parser.error(f"cannot read {exc.filename}: {exc.strerror}")
    try:
        context = ssl.create_default_context(cafile=arguments.ca)
        address = (parts.hostname, parts.port or 443)
        with socket.create_connection(address, arguments.timeout) as connection:
            context.wrap_socket(connection, server_hostname=parts.hostname).close()
    except OSError as exc:
        parser.error(f"cannot use {arguments.target} with {arguments.ca}: {sentence_of(exc)}")
    return f"https://{parts.hostname}:{parts.port or 443}", Redactor(arguments.user, password)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="make conformance", description="EST conformance of a server, seen from outside"
    )
    parser.add_argument("--target", help="https://host:port of an EST server; default: our own")
    parser.add_argument("--ca", type=Path, help="trust anchors for its certificate, PEM")
    parser.add_argument("--user", default="", help="user of HTTP Basic")
    parser.add_argument("--password-file", type=Path, help="file with the password")
    parser.add_argument("--label", default="", help="label the credentials are for")
    parser.add_argument(
        "--common-name",
        default="conformance.test",
        help="common name that the credentials may ask for (default: %(default)s)",
    )
    parser.add_argument(
        "--serverkeygen", action="store_true", help="the server generates keys: try it"
    )
    parser.add_argument(
        "--timeout", type=float, default=15, help="seconds to wait for an answer (%(default)s)"
    )
    for name, default, kind in (("report", REPORT, "Markdown"), ("junit", JUNIT, "JUnit XML")):
        parser.add_argument(
            f"--{name}",
            type=Path,
            nargs="?",
            const=default,
            metavar="FILE",
            help=f"write the report as {kind}; without a name to {default}",
        )
    return parser


def _environment(arguments: argparse.Namespace) -> dict[str, str]:
    return {
        "EST_TARGET": arguments.target,
        "EST_TARGET_CA": str(arguments.ca.resolve()),
        "EST_TARGET_USER": arguments.user,
        "EST_TARGET_PASSWORD_FILE": str(arguments.password_file.resolve()),
        "EST_TARGET_LABEL": arguments.label,
        "EST_TARGET_COMMON_NAME": arguments.common_name,
        "EST_TARGET_SERVERKEYGEN": "yes" if arguments.serverkeygen else "",
        "EST_TARGET_TIMEOUT_S": str(arguments.timeout),
    }


def _run_tests(verdicts: Verdicts) -> pytest.ExitCode:
    """Run the tests without pytest's own output, which repeats what requests contain."""
    options = ["-p", "no:terminal", "-p", "no:randomly", "--rootdir", str(ROOT)]
    options += ["-c", str(ROOT / "pyproject.toml"), "-o", "filterwarnings=ignore"]
    tests = str(HERE / "test_target.py")
    return pytest.ExitCode(pytest.main([*options, tests], plugins=[verdicts]))


if __name__ == "__main__":
    sys.exit(main())
