"""Results of a run: what the JSON file holds, and medians over its rounds (pure)."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from pydantic import BaseModel, ConfigDict

Connections = Literal["new", "keepalive"]
Operation = Literal["enroll", "reenroll", "repeat"]
Counters = dict[str, float]


class Measurement(BaseModel):
    """One row of one round: a server under one load."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    server: str
    operation: Operation
    connections: Connections
    c: int
    round: int
    done: int
    """Requests with a certificate as answer, warm-up included: what everything is divided by."""
    errors: int
    tls: str = ""
    """Version and cipher suite that was negotiated."""
    per_s: float
    p50_ms: float
    p99_ms: float
    cpu_ms: dict[str, float]
    """Per request, by part."""
    counts: dict[str, float] = {}
    """Per request, idle work subtracted; ``batch`` is the mean."""
    rows: int = 0
    after_checkpoint: bool = False

    @property
    def total_cpu_ms(self) -> float:
        """CPU-ms of everything per request."""
        return sum(self.cpu_ms.values())


class Results(BaseModel):
    """Everything a run found."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    machine: dict[str, str]
    versions: dict[str, str]
    verify_per_s: float
    load_average: float
    """Before the run: how busy the machine was without it."""
    rounds: int
    requests: dict[int, int]
    """By concurrency, in each row."""
    quick: bool
    measurements: list[Measurement]
    counted: list[Measurement] = []
    """Rows of their own, with counters that were read after everything had been reported."""
    idle_ms_per_s: dict[str, dict[str, float]] = {}
    pss_mb: dict[str, dict[str, float]] = {}
    growth: list[Measurement] = []


@dataclass(frozen=True)
class Summary:
    """Rounds of one row: medians, and the smallest CPU time."""

    cpu_ms: float
    cpu_ms_min: float
    per_s: float
    p50_ms: float
    p99_ms: float
    errors: int
    parts: dict[str, float]
    counts: dict[str, float]

    @classmethod
    def of(cls, rounds: Sequence[Measurement]) -> Summary:
        """Summarize the rounds of one row."""
        totals = [m.total_cpu_ms for m in rounds]

        def median(value: Callable[[Measurement], float]) -> float:
            return statistics.median(map(value, rounds))

        return cls(
            cpu_ms=statistics.median(totals),
            cpu_ms_min=min(totals),
            per_s=median(lambda m: m.per_s),
            p50_ms=median(lambda m: m.p50_ms),
            p99_ms=median(lambda m: m.p99_ms),
            errors=sum(m.errors for m in rounds),
            parts=_medians([m.cpu_ms for m in rounds]),
            counts=_medians([m.counts for m in rounds]),
        )


def _medians(rounds: Sequence[dict[str, float]]) -> dict[str, float]:
    return {name: statistics.median(one.get(name, 0.0) for one in rounds) for name in rounds[0]}


def summary(measurements: Iterable[Measurement], **fields: object) -> Summary | None:
    """Summarize the measurements whose fields have these values; None where there are none."""
    found = [m for m in measurements if all(getattr(m, k) == v for k, v in fields.items())]
    return Summary.of(found) if found else None


def added(before: Counters, after: Counters) -> Counters:
    """Return what was added to each counter."""
    return {name: after[name] - before[name] for name in before}


def per_request(counted: Counters, done: int, idle: Counters) -> Counters:
    """Return the additions per request, less those of an idle server in the same time.

    The signer's batch is a mean: requests in batches by the number of batches.
    """
    own = {name: max(value - idle.get(name, 0.0), 0.0) for name, value in counted.items()}
    batches, batched = own.pop("batch_count", 0.0), own.pop("batch_sum", 0.0)
    found = {name: round(value / done, 4) for name, value in own.items()}
    if batches:
        found["batch"] = round(batched / batches, 2)
    return found
