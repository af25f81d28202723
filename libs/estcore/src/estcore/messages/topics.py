"""Topics, streams and consumers: the topology of the bus, declared once.

``… migrate`` of the owning service creates them; services only bind. Tokens are validated
where names enter (policy, settings, messages), so no name can change a topic's shape.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from estcore.errors import ConfigurationError
from estcore.ids import is_token
from estcore.pki.profile import PRIORITIES, Priority

EST_REQUESTS = "EST_REQUESTS"
PKI_EVENTS = "PKI_EVENTS"
PKI_STATE = "PKI_STATE"
PKI_RENEWAL_INFO = "PKI_RENEWAL_INFO"
AUDIT_ISSUE = "AUDIT_ISSUE"
AUDIT_REFUSAL = "AUDIT_REFUSAL"
DEAD_LETTERS = "DEAD_LETTERS"
CANARY = "CANARY"

RENEWAL_CONSUMER = "renewal"
AUDIT_CONSUMER = "audit"
ROTATIONS_CONSUMER = "ca-signer-rotations"
MANAGED_CONSUMER = "ca-signer-managed"

_MIB = 1 << 20
_DAY = 86_400
_LARGEST = _MIB - 4096


@dataclass(frozen=True)
class Stream:
    """A JetStream stream. ``owner`` is the service whose ``migrate`` declares it."""

    name: str
    topics: tuple[str, ...]
    owner: str
    retention: Literal["limits", "workqueue"] = "limits"
    discard: Literal["old", "new"] = "old"
    max_messages: int = -1
    max_bytes: int = -1
    max_age_s: int = 0
    last_per_topic: bool = False
    direct: bool = False
    duplicate_window_s: int = 120
    max_per_topic: int = -1
    """With ``discard="new"`` what is above it is refused on that topic alone."""
    message_ttl: bool = False
    """Whether messages may carry the time after which they are removed (Nats-TTL)."""
    max_message_bytes: int = _LARGEST
    """With headers. What a stream takes fits with its own headers into a dead letter."""


@dataclass(frozen=True)
class Consumer:
    """A durable pull consumer with explicit acks and unlimited deliveries."""

    stream: str
    name: str
    topics: tuple[str, ...] = field(default=())
    ack_wait_s: int = 30
    max_ack_pending: int = 2000


STREAMS = (
    Stream(
        EST_REQUESTS,
        ("est.request.>",),
        owner="ca-signer",
        retention="workqueue",
        discard="new",
        # One front-end group cannot fill it for the others: its topics are one for each issuer
        # of its labels and priority, each bounded.
        max_per_topic=4_000,
        max_message_bytes=32 * 1024,
        max_bytes=2048 * _MIB,
        max_age_s=_DAY,
    ),
    Stream(
        PKI_EVENTS,
        ("pki.certificate.>", "pki.rotation.>", "pki.ca.>"),
        owner="ca-signer",
        max_bytes=2048 * _MIB,
        max_age_s=14 * _DAY,
        direct=True,
    ),
    Stream(PKI_STATE, ("pki.state.>",), owner="ca-signer", last_per_topic=True),
    # Read by direct gets only. Every message is removed some days after the certificates in it
    # expired, so the stream is as large as what is valid.
    Stream(
        PKI_RENEWAL_INFO,
        ("pki.renewal.>",),
        owner="renewal",
        direct=True,
        message_ttl=True,
        max_message_bytes=512 * 1024,
    ),
    # Written by every process every few seconds: shows that JetStream stores what it takes.
    Stream(
        CANARY,
        ("canary.>",),
        owner="ca-signer",
        last_per_topic=True,
        max_age_s=3600,
        max_message_bytes=1024,
    ),
    Stream(
        DEAD_LETTERS,
        ("dead.>",),
        owner="ca-signer",
        max_bytes=256 * _MIB,
        max_age_s=90 * _DAY,
        max_message_bytes=-1,
    ),
    Stream(
        AUDIT_ISSUE,
        ("audit.issue.>",),
        owner="audit",
        retention="workqueue",
        discard="new",
        max_messages=1_000_000,
        max_bytes=2048 * _MIB,
    ),
    Stream(
        AUDIT_REFUSAL,
        ("audit.refusal.>",),
        owner="audit",
        retention="workqueue",
        discard="new",
        # A quarter of it at most for each front-end group, which has one topic: as above.
        max_per_topic=8_000,
        max_message_bytes=128 * 1024,
        max_bytes=4096 * _MIB,
    ),
)

SIGNER_CONSUMERS = (
    Consumer(
        PKI_EVENTS,
        ROTATIONS_CONSUMER,
        ("pki.rotation.activated.>", "pki.rotation.deprecated.>"),
        max_ack_pending=1000,
    ),
    Consumer(PKI_EVENTS, MANAGED_CONSUMER, ("pki.rotation.requested.>",), max_ack_pending=1000),
)
RENEWAL_CONSUMERS = (
    Consumer(
        PKI_EVENTS, RENEWAL_CONSUMER, ("pki.certificate.>", "pki.ca.window"), max_ack_pending=4000
    ),
)
AUDIT_CONSUMERS = (
    Consumer(AUDIT_ISSUE, AUDIT_CONSUMER),
    Consumer(AUDIT_REFUSAL, AUDIT_CONSUMER),
    Consumer(PKI_EVENTS, AUDIT_CONSUMER, ("pki.ca.window",)),
)


def owned_by(service: str) -> list[Stream]:
    """Return the streams the service's ``migrate`` declares."""
    return [s for s in STREAMS if s.owner == service]


def signer_consumer(issuer: str, priority: Priority) -> Consumer:
    """Return the consumer of requests for one issuer at one priority."""
    return Consumer(
        EST_REQUESTS,
        f"signer-{token(issuer)}-{priority}",
        (f"est.request.*.{issuer}.{priority}",),
        # A batch takes well under a second; what a dead signer had in hand comes back soon.
        ack_wait_s=10,
        max_ack_pending=4000,
    )


def signer_consumers(issuer: str) -> list[Consumer]:
    """Return the consumers of one issuer, most urgent first."""
    return [signer_consumer(issuer, priority) for priority in PRIORITIES]


def token(text: str) -> str:
    """Return ``text`` if it may stand in a topic.

    Raises:
        ConfigurationError: it may not.
    """
    if not is_token(text):
        raise ConfigurationError(f"{text!r} is not a name of a-z, 0-9 and - (1 to 63)")
    return text


def request_topic(group: str, issuer: str, priority: Priority) -> str:
    """``est.request.<group>.<issuer>.<priority>``."""
    return f"est.request.{token(group)}.{token(issuer)}.{priority}"


def group_of_request(topic: str) -> str:
    """Return the group of front ends in the topic of a request; no group's name if it has none."""
    tokens = topic.split(".")
    return tokens[2] if tokens[:2] == ["est", "request"] and len(tokens) > 2 else ""  # noqa: PLR2004


def reply_topic(group: str, instance: str, request_id: str) -> str:
    """``est.reply.<group>.<instance>.<request id>``, built by the signer itself."""
    return f"est.reply.{token(group)}.{token(instance)}.{token(request_id)}"


def certificate_topic(kind: str, tenant: str, service: str) -> str:
    """``pki.certificate.<kind>.<tenant>.<service>``."""
    return f"pki.certificate.{kind}.{token(tenant)}.{token(service)}"


ISSUED_TOPIC = "pki.certificate.issued.joined"
"""Events of certificates that were issued together, of one owner or several."""
RENEWAL_REQUESTED_TOPIC = "pki.certificate.renewal-requested.joined"
"""Certificates that a campaign asks to renew now, of one owner or several."""


def rotation_topic(step: str, tenant: str, service: str) -> str:
    """``pki.rotation.<step>.<tenant>.<service>``."""
    return f"pki.rotation.{step}.{token(tenant)}.{token(service)}"


def audit_issue_topic(service: str) -> str:
    """``audit.issue.<service>``: what issuing and rotation wait for."""
    return f"audit.issue.{token(service)}"


def audit_refusal_topic(service: str, part: str) -> str:
    """``audit.refusal.<service>.<part>``: records without a row behind them.

    ``part`` is the group of a front end, the instance of ca-signer, ``proofs`` of renewal.
    """
    return f"audit.refusal.{token(service)}.{token(part)}"


def canary_topic(service: str, group: str = "") -> str:
    """``canary.<service>``, of front ends ``canary.<service>.<group>``.

    Written to see that JetStream stores. Instances share it: with topics of its own choice one
    front end could fill the disk.
    """
    topic = f"canary.{token(service)}"
    return f"{topic}.{token(group)}" if group else topic


def stream_of(topic: str) -> str | None:
    """Return the stream that stores a topic, if one does."""
    for stream in STREAMS:
        if any(topic.startswith(pattern.removesuffix(">")) for pattern in stream.topics):
            return stream.name
    return None


RENEWAL_INFO_TOPICS = "pki.renewal.info.>"
RENEWAL_INFO_COMPLETE_TOPIC = "pki.renewal.info.complete"
RENEWAL_INFO_PROBE_TOPIC = "pki.renewal.probe"
"""Stored for a minute: its PubAck says how far the stream is."""


def renewal_info_topic(day: str) -> str:
    """``pki.renewal.info.<YYYYMMDD>``: certificates that expire on that day."""
    return f"pki.renewal.info.{token(day)}"


PROOF_REFUSALS_TOPIC = audit_refusal_topic("renewal", "proofs")
WINDOW_TOPIC = "pki.ca.window"
REANNOUNCE_TOPIC = "pki.command.ca-signer.reannounce"
WINDOWS_TOPIC = "pki.command.ca-signer.windows"
FETCHED_TOPIC = "pki.command.ca-signer.fetched"
OPERATOR_VERBS = (
    *("certificate-hold", "certificate-list", "certificate-revoke", "certificate-show"),
    *("certificate-unhold", "request-approve", "request-list", "request-reject"),
    *("bulk-revocation-confirm", "bulk-revocation-list", "bulk-revocation-propose"),
    *("bulk-revocation-show", "bulk-revocation-stop", "rollover-plan", "rollover-publish"),
    *("campaign-confirm", "campaign-list", "campaign-pause", "campaign-propose"),
    *("campaign-resume", "campaign-show", "campaign-stop"),
    *("rollover-retire", "rollover-rollback", "rollover-sign", "rollover-status"),
    *("secret-create", "secret-list", "secret-revoke"),
)
"""Commands that ca-signer takes from operators, each signed by the operator."""
SUBMISSION_VERBS = (
    "submission-list",
    "submission-retry",
    "submission-adopt",
    "submission-abandon",
)
"""Commands that ca-signer-upstream takes, and no ca-signer."""


AUDIT_VERBS = (
    *("audit-search", "audit-prove", "audit-tail", "audit-export", "audit-report"),
    *("audit-purge-propose", "audit-purge-confirm"),
    *("sink-status", "sink-test", "sink-replay", "sink-dead-letters", "sink-deliver"),
)
"""Commands that est-audit takes from operators, and passes on to ca-signer, which verifies them."""


def command_topic(service: str, verb: str) -> str:
    """``pki.command.<service>.<verb>``: a signed command, answered."""
    return f"pki.command.{token(service)}.{token(verb)}"


def ocsp_topic(issuer: str) -> str:
    """``pki.ocsp.<issuer>``: an OCSP request in DER, answered with the response."""
    return f"pki.ocsp.{token(issuer)}"


def ack_topic(group: str) -> str:
    """``pki.ack.<group>``."""
    return f"pki.ack.{token(group)}"


def fetch_topic(group: str) -> str:
    """``pki.renewed.<group>``: a client asks for the certificate that replaces its own."""
    return f"pki.renewed.{token(group)}"


def cacerts_topic(issuer: str) -> str:
    """``pki.state.cacerts.<issuer>``."""
    return f"pki.state.cacerts.{token(issuer)}"


def secrets_topic(shard: str) -> str:
    """``pki.state.secrets.<shard>``."""
    return f"pki.state.secrets.{token(shard)}"


def revoked_topic(issuer: str, shard: str) -> str:
    """``pki.state.revoked.<issuer>.<shard>``."""
    return f"pki.state.revoked.{token(issuer)}.{token(shard)}"


def crl_topic(issuer: str, partition: str | None = None) -> str:
    """``pki.state.crl.<issuer>``, of a part ``pki.state.crl.<issuer>.<partition>``."""
    topic = f"pki.state.crl.{token(issuer)}"
    return topic if partition is None else f"{topic}.{token(partition)}"


CRL_MANIFEST = "manifest"


POLICY_TOPIC = "pki.state.policy.current"
PROFILES_TOPIC = "pki.state.profiles.current"
