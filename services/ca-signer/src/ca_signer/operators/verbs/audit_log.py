"""Commands that est-audit answers: whether their operator may give them, and a record of each.

est-audit passes a command on as it came. The answer says who gave it; est-audit carries it out only
after it, so what an auditor read is in the ledger before it is sent.
"""

from __future__ import annotations

from ca_signer.operators.verb import Caller, CommandResult, Verb, Verbs, table
from estcore.messages.audit_queries import ARGUMENTS
from estcore.pki.profile import StrictModel
from estcore.policy.operators import Role
from estcore.runtime.database import Connection

SERVICE = "audit"
_AUDITORS: frozenset[Role] = frozenset({"auditor"})
_RETENTION: frozenset[Role] = frozenset({"retention"})
_SIEM: frozenset[Role] = frozenset({"siem"})
_ROLES: dict[str, frozenset[Role]] = {
    "audit-search": _AUDITORS,
    "audit-prove": _AUDITORS,
    "audit-tail": _AUDITORS,
    "audit-export": _AUDITORS,
    "audit-report": _AUDITORS,
    "audit-purge-propose": _RETENTION,
    "audit-purge-confirm": _RETENTION,
    "sink-status": _SIEM | _AUDITORS,
    "sink-dead-letters": _SIEM | _AUDITORS,
    "sink-test": _SIEM,
    "sink-replay": _SIEM,
    "sink-deliver": _SIEM,
}


def verbs() -> Verbs:
    """Return the verbs by name."""
    return table(
        *(Verb(name, _ROLES[name], model, _allow, reads=True) for name, model in ARGUMENTS.items())
    )


async def _allow(_: Connection, __: StrictModel, caller: Caller) -> CommandResult:
    return CommandResult({"operator": caller.name, "principal": caller.principal})
