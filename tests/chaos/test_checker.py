"""The checker finds what must not be: a check that finds nothing proves nothing."""

from __future__ import annotations

from typing import Any

import pytest

from estsuite_testing.chaos.checker import (
    check_ledger,
    check_operations,
    check_receiver,
    check_siem,
    check_slots,
)
from estsuite_testing.chaos.history import Operation


def row(number: int, **changes: Any) -> dict[str, Any]:
    values: dict[str, Any] = {
        "issuance_id": f"i-{number}",
        "enrollment_id": f"e-{number}",
        "state": "issued",
        "serial": f"{number:036x}",
        "certificate_sha256": f"{number:064x}",
        "audited": True,
    }
    return values | changes


def held(number: int, **changes: Any) -> Operation:
    operation = Operation("enroll", f"dev-{number}", f"key-{number}")
    operation.serial, operation.fingerprint = f"{number:036x}", f"{number:064x}"
    for name, value in changes.items():
        setattr(operation, name, value)
    return operation


LEDGER = [row(1), row(2), row(3)]


def test_what_agrees_is_no_violation() -> None:
    operations = [held(1), held(2), held(2, kind="repeat", expected=f"{2:064x}")]
    assert check_operations(operations, LEDGER) == []
    assert check_ledger(LEDGER) == []
    assert check_slots(LEDGER, LEDGER) == []
    name = "0192a0c0-0000-7000-8000-000000000001"
    assert check_siem([{"record_id": name, "action": "a"}], [f"<1> {name}"]) == []


@pytest.mark.parametrize(
    ("operation", "text"),
    [
        (held(9), "which the ledger has not"),
        (held(1, fingerprint="f" * 64), "something else than the ledger's"),
        (held(1, serial=None, fingerprint=None, answers=["202"]), "never ended: 202"),
        (held(1, fault="answered 400"), "answered 400"),
        (held(1, kind="repeat", expected="e" * 64), "a different certificate"),
    ],
)
def test_each_wrong_operation_is_found(operation: Operation, text: str) -> None:
    found = check_operations([held(2), operation], LEDGER)
    assert len(found) == 1
    assert text in found[0]


def test_two_certificates_for_one_key_are_found() -> None:
    found = check_operations([held(1), held(2, spki_sha256="key-1")], LEDGER)
    assert found == [f"one key has 2 certificates: ['{1:064x}', '{2:064x}']"]


@pytest.mark.parametrize(
    ("changed", "text"),
    [
        ({"enrollment_id": "e-2"}, "enrollment e-2 has 2 certificates"),
        ({"serial": f"{2:036x}"}, "was used 2 times"),
        ({"state": "intended"}, "is still open"),
        ({"audited": False}, "was never announced"),
    ],
)
def test_each_fault_of_the_ledger_is_found(changed: dict[str, Any], text: str) -> None:
    found = check_ledger([row(1, **changed), row(2)])
    assert len(found) == 1
    assert text in found[0]


def test_a_certificate_without_slot_and_a_record_that_was_not_delivered_are_found() -> None:
    assert check_slots(LEDGER, LEDGER[1:]) == [f"certificate {1:036x} has no slot"]
    delivered, missing = (f"0192a0c0-0000-7000-8000-00000000000{n}" for n in (1, 2))
    records = [{"record_id": r, "action": "certificate.issue"} for r in (delivered, missing)]
    assert check_siem(records, [f'<1> {{"record_id":"{delivered}"}}']) == [
        f"record {missing} (certificate.issue) is not at the SIEM"
    ]


LEAVES = [{"log_index": n, "record": {"record_id": f"r-{n}"}} for n in range(4)]


@pytest.mark.parametrize(
    ("taken", "turned_away", "expected"),
    [
        ([0, 1, 2, 3], [], []),
        ([0, 2, 3, 1], [1], []),
        ([0, 1, 3], [], ["record r-2 is not at otlp"]),
        ([0, 2, 1, 3], [], ["record r-1 (1) came to otlp after 2"]),
    ],
)
def test_a_receiver_has_every_record_in_the_order_of_the_log(
    taken: list[int], turned_away: list[int], expected: list[str]
) -> None:
    names = ["checkpoint-1", *(f"r-{n}" for n in taken)]
    assert check_receiver("otlp", LEAVES, names, {f"r-{n}" for n in turned_away}) == expected
