"""Entry point of ``ca-signer``: ceremonies and tokens without a service, the rest with it."""

from __future__ import annotations

from collections.abc import Sequence

import click

from estcore.runtime import command_line
from estcore.runtime.command_line import Group
from estcore.runtime.console import console_script

NAME = "ca-signer"
ca_signer = Group(
    NAME,
    distribution="estsuite-signer",
    help="Decides about certificate requests, records them and signs.",
)


@ca_signer.fallback
def _service() -> click.Group:
    from ca_signer.cli import service

    return service.COMMAND.group


# Both run offline, beside a key: they import no bus and no database.
ca_signer.lazy("ca", "ca_signer.cli.ca", "Create, extend and import CAs, offline.")
ca_signer.lazy("token", "ca_signer.cli.hsm", "List, generate and certify keys in a PKCS#11 token.")


@console_script
def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point of ``ca-signer``."""
    return command_line.run(ca_signer, NAME, arguments)
