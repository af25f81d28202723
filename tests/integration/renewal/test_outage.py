"""Many slots that are due at once after an outage, on a clock that a test moves.

Scheduler, claims, projection and servers are real; ``renewalbench.outage`` says what is simulated.
The figures of 100,000 slots are in docs/benchmarks.md.
"""

from __future__ import annotations

import pytest

from estsuite_testing.platform import Platform
from estsuite_testing.renewal_bench import Bench
from renewal.settings import RenewalSettings
from renewalbench.outage import Outage, Simulated, simulate

pytestmark = pytest.mark.integration
SLOTS, SIGNED_PER_S, MOST = 2000, 100, 200


async def after_outage(
    platform: Platform, settings: RenewalSettings, *, replicas: int = 1, **scheduler: object
) -> Simulated:
    given = Outage(SLOTS, SIGNED_PER_S, silent_share=0.05, replicas=replicas)
    return await simulate(given, platform, settings, lambda _: None, **scheduler)


async def test_no_certificate_expires_whose_agent_answers_and_critical_ones_are_first(
    platform: Platform, migrated: RenewalSettings, bench: Bench
) -> None:
    found = await after_outage(platform, migrated, max_unanswered=MOST, answer_s=10)
    assert (found.expired, found.twice, found.again) == (0, 0, 0)
    # A twentieth is critical: with half of the places they are through before anything else.
    assert found.done_s["critical"] < found.done_s["high"] < found.done_s["normal"]
    assert found.done_s["critical"] <= 10
    assert found.peak_waiting <= MOST
    # As fast as is signed, and the time that agents without an answer hold their places.
    assert found.done_s["normal"] <= 2 * SLOTS / SIGNED_PER_S


async def test_two_replicas_dispatch_no_slot_twice_for_one_generation(
    platform: Platform, migrated: RenewalSettings, bench: Bench
) -> None:
    """They look at the same moment, again and again, with hundreds of slots due."""
    found = await after_outage(platform, migrated, replicas=2, max_unanswered=1000, answer_s=10)
    assert (found.expired, found.twice, found.again) == (0, 0, 0)
    assert found.announced >= SLOTS
    rows = await bench.database.fetch(
        "select fence, attempts, count(*) from renewal.renewal_slot where state = 'overlap' "
        "group by 1, 2"
    )
    # The fence moved once with the dispatch and once with the new certificate.
    assert [(row["fence"], row["attempts"]) for row in rows] == [(2, 1)]
