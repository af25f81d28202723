"""Offline verification: what is untouched passes, what is touched is named."""

from __future__ import annotations

import datetime as dt
import io
import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from estcore.tlog import canonical, export
from estcore.tlog.checkpoint import VerifierKey
from estcore.tlog.cross import cross
from estcore.tlog.verify import Options, Report, verify
from estsuite_testing.memory_log import record

NOW = dt.datetime(2026, 11, 22, 18, 0, tzinfo=dt.UTC)
relaxed = settings(suppress_health_check=[HealthCheck.function_scoped_fixture])


def judged(lines: list[bytes], key: VerifierKey | None = None, *notes: str) -> Report:
    return verify(lines, Options(now=NOW, key=key, kept=notes)).report


def codes(report: Report) -> set[str]:
    return {finding.code for finding in report.findings}


def test_an_untouched_log_passes(make_log: Callable[..., Any]) -> None:
    log = make_log(10)
    report = judged(log.export(), log.vkey)
    assert report.ok, report.findings
    assert (report.records, report.checkpoints, report.sealed) == (10, 3, 9)
    assert report.to_json()["ok"] is True


def test_a_log_without_a_checkpoint_does_not_pass(make_log: Callable[..., Any]) -> None:
    for records in (0, 2):
        assert codes(judged(make_log(records).export())) == {"checkpoint.none"}
    assert codes(judged([])) == {"export.empty"}


@relaxed
@given(data=st.data())
def test_any_flipped_bit_of_an_export_is_found(
    data: st.DataObject, make_log: Callable[..., Any]
) -> None:
    log = make_log(9)
    octets = bytearray(b"".join(line + b"\n" for line in log.export()))
    bit = data.draw(st.integers(0, len(octets) * 8 - 1))
    place = octets[: bit // 8].count(b"\n") + 1
    octets[bit // 8] ^= 1 << bit % 8
    report = judged(list(io.BytesIO(octets)), log.vkey)  # lines end at \n alone, as in files
    (finding,) = report.findings
    near = {f"line {place}", f"line {place + 1}"}
    if place == 1:  # the header: what it announces shows where it is compared
        near |= {f"line {n}" for n in range(11, 15)}
    assert finding.place.split(",")[0] in near


def _moved(lines: list[bytes]) -> Iterator[tuple[list[bytes], set[int]]]:
    """Every line dropped, repeated and swapped with every other, and where that may be found."""
    for at in range(len(lines)):
        yield [*lines[:at], *lines[at + 1 :]], {at, at + 1, len(lines) - 2}
        yield [*lines[:at], lines[at], *lines[at:]], {at, at + 1}
        for other in range(at + 1, len(lines)):
            swapped = list(lines)
            swapped[at], swapped[other] = lines[other], lines[at]
            yield swapped, {at, at + 1, other, other + 1}


def test_any_line_dropped_repeated_or_swapped_is_one_finding(
    make_log: Callable[..., Any],
) -> None:
    log = make_log(9)
    for lines, near in _moved(log.export()):
        (finding,) = judged(lines, log.vkey).findings
        place = int(finding.place.split(",")[0].removeprefix("line "))
        assert place - 1 in near | {0}, finding


def test_a_change_in_a_long_log_is_one_finding(make_log: Callable[..., Any]) -> None:
    """Nothing that follows from it is a finding: not the chain, not the checkpoints, not numbers."""
    log = make_log(120)
    lines = log.export()
    changes = {
        "content": [*lines[:50], lines[50].replace(b"denied", b"dented"), *lines[51:]],
        "removed": [*lines[:50], *lines[60:]],
        "inserted": [*lines[:50], *lines[20:30], *lines[50:]],
        "cut": lines[:90],
        "resigned": make_log(120, seed=2).export(),
    }
    for name, changed in changes.items():
        report = judged(changed, log.vkey)
        assert len(report.findings) == 1, (name, report.findings[:5])


def test_two_changes_are_two_findings(make_log: Callable[..., Any]) -> None:
    """Going on after a fault hides none behind it."""
    log = make_log(60)
    for first, second in ((b"denied", b"call-9"), (b"call-3", b"denied")):
        lines = log.export()
        for at, what in ((12, first), (30, second)):
            lines[at] = lines[at].replace(what, b"other0") if what in lines[at] else lines[at][:-9]
        places = [f.place.split(",")[0] for f in judged(lines, log.vkey).findings]
        assert places == ["line 13", "line 31"]


def test_a_rewritten_history_does_not_have_the_signed_root(make_log: Callable[..., Any]) -> None:
    """An attacker with the database but without the key writes hashes that fit one another."""
    log, forged = make_log(9), make_log(0)
    for index, (_, leaf, _, _) in enumerate(log.records):
        changed = leaf.replace("auth.denied", "auth.passed") if index == 4 else leaf
        octets = changed.encode()
        forged.records.append((index, changed, export_hash(octets), forged.chain))
        forged.chain = export.chain_hash(forged.chain, export_hash(octets))
    forged.notes = log.notes
    report = judged(forged.export(), log.vkey)
    assert codes(report) == {"checkpoint.root"}
    (finding,) = report.findings
    assert finding.place == "line 12, checkpoint 6"
    assert finding.sentence.endswith("; the same of 1 more")


def export_hash(octets: bytes) -> bytes:
    from estcore.tlog.tree import leaf_hash

    return leaf_hash(octets)


def test_a_log_signed_with_another_key_is_found(make_log: Callable[..., Any]) -> None:
    log, forged = make_log(9), make_log(9, seed=2)
    assert judged(forged.export()).ok
    assert codes(judged(forged.export(), log.vkey)) == {"key.differs"}


def test_a_checkpoint_kept_outside_reveals_a_rewritten_log(make_log: Callable[..., Any]) -> None:
    log, rewritten = make_log(9), make_log(2)
    for number in range(3, 12):
        rewritten.add(_other(number))
    rewritten.seal()
    assert judged(rewritten.export(), log.vkey).ok
    report = judged(rewritten.export(), log.vkey, log.notes[-1][1])
    assert codes(report) == {"checkpoint.root"}
    assert "kept checkpoint 1" in report.findings[0].place


def _other(number: int) -> dict[str, Any]:
    return {
        "record_id": f"other-{number}",
        "correlation_id": "c",
        "occurred_at": "2026-11-22T12:00:00+00:00",
        "action": "x",
        "phase": "outcome",
        "outcome": "success",
        "producer": {"service": "est-frontend", "instance": "f-0", "boot_id": "other"},
    }


def sealed(log: Any) -> list[bytes]:
    log.seal()
    lines: list[bytes] = log.export()
    return lines


def test_a_gap_in_a_producers_sequence_is_found(
    make_log: Callable[..., Any], make_record: Callable[..., Any]
) -> None:
    log = make_log()
    for number in (0, 1, 4, 5):
        log.add(make_record(number))
    report = judged(sealed(log))
    assert [(f.code, f.place) for f in report.findings] == [("sequence.gap", "record 2")]
    assert "number 3 to 4" in report.findings[0].sentence


def test_a_sequence_that_does_not_begin_at_its_beginning_is_a_gap(
    make_log: Callable[..., Any], make_record: Callable[..., Any]
) -> None:
    log = make_log()
    log.add(make_record(4))
    assert codes(judged(sealed(log))) == {"sequence.gap"}


def test_a_number_used_twice_and_a_record_kept_twice_are_found(
    make_log: Callable[..., Any], make_record: Callable[..., Any]
) -> None:
    log = make_log()
    log.add(make_record(0))
    log.add(make_record(0))
    assert codes(judged(sealed(log))) == {"sequence.repeated", "record.repeated"}


@pytest.mark.parametrize(("minutes", "expected"), [(1, set()), (60, {"intent.open"})])
def test_an_intent_without_outcome_is_found_after_a_while(
    minutes: int,
    expected: set[str],
    make_log: Callable[..., Any],
    make_record: Callable[..., Any],
) -> None:
    log = make_log()
    moment = NOW - dt.timedelta(minutes=minutes)
    target = {"issuance_id": "i-1"}
    log.add(make_record(0, phase="intent", target=target), recorded_at=moment)
    assert codes(judged(sealed(log))) == expected
    log.add(make_record(1, phase="outcome", target=target), recorded_at=NOW)
    assert judged(sealed(log)).ok


def test_time_that_runs_backwards_is_found(
    make_log: Callable[..., Any], make_record: Callable[..., Any]
) -> None:
    log = make_log(2)
    log.add(make_record(2), recorded_at=NOW - dt.timedelta(days=9))
    report = judged(sealed(log))
    assert codes(report) == {"record.time", "record.ahead"}
    assert len(report.findings) == 2


def test_a_record_of_the_future_is_found_unless_audit_noted_it(
    make_log: Callable[..., Any], make_record: Callable[..., Any]
) -> None:
    log = make_log()
    ahead = make_record(0, occurred_at=(NOW + dt.timedelta(days=9)).isoformat())
    log.add(ahead, recorded_at=NOW)
    assert codes(judged(sealed(log))) == {"record.ahead"}
    details = {"id": ahead["record_id"], "ahead_s": 777_600}
    of_other = make_record(1, action="audit.record_ahead", details=details)
    log.add(of_other, recorded_at=NOW)
    assert codes(judged(sealed(log))) == {"record.ahead"}
    producer = {"service": "audit", "instance": "a-0", "boot_id": "x"}
    noted = make_record(2, action="audit.record_ahead", details=details, producer=producer)
    log.add(noted | {"producer_seq": 1}, recorded_at=NOW)
    assert judged(sealed(log)).ok


def test_a_part_of_a_log_verifies_by_inclusion(make_log: Callable[..., Any]) -> None:
    log = make_log(9)
    report = judged(log.part("call-1"), log.vkey)
    assert report.ok, report.findings
    assert report.partial
    assert report.records == 3


def test_a_changed_record_of_a_part_is_found(make_log: Callable[..., Any]) -> None:
    log = make_log(9)
    lines = log.part("call-1")
    index, leaf, _, before = log.records[4]
    changed = leaf.replace("auth.denied", "auth.passed")
    proof = log.tree.inclusion(4, 9)
    lines[2] = export.record_line(index, changed, export_hash(changed.encode()), before, proof)
    report = judged(lines, log.vkey)
    assert [(f.code, f.place) for f in report.findings] == [("record.inclusion", "record 4")]


def test_a_whole_log_passed_off_as_a_part_is_found(make_log: Callable[..., Any]) -> None:
    log = make_log(3)
    lines = log.export()
    lines[0] = export.Header(log.vkey.name, str(log.vkey), 3, 1, "call-0").line()
    assert codes(judged(lines, log.vkey)) == {"record.unsealed"}


@pytest.mark.parametrize(
    ("topic", "found"),
    [
        ("audit.issue.est-frontend", False),
        ("audit.refusal.est-frontend.f-0", False),
        ("audit.issue.ca-signer", True),
        ("audit.refusal.renewal.r-0", True),
        ("audit.refusal", True),
        ("pki.state.cacerts.est-frontend", True),
        ("audit.other.est-frontend", True),
        ("", True),
    ],
)
def test_a_record_that_came_on_a_topic_of_a_different_service_is_found(
    make_log: Callable[..., Any], make_record: Callable[..., Any], topic: str, found: bool
) -> None:
    log = make_log()
    log.add(make_record(0), topic=topic or " ")
    assert codes(judged(sealed(log))) == ({"record.topic"} if found else set())


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text("ab", max_size=2), inner),
    max_leaves=4,
)
FULL = {
    "target": {"issuance_id": "i-1"},
    "details": {"id": "x", "last_number": 3, "boot_id": "a"},
    "items": [{"correlation_id": "call-1", "target": {"request_id": "r"}, "details": {"id": "y"}}],
}


def _places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    inner: Any = ()
    if isinstance(value, dict):
        inner = value.items()
    elif isinstance(value, list):
        inner = enumerate(value)
    return [path, *(place for name, member in inner for place in _places(member, (*path, name)))]


def _replaced(value: Any, path: tuple[Any, ...], new: Any) -> Any:
    if not path:
        return new
    copied = dict(value) if isinstance(value, dict) else list(value)
    copied[path[0]] = _replaced(value[path[0]], path[1:], new)
    return copied


@pytest.mark.parametrize(
    ("action", "phase"),
    [
        ("auth.denied", "denied"),
        ("certificate.issue", "intent"),
        ("certificate.issue", "outcome"),
        ("service.previous_boot", "outcome"),
        ("audit.record_ahead", "outcome"),
        ("audit.conflict", "outcome"),
    ],
)
@relaxed
@given(data=st.data())
def test_a_signed_log_may_hold_any_json(
    data: st.DataObject, make_log: Callable[..., Any], action: str, phase: str
) -> None:
    """Who signs a log may put anything into its leaves: a report comes of it, nothing is raised."""
    log = make_log(2)
    good = record(2, action=action, phase=phase, **FULL)
    place = data.draw(st.sampled_from([p for p in _places(good) if p]))
    log.add(_replaced(good, place, data.draw(JSON)), topic="audit.issue.est-frontend")
    log.add(good)
    log.seal()
    verification = verify(log.export(), Options(now=NOW, key=log.vkey))
    cross(verification.records, [], [])
    assert verification.report.sealed == 4


LEDGER = {
    "issuance_id": "i-1",
    "request_id": "r",
    "enrollment_id": "e",
    "state": "issued",
    "serial": "01",
    "certificate_sha256": "aa",
    "issued_at": "2026-11-22T12:00:00+00:00",
    "audited": True,
}


@given(name=st.sampled_from(sorted(LEDGER)), value=JSON)
def test_exports_to_compare_with_may_hold_any_json(name: str, value: Any) -> None:
    ledger = json.dumps(LEDGER | {name: value}).encode()
    renewal = {"issuance_id": "i-1", "serial": "01", "fingerprint_sha256": "aa"}
    lines = [json.dumps(renewal | ({name: value} if name in renewal else {})).encode()]
    assert cross([], [ledger], lines)


def test_hashes_that_cannot_be_read_hide_no_missing_record(make_log: Callable[..., Any]) -> None:
    lines = make_log(9).export()
    purged = canonical.encode({"type": "purged", "log_index": 6, "leaf_hashes": "Z" * 64})
    report = judged([*lines[:4], purged, *lines[8:]])
    found = [f.sentence for f in report.findings if f.code == "record.index"]
    assert any(sentence.startswith("records 3 to 5 are missing") for sentence in found), found
