"""Whatever tlslite raises of a connection ends it without an error in the log."""

from __future__ import annotations

import logging
import ssl
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import pytest

from est_frontend.rate_limits import Backoff
from est_frontend_srp.connection import Attempt, SRPConnection
from est_frontend_srp.tlslite import BaseTLSException
from est_frontend_srp.verifier_file import Verifiers, set_user

FAILURES: list[Exception] = [
    ConnectionResetError(104, "reset"),
    BrokenPipeError(),
    OSError(),
    OSError(5, "I/O error"),
    TimeoutError(),
    ssl.SSLError(1, "text"),
    ValueError("text"),
    BaseTLSException(),
    TypeError("x"),
    AssertionError(),
    IndexError(),
    StopIteration(),
]


class RaisingEngine:
    """A tlslite connection of which every step raises."""

    closed = False

    def __init__(self, error: Exception) -> None:
        self._error = error

    def _fail(self, *_: object) -> Iterator[int]:
        raise self._error
        yield 0

    readAsync = writeAsync = closeAsync = _fail  # noqa: N815 - tlslite's names

    def send_alert(self, alert: int) -> None:
        del alert


@pytest.mark.parametrize(
    "error",
    FAILURES,
    ids=repr,
)
def test_every_failure_of_tlslite_is_quiet(
    error: Exception, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    file = tmp_path / "srp.yaml"
    set_user(file, "alice", "correct horse battery")
    attempt = Attempt(Verifiers.load(file), Backoff(free=5, longest_s=300), "here")
    refused: list[bool] = []
    connection = SRPConnection(
        attempt, lambda: refused.append(True), ssl.MemoryBIO(), ssl.MemoryBIO()
    )
    raising = RaisingEngine(error)
    connection._engine = cast("Any", raising)
    connection._handshake = raising._fail()
    for act in (
        connection.do_handshake,
        connection.read,
        lambda: connection.write(b"x"),
        connection.unwrap,
    ):
        with pytest.raises(ssl.SSLError):
            act()
    assert refused == [True]
    assert not attempt.proved
    assert len(caplog.records) <= 1
    assert all(r.levelno <= logging.INFO and r.exc_info is None for r in caplog.records)
