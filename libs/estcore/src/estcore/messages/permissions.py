"""Which topics each NATS user may publish and subscribe: deny by default, one user a service.

The same table makes the server's configuration in ``estsuite up``, in the tests and in the
manifests, so what is tested is what is deployed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from estcore.messages.topics import (
    AUDIT_CONSUMER,
    AUDIT_ISSUE,
    AUDIT_REFUSAL,
    EST_REQUESTS,
    FETCHED_TOPIC,
    PKI_EVENTS,
    PKI_STATE,
    RENEWAL_CONSUMER,
    ROTATIONS_CONSUMER,
    SUBMISSION_VERBS,
    signer_consumers,
    token,
)

_ACK = "$JS.ACK"


@dataclass(frozen=True)
class Permissions:
    """Topics a user may use; everything else is refused by the server."""

    publish: tuple[str, ...]
    subscribe: tuple[str, ...]


def _consume(stream: str, consumer: str) -> tuple[str, ...]:
    """Pulling from and acknowledging to one consumer, in both forms of ack topics."""
    return (
        f"$JS.API.CONSUMER.MSG.NEXT.{stream}.{consumer}",
        f"{_ACK}.{stream}.>",
        f"{_ACK}.*.*.{stream}.>",
    )


def frontend(group: str) -> Permissions:
    """est-frontend of one group: its own requests, refusals and replies, and the state."""
    return Permissions(
        publish=(
            f"est.request.{token(group)}.>",
            "audit.refusal.est-frontend.*",
            f"pki.ack.{group}",
            "pki.ocsp.*",
            FETCHED_TOPIC,
            f"$JS.API.DIRECT.GET.{PKI_STATE}",
        ),
        subscribe=(
            "_INBOX_estfrontend.>",
            f"est.reply.{group}.>",
            "pki.state.>",
            "pki.certificate.revoked.>",
            "pki.certificate.pending.>",
        ),
    )


def signer() -> Permissions:
    """ca-signer: the only one that may say a certificate was issued."""
    return Permissions(
        publish=(
            f"$JS.API.CONSUMER.MSG.NEXT.{EST_REQUESTS}.*",
            f"{_ACK}.{EST_REQUESTS}.>",
            f"{_ACK}.*.*.{EST_REQUESTS}.>",
            *_consume_only(PKI_EVENTS, ROTATIONS_CONSUMER),
            "pki.certificate.>",
            "pki.ca.>",
            "pki.state.>",
            "audit.issue.ca-signer",
            "audit.refusal.ca-signer.*",
            "est.reply.>",
            "dead.ca-signer.>",
            f"$JS.API.DIRECT.GET.{PKI_EVENTS}",
            f"$JS.API.DIRECT.GET.{PKI_STATE}",
            "_INBOX_renewal.>",
            "_INBOX_audit.>",
            "_INBOX_operator.>",
            "_INBOX_estfrontend.>",
        ),
        subscribe=("_INBOX_casigner.>", "pki.command.ca-signer.>", "pki.ocsp.*"),
    )


def upstream(issuers: Sequence[str]) -> Permissions:
    """ca-signer-upstream: as ca-signer, for its own issuers and the submissions' verbs only."""
    consumers = [c.name for issuer in issuers for c in signer_consumers(issuer)]
    return Permissions(
        publish=(
            *(right for name in consumers for right in _consume_only(EST_REQUESTS, name)),
            "pki.certificate.>",
            *(f"pki.state.cacerts.{token(issuer)}" for issuer in issuers),
            *(f"pki.state.revoked.{token(issuer)}.*" for issuer in issuers),
            "audit.issue.ca-signer",
            "audit.refusal.ca-signer.*",
            "est.reply.>",
            "dead.ca-signer.>",
            f"$JS.API.DIRECT.GET.{PKI_EVENTS}",
            "_INBOX_operator.>",
        ),
        subscribe=(
            "_INBOX_casignerupstream.>",
            *(f"pki.command.ca-signer.{verb}" for verb in SUBMISSION_VERBS),
        ),
    )


def _consume_only(stream: str, consumer: str) -> tuple[str, ...]:
    """As ``_consume``, where other users read other consumers of the stream."""
    return (
        f"$JS.API.CONSUMER.MSG.NEXT.{stream}.{consumer}",
        f"{_ACK}.{stream}.{consumer}.>",
        f"{_ACK}.*.*.{stream}.{consumer}.>",
    )


def renewal() -> Permissions:
    """Renewal: rotation events, proof of use, its own audit records."""
    return Permissions(
        publish=(
            *_consume(PKI_EVENTS, RENEWAL_CONSUMER),
            "pki.rotation.>",
            "audit.issue.renewal",
            "pki.command.ca-signer.reannounce",
            "dead.renewal.>",
            "_INBOX_estfrontend.>",
        ),
        subscribe=("_INBOX_renewal.>", "pki.ack.*", "pki.command.renewal.>"),
    )


def audit() -> Permissions:
    """Audit: reads records, publishes only its own and its checkpoints."""
    return Permissions(
        publish=(
            *_consume(AUDIT_ISSUE, AUDIT_CONSUMER),
            *_consume(AUDIT_REFUSAL, AUDIT_CONSUMER),
            *_consume(PKI_EVENTS, AUDIT_CONSUMER),
            "audit.issue.audit",
            "pki.command.ca-signer.reannounce",
            "dead.audit.>",
        ),
        subscribe=("_INBOX_audit.>", "pki.command.audit.>"),
    )


def provisioner() -> Permissions:
    """``migrate`` of any service: declares streams and consumers, publishes nothing else."""
    return Permissions(
        publish=(
            "$JS.API.INFO",
            "$JS.API.STREAM.CREATE.*",
            "$JS.API.STREAM.UPDATE.*",
            "$JS.API.STREAM.INFO.*",
            "$JS.API.STREAM.NAMES",
            "$JS.API.CONSUMER.CREATE.>",
            "$JS.API.CONSUMER.DURABLE.CREATE.>",
            "$JS.API.CONSUMER.INFO.>",
        ),
        subscribe=("_INBOX_migrate.>",),
    )


def operator() -> Permissions:
    """An operator: sends signed commands, receives answers. The right itself is in the JWS."""
    return Permissions(publish=("pki.command.>",), subscribe=("_INBOX_operator.>",))


def agent(tenant: str, service: str) -> Permissions:
    """A renewal agent: receives its owner's rotation events and publishes nothing."""
    return Permissions(
        publish=(),
        subscribe=(f"pki.rotation.*.{token(tenant)}.{token(service)}",),
    )
