"""Which topics each NATS user may publish and subscribe: deny by default, one user a service.

The same table makes the server's configuration in ``estsuite up``, in the tests and in the
manifests, so what is tested is what is deployed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from estcore.errors import ConfigurationError
from estcore.messages.topics import (
    AUDIT_CONSUMER,
    AUDIT_CONSUMERS,
    AUDIT_ISSUE,
    AUDIT_REFUSAL,
    AUDIT_VERBS,
    CANARY,
    EST_REQUESTS,
    FETCHED_TOPIC,
    MANAGED_CONSUMER,
    OPERATOR_VERBS,
    PKI_EVENTS,
    PKI_RENEWAL_INFO,
    PKI_STATE,
    PROOF_REFUSALS_TOPIC,
    REANNOUNCE_TOPIC,
    RENEWAL_CONSUMER,
    ROTATIONS_CONSUMER,
    SUBMISSION_VERBS,
    WINDOWS_TOPIC,
    audit_refusal_topic,
    canary_topic,
    command_topic,
    fetch_topic,
    owned_by,
    request_topic,
    signer_consumers,
    token,
)
from estcore.pki.profile import PRIORITIES

STREAMS_ACCOUNT = "streams"
"""The NATS account that has JetStream, and no user but that of ``migrate``."""
_ACK = "$JS.ACK"


@dataclass(frozen=True)
class Permissions:
    """Topics a user may use; everything else is refused by the server.

    ``account`` is the NATS account of the user; what crosses accounts follows from the topics
    (``accounts``). Who ``answers`` may publish once on the reply topic of each message it
    received, and on no inbox otherwise.
    """

    account: str
    publish: tuple[str, ...]
    subscribe: tuple[str, ...]
    answers: bool = False

    def server_block(self) -> dict[str, object]:
        """Return them as nats-server's ``permissions`` of a user."""
        publish: dict[str, list[str]] = {"allow": list(self.publish)}
        if not self.publish:
            publish = {"deny": [">"]}
        block: dict[str, object] = {
            "publish": publish,
            "subscribe": {"allow": list(self.subscribe)},
        }
        if self.answers:
            block["allow_responses"] = {"max": 1, "expires": "5m"}
        return block


def _consume(stream: str, consumer: str) -> tuple[str, ...]:
    """Pulling from and acknowledging to one consumer, in both forms of ack topics."""
    return (
        f"$JS.API.CONSUMER.MSG.NEXT.{stream}.{consumer}",
        f"{_ACK}.{stream}.{consumer}.>",
        f"{_ACK}.*.*.{stream}.{consumer}.>",
    )


def _lengths(service: str, *consumers: str) -> tuple[str, ...]:
    """Asking how long the streams of a service and ``<stream>.<consumer>`` are, for metrics."""
    return (
        *(f"$JS.API.STREAM.INFO.{stream.name}" for stream in owned_by(service)),
        *(f"$JS.API.CONSUMER.INFO.{consumer}" for consumer in consumers),
    )


def of_service(service: str, *, group: str = "", issuers: Sequence[str] = ()) -> Permissions:
    """Return the permissions of a service; ``group`` and ``issuers`` are for those that have them.

    Raises:
        ConfigurationError: no service has this name, or a name may not stand in a topic.
    """
    match service:
        case "est-frontend":
            return frontend(group, issuers)
        case "ca-signer":
            return signer()
        case "ca-signer-upstream":
            return upstream(issuers)
        case "check-store":
            return check_store()
        case "renewal":
            return renewal()
        case "audit":
            return audit()
        case _:
            raise ConfigurationError(f"no service is called {service}", code="senders.malformed")


def frontend(group: str, issuers: Sequence[str] = ("issuing",)) -> Permissions:
    """est-frontend of one group: its own requests, refusals and replies, and the state.

    ``issuers`` are those its labels name.
    """
    return Permissions(
        account=f"est-frontend-{token(group)}",
        publish=(
            *(request_topic(group, issuer, p) for issuer in issuers for p in PRIORITIES),
            audit_refusal_topic("est-frontend", group),
            f"pki.ack.{token(group)}",
            fetch_topic(group),
            canary_topic("est-frontend", group),
            f"$JS.API.DIRECT.GET.{CANARY}",
            "pki.ocsp.*",
            FETCHED_TOPIC,
            f"$JS.API.DIRECT.GET.{PKI_STATE}",
            f"$JS.API.DIRECT.GET.{PKI_RENEWAL_INFO}",
        ),
        subscribe=(
            "_INBOX_estfrontend.>",
            f"est.reply.{group}.>",
            "pki.state.>",
            "pki.certificate.pending.>",
        ),
    )


def signer() -> Permissions:
    """ca-signer: the only one that may say a certificate was issued."""
    return Permissions(
        account="ca-signer",
        publish=(
            f"$JS.API.CONSUMER.MSG.NEXT.{EST_REQUESTS}.*",
            f"{_ACK}.{EST_REQUESTS}.>",
            f"{_ACK}.*.*.{EST_REQUESTS}.>",
            *_consume(PKI_EVENTS, ROTATIONS_CONSUMER),
            *_consume(PKI_EVENTS, MANAGED_CONSUMER),
            "pki.certificate.>",
            "pki.ca.>",
            "pki.state.>",
            "audit.issue.ca-signer",
            "audit.refusal.ca-signer.*",
            "est.reply.>",
            "dead.ca-signer.>",
            f"$JS.API.DIRECT.GET.{PKI_EVENTS}",
            f"$JS.API.DIRECT.GET.{PKI_STATE}",
            canary_topic("ca-signer"),
            *_lengths(
                "ca-signer",
                f"{EST_REQUESTS}.*",
                f"{PKI_EVENTS}.{ROTATIONS_CONSUMER}",
                f"{PKI_EVENTS}.{MANAGED_CONSUMER}",
            ),
        ),
        subscribe=(
            "_INBOX_casigner.>",
            *(command_topic("ca-signer", verb) for verb in OPERATOR_VERBS),
            *(command_topic("ca-signer", verb) for verb in AUDIT_VERBS),
            *(REANNOUNCE_TOPIC, WINDOWS_TOPIC, FETCHED_TOPIC),
            *("pki.ocsp.*", "pki.renewed.*"),
        ),
        answers=True,
    )


def check_store() -> Permissions:
    """``ca-signer check-store``: publishes the records of its own checks, and receives PubAcks."""
    return Permissions(
        account="check-store",
        publish=("audit.refusal.ca-signer.check-store",),
        subscribe=("_INBOX_casigner.checkstore.>",),
    )


def upstream(issuers: Sequence[str]) -> Permissions:
    """ca-signer-upstream: as ca-signer, for its own issuers and the submissions' verbs only."""
    consumers = [c.name for issuer in issuers for c in signer_consumers(issuer)]
    return Permissions(
        account="ca-signer-upstream",
        publish=(
            *(right for name in consumers for right in _consume(EST_REQUESTS, name)),
            # It asks for no renewals: a campaign is a command to ca-signer.
            *("pki.certificate.issued.>", "pki.certificate.rejected.>"),
            "pki.certificate.pending.>",
            *(f"pki.state.cacerts.{token(issuer)}" for issuer in issuers),
            *(f"pki.state.revoked.{token(issuer)}.*" for issuer in issuers),
            "audit.issue.ca-signer",
            "audit.refusal.ca-signer.*",
            "est.reply.>",
            "dead.ca-signer.>",
            canary_topic("ca-signer-upstream"),
            *(f"$JS.API.CONSUMER.INFO.{EST_REQUESTS}.{name}" for name in consumers),
            f"$JS.API.DIRECT.GET.{PKI_EVENTS}",
        ),
        subscribe=(
            "_INBOX_casignerupstream.>",
            *(command_topic("ca-signer", verb) for verb in SUBMISSION_VERBS),
        ),
        answers=True,
    )


def renewal() -> Permissions:
    """Renewal: rotation events, renewal information, proof of use, its own audit records."""
    return Permissions(
        account="renewal",
        publish=(
            *_consume(PKI_EVENTS, RENEWAL_CONSUMER),
            "pki.rotation.>",
            "pki.renewal.>",
            f"$JS.API.DIRECT.GET.{PKI_RENEWAL_INFO}",
            "audit.issue.renewal",
            PROOF_REFUSALS_TOPIC,
            REANNOUNCE_TOPIC,
            WINDOWS_TOPIC,
            "dead.renewal.>",
            canary_topic("renewal"),
            *_lengths("renewal", f"{PKI_EVENTS}.{RENEWAL_CONSUMER}"),
        ),
        subscribe=("_INBOX_renewal.>", "pki.ack.*"),
        answers=True,
    )


def audit() -> Permissions:
    """Audit: reads records, publishes only its own; has ca-signer verify auditors' commands."""
    return Permissions(
        account="audit",
        publish=(
            *_consume(AUDIT_ISSUE, AUDIT_CONSUMER),
            *_consume(AUDIT_REFUSAL, AUDIT_CONSUMER),
            *_consume(PKI_EVENTS, AUDIT_CONSUMER),
            "audit.issue.audit",
            REANNOUNCE_TOPIC,
            WINDOWS_TOPIC,
            "dead.audit.>",
            canary_topic("audit"),
            *_lengths("audit", *(f"{c.stream}.{c.name}" for c in AUDIT_CONSUMERS)),
            *(command_topic("ca-signer", verb) for verb in AUDIT_VERBS),
        ),
        subscribe=(
            "_INBOX_audit.>",
            *(command_topic("audit", verb) for verb in AUDIT_VERBS),
        ),
        answers=True,
    )


def provisioner() -> Permissions:
    """``migrate`` of any service: declares streams and consumers, publishes nothing else."""
    return Permissions(
        account=STREAMS_ACCOUNT,
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
    verbs = (*OPERATOR_VERBS, *SUBMISSION_VERBS)
    return Permissions(
        account="operator",
        publish=(
            *(command_topic("ca-signer", verb) for verb in verbs),
            *(command_topic("audit", verb) for verb in AUDIT_VERBS),
        ),
        subscribe=("_INBOX_operator.>",),
    )


def agent(tenant: str, service: str) -> Permissions:
    """A renewal agent: receives its owner's rotation events and publishes nothing."""
    return Permissions(
        account="agents",
        publish=(),
        subscribe=(f"pki.rotation.*.{token(tenant)}.{token(service)}",),
    )
