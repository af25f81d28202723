"""``estctl probe``: check an installation by one round, or by one every minute."""

from __future__ import annotations

import asyncio
import logging
from functools import partial
from pathlib import Path

import click

from estclient.probe import metrics
from estclient.probe.report import Round
from estclient.probe.round import check_files, run_round
from estclient.probe.settings import ProbeSettings
from estcore.clock import Clock, SystemClock, monotonic_s
from estcore.runtime import logs
from estcore.runtime.admin import AdminServer
from estcore.runtime.command_line import PATH
from estcore.runtime.logs import fields
from estcore.runtime.service import sleep_or_stop, stop_on_signals
from estcore.runtime.settings import load_settings
from estcore.runtime.terminal import write_json, write_line

log = logging.getLogger(__name__)


@click.command("probe")
@click.argument("form", type=click.Choice(["run"]), default="run", required=False)
@click.option("--config", type=PATH, help="YAML file with the settings; or EST_PROBE_CONFIG.")
@click.option("--once", is_flag=True, help="One round; the exit code is its result.")
@click.option("--json", "as_json", is_flag=True, help="Print each round as a line of JSON.")
def probe(form: str, config: Path | None, once: bool, as_json: bool) -> int:
    """Check an installation: enroll, repeat, renew, verify; every minute until SIGTERM.

    Prints one line for each step. Exit code 0: no step of the (last) round failed; 1: one did;
    2: the settings cannot be used.
    """
    settings = load_settings(ProbeSettings, "EST_PROBE", config)
    logs.configure(
        "est-probe", settings.name, settings.telemetry.log_level if not once else "ERROR"
    )
    check_files(settings)
    clock = SystemClock()
    if not once:
        return asyncio.run(_serve(settings, clock, as_json=as_json))
    done = asyncio.run(run_round(settings, clock))
    _print(done, as_json=as_json)
    return 0 if done.complete else 1


async def _serve(settings: ProbeSettings, clock: Clock, *, as_json: bool) -> int:
    stop, started = stop_on_signals(), monotonic_s()
    last: list[Round] = []
    complete_at: list[float] = [started]
    metrics.LAST_COMPLETE_AGE.set_function(partial(_age, complete_at))
    admin = AdminServer(settings.admin, {"round": lambda: bool(last) and last[-1].complete})
    port = await admin.start()
    log.info("probe started", extra=fields(admin_port=port, every_s=settings.every_s))
    try:
        while not stop.is_set():
            begin = monotonic_s()
            done = await _until_stopped(settings, clock, stop)
            if done is None:
                break
            last[:] = [done]
            _count(done, clock, complete_at)
            _print(done, as_json=as_json)
            await sleep_or_stop(stop, max(begin + settings.every_s - monotonic_s(), 0.1))
    finally:
        await admin.stop()
    return 0 if not last or last[-1].complete else 1


async def _until_stopped(
    settings: ProbeSettings, clock: Clock, stop: asyncio.Event
) -> Round | None:
    """Run a round; None where the probe is to stop before its end."""
    async with asyncio.TaskGroup() as group:
        running = group.create_task(run_round(settings, clock))
        stopping = group.create_task(stop.wait())
        await asyncio.wait((running, stopping), return_when=asyncio.FIRST_COMPLETED)
        stopping.cancel()
        if not running.done():
            running.cancel()
            return None
    return running.result()


def _count(done: Round, clock: Clock, complete_at: list[float]) -> None:
    metrics.ROUNDS.labels("complete" if done.complete else "failed").inc()
    for step in done.steps:
        if step.result != "skipped":
            metrics.STEP_OK.labels(step.step).set(step.result == "ok")
    if done.complete:
        complete_at[:] = [monotonic_s()]
        metrics.LAST_COMPLETE.set(clock.now().timestamp())
        return
    failed = [f"{s.step}: {s.text} [{s.code}]" for s in done.steps if s.result == "failed"]
    log.warning("probe round failed", extra=fields(failed=failed, serial=done.serial))


def _age(complete_at: list[float]) -> float:
    return monotonic_s() - complete_at[0]


def _print(done: Round, *, as_json: bool) -> None:
    if as_json:
        write_json(done.document())
        return
    for line in done.lines():
        write_line(line)
