"""Records the audit service writes about itself, numbered without gaps per boot.

They wait here until the writer has committed them, so an outage of the database loses none
that this process lives to write. The first say how far earlier boots had come.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Mapping
from typing import Any

from audit import record_decoder
from audit.settings import SERVICE
from estcore import ids
from estcore.clock import Clock
from estcore.messages.audit import Actor, AuditRecord, Phase, Producer, Severity
from estcore.runtime.boot import Boot, Detail
from estcore.tlog.sequences import PREVIOUS_BOOT


class SelfRecords:
    """The queue of this process's own records, in order."""

    def __init__(self, instance: str, clock: Clock, boot: Boot | None = None) -> None:
        self._boot = boot or Boot()
        self._producer = Producer(service=SERVICE, instance=instance, boot_id=self._boot.id)
        self._clock = clock
        self._waiting: deque[record_decoder.Entry] = deque()
        self.wake = asyncio.Event()
        for statement in self._boot.statements:
            self.note_fact(PREVIOUS_BOOT, statement)

    def note(
        self,
        action: str,
        *,
        phase: Phase = "outcome",
        severity: Severity = "info",
        reason: tuple[str, str] | None = None,
        record_id: str | None = None,
        **details: Detail,
    ) -> None:
        """Queue a record for the writer. ``reason`` is a code and a sentence."""
        record = self.record(
            action, details, phase=phase, severity=severity, reason=reason, record_id=record_id
        )
        self._waiting.append(record_decoder.entry_of(record))
        self.wake.set()

    def note_fact(self, action: str, details: Mapping[str, Detail]) -> None:
        """Queue a record whose details are given as a mapping."""
        self._waiting.append(record_decoder.entry_of(self.record(action, details)))
        self.wake.set()

    def record(
        self,
        action: str,
        details: Mapping[str, Detail],
        *,
        phase: Phase = "outcome",
        severity: Severity = "info",
        reason: tuple[str, str] | None = None,
        record_id: str | None = None,
    ) -> AuditRecord:
        """Return a record of this process, not queued.

        One with a ``record_id`` of its own may be made twice and is kept once; it takes no
        number, since a number must not be missing from the log.
        """
        number = None
        if record_id is None:
            number = self._boot.next()
        identity = record_id or ids.uuid7()
        failed = phase in {"error", "denied"}
        content: dict[str, Any] = dict(details)
        return AuditRecord(
            record_id=identity,
            producer=self._producer,
            producer_seq=number,
            occurred_at=self._clock.now(),
            correlation_id=identity,
            action=action,
            phase=phase,
            outcome="failure" if failed else "success",
            reason_code=reason[0] if reason else None,
            reason=reason[1] if reason else None,
            severity=severity,
            actor=Actor(type="system", subject=SERVICE),
            details=content or None,
        )

    def waiting(self) -> list[record_decoder.Entry]:
        """Return what is not committed yet, oldest first."""
        return list(self._waiting)

    def committed(self, count: int) -> None:
        """Forget the oldest ``count``."""
        for _ in range(count):
            self._waiting.popleft()
        if count:
            self._boot.forget_earlier()
