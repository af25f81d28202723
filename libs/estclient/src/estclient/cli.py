"""``estctl``: the suite's command for people.

``agent`` renews one service's certificate; ``audit verify`` checks an export of the audit log
offline; ``policy explain`` shows which rule decides; ``bootstrap`` pins a root; ``password``
makes verifiers; ``cert``, ``requests``, ``submissions`` and ``ca`` send commands to ca-signer,
signed by an operator's certificate.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from estclient import cli_tools
from estclient.agent.agent import run_agent
from estclient.agent.settings import AgentSettings
from estclient.operators import cli
from estcore.errors import ConfigurationError, ESTSuiteError
from estcore.runtime import log_verification, logs
from estcore.runtime.console import console_script
from estcore.runtime.service import stop_on_signals
from estcore.runtime.settings import load_settings


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="estctl")
    verbs = parser.add_subparsers(dest="verb", required=True)
    agent = verbs.add_parser("agent", help="keep one service's certificate fresh until SIGTERM")
    agent.add_argument("--config", type=Path, help="YAML settings; or EST_AGENT_CONFIG")
    cli_tools.add_verbs(verbs)
    audit = verbs.add_parser("audit", help="check exports of the audit log")
    checks = audit.add_subparsers(dest="check", required=True)
    offline = checks.add_parser("verify", help="hash chain, tree, checkpoints, gaps")
    offline.add_argument("--export", type=Path, required=True, help="from est-audit export")
    log_verification.add_arguments(offline)
    cli.add_verbs(verbs)
    return parser


def _default_folder() -> Path:
    return Path(os.environ.get("ESTSUITE_HOME", ".estsuite"))


async def _agent(config: Path | None) -> None:
    settings = load_settings(AgentSettings, "EST_AGENT", config)
    logs.configure("est-agent", settings.name, settings.telemetry.log_level)
    await run_agent(settings, stop_on_signals())


def _verify(arguments: argparse.Namespace) -> int:
    with log_verification.open_lines(arguments.export) as lines:
        report = log_verification.verify_log(lines, arguments)
    log_verification.print_report(report, as_json=arguments.json)
    return 0 if report.ok else 1


async def _run(arguments: argparse.Namespace) -> None:
    match arguments.verb:
        case "cert" | "requests" | "incident" | "ca" | "submissions":
            await cli.run(arguments, _default_folder(), os.environ)
        case "bootstrap":
            await cli_tools.run_bootstrap(arguments)
        case _:
            await _agent(arguments.config)


@console_script
def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point of ``estctl``."""
    parsed = _parser().parse_args(arguments)
    try:
        if parsed.verb == "audit":
            sys.exit(_verify(parsed))
        if parsed.verb == "policy":
            sys.exit(cli_tools.run_explain(parsed))
        if parsed.verb == "secret":
            cli_tools.run_secret(parsed)
        if parsed.verb == "password":
            cli_tools.run_password(parsed)
            return
        asyncio.run(_run(parsed))
    except ConfigurationError as exc:
        sys.stderr.write(f"estctl: {exc.reason} [{exc.code}]\n")
        sys.exit(2)
    except ESTSuiteError as exc:
        sys.stderr.write(f"estctl: {exc.reason} [{exc.code}]\n")
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(130)
