"""Command line of the audit log's verification, shared by ``estctl`` and ``est-audit``.

It prints what the log proves (records, period, tree, checkpoints, signer, unsealed tail), then
the findings, then one line with the verdict. A log without findings proves no more than it
prints: that no record is missing at its end is shown by a checkpoint kept from an earlier time.
"""

from __future__ import annotations

import datetime as dt
import functools
import gc
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, TypeVar

import click

from estcore.clock import SystemClock
from estcore.errors import ConfigurationError, MalformedRequest
from estcore.runtime.command_line import PATH, options
from estcore.runtime.terminal import write_json, write_line
from estcore.tlog.checkpoint import VerifierKey, kept_note
from estcore.tlog.cosignature import CosignerKey
from estcore.tlog.cross import cross
from estcore.tlog.findings import Report, Sealed
from estcore.tlog.timestamp import Authority
from estcore.tlog.verify import Options, Verification, verify

_PRINTED_FINDINGS = 20
_LABEL_WIDTH = 18
T = TypeVar("T")


@dataclass(frozen=True)
class Choices:
    """What the options besides ``--export`` say."""

    vkey: str | None = None
    checkpoint: tuple[Path, ...] = ()
    save_checkpoint: Path | None = None
    witness: tuple[str, ...] = ()
    tsa: tuple[str, ...] = ()
    cross: Path | None = None
    renewal: Path | None = None
    json: bool = False


_OPTIONS = options(
    click.option("--vkey", help="Verifier key of the log, or a file with it."),
    click.option(
        "--checkpoint",
        type=PATH,
        multiple=True,
        metavar="FILE",
        help="Checkpoint kept from an earlier time; the log must contain what it covers.",
    ),
    click.option(
        "--save-checkpoint",
        type=PATH,
        metavar="FILE",
        help="Write the newest checkpoint to a new file, for the next --checkpoint.",
    ),
    click.option(
        "--witness",
        multiple=True,
        metavar="VKEY",
        help="Verifier key of a witness, or a file with it; the log must be cosigned by it.",
    ),
    click.option(
        "--tsa",
        multiple=True,
        metavar="NAME=FILE",
        help="Time-stamping authority and a PEM file with its trust anchors; the log must be "
        "stamped by it (RFC 3161).",
    ),
    click.option(
        "--cross", type=PATH, metavar="LEDGER", help="Compare with an export of ca-signer."
    ),
    click.option(
        "--renewal", type=PATH, help="Compare with an export of est-renewal too; needs --cross."
    ),
    click.option("--json", is_flag=True, help="Print the report as JSON."),
)


def choices_options(function: Callable[..., T]) -> Callable[..., T]:
    """Decorate a verb with the options; it gets them as ``choices``."""

    @functools.wraps(function)
    def packed(*args: Any, **values: Any) -> T:
        chosen = {field.name: values.pop(field.name) for field in fields(Choices)}
        return function(*args, choices=Choices(**chosen), **values)

    return _OPTIONS(packed)


@contextmanager
def _without_collector() -> Iterator[None]:
    """Keep the garbage collector from looking at millions of records that are in no cycle."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def verify_log(
    lines: Iterable[bytes],
    choices: Choices,
    *,
    key: VerifierKey | None = None,
    live: bool = False,
) -> Report:
    """Verify the lines of an export as the options say; ``--vkey`` wins over ``key``.

    Raises:
        ConfigurationError: an option or a file that it names cannot be used.
    """
    if choices.renewal is not None and choices.cross is None:
        raise ConfigurationError("--renewal is compared with a ledger: give --cross too")
    verify_options = Options(
        now=SystemClock().now(),
        key=choose_key(choices.vkey) if choices.vkey else key,
        live=live,
        kept=tuple(read_note(path) for path in choices.checkpoint),
        witnesses=tuple(choose_witness(text) for text in choices.witness),
        authorities=tuple(choose_authority(text) for text in choices.tsa),
    )
    with _without_collector():
        verification = verify(lines, verify_options)
    report = verification.report
    if choices.cross is not None:
        with open_lines(choices.cross) as ledger:
            if choices.renewal is None:
                report.extend(cross(verification.records, ledger, absent=verification.absent))
            else:
                with open_lines(choices.renewal) as renewal:
                    report.extend(cross(verification.records, ledger, renewal, verification.absent))
    if choices.save_checkpoint is not None and report.ok:
        _save(choices.save_checkpoint, verification)
    return report


def print_report(report: Report, *, as_json: bool) -> None:
    """Write the report to standard output, for a person or as JSON."""
    if as_json:
        write_json(report.to_json(), indent=1)
        return
    for line in render(report):
        write_line(line)


def render(report: Report) -> list[str]:
    """Return the report as lines for a person; the last one is the verdict."""
    lines = [f"{label:<{_LABEL_WIDTH}}{text}" for label, text in _facts(report)]
    lines += [str(finding) for finding in report.findings[:_PRINTED_FINDINGS]]
    if len(report.findings) > _PRINTED_FINDINGS:
        more = len(report.findings) - _PRINTED_FINDINGS
        lines.append(f"and {more} more findings; --json prints all")
    verdict = "verified"
    if not report.ok:
        verdict = f"NOT verified, {_count(len(report.findings), 'finding')}"
    records, checkpoints = report.records, report.checkpoints
    counts = f"{_count(records, 'record')}, {_count(checkpoints, 'checkpoint')}"
    return [*lines, f"{verdict}: {counts}, sealed to {report.sealed}"]


@contextmanager
def open_lines(path: Path) -> Iterator[Iterator[bytes]]:
    """Open a file as lines.

    Raises:
        ConfigurationError: it cannot be read.
    """
    try:
        file = path.open("rb")
    except OSError as exc:
        raise ConfigurationError(f"cannot read {path}: {exc.strerror}") from exc
    with file:
        yield iter(file)


def _facts(report: Report) -> Iterator[tuple[str, str]]:
    yield "log", report.origin or "unknown"
    part = ", a part of the log: one correlation id" if report.partial else ""
    if report.archive is not None:
        part = f", the archive of {report.archive}"
    yield "records", f"{report.records}{part}"
    period = "none"
    if report.first_recorded_at is not None:
        period = f"{report.first_recorded_at} to {report.last_recorded_at}"
    yield "period", period
    yield "tree size", str(report.tree_size)
    yield "root hash", report.root or "none"
    yield "first checkpoint", _sealed(report.first_checkpoint)
    yield "last checkpoint", _sealed(report.last_checkpoint)
    if report.signer is not None:
        source = "as given" if report.signer.given else "named by the export itself; give --vkey"
        yield "signer", f"{report.signer.name}+{report.signer.key_id} ({source})"
    if not report.partial and report.archive is None:
        purged = [f"{start} to {end - 1}" for start, end in report.purged]
        if purged:
            yield "purged", f"records {', '.join(purged)}: their hashes are kept"
        tail = "none: every record is under a signature"
        if report.unsealed:
            after = _count(report.unsealed, "record")
            tail = f"{after} after the last checkpoint, under no signature"
        yield "unsealed", tail
    for cosigned in report.witnesses:
        moment = dt.datetime.fromtimestamp(cosigned.seconds, dt.UTC).isoformat()
        yield "witness", f"{cosigned.witness}: {_count(cosigned.size, 'record')} at {moment}"
    for stamped in report.timestamps:
        yield "time stamp", f"{stamped.authority}: {_count(stamped.size, 'record')} at {stamped.at}"
    coverage = "none given: records removed at the end would not show; give --checkpoint"
    if report.kept is not None:
        coverage = f"the log contains what it covers: {_count(report.kept, 'record')}"
    yield "kept checkpoint", coverage


def _sealed(sealed: Sealed | None) -> str:
    if sealed is None:
        return "none"
    moment = f", the last recorded at {sealed.recorded_at}" if sealed.recorded_at else ""
    return f"{_count(sealed.size, 'record')}{moment}"


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def choose_witness(text: str) -> CosignerKey:
    """Return the key of a witness: the text itself, or what the file of that name has.

    Raises:
        ConfigurationError: it is none.
    """
    try:
        path = Path(text)
        return CosignerKey.parse(path.read_text(encoding="ascii") if path.is_file() else text)
    except (OSError, UnicodeDecodeError) as exc:
        raise ConfigurationError(f"cannot read the verifier key {text}") from exc
    except MalformedRequest as exc:
        raise ConfigurationError(exc.reason) from exc


def choose_authority(text: str) -> Authority:
    """Return the time-stamping authority of NAME=FILE.

    Raises:
        ConfigurationError: the file cannot be read or has no certificates.
    """
    name, separator, file = text.partition("=")
    if not separator or not file:
        raise ConfigurationError("a time-stamping authority is given as NAME=FILE")
    try:
        return Authority.parse(name, Path(file).read_bytes())
    except OSError as exc:
        raise ConfigurationError(f"cannot read the trust anchors {file}") from exc


def choose_key(text: str) -> VerifierKey:
    """Return a verifier key: the text itself, or what the file of that name has.

    Raises:
        ConfigurationError: it is none.
    """
    try:
        path = Path(text)
        return VerifierKey.parse(path.read_text(encoding="ascii") if path.is_file() else text)
    except (OSError, UnicodeDecodeError) as exc:
        raise ConfigurationError(f"cannot read the verifier key {text}") from exc
    except MalformedRequest as exc:
        raise ConfigurationError(exc.reason) from exc


def read_note(path: Path) -> str:
    """Return the note in a kept file, as it is or inside JSON.

    Raises:
        ConfigurationError: the file cannot be read.
    """
    with open_lines(path) as lines:
        return kept_note(b"".join(lines).decode(errors="replace"))


def _save(path: Path, verification: Verification) -> None:
    if verification.newest is None:
        raise ConfigurationError("the log has no checkpoint to save")
    try:
        with path.open("x", encoding="utf-8") as file:
            file.write(verification.newest.note)
    except OSError as exc:
        raise ConfigurationError(f"cannot write {path}: {exc.strerror}") from exc
