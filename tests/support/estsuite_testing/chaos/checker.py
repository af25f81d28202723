"""What has to hold when everything is well again (pure): clients, ledger, log and SIEM agree."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence, Set
from typing import Any

from estsuite_testing.chaos.history import Operation

Row = Mapping[str, Any]

_UUID = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}")


def check_operations(operations: Sequence[Operation], ledger: Sequence[Row]) -> list[str]:
    """Return what is wrong with what clients hold, compared with the ledger's export."""
    issued = {row["serial"]: row for row in ledger if row["state"] == "issued"}
    found = [
        f"{o.kind} of {o.name}: {o.fault} (answers: {', '.join(o.answers[-5:])})"
        for o in operations
        if o.fault is not None
    ]
    by_key: dict[str, set[str]] = defaultdict(set)
    for operation in operations:
        if operation.fingerprint is None or operation.serial is None:
            if operation.fault is None:
                found.append(
                    f"{operation.kind} of {operation.name} never ended: "
                    f"{', '.join(operation.answers[-5:]) or 'no answer'}"
                )
            continue
        by_key[operation.spki_sha256].add(operation.fingerprint)
        row = issued.get(operation.serial)
        if row is None:
            found.append(f"{operation.name} holds {operation.serial}, which the ledger has not")
        elif row["certificate_sha256"] != operation.fingerprint:
            found.append(f"{operation.name} holds something else than the ledger's certificate")
        if operation.expected is not None and operation.expected != operation.fingerprint:
            found.append(f"{operation.name} repeated its request and got a different certificate")
    found += [
        f"one key has {len(fingerprints)} certificates: {sorted(fingerprints)}"
        for fingerprints in by_key.values()
        if len(fingerprints) > 1
    ]
    return found


def check_ledger(ledger: Sequence[Row]) -> list[str]:
    """Return what the ledger itself says that must not be."""
    found = []
    enrollments = Counter(r["enrollment_id"] for r in ledger if r["state"] == "issued")
    found += [f"enrollment {e} has {n} certificates" for e, n in enrollments.items() if n > 1]
    serials = Counter(r["serial"] for r in ledger if r["serial"])
    found += [f"serial number {s} was used {n} times" for s, n in serials.items() if n > 1]
    found += [
        f"intent {r['issuance_id']} is still open" for r in ledger if r["state"] == "intended"
    ]
    found += [
        f"certificate {r['serial']} was never announced"
        for r in ledger
        if r["state"] == "issued" and not r["audited"]
    ]
    return found


def check_slots(ledger: Iterable[Row], renewal: Iterable[Row]) -> list[str]:
    """Return certificates that renewal does not know: they would expire unnoticed."""
    known = {row["issuance_id"] for row in renewal}
    return [
        f"certificate {row['serial']} has no slot"
        for row in ledger
        if row["state"] == "issued" and row["issuance_id"] not in known
    ]


def check_siem(records: Iterable[Row], messages: Sequence[str]) -> list[str]:
    """Return records of the log that the SIEM did not receive."""
    received = {name for message in messages for name in _UUID.findall(message)}
    return [
        f"record {record['record_id']} ({record['action']}) is not at the SIEM"
        for record in records
        if str(record["record_id"]) not in received
    ]


def check_receiver(
    kind: str, leaves: Sequence[Row], taken: Sequence[str], turned_away: Set[str]
) -> list[str]:
    """Return records that a receiver did not get, and those it got before an earlier one.

    ``taken`` are the ids in the order of their first arrival. A record that the receiver refused
    while it took others comes later than they.
    """
    places = {str(leaf["record"]["record_id"]): int(leaf["log_index"]) for leaf in leaves}
    got = set(taken)
    found = [f"record {name} is not at {kind}" for name in places if name not in got][:20]
    newest = -1
    for name in taken:
        place = places.get(name)
        if place is None or name in turned_away:
            continue
        if place < newest:
            found.append(f"record {name} ({place}) came to {kind} after {newest}")
        newest = max(newest, place)
    return found
