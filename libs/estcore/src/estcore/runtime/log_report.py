"""Command line of activity reports, shared by ``estctl`` and ``est-audit``."""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterable, Mapping
from pathlib import Path

import click

from estcore.errors import AuditChainBroken, ConfigurationError, ESTSuiteError, MalformedRequest
from estcore.runtime.command_line import PATH
from estcore.runtime.log_search import MOMENT
from estcore.runtime.log_verification import choose_key, open_lines
from estcore.runtime.terminal import write_line
from estcore.tlog import export
from estcore.tlog.activity import MANIFEST, ActivityReport, Period, check_files, read_manifest
from estcore.tlog.checkpoint import VerifierKey, parse_signed, verified_text
from estcore.tlog.leaf import read_leaf


def report_options() -> list[click.Parameter]:
    """Return the options of ``report``: the period, and where it goes."""
    return [
        click.Option(["--from", "since"], type=MOMENT, required=True, help="Recorded from then."),
        click.Option(["--to", "until"], type=MOMENT, required=True, help="Recorded before."),
        click.Option(["--out"], type=PATH, required=True, help="Folder to create."),
    ]


def period_of(since: dt.datetime, until: dt.datetime) -> Period:
    """Return the period.

    Raises:
        ConfigurationError: it ends before it begins.
    """
    if since >= until:
        raise ConfigurationError("--from is not before --to")
    return Period(since, until)


def write_report(out: Path, files: Mapping[str, bytes], manifest: str) -> None:
    """Write a report into a folder that does not exist yet.

    Raises:
        ConfigurationError: it exists, or cannot be written.
    """
    try:
        out.mkdir(mode=0o750)
        for name, octets in files.items():
            (out / name).write_bytes(octets)
        (out / MANIFEST).write_text(manifest, encoding="utf-8")
    except OSError as exc:
        raise ConfigurationError(f"cannot write {out}: {exc.strerror}") from exc
    write_line(f"report in {out}")


def report_of_export(lines: Iterable[bytes], period: Period) -> tuple[dict[str, bytes], str]:
    """Return the files and the manifest's text, from an export of the whole log.

    The export is not verified here.

    Raises:
        MalformedRequest: not an export of the whole log, or none that covers the period.
    """
    report, covered = ActivityReport("", period), None
    for line in lines:
        value = export.read_line(line.removesuffix(b"\n"))
        if value["type"] == "log":
            if value["correlation_id"] is not None:
                raise MalformedRequest("export the whole log", code="report.malformed")
            report.origin = value["origin"]
        elif value["type"] == "record":
            try:
                report.add(read_leaf(value["leaf"].encode()))
            except ESTSuiteError:
                continue
        elif value["type"] == "checkpoint" and covered is None and value["size"] >= report.end:
            covered = parse_signed(value["note"]).checkpoint
    if covered is None:
        raise MalformedRequest("no checkpoint covers the period", code="report.unsealed")
    files = report.files()
    return files, report.manifest(files, covered)


def verify_report(folder: Path, vkey: str, file: Path | None) -> None:
    """Verify the signature and the files of a report, and compare it with an export.

    Raises:
        ConfigurationError: a file cannot be read.
        AuditChainBroken: the report is not what was signed, or not what the export has.
    """
    key = choose_key(vkey)

    def read(name: str) -> bytes:
        if Path(name).name != name:
            raise AuditChainBroken(f"{name} is not in the report", code="report.differs")
        try:
            return (folder / name).read_bytes()
        except OSError as exc:
            raise ConfigurationError(f"cannot read {folder / name}: {exc.strerror}") from exc

    text = verified_text(read(MANIFEST).decode("utf-8", "replace"), key)
    covered = read_manifest(text)
    for name in check_files(text, read):
        write_line(f"as signed    {name}")
    if file is not None:
        _compare(text, file, key)
    tree = f"{covered.size} records, root {covered.root.hex()}"
    write_line(f"verified: log {covered.origin}, {tree}")


def _compare(text: str, file: Path, key: VerifierKey) -> None:
    from estcore.clock import SystemClock
    from estcore.tlog.verify import Options, verify

    with open_lines(file) as lines:
        verified = verify(lines, Options(now=SystemClock().now(), key=key))
    if not verified.report.ok:
        raise AuditChainBroken(f"the export has findings: {verified.report.findings[0]}")
    moments = dict(line.partition(" ")[::2] for line in text.splitlines())
    period = Period(*(dt.datetime.fromisoformat(moments[name]) for name in ("since", "until")))
    with open_lines(file) as lines:
        _, again = report_of_export(lines, period)
    if again != text:
        raise AuditChainBroken("the export gives a different report", code="report.differs")
    write_line("the export gives the same report")
