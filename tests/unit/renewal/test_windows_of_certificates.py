"""The window in which a certificate is best renewed, and the entry that says so."""

from __future__ import annotations

import datetime as dt
from dataclasses import replace
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from estcore.clock import SystemClock
from estcore.errors import MalformedRequest
from estcore.ids import rotation_id
from estsuite_testing.renewal_bench import issue
from renewal.publishing.renewal_info import RenewalInfoPublisher
from renewal.rotation.early_renewal import EarlyRenewal
from renewal.rotation.renewal_info import InfoFacts, entry_of, first_entry, informs
from renewal.rotation.schedule import due_at, overdue_at, window, window_in_the_past
from renewal.rotation.slot import Scheduled
from renewal.rotation.slot_state import Generation
from renewal.settings import RenewalInfoSettings

ISSUED = dt.datetime(2026, 11, 29, 12, 0, 0, 250_000, tzinfo=dt.UTC)
SECOND = dt.timedelta(seconds=1)
lifetimes = st.integers(3, 400 * 86_400).map(lambda s: dt.timedelta(seconds=s))
NAME = issue()


def due(lifetime: dt.timedelta, reaction: dt.timedelta, spread: float) -> dt.datetime:
    return due_at(
        issued_at=ISSUED,
        not_after=ISSUED.replace(microsecond=0) + lifetime,
        reaction_time=reaction,
        spread=spread,
        slot_id="slot",
        generation=1,
    )


@given(lifetimes, lifetimes, st.floats(0, 0.5))
def test_a_window_begins_when_the_slot_is_due_and_ends_before_the_certificate(
    lifetime: dt.timedelta, reaction: dt.timedelta, spread: float
) -> None:
    end = ISSUED.replace(microsecond=0) + lifetime
    moment = due(lifetime, reaction, spread)
    found = window(moment, not_after=end)
    assert found.start < found.end <= end
    assert found.start <= moment < found.start + SECOND or found.start == end - SECOND
    assert found == window(moment, not_after=end)
    assert (found.start.microsecond, found.end.microsecond) == (0, 0)


@given(lifetimes, st.integers(-(10**7), 10**7))
def test_a_wished_end_makes_a_window_shorter_and_never_upside_down(
    lifetime: dt.timedelta, seconds: int
) -> None:
    end = ISSUED.replace(microsecond=0) + lifetime
    moment = due(lifetime, dt.timedelta(0), 0)
    wished = moment + dt.timedelta(seconds=seconds)
    found = window(moment, not_after=end, renew_by=wished)
    assert found.start < found.end <= window(moment, not_after=end).end
    assert found.end <= max(wished, found.start + SECOND)


@given(lifetimes)
def test_a_client_that_follows_its_window_is_never_overdue(lifetime: dt.timedelta) -> None:
    end = ISSUED.replace(microsecond=0) + lifetime
    moment = due(lifetime, dt.timedelta(0), 0)
    late = overdue_at(moment, not_after=end)
    assert window(moment, not_after=end).end <= late + SECOND
    assert moment <= late <= end
    if lifetime > dt.timedelta(minutes=1):
        assert late > ISSUED + lifetime * 0.85, "an agent renews by its own clock at 85 %"


def test_a_window_in_the_past_is_over_when_the_certificate_is_issued() -> None:
    found = window_in_the_past(ISSUED)
    assert found.start < found.end <= ISSUED


def facts() -> InfoFacts:
    event = NAME.event
    return InfoFacts(
        certificate=NAME.der,
        slot_id=event.slot_id,
        number=3,
        state="active",
        issued_at=event.issued_at,
        not_after=event.not_after,
        version=17,
        due_at=event.issued_at + dt.timedelta(hours=1),
    )


def test_a_live_certificate_has_its_own_window_and_the_rotation_that_follows() -> None:
    entry = entry_of(facts())
    assert entry is not None
    assert entry.start == int((NAME.event.issued_at + dt.timedelta(hours=1)).timestamp())
    assert (entry.version, entry.reason) == (17, None)
    assert str(entry.rotation) == rotation_id(NAME.event.slot_id, 4)


def test_a_certificate_that_ended_is_to_be_renewed_at_once() -> None:
    now = SystemClock().now().timestamp()
    for state, reason in (
        ("superseded", "superseded"),
        ("deprecated", "superseded"),
        ("revoked", "revoked"),
    ):
        entry = entry_of(replace(facts(), state=state, explanation_url="https://ca.test/x"))  # type: ignore[arg-type] # a state
        assert entry is not None
        assert entry.end <= now
        assert (entry.reason, entry.url) == (reason, None)


def test_a_certificate_without_an_id_has_no_entry() -> None:
    assert entry_of(replace(facts(), certificate=b"0")) is None


@pytest.mark.parametrize("url", ["https://ca.test/" + "x" * 500, "https://ca.test/\n", "https://ä"])
def test_an_explanation_that_no_answer_could_carry_is_refused(url: str) -> None:
    with pytest.raises(MalformedRequest) as caught:
        EarlyRenewal("slot", ISSUED, "incident", explanation_url=url)
    assert caught.value.code == "renewal_info.url"


def test_a_certificate_without_an_end_is_published() -> None:
    """RFC 5280 section 4.1.2.5: 99991231235959Z means no well-defined expiration date."""
    forever = dt.datetime(9999, 12, 31, 23, 59, 59, tzinfo=dt.UTC)
    entry = entry_of(replace(facts(), not_after=forever))
    assert entry is not None
    settings = RenewalInfoSettings()
    publisher = RenewalInfoPublisher(cast(Any, None), cast(Any, None), SystemClock(), settings)
    (message,) = publisher.outgoing([entry])
    assert message.topic == "pki.renewal.info.99991231"
    assert message.ttl_s is not None
    assert message.ttl_s * 10**9 < 1 << 63


def test_the_first_entry_gives_way_to_any_later_one() -> None:
    first = first_entry(Scheduled(NAME.event, 1, NAME.event.issued_at))
    assert first is not None
    assert first.version == 0


def test_only_what_changes_the_window_is_published() -> None:
    before = Generation(
        issuance_id="i",
        fingerprint="f",
        predecessor=None,
        issued_at=ISSUED,
        not_after=ISSUED,
        number=1,
        state="superseded",
    )
    assert not informs(before, replace(before, state="deprecated"))
    assert not informs(before, replace(before, state="expired"))
    assert informs(before, replace(before, state="revoked"))
    assert informs(before, replace(before, number=2))
    assert informs(replace(before, state="active"), before)
