"""Truncated exports: each either has a finding, or shows in the report that it is shorter."""

from __future__ import annotations

import datetime as dt
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from estcore.tlog import export
from estcore.tlog.checkpoint import Checkpoint, kept_note, parse_signed, sign
from estcore.tlog.verify import Options, Report, verify
from estsuite_testing.memory_log import ORIGIN, START, MemoryLog, make_log, record

NOW = dt.datetime(2027, 11, 22, 18, 0, tzinfo=dt.UTC)
LOG = make_log(10)
LINES = LOG.export()
HEADER, RECORDS, CHECKPOINTS = LINES[0], LINES[1:11], LINES[11:]
FIRST, LAST = LOG.notes[0][1], LOG.notes[-1][1]


def judged(lines: list[bytes], *kept: str, live: bool = False) -> Report:
    return verify(lines, Options(now=NOW, key=LOG.vkey, kept=kept, live=live)).report


def codes(report: Report) -> set[str]:
    return {finding.code for finding in report.findings}


def forged(records: int, checkpoints: int) -> list[bytes]:
    """The beginning of the log, with a header that fits it."""
    header = export.Header(ORIGIN, str(LOG.vkey), records, checkpoints).line()
    return [header, *RECORDS[:records], *CHECKPOINTS[:checkpoints]]


def test_the_report_says_what_the_log_proves() -> None:
    report = judged(LINES, LAST)
    assert report.ok
    assert (report.records, report.tree_size, report.sealed, report.unsealed) == (10, 10, 9, 1)
    assert report.root == LOG.tree.root().hex()
    assert report.first_recorded_at == (START + dt.timedelta(milliseconds=1)).isoformat()
    assert report.last_recorded_at == (START + dt.timedelta(seconds=9, milliseconds=1)).isoformat()
    value = json.loads(json.dumps(report.to_json()))
    assert value["first_checkpoint"]["size"] == 3
    assert value["last_checkpoint"] == {
        "size": 9,
        "root": LOG.tree.root(9).hex(),
        "recorded_at": (START + dt.timedelta(seconds=8, milliseconds=1)).isoformat(),
    }
    assert value["signer"] == {
        "name": ORIGIN,
        "key_id": LOG.vkey.key_hash.hex(),
        "given": True,
    }
    assert value["kept"] == 9


def test_a_key_that_only_the_export_names_is_reported_as_such() -> None:
    report = verify(LINES, Options(now=NOW)).report
    assert report.signer is not None
    assert not report.signer.given


@pytest.mark.parametrize("lines", range(len(LINES)))
def test_an_export_cut_at_any_line_is_found(lines: int) -> None:
    assert not judged(LINES[:lines]).ok


@given(st.integers(0, len(b"\n".join(LINES)) - 1))
def test_an_export_cut_at_any_octet_is_found(octets: int) -> None:
    assert not judged(b"\n".join(LINES)[:octets].split(b"\n")).ok


@given(st.integers(0, 10), st.integers(0, 3))
def test_an_export_cut_with_a_corrected_header_is_found_or_reported_as_shorter(
    records: int, checkpoints: int
) -> None:
    """Without anything kept, a beginning that ends with a checkpoint is a valid older log."""
    report = judged(forged(records, checkpoints))
    covered = 3 * checkpoints
    if not checkpoints:
        assert codes(report) == {"checkpoint.none"}
    elif records < covered:
        assert codes(report) == {"checkpoint.records"}
    else:
        assert report.ok
        assert (report.records, report.tree_size) == (records, records)
        assert (report.sealed, report.unsealed) == (covered, records - covered)


@given(st.integers(0, 10), st.integers(0, 3))
def test_with_a_kept_checkpoint_every_record_that_it_covers_must_be_there(
    records: int, checkpoints: int
) -> None:
    report = judged(forged(records, checkpoints), LAST)
    assert report.ok == (records >= 9)
    if records < 9:
        assert "checkpoint.records" in codes(report)
    else:
        assert (report.kept, report.sealed) == (9, 9)


@pytest.mark.parametrize("size", [3, 6, 9])
def test_every_kept_checkpoint_of_the_log_is_proven(size: int) -> None:
    report = judged(LINES, dict(LOG.notes)[size])
    assert report.ok
    assert report.kept == size


def test_a_kept_checkpoint_of_another_log_or_key_is_a_finding() -> None:
    other = sign(Checkpoint("other/log", 3, LOG.tree.root(3)), ORIGIN, LOG.key)
    assert codes(judged(LINES, other)) == {"checkpoint.origin"}
    assert codes(judged(LINES, make_log(9, seed=2).notes[0][1])) == {"audit.chain_broken"}
    assert codes(judged(LINES, "no checkpoint")) == {"checkpoint.malformed"}


def test_a_removed_checkpoint_is_found_where_time_has_passed() -> None:
    """The service signs within an hour; an hour of records without checkpoint lacks one."""
    log = MemoryLog()
    for number in range(6):
        log.add(record(number), recorded_at=START + dt.timedelta(minutes=25 * number))
        log.seal()
    log.notes = log.notes[:2]
    report = judged(log.export())
    assert [(f.code, f.place) for f in report.findings] == [("checkpoint.overdue", "record 2")]
    log.notes = log.notes[:2]
    log.seal()
    assert judged(log.export()).ok


def test_a_running_log_may_wait_for_its_first_checkpoint_but_not_long() -> None:
    log = MemoryLog()
    log.add(record(0), recorded_at=NOW - dt.timedelta(minutes=2))
    assert judged(log.export(), live=True).ok
    assert codes(judged(log.export())) == {"checkpoint.none"}
    log = MemoryLog()
    log.add(record(0), recorded_at=NOW - dt.timedelta(hours=2))
    assert codes(judged(log.export(), live=True)) == {"checkpoint.overdue"}


def test_a_part_of_a_log_proves_its_own_checkpoint_only() -> None:
    report = judged(LOG.part("call-1"), LAST)
    assert report.ok
    assert (report.tree_size, report.kept) == (9, 9)
    assert codes(judged(LOG.part("call-1"), FIRST)) == {"checkpoint.part"}


def test_a_record_without_time_zone_is_malformed() -> None:
    log = MemoryLog()
    log.add(record(0), recorded_at=START.replace(tzinfo=None))
    log.seal()
    assert codes(judged(log.export())) == {"record.malformed"}


@pytest.mark.parametrize(
    "text",
    [
        LAST,
        CHECKPOINTS[-1].decode(),
        json.dumps({"checkpoint": LAST, "size": 9}),
        "\ufeff" + json.dumps({"checkpoint": LAST, "size": 9}) + "\n",
    ],
)
def test_a_checkpoint_may_be_kept_in_each_form_it_is_sent_in(text: str) -> None:
    assert kept_note(text) == LAST
    assert parse_signed(LAST).note == LAST


@given(st.text(max_size=60))
def test_any_other_kept_text_is_left_to_the_parser(text: str) -> None:
    assert isinstance(kept_note("{" + text), str)
