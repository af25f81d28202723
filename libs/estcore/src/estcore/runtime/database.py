"""PostgreSQL: one small asyncpg pool a process, deadlines on everything, no dirty connections.

Statements are plain SQL in the adapters of each service; SQLAlchemy describes the tables and
Alembic moves them (docs/adr/0006). Units of work run shielded, so a client that hangs up never
cancels a transaction half way (asyncpg #464, sqlalchemy #6652).

Each schema has a table ``heartbeat`` with one row. A committed write to it shows that PostgreSQL
stores, which a read does not where the server is read-only or full, and returns PostgreSQL's time.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any, TypeVar

import asyncpg
from asyncpg.pool import PoolConnectionProxy

from estcore.errors import LedgerUnavailable
from estcore.runtime.clock_check import ClockCheck
from estcore.runtime.service import sleep_or_stop
from estcore.runtime.settings import DatabaseSettings, read_secret

Connection = PoolConnectionProxy
T = TypeVar("T")

RETRYABLE = (asyncpg.SerializationError, asyncpg.DeadlockDetectedError)
UNAVAILABLE = (
    OSError,
    TimeoutError,
    asyncpg.PostgresConnectionError,
    asyncpg.InterfaceError,
    asyncpg.InternalClientError,
    asyncpg.CannotConnectNowError,
    asyncpg.AdminShutdownError,
    asyncpg.CrashShutdownError,
    asyncpg.TooManyConnectionsError,
    asyncpg.QueryCanceledError,
    asyncpg.LockNotAvailableError,
    asyncpg.ReadOnlySQLTransactionError,
    asyncpg.InsufficientResourcesError,
    # The database or schema was dropped, renamed or not migrated yet.
    asyncpg.InvalidCatalogNameError,
    asyncpg.UndefinedTableError,
)
_RETRIES = 3
_HEARTBEAT = "update heartbeat set at = clock_timestamp() returning clock_timestamp()"
_HEARTBEAT_EVERY_S = 10.0
_HEARTBEAT_AGAIN_S = 1.0
_HEARTBEAT_TIMEOUT_S = 5.0


async def _keep_session(_: asyncpg.Connection[asyncpg.Record]) -> None:
    """Release a connection without asyncpg's reset query: a round trip after each statement.

    Settings are changed ``local`` to a transaction; a session that holds a lock is terminated.
    """


def connection_options(
    settings: DatabaseSettings, application_name: str, **session: str
) -> dict[str, Any]:
    """Return asyncpg's arguments for a connection; ``session`` are settings of PostgreSQL.

    Raises:
        ConfigurationError: a file cannot be read.
    """
    return {
        "dsn": settings.url,
        "password": _password(settings),
        "ssl": _tls(settings),
        "timeout": 5,
        "command_timeout": settings.statement_timeout_s + 5,
        "server_settings": {"application_name": application_name, **session},
    }


class Database:
    """A pool of connections to one schema."""

    def __init__(self, pool: asyncpg.Pool) -> None:
        self._pool = pool
        self._failed = False
        self.clock = ClockCheck(keep_s=60)

    @classmethod
    async def connect(cls, settings: DatabaseSettings, service: str, schema: str) -> Database:
        """Connect, retrying until PostgreSQL answers or the caller's deadline ends it."""
        while True:
            try:
                pool = await asyncpg.create_pool(
                    **connection_options(
                        settings,
                        service,
                        search_path=schema,
                        statement_timeout=f"{settings.statement_timeout_s}s",
                        lock_timeout=f"{settings.lock_timeout_s}s",
                        idle_in_transaction_session_timeout="30s",
                        timezone="UTC",
                        jit="off",  # it compiles for longer than any statement here runs
                    ),
                    min_size=1,
                    max_size=settings.pool_size,
                    max_inactive_connection_lifetime=300,
                    reset=_keep_session,
                )
            except UNAVAILABLE:
                await asyncio.sleep(0.5)
                continue
            return cls(pool)

    @property
    def ready(self) -> bool:
        """Nothing failed since the last heartbeat, and this machine's clock agrees with it."""
        return self.available and self.clock.right

    @property
    def available(self) -> bool:
        """Nothing failed since the last heartbeat."""
        return not self._failed

    @asynccontextmanager
    async def connection(self) -> AsyncIterator[Connection]:
        """Lend a connection outside a transaction (single statements commit by themselves).

        Raises:
            LedgerUnavailable: PostgreSQL is unavailable, read-only or too slow.
        """
        try:
            connection = await self._pool.acquire(timeout=5)
        except (asyncpg.PostgresError, *UNAVAILABLE) as exc:
            self._failed = True
            raise LedgerUnavailable(f"PostgreSQL: {_reason(exc)}") from exc
        try:
            yield connection
        except UNAVAILABLE as exc:
            self._failed = True
            raise LedgerUnavailable(f"PostgreSQL: {_reason(exc)}") from exc
        finally:
            await self._release(connection)

    async def run(self, work: Callable[[Connection], Awaitable[T]]) -> T:
        """Run ``work`` in one transaction, shielded from cancellation, retried on conflicts.

        Raises:
            LedgerUnavailable: PostgreSQL is unavailable, read-only or too slow; the outcome of
                ``work`` is unknown if the commit was under way.
        """
        return await asyncio.shield(asyncio.ensure_future(self._attempts(work)))

    async def _attempts(self, work: Callable[[Connection], Awaitable[T]]) -> T:
        for attempt in range(_RETRIES):
            try:
                async with self.connection() as connection, connection.transaction():
                    return await work(connection)
            except RETRYABLE as exc:
                if attempt == _RETRIES - 1:
                    raise LedgerUnavailable("PostgreSQL: too many conflicts") from exc
        raise AssertionError("unreachable")

    async def _release(self, connection: Connection) -> None:
        try:
            await self._pool.release(connection)
        except UNAVAILABLE:
            self._failed = True  # The connection is lost; the pool makes another one.

    async def alive(self) -> bool:
        """Write the heartbeat and compare the clocks; returns whether both are well."""
        try:
            async with asyncio.timeout(_HEARTBEAT_TIMEOUT_S), self.connection() as connection:
                now = await connection.fetchval(_HEARTBEAT)
        except (LedgerUnavailable, TimeoutError, asyncpg.PostgresError):
            self._failed = True
            return False
        if now is not None:
            self.clock.compared(now.timestamp())
        self._failed = False
        return self.ready

    async def watch(self, stop: asyncio.Event) -> None:
        """Write heartbeats until ``stop``, more often while something is wrong."""
        while True:
            well = await self.alive()
            if await sleep_or_stop(stop, _HEARTBEAT_EVERY_S if well else _HEARTBEAT_AGAIN_S):
                return

    async def close(self) -> None:
        """Close every connection; those in use have five seconds."""
        try:
            async with asyncio.timeout(5):
                await self._pool.close()
        except TimeoutError:
            self._pool.terminate()


def _reason(error: BaseException) -> str:
    if isinstance(error, asyncpg.UndefinedTableError):
        return "a table is not there yet; waiting for migrate"
    return type(error).__name__


def _password(settings: DatabaseSettings) -> str | None:
    if settings.password_file is None:
        return None
    return read_secret(settings.password_file, "the database password")


def _tls(settings: DatabaseSettings) -> ssl.SSLContext | bool:
    if settings.ca_file is None:
        return False
    return ssl.create_default_context(cafile=str(settings.ca_file))
