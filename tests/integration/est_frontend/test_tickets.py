"""Pending requests: known to every front end, for a few seconds, dropped in order."""

from __future__ import annotations

import asyncio
import datetime as dt

import pytest

from est_frontend.enrollment.pending_requests import LONGEST, PendingRequests
from estcore.clock import SystemClock
from estcore.ids import uuid7
from estcore.messages import topics
from estcore.messages.envelope import encode
from estcore.messages.events import EnrollmentPending
from estcore.runtime.bus import Bus, Outgoing
from estcore.runtime.topology import declare
from estsuite_testing.platform import Platform

pytestmark = pytest.mark.integration


@pytest.mark.logs_errors("pending-enrollment event unreadable")
async def test_a_pending_request_is_known_for_seconds_only(platform: Platform) -> None:
    settings = platform.bus("ca-signer")
    migrating = await platform.provisioner()
    await declare(migrating, topics.owned_by("ca-signer"), (), replicas=1)
    signer = await Bus.connect(settings, "ca-signer", "test")
    frontend = await Bus.connect(platform.bus("est-frontend"), "est-frontend", "test")
    tickets = PendingRequests(SystemClock())
    await tickets.follow(frontend)
    await frontend.client.flush()
    now = dt.datetime.now(dt.UTC)
    open_for = {b"\x01" * 32: 3600.0, b"\x02" * 32: 1.5, b"\x03" * 32: -5.0}
    topic = topics.certificate_topic("pending", "test", "load")
    for enrollment_id, seconds in open_for.items():
        event = EnrollmentPending(
            id=uuid7(),
            source="ca-signer",
            time=now,
            correlation_id=uuid7(),
            tenant="test",
            service="load",
            enrollment_id=enrollment_id.hex(),
            until=now + dt.timedelta(seconds=seconds),
        )
        await signer.publish_confirmed([Outgoing(topic, encode(event), event.id)])
    await signer.publish_confirmed([Outgoing(topic, b"nonsense", "nonsense")])
    async with asyncio.timeout(5):
        while tickets.wait_s(b"\x01" * 32) is None:
            await asyncio.sleep(0.01)
    assert 5 < (tickets.wait_s(b"\x01" * 32) or 0) <= LONGEST.total_seconds()
    assert tickets.wait_s(b"\x02" * 32) in {1, 2}
    assert tickets.wait_s(b"\x03" * 32) is None
    assert tickets.wait_s(b"\x04" * 32) is None
    await asyncio.sleep(1.6)
    assert tickets.wait_s(b"\x02" * 32) is None
    for bus in (frontend, signer, migrating):
        await bus.close()
