"""Audit records of commands, carried out and refused."""

from __future__ import annotations

import datetime as dt
from hashlib import sha256

from pydantic import JsonValue

from ca_signer.operators.verb import Caller, CommandResult
from ca_signer.publishing.publisher import EventPublisher
from estcore import ids
from estcore.errors import RequestRejected
from estcore.messages.audit import Actor, AuditRecord, Target
from estcore.messages.commands import Command, SignedCommand

_LONGEST = 300


def executed(
    publisher: EventPublisher,
    command: Command,
    caller: Caller,
    effect: CommandResult,
    now: dt.datetime,
) -> AuditRecord:
    """Return the record of a command that was carried out."""
    arguments = _arguments(command)
    return publisher.audit_records.build.success(
        f"operator.{command.verb}",
        record_id=ids.record_id("command", str(command.command_id)),
        at=now,
        correlation_id=str(command.command_id),
        actor=_actor(caller),
        target=effect.target,
        details={**arguments, **effect.details},
    )


def refused(
    publisher: EventPublisher,
    command: Command,
    caller: Caller,
    error: RequestRejected,
    now: dt.datetime,
) -> AuditRecord:
    """Return the record of a command of a known operator that was refused for good."""
    return publisher.audit_records.build.failure(
        f"operator.{command.verb}",
        record_id=ids.record_id("command", str(command.command_id)),
        at=now,
        correlation_id=str(command.command_id),
        phase="denied",
        reason_code=error.code,
        reason=error.reason,
        severity="warning",
        actor=_actor(caller),
        details=_arguments(command),
    )


def turned_away(
    publisher: EventPublisher,
    data: bytes,
    signed: SignedCommand | None,
    error: RequestRejected,
    now: dt.datetime,
) -> AuditRecord:
    """Return the record of a rejected command without a known operator behind it.

    The same octets refused for the same reason are one record, however often they come.
    """
    fingerprint = signed.fingerprint.hex() if signed else None
    digest = sha256(data).hexdigest()
    name = ids.record_id("command-refused", digest, error.code, now.date().isoformat())
    return publisher.audit_records.build.failure(
        f"operator.{signed.command.verb}" if signed else "operator.unreadable",
        record_id=name,
        at=now,
        correlation_id=str(signed.command.command_id) if signed else name,
        phase="denied",
        reason_code=error.code,
        reason=error.reason,
        severity="warning",
        actor=Actor(type="human", auth_method="command", certificate_fingerprint=fingerprint),
        target=Target(issuer_id=None),
        details={"octets_sha256": digest},
    )


def _actor(caller: Caller) -> Actor:
    return Actor(
        type="human",
        subject=caller.principal,
        auth_method="command",
        certificate_serial=caller.serial,
        certificate_fingerprint=caller.fingerprint.hex(),
        rule=caller.name,
    )


def _arguments(command: Command) -> dict[str, JsonValue]:
    """Flat, short and never anything else than what was signed."""
    return {
        name: value if isinstance(value, bool | int) else str(value)[:_LONGEST]
        for name, value in command.arguments.items()
        if value is not None
    }
