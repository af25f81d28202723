"""The event by which a campaign asks for a renewal: what is written is read, and nothing else."""

from __future__ import annotations

import contextlib
import datetime as dt
from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from estcore.errors import MalformedRequest
from estcore.messages.envelope import decode, encode
from estcore.messages.events import EarlyReason, RenewalRequested
from estcore.messages.joined import join, split

moments = st.integers(946_684_800, 253_000_000_000).map(
    lambda second: dt.datetime.fromtimestamp(second, dt.UTC)
)
events = st.builds(
    RenewalRequested,
    id=st.uuids().map(str),
    source=st.just("ca-signer/test"),
    time=moments,
    correlation_id=st.just("campaign"),
    causation_id=st.none(),
    traceparent=st.none(),
    schema_version=st.just(1),
    campaign_id=st.uuids().map(str),
    tenant=st.just("demo"),
    service=st.just("web"),
    issuer_id=st.just("issuing"),
    serial=st.just("01ab"),
    fingerprint_sha256=st.binary(min_size=32, max_size=32).map(bytes.hex),
    not_after=moments,
    reason=st.sampled_from(get_args(EarlyReason)),
    requested_at=moments,
    renew_by=st.none() | moments,
    explanation_url=st.none() | st.from_regex(r"https://[!-~]{1,80}", fullmatch=True),
)


@given(st.lists(events, min_size=1, max_size=5))
def test_events_that_travel_together_are_read_as_they_were_written(
    written: list[RenewalRequested],
) -> None:
    payload = join([encode(event) for event in written])
    assert [decode(RenewalRequested, one) for one in split(payload)] == written


@given(st.binary(max_size=200))
def test_any_octets_are_an_event_or_malformed(octets: bytes) -> None:
    with contextlib.suppress(MalformedRequest):
        decode(RenewalRequested, octets)


@pytest.mark.parametrize(
    "changes",
    [
        {"explanation_url": "https://ca.test/\x1b[2J"},
        {"explanation_url": "https://ca.test/" + "x" * 512},
        {"fingerprint_sha256": "00"},
        {"reason": "lifetime"},
        {"tenant": "a.b"},
    ],
)
@given(event=events)
def test_what_no_signer_writes_is_refused(event: RenewalRequested, changes: dict[str, str]) -> None:
    with pytest.raises(ValidationError):
        RenewalRequested.model_validate(event.model_dump() | changes)
