"""Commands given beside the ledger, by a person with the signer's settings: on record like others.

Each is a row of ``command`` with its audit record, in the transaction that carries it out; the
outbox publishes the record. The actor is the user of the operating system.
"""

from __future__ import annotations

import getpass
import os
import socket
from collections.abc import Mapping
from hashlib import sha256

from ca_signer.publishing.publisher import EventPublisher
from estcore import ids
from estcore.clock import Clock
from estcore.messages.audit import Actor, Target
from estcore.messages.commands import CommandAnswered
from estcore.messages.envelope import encode
from estcore.runtime.database import Connection

_INSERT = """insert into command
  (command_id, digest, operator_sha256, operator, verb, answer, announcement)
values ($1, $2, $3, $4, $5, $6, $7)"""


def user_name() -> str:
    """Return the user of the operating system; its number where it has no name (a container)."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return f"uid-{os.getuid()}"


class Console:
    """Who works at this terminal, and where their commands are recorded."""

    def __init__(self, publisher: EventPublisher, clock: Clock) -> None:
        self._publisher = publisher
        self._clock = clock
        self.name = f"console:{user_name()}@{socket.gethostname()}"

    async def record(
        self,
        connection: Connection,
        verb: str,
        target: Target | None = None,
        details: Mapping[str, str | bool | int] | None = None,
    ) -> None:
        """Store that a command was carried out; call in its transaction."""
        command_id = ids.uuid7()
        record = self._publisher.audit_records.build.success(
            f"operator.{verb}",
            record_id=ids.record_id("command", command_id),
            at=self._clock.now(),
            correlation_id=command_id,
            actor=Actor(type="human", subject=self.name, auth_method="console"),
            target=target or Target(),
            details=details or {},
        )
        answer = CommandAnswered(command_id=command_id, outcome="done", result={})
        await connection.execute(
            _INSERT,
            command_id,
            sha256(command_id.encode()).digest(),
            sha256(self.name.encode()).digest(),
            self.name,
            verb,
            encode(answer).decode(),
            encode(record).decode(),
        )
