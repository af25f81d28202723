"""Agents that ask at once, or in an outage."""

from __future__ import annotations

import dataclasses
from typing import Any

from loadmodel.crowd import Crowd, Outcome, Simulation, Suite

SUITE = Suite(frontends=2, connection_ms=2, signed_per_s=100)
AT_ONCE = Crowd([n / 1000 for n in range(1000)])


def run(crowd: Crowd = AT_ONCE, **changed: Any) -> Outcome:
    return Simulation(dataclasses.replace(SUITE, **changed), crowd).run()


def assert_conserved(found: Outcome) -> None:
    """Every connection ends in one answer, and every request that was published is signed."""
    others = found.refused + found.limited + found.busy + found.full + found.pending
    assert found.connections == others + found.enrolled
    assert found.published == sum(found.signed_per_minute) == found.enrolled + found.copies_signed
    assert sum(found.connections_per_minute) == found.connections
    assert found.waiting_per_minute[-1] == 0


def test_every_agent_gets_its_certificate_and_no_request_is_lost() -> None:
    found = run()
    assert found.enrolled == found.agents == 1000
    assert_conserved(found)
    assert found.all_s >= 1000 / SUITE.signed_per_s - 1


def test_a_lone_agent_asks_once() -> None:
    found = run(Crowd([0.0]))
    assert (found.connections, found.published, found.enrolled) == (1, 1, 1)
    assert found.all_s < 0.1


def test_agents_wait_out_an_outage_of_the_signers() -> None:
    crowd = Crowd([float(n) for n in range(900)])
    found = run(crowd, down_from_s=60, down_until_s=660)
    assert found.enrolled == 900
    assert max(found.waiting_per_minute) >= 590
    assert found.pending > 0
    assert_conserved(found)
    assert sum(found.signed_per_minute[1:11]) <= 1


def test_a_longer_retry_after_spares_the_front_ends() -> None:
    crowd = Crowd([float(n) for n in range(900)])
    often = run(crowd, down_from_s=60, down_until_s=660)
    seldom = run(crowd, down_from_s=60, down_until_s=660, retry_after_s=60)
    assert seldom.connections < often.connections / 2
    assert seldom.enrolled == often.enrolled


def test_a_full_stream_refuses_and_loses_nothing() -> None:
    found = run(max_messages=20)
    assert found.peak_messages <= 20
    assert found.full > 0
    assert found.enrolled == 1000
    assert_conserved(found)


def test_a_front_end_answers_no_more_than_it_has_places_for() -> None:
    found = run(max_in_flight=50)
    assert found.peak_in_flight == 50
    assert found.busy > 0
    assert found.enrolled == 1000


def test_one_address_waits_for_handshakes_and_one_secret_for_its_rate() -> None:
    crowd = Crowd([n / 100_000 for n in range(5000)], one_source=True)
    assert (
        run(crowd, frontends=1).refused
        > run(dataclasses.replace(crowd, one_source=False), frontends=1).refused
    )
    limited = run(
        Crowd([n / 2000 for n in range(5000)], one_secret=True),
        frontends=1,
        connection_ms=0.1,
        signed_per_s=1000,
    )
    assert limited.limited > 0
    assert limited.enrolled == 5000
    assert_conserved(limited)
