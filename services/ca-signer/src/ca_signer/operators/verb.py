"""Operator command definition: name, allowed roles, argument model, handler."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from pydantic import JsonValue

from estcore.messages.audit import Target
from estcore.pki.profile import StrictModel
from estcore.policy.operators import Role
from estcore.runtime.database import Connection

A = TypeVar("A", bound=StrictModel)


@dataclass(frozen=True)
class Caller:
    """The operator behind a command, as ledger and policy know it."""

    name: str
    principal: str
    roles: frozenset[Role]
    serial: str
    fingerprint: bytes


@dataclass(frozen=True)
class CommandResult:
    """What a command did: the answer's result and what its record is about."""

    result: dict[str, JsonValue]
    target: Target = field(default_factory=Target)
    details: Mapping[str, str | bool | int] = field(default_factory=dict)


@dataclass(frozen=True)
class Verb(Generic[A]):
    """One verb. ``run`` works in the caller's transaction and raises what refuses the command.

    A verb that ``reads`` is carried out again when it is repeated; its result is not kept.
    """

    name: str
    roles: frozenset[Role]
    arguments: type[A]
    run: Callable[[Connection, A, Caller], Awaitable[CommandResult]]
    reads: bool = False


Verbs = Mapping[str, Verb[Any]]


def table(*verbs: Verb[Any]) -> Verbs:
    """Return verbs by name."""
    return {verb.name: verb for verb in verbs}
