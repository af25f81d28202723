"""``estctl agent``: keep the certificates of this host fresh; run, status, check."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from estcore.runtime.command_line import CONTEXT, EXIT_FAILED, PATH, Group, options
from estcore.runtime.terminal import write_json, write_line

_EXIT_ATTENTION = 3
_config: Callable[[Any], Any] = click.option(
    "--config", type=PATH, help="Settings of a host or a definition; or EST_AGENT_CONFIG."
)
_once = options(
    click.option(
        "--once",
        is_flag=True,
        help="Enroll or renew what is due, then end: 0 done, 1 failed, 2 settings, 3 needs "
        "attention, 4 waits for approval.",
    ),
    click.option(
        "--timeout",
        "timeout_s",
        type=click.FloatRange(1, 86_400),
        default=120,
        help="Seconds that --once may take.",
    ),
)


@click.group("agent", cls=Group, context_settings=CONTEXT, invoke_without_command=True)
@_config
@_once
@click.pass_context
def agent(ctx: click.Context, config: Path | None, once: bool, timeout_s: float) -> int | None:
    """Keep the certificates of this host fresh until SIGTERM.

    The agent enrolls, renews, writes the files of each service, makes it reload, and proves that
    it uses the new certificate. Without a verb: run.
    """
    if ctx.invoked_subcommand is not None:
        return None
    return _run(config, once=once, timeout_s=timeout_s)


@agent.command("run")
@_config
@_once
def run(config: Path | None, once: bool, timeout_s: float) -> int:
    """Keep certificates fresh until SIGTERM; the verb may be left out."""
    return _run(_named(config), once=once, timeout_s=timeout_s)


@agent.command("status")
@_config
@click.option("--json", "as_json", is_flag=True, help="Print the status as JSON.")
def status(config: Path | None, as_json: bool) -> int:
    """Show every certificate and its state.

    Exit code 0: all are valid and the agent runs; 3: one needs attention; 1: anything else.
    """
    from estclient.agent.definition_folder import load_agent
    from estclient.agent.status_file import read_status, table
    from estcore.clock import SystemClock

    host, _ = load_agent(_named(config))
    report = read_status(host.state_folder)
    if as_json:
        write_json(report, indent=1)
    else:
        for line in table(report, SystemClock().now()):
            write_line(line)
    states = {facts["state"] for facts in report["definitions"].values()}
    if "needs attention" in states or report.get("problems"):
        return _EXIT_ATTENTION
    return 0 if report["running"] and states <= {"valid"} else EXIT_FAILED


@agent.command("check")
@_config
def check(config: Path | None) -> int:
    """Check settings and definitions without a connection.

    Exit code 2: one cannot be used.
    """
    from estclient.agent.definition_folder import load_agent

    _, definitions = load_agent(_named(config))
    definitions.read()
    for name, definition in sorted(definitions.good.items()):
        if name not in definitions.problems:
            write_line(f"{name}: good, store {definition.settings.store}")
    for name, problem in sorted(definitions.problems.items()):
        write_line(f"{name}: {problem.reason} [{problem.code}]")
    return 2 if definitions.problems else 0


def _named(config: Path | None) -> Path | None:
    """Return the file given to the verb, or before it."""
    above = click.get_current_context().parent
    before: Path | None = above.params.get("config") if above is not None else None
    return config or before


def _run(config: Path | None, *, once: bool, timeout_s: float) -> int:
    from estclient.agent.agent import Agent
    from estclient.agent.definition_folder import DefinitionFolder, load_agent
    from estclient.agent.host import Host
    from estcore.runtime import logs
    from estcore.runtime.service import stop_on_signals

    settings, definitions = load_agent(config)
    logs.configure("est-agent", settings.name, settings.telemetry.log_level, text_on_terminal=True)
    if not isinstance(definitions, DefinitionFolder):
        for definition in definitions.good.values():
            Agent(definition.settings).check()

    async def serve() -> int:
        host = Host(settings, definitions)
        if once:
            return await host.once(timeout_s)
        asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, host.reload.set)
        await host.run(stop_on_signals())
        return 0

    return asyncio.run(serve())
