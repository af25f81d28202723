"""Prometheus metrics of est-renewal."""

from __future__ import annotations

from prometheus_client import Counter, Gauge, Histogram

PROJECTED = Counter("est_renewal_projected_total", "Events of ca-signer stored as rows", ["kind"])
BATCH_S = Histogram(
    "est_renewal_batch_seconds",
    "Time from taking a batch of events to its acknowledgement",
    buckets=(0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5),
)
DEAD_LETTERS = Counter("est_renewal_dead_letters_total", "Messages given up", ["reason"])
RELOADS = Counter("est_renewal_reloads_total", "Files taken while running", ["what", "result"])
DISPATCHED = Counter("est_renewal_dispatched_total", "Slots announced as due", ["priority"])
STEPS = Counter("est_renewal_steps_total", "Rotation steps announced", ["step"])
PROOFS = Counter("est_renewal_proofs_total", "Proofs of use received", ["outcome"])
LAPSED = Counter(
    "est_renewal_leases_lapsed_total", "Dispatches whose lease expired without a renewal"
)
DUE_TO_ACTIVATED_S = Histogram(
    "est_renewal_due_to_activated_seconds",
    "From the first announcement of a rotation to the proof of use",
    buckets=(1, 5, 15, 60, 300, 900, 3600, 14_400, 86_400, 604_800),
)
INFO_ENTRIES = Counter(
    "est_renewal_info_entries_total", "Entries of renewal information published to front ends"
)
INFO_REPUBLISHED = Counter(
    "est_renewal_info_republished_total",
    "Times all renewal information was published, because the stream lacked some",
)
WINDOWS_CHECKED = Counter("est_renewal_windows_checked_total", "Closed windows compared")
WINDOWS_DIFFERENT = Counter(
    "est_renewal_windows_different_total", "Looks at a window that differed from the ledger's"
)
WINDOWS_REQUESTED = Counter("est_renewal_windows_requested_total", "Windows asked for again")
WINDOWS_GIVEN_UP = Counter(
    "est_renewal_windows_given_up_total", "Windows that still differ; a person must look"
)
SLOTS = Gauge("est_renewal_slots", "Slots by state", ["state"])
OVERDUE_S = Gauge("est_renewal_oldest_due_seconds", "Age of the longest due, unclaimed slot")
UNANSWERED = Gauge(
    "est_renewal_unanswered_slots",
    "Slots announced a moment ago that have no new certificate yet, while others are due",
)
SHORT_LIFE = Gauge(
    "est_renewal_slots_short", "Slots with less than this share of lifetime left", ["share"]
)
