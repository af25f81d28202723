"""What a fleet needs: arithmetic over measured costs, and the page made of it."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from estbench.results import Results
from estcore.messages.topics import STREAMS
from loadmodel import report
from loadmodel.costs import Costs
from loadmodel.footprint import Footprint
from loadmodel.limits import limits, walls
from loadmodel.needs import LEAST, need
from loadmodel.policy_cost import measure
from loadmodel.simulation import Everything

DOCS = Path(__file__).parents[3] / "docs"


@pytest.fixture(scope="module")
def results() -> Results:
    return Results.model_validate_json((DOCS / "benchmarks/results.json").read_text())


@pytest.fixture(scope="module")
def footprint() -> Footprint:
    return Footprint.model_validate_json((DOCS / "scaling/footprint.json").read_text())


@pytest.fixture(scope="module")
def simulated() -> Everything:
    return Everything.model_validate_json((DOCS / "scaling/simulation.json").read_text())


@pytest.fixture(scope="module")
def costs(results: Results, footprint: Footprint) -> Costs:
    return Costs.of(results, footprint)


def test_a_small_fleet_needs_what_is_started_anyway(costs: Costs) -> None:
    found = need(1000, mean_per_s=0.001, peak_per_s=0.002, costs=costs)
    assert found.replicas == LEAST
    assert (found.postgres_cores, found.nats_cores) == (2, 2)
    assert found.events_s == 14 * 86_400


def test_disk_and_traffic_grow_with_the_rate(costs: Costs) -> None:
    once = need(1000, mean_per_s=1, peak_per_s=2, costs=costs)
    twice = need(1000, mean_per_s=2, peak_per_s=4, costs=costs)
    assert twice.disk_a_year == pytest.approx(2 * once.disk_a_year)
    assert twice.wal_per_s == pytest.approx(2 * once.wal_per_s)
    assert twice.events_s == pytest.approx(once.events_s / 2)
    assert once.disk_a_year == pytest.approx(365 * 86_400 * costs.disk_octets)


def test_servers_are_added_where_they_are_busy(costs: Costs) -> None:
    busy = dataclasses.replace(costs, cpu_ms={**costs.cpu_ms, "ca-signer": 10.0})
    assert need(1, mean_per_s=100, peak_per_s=100, costs=busy).replicas["ca-signer"] == 2
    assert need(1, mean_per_s=101, peak_per_s=101, costs=busy).replicas["ca-signer"] == 3


def test_only_one_audit_service_writes_however_busy(costs: Costs) -> None:
    found = need(1, mean_per_s=1000, peak_per_s=1000, costs=costs)
    assert found.replicas["audit"] == LEAST["audit"]
    assert found.writer_share == pytest.approx(costs.cpu_ms["audit"])


def test_limits_follow_the_streams_that_are_declared(costs: Costs, footprint: Footprint) -> None:
    found = {limit.what: limit for limit in limits(costs, footprint)}
    (requests,) = [s for s in STREAMS if s.name == "EST_REQUESTS"]
    (limit,) = [one for what, one in found.items() if what.startswith("`EST_REQUESTS`")]
    assert f"{requests.max_per_topic:,}" in limit.setting
    assert all(limit.reached > 0 for limit in found.values())


def test_walls_come_lowest_first(costs: Costs) -> None:
    rates = [wall.per_s for wall in walls(costs)]
    assert rates == sorted(rates)
    assert all(wall.per_s <= wall.most_per_s for wall in walls(costs))


def test_the_page_says_when_the_costs_are_others_than_those_simulated(
    results: Results, footprint: Footprint, simulated: Everything
) -> None:
    assert "ran with these costs" in report.page(results, footprint, simulated)
    older = simulated.model_copy(update={"signer_per_s": simulated.signer_per_s * 2})
    assert "make scaling" in report.page(results, footprint, older)


def test_finding_the_rules_of_an_owner_takes_no_longer_with_more_rules() -> None:
    few, many = measure(20), measure(600)
    assert many.octets > 20 * few.octets
    assert many.owner_ms < max(few.owner_ms, 0.05) * 10
