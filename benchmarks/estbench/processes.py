"""CPU time and memory of processes with all their descendants, from Linux's accounting."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path

_PROCESS_CLOCK = 2
"""CPUCLOCK_SCHED of the kernel: the clock of a process id has nanoseconds where stat has ticks."""


def descendants(pid: int) -> Iterator[int]:
    """Yield the process and everything that it started and that still runs."""
    waiting, seen = [pid], set()
    while waiting:
        one = waiting.pop()
        if one in seen:
            continue
        seen.add(one)
        yield one
        try:
            for task in Path(f"/proc/{one}/task").iterdir():
                waiting += [int(p) for p in (task / "children").read_text().split()]
        except OSError:
            continue


def cpu_s(pid: int) -> float:
    """Return CPU seconds of a process and its descendants, reaped children included."""
    return sum(_own_s(one) + _reaped_s(one) for one in descendants(pid))


def _own_s(pid: int) -> float:
    try:
        return time.clock_gettime((~pid << 3) | _PROCESS_CLOCK)
    except OSError:
        return 0.0


def _reaped_s(pid: int) -> float:
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return 0.0
    fields = text[text.rindex(")") + 2 :].split()
    return (int(fields[13]) + int(fields[14])) / os.sysconf("SC_CLK_TCK")


def pss_mb(pid: int) -> float:
    """Return the proportional set size of a process and its descendants in MB."""
    total = 0
    for one in descendants(pid):
        try:
            text = Path(f"/proc/{one}/smaps_rollup").read_text()
        except OSError:
            continue
        total += sum(int(line.split()[1]) for line in text.splitlines() if line.startswith("Pss:"))
    return total / 1024
