"""The dashboard of renewal: what is due, what is renewed in time, and what is not."""

from __future__ import annotations

from estmonitoring.boards import Board, Row, panel, quantiles, rate

RENEWAL = Board(
    "renewal",
    "EST renewal and expiry",
    "What is due, what is renewed in time, and what is not.",
    (
        Row(
            "Now",
            (
                panel(
                    "Expired without a successor, 24 h",
                    "short",
                    ('sum(increase(est_renewal_steps_total{step="expired"}[24h]))', "certificates"),
                    stat=True,
                ),
                panel(
                    "Less than a tenth of the lifetime left",
                    "short",
                    ('max(est_renewal_slots_short{share="0.10"})', "certificates"),
                    stat=True,
                ),
                panel(
                    "Oldest renewal not announced",
                    "s",
                    ("max(est_renewal_oldest_due_seconds)", "age"),
                    stat=True,
                ),
                panel(
                    "Announced, not answered",
                    "short",
                    ("max(est_renewal_unanswered_slots)", "slots"),
                    stat=True,
                ),
                panel(
                    "Agents that need a person",
                    "short",
                    ("sum(est_agent_needs_attention)", "agents"),
                    stat=True,
                ),
            ),
        ),
        Row(
            "Rotations",
            (
                panel(
                    "Slots by state",
                    "short",
                    ("max by (state) (est_renewal_slots)", "{{state}}"),
                    stacked=True,
                ),
                panel(
                    "Announced as due, by priority",
                    "ops",
                    (rate("est_renewal_dispatched_total", "priority"), "{{priority}}"),
                ),
                panel("Steps", "ops", (rate("est_renewal_steps_total", "step"), "{{step}}")),
                panel(
                    "From due to proven in use",
                    "s",
                    *quantiles("est_renewal_due_to_activated_seconds"),
                ),
                panel(
                    "Proofs of use",
                    "ops",
                    (rate("est_renewal_proofs_total", "outcome"), "{{outcome}}"),
                ),
                panel(
                    "Fetches of renewed certificates",
                    "ops",
                    (rate("ca_signer_renewed_total", "outcome"), "{{outcome}}"),
                ),
                panel(
                    "Not renewed in time",
                    "ops",
                    (rate("est_renewal_leases_lapsed_total"), "leases lapsed"),
                ),
            ),
        ),
        Row(
            "Expiry",
            (
                panel(
                    "Good certificates that end soon",
                    "short",
                    (
                        "max by (profile, within) (ca_signer_certificates_expiring)",
                        "{{profile}} within {{within}}",
                    ),
                ),
                panel(
                    "Certificates in the ledger",
                    "short",
                    ("max by (issuer, state) (ca_signer_certificates)", "{{issuer}} {{state}}"),
                    stacked=True,
                ),
            ),
        ),
        Row(
            "Renewal information",
            (
                panel(
                    "Entries not read yet",
                    "short",
                    ("max by (instance) (est_frontend_renewal_info_lag)", "{{instance}}"),
                ),
                panel(
                    "Compared with the stream",
                    "s",
                    ("max by (instance) (est_frontend_renewal_info_age_seconds)", "{{instance}}"),
                ),
                panel(
                    "Entries published", "ops", (rate("est_renewal_info_entries_total"), "entries")
                ),
                panel(
                    "Events stored",
                    "ops",
                    (rate("est_renewal_projected_total", "kind"), "{{kind}}"),
                ),
            ),
        ),
        Row(
            "Campaigns",
            (
                panel("Campaigns", "short", ("max by (state) (ca_signer_campaigns)", "{{state}}")),
                panel(
                    "Certificates of campaigns",
                    "short",
                    ("max by (state) (ca_signer_campaign_members)", "{{state}}"),
                ),
            ),
        ),
    ),
)
