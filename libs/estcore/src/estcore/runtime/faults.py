"""Fault points: places where a test build can be made to crash or to wait.

Without the distribution ``estsuite-faults`` (tests only, in no image) ``hit`` does nothing and
nothing can make it do anything: there is no setting for it.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib.metadata import entry_points


def _load() -> Callable[[str], None] | None:
    for point in entry_points(group="estsuite.faults"):
        hook: Callable[[str], None] = point.load()
        return hook
    return None


_hook = _load()


def hit(name: str) -> None:
    """Pass the fault point ``name``."""
    if _hook is not None:
        _hook(name)
