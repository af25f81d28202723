"""PostgreSQL: one small asyncpg pool a process, deadlines on everything, no dirty connections.

Statements are plain SQL in the adapters of each service; SQLAlchemy describes the tables and
Alembic moves them (docs/adr/0006). Units of work run shielded, so a client that hangs up never
cancels a transaction half way (asyncpg #464, sqlalchemy #6652).
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import TypeVar

import asyncpg
from asyncpg.pool import PoolConnectionProxy

from estcore.errors import LedgerUnavailable
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
)
_RETRIES = 3


class Database:
    """A pool of connections to one schema."""

    def __init__(self, pool: asyncpg.Pool) -> None:
        self._pool = pool
        self._failed = False

    @classmethod
    async def connect(cls, settings: DatabaseSettings, service: str, schema: str) -> Database:
        """Connect, retrying until PostgreSQL answers or the caller's deadline ends it."""
        while True:
            try:
                pool = await asyncpg.create_pool(
                    settings.url,
                    password=_password(settings),
                    ssl=_tls(settings),
                    min_size=1,
                    max_size=settings.pool_size,
                    timeout=5,
                    command_timeout=settings.statement_timeout_s + 5,
                    max_inactive_connection_lifetime=300,
                    server_settings={
                        "application_name": service,
                        "search_path": schema,
                        "statement_timeout": f"{settings.statement_timeout_s}s",
                        "lock_timeout": f"{settings.lock_timeout_s}s",
                        "idle_in_transaction_session_timeout": "30s",
                        "timezone": "UTC",
                    },
                )
            except UNAVAILABLE:
                await asyncio.sleep(0.5)
                continue
            return cls(pool)

    @property
    def ready(self) -> bool:
        """The last attempt to use the database worked."""
        return not self._failed

    @asynccontextmanager
    async def connection(self) -> AsyncIterator[Connection]:
        """Lend a connection outside a transaction (single statements commit by themselves).

        Raises:
            LedgerUnavailable: PostgreSQL is unavailable, read-only or too slow.
        """
        try:
            async with self._pool.acquire(timeout=5) as connection:
                yield connection
        except UNAVAILABLE as exc:
            self._failed = True
            raise LedgerUnavailable(f"PostgreSQL: {type(exc).__name__}") from exc
        self._failed = False

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

    async def alive(self) -> bool:
        """Ask PostgreSQL a trivial question within two seconds."""
        try:
            async with asyncio.timeout(2), self.connection() as connection:
                await connection.fetchval("select 1")
        except (LedgerUnavailable, TimeoutError, *UNAVAILABLE):
            self._failed = True
            return False
        return True

    async def close(self) -> None:
        """Close every connection; those in use have five seconds."""
        try:
            async with asyncio.timeout(5):
                await self._pool.close()
        except TimeoutError:
            self._pool.terminate()


def _password(settings: DatabaseSettings) -> str | None:
    if settings.password_file is None:
        return None
    return read_secret(settings.password_file, "the database password")


def _tls(settings: DatabaseSettings) -> ssl.SSLContext | bool:
    if settings.ca_file is None:
        return False
    return ssl.create_default_context(cafile=str(settings.ca_file))
