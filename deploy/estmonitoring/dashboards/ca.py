"""The dashboard of ca: issuers, their keys, revocation lists, OCSP and upstream CAs."""

from __future__ import annotations

from estmonitoring.boards import Board, Row, panel, quantiles, rate

_NOT_AFTER = "min by (setting) (estsuite_certificate_not_after_seconds{{setting{}}}) - time()"
_OF_ISSUERS = '=~"issuers\\\\..*certificate_file"'
_OF_OTHERS = '!~"issuers\\\\..*"'

CA = Board(
    "ca",
    "EST CA and key stores",
    "Issuers, their keys, revocation lists, OCSP and upstream CAs.",
    (
        Row(
            "Now",
            (
                panel(
                    "CA certificates end in",
                    "d",
                    (
                        f"({_NOT_AFTER.format(_OF_ISSUERS)}) / 86400",
                        "{{setting}}",
                    ),
                    stat=True,
                ),
                panel(
                    "Other certificates of the suite end in",
                    "d",
                    (
                        f"({_NOT_AFTER.format(_OF_OTHERS)}) / 86400",
                        "{{setting}}",
                    ),
                    stat=True,
                ),
                panel(
                    "Revocation lists end in",
                    "s",
                    ("min by (issuer) (ca_signer_crl_next_update_seconds) - time()", "{{issuer}}"),
                    stat=True,
                ),
                panel(
                    "Issuers that sign",
                    "short",
                    (
                        "max by (family, issuer) (ca_signer_generation_signing)",
                        "{{family}} {{issuer}}",
                    ),
                    stat=True,
                ),
            ),
        ),
        Row(
            "Key stores",
            (
                panel(
                    "One signature of a token",
                    "s",
                    *quantiles("ca_signer_token_signature_seconds", "token"),
                ),
                panel(
                    "Signatures waited for",
                    "short",
                    ("max by (token) (ca_signer_token_queue)", "{{token}}"),
                ),
                panel(
                    "Circuit of a token",
                    "short",
                    ("max by (token) (ca_signer_token_breaker)", "{{token}}"),
                    about="0 closed, 1 half open, 2 open, 3 PIN refused.",
                ),
                panel(
                    "Worker processes restarted",
                    "ops",
                    (rate("ca_signer_token_restarts_total", "token"), "{{token}}"),
                ),
            ),
        ),
        Row(
            "Revocation",
            (
                panel(
                    "Age of the oldest current list",
                    "s",
                    ("time() - min by (issuer) (ca_signer_crl_this_update_seconds)", "{{issuer}}"),
                ),
                panel(
                    "Lists made", "ops", (rate("ca_signer_crl_made_total", "issuer"), "{{issuer}}")
                ),
                panel(
                    "OCSP answers of ca-signer",
                    "ops",
                    (rate("ca_signer_ocsp_total", "issuer", "status"), "{{issuer}} {{status}}"),
                ),
                panel(
                    "OCSP requests at front ends",
                    "ops",
                    (rate("est_frontend_ocsp_total", "source"), "{{source}}"),
                    (rate("est_frontend_ocsp_limited_total"), "limited"),
                ),
                panel(
                    "Revoked by bulk revocations",
                    "ops",
                    (rate("ca_signer_bulk_revoked_total"), "certificates"),
                ),
                panel(
                    "Commands of operators",
                    "ops",
                    (rate("ca_signer_commands_total", "verb", "code"), "{{verb}} {{code}}"),
                ),
            ),
        ),
        Row(
            "Upstream CAs",
            (
                panel("Time of an answer", "s", *quantiles("ca_signer_upstream_seconds", "issuer")),
                panel(
                    "Requests, by outcome",
                    "ops",
                    (
                        rate("ca_signer_upstream_calls_total", "issuer", "outcome"),
                        "{{issuer}} {{outcome}}",
                    ),
                ),
                panel(
                    "On their way",
                    "short",
                    (
                        "max by (issuer, state) (ca_signer_upstream_submissions)",
                        "{{issuer}} {{state}}",
                    ),
                ),
                panel(
                    "Circuit",
                    "short",
                    ("max by (issuer) (ca_signer_upstream_breaker)", "{{issuer}}"),
                    about="0 closed, 1 half open, 2 open.",
                ),
            ),
        ),
    ),
)
