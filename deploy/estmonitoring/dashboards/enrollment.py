"""The dashboard of enrollment: what clients ask for, what they get, and how long it takes."""

from __future__ import annotations

from estmonitoring.boards import FIRING, Board, Row, panel, quantiles, rate

_ENROLLING = 'operation=~"simpleenroll|simplereenroll|serverkeygen"'

ENROLLMENT = Board(
    "enrollment",
    "EST enrollment",
    "What clients ask for, what they get, and how long it takes.",
    (
        Row(
            "Objectives",
            (
                panel(
                    "Alerts that fire", "short", (FIRING, "{{severity}} {{alertname}}"), stat=True
                ),
                panel(
                    "Failed by a fault of the suite, 1 h",
                    "percentunit",
                    ("estsuite:enrollment_errors:ratio_rate1h", "failed"),
                    stat=True,
                    about="The objective is one in a thousand. 202 is good: the client asks again.",
                ),
                panel(
                    "Slower than 2.5 s, 1 h",
                    "percentunit",
                    ("estsuite:enrollment_slow:ratio_rate1h", "slow"),
                    stat=True,
                    about="The objective is one in a hundred.",
                ),
                panel(
                    "Certificates issued, 24 h",
                    "short",
                    ("sum(increase(ca_signer_issued_total[24h]))", "issued"),
                    stat=True,
                ),
                panel(
                    "In hand", "short", ("sum(est_frontend_in_flight)", "enrollments"), stat=True
                ),
            ),
        ),
        Row(
            "Requests",
            (
                panel(
                    "Answers by status",
                    "reqps",
                    (
                        rate("est_frontend_requests_total", "operation", "status"),
                        "{{operation}} {{status}}",
                    ),
                    stacked=True,
                ),
                panel(
                    "Time to the answer",
                    "s",
                    *quantiles("est_frontend_request_seconds", matching=_ENROLLING),
                ),
                panel(
                    "Refused, by code",
                    "reqps",
                    (rate("est_frontend_refused_total", "code"), "{{code}}"),
                    about="docs/operations/errors.md says what each code means.",
                ),
                panel(
                    "Rejected by ca-signer, by code",
                    "ops",
                    (rate("ca_signer_rejected_total", "code"), "{{code}}"),
                ),
            ),
        ),
        Row(
            "On the way to the signature",
            (
                panel(
                    "Waiting in the stream",
                    "s",
                    *quantiles("ca_signer_queue_seconds"),
                    about="From arrival in EST_REQUESTS to the batch that takes it.",
                ),
                panel("A batch", "s", *quantiles("ca_signer_batch_seconds")),
                panel(
                    "Requests in a batch, mean",
                    "short",
                    (
                        " / ".join(
                            rate(f"ca_signer_batch_size_{part}") for part in ("sum", "count")
                        ),
                        "requests",
                    ),
                ),
                panel(
                    "Put back, by code",
                    "ops",
                    (rate("ca_signer_delayed_total", "code"), "{{code}}"),
                    about="Any rate means that something is unavailable.",
                ),
                panel(
                    "Issued, by profile",
                    "ops",
                    (rate("ca_signer_issued_total", "issuer", "profile"), "{{issuer}} {{profile}}"),
                    stacked=True,
                ),
                panel(
                    "Repeated requests",
                    "ops",
                    (rate("ca_signer_repeated_total"), "answered with the stored certificate"),
                ),
            ),
        ),
        Row(
            "The edge",
            (
                panel(
                    "Connections",
                    "short",
                    ("sum by (instance) (est_frontend_connections)", "{{instance}} open"),
                    ("sum by (instance) (est_frontend_handshakes)", "{{instance}} in handshake"),
                ),
                panel(
                    "Connections ended by a limit",
                    "ops",
                    (rate("est_frontend_connections_cut_total", "why"), "{{why}}"),
                ),
                panel(
                    "Passwords checked",
                    "ops",
                    (rate("est_frontend_password_hashes_total"), "hashes"),
                ),
                panel(
                    "Keys of token issuers fetched",
                    "ops",
                    (
                        rate("est_frontend_jwks_fetches_total", "issuer", "result"),
                        "{{issuer}} {{result}}",
                    ),
                ),
            ),
        ),
    ),
)
