"""The command est-frontend-srp: a front end for TLS-SRP alone, and its users."""

from __future__ import annotations

import getpass
import sys
from collections.abc import Sequence
from pathlib import Path

import click

from est_frontend.app import check as check_frontend
from est_frontend.app import migrate, serve
from est_frontend_srp.listener import SRPListener
from est_frontend_srp.settings import SRPFrontendSettings
from est_frontend_srp.verifier_file import Verifiers, set_user
from estcore.errors import ConfigurationError
from estcore.runtime.command_line import PATH
from estcore.runtime.console import console_script
from estcore.runtime.service import ServiceCommand
from estcore.runtime.settings import read_secret


def check(settings: SRPFrontendSettings) -> None:
    """Read what the settings name, as ``run`` would."""
    check_frontend(settings)
    Verifiers.load(settings.srp.verifiers_file)


async def run(settings: SRPFrontendSettings) -> None:
    """Serve until SIGTERM."""
    await serve(settings, SRPListener(settings))


_COMMAND = ServiceCommand(
    "est-frontend-srp",
    about="Speaks EST (RFC 7030) to clients over TLS-SRP.",
    distribution="estsuite-frontend-srp",
    prefix="EST_FRONTEND_SRP",
    settings=SRPFrontendSettings,
    run=run,
    migrate=migrate,
    check=check,
)


@_COMMAND.verb("user", "Write or remove the verifier of a user; asks for the password.")
@click.option("--name", required=True, help="Name of the user.")
@click.option("--password-file", type=PATH, help="Default: ask for the password, or read a pipe.")
@click.option("--remove", is_flag=True, help="Remove the user.")
@click.option(
    "--group",
    type=click.Choice([2048, 3072, 4096]),
    default=2048,
    help="Bits of the group, in a new file.",
)
async def _user(
    settings: SRPFrontendSettings, name: str, password_file: Path | None, remove: bool, group: int
) -> None:
    password = None if remove else _password(password_file)
    set_user(settings.srp.verifiers_file, name, password, group=group)


def _password(file: Path | None) -> str:
    if file is not None:
        return read_secret(file, "the password")
    if not sys.stdin.isatty():
        return sys.stdin.readline().rstrip("\n")
    first = getpass.getpass("Password: ")
    if getpass.getpass("Again: ") != first:
        raise ConfigurationError("the two passwords differ")
    return first


@console_script
def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point of ``est-frontend-srp``."""
    return _COMMAND.main(arguments)


if __name__ == "__main__":
    sys.exit(main())
