"""Progress for a person: steps with their time, a live line on a terminal, else plain text."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import TextIO

from estcore.clock import monotonic_s
from estcore.display import visible
from estcore.runtime.terminal import erase_line


class Story:
    """Prints steps as they are done."""

    def __init__(self, out: TextIO | None = None) -> None:
        self._out = out or sys.stdout
        self._live = self._out.isatty()
        self._started = monotonic_s()
        self._open = False

    def step(self, text: str) -> None:
        """A step is done or begins."""
        self._line(f"[{monotonic_s() - self._started:6.1f}s] {text}")

    def detail(self, text: str) -> None:
        """More about the last step."""
        for line in text.splitlines():
            self._line(f"          {line}")

    def waiting(self, text: str) -> None:
        """Show what is awaited; on a terminal the line is replaced, otherwise not printed."""
        if self._live:
            erase_line(self._out)
            self._out.write(visible(f"[{monotonic_s() - self._started:6.1f}s] … {text}"))
            self._out.flush()
            self._open = True

    def _line(self, text: str) -> None:
        if self._open:
            erase_line(self._out)
            self._open = False
        self._out.write(visible(text) + "\n")
        self._out.flush()

    @property
    def seconds(self) -> float:
        """Since the beginning."""
        return monotonic_s() - self._started


Report = Callable[[str], None]
