"""What a verification found: machine-readable, one sentence for a person (pure)."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from typing import Any

from typing_extensions import override


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong: a stable code, where it is, and what it is."""

    code: str
    place: str
    sentence: str

    @override
    def __str__(self) -> str:
        return f"{self.place}: {self.sentence} [{self.code}]"


@dataclass
class Report:
    """The outcome of a verification. No findings is a pass.

    ``sealed`` is how many records the newest valid checkpoint covers; those after it are
    unchanged only as far as the export itself can be believed.
    """

    findings: list[Finding] = field(default_factory=list)
    origin: str = ""
    records: int = 0
    checkpoints: int = 0
    sealed: int = 0
    partial: bool = False
    root: str = ""

    @property
    def ok(self) -> bool:
        """Nothing was found."""
        return not self.findings

    def add(self, code: str, place: str, sentence: str) -> None:
        """Note one finding."""
        self.findings.append(Finding(code, place, sentence))

    def extend(self, findings: Iterable[Finding]) -> None:
        """Note findings of another check."""
        self.findings.extend(findings)

    def to_json(self) -> dict[str, Any]:
        """Return the report as plain data."""
        return {"ok": self.ok, **asdict(self)}
