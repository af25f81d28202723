"""Error lines in the logs of services and of this process: every one is expected by a test.

``@pytest.mark.logs_errors("message")`` names the messages a test causes. Services log
asynchronously, so a message named by a test is expected until the end of its module.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from pathlib import Path

from typing_extensions import override


class ErrorLog(logging.Handler):
    """Collects lines at level error and above, from this process and from log folders."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self._lines: list[tuple[str, str]] = []
        self._offsets: dict[Path, int] = {}
        self._folders: set[Path] = set()

    @override
    def emit(self, record: logging.LogRecord) -> None:
        detail = {**getattr(record, "fields", {}), "logger": record.name}
        self._lines.append((record.getMessage(), f"{record.getMessage()} {detail}"))

    def follow(self, folder: Path) -> None:
        """Read the ``*.log`` files of a running suite from now on."""
        self._folders.add(folder)

    def stopped(self, folder: Path) -> None:
        """Read what a suite wrote until it had stopped, its last line also if it has no end."""
        if folder in self._folders:
            self._lines.extend(self._read(folder, whole_lines=False))
            self._folders.discard(folder)

    def unexpected(self, expected: set[str]) -> list[str]:
        """Return the new error lines whose message is not expected."""
        lines, self._lines = self._lines, []
        for folder in sorted(self._folders):
            lines.extend(self._read(folder))
        return [line for message, line in lines if message not in expected]

    def _read(self, folder: Path, *, whole_lines: bool = True) -> Iterator[tuple[str, str]]:
        for file in sorted(folder.glob("*.log")):
            start = self._offsets.get(file, 0)
            with file.open("rb") as log:
                log.seek(start)
                data = log.read()
            if whole_lines:
                data = data[: data.rfind(b"\n") + 1]
            self._offsets[file] = start + len(data)
            for line in data.decode(errors="replace").splitlines():
                yield from _error(file, line)


def _error(file: Path, line: str) -> Iterator[tuple[str, str]]:
    try:
        found = json.loads(line)
        level, message = found["level"], str(found["message"])
    except (ValueError, TypeError, KeyError):
        if line.startswith("Traceback (most recent call last)"):
            yield line, f"{file.name}: {line}"
        return
    if level in {"error", "critical"}:
        yield message, f"{file.name}: {line}"


ERRORS = ErrorLog()
