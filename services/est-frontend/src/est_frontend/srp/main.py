"""The command est-frontend-srp: a front end for TLS-SRP alone, and its users."""

from __future__ import annotations

import argparse
import getpass
import importlib.util
import sys
from pathlib import Path

from est_frontend.app import serve
from est_frontend.audit_trail.trail import SERVICE
from est_frontend.main import check as check_frontend
from est_frontend.main import migrate
from est_frontend.srp.settings import SRPFrontendSettings
from estcore.errors import ConfigurationError
from estcore.runtime.console import console_script
from estcore.runtime.service import EXIT_CONFIGURATION, ServiceCommand
from estcore.runtime.settings import read_secret

NAME = f"{SERVICE}-srp"


def check(settings: SRPFrontendSettings) -> None:
    """Read what the settings name, as ``run`` would."""
    from est_frontend.srp.verifier_file import Verifiers  # needs the extra

    check_frontend(settings)
    Verifiers.load(settings.srp.verifiers_file)


async def run(settings: SRPFrontendSettings) -> None:
    """Serve until SIGTERM."""
    from est_frontend.srp.listener import SRPListener  # needs the extra

    await serve(settings, SRPListener(settings))


async def user(settings: SRPFrontendSettings, parsed: argparse.Namespace) -> None:
    """Write a user's verifier into the file, or take the user out."""
    from est_frontend.srp.verifier_file import set_user  # needs the extra

    password = None if parsed.remove else _password(parsed.password_file)
    set_user(settings.srp.verifiers_file, parsed.name, password, group=parsed.group)


def _password(file: Path | None) -> str:
    if file is not None:
        return read_secret(file, "the password")
    if not sys.stdin.isatty():
        return sys.stdin.readline().rstrip("\n")
    first = getpass.getpass("Password: ")
    if getpass.getpass("Again: ") != first:
        raise ConfigurationError("the two differ")
    return first


@console_script
def main() -> None:
    """Entry point of ``est-frontend-srp``."""
    if importlib.util.find_spec("tlslite") is None:
        sys.stderr.write(f"{NAME}: install estsuite-frontend[srp]\n")
        sys.exit(EXIT_CONFIGURATION)
    command = ServiceCommand(
        NAME,
        prefix="EST_FRONTEND_SRP",
        settings=SRPFrontendSettings,
        run=run,
        migrate=migrate,
        check=check,
    )
    parser = command.verb("user", "write a user's verifier; the password is asked for", user)
    parser.add_argument("--name", required=True)
    parser.add_argument("--password-file", type=Path, help="default: ask, or read a pipe")
    parser.add_argument("--remove", action="store_true", help="take the user out")
    parser.add_argument(
        "--group", type=int, choices=(2048, 3072, 4096), default=2048, help="bits, of a new file"
    )
    sys.exit(command.main())


if __name__ == "__main__":
    main()
