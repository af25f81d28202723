"""``estctl``: the suite's command for people.

``agent`` renews one service's certificate; ``audit verify`` checks an export of the audit log
offline; ``policy explain`` shows which rule decides; ``bootstrap`` pins a root; ``password``
makes verifiers; ``cert``, ``requests``, ``incident``, ``submissions`` and ``ca`` send commands to
ca-signer, signed by an operator's certificate. Each is imported when it is used.
"""

from __future__ import annotations

from collections.abc import Sequence

import click

from estcore.runtime import command_line
from estcore.runtime.command_line import Group
from estcore.runtime.console import console_script

NAME = "estctl"
estctl = Group(
    NAME, distribution="estsuite-client", help="EST client, renewal agent and operator tool."
)


@estctl.lazy("agent", "Renew the certificate of one service until SIGTERM.")
def _agent() -> click.Command:
    from estclient import cli_tools

    return cli_tools.agent


@estctl.lazy("bootstrap", "Fetch a root certificate, compare its fingerprint and pin it.")
def _bootstrap() -> click.Command:
    from estclient import cli_bootstrap

    return cli_bootstrap.bootstrap


@estctl.lazy("password", "Print the verifiers of a password, for users_file.")
def _password() -> click.Command:
    from estclient import cli_tools

    return cli_tools.password


@estctl.lazy("policy", "Explain what a policy file decides.")
def _policy() -> click.Command:
    from estclient import cli_policy

    return cli_policy.policy


@estctl.lazy("audit", "Verify exports of the audit log offline.")
def _audit() -> click.Command:
    from estclient import cli_tools

    return cli_tools.audit


@estctl.lazy("secret", "Create, list or revoke enrollment secrets: runs ca-signer secret here.")
def _secret() -> click.Command:
    from estclient import cli_tools

    return cli_tools.secret


@estctl.lazy("requests", "List, approve or reject requests awaiting approval.")
def _requests() -> click.Command:
    from estclient.operators import cli

    return cli.requests


@estctl.lazy("incident", "Revoke many certificates, confirmed by a second operator.")
def _incident() -> click.Command:
    from estclient.operators import cli

    return cli.incident


@estctl.lazy("cert", "Look up, export, revoke or hold certificates.")
def _cert() -> click.Command:
    from estclient.operators import cli

    return cli.cert


@estctl.lazy("ca", "Roll an issuer over to its next generation.")
def _ca() -> click.Command:
    from estclient.operators import cli

    return cli.ca


@estctl.lazy("submissions", "Resolve upstream submissions with an unknown outcome.")
def _submissions() -> click.Command:
    from estclient.operators import cli

    return cli.submissions


@console_script
def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point of ``estctl``."""
    return command_line.run(estctl, NAME, arguments)
