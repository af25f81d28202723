"""PostgreSQL by asyncpg and NATS by nats-py, over TLS, without reconnection."""

from __future__ import annotations

import contextlib
import ssl
from pathlib import Path

import asyncpg
import nats
from nats.aio.client import Client as NATSConnection

from estsuite_testing.reload.load import Connection

_WAIT_S = 10
_POSTGRESQL = (asyncpg.PostgresError, asyncpg.InterfaceError)


class PostgreSQLClient:
    """Connects as the superuser of the page's server."""

    alpn: tuple[str, ...] = ()

    def __init__(self, password_file: Path) -> None:
        self._password_file = password_file

    async def connect(self, port: int, context: ssl.SSLContext) -> Connection:
        """Connect to this machine.

        Raises:
            RuntimeError: the server refused.
        """
        try:
            session = await asyncpg.connect(
                host="localhost", port=port, user="postgres", database="postgres",
                password=self._password_file.read_text().strip(), ssl=context, timeout=_WAIT_S,
            )  # fmt: skip
        except _POSTGRESQL as exc:
            raise RuntimeError(repr(exc)) from exc
        return _Session(session)


class _Session:
    def __init__(self, connection: asyncpg.Connection) -> None:
        self._connection = connection

    async def request(self) -> None:
        """Select one.

        Raises:
            RuntimeError: another answer, or none.
        """
        try:
            answer = await self._connection.fetchval("select 1", timeout=_WAIT_S)
        except _POSTGRESQL as exc:
            raise RuntimeError(repr(exc)) from exc
        if answer != 1:
            raise RuntimeError(f"answered {answer!r}")

    def ended(self) -> bool:
        """Return whether the server ended the session."""
        return self._connection.is_closed()

    async def close(self) -> None:
        """End the session."""
        with contextlib.suppress(OSError, TimeoutError, *_POSTGRESQL):
            await self._connection.close(timeout=2)


class NATSClient:
    """Connects once; nats-py would otherwise hide what fails."""

    alpn: tuple[str, ...] = ()

    async def connect(self, port: int, context: ssl.SSLContext) -> Connection:
        """Connect to this machine.

        Raises:
            RuntimeError: there is no connection.
        """
        failures: list[Exception] = []

        async def note(error: Exception) -> None:
            failures.append(error)

        try:
            connection = await nats.connect(
                f"tls://127.0.0.1:{port}", tls=context, tls_hostname="localhost",
                allow_reconnect=False, connect_timeout=_WAIT_S, error_cb=note,
            )  # fmt: skip
        except nats.errors.Error as exc:
            raise RuntimeError(f"{exc!r} {failures}") from exc
        subscription = await connection.subscribe("reload.>")
        return _Subscribed(connection, subscription, failures)


class _Subscribed:
    def __init__(
        self, connection: NATSConnection, subscription: object, failures: list[Exception]
    ) -> None:
        self._connection, self._subscription = connection, subscription
        self._failures = failures

    async def request(self) -> None:
        """Publish a message and receive it.

        Raises:
            RuntimeError: it did not come back.
        """
        try:
            await self._connection.publish("reload.test", b"ok")
            message = await self._subscription.next_msg(timeout=_WAIT_S)  # type: ignore[attr-defined]
        except nats.errors.Error as exc:
            raise RuntimeError(f"{exc} {self._failures}") from exc
        if message.data != b"ok":
            raise RuntimeError(f"received {message.data!r}")

    def ended(self) -> bool:
        """Return whether the server ended the connection."""
        return self._connection.is_closed

    async def close(self) -> None:
        """End the connection."""
        await self._connection.close()
