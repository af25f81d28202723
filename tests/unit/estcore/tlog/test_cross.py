"""Ledger, log and renewal against one another."""

from __future__ import annotations

import json
from typing import Any

import pytest

from estcore.tlog.verify import cross

SHA = "ab" * 32


def row(number: int = 1, **changes: Any) -> dict[str, Any]:
    value = {
        "issuance_id": f"i-{number}",
        "request_id": f"r-{number}",
        "enrollment_id": f"e-{number}",
        "state": "issued",
        "serial": f"01{number:02x}",
        "certificate_sha256": SHA,
        "issued_at": "2026-11-22T12:00:00Z",
        "audited": True,
    }
    return value | changes


def leaf(number: int, index: int, phase: str, **changes: Any) -> dict[str, Any]:
    target = {
        "issuance_id": f"i-{number}",
        "serial": f"01{number:02x}",
        "certificate_sha256": SHA if phase == "outcome" else None,
    }
    record = {
        "action": "certificate.issue",
        "phase": phase,
        "outcome": "success",
        "target": target | changes,
    }
    return {"log_index": index, "record": record}


def known(number: int = 1, **changes: Any) -> dict[str, Any]:
    value = {"issuance_id": f"i-{number}", "serial": f"01{number:02x}", "fingerprint_sha256": SHA}
    return value | changes


INTENT, OUTCOME = leaf(1, 0, "intent"), leaf(1, 1, "outcome")


def found(
    leaves: list[Any], ledger: list[Any], renewal: list[Any] | None = None
) -> list[tuple[str, str]]:
    lines = [json.dumps(r).encode() for r in ledger]
    known_lines = None if renewal is None else [json.dumps(r).encode() for r in renewal]
    return [(f.code, f.place) for f in cross(leaves, lines, known_lines)]


def test_what_agrees_has_no_findings() -> None:
    intended = row(2, state="intended", certificate_sha256=None)
    assert found([INTENT, OUTCOME, leaf(2, 2, "intent")], [row(), intended], [known()]) == []


@pytest.mark.parametrize(
    ("leaves", "ledger", "expected"),
    [
        ([INTENT], [row()], ("cross.outcome_missing", "ledger line 1")),
        ([OUTCOME], [row()], ("cross.intent_missing", "ledger line 1")),
        ([INTENT, OUTCOME, leaf(1, 2, "outcome")], [row()], ("cross.outcome_repeated", "record 2")),
        (
            [INTENT, leaf(1, 1, "outcome", certificate_sha256="00" * 32)],
            [row()],
            ("cross.certificate_sha256_differs", "record 1"),
        ),
        (
            [INTENT, leaf(1, 1, "outcome", serial="0199")],
            [row()],
            ("cross.serial_differs", "record 1"),
        ),
        ([INTENT, OUTCOME], [row(state="abandoned")], ("cross.ledger_missing", "record 1")),
        ([INTENT], [], ("cross.intent_unknown", "record 0")),
        ([], [row(state="odd")], ("ledger.state", "ledger line 1")),
        (
            [],
            [row(state="intended"), row(2, state="abandoned", serial="0101")],
            ("ledger.serial_repeated", "ledger line 2"),
        ),
        (
            [INTENT, OUTCOME, leaf(2, 2, "intent"), leaf(2, 3, "outcome")],
            [row(), row(2, request_id="r-1")],
            ("ledger.request_repeated", "ledger line 2"),
        ),
        ([], [{"issuance_id": "i-1"}], ("cross.malformed", "ledger line 1")),
    ],
)
def test_what_disagrees_is_found(
    leaves: list[Any], ledger: list[Any], expected: tuple[str, str]
) -> None:
    assert found(leaves, ledger) == [expected]


@pytest.mark.parametrize(
    ("renewal", "expected"),
    [
        ([], ("renewal.missing", "ledger line 1")),
        ([known(), known()], ("renewal.repeated", "renewal line 2")),
        ([known(), known(2)], ("renewal.unknown", "renewal line 2")),
        ([known(fingerprint_sha256="00" * 32)], ("renewal.differs", "renewal line 1")),
    ],
)
def test_what_renewal_does_not_know_is_found(renewal: list[Any], expected: tuple[str, str]) -> None:
    assert found([INTENT, OUTCOME], [row()], renewal) == [expected]


def test_lines_that_are_not_json_are_findings() -> None:
    assert [f.code for f in cross([], [b"{", b"[]"], [b"1"])] == ["cross.malformed"] * 3


def test_the_finding_says_that_the_ledger_has_not_published() -> None:
    lines = [json.dumps(row(audited=False)).encode()]
    assert "not published" in cross([INTENT], lines)[0].sentence


def test_a_resumed_issuance_may_show_more_than_one_intent() -> None:
    """Fault matrix 3: the audit log shows both attempts."""
    lines = [json.dumps(row()).encode()]
    assert cross([INTENT, INTENT, OUTCOME], lines) == []


def command_row(**changes: Any) -> bytes:
    row = {"command_id": "c-1", "verb": "certificate-revoke", "operator": "boss", "audited": True}
    return json.dumps(row | changes).encode()


def command_leaf(index: int = 9, **changes: Any) -> dict[str, Any]:
    record = {
        "action": "operator.certificate-revoke",
        "phase": "outcome",
        "outcome": "success",
        "correlation_id": "c-1",
    }
    return {"log_index": index, "record": record | changes}


@pytest.mark.parametrize(
    ("leaves", "rows", "expected"),
    [
        ([command_leaf()], [command_row()], []),
        ([command_leaf(phase="denied", outcome="failure")], [command_row()], []),
        ([command_leaf(phase="denied", outcome="failure")], [], []),
        ([], [command_row()], ["cross.command_missing"]),
        ([command_leaf()], [], ["cross.command_unknown"]),
        ([command_leaf(action="operator.rollover-sign")], [], ["cross.command_unknown"]),
        (
            [command_leaf(action="operator.certificate-unhold")],
            [command_row()],
            ["cross.command_differs"],
        ),
        (
            [command_leaf()],
            [b'{"command_id": "c-1"}'],
            ["cross.malformed", "cross.command_unknown"],
        ),
    ],
)
def test_commands_of_operators_are_compared(
    leaves: list[dict[str, Any]], rows: list[bytes], expected: list[str]
) -> None:
    assert [finding.code for finding in cross(leaves, rows)] == expected
