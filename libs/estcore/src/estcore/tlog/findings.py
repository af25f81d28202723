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


@dataclass(frozen=True)
class Signer:
    """The key that the checkpoints were verified with.

    ``given`` is False if the key comes from the export, whose author could replace it.
    """

    name: str
    key_id: str
    given: bool


@dataclass(frozen=True)
class Sealed:
    """One valid checkpoint: the first ``size`` records have ``root``.

    ``recorded_at`` is the time of the last record it covers, so it was signed at that time or
    later; None if the export does not contain that record.
    """

    size: int
    root: str
    recorded_at: str | None


@dataclass(frozen=True)
class Cosigned:
    """The newest checkpoint that a witness cosigned, and when, in Unix seconds."""

    witness: str
    size: int
    seconds: int


@dataclass(frozen=True)
class Stamped:
    """The newest checkpoint that an authority stamped, and when (RFC 3161), ISO 8601."""

    authority: str
    size: int
    at: str


@dataclass
class Report:
    """The outcome of a verification. No findings is a pass.

    ``tree_size`` and ``root`` are those of all records; of a part of a log, those of its newest
    checkpoint. ``sealed`` is the number of records that the newest valid checkpoint covers. The
    ``unsealed`` records after it are under no signature. ``kept`` is the number of records that
    a checkpoint from outside the export proves.
    """

    findings: list[Finding] = field(default_factory=list)
    origin: str = ""
    records: int = 0
    checkpoints: int = 0
    sealed: int = 0
    partial: bool = False
    root: str = ""
    tree_size: int = 0
    first_recorded_at: str | None = None
    last_recorded_at: str | None = None
    first_checkpoint: Sealed | None = None
    last_checkpoint: Sealed | None = None
    unsealed: int = 0
    kept: int | None = None
    signer: Signer | None = None
    purged: list[tuple[int, int]] = field(default_factory=list)
    """Ranges of records, end excluded, of which only the hashes are here."""
    archive: str | None = None
    """The month, if it is an archive of one."""
    witnesses: list[Cosigned] = field(default_factory=list)
    timestamps: list[Stamped] = field(default_factory=list)

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
