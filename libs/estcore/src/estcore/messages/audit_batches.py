"""Audit records in messages (``AuditBatch``): as many in each as every stream and reader takes.

Records are bounded in number and octets: records of large requests, collected in one message,
would be above what NATS takes, and never be stored. Facts of a kind that came about together make
one record with an item for each (``AuditRecord.items``), as large as a syslog message may be.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from hashlib import sha256
from typing import Any

from estcore.ids import record_id
from estcore.messages.envelope import encode_mapping

Record = dict[str, Any]
"""An AuditRecord as a mapping, absent values left out."""
MAX_RECORDS = 256
MAX_OCTETS = 96 * 1024
_ITEMS_OCTETS = 6 * 1024
_OF_ITEMS = frozenset(
    {"correlation_id", "causation_id", "trace_id", "actor", "origin", "target", "details"}
)


def fitting(records: Sequence[bytes]) -> int:
    """Return how many of the first records, encoded as JSON, fit into one message; at least one."""
    octets = 0
    for count, record in enumerate(records[:MAX_RECORDS]):
        octets += len(record)
        if count and octets > MAX_OCTETS:
            return count
    return min(len(records), MAX_RECORDS)


def encode_records(records: Sequence[bytes], traceparents: Sequence[str] = ()) -> bytes:
    """Return an ``AuditBatch`` of encoded records."""
    traced = encode_mapping({"traceparents": traceparents})
    return b'{"records":[' + b",".join(records) + b"]," + traced.removeprefix(b"{")


def batch_id(record_ids: Iterable[str]) -> str:
    """Return the Nats-Msg-Id of a message: the same records in the same order, the same id.

    The id of one record would drop, as a duplicate, a message that has more than it had before.
    """
    return sha256("".join(record_ids).encode()).hexdigest()[:32]


def parts(records: Sequence[bytes]) -> Iterator[slice]:
    """Yield the slices of encoded records that are one message each, in order."""
    start = 0
    while start < len(records):
        end = start + fitting(records[start : start + MAX_RECORDS])
        yield slice(start, end)
        start = end


def join_records(records: Sequence[Record]) -> list[bytes]:
    """Return records of one kind, encoded: as few as may be, in order, with items.

    All have the same producer, action, phase, outcome and severity. Of what they differ in, the
    joined record has the time of the first. Its id follows from theirs.
    """
    encoded = [encode_mapping(_item(record)) for record in records]
    return [
        encode_mapping(records[part.start])
        if part.stop - part.start == 1
        else _joined(records[part], encoded[part])
        for part in _items_of_a_record(encoded)
    ]


def _item(record: Record) -> Record:
    return {name: value for name, value in record.items() if name in _OF_ITEMS}


def _items_of_a_record(encoded: Sequence[bytes]) -> Iterator[slice]:
    start = octets = 0
    for number, item in enumerate(encoded):
        octets += len(item)
        if number > start and octets > _ITEMS_OCTETS:
            yield slice(start, number)
            start, octets = number, len(item)
    if encoded:
        yield slice(start, len(encoded))


def _joined(records: Sequence[Record], items: Sequence[bytes]) -> bytes:
    common = {name: value for name, value in records[0].items() if name not in _OF_ITEMS}
    name = record_id("joined", *(str(record["record_id"]) for record in records))
    service = _service(common["producer"])
    head = encode_mapping(
        common
        | {
            "record_id": name,
            "correlation_id": name,
            "actor": {"type": "system", "subject": service},
        }
    )
    return head[:-1] + b',"items":[' + b",".join(items) + b"]}"


def _service(producer: Mapping[str, Any] | Any) -> str:
    return str(producer["service"] if isinstance(producer, Mapping) else producer.service)
