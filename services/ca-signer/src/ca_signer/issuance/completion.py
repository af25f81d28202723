"""What every certificate source does with a stored certificate: answer, log, supersede."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from ca_signer import metrics
from ca_signer.ledger.issuances import IssuanceStore
from ca_signer.model import IssuedCertificate
from ca_signer.publishing.publisher import EventPublisher
from estcore.errors import RequestRejected
from estcore.ids import record_id, serial_hex
from estcore.runtime.logs import fields

log = logging.getLogger(__name__)

_KEY_NOT_DELIVERED = RequestRejected(
    "the key was requested again; this one never reached its client", code="keygen.undelivered"
)


async def answer(publisher: EventPublisher, stored: Sequence[IssuedCertificate]) -> None:
    """Answer the requests of stored certificates, count and log them."""
    await publisher.replies.send_issued(stored)
    for issued in stored:
        intent = issued.intent
        metrics.ISSUED.labels(intent.issuer_id, intent.profile).inc()
        if not log.isEnabledFor(logging.DEBUG):
            continue  # the audit record says more
        log.debug(
            "certificate issued",
            extra=fields(
                correlation_id=intent.context.correlation_id,
                serial=serial_hex(intent.serial_number),
                issuer=intent.issuer_id,
                profile=intent.profile,
                tenant=intent.tenant,
                owner=intent.service,
            ),
        )


async def supersede(
    publisher: EventPublisher, ledger: IssuanceStore, issued: IssuedCertificate
) -> None:
    """Revoke a certificate whose generated key never reached its client.

    Raises:
        BusUnavailable: not audited, so not revoked either.
        LedgerUnavailable: audited; it is revoked and audited again later.
    """
    record = publisher.audit_records.about_intent(
        issued.intent,
        record_id=record_id("superseded", issued.intent.issuance_id),
        action="certificate.superseded",
        error=_KEY_NOT_DELIVERED,
        phase="outcome",
    )
    await publisher.mappings([record])
    await ledger.revoke(issued.intent.issuance_id, "superseded")
