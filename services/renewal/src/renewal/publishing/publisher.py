"""Publishes the events that the rows record: read, publish, await the PubAcks, mark.

There is no outbox table. A certificate whose ``reached`` differs from ``announced``, or a slot
whose ``announced_fence`` is behind ``fence``, has unpublished events. The process that made the
change publishes them at once; after a crash the sweeper of any replica finds the rows and
publishes the same events under the same message ids.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Collection, Iterable, Sequence
from typing import Any

import asyncpg

from estcore.ids import rotation_id
from estcore.messages.events import (
    CertificateRef,
    RenewalRefused,
    RotationEvent,
    RotationStep,
)
from estcore.pki.profile import PRIORITIES
from estcore.runtime import faults
from estcore.runtime.bus import Bus
from estcore.runtime.database import Database
from renewal.metrics import DUE_TO_ACTIVATED_S, STEPS
from renewal.publishing.messages import MessageBuilder, RotationMessage, event_id
from renewal.publishing.renewal_info import RenewalInfoPublisher
from renewal.rotation.schedule import stall_at
from renewal.rotation.slot_state import Steps
from renewal.settings import RotationSettings

_LIMIT = 500
_LONGEST_REASON = 300
_SLOT = """
    s.slot_id, s.tenant, s.service, s.profile, s.label, s.issuer_id, s.mode, s.priority,
    s.fence, s.lapsed_fence, s.due_at, s.attempts, s.lease_until, s.dispatched_at,
    s.due_reason, s.renew_by, s.explanation_url,
    s.last_error_at, s.first_due_at, s.generation as slot_generation, s.traceparent as slot_trace,
    now() as now
"""
_CERTIFICATE = """
    c.issuance_id, c.serial, c.not_before, c.not_after, c.spki_sha256, c.fingerprint_sha256,
    c.generation, c.issued_at, c.overlap_until, c.activated_at, c.proof, c.proof_peer,
    c.reached, c.announced, c.correlation_id, c.traceparent
"""
_OLD = """
    o.serial as old_serial, o.not_before as old_not_before, o.not_after as old_not_after,
    o.spki_sha256 as old_spki_sha256, o.fingerprint_sha256 as old_fingerprint_sha256,
    o.issued_at as old_issued_at, o.state as old_state, r.revoked_at as old_revoked_at
"""
_ROTATIONS = f"""
select {_SLOT}, {_CERTIFICATE}, {_OLD}
from certificate c join renewal_slot s using (slot_id)
left join certificate o on o.issuance_id = c.replaces
left join revocation r on r.fingerprint_sha256 = o.fingerprint_sha256
where c.reached <> c.announced and
"""  # noqa: S608 - our own names
_OF_SLOTS = _ROTATIONS + "c.slot_id = any($1::uuid[]) order by c.issued_at limit 500"
_LEFT = _ROTATIONS + "c.changed_at < now() - $1::interval order by c.changed_at limit 500"
_MARK_STEPS = """
update certificate c set announced = c.announced | t.published
from unnest($1::text[], $2::smallint[]) as t(id, published) where c.issuance_id = t.id
"""
_DISPATCHES = f"""
select {_SLOT}, {_CERTIFICATE}
from renewal_slot s join certificate c on c.issuance_id = s.active_id where
"""  # noqa: S608 - our own names
# By the ids first: there is an index over every dispatched slot, which looks empty in statistics
# from before an outage, and which then has all the slots that were announced in it.
_DISPATCHES_OF = f"""
select {_SLOT}, {_CERTIFICATE}
from (select known.* from unnest($1::uuid[]) wanted(id)
    join renewal_slot known on known.slot_id = wanted.id offset 0) s
join certificate c on c.issuance_id = s.active_id where
"""  # noqa: S608 - our own names
DUE_OF = _DISPATCHES_OF + "s.announced_fence < s.fence and s.state = 'dispatched'"
_DUE_LEFT = (
    _DISPATCHES + "s.announced_fence < s.fence and s.state = 'dispatched' "
    "and s.dispatched_at < now() - $1::interval order by s.dispatched_at limit 500"
)
_LAPSED_OF = _DISPATCHES_OF + "s.announced_lapsed_fence < s.lapsed_fence"
_LAPSED_LEFT = (
    _DISPATCHES + "s.announced_lapsed_fence < s.lapsed_fence "
    "and s.last_error_at < now() - $1::interval order by s.last_error_at limit 500"
)
_FAILED_OF = _DISPATCHES + "s.state = 'failed' and s.slot_id = any($1::uuid[])"
MARK_DUE = """
update renewal_slot s set announced_fence = t.fence
from unnest($1::uuid[], $2::bigint[]) as t(slot_id, fence)
where s.slot_id = t.slot_id and s.fence = t.fence
"""
_MARK_LAPSED = """
update renewal_slot s set announced_lapsed_fence = t.fence
from unnest($1::uuid[], $2::bigint[]) as t(slot_id, fence)
where s.slot_id = t.slot_id and s.lapsed_fence = t.fence
"""
_ORDER: tuple[tuple[Steps, RotationStep], ...] = (
    (Steps.ISSUED, "issued"),
    (Steps.OVERLAP, "overlap"),
    (Steps.STALLED, "stalled"),
    (Steps.ACTIVATED, "activated"),
    (Steps.DEPRECATED, "deprecated"),
    (Steps.RETIRED, "retired"),
    (Steps.EXPIRED, "expired"),
    (Steps.ENDED, "ended"),
)


class RotationPublisher:
    """Publishes the steps that rows have and that are not marked as published."""

    def __init__(
        self,
        database: Database,
        bus: Bus,
        builder: MessageBuilder,
        rotation: RotationSettings,
        info: RenewalInfoPublisher,
    ) -> None:
        self._database, self._bus, self._builder = database, bus, builder
        self._rotation = rotation
        self.info = info

    async def rotations(self, slot_ids: Sequence[str], issued: Collection[str] = ()) -> int:
        """Publish the steps of these slots and their renewal information; returns how many steps.

        The renewal information of the certificates ``issued`` is published in any case.

        Raises:
            Unavailable: not everything was confirmed; the sweeper publishes it again.
        """
        if not slot_ids:
            return 0
        await self.info.publish(slot_ids, issued)
        return await self._steps(_OF_SLOTS, list(slot_ids))

    async def dues(self, slot_ids: Sequence[str]) -> int:
        """Publish that these dispatched slots are due.

        Raises:
            Unavailable: not everything was confirmed; the sweeper publishes it again.
        """
        return await self._dispatches(DUE_OF, "due", MARK_DUE, list(slot_ids))

    async def lapses(self, slot_ids: Sequence[str]) -> int:
        """Publish that the leases of these slots expired.

        Raises:
            Unavailable: not everything was confirmed; the sweeper publishes it again.
        """
        return await self._dispatches(_LAPSED_OF, "lease_expired", _MARK_LAPSED, list(slot_ids))

    async def refusals(self, refused: Sequence[RenewalRefused]) -> int:
        """Publish that ca-signer refused these renewals, where their slots ended by that.

        The event of ca-signer is acknowledged after the PubAcks, and this is published again under
        the same ids when it is delivered again.

        Raises:
            Unavailable: not everything was confirmed.
        """
        if not refused:
            return 0
        by_slot = {event.slot_id: event for event in refused}
        async with self._database.connection() as connection:
            rows = await connection.fetch(_FAILED_OF, list(by_slot))
        messages = [
            self._failed(row, by_slot[str(row["slot_id"])])
            for row in rows
            if row["fence"] == by_slot[str(row["slot_id"])].fence
        ]
        await self._publish(messages)
        return len(messages)

    def _failed(self, row: asyncpg.Record, refused: RenewalRefused) -> RotationMessage:
        key = str(refused.fence)
        facts = {
            "old": _ref(row),
            "due_at": row["due_at"],
            "attempt": row["attempts"],
            "error_code": refused.code,
            "seconds_to_expiry": int((row["not_after"] - row["now"]).total_seconds()),
        }
        number = row["slot_generation"] + 1
        event = self._event(
            row, "failed", number, key, row["last_error_at"], row["slot_trace"], facts
        )
        reasons = (("error_code", refused.code), ("error", refused.reason[:_LONGEST_REASON]))
        return RotationMessage(event, event.old, row["issuance_id"], key, reasons)

    async def sweep(self, older_than: dt.timedelta) -> int:
        """Publish what a crash or an outage left unpublished; returns how many events.

        Raises:
            Unavailable: the bus or the database is unavailable.
        """
        published = await self._dispatches(_DUE_LEFT, "due", MARK_DUE, older_than)
        published += await self._dispatches(_LAPSED_LEFT, "lease_expired", _MARK_LAPSED, older_than)
        published += await self._steps(_LEFT, older_than)
        return published + await self.info.sweep(older_than)

    async def _steps(self, query: str, argument: object) -> int:
        async with self._database.connection() as connection:
            rows = await connection.fetch(query, argument)
        messages_to_send = [message for row in rows for message in self._step_messages(row)]
        if not rows:
            return 0
        await self._publish(messages_to_send)
        faults.hit("renewal.steps_published")
        ids = [row["issuance_id"] for row in rows]
        async with self._database.connection() as connection:
            await connection.execute(_MARK_STEPS, ids, [row["reached"] for row in rows])
        for row in rows:
            _observe(row)
        return len(messages_to_send)

    async def _dispatches(self, query: str, step: RotationStep, mark: str, argument: object) -> int:
        async with self._database.connection() as connection:
            rows = await connection.fetch(query, argument)
        if not rows:
            return 0
        await self._publish([self._tell_dispatch(row, _asked(row, step)) for row in rows])
        faults.hit("renewal.dispatch_published")
        fences = [row["fence" if step == "due" else "lapsed_fence"] for row in rows]
        async with self._database.connection() as connection:
            await connection.execute(mark, [row["slot_id"] for row in rows], fences)
        return len(rows)

    async def _publish(self, messages_to_send: Sequence[RotationMessage]) -> None:
        await self._bus.publish_confirmed(self._builder.messages(messages_to_send), timeout_s=10)
        for message in messages_to_send:
            STEPS.labels(message.event.step).inc()

    def _tell_dispatch(self, row: asyncpg.Record, step: RotationStep) -> RotationMessage:
        due = step != "lease_expired"
        fence = row["fence" if due else "lapsed_fence"]
        number = row["slot_generation"] + 1
        facts: dict[str, Any] = {
            "old": _ref(row),
            "due_at": row["due_at"],
            "attempt": row["attempts"],
            "fence": fence,
            "seconds_to_expiry": int((row["not_after"] - row["now"]).total_seconds()),
        }
        if due:
            facts |= {
                "respond_by": row["lease_until"],
                "reason": row["due_reason"] or "lifetime",
                "renew_by": row["renew_by"],
                "explanation_url": row["explanation_url"],
            }
        at = row["dispatched_at"] if due else row["last_error_at"]
        event = self._event(row, step, number, str(fence), at, row["slot_trace"], facts)
        details = (("due_at", row["due_at"].isoformat()), ("attempt", row["attempts"]))
        return RotationMessage(event, event.old, row["issuance_id"], str(fence), details)

    def _step_messages(self, row: asyncpg.Record) -> Iterable[RotationMessage]:
        unannounced = Steps(row["reached"] & ~row["announced"])
        for bit, step in _ORDER:
            if bit not in unannounced:
                continue
            if step in {"expired", "ended"}:
                yield self._tell_expired(row, step)
                continue
            event = self._event(
                row,
                step,
                row["generation"],
                row["issuance_id"],
                self._moment(row, step),
                row["traceparent"],
                self._facts(row, step),
            )
            about = event.old if step in {"deprecated", "retired"} else event.new
            details: list[tuple[str, str]] = [("enrollment_correlation_id", row["correlation_id"])]
            if event.proof is not None:
                details.append(("proof", event.proof))
            peer = row["proof_peer"] if step == "activated" else None
            # Its overlap begins at the moment it is issued, and has the same facts on record.
            recorded = step != "issued" or Steps.OVERLAP not in unannounced
            yield RotationMessage(
                event, about, row["issuance_id"], row["issuance_id"], tuple(details), peer, recorded
            )

    def _facts(self, row: asyncpg.Record, step: RotationStep) -> dict[str, Any]:
        old_end = row["old_not_after"]
        facts: dict[str, Any] = {"old": _old_ref(row), "new": _ref(row)}
        if step in {"overlap", "activated"}:
            facts["overlap_until"] = row["overlap_until"]
        if step == "activated":
            facts["proof"] = row["proof"]
        if step == "deprecated":
            facts |= {"deprecated_at": row["overlap_until"], "retire_at": old_end}
        if step == "retired":
            facts["disposition"] = "revoked" if row["old_state"] == "revoked" else "expired"
        if step == "stalled" and old_end is not None:
            facts["seconds_to_expiry"] = int((old_end - row["now"]).total_seconds())
        return facts

    def _moment(self, row: asyncpg.Record, step: RotationStep) -> dt.datetime:
        """When the step happened, the same every time it is published."""
        old_end = row["old_not_after"]
        moment: dt.datetime | None = row["issued_at"]
        if step == "activated":
            moment = row["activated_at"]
        elif step == "deprecated":
            moment = row["overlap_until"]
        elif step == "retired":
            moment = row["old_revoked_at"] or old_end
        elif step == "stalled" and old_end is not None:
            moment = stall_at(
                issued_at=row["old_issued_at"],
                not_after=old_end,
                safety=self._rotation.stall_safety,
            )
        return moment or row["issued_at"]

    def _tell_expired(self, row: asyncpg.Record, step: RotationStep) -> RotationMessage:
        facts = {"old": _ref(row), "attempt": row["attempts"], "seconds_to_expiry": 0}
        number = row["generation"] + 1
        key = row["issuance_id"]
        event = self._event(row, step, number, key, row["not_after"], None, facts)
        return RotationMessage(event, event.old, key, key)

    def _event(
        self,
        row: asyncpg.Record,
        step: RotationStep,
        number: int,
        key: str,
        at: dt.datetime,
        traceparent: str | None,
        facts: dict[str, Any],
    ) -> RotationEvent:
        slot = str(row["slot_id"])
        rotation = rotation_id(slot, number)
        values: dict[str, Any] = {
            "id": event_id(rotation, step, key),
            "source": self._builder.source,
            "time": at,
            "correlation_id": rotation,
            "traceparent": traceparent,
            "step": step,
            "tenant": row["tenant"],
            "service": row["service"],
            "slot_id": slot,
            "rotation_id": rotation,
            "generation": number,
            "profile": row["profile"],
            "priority": PRIORITIES[row["priority"]],
            "label": row["label"],
            "mode": row["mode"],
            "issuer_id": row["issuer_id"],
            "fence": row["fence"],
        }
        return RotationEvent(**(values | facts))


def _asked(row: asyncpg.Record, step: RotationStep) -> RotationStep:
    """Return the step by the mode of the slot: of a managed one ca-signer is asked to renew."""
    return "requested" if step == "due" and row["mode"] == "managed" else step


def _ref(row: asyncpg.Record) -> CertificateRef:
    return CertificateRef(
        serial=row["serial"],
        not_before=row["not_before"],
        not_after=row["not_after"],
        spki_sha256=row["spki_sha256"],
        fingerprint_sha256=row["fingerprint_sha256"],
    )


def _old_ref(row: asyncpg.Record) -> CertificateRef | None:
    if row["old_serial"] is None:
        return None
    return CertificateRef(
        serial=row["old_serial"],
        not_before=row["old_not_before"],
        not_after=row["old_not_after"],
        spki_sha256=row["old_spki_sha256"],
        fingerprint_sha256=row["old_fingerprint_sha256"],
    )


def _observe(row: asyncpg.Record) -> None:
    newly = Steps(row["reached"] & ~row["announced"])
    if Steps.ACTIVATED in newly and row["first_due_at"] is not None and row["activated_at"]:
        DUE_TO_ACTIVATED_S.observe((row["activated_at"] - row["first_due_at"]).total_seconds())
