"""A clock of PostgreSQL that a program moves, for statements that ask the server for the time.

``now()`` and ``clock_timestamp()`` of a schema are found before those of PostgreSQL on connections
whose search path says so; other connections to the same server keep the real time.
"""

from __future__ import annotations

import datetime as dt

import asyncpg

_CREATE = """
create table renewal.simulated_clock (at timestamptz not null);
insert into renewal.simulated_clock select pg_catalog.now();
create function renewal.now() returns timestamptz language sql stable
    as 'select at from renewal.simulated_clock';
create function renewal.clock_timestamp() returns timestamptz language sql stable
    as 'select at from renewal.simulated_clock';
grant select on renewal.simulated_clock to public
"""
_DROP = """
drop function renewal.now();
drop function renewal.clock_timestamp();
drop table renewal.simulated_clock
"""
SEARCH_PATH = "renewal, pg_catalog"
"""Of the connections that have the simulated time."""


class SimulatedClock:
    """The time that statements of renewal see."""

    def __init__(self, admin: asyncpg.Connection) -> None:
        self._admin = admin

    async def create(self) -> None:
        """Begin at the real time."""
        await self._admin.execute(_CREATE)

    async def forward(self, seconds: float) -> dt.datetime:
        """Move the clock; returns the new time."""
        moved: dt.datetime = await self._admin.fetchval(
            "update renewal.simulated_clock set at = at + $1::interval returning at",
            dt.timedelta(seconds=seconds),
        )
        return moved

    async def remove(self) -> None:
        """Leave the schema as it was."""
        await self._admin.execute(_DROP)
