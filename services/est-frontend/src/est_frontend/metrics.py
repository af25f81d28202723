"""Prometheus metrics of est-frontend; names are stable (services/est-frontend/README.md)."""

from __future__ import annotations

from prometheus_client import Counter, Gauge, Histogram

REQUESTS = Counter("est_frontend_requests_total", "answers", ["operation", "label", "status"])
SECONDS = Histogram(
    "est_frontend_request_seconds",
    "from request line to answer",
    ["operation"],
    buckets=(0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10),
)
PASSWORD_HASHES = Counter(
    "est_frontend_password_hashes_total",
    "passwords checked by the slow hash, of known and unknown names alike",
)
REFUSED = Counter("est_frontend_refused_total", "requests refused", ["code"])
IN_FLIGHT = Gauge("est_frontend_in_flight", "enrollments waiting for their answer")
SPOOLED = Gauge("est_frontend_spooled_records", "audit records waiting on disk")
CUT = Counter(
    "est_frontend_connections_cut_total",
    "connections ended by a limit: too_many, source_too_many (open), waiting, source_waiting "
    "(handshakes), head_timeout, backoff, crl_waiting, crl_source_waiting",
    ["why"],
)
HANDSHAKES = Gauge("est_frontend_handshakes", "TLS handshakes that are not complete")
CONNECTIONS = Gauge("est_frontend_connections", "TCP connections to the port for EST")
EARLY_POLLS = Counter(
    "est_frontend_early_polls_total", "repetitions answered 202 because their ticket is open"
)
STATE_UPDATES = Counter("est_frontend_state_updates_total", "state messages applied")
CRL_MISSING = Gauge(
    "est_frontend_crl_missing", "CRL shards that the signer announced and this front end lacks"
)
RENEWAL_INFO_ENTRIES = Gauge(
    "est_frontend_renewal_info_entries", "certificates whose renewal information is kept"
)
RENEWAL_INFO_APPLIED = Counter(
    "est_frontend_renewal_info_applied_total", "entries of renewal information read"
)
RENEWAL_INFO_LAG = Gauge(
    "est_frontend_renewal_info_lag", "sequences of the stream that are not read yet"
)
RENEWAL_INFO_AGE = Gauge(
    "est_frontend_renewal_info_age_seconds",
    "since the store was compared with the stream; -1 before the first time",
)
JWKS_FETCHES = Counter(
    "est_frontend_jwks_fetches_total", "key sets of token issuers fetched", ["issuer", "result"]
)
OCSP = Counter(
    "est_frontend_ocsp_total",
    "OCSP requests: asked, kept, outlived (kept, and no signer answered), try_later, malformed",
    ["source"],
)
OCSP_LIMITED = Counter(
    "est_frontend_ocsp_limited_total", "OCSP questions not relayed because of a limit"
)
TRUST_FETCHES = Counter(
    "est_frontend_trust_fetches_total",
    "Clients reported to have downloaded the new CA certificates of a rollover",
)
RELOADS = Counter(
    "est_frontend_reloads_total", "configuration files reloaded while running", ["what", "result"]
)
