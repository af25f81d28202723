"""Answer the signed commands of operators about the log: searches, proofs, purges, its sinks.

1. A command arrives as its operator signed it.
2. ca-signer verifies it and puts it on record: signature, certificate, role, time. Its answer is
   signed. Without it nothing is done.
3. It is carried out, and the operator answered.

Any replica answers; the database limits what one command may take.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import logging
import zlib
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from typing import Any

import asyncpg
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from pydantic import JsonValue

from audit import metrics, proofs, purge_orders, retention, search, sinks, store
from audit.checkpoint_key import verifier_key
from audit.requested_reports import RequestedReports
from audit.retention import Month
from audit.settings import SERVICE, Settings
from estcore.clock import Clock
from estcore.errors import Conflict, MalformedRequest, RequestRejected, Unavailable
from estcore.messages.audit_queries import (
    ARGUMENTS,
    AuditExport,
    AuditProve,
    AuditReport,
    AuditSearch,
    AuditTail,
    PurgeConfirmation,
    PurgeProposal,
    SinkDeadLetters,
    SinkReplay,
    SinkStatus,
    SinkTest,
)
from estcore.messages.commands import CommandAnswered, read_command
from estcore.messages.envelope import decode, encode
from estcore.messages.topics import command_topic
from estcore.pki.profile import StrictModel
from estcore.runtime.bus import Bus, Incoming
from estcore.runtime.database import Database
from estcore.runtime.logs import fields
from estcore.tlog.activity import Period

log = logging.getLogger(__name__)

SIGNER = "ca-signer"
_WAITING = 100
_WORKERS = 4
_VERIFIED_WITHIN_S = 5
_READ_WITHIN_S = 10
_SINK_S = 5
_DELIVER_S = 3
_LARGEST = 500_000
"""Octets of a part that is not compressed well, or of a proof: an answer is one message."""
_PART = 600_000
"""Octets of an export or of a file, before compression."""
Result = dict[str, JsonValue]
Read = Callable[[Any], Awaitable[Result]]


class AuditorCommands:
    """The job that answers auditors."""

    def __init__(
        self,
        bus: Bus,
        database: Database,
        settings: Settings,
        clock: Clock,
        key: Ed25519PrivateKey,
    ) -> None:
        """``key`` signs checkpoints, and the manifests of reports."""
        self._bus, self._database, self._clock = bus, database, clock
        self._retention, self._sinks = settings.retention, settings.sinks
        self._origin = settings.checkpoint.origin
        self._vkey = str(verifier_key(settings.checkpoint))
        self._reports = RequestedReports(database, self._origin, key, clock)
        self._queue: asyncio.Queue[tuple[str, Incoming]] = asyncio.Queue(_WAITING)
        self._verbs: Mapping[str, Read] = {
            "audit-search": self._search,
            "audit-prove": self._prove,
            "audit-tail": self._tail,
            "audit-export": self._export,
            "audit-report": self._report,
            "audit-purge-propose": self._propose,
            "audit-purge-confirm": self._confirm,
            "sink-status": self._sink_status,
            "sink-test": self._sink_test,
            "sink-replay": self._sink_replay,
            "sink-dead-letters": self._sink_dead_letters,
            "sink-deliver": self._sink_deliver,
        }

    async def run(self, stop: asyncio.Event) -> None:
        """Answer until ``stop``."""
        for verb in self._verbs:
            # ca-signer verifies the operator's signature.
            topic = command_topic(SERVICE, verb)
            await self._bus.subscribe(topic, self._arrived, queue=SERVICE, of_anyone=True)
        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(_WORKERS):
                    group.create_task(self._work(stop))
        finally:
            self._reports.close()

    async def _work(self, stop: asyncio.Event) -> None:
        while not stop.is_set():
            try:
                async with asyncio.timeout(0.5):
                    verb, message = await self._queue.get()
            except TimeoutError:
                continue
            answer = await self._answer(verb, message.payload)
            metrics.AUDITOR_COMMANDS.labels(verb, answer.code or "done").inc()
            try:
                await self._bus.answer(message, encode(answer))
            except Unavailable as exc:
                log.warning("reply not sent", extra=fields(code=exc.code))

    async def _arrived(self, message: Incoming) -> None:
        verb = message.topic.rpartition(".")[2]
        try:
            self._queue.put_nowait((verb, message))
        except asyncio.QueueFull:
            metrics.AUDITOR_COMMANDS.labels(verb, "overloaded").inc()  # not answered: sent again

    async def _answer(self, verb: str, data: bytes) -> CommandAnswered:
        try:
            allowed = await self._allowed(verb, data)
            if allowed.outcome != "done":
                return allowed
            async with asyncio.timeout(_READ_WITHIN_S):
                result = await self._verbs[verb](_arguments(verb, data))
                if verb == "audit-purge-propose":
                    result |= {"id": allowed.command_id}
        except RequestRejected as exc:
            return CommandAnswered(
                outcome="refused", kind=type(exc).__name__, code=exc.code, reason=exc.reason
            )
        except Unavailable as exc:
            log.warning("command not answered", extra=fields(code=exc.code, reason=exc.reason))
            return CommandAnswered(outcome="unavailable", code=exc.code, reason=exc.reason)
        except (TimeoutError, asyncpg.PostgresError) as exc:
            log.warning("command not answered", extra=fields(error=type(exc).__name__))
            return CommandAnswered(
                outcome="unavailable", code="ledger.unavailable", reason="the log was not read"
            )
        except Exception as exc:  # Bulkhead: no command of an auditor may end the writer.
            log.error("command failed", exc_info=exc)
            return CommandAnswered(outcome="unavailable", code="internal", reason="see the log")
        return allowed.model_copy(update={"result": result})

    async def _allowed(self, verb: str, data: bytes) -> CommandAnswered:
        """Have ca-signer verify and record a command; what it refuses is its answer.

        Raises:
            BusUnavailable: ca-signer does not answer.
        """
        answer = await self._bus.request(
            command_topic(SIGNER, verb), data, answered_by=(SIGNER,), timeout_s=_VERIFIED_WITHIN_S
        )
        return decode(CommandAnswered, answer)

    async def _search(self, arguments: AuditSearch) -> Result:
        async with self._database.connection() as connection:
            page = await search.search(connection, arguments)
        return {"records": page.rows, "next": page.next}  # type: ignore[dict-item]

    async def _tail(self, arguments: AuditTail) -> Result:
        async with self._database.connection() as connection:
            rows, following = await search.follow(connection, arguments)
        return {"records": rows, "next": following}  # type: ignore[dict-item]

    async def _export(self, arguments: AuditExport) -> Result:
        from audit import export  # SQLAlchemy, where an export is asked for

        async with self._database.connection() as connection:
            part = await export.part(
                connection,
                self._origin,
                self._vkey,
                size=arguments.size,
                start=arguments.record,
                checkpoint_from=arguments.checkpoint,
                octets=_PART,
            )
        return {
            "size": part.size,
            "lines": len(part.lines),
            "part": _packed(b"".join(line + b"\n" for line in part.lines)),
            "next_record": part.next_record,
            "next_checkpoint": part.next_checkpoint,
        }

    async def _report(self, arguments: AuditReport) -> Result:
        made = await self._reports.get(Period(arguments.since, arguments.until))
        if made is None:
            return {"ready": False}
        if arguments.file is None:
            sizes: dict[str, JsonValue] = {name: len(octets) for name, octets in made.files.items()}
            return {"ready": True, "manifest": made.manifest, "files": sizes}
        octets = made.files.get(arguments.file)
        if octets is None:
            raise Conflict("the report has no such file", code="command.unknown")
        part = octets[arguments.offset : arguments.offset + _PART]
        return {"ready": True, "octets": len(part), "part": _packed(part)}

    async def _propose(self, arguments: PurgeProposal) -> Result:
        month = Month.parse(arguments.month)
        async with self._database.connection() as connection:
            first, end = await retention.check_purge(
                connection, month, self._retention, self._clock.now()
            )
        return {"month": str(month), "records": end - first}

    async def _confirm(self, arguments: PurgeConfirmation) -> Result:
        now = self._clock.now()
        month = Month.parse(arguments.month)
        async with self._database.connection() as connection:
            await purge_orders.proposal(connection, arguments.id, str(month), now)
            first, end = await retention.check_purge(connection, month, self._retention, now)
        if end - first != arguments.records:
            raise Conflict(f"{month} has {end - first} records", code="retention.count")
        return {"month": str(month), "records": end - first, "id": arguments.id}

    async def _sink_status(self, _: SinkStatus) -> Result:
        async with self._database.connection() as connection:
            rows = await sinks.status(connection, self._sinks, self._clock)
        return {"sinks": rows}  # type: ignore[dict-item]

    async def _sink_test(self, arguments: SinkTest) -> Result:
        sink = sinks.named(self._sinks, arguments.sink)
        async with _within(_SINK_S, sink.name):
            reached = await sinks.test(sink, self._clock, send=arguments.send, by="operator")
        return {"sink": sink.name, "answer": reached}

    async def _sink_replay(self, arguments: SinkReplay) -> Result:
        sink = sinks.named(self._sinks, arguments.sink)
        async with self._database.connection() as connection:
            before = await sinks.replay(connection, sink, arguments.start)
        return {"sink": sink.name, "before": before, "next": arguments.start}

    async def _sink_dead_letters(self, arguments: SinkDeadLetters) -> Result:
        sink = sinks.named(self._sinks, arguments.sink)
        async with self._database.connection() as connection:
            found = await store.dead_letters(connection, sink.name, sinks.PAGE, _after(arguments))
            count = await store.count_dead_letters(connection, sink.name)
        following = found[-1][0] if found else None
        return {"records": _listed(found), "count": count, "after": following}

    async def _sink_deliver(self, arguments: SinkDeadLetters) -> Result:
        sink = sinks.named(self._sinks, arguments.sink)
        async with _within(_SINK_S + _DELIVER_S, sink.name):
            taken, refused, following = await sinks.deliver_dead_letters(
                self._database,
                sink,
                self._clock,
                after=_after(arguments),
                within_s=_DELIVER_S,
            )
        return {"delivered": taken, "refused": _listed(refused), "after": following}

    async def _prove(self, arguments: AuditProve) -> Result:
        async with self._database.connection() as connection:
            if arguments.index is not None:
                octets = (await proofs.inclusion(connection, arguments.index)).encode()
            else:
                octets = (await proofs.consistency(connection, arguments.old_size or 0)).encode()
        if len(octets) > _LARGEST:
            raise Conflict(
                "the record is too large for a message; use est-audit prove",
                code="proof.too_large",
            )
        return {"proof": octets.decode()}


@contextlib.asynccontextmanager
async def _within(seconds: float, name: str) -> AsyncIterator[None]:
    """Give a receiver so long, so that the operator gets an answer.

    Raises:
        Unavailable: it took longer.
    """
    try:
        async with asyncio.timeout(seconds):
            yield
    except TimeoutError as exc:
        raise Unavailable(f"{name}: no answer in {seconds:g} s", code="sink.unavailable") from exc


def _packed(octets: bytes) -> str:
    """Return octets compressed (RFC 1950), in base64.

    Raises:
        Conflict: they are too many for a message all the same.
    """
    packed = zlib.compress(octets)
    if len(packed) > _LARGEST:
        raise Conflict(
            "a record is too large for a message; use est-audit on its host",
            code="proof.too_large",
        )
    return base64.b64encode(packed).decode()


def _after(arguments: SinkDeadLetters) -> int:
    return -1 if arguments.after is None else arguments.after


def _listed(found: Sequence[tuple[int, str]]) -> list[JsonValue]:
    return [{"log_index": log_index, "reason": reason} for log_index, reason in found]


def _arguments(verb: str, data: bytes) -> StrictModel:
    """Return the arguments of a command, which ca-signer accepted by the same model."""
    try:
        return ARGUMENTS[verb].model_validate(read_command(data).command.arguments)
    except ValueError as exc:
        raise MalformedRequest("the arguments are wrong", code="command.arguments") from exc
