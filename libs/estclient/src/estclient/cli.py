"""``estctl``: the suite's command for people.

``agent`` keeps the certificates of a host fresh; ``probe`` checks an installation; ``audit verify``
checks an export of the audit log offline; ``policy explain`` shows which rule decides;
``trust`` pins a root; ``enroll``, ``renew``, ``prove``, ``csr`` and ``inspect`` work on files;
``password`` makes verifiers; ``cert``, ``requests``, ``bulk-revocation``, ``campaign``, ``secret``,
``submissions`` and ``ca`` send commands to ca-signer, ``sinks`` and parts of ``audit`` to
est-audit, signed by an operator's certificate. Each is imported when it is used.
"""

from __future__ import annotations

from collections.abc import Sequence

from estcore.runtime import command_line
from estcore.runtime.command_line import Group
from estcore.runtime.console import console_script

NAME = "estctl"
_OPERATORS = "estclient.operators.cli"
_VERBS = (
    ("agent", "estclient.cli_agent", "Keep the certificates of this host fresh; status, check."),
    (
        "trust",
        "estclient.cli_trust",
        "Fetch a root certificate, compare its fingerprint and pin it.",
    ),
    ("enroll", "estclient.cli_enroll", "Get a first certificate into a file."),
    ("enroll-csr", "estclient.cli_enroll", "Get a first certificate for a request in a file."),
    ("renew", "estclient.cli_enroll", "Replace a certificate in a file by a new one."),
    ("prove", "estclient.cli_enroll", "Prove that a renewed certificate is in use."),
    ("csr", "estclient.cli_enroll", "Make a certification request and its key."),
    ("inspect", "estclient.cli_inspect", "Show certificates, requests and lists of a file."),
    ("password", "estclient.cli_tools", "Print the verifiers of a password, for users_file."),
    ("policy", "estclient.cli_policy", "Explain what a policy file decides."),
    ("audit", "estclient.cli_tools", "Verify exports of the audit log offline."),
    ("secret", _OPERATORS, "Create, list or revoke enrollment secrets."),
    ("requests", _OPERATORS, "List, approve or reject requests awaiting approval."),
    ("bulk-revocation", _OPERATORS, "Revoke many certificates, confirmed by a second operator."),
    ("campaign", _OPERATORS, "Renew many certificates early, at a pace."),
    ("cert", _OPERATORS, "Look up, export, revoke or hold certificates."),
    ("ca", _OPERATORS, "Roll an issuer over to its next generation."),
    ("probe", "estclient.probe.cli", "Check an installation: enroll, repeat, renew, verify."),
    ("sinks", "estclient.operators.sinks", "Look after the receivers of the audit log."),
    ("submissions", _OPERATORS, "Resolve upstream submissions with an unknown outcome."),
)
"""Verb, the module that has it under the same name, and its help."""

estctl = Group(
    NAME, distribution="estsuite-client", help="EST client, renewal agent and operator tool."
)
for _verb, _module, _text in _VERBS:
    estctl.lazy(_verb, _module, _text)


@console_script
def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point of ``estctl``."""
    return command_line.run(estctl, NAME, arguments)
