"""The command est-issuer: run, check-config."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

import click

from est_issuer.api import KubernetesAPI
from est_issuer.controller import Controller
from est_issuer.election import Election
from est_issuer.kinds import Key
from est_issuer.metrics import ISSUERS_READY, WAITING
from est_issuer.settings import PREFIX, IssuerSettings
from estcore.clock import SystemClock
from estcore.runtime import command_line, logs
from estcore.runtime.admin import AdminServer, note_build
from estcore.runtime.command_line import PATH, Group
from estcore.runtime.console import console_script
from estcore.runtime.logs import fields
from estcore.runtime.service import not_retrieved, run_jobs, stop_on_signals
from estcore.runtime.settings import load_settings
from estcore.runtime.terminal import write_line

log = logging.getLogger(__name__)
NAME, DISTRIBUTION = "est-issuer", "estsuite-issuer"
issuer = Group(
    NAME,
    distribution=DISTRIBUTION,
    help="Issues certificates of EST servers to cert-manager and Kubernetes.",
)
_config = click.option(
    "--config", type=PATH, help=f"YAML file with the settings; or {PREFIX}_CONFIG."
)


async def run(settings: IssuerSettings, stop: asyncio.Event) -> None:
    """Serve until ``stop``.

    Raises:
        ConfigurationError: the Kubernetes API cannot be used, or the admin port is taken.
    """
    api = await KubernetesAPI.connect(settings.kubeconfig_file)
    admin = AdminServer(settings.admin, {"Kubernetes API": lambda: api.answered})
    try:
        await admin.start()
        await _serve(settings, api, stop)
    finally:
        admin.stopping = True
        await admin.stop()
        await api.close()


async def _serve(settings: IssuerSettings, api: KubernetesAPI, stop: asyncio.Event) -> None:
    clock, lease = SystemClock(), settings.lease
    key = Key(settings.namespace, lease.name)
    election = Election(api, key, settings.instance, lease.duration_s, clock)

    async def work(ending: asyncio.Event) -> None:
        # A leader begins with nothing known: what happened before is in the objects.
        try:
            await Controller(api, settings, clock).run(ending)
        finally:
            ISSUERS_READY.clear()
            WAITING.set(0)

    async def candidate(stopping: asyncio.Event) -> None:
        await election.run(stopping, work)

    await run_jobs([candidate], stop=stop, stop_timeout_s=settings.stop_timeout_s)


@issuer.command("run", help="Serve until SIGTERM.")
@_config
def _run(config: Path | None) -> int:
    settings = load_settings(IssuerSettings, PREFIX, config)
    logs.configure(NAME, settings.instance, settings.telemetry.log_level)
    note_build(NAME, DISTRIBUTION)

    async def serve() -> None:
        asyncio.get_running_loop().set_exception_handler(not_retrieved)
        await run(settings, stop_on_signals())

    log.info("service starts", extra=fields(version=version(DISTRIBUTION)))
    try:
        asyncio.run(serve())
    except ExceptionGroup as group:
        first: BaseException = group
        while isinstance(first, BaseExceptionGroup):
            first = first.exceptions[0]
        log.error("service stops after a crash", exc_info=first)
        return command_line.EXIT_FAILED
    log.info("service stopped")
    return 0


@issuer.command("check-config", help="Read the settings.")
@_config
def _check(config: Path | None) -> None:
    load_settings(IssuerSettings, PREFIX, config)
    write_line("good")


@console_script
def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point of ``est-issuer``."""
    return command_line.run(issuer, NAME, arguments)
