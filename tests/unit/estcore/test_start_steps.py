"""Steps of a start that need bus or database: waited for, not ended by."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket

import pytest

from estcore.errors import BusUnavailable, ConfigurationError
from estcore.runtime import logs
from estcore.runtime.service import done_or_stop, not_retrieved, run_jobs, stop_on_signals


async def test_a_step_is_tried_until_it_is_done() -> None:
    tries: list[int] = []

    async def step() -> None:
        tries.append(1)
        if len(tries) < 3:
            raise BusUnavailable("away")

    assert await done_or_stop(asyncio.Event(), step, "publish state")
    assert len(tries) == 3


async def test_a_process_that_stops_waits_no_longer() -> None:
    stop = asyncio.Event()

    async def step() -> None:
        stop.set()
        raise BusUnavailable("away")

    assert not await done_or_stop(stop, step, "publish state")


async def test_what_does_not_pass_ends_the_start() -> None:
    async def step() -> None:
        raise ConfigurationError("wrong")

    with pytest.raises(ConfigurationError):
        await done_or_stop(asyncio.Event(), step, "publish state")


@pytest.mark.logs_errors("never retrieved")
async def test_a_look_up_that_fails_after_its_deadline_is_no_error(
    caplog: pytest.LogCaptureFixture,
) -> None:
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(not_retrieved)
    try:
        for error in (socket.gaierror(-3, "try again"), ValueError("a defect")):
            loop.call_exception_handler({"message": "never retrieved", "exception": error})
    finally:
        loop.set_exception_handler(None)
    assert "gaierror" not in caplog.text
    assert "a defect" in caplog.text


async def test_a_stop_names_its_signal_and_what_was_finished(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO, "estcore.runtime.service")
    stop = stop_on_signals()
    try:

        async def work(stopping: asyncio.Event) -> None:
            await stopping.wait()

        os.kill(os.getpid(), signal.SIGTERM)
        await run_jobs([work], stop=stop, stop_timeout_s=5)
    finally:
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().remove_signal_handler(number)
    said = [(r.getMessage(), r.__dict__["fields"]) for r in caplog.records]
    assert said[0] == ("service stops", {"signal": "SIGTERM"})
    assert said[1][0] == "jobs finished what they held"
    assert said[1][1]["cut_off"] == 0


def test_what_asyncio_says_of_each_end_of_tls_is_dropped(
    capsys: pytest.CaptureFixture[str],
) -> None:
    root = logging.getLogger()
    before = root.handlers[:], root.level
    try:
        logs.configure("ca-signer", "one", "INFO")
        asyncio_log = logging.getLogger("asyncio")
        asyncio_log.warning("returning true from eof_received() has no effect when using ssl")
        asyncio_log.warning("socket.send() raised exception.")
    finally:
        root.handlers[:], root.level = before
    (line,) = capsys.readouterr().err.splitlines()
    assert "socket.send" in line
