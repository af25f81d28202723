"""Locks of the agent: one process for each state folder, and for each store.

An flock(2) ends with the process, however it ends, so a crash leaves none behind.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

from estcore.errors import ConfigurationError


@contextlib.contextmanager
def locked(file: Path) -> Iterator[None]:
    """Hold the lock for the block.

    Raises:
        ConfigurationError: another process holds it (``agent.locked``), or it cannot be made.
    """
    try:
        file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor = os.open(file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    except OSError as exc:
        raise ConfigurationError(f"cannot lock {file}: {exc.strerror}") from exc
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as exc:
            raise ConfigurationError(
                f"an agent runs already with {file.parent}", code="agent.locked"
            ) from exc
        yield
    finally:
        os.close(descriptor)


def is_locked(file: Path) -> bool:
    """Return whether a process holds the lock; False also where it cannot be looked at."""
    try:
        descriptor = os.open(file, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    finally:
        os.close(descriptor)
    return False
