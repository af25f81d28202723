"""Publication of campaigns: requested renewals as events, and every act of the job on record."""

from __future__ import annotations

from collections.abc import Sequence

import asyncpg

from ca_signer.publishing.audit_records import certificate_target
from ca_signer.publishing.outbox import OutboxSource
from ca_signer.publishing.publisher import EventPublisher
from estcore import ids
from estcore.messages.audit import Actor, AuditRecord, AuditRecordBuilder
from estcore.messages.audit_batches import Record
from estcore.messages.envelope import without_none
from estcore.messages.events import RenewalRequested
from estcore.runtime import faults

_CERTIFICATE = """m.campaign_id, c.reason, c.proposed_by, c.confirmed_by, i.issuance_id,
  i.tenant, i.service, i.issuer_id, i.profile, i.subject, i.serial_number,
  i.certificate_sha256, i.not_after, i.slot_id"""


def campaign_sources(publisher: EventPublisher) -> list[OutboxSource]:
    """Return the sources: requested renewals, revoked certificates, ends of campaigns."""
    records = publisher.audit_records

    async def publish_requests(rows: Sequence[asyncpg.Record]) -> None:
        # On record before an agent acts on it.
        await publisher.joined([_request_record(records.producer, row) for row in rows])
        faults.hit("signer.campaign.audited")
        await publisher.renewal_requests([_event(records.source, row) for row in rows])
        faults.hit("signer.campaign.published")

    async def publish_revocations(rows: Sequence[asyncpg.Record]) -> None:
        await publisher.records([_revocation_record(records.build, row) for row in rows])

    async def publish_ends(rows: Sequence[asyncpg.Record]) -> None:
        await publisher.records([_end_record(records.build, row) for row in rows])

    return [
        OutboxSource(
            # Of a campaign that is paused or stopped nothing more is published.
            select=f"select {_CERTIFICATE}, m.requested_at, c.renew_by, c.explanation_url "  # noqa: S608
            "from campaign_member m join campaign c using (campaign_id) "
            "join issuance i using (issuance_id) where m.requested_at is not null "
            "and m.announced_at is null and c.state in ('running', 'done') "
            "order by m.requested_at, m.rank, m.issuance_id limit $1",
            mark="update campaign_member m set announced_at = now() "
            "from unnest($1::uuid[], $2::uuid[]) as t(campaign, issuance) "
            "where m.campaign_id = t.campaign and m.issuance_id = t.issuance",
            keys=("campaign_id", "issuance_id"),
            publish=publish_requests,
        ),
        OutboxSource(
            select=f"select {_CERTIFICATE}, m.revoked_at as member_revoked_at, "  # noqa: S608
            "c.revoke_reason from campaign_member m join campaign c using (campaign_id) "
            "join issuance i using (issuance_id) where m.revoked_at is not null "
            "and m.revocation_announced_at is null order by m.revoked_at limit $1",
            mark="update campaign_member m set revocation_announced_at = now() "
            "from unnest($1::uuid[], $2::uuid[]) as t(campaign, issuance) "
            "where m.campaign_id = t.campaign and m.issuance_id = t.issuance",
            keys=("campaign_id", "issuance_id"),
            publish=publish_revocations,
        ),
        OutboxSource(
            select="select c.campaign_id, c.state, c.ended_at, count(m.issuance_id) as members, "
            "count(m.announced_at) as requested, count(m.skipped_at) as skipped, "
            "count(m.renewed_at) as renewed, count(m.proven_at) as proven, "
            "count(m.revoked_at) as revoked "
            "from campaign c left join campaign_member m using (campaign_id) "
            "where c.ended_at is not null and c.announced_at is null "
            "group by c.campaign_id, c.state, c.ended_at limit $1",
            mark="update campaign set announced_at = now() where campaign_id = any($1::uuid[])",
            keys=("campaign_id",),
            publish=publish_ends,
        ),
    ]


def _event(source: str, row: asyncpg.Record) -> RenewalRequested:
    campaign_id = str(row["campaign_id"])
    return RenewalRequested(
        id=ids.record_id("renewal-requested", campaign_id, str(row["issuance_id"])),
        source=source,
        time=row["requested_at"],
        correlation_id=campaign_id,
        campaign_id=campaign_id,
        tenant=row["tenant"],
        service=row["service"],
        issuer_id=row["issuer_id"],
        serial=ids.serial_hex(int.from_bytes(row["serial_number"], "big")),
        fingerprint_sha256=row["certificate_sha256"].hex(),
        not_after=row["not_after"],
        reason=row["reason"],
        requested_at=row["requested_at"],
        renew_by=row["renew_by"],
        explanation_url=row["explanation_url"],
    )


def _request_record(producer: dict[str, object], row: asyncpg.Record) -> Record:
    campaign_id = str(row["campaign_id"])
    target = certificate_target(row).model_dump(exclude_none=True)
    return without_none(
        record_id=ids.record_id("campaign-requested", campaign_id, str(row["issuance_id"])),
        schema_version=1,
        producer=producer,
        occurred_at=row["requested_at"],
        correlation_id=campaign_id,
        action="campaign.requested",
        phase="outcome",
        outcome="success",
        severity="info",
        actor={"type": "system", "subject": f"campaign:{campaign_id}"},
        target=target | {"slot_id": str(row["slot_id"])},
        details={"reason": row["reason"]},
    )


def _revocation_record(build: AuditRecordBuilder, row: asyncpg.Record) -> AuditRecord:
    campaign_id = str(row["campaign_id"])
    return build.success(
        "certificate.revoked",
        record_id=ids.record_id("campaign-revoked", campaign_id, str(row["issuance_id"])),
        at=row["member_revoked_at"],
        correlation_id=campaign_id,
        actor=Actor(type="system", subject=f"campaign:{campaign_id}"),
        target=certificate_target(row),
        details={
            "reason": row["revoke_reason"],
            "proposed_by": row["proposed_by"],
            "confirmed_by": row["confirmed_by"],
        },
    )


def _end_record(build: AuditRecordBuilder, row: asyncpg.Record) -> AuditRecord:
    campaign_id = str(row["campaign_id"])
    counts = ("members", "requested", "skipped", "renewed", "proven", "revoked")
    return build.success(
        f"campaign.{row['state']}",
        record_id=ids.record_id("campaign-end", campaign_id),
        at=row["ended_at"],
        correlation_id=campaign_id,
        actor=Actor(type="system", subject=f"campaign:{campaign_id}"),
        details={name: row[name] for name in counts},
    )
