"""The file that the figures of renewal are kept in; each program replaces its own part."""

from __future__ import annotations

from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict

from estbench import machine

FILE = Path(__file__).parents[2] / "docs/benchmarks/renewal.json"


class Part(BaseModel):
    """What one program measured, and where."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    machine: dict[str, str]
    load_average: float
    """Of the machine before the run: what other work disturbed it."""
    note: str = ""
    """What else there is to know about this run: a sentence, or nothing."""


P = TypeVar("P", bound=Part)


class ClaimRound(BaseModel):
    """All due slots of a fleet, claimed in one go."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    claims: int
    slots: int
    p50_ms: float
    p99_ms: float
    max_ms: float
    cpu_ms: float
    """CPU time of PostgreSQL for a claim, mean."""
    announce_p50_ms: float
    announce_p99_ms: float
    """To read what the events of a claim need, and to mark them; without publishing."""
    count_max_ms: float
    """The longest count of what is due: the first after the last claim of many."""
    load_average: float


class Claims(Part):
    """Claims from a large table."""

    slots: int
    due: int
    claim_size: int
    fill_s: float
    after_outage: list[ClaimRound]
    steady: ClaimRound
    octets: dict[str, int]
    """On disk, of each table and index."""


class PollRow(BaseModel):
    """Polls by one kind of connection."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    connections: str
    open_at_once: int
    polls: int
    per_s: float
    cpu_us: float
    p50_ms: float
    p99_ms: float
    memory_mb: float


class Polls(Part):
    """Agents that ask one front end for renewal information."""

    agents: int
    rows: list[PollRow]


class Rotations(Part):
    """A TLS server under load while its certificates change."""

    rotations: int
    lifetime_s: int
    handshakes: int
    requests: int
    failed: int
    connections_ended: int
    agent_kills: int
    agent_ended: int
    """How often the agent ended by itself."""
    renewal_kills: int
    stalled: int
    """Rotations that were recorded as stalled or expired."""
    minutes: float


class OutageRun(BaseModel):
    """Many slots that are due at once; seconds are of the simulated clock."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    slots: int
    signed_per_s: int
    max_unanswered: int
    silent: int
    expired: int
    announced_s: dict[str, int]
    done_s: dict[str, int]
    peak_announced_per_s: int
    peak_waiting: int
    announced: int
    twice: int
    again: int
    took_s: float


class Outages(Part):
    """The runs of a simulation."""

    runs: list[OutageRun]


class Figures(BaseModel):
    """Every part that was measured."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    claims: Claims | None = None
    polls: Polls | None = None
    outage: Outages | None = None
    rotations: Rotations | None = None


def conditions() -> dict[str, Any]:
    """Return the fields of every part."""
    return {"machine": machine.describe(), "load_average": round(machine.load_average(), 1)}


def read(file: Path = FILE) -> Figures:
    """Return what is in the file; nothing where there is none."""
    if not file.exists():
        return Figures()
    return Figures.model_validate_json(file.read_text(encoding="utf-8"))


def write(file: Path = FILE, **parts: Part) -> None:
    """Replace parts of the file."""
    found = read(file).model_copy(update=parts)
    file.parent.mkdir(parents=True, exist_ok=True)
    text = found.model_dump_json(indent=1, exclude_none=True)
    file.write_text(text + "\n", encoding="utf-8")


def quantile(values: list[float], share: float) -> float:
    """Return the value that this share of all does not exceed.

    Raises:
        ValueError: there are none.
    """
    if not values:
        raise ValueError("nothing was measured")
    return sorted(values)[min(int(len(values) * share), len(values) - 1)]
