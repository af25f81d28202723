"""The Merkle tree of RFC 9162 section 2.1: roots, inclusion and consistency (pure).

``Frontier`` is all a writer keeps: the roots of the complete subtrees the tree falls into, at
most one for each bit of its size. ``Tree`` keeps every node, for making proofs.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence

from estcore.errors import AuditChainBroken

HASH_BYTES = 32
EMPTY_ROOT = hashlib.sha256().digest()
_sha256 = hashlib.sha256


def leaf_hash(leaf: bytes) -> bytes:
    """Return SHA-256(0x00 || leaf)."""
    return _sha256(b"\x00" + leaf).digest()


def node_hash(left_child: bytes, right_child: bytes) -> bytes:
    """Return SHA-256(0x01 || left child || right child)."""
    return _sha256(b"\x01" + left_child + right_child).digest()


class Frontier:
    """The right edge of a tree: enough to append and to know the root."""

    __slots__ = ("_hashes", "size")

    def __init__(self, size: int = 0, hashes: Iterable[bytes] = ()) -> None:
        self.size = size
        self._hashes = list(hashes)

    @classmethod
    def from_bytes(cls, size: int, data: bytes) -> Frontier:
        """Return the frontier ``to_bytes`` wrote.

        Raises:
            AuditChainBroken: the data do not fit the size.
        """
        if size < 0 or len(data) != size.bit_count() * HASH_BYTES:
            raise AuditChainBroken(f"a tree of {size} has no frontier of {len(data)} octets")
        return cls(size, (data[i : i + HASH_BYTES] for i in range(0, len(data), HASH_BYTES)))

    @property
    def hashes(self) -> list[bytes]:
        """The subtree roots, largest first."""
        return list(self._hashes)

    def to_bytes(self) -> bytes:
        """Return the subtree roots, largest first."""
        return b"".join(self._hashes)

    def copy(self) -> Frontier:
        """Return one that grows on its own."""
        return Frontier(self.size, self._hashes)

    def append(self, leaf: bytes) -> None:
        """Add the hash of the next leaf."""
        remaining, hashes = self.size, self._hashes
        while remaining & 1:
            leaf = node_hash(hashes.pop(), leaf)
            remaining >>= 1
        hashes.append(leaf)
        self.size += 1

    def root(self) -> bytes:
        """Return the root of the tree so far."""
        if not self._hashes:
            return EMPTY_ROOT
        root = self._hashes[-1]
        for left_child in reversed(self._hashes[:-1]):
            root = node_hash(left_child, root)
        return root


class Tree:
    """All complete subtrees of a growing list of leaf hashes.

    With an ``edge`` the leaves before it are not here: what needs no part of the tree within them
    works, that is roots and consistency proofs from the edge's size on, and inclusion behind it.
    """

    def __init__(self, leaves: Iterable[bytes] = (), edge: Frontier | None = None) -> None:
        self._levels: list[list[bytes]] = [[]]
        self._first = [0]
        """At which position each level begins here."""
        if edge is not None:
            self._begin(edge)
        for leaf in leaves:
            self.append(leaf)

    def _begin(self, edge: Frontier) -> None:
        hashes = edge.hashes
        levels = max(1, edge.size.bit_length())
        self._levels, self._first = [[] for _ in range(levels)], [0] * levels
        for level in range(edge.size.bit_length()):
            count = edge.size >> level
            if count & 1:
                self._levels[level].append(hashes.pop())
            self._first[level] = count - (count & 1)

    @property
    def size(self) -> int:
        """How many leaves there are."""
        return self._first[0] + len(self._levels[0])

    def append(self, leaf: bytes) -> None:
        """Add the hash of the next leaf."""
        level = 0
        self._levels[0].append(leaf)
        while (self._first[level] + len(nodes := self._levels[level])) % 2 == 0:
            level += 1
            if level == len(self._levels):
                self._levels.append([])
                self._first.append(0)
            self._levels[level].append(node_hash(nodes[-2], nodes[-1]))

    def pop(self) -> None:
        """Remove the last leaf, which was appended here."""
        level = 0
        while True:
            completed = (self._first[level] + len(self._levels[level])) % 2 == 0
            self._levels[level].pop()
            if not completed:
                return
            level += 1

    def root(self, size: int | None = None) -> bytes:
        """Return the root over the first ``size`` leaves (all of them by default)."""
        size = self.size if size is None else size
        self._has(size)
        return self._subtree(0, size) if size else EMPTY_ROOT

    def inclusion(self, index: int, size: int) -> list[bytes]:
        """Return the proof that leaf ``index`` is in the tree of ``size`` leaves (2.1.3.1)."""
        self._has(size)
        return [self._subtree(*part) for part in inclusion_ranges(index, size)]

    def consistency(self, old: int, new: int) -> list[bytes]:
        """Return the proof that the tree of ``new`` begins with that of ``old`` (2.1.4.1)."""
        self._has(new)
        return [self._subtree(*part) for part in consistency_ranges(old, new)]

    def _has(self, size: int) -> None:
        if not 0 <= size <= self.size:
            raise AuditChainBroken(f"the tree has {self.size} leaves, not {size}")

    def _subtree(self, start: int, end: int) -> bytes:
        width = end - start
        if width & (width - 1) == 0:
            level = width.bit_length() - 1
            position = start // width - self._first[level]
            if position < 0:
                raise AuditChainBroken(f"the leaves from {start} on are not here")
            return self._levels[level][position]
        middle = start + _split(width)
        return node_hash(self._subtree(start, middle), self._subtree(middle, end))


def inclusion_ranges(index: int, size: int) -> list[tuple[int, int]]:
    """Return the leaves [start, end) under each hash of an inclusion proof, in its order.

    Raises:
        AuditChainBroken: the tree has no such leaf.
    """
    if not 0 <= index < size:
        raise AuditChainBroken(f"leaf {index} is not in a tree of {size}")
    ranges: list[tuple[int, int]] = []
    start, end = 0, size
    while end - start > 1:
        middle = start + _split(end - start)
        if index < middle:
            ranges.append((middle, end))
            end = middle
        else:
            ranges.append((start, middle))
            start = middle
    return ranges[::-1]


def consistency_ranges(old: int, new: int) -> list[tuple[int, int]]:
    """Return the leaves [start, end) under each hash of a consistency proof, in its order.

    Raises:
        AuditChainBroken: there is none from the one size to the other.
    """
    if not 0 < old <= new:
        raise AuditChainBroken(f"no consistency proof from {old} to {new}")
    ranges: list[tuple[int, int]] = []
    start, end, complete = 0, new, True
    while old != end:
        middle = start + _split(end - start)
        if old <= middle:
            ranges.append((middle, end))
            end = middle
        else:
            ranges.append((start, middle))
            start, complete = middle, False
    if not complete:
        ranges.append((start, end))
    return ranges[::-1]


def _split(width: int) -> int:
    """The largest power of two smaller than ``width``."""
    power: int = 1 << ((width - 1).bit_length() - 1)
    return power


def verify_inclusion(
    leaf: bytes, index: int, size: int, proof: Sequence[bytes], root: bytes
) -> None:
    """Check by RFC 9162 section 2.1.3.2 that the leaf hash stands at ``index``.

    Raises:
        AuditChainBroken: it does not.
    """
    if not 0 <= index < size:
        raise AuditChainBroken(f"leaf {index} is not in a tree of {size}")
    fn, sn, computed = index, size - 1, leaf
    for sibling in proof:
        if sn == 0:
            raise AuditChainBroken(f"inclusion proof of leaf {index} is too long")
        if fn & 1 or fn == sn:
            computed = node_hash(sibling, computed)
            while fn and not fn & 1:
                fn, sn = fn >> 1, sn >> 1
        else:
            computed = node_hash(computed, sibling)
        fn, sn = fn >> 1, sn >> 1
    if sn != 0 or computed != root:
        raise AuditChainBroken(f"leaf {index} is not under the root of size {size}")


def verify_consistency(
    old: int, new: int, proof: Sequence[bytes], old_root: bytes, new_root: bytes
) -> None:
    """Check by RFC 9162 section 2.1.4.2 that the newer tree begins with the older one.

    Raises:
        AuditChainBroken: it does not.
    """
    wrong = AuditChainBroken(f"the tree of {new} does not begin with the tree of {old}")
    if not 0 < old <= new:
        raise wrong
    if old == new:
        if proof or old_root != new_root:
            raise wrong
        return
    path = list(proof) if old & (old - 1) else [old_root, *proof]
    if not path:
        raise wrong
    first, second = _both_roots(old - 1, new - 1, path, wrong)
    if first != old_root or second != new_root:
        raise wrong


def _both_roots(
    fn: int, sn: int, path: Sequence[bytes], wrong: AuditChainBroken
) -> tuple[bytes, bytes]:
    while fn & 1:
        fn, sn = fn >> 1, sn >> 1
    first = second = path[0]
    for sibling in path[1:]:
        if sn == 0:
            raise wrong
        if fn & 1 or fn == sn:
            first, second = node_hash(sibling, first), node_hash(sibling, second)
            while fn and not fn & 1:
                fn, sn = fn >> 1, sn >> 1
        else:
            second = node_hash(second, sibling)
        fn, sn = fn >> 1, sn >> 1
    if sn != 0:
        raise wrong
    return first, second
