"""Ledger, audit log and renewal compared with one another, from their exports alone (pure).

Every certificate issued has an intent and exactly one successful outcome on record, with the
same fingerprint; every such outcome has its ledger row; serial numbers are distinct; one
request never led to two certificates; renewal knows each certificate exactly once; every command of
an operator in the ledger is on record, and none is on record that the ledger does not have.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from estcore.errors import ESTSuiteError
from estcore.tlog import canonical
from estcore.tlog.findings import Finding
from estcore.tlog.items import expanded
from estcore.tlog.purged import Absent

ACTION = "certificate.issue"
_LEDGER = {
    "issuance_id",
    "request_id",
    "enrollment_id",
    "state",
    "serial",
    "certificate_sha256",
    "issued_at",
    "audited",
}
_COMMANDS = {"command_id", "verb", "operator", "audited"}
_COMMAND_LINE = b'{"command_id"'
_OPERATOR = "operator."
_RENEWAL = {"issuance_id", "serial", "fingerprint_sha256"}
_MISSING = {"cross.outcome_missing", "cross.intent_missing"}
_STATES = {"intended", "issued", "abandoned"}
Row = dict[str, Any]


def cross(
    leaves: Iterable[Row],
    ledger: Iterable[bytes],
    renewal: Iterable[bytes] | None = None,
    absent: Sequence[Absent] = (),
) -> list[Finding]:
    """Return every disagreement between the records of a log and the other exports.

    Of a log with ``absent`` records no record is missed of what the ledger issued at their time,
    and no command of an operator, since a ledger's export does not say when it was given.
    """
    findings: list[Finding] = []
    lines = list(ledger)
    given = [line for line in lines if line.startswith(_COMMAND_LINE)]
    lines = [line for line in lines if not line.startswith(_COMMAND_LINE)]
    rows = _read("ledger", lines, _LEDGER, findings)
    commands = _read("ledger", given, _COMMANDS, findings, first=len(lines) + 1)
    issued = {str(r["issuance_id"]): (p, r) for p, r in rows if r["state"] == "issued"}
    findings.extend(_ledger(rows))
    logged = list(leaves)
    findings.extend(_log(logged, issued, {str(r["issuance_id"]) for _, r in rows}))
    findings.extend(_commands(logged, commands))
    if renewal is not None:
        findings.extend(_renewal(_read("renewal", renewal, _RENEWAL, findings), issued))
    purged = {
        place
        for place, row in issued.values()
        if any(part.covers(str(row["issued_at"])) for part in absent)
    }
    return [
        found
        for found in findings
        if not (absent and found.code == "cross.command_missing")
        and not (found.code in _MISSING and found.place in purged)
    ]


def is_issued(record: Mapping[str, Any]) -> bool:
    """Return whether the record says that a certificate was issued."""
    return (
        record.get("action") == ACTION
        and record.get("phase") == "outcome"
        and record.get("outcome") == "success"
    )


def _read(
    name: str, lines: Iterable[bytes], members: set[str], findings: list[Finding], first: int = 1
) -> list[tuple[str, Row]]:
    rows: list[tuple[str, Row]] = []
    for number, line in enumerate(lines, first):
        place = f"{name} line {number}"
        try:
            row = canonical.parse(line)
        except ESTSuiteError as exc:
            findings.append(Finding("cross.malformed", place, exc.reason))
            continue
        values = row.values() if isinstance(row, dict) else ()
        if not values or not members <= set(row) or any(isinstance(v, dict | list) for v in values):
            findings.append(Finding("cross.malformed", place, f"not a line of a {name} export"))
            continue
        rows.append((place, row))
    return rows


def _ledger(rows: list[tuple[str, Row]]) -> Iterator[Finding]:
    serials: Counter[str] = Counter()
    issuances: Counter[str] = Counter()
    requests: Counter[str] = Counter()
    for place, row in rows:
        if row["state"] not in _STATES:
            yield Finding("ledger.state", place, f"{row['state']} is not a state")
        for what, counter, value in (
            ("serial", serials, row["serial"]),
            ("issuance", issuances, row["issuance_id"]),
            ("request", requests, row["request_id"] if row["state"] == "issued" else None),
        ):
            if value is None:
                continue
            counter[str(value)] += 1
            if counter[str(value)] > 1:
                yield Finding(f"ledger.{what}_repeated", place, f"{what} {value} occurs again")


def _log(
    leaves: list[Row], issued: dict[str, tuple[str, Row]], ledger_ids: set[str]
) -> Iterator[Finding]:
    outcomes: dict[str, list[Row]] = defaultdict(list)
    intents: Counter[str] = Counter()
    facts = ((leaf, record) for leaf in leaves for record in expanded(leaf["record"]))
    for leaf, record in facts:
        issuance = str(_target(record).get("issuance_id"))
        if is_issued(record):
            outcomes[issuance].append({**leaf, "record": record})
        elif record.get("action") == ACTION and record.get("phase") == "intent":
            intents[issuance] += 1
            if issuance not in ledger_ids:
                yield Finding(
                    "cross.intent_unknown",
                    f"record {leaf['log_index']}",
                    f"the intent of issuance {issuance} has no ledger row",
                )
    for issuance, (place, row) in issued.items():
        yield from _check_outcomes(issuance, place, row, outcomes.get(issuance, []))
        # More than one is right: a resumed issuance shows every attempt.
        if not intents[issuance]:
            yield Finding(
                "cross.intent_missing", place, f"issuance {issuance} has no intent on record"
            )
    for issuance, outcome_leaves in outcomes.items():
        if issuance not in issued:
            yield Finding(
                "cross.ledger_missing",
                f"record {outcome_leaves[0]['log_index']}",
                f"issuance {issuance} is on record, but not issued in the ledger",
            )


def _check_outcomes(issuance: str, place: str, row: Row, outcomes: list[Row]) -> Iterator[Finding]:
    if not outcomes:
        unpublished = "" if row["audited"] else ", and the ledger has not published it"
        yield Finding(
            "cross.outcome_missing",
            place,
            f"issuance {issuance} has no outcome on record{unpublished}",
        )
    if len(outcomes) > 1:
        yield Finding(
            "cross.outcome_repeated",
            f"record {outcomes[1]['log_index']}",
            f"issuance {issuance} has {len(outcomes)} outcomes on record",
        )
    for leaf in outcomes:
        target = _target(leaf["record"])
        for name in ("certificate_sha256", "serial"):
            if row[name] is None or target.get(name) != row[name]:
                yield Finding(
                    f"cross.{name}_differs",
                    f"record {leaf['log_index']}",
                    f"issuance {issuance}: {name} is not that of the ledger",
                )


def _commands(leaves: list[Row], rows: list[tuple[str, Row]]) -> Iterator[Finding]:
    """Compare what operators commanded; refusals that reached no ledger are on record alone."""
    recorded: dict[str, Row] = {}
    for leaf in leaves:
        record = leaf["record"]
        if str(record.get("action")).startswith(_OPERATOR):
            recorded.setdefault(str(record.get("correlation_id")), leaf)
    ledger: dict[str, str] = {}
    for place, row in rows:
        command, verb = str(row["command_id"]), f"{_OPERATOR}{row['verb']}"
        ledger[command] = verb
        if command not in recorded:
            unpublished = "" if row["audited"] else ", and the ledger has not published it"
            yield Finding(
                "cross.command_missing", place, f"command {command} is not on record{unpublished}"
            )
        elif recorded[command]["record"].get("action") != verb:
            yield Finding(
                "cross.command_differs", place, f"command {command} is on record as another verb"
            )
    for command, leaf in recorded.items():
        if leaf["record"].get("phase") == "outcome" and command not in ledger:
            yield Finding(
                "cross.command_unknown",
                f"record {leaf['log_index']}",
                f"command {command} is on record, but the ledger does not have it",
            )


def _renewal(rows: list[tuple[str, Row]], issued: dict[str, tuple[str, Row]]) -> Iterator[Finding]:
    seen: set[str] = set()
    for place, row in rows:
        issuance = str(row["issuance_id"])
        if issuance in seen:
            yield Finding("renewal.repeated", place, f"issuance {issuance} occurs again")
        seen.add(issuance)
        if issuance not in issued:
            yield Finding("renewal.unknown", place, f"issuance {issuance} is not in the ledger")
            continue
        ledger = issued[issuance][1]
        same = (row["serial"], row["fingerprint_sha256"]) == (
            ledger["serial"],
            ledger["certificate_sha256"],
        )
        if not same:
            yield Finding("renewal.differs", place, f"issuance {issuance} is another certificate")
    for issuance, (place, _) in issued.items():
        if issuance not in seen:
            yield Finding("renewal.missing", place, f"renewal does not know issuance {issuance}")


def _target(record: Mapping[str, Any]) -> Row:
    target = record.get("target")
    return target if isinstance(target, dict) else {}
