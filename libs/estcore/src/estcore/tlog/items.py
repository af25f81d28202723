"""The facts that a record says: one, or one for each of its items (``AuditRecord.items``)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any


def expanded(record: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """Yield a record for each fact, as if it had been recorded by itself.

    All of them have the record's own id. What is no item is passed over.
    """
    items = record.get("items")
    if not isinstance(items, list | tuple):
        yield record
        return
    common = {name: value for name, value in record.items() if name not in {"items", "target"}}
    for item in items:
        if isinstance(item, Mapping):
            yield {**common, **item}
