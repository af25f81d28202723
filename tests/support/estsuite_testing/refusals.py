"""Refusals that a front end recorded one by one or counted, as its audit records state them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from estcore.messages.audit import AuditRecord


def accounted(records: Iterable[AuditRecord]) -> Counter[str]:
    """Return how many refusals of each code the records speak of."""
    counted: Counter[str] = Counter()
    for record in records:
        if record.action == "est.refusals":
            assert record.details is not None
            counted[str(record.reason_code)] += int(str(record.details["aggregated"]))
        elif record.phase == "denied" and record.action.startswith("est."):
            counted[str(record.reason_code)] += 1
    return counted
