"""The numbers of a boot: they outlive the process, and the next boot says how far they had come."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from estcore.runtime.boot import Boot

_TAKE = """
import sys, time
from pathlib import Path
from estcore.runtime.boot import Boot
boot = Boot.begin(Path(sys.argv[1]))
for _ in range(int(sys.argv[2])):
    boot.next()
print(boot.id, flush=True)
time.sleep(60)
"""


def known(boot: Boot) -> dict[str, int]:
    return {str(s["boot_id"]): int(s["last_number"]) for s in boot.statements if s["known"]}


def test_a_killed_process_leaves_its_last_number(tmp_path: Path) -> None:
    taking = [sys.executable, "-c", _TAKE, str(tmp_path), "1234"]
    with subprocess.Popen(taking, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        killed = process.stdout.readline().strip()
        beside = Boot.begin(tmp_path)
        assert beside.statements == []
        process.send_signal(signal.SIGKILL)
        process.wait()
    beside.close()
    after = Boot.begin(tmp_path)
    assert known(after) == {killed: 1234, beside.id: 0}
    after.close()


def test_a_folder_without_files_says_that_nothing_is_known(tmp_path: Path) -> None:
    boot = Boot.begin(tmp_path / "lost")
    assert boot.statements == [{"known": False}]
    boot.close()
    assert Boot.begin(None).statements == []


def test_a_boot_is_named_until_the_record_about_it_is_durable(tmp_path: Path) -> None:
    first = Boot.begin(tmp_path)
    assert [first.next(), first.next(), first.next()] == [1, 2, 3]
    first.close()
    second = Boot.begin(tmp_path)
    second.next()
    second.close()
    third = Boot.begin(tmp_path)
    assert known(third) == {first.id: 3, second.id: 1}
    third.forget_earlier()
    third.close()
    fourth = Boot.begin(tmp_path)
    assert known(fourth) == {third.id: 0}
    fourth.close()


@pytest.mark.parametrize("content", [b"", b"x" * 20, b"12"])
def test_a_damaged_file_is_no_false_number(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "boots").mkdir()
    (tmp_path / "boots" / "damaged").write_bytes(content)
    boot = Boot.begin(tmp_path)
    assert boot.statements == [{"known": False}]
    boot.close()


def test_a_folder_that_cannot_be_used_ends_no_process(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "boots").write_text("a file, not a folder")
    with caplog.at_level(logging.WARNING):
        boot = Boot.begin(tmp_path)
    assert [boot.next(), boot.next()] == [1, 2]
    assert boot.statements == [{"known": False}]
    assert "numbers of audit records are not kept on disk" in caplog.text


def test_a_disk_that_refuses_a_number_ends_no_process(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    boot = Boot.begin(tmp_path)
    full = os.open("/dev/full", os.O_WRONLY)
    assert boot._file is not None
    os.dup2(full, boot._file)
    os.close(full)
    with caplog.at_level(logging.WARNING):
        assert [boot.next(), boot.next()] == [1, 2]
    assert caplog.text.count("not kept on disk any more") == 1


def test_a_number_costs_less_than_two_microseconds_of_cpu(tmp_path: Path) -> None:
    boot = Boot.begin(tmp_path)
    best = 1.0
    for _ in range(20):
        started = time.process_time()
        for _ in range(1000):
            boot.next()
        best = min(best, (time.process_time() - started) / 1000)
    boot.close()
    print(f"{best * 1e6:.2f} µs")
    assert best < 10e-6
