"""The tree of the log in tiles of 256 hashes (C2SP tlog-tiles), and proofs from them.

A tile of level 0 has the hashes of 256 leaves, one of level 1 the roots of 256 tiles of level 0,
and so on; only whole tiles are kept. A proof reads some tiles and the records after the last tile.
Tiles are written behind the log, and stay when the records below them are purged.
"""

from __future__ import annotations

from audit import store
from estcore.errors import AuditChainBroken
from estcore.runtime.database import Connection
from estcore.tlog.tree import (
    HASH_BYTES,
    Frontier,
    consistency_ranges,
    inclusion_ranges,
    node_hash,
)

WIDTH = 256
_HEIGHT = 8
_ADD = """
insert into tile (level, position, hashes, root) values ($1, $2, $3, $4) on conflict do nothing
"""
_ROOTS = """
select root from tile where level = $1 and position >= $2 and position < $3 order by position
"""


async def count(connection: Connection) -> int:
    """Return how many tiles of level 0 there are."""
    return int(
        await connection.fetchval("select coalesce(max(position) + 1, 0) from tile where level = 0")
    )


async def add_next(connection: Connection, position: int) -> None:
    """Add the tile of level 0 at a position, and those above that it completes.

    Raises:
        AuditChainBroken: the records of the tile are not in the log.
    """
    hashes = await store.leaf_hashes(connection, position * WIDTH, (position + 1) * WIDTH)
    if len(hashes) != WIDTH:
        raise AuditChainBroken(f"the records of tile {position} are not in the log")
    level = 0
    async with connection.transaction():
        while True:
            await connection.execute(_ADD, level, position, b"".join(hashes), _root(hashes))
            position, place = divmod(position + 1, WIDTH)
            if place:
                return
            position, level = position - 1, level + 1
            first = position * WIDTH
            rows = await connection.fetch(_ROOTS, level - 1, first, first + WIDTH)
            hashes = [row[0] for row in rows]


async def leaf_hashes(connection: Connection, start: int, end: int) -> list[bytes]:
    """Return the hashes of the leaves [start, end), in order; of purged records too."""
    tiles = min(await count(connection) * WIDTH, end)
    hashes: list[bytes] = []
    if start < tiles:
        rows = await connection.fetch(
            "select hashes from tile where level = 0 and position >= $1 and position < $2"
            " order by position",
            start // WIDTH,
            -(-tiles // WIDTH),
        )
        octets = b"".join(row[0] for row in rows)
        skipped = start % WIDTH * HASH_BYTES
        octets = octets[skipped : skipped + (tiles - start) * HASH_BYTES]
        hashes = [octets[i : i + HASH_BYTES] for i in range(0, len(octets), HASH_BYTES)]
    if end > max(start, tiles):
        hashes += await store.leaf_hashes(connection, max(start, tiles), end)
    return hashes


class TreeReader:
    """Subtrees of the log, read when they are asked for."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._tiles: dict[tuple[int, int], list[bytes] | None] = {}

    async def inclusion(self, index: int, size: int) -> list[bytes]:
        """Return the proof that leaf ``index`` is in the tree of ``size`` leaves."""
        return [await self._subtree(*part) for part in inclusion_ranges(index, size)]

    async def consistency(self, old: int, new: int) -> list[bytes]:
        """Return the proof that the tree of ``new`` begins with that of ``old``."""
        return [await self._subtree(*part) for part in consistency_ranges(old, new)]

    async def frontier(self, size: int) -> Frontier:
        """Return the right edge of the tree of ``size`` leaves."""
        hashes, start = [], 0
        for bit in range(size.bit_length() - 1, -1, -1):
            if size >> bit & 1:
                hashes.append(await self._subtree(start, start + (1 << bit)))
                start += 1 << bit
        return Frontier(size, hashes)

    async def _subtree(self, start: int, end: int) -> bytes:
        width = end - start
        if width & (width - 1) == 0:
            return await self._node(width.bit_length() - 1, start // width)
        middle = start + (1 << ((width - 1).bit_length() - 1))
        return node_hash(await self._subtree(start, middle), await self._subtree(middle, end))

    async def _node(self, level: int, position: int) -> bytes:
        tile_level, inner = divmod(level, _HEIGHT)
        number, place = divmod(position << inner, WIDTH)
        hashes = await self._tile(tile_level, number)
        if hashes is None:
            left, right = 2 * position, 2 * position + 1
            return node_hash(await self._node(level - 1, left), await self._node(level - 1, right))
        if place + (1 << inner) > len(hashes):
            raise AuditChainBroken(f"the log has no hash of level {level} at {position}")
        return _root(hashes[place : place + (1 << inner)])

    async def _tile(self, level: int, number: int) -> list[bytes] | None:
        """Return the hashes of a tile; of one that is not whole those of its records, or None."""
        if (level, number) not in self._tiles:
            octets = await self._connection.fetchval(
                "select hashes from tile where level = $1 and position = $2", level, number
            )
            hashes: list[bytes] | None = None
            if octets is not None:
                hashes = [octets[i : i + HASH_BYTES] for i in range(0, len(octets), HASH_BYTES)]
            elif level == 0:
                start = number * WIDTH
                hashes = await store.leaf_hashes(self._connection, start, start + WIDTH)
            self._tiles[level, number] = hashes
        return self._tiles[level, number]


def _root(hashes: list[bytes]) -> bytes:
    """Return the root over a power of two of hashes."""
    while len(hashes) > 1:
        hashes = [node_hash(*hashes[i : i + 2]) for i in range(0, len(hashes), 2)]
    return hashes[0]
