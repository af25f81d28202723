"""The ledger's tables by subject: the one definition of the schema that migrations must match."""

from ca_signer.ledger.tables.campaigns import campaign, campaign_member
from ca_signer.ledger.tables.columns import metadata
from ca_signer.ledger.tables.issuance import (
    attempt,
    claim,
    enrollment,
    fingerprint,
    heartbeat,
    issuance,
    key_binding,
    managed_issuance,
    open_intent,
    request,
    secret,
    unannounced,
    window,
)
from ca_signer.ledger.tables.issuers import crl, generation, rollover, trust_seen
from ca_signer.ledger.tables.operators import (
    approval,
    bulk_revocation,
    bulk_revocation_member,
    command,
)
from ca_signer.ledger.tables.search import certificate, certificate_name
from ca_signer.ledger.tables.upstream import quarantine, submission, upstream_revocation

__all__ = [
    "approval",
    "attempt",
    "bulk_revocation",
    "bulk_revocation_member",
    "campaign",
    "campaign_member",
    "certificate",
    "certificate_name",
    "claim",
    "command",
    "crl",
    "enrollment",
    "fingerprint",
    "generation",
    "heartbeat",
    "issuance",
    "key_binding",
    "managed_issuance",
    "metadata",
    "open_intent",
    "quarantine",
    "request",
    "rollover",
    "secret",
    "submission",
    "trust_seen",
    "unannounced",
    "upstream_revocation",
    "window",
]
