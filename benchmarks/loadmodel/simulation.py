"""The scenarios of docs/scaling.md: their parameters, and a file with their outcomes."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace

from pydantic import BaseModel, ConfigDict

from loadmodel import steady
from loadmodel.costs import Costs
from loadmodel.crowd import Crowd, Outcome, Simulation, Suite
from loadmodel.fleet import MIXED, MIXES, PROFILES, by_priority, renewals_per_s
from loadmodel.incident import Claims, Incident, renew_all
from loadmodel.needs import LEAST
from renewal.settings import SchedulerSettings

LARGE = 5_000_000
SIZES = (50_000, 500_000, LARGE)
_GENERATIONS = (1, 2, 5, 10, 30)
_SAMPLE = 20_000
_SITE = 20_000
_SITE_WITHIN_S = 10.0
_OUTAGE_FROM_S, _OUTAGE_S, _AFTER_S = 600.0, 3600.0, 1200.0
_PACE = 0.7
_STEPS = 6
"""Events of a rotation: an announcement takes renewal about a sixth of its work."""


class Scenario(BaseModel):
    """A crowd and what became of it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    frontends: int
    signed_per_s: float
    retry_after_s: float
    outcome: Outcome


class Everything(BaseModel):
    """All outcomes, and the rates they were simulated with."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    connection_ms: float
    signer_per_s: float
    days: list[steady.Day]
    bunches: list[steady.Bunch]
    site: list[Scenario]
    outage: list[Scenario]
    incidents: list[Incident]


def simulate(costs: Costs, progress: Callable[[str], object]) -> Everything:
    """Run all scenarios: some minutes."""
    days = []
    for certificates in SIZES:
        days.append(steady.day(certificates, MIXED, name="mixed"))
        progress(f"a day of {certificates:,} certificates")
    days.append(steady.day(SIZES[1], MIXES["24 h"], name="24 h"))
    bunches = [
        steady.bunch(PROFILES[name], within_s=3600, generations=_GENERATIONS, sample=_SAMPLE)
        for name in ("24 h", "7 d", "30 d")
    ]
    progress("fleets enrolled within an hour")
    site = [
        _site(costs, "20,000 devices with certificates of their own", 3, 2),
        _site(costs, "the same behind one address", 3, 2, one_source=True),
        _site(costs, "the same with one shared secret", 3, 2, one_source=True, one_secret=True),
        _site(costs, "certificates of their own, six front ends, four signers", 6, 4),
    ]
    progress("a site restarts")
    outage = [
        _outage(costs, "5,000,000 certificates", 5),
        _outage(costs, "5,000,000 certificates, `retry_after_s: 60`", 60),
    ]
    progress("an hour without a signer")
    return Everything(
        connection_ms=round(costs.connection_ms, 4),
        signer_per_s=round(costs.signed_per_s, 2),
        days=days,
        bunches=bunches,
        site=site,
        outage=outage,
        incidents=_incidents(costs),
    )


def _incidents(costs: Costs) -> list[Incident]:
    """Return the lost root as the suite is, with a pace, and with more."""
    writer = costs.most_per_s("audit") * _PACE
    two = 2 * costs.signed_per_s * _PACE
    usual = Claims(
        size=SchedulerSettings.model_fields["claim_size"].default,
        claim_ms=costs.claim_ms,
        least_ms=costs.cpu_ms["renewal"] / _STEPS,
        replicas=LEAST["renewal"],
    )
    limited, free, double = round(min(two, writer)), round(two), round(2 * two)
    cases = [
        ("two signers, limited by the one audit writer", usual, limited),
        ("the same, with a pace", replace(usual, most_per_s=limited), limited),
        ("two signers, if audit kept up, with a pace", replace(usual, most_per_s=free), free),
        ("four signers, if audit kept up, with a pace", replace(usual, most_per_s=double), double),
    ]
    return [
        renew_all(by_priority(LARGE), claims, signed_per_s=signed, name=name)
        for name, claims, signed in cases
    ]


def _site(
    costs: Costs,
    name: str,
    frontends: int,
    signers: int,
    *,
    one_source: bool = False,
    one_secret: bool = False,
) -> Scenario:
    chance = random.Random(1)
    starts = [chance.uniform(0, _SITE_WITHIN_S) for _ in range(_SITE)]
    suite = Suite(
        frontends=frontends,
        connection_ms=costs.connection_ms,
        signed_per_s=signers * costs.signed_per_s,
    )
    return _scenario(name, suite, Crowd(starts, one_source=one_source, one_secret=one_secret))


def _outage(costs: Costs, name: str, retry_after_s: float) -> Scenario:
    chance = random.Random(1)
    rate = renewals_per_s(LARGE, MIXED)
    starts, at = list[float](), 0.0
    while at < _OUTAGE_FROM_S + _OUTAGE_S + _AFTER_S:
        at += chance.expovariate(rate)
        starts.append(at)
    suite = Suite(
        frontends=3,
        connection_ms=costs.connection_ms,
        signed_per_s=2 * costs.signed_per_s,
        retry_after_s=retry_after_s,
        down_from_s=_OUTAGE_FROM_S,
        down_until_s=_OUTAGE_FROM_S + _OUTAGE_S,
    )
    return _scenario(name, suite, Crowd(starts))


def _scenario(name: str, suite: Suite, crowd: Crowd) -> Scenario:
    return Scenario(
        name=name,
        frontends=suite.frontends,
        signed_per_s=round(suite.signed_per_s, 1),
        retry_after_s=suite.retry_after_s,
        outcome=Simulation(suite, crowd).run(),
    )
