"""What ``est-audit sinks`` and ``estctl sinks`` print: the same lines for the same facts."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from estcore.display import visible
from estcore.runtime.terminal import write_json, write_line


def print_status(rows: Sequence[Mapping[str, Any]], *, as_json: bool) -> None:
    """Print a line for each sink: cursor, lag, age of the oldest record that waits, refused."""
    if as_json:
        write_json(rows, indent=1)
        return
    write_line(f"{'sink':20} {'kind':14} {'next':>12} {'lag':>10} {'oldest':>10} {'refused':>8}")
    for row in rows:
        write_line(
            f"{row['sink']:20} {row['kind']:14} {row['next']:>12} {row['lag']:>10} "
            f"{row['age_s']:>9}s {row['dead_letters']:>8}"
        )


def print_dead_letters(found: Iterable[tuple[int, str]]) -> None:
    """Print a line for each record that a receiver refused: log index and reason."""
    for log_index, reason in found:
        write_line(f"{log_index}  {visible(reason)}")
