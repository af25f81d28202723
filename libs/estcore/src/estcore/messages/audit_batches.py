"""Audit records in messages (``AuditBatch``): as many in each as every stream and reader takes.

Records are bounded in number and octets: records of large requests, collected in one message,
would be above what NATS takes, and never be stored.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from hashlib import sha256

from estcore.messages.envelope import encode_mapping

MAX_RECORDS = 256
MAX_OCTETS = 96 * 1024


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
