"""Prometheus metrics of ca-signer; names are stable (services/ca-signer/README.md)."""

from __future__ import annotations

from prometheus_client import Counter, Gauge, Histogram

ISSUED = Counter("ca_signer_issued_total", "certificates stored", ["issuer", "profile"])
REJECTED = Counter("ca_signer_rejected_total", "requests refused", ["code"])
REPEATED = Counter("ca_signer_repeated_total", "requests answered with a stored certificate")
RESUMED = Counter("ca_signer_resumed_total", "intents resumed after their lease expired")
ABANDONED = Counter("ca_signer_abandoned_total", "intents given up, never signed", ["code"])
DEAD = Counter("ca_signer_dead_letters_total", "messages that were given up", ["code"])
DELAYED = Counter("ca_signer_delayed_total", "requests put back for later", ["code"])
FALSE_EVENTS = Counter(
    "ca_signer_false_events", "events of certificates that no issuer here signed"
)
REANNOUNCED = Counter("ca_signer_reannounced_total", "announcements repeated", ["to"])
COMMANDS = Counter("ca_signer_commands_total", "commands of operators answered", ["verb", "code"])
CRL_MADE = Counter("ca_signer_crl_made_total", "revocation lists made", ["issuer"])
CRL_THIS_UPDATE = Gauge(
    "ca_signer_crl_this_update_seconds",
    "when the oldest of an issuer's current lists was made, Unix time",
    ["issuer"],
)
CRL_NEXT_UPDATE = Gauge(
    "ca_signer_crl_next_update_seconds",
    "when the first of an issuer's current lists ends, Unix time",
    ["issuer"],
)
RENEWED = Counter(
    "ca_signer_renewed_total", "Clients that fetch what ca-signer renewed by itself", ["outcome"]
)
OCSP = Counter("ca_signer_ocsp_total", "OCSP requests answered", ["issuer", "status"])
BATCH = Histogram(
    "ca_signer_batch_size", "requests signed together", buckets=(1, 2, 4, 8, 16, 32, 64, 128)
)
SECONDS = Histogram(
    "ca_signer_batch_seconds",
    "from taking a batch to its last acknowledgement",
    buckets=(0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10),
)
QUEUE_SECONDS = Histogram(
    "ca_signer_queue_seconds",
    "from a request's arrival in its stream to a batch that takes it, at its first delivery",
    buckets=(0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 60, 600),
)
WAITING = Gauge("ca_signer_waiting", "requests fetched and not yet taken", ["issuer", "priority"])
TOKEN_SECONDS = Histogram(
    "ca_signer_token_signature_seconds",
    "how long the token took for one signature, without waiting for others",
    ["token"],
    buckets=(0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5),
)
TOKEN_QUEUE = Gauge("ca_signer_token_queue", "signatures waited for", ["token"])
TOKEN_BREAKER = Gauge(
    "ca_signer_token_breaker", "0 closed, 1 half open, 2 open, 3 PIN refused", ["token"]
)
TOKEN_RESTARTS = Counter(
    "ca_signer_token_restarts_total", "worker processes started after the first", ["token"]
)
TOKEN_FAILURES = Counter(
    "ca_signer_token_failures_total", "worker processes given up", ["token", "code"]
)
GENERATION = Gauge(
    "ca_signer_generation_signing", "1 for the issuer that signs", ["family", "issuer"]
)
RELOADS = Counter(
    "ca_signer_reloads_total", "configuration files reloaded while running", ["what", "result"]
)
CERTIFICATES = Gauge(
    "ca_signer_certificates",
    "certificates in the ledger: good, expired or revoked",
    ["issuer", "profile", "state"],
)
EXPIRING = Gauge(
    "ca_signer_certificates_expiring",
    "good certificates that expire within 1d, 7d, 30d and that nothing has succeeded",
    ["issuer", "profile", "within"],
)
BULK_REVOKED = Counter(
    "ca_signer_bulk_revoked_total", "certificates revoked by bulk revocations of operators"
)
CAMPAIGNS = Gauge("ca_signer_campaigns", "campaigns that have not ended", ["state"])
CAMPAIGN_MEMBERS = Gauge(
    "ca_signer_campaign_members",
    "certificates of confirmed campaigns that have not ended: waiting, requested, renewed, proven, "
    "revoked, skipped, ended (expired or revoked by other means); late ones are counted twice",
    ["state"],
)
CAMPAIGN_REQUESTED = Counter(
    "ca_signer_campaign_requested_total", "renewals requested by campaigns of operators"
)
CAMPAIGN_REVOKED = Counter(
    "ca_signer_campaign_revoked_total", "replaced certificates revoked by campaigns"
)
