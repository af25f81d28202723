"""What a witness has seen of each log: size and root, on disk before it is signed.

Its memory is all that a witness is: one that forgets signs a fork. So a file that cannot be read
ends the process, and a size is stored and synchronised before its cosignature leaves.
"""

from __future__ import annotations

import fcntl
import json
import os
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

from estcore.errors import ConfigurationError
from estcore.tlog.tree import EMPTY_ROOT, HASH_BYTES


@dataclass(frozen=True)
class Seen:
    """The newest checkpoint of a log that was cosigned."""

    size: int = 0
    root: bytes = EMPTY_ROOT


class SeenFiles:
    """One file for each log in a folder that one process holds."""

    def __init__(self, folder: Path) -> None:
        """Lock the folder.

        Raises:
            ConfigurationError: it cannot be made, or another process holds it.
        """
        self._folder = folder
        try:
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._lock = (folder / "lock").open("a")
        except OSError as exc:
            raise ConfigurationError(f"cannot use {folder}: {exc.strerror}") from exc
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as exc:
            self._lock.close()
            raise ConfigurationError(
                f"another process holds {folder}", code="witness.locked"
            ) from exc

    def load(self, origin: str) -> Seen:
        """Return what was seen of a log; nothing at all of one that is new.

        Raises:
            ConfigurationError: the file is damaged.
        """
        file = self._file(origin)
        try:
            text = file.read_text(encoding="utf-8")
        except FileNotFoundError:
            return Seen()
        except (OSError, UnicodeDecodeError) as exc:
            raise _damaged(file) from exc
        try:
            value = json.loads(text)
            seen = Seen(int(value["size"]), bytes.fromhex(value["root"]))
            if value["origin"] != origin or seen.size < 0 or len(seen.root) != HASH_BYTES:
                raise ValueError("not of this log")
        except (ValueError, KeyError, TypeError) as exc:
            raise _damaged(file) from exc
        return seen

    def store(self, origin: str, seen: Seen) -> None:
        """Store what was seen; returns when it outlives a power cut.

        Raises:
            OSError: it cannot be stored, so it must not be signed.
        """
        file = self._file(origin)
        partial = file.with_suffix(".new")
        text = json.dumps({"origin": origin, "size": seen.size, "root": seen.root.hex()})
        descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(descriptor, "w", encoding="utf-8") as writer:
            writer.write(text + "\n")
            writer.flush()
            os.fsync(descriptor)
        partial.replace(file)
        folder = os.open(self._folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)

    def close(self) -> None:
        """Give the folder free."""
        self._lock.close()

    def _file(self, origin: str) -> Path:
        return self._folder / f"{sha256(origin.encode()).hexdigest()[:32]}.json"


def _damaged(file: Path) -> ConfigurationError:
    return ConfigurationError(
        f"{file} is damaged: a witness that has forgotten must get a new key and name",
        code="witness.state",
    )
