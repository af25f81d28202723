"""Operators of a signer under test: certificates through its own cycle, commands signed by hand."""

from __future__ import annotations

import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from ca_signer.operators.enrollment import decide_operator
from ca_signer.signing.internal_issuance import issue_internally
from estclient.est.keys import PrivateKey, make_csr, make_key
from estcore.clock import SystemClock
from estcore.messages.commands import Command, CommandAnswered, sign_command
from estsuite_testing.e2e_stack import POLICY
from estsuite_testing.signer_stack import SignerStack

OPERATORS = (
    ("boss", "CN=boss", ("approver", "revoker", "renewer", "auditor", "ca", "secrets")),
    ("approver", "CN=approver", ("approver",)),
    ("revoker", "CN=revoker", ("revoker",)),
    ("renewer", "CN=renewer", ("renewer",)),
    ("second", "CN=second", ("renewer", "revoker")),
    ("auditor", "CN=auditor", ("auditor",)),
    ("keeper", "CN=keeper", ("retention",)),
    ("siem", "CN=siem", ("siem",)),
    ("reader", "CN=reader", ("reader",)),
)


def policy_with_operators(folder: Path, *rules: dict[str, Any]) -> Path:
    """The end-to-end policy with operators, and more rules."""
    policy = yaml.safe_load(POLICY.read_text())
    policy["rules"] += rules
    policy["operators"] = [
        {
            "name": name,
            "certificate_issuer": "issuing",
            "certificate_subject": subject,
            "roles": list(roles),
        }
        for name, subject, roles in OPERATORS
    ]
    path = folder / "policy.yaml"
    path.write_text(yaml.safe_dump(policy))
    return path


@dataclass
class TestOperator:
    """A key, a certificate, and commands as they would travel."""

    __test__ = False
    key: PrivateKey
    certificate: bytes

    def command(
        self, verb: str, arguments: dict[str, Any] | None = None, **changes: Any
    ) -> Command:
        now = int(SystemClock().now().timestamp())
        values = {
            "command_id": uuid.uuid4(),
            "service": "ca-signer",
            "verb": verb,
            "arguments": arguments or {},
            "iat": now,
            "exp": now + 60,
        }
        return Command.model_validate(values | changes)

    def sign(self, command: Command) -> bytes:
        return sign_command(self.key, self.certificate, command).encode()

    async def give(
        self, signer: SignerStack, verb: str, arguments: dict[str, Any] | None = None, **more: Any
    ) -> CommandAnswered:
        """Give a command twice, as a bus may deliver it; both answers are the same.

        But for verbs that read, which have the present state.
        """
        data = self.sign(self.command(verb, arguments, **more))
        first = await signer.operations.executor.execute(verb, data)
        again = await signer.operations.executor.execute(verb, data)
        reads = verb.endswith(("-list", "-show"))
        assert again == first or (reads and again.code == first.code)
        return first


async def operator(signer: SignerStack, subject: str, algorithm: Any = "ec-p256") -> TestOperator:
    """Enroll an operator as ``ca-signer operator enroll`` does."""
    key = make_key(algorithm)
    found = decide_operator(make_csr(key, subject), "issuing", signer.decision_context)
    return TestOperator(key, await issue_internally(found, signer.resolver, signer.cycle))
