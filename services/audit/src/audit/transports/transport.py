"""What a forwarder needs of a way to a SIEM, and how a delivery can end.

- ``Outcome``: the receiver has the entries, but for those it will never take.
- ``BatchRefused``: it will not take this request as it is; smaller ones are tried.
- ``OSError``: it cannot be reached, or not now; the same entries are sent again later.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol


class SinkBusy(OSError):
    """The receiver asks to come later; ``retry_after_s`` is when, if it said so."""

    def __init__(self, reason: str, *, retry_after_s: float | None = None) -> None:
        super().__init__(reason)
        self.retry_after_s = retry_after_s


class BatchRefused(Exception):
    """The receiver refuses the content of a request for good."""


@dataclass(frozen=True)
class Prepared:
    """An entry in the form of its sink; ``omitted`` names members that were too long."""

    key: str
    payload: Any
    log_index: int | None = None
    omitted: tuple[str, ...] = ()


@dataclass(frozen=True)
class Outcome:
    """Entries that the receiver refused for good, with its reason, by key."""

    refused: Mapping[str, str] = field(default_factory=dict)


class Transport(Protocol):
    """A way to one receiver; one process uses it at a time.

    ``acknowledged``: the receiver says what it has. Where it does not, the last entries are sent
    again after a reconnect.
    """

    acknowledged: bool

    async def open(self) -> None:
        """Connect.

        Raises:
            OSError: refused, not verified, or not in time.
        """
        ...

    def prepare(self, entry: Any) -> Prepared:
        """Return an entry in the form of this sink."""
        ...

    async def deliver(self, prepared: Sequence[Prepared]) -> Outcome:
        """Send entries, and return when the receiver has them.

        Raises:
            BatchRefused: the content is refused for good.
            OSError: the receiver cannot be reached, or not now.
        """
        ...

    async def watch(self, seconds: float) -> None:
        """Wait so long; returns sooner where the connection is lost.

        Raises:
            OSError: the connection is lost.
        """
        ...

    async def close(self) -> None:
        """Close the connection."""
        ...
