"""``make conformance``: the conformance tests against a suite of our own, or any EST server.

Prints a table of item, level, verdict and sentence; writes it as Markdown and JUnit XML on
request. Exit code 0: no must of an RFC failed (of our own suite: nothing failed at all);
1: something did, or no item has a verdict; 2: it could not run.
"""

from __future__ import annotations

import os
import socket
import ssl
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import click
import pytest

from estcore.runtime import command_line
from estcore.runtime.command_line import CONTEXT, PATH

HERE = Path(__file__).parent
ROOT = HERE.parent.parent
sys.path.insert(0, str(ROOT / "tests" / "support"))

from estsuite_testing.conformance_check import FAIL, NOT_JUDGED, PASS, Verdict, sentence_of  # noqa: E402 - the folder above
from estsuite_testing.conformance_report import ConformanceReport, Redactor  # noqa: E402

NAME = "make conformance"
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


@dataclass(frozen=True)
class ForeignServer:
    """An EST server that is not ours, and the credentials for it."""

    target: str
    ca: Path | None
    user: str
    password_file: Path | None
    label: str
    common_name: str
    serverkeygen: bool
    timeout: float

    def checked(self) -> tuple[str, Redactor]:
        """Return its name without credentials, and what hides the password.

        Raises:
            UsageError: an option is missing, a file unreadable, or the server unusable.
        """
        if self.ca is None or self.password_file is None:
            raise click.UsageError("--target needs --ca and --password-file")
        parts = urlsplit(self.target)
        if parts.scheme != "https" or parts.hostname is None or parts.username is not None:
            raise click.UsageError("--target is a URL of the form https://host:8443")
        try:
            self.ca.read_bytes()
            password = self.password_file.read_text(encoding="utf-8").strip()
        except OSError as exc:
            raise click.UsageError(f"cannot read {exc.filename}: {exc.strerror}") from exc
        try:
            context = ssl.create_default_context(cafile=self.ca)
            address = (parts.hostname, parts.port or 443)
            with socket.create_connection(address, self.timeout) as connection:
                context.wrap_socket(connection, server_hostname=parts.hostname).close()
        except OSError as exc:
            raise click.UsageError(
                f"cannot use {self.target} with {self.ca}: {sentence_of(exc)}"
            ) from exc
        return f"https://{parts.hostname}:{parts.port or 443}", Redactor(self.user, password)

    def environment(self) -> dict[str, str]:
        """Return what ``test_target.py`` reads."""
        assert self.ca is not None
        assert self.password_file is not None
        return {
            "EST_TARGET": self.target,
            "EST_TARGET_CA": str(self.ca.resolve()),
            "EST_TARGET_USER": self.user,
            "EST_TARGET_PASSWORD_FILE": str(self.password_file.resolve()),
            "EST_TARGET_LABEL": self.label,
            "EST_TARGET_COMMON_NAME": self.common_name,
            "EST_TARGET_SERVERKEYGEN": "yes" if self.serverkeygen else "",
            "EST_TARGET_TIMEOUT_S": str(self.timeout),
        }


def _file_option(name: str, default: Path, kind: str) -> Callable[[Any], Any]:
    return click.option(
        f"--{name}",
        type=PATH,
        is_flag=False,
        flag_value=str(default),
        metavar="[FILE]",
        help=f"Write the report as {kind}; without a name to {default}.",
    )


@click.command(
    NAME, help="Check the EST conformance of a server from outside.", context_settings=CONTEXT
)
@click.option("--target", help="https://host:port of an EST server; default: our own.")
@click.option("--ca", type=PATH, help="Trust anchors for its certificate, PEM.")
@click.option("--user", default="", help="User of HTTP Basic.")
@click.option("--password-file", type=PATH, help="File with the password.")
@click.option("--label", default="", help="Label the credentials are for.")
@click.option(
    "--common-name",
    default="conformance.test",
    help="Common name that the credentials may ask for.",
)
@click.option("--serverkeygen", is_flag=True, help="The server generates keys: try it.")
@click.option("--timeout", type=float, default=15, help="Seconds to wait for an answer.")
@_file_option("report", REPORT, "Markdown")
@_file_option("junit", JUNIT, "JUnit XML")
def _conformance(
    target: str | None, report: Path | None, junit: Path | None, **options: Any
) -> int:
    os.environ.pop("EST_TARGET", None)
    server, redact = OURS, Redactor("", "")
    if target is not None:
        foreign = ForeignServer(target=target, **options)
        server, redact = foreign.checked()
        os.environ |= foreign.environment()
    verdicts = Verdicts()
    sys.stdout.write(f"trying {server}, up to some minutes …\n\n")
    sys.stdout.flush()
    status = _run_tests(verdicts)
    result = ConformanceReport.of(server, verdicts.found, redact)
    sys.stdout.write(result.table())
    for file, text in ((report, result.markdown()), (junit, result.junit())):
        if file is not None:
            file.write_text(text, encoding="utf-8")
            sys.stdout.write(f"written: {file}\n")
    if verdicts.broken or status not in {pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED}:
        for text in verdicts.broken[:1]:
            sys.stderr.write(redact(text) + "\n")
        sys.stderr.write(f"the tests did not run to their end: {status.name}\n")
        return 2
    if target is not None:
        return 0 if result.musts_met else 1
    if status == pytest.ExitCode.OK:
        page = [sys.executable, str(ROOT / "docs" / "conformance.py")]
        return subprocess.run(page, check=False).returncode
    return 1


def _run_tests(verdicts: Verdicts) -> pytest.ExitCode:
    """Run the tests without pytest's own output, which repeats what requests contain."""
    options = ["-p", "no:terminal", "-p", "no:randomly", "--rootdir", str(ROOT)]
    options += ["-c", str(ROOT / "pyproject.toml"), "-o", "filterwarnings=ignore"]
    tests = str(HERE / "test_target.py")
    return pytest.ExitCode(pytest.main([*options, tests], plugins=[verdicts]))


if __name__ == "__main__":
    sys.exit(command_line.run(_conformance, NAME))
