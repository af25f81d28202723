"""One start of a process (a boot), and the numbers of its audit records.

The last number is written to a file of the boot as each is taken: what the kernel has survives
``kill -9``, so no fsync. The next boot puts on record what the files of earlier boots say, and
``audit verify`` compares. A file is removed when that record is durable, so a boot that is killed
before is followed by one that says the same. A file that another process locks belongs to a boot
that still runs.
"""

from __future__ import annotations

import fcntl
import logging
import os
from pathlib import Path

from estcore import ids
from estcore.runtime.logs import fields

log = logging.getLogger(__name__)

_DIGITS = 20

Detail = str | int | bool


class Boot:
    """The id of a boot and its numbers; without a folder they are kept in memory only."""

    def __init__(self) -> None:
        self.id = ids.uuid7()
        self.statements: list[dict[str, Detail]] = []
        """Details of the records about earlier boots; to be the first of this one."""
        self._number = 0
        self._file: int | None = None
        self._earlier: list[Path] = []

    @classmethod
    def begin(cls, state_folder: Path | None) -> Boot:
        """Read what earlier boots left in the folder, and make this boot's file.

        A folder that cannot be used ends no process: the next boot will say that it knows nothing.
        """
        boot = cls()
        if state_folder is not None:
            alone = True
            try:
                alone = boot._open(state_folder / "boots")
            except OSError as exc:
                log.warning(
                    "numbers of audit records are not kept on disk",
                    extra=fields(folder=str(state_folder), error=type(exc).__name__),
                )
            if alone and not boot.statements:
                boot.statements.append({"known": False})
        return boot

    def next(self) -> int:
        """Take the next number; on return it outlives this process."""
        self._number += 1
        if self._file is not None:
            try:
                os.pwrite(self._file, b"%020d" % self._number, 0)
            except OSError as exc:
                log.warning(
                    "numbers of audit records are not kept on disk any more",
                    extra=fields(error=type(exc).__name__),
                )
                self.close()
        return self._number

    def forget_earlier(self) -> None:
        """Remove the files of earlier boots: the records about them are durable."""
        while self._earlier:
            path = self._earlier.pop()
            try:
                path.unlink(missing_ok=True)
            except OSError as exc:
                log.info(
                    "file of an earlier boot not removed", extra=fields(error=type(exc).__name__)
                )

    def close(self) -> None:
        """Leave the file to the next boot."""
        if self._file is not None:
            os.close(self._file)
            self._file = None

    def _open(self, folder: Path) -> bool:
        """Return whether no other process uses the folder."""
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        running = False
        for path in sorted(folder.iterdir()):
            number = _read(path)
            if number is None:
                running = True
            elif number >= 0:
                self.statements.append({"known": True, "boot_id": path.name, "last_number": number})
                self._earlier.append(path)
        file = os.open(folder / self.id, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.pwrite(file, b"%020d\n" % 0, 0)
            os.fsync(file)
        except OSError:
            os.close(file)
            raise
        self._file = file
        return not running


def _read(path: Path) -> int | None:
    """Return the last number of an earlier boot, -1 if the file says none, None if it runs."""
    file = os.open(path, os.O_RDONLY)
    try:
        fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        digits = os.pread(file, _DIGITS, 0)
        return int(digits) if len(digits) == _DIGITS and digits.isdigit() else -1
    except BlockingIOError:
        return None
    finally:
        os.close(file)
