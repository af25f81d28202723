"""Looks for a serial number in a file that a SIEM or its collector writes."""

from __future__ import annotations

from pathlib import Path

_PART = 1 << 16


class SIEMFile:
    """What a file received from a moment on; a file that was rotated is read from its beginning."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._place = self._size()

    def has(self, text: str) -> bool:
        """Return whether ``text`` has arrived since; reads what was not read before.

        Raises:
            OSError: the file cannot be read. One that does not exist may still be made.
        """
        wanted = text.encode()
        if not self._path.exists():
            return False
        with self._path.open("rb") as file:
            if self._size() < self._place:
                self._place = 0
            file.seek(self._place)
            last = b""
            while part := file.read(_PART):
                if wanted in last + part:
                    return True
                last = (last + part)[-(len(wanted) - 1) :]
            # The end may hold the first half of the text.
            self._place = max(file.tell() - len(wanted), 0)
        return False

    def _size(self) -> int:
        try:
            return self._path.stat().st_size
        except OSError:
            return 0  # reading it says why
