"""Lines that would repeat."""

from __future__ import annotations

import logging

import pytest

from estcore.runtime import logs
from estcore.runtime.logs import Repetition


def test_a_repeated_warning_is_written_when_it_changes_and_once_a_minute(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 1000.0
    monkeypatch.setattr(logs, "monotonic_s", lambda: now)
    line = Repetition(logging.getLogger("test"), "not there")

    def written() -> list[object]:
        found = [getattr(record, "fields", None) for record in caplog.records]
        caplog.clear()
        return found

    for _ in range(3):
        line.warn(code="a")
    assert written() == [{"code": "a"}]
    line.warn(code="b")
    assert written() == [{"code": "b"}]
    now += 59
    line.warn(code="b")
    assert written() == []
    now += 2
    line.warn(code="b")
    assert written() == [{"code": "b"}]
    line.over()
    line.warn(code="b")
    assert written() == [{"code": "b"}]
