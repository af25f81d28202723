"""Status of an agent: a JSON file in its state folder, written in one step, and a table of it."""

from __future__ import annotations

import datetime as dt
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from estclient.agent.generation_files import write_file
from estclient.agent.process_lock import is_locked
from estcore.errors import ConfigurationError

LOCK = "agent-lock"
_FILE = "status.json"
_COLUMNS = (("NAME", 22), ("STATE", 16), ("EXPIRES", 10), ("RENEWAL", 10), ("SUBJECT", 38))
_MINUTE, _HOUR, _DAY = 60, 3600, 86_400


def write_status(folder: Path, report: Mapping[str, Any]) -> None:
    """Write the status for readers of the same user and group.

    Raises:
        OSError: it cannot be written.
    """
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    made = folder / f".{_FILE}"
    write_file(made, json.dumps(report, indent=1).encode() + b"\n", 0o640)
    made.replace(folder / _FILE)


def read_status(folder: Path) -> dict[str, Any]:
    """Return the status that was written last, and whether the agent runs.

    Raises:
        ConfigurationError: there is none (``agent.no_status``), or it cannot be read.
    """
    file = folder / _FILE
    try:
        report = json.loads(file.read_bytes())
    except FileNotFoundError as exc:
        raise ConfigurationError(
            f"no agent has run with {folder} yet", code="agent.no_status"
        ) from exc
    except (OSError, ValueError) as exc:
        raise ConfigurationError(f"cannot read {file}: {exc}") from exc
    if not isinstance(report, dict) or not isinstance(report.get("definitions"), dict):
        raise ConfigurationError(f"{file} is not a status of an agent")
    return report | {"running": is_locked(folder / LOCK)}


def table(report: Mapping[str, Any], now: dt.datetime) -> list[str]:
    """Return the status as lines of at most 100 columns; reasons follow their definition."""
    lines = [_row([name for name, _ in _COLUMNS])]
    for name, facts in sorted(report["definitions"].items()):
        expires = _distance(facts.get("not_after"), now)
        due = _distance(facts.get("renewal_due"), now)
        lines.append(_row([name, facts["state"], expires, due, facts.get("subject") or "-"]))
        lines += [f"    {text}" for text in _remarks(facts, now)]
    for name, problem in sorted(report.get("problems", {}).items()):
        lines.append(_row([name, "invalid", "-", "-", "-"]))
        lines += [f"    {text}" for text in _wrapped(f"{problem['reason']} [{problem['code']}]")]
    if not report["running"]:
        lines.append(f"the agent is not running; status of {report.get('time')}")
    return lines


def _remarks(facts: Mapping[str, Any], now: dt.datetime) -> list[str]:
    remarks = []
    if facts.get("reason"):
        remarks += _wrapped(f"{facts['reason']} [{facts['code']}]")
        remarks.append(f"next attempt {_distance(facts.get('next_attempt'), now)}")
    offset = facts.get("clock_offset_s")
    if offset is not None and abs(offset) > _MINUTE:
        remarks.append(f"this machine's clock is wrong by {-offset} seconds")
    return remarks


def _row(values: list[str]) -> str:
    cells = (
        (v if len(v) <= width else v[: width - 1] + "…").ljust(width)
        for v, (_, width) in zip(values, _COLUMNS, strict=True)
    )
    return " ".join(cells).rstrip()


def _wrapped(text: str, width: int = 96) -> list[str]:
    return [text[at : at + width] for at in range(0, len(text), width)]


def _distance(moment: str | None, now: dt.datetime) -> str:
    """Return a moment as seen from now: ``in 3d``, ``2h ago``, ``-`` for none."""
    if moment is None:
        return "-"
    seconds = (dt.datetime.fromisoformat(moment) - now).total_seconds()
    size = abs(seconds)
    text = f"{size:.0f}s"
    for unit, name in ((_DAY, "d"), (_HOUR, "h"), (_MINUTE, "m")):
        if size >= 2 * unit:
            text = f"{size / unit:.0f}{name}"
            break
    return f"in {text}" if seconds >= 0 else f"{text} ago"
