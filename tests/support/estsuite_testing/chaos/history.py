"""What clients asked and what they were answered, in the order in which it happened."""

from __future__ import annotations

import json
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal

Kind = Literal["enroll", "reenroll", "repeat"]


@dataclass
class Operation:
    """One enrollment as its client sees it: asked until it has a certificate, or given up."""

    kind: Kind
    name: str
    spki_sha256: str
    started_s: float = field(default_factory=time.monotonic)
    ended_s: float | None = None
    answers: list[str] = field(default_factory=list)
    """HTTP status and code of each answer, or the name of the error, in order."""
    serial: str | None = None
    fingerprint: str | None = None
    expected: str | None = None
    """Fingerprint that a repeat has to return."""
    fault: str | None = None
    """An answer that no fault explains."""

    @property
    def done(self) -> bool:
        """The client has its certificate."""
        return self.fingerprint is not None


@dataclass
class History:
    """All operations of a run, and what was done to the suite meanwhile."""

    folder: Path
    operations: list[Operation] = field(default_factory=list)
    events: list[dict[str, object]] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)
    """What is wrong apart from any operation."""
    started_s: float = field(default_factory=time.monotonic)

    def note(self, event: str, **details: object) -> None:
        """Note something that was done, with its time."""
        at = round(time.monotonic() - self.started_s, 2)
        self.events.append({"at_s": at, "event": event, **details})
        with (self.folder / "events.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(self.events[-1]) + "\n")

    def write(self) -> None:
        """Keep the operations beside the events."""
        path = self.folder / "operations.jsonl"
        with path.open("w", encoding="utf-8") as file:
            for operation in self.operations:
                file.write(json.dumps(asdict(operation)) + "\n")
