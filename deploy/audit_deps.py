"""``make audit-deps``: every locked version against rules for the lock and known vulnerabilities.

Exit code 0: nothing found. 1: findings. 2: it could not run. 3: nothing found by the rules, and
known vulnerabilities were NOT checked, because their source (OSV) cannot be reached.
"""

from __future__ import annotations

import datetime as dt
import os
import re
import subprocess
import sys
from pathlib import Path

import click
from estsupply import lock_rules
from estsupply.sbom import licence_of

from estcore.clock import SystemClock
from estcore.errors import ConfigurationError
from estcore.runtime import command_line
from estcore.runtime.command_line import CONTEXT

ROOT = Path(__file__).resolve().parents[1]
SOURCE = "https://api.osv.dev"
FOUND, UNCHECKED = 1, 3
_UNREACHABLE = re.compile(r"error sending request|HTTP status (server|client) error|Request failed")
_TIMEOUT_S = 180


class Unreachable(Exception):
    """The source of vulnerabilities gives no answer."""


def rules(lock: Path, now: dt.datetime) -> list[str]:
    """Return what the rules find in a lock file."""
    packages = lock_rules.read(lock)
    return [
        *lock_rules.come_from_the_index(packages),
        *lock_rules.have_hashes(packages),
        *lock_rules.are_old_enough(packages, now),
        *lock_rules.have_allowed_licences(packages, licence_of),
    ]


def vulnerabilities(project: Path, source: str) -> tuple[bool, str]:
    """Return whether a locked version has a known vulnerability, and the report.

    Raises:
        Unreachable: the source gives no answer.
        ConfigurationError: uv refuses for another reason.
    """
    uv = Path(sys.executable).parent / "uv"
    command = [str(uv), "audit", "--frozen", "--project", str(project), "--service-url", source]
    done = subprocess.run(
        [*command, "--preview-features", "audit-command"],
        capture_output=True,
        text=True,
        check=False,
        timeout=_TIMEOUT_S,
        env={**os.environ, "UV_HTTP_TIMEOUT": "15", "UV_HTTP_RETRIES": "1"},
    )
    report = (done.stdout + done.stderr).strip()
    if done.returncode in {0, FOUND}:
        return done.returncode == FOUND, report
    if _UNREACHABLE.search(report):
        raise Unreachable(report)
    raise ConfigurationError(f"uv audit: {report.splitlines()[-1] if report else done.returncode}")


@click.command(context_settings=CONTEXT)
@click.option("--project", type=click.Path(path_type=Path), default=ROOT, help="Where uv.lock is.")
@click.option("--source", default=SOURCE, show_default=True, help="URL of an OSV service.")
@click.option("--allow-unchecked", is_flag=True, help="Exit code 0 instead of 3.")
def main(project: Path, source: str, allow_unchecked: bool) -> int:
    """Check every locked version: origin, hashes, age, licence, known vulnerabilities."""
    findings = rules(project / "uv.lock", SystemClock().now())
    for finding in findings:
        click.echo(finding)
    click.echo(f"uv.lock: {len(findings)} findings by the rules for origin, hashes, age, licence")
    try:
        vulnerable, report = vulnerabilities(project, source)
    except Unreachable:
        click.echo(f"known vulnerabilities: NOT CHECKED, {source} cannot be reached")
        return FOUND if findings else 0 if allow_unchecked else UNCHECKED
    click.echo(report if vulnerable else "known vulnerabilities: none")
    return FOUND if findings or vulnerable else 0


if __name__ == "__main__":
    sys.exit(command_line.run(main, "make audit-deps"))
