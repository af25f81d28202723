"""Execute one signed command of an operator.

1. Verify the signature by the certificate in the command, the form and the time.
2. Read the certificate's row: profile ``operator``, valid now, not revoked.
3. Find the operator in the policy, with a role that allows this verb.
4. Insert the ``command_id``. If it exists, the same command gets the same answer, another command
   is refused.
5. Execute it in the same transaction; a refused command is rolled back and recorded as refused.
6. Commit, with the answer and the audit record; then answer. The outbox publishes the record.

A failure before step 4 leaves no row, since every client of the topic could fill the table. It is
on record before it is answered.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from ca_signer import metrics
from ca_signer.issuance.decision_context import DecisionContext, parsed
from ca_signer.operators import audit_records
from ca_signer.operators.verb import Caller, CommandResult, Verb, Verbs
from ca_signer.publishing.publisher import EventPublisher
from ca_signer.settings import SERVICE
from estcore import ids
from estcore.errors import (
    Conflict,
    MalformedRequest,
    NotAuthenticated,
    NotAuthorized,
    RequestRejected,
)
from estcore.messages.audit import AuditRecord
from estcore.messages.commands import CommandAnswered, SignedCommand, check_time, read_command
from estcore.messages.envelope import decode, encode
from estcore.pki.names import canonical_name
from estcore.policy.internal_profiles import OPERATOR_PROFILE
from estcore.runtime.database import Connection, Database
from estcore.runtime.logs import fields

log = logging.getLogger(__name__)

_OPERATOR = """select issuer_id, serial_number, profile, certificate, revoked_at,
  not_after < now() as over
from fingerprint join issuance using (issuance_id, certificate_sha256)
where certificate_sha256 = $1 for share of issuance"""


@dataclass(kw_only=True, eq=False, slots=True)
class CommandExecutor:
    """Verifies commands and carries them out, each once."""

    database: Database
    publisher: EventPublisher
    decision_context: DecisionContext
    verbs: Verbs
    service: str = SERVICE
    """The service that the commands name: ca-signer, or the one that answers them."""
    changed: Callable[[], None] = lambda: None
    """Called after every commit: there is something to announce."""

    async def execute(self, verb: str, data: bytes) -> CommandAnswered:
        """Carry out a command that came on the topic of ``verb``; returns its answer.

        Raises:
            Unavailable: database or bus unavailable; the same command may be sent again.
        """
        signed: SignedCommand | None = None
        try:
            signed = read_command(data)
            self._check(signed, verb)
            checked = signed

            async def work(connection: Connection) -> CommandAnswered:
                return await self._carry_out(connection, checked)

            answer = await self.database.run(work)
        except RequestRejected as exc:
            return await self._turn_away(data, signed, exc)
        metrics.COMMANDS.labels(verb, answer.code or "done").inc()
        self.changed()
        return answer

    def _check(self, signed: SignedCommand, verb: str) -> None:
        command = signed.command
        if command.service != self.service or command.verb != verb or verb not in self.verbs:
            raise MalformedRequest("the command is for another topic", code="command.malformed")
        check_time(command, self.decision_context.clock.now())

    async def _carry_out(self, connection: Connection, signed: SignedCommand) -> CommandAnswered:
        command = signed.command
        verb = self.verbs[command.verb]
        caller = await self._caller(connection, signed)
        if not caller.roles & verb.roles:
            roles = " or ".join(sorted(verb.roles))
            raise NotAuthorized(f"{command.verb} is for the role {roles}", code="command.role")
        first = await connection.fetchval(
            "insert into command (command_id, digest, operator_sha256, operator, verb) "
            "values ($1, $2, $3, $4, $5) on conflict do nothing returning true",
            command.command_id,
            command.digest,
            signed.fingerprint,
            caller.name,
            command.verb,
        )
        if not first:
            return await self._again(connection, signed, verb, caller)
        now = self.decision_context.clock.now()
        answer, effect = await self._do(connection, signed, verb, caller)
        if isinstance(effect, RequestRejected):
            record = audit_records.refused(self.publisher, command, caller, effect, now)
        else:
            record = audit_records.executed(self.publisher, command, caller, effect, now)
        await self._keep(connection, answer, record, reads=verb.reads)
        log.info(
            "command answered",
            extra=fields(
                command_id=str(command.command_id),
                verb=command.verb,
                operator=caller.name,
                code=answer.code or "done",
            ),
        )
        return answer

    async def _caller(self, connection: Connection, signed: SignedCommand) -> Caller:
        row = await connection.fetchrow(_OPERATOR, signed.fingerprint)
        if row is None or row["profile"] != OPERATOR_PROFILE:
            raise NotAuthenticated(
                f"the certificate is none of profile {OPERATOR_PROFILE} in this ledger",
                code="command.operator",
            )
        if row["revoked_at"] is not None or row["over"]:
            raise NotAuthenticated("the operator's certificate is over", code="command.operator")
        subject = canonical_name(parsed(row["certificate"]).subject)
        if not self.decision_context.accepts(row["issuer_id"]):
            raise NotAuthenticated(
                "the issuer of the operator's certificate is retired", code="command.operator"
            )
        issuer = self.decision_context.family(row["issuer_id"])
        operator = self.decision_context.policy.operator(issuer, subject)
        if operator is None:
            raise NotAuthorized("the policy knows no such operator", code="command.operator")
        return Caller(
            name=operator.name,
            principal=f"certificate:{issuer}/{subject}",
            roles=frozenset(operator.roles),
            serial=ids.serial_hex(int.from_bytes(row["serial_number"], "big")),
            fingerprint=signed.fingerprint,
        )

    async def _do(
        self, connection: Connection, signed: SignedCommand, verb: Verb[Any], caller: Caller
    ) -> tuple[CommandAnswered, CommandResult | RequestRejected]:
        command_id = str(signed.command.command_id)
        try:
            arguments = verb.arguments.model_validate(signed.command.arguments)
        except ValidationError as exc:
            first = exc.errors(include_url=False, include_input=False)[0]
            place = ".".join(str(p) for p in first["loc"]) or "arguments"
            error: RequestRejected = MalformedRequest(
                f"{place}: {first['msg'].lower()}", code="command.arguments"
            )
            return _refusal(command_id, error), error
        try:
            async with connection.transaction():  # a savepoint: a refusal leaves nothing behind
                effect = await verb.run(connection, arguments, caller)
        except RequestRejected as exc:
            return _refusal(command_id, exc), exc
        done = CommandAnswered(command_id=command_id, outcome="done", result=effect.result)
        return done, effect

    async def _again(
        self, connection: Connection, signed: SignedCommand, verb: Verb[Any], caller: Caller
    ) -> CommandAnswered:
        row = await connection.fetchrow(
            "select digest, operator_sha256, answer from command where command_id = $1",
            signed.command.command_id,
        )
        if row is None or (row["digest"], row["operator_sha256"]) != (
            signed.command.digest,
            signed.fingerprint,
        ):
            raise Conflict("another command had this id", code="command.reused")
        answer = decode(CommandAnswered, row["answer"].encode())
        if verb.reads and answer.outcome == "done":
            answer, _ = await self._do(connection, signed, verb, caller)
        return answer

    async def _keep(
        self, connection: Connection, answer: CommandAnswered, record: AuditRecord, *, reads: bool
    ) -> None:
        stored = answer.model_copy(update={"result": None}) if reads else answer
        await connection.execute(
            "update command set answer = $2, announcement = $3 where command_id = $1",
            answer.command_id,
            encode(stored).decode(),
            encode(record).decode(),
        )

    async def _turn_away(
        self, data: bytes, signed: SignedCommand | None, error: RequestRejected
    ) -> CommandAnswered:
        metrics.COMMANDS.labels("refused", error.code).inc()
        log.warning("command refused", extra=fields(code=error.code, reason=error.reason))
        now = self.decision_context.clock.now()
        record = audit_records.turned_away(self.publisher, data, signed, error, now)
        await self.publisher.denials([record])
        return _refusal(str(signed.command.command_id) if signed else None, error)


def _refusal(command_id: str | None, error: RequestRejected) -> CommandAnswered:
    return CommandAnswered(
        command_id=command_id,
        outcome="refused",
        kind=type(error).__name__,
        code=error.code,
        reason=error.reason,
    )
