"""``estctl audit verify`` and ``est-audit verify``: what an auditor sees, and kept checkpoints."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from audit.main import main as est_audit
from estclient.cli import main as estctl
from estcore.tlog import export
from estsuite_testing.memory_log import ORIGIN, MemoryLog, make_log

Verify = Callable[..., tuple[int, str]]


@pytest.fixture(params=["estctl", "est-audit"])
def verify(request: pytest.FixtureRequest, capsys: pytest.CaptureFixture[str]) -> Verify:
    """Run one of the two commands; returns exit code and output."""

    def run(*arguments: object) -> tuple[int, str]:
        words = [str(argument) for argument in arguments]
        if request.param == "est-audit":
            code = est_audit(["verify", *words])
        else:
            code = estctl(["audit", "verify", *words])
        captured = capsys.readouterr()
        return code, captured.out + captured.err

    return run


def written(folder: Path, log: MemoryLog, name: str = "audit.jsonl") -> Path:
    file = folder / name
    file.write_bytes(b"".join(line + b"\n" for line in log.export()))
    return file


def cut(folder: Path, log: MemoryLog, records: int, checkpoints: int) -> Path:
    """The beginning of the log with counts that fit it."""
    header = export.Header(ORIGIN, str(log.vkey), records, checkpoints).line()
    lines = log.export()
    after = len(log.records) + 1
    part = [header, *lines[1 : records + 1], *lines[after : after + checkpoints]]
    file = folder / "cut.jsonl"
    file.write_bytes(b"".join(line + b"\n" for line in part))
    return file


def test_an_auditor_sees_number_period_tree_checkpoints_signer_and_tail(
    tmp_path: Path, verify: Verify
) -> None:
    log = make_log(10)
    key = tmp_path / "audit.vkey"
    key.write_text(f"{log.vkey}\n")
    code, output = verify("--export", written(tmp_path, log), "--vkey", key)
    assert code == 0
    assert output.splitlines() == [
        "log               est.example.org/audit",
        "records           10",
        "period            2026-11-22T12:00:00.001000+00:00 to 2026-11-22T12:00:09.001000+00:00",
        "tree size         10",
        f"root hash         {log.tree.root().hex()}",
        "first checkpoint  3 records, the last recorded at 2026-11-22T12:00:02.001000+00:00",
        "last checkpoint   9 records, the last recorded at 2026-11-22T12:00:08.001000+00:00",
        f"signer            {ORIGIN}+{log.vkey.key_hash.hex()} (as given)",
        "unsealed          1 record after the last checkpoint, under no signature",
        "kept checkpoint   none given: records removed at the end would not show; give --checkpoint",
        "verified: 10 records, 3 checkpoints, sealed to 9",
    ]


def test_json_has_the_same_fields(tmp_path: Path, verify: Verify) -> None:
    log = make_log(9)
    code, output = verify("--export", written(tmp_path, log), "--json")
    report = json.loads(output)
    assert (code, report["ok"], report["records"], report["unsealed"]) == (0, True, 9, 0)
    assert report["root"] == log.tree.root().hex()
    assert report["signer"]["given"] is False
    assert set(report) >= {
        "tree_size", "first_recorded_at", "last_recorded_at", "first_checkpoint",
        "last_checkpoint", "sealed", "kept", "findings",
    }  # fmt: skip


def test_a_saved_checkpoint_reveals_a_truncated_export(tmp_path: Path, verify: Verify) -> None:
    log = make_log(9)
    note, again = tmp_path / "kept.note", tmp_path / "next.note"
    whole = written(tmp_path, log)
    assert verify("--export", whole, "--save-checkpoint", note)[0] == 0
    code, output = verify("--export", whole, "--checkpoint", note, "--save-checkpoint", again)
    assert code == 0
    assert "the log contains what it covers: 9 records" in output
    assert again.read_text() == note.read_text() == log.notes[-1][1]

    shorter = cut(tmp_path, log, 3, 1)
    code, output = verify("--export", shorter)
    assert code == 0
    assert "verified: 3 records, 1 checkpoint, sealed to 3" in output
    code, output = verify("--export", shorter, "--checkpoint", note)
    assert code == 1
    assert "it covers 9 records, the export has 3: 6 are missing [checkpoint.records]" in output
    assert "NOT verified, 1 finding:" in output


def test_an_export_without_checkpoints_does_not_verify(tmp_path: Path, verify: Verify) -> None:
    code, output = verify("--export", cut(tmp_path, make_log(9), 5, 0))
    assert code == 1
    assert "no checkpoint: nothing is signed [checkpoint.none]" in output


def test_many_findings_are_not_all_printed(tmp_path: Path, verify: Verify) -> None:
    file = written(tmp_path, make_log(60))
    file.write_bytes(file.read_bytes().replace(b"auth.denied", b"auth.passed"))
    code, output = verify("--export", file)
    assert code == 1
    assert "more findings; --json prints all" in output
    assert len(output.splitlines()) < 40


def test_files_that_cannot_be_used_are_named(tmp_path: Path, verify: Verify) -> None:
    whole = written(tmp_path, make_log(3))
    missing = tmp_path / "missing"
    for arguments in (
        ("--export", missing),
        ("--export", whole, "--checkpoint", missing),
        ("--export", whole, "--vkey", "no key"),
        ("--export", whole, "--renewal", whole),
        ("--export", whole, "--save-checkpoint", whole),
    ):
        code, output = verify(*arguments)
        assert code == 2, arguments
        assert output.splitlines()[-1].startswith(("estctl: ", "est-audit: "))
