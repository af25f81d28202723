"""The Merkle tree against RFC 9162's definitions written down a second time."""

from __future__ import annotations

import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from estcore.errors import AuditChainBroken
from estcore.tlog.tree import (
    EMPTY_ROOT,
    Frontier,
    Tree,
    leaf_hash,
    verify_consistency,
    verify_inclusion,
)

sizes = st.integers(min_value=1, max_value=130)


def leaves(count: int) -> list[bytes]:
    return [leaf_hash(str(i).encode()) for i in range(count)]


def by_definition(hashes: list[bytes]) -> bytes:
    """RFC 9162 2.1.1: "MTH(D_n) = HASH(0x01 || MTH(D[0:k]) || MTH(D[k:n]))"."""
    if not hashes:
        return hashlib.sha256().digest()
    if len(hashes) == 1:
        return hashes[0]
    k = 1
    while k * 2 < len(hashes):
        k *= 2
    both = by_definition(hashes[:k]) + by_definition(hashes[k:])
    return hashlib.sha256(b"\x01" + both).digest()


def test_known_roots_of_the_certificate_transparency_reference() -> None:
    """Vectors of certificate-transparency-go, merkletree_test.go."""
    inputs = [b"", b"\x00", b"\x10", b"\x20\x21", b"\x30\x31", b"\x40\x41\x42\x43"]
    tree = Tree(leaf_hash(i) for i in inputs)
    assert EMPTY_ROOT.hex() == "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
    assert tree.root(1).hex() == "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d"
    assert tree.root(2).hex() == "fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125"
    assert tree.root(6).hex() == "76e67dadbcdf1e10e1b74ddc608abd2f98dfb16fbce75277b5232a127f2087ef"


@given(sizes)
def test_frontier_and_tree_agree_with_the_definition(count: int) -> None:
    hashes = leaves(count)
    frontier = Frontier()
    for at, leaf in enumerate(hashes):
        again = Frontier.from_bytes(frontier.size, frontier.to_bytes())
        assert again.root() == frontier.root() == by_definition(hashes[:at])
        frontier.append(leaf)
    tree = Tree(hashes)
    assert frontier.root() == tree.root() == by_definition(hashes)
    assert tree.root(count // 2) == by_definition(hashes[: count // 2])


@given(st.data(), sizes)
def test_inclusion_holds_for_this_leaf_and_no_other(data: st.DataObject, size: int) -> None:
    hashes = leaves(size)
    tree = Tree([*hashes, *leaves(3)])
    index = data.draw(st.integers(0, size - 1))
    proof = tree.inclusion(index, size)
    verify_inclusion(hashes[index], index, size, proof, tree.root(size))
    for wrong in (
        (leaf_hash(b"other"), index, size, proof, tree.root(size)),
        (hashes[index], index, size, [*proof, b"\0" * 32], tree.root(size)),
        (hashes[index], index, size, proof, b"\0" * 32),
        (hashes[index], size, size, proof, tree.root(size)),
    ):
        with pytest.raises(AuditChainBroken):
            verify_inclusion(*wrong)
    if proof:
        with pytest.raises(AuditChainBroken):
            verify_inclusion(hashes[index], index, size, proof[:-1], tree.root(size))


@given(st.data(), sizes)
def test_consistency_holds_for_this_pair_and_no_other(data: st.DataObject, new: int) -> None:
    tree = Tree(leaves(new))
    old = data.draw(st.integers(1, new))
    proof = tree.consistency(old, new)
    roots = tree.root(old), tree.root(new)
    verify_consistency(old, new, proof, *roots)
    with pytest.raises(AuditChainBroken):
        verify_consistency(old, new, proof, b"\0" * 32, roots[1])
    with pytest.raises(AuditChainBroken):
        verify_consistency(old, new, proof, roots[0], b"\0" * 32)
    with pytest.raises(AuditChainBroken):
        verify_consistency(old, new, [*proof, b"\0" * 32], *roots)


@pytest.mark.parametrize(("size", "data"), [(1, b""), (2, b"\0" * 64), (-1, b""), (0, b"\0")])
def test_a_frontier_that_does_not_fit_its_size_is_refused(size: int, data: bytes) -> None:
    with pytest.raises(AuditChainBroken):
        Frontier.from_bytes(size, data)


def test_proofs_of_what_is_not_there_are_refused() -> None:
    tree = Tree(leaves(4))
    for call in (
        lambda: tree.root(5),
        lambda: tree.inclusion(4, 4),
        lambda: tree.consistency(0, 4),
        lambda: tree.consistency(3, 5),
    ):
        with pytest.raises(AuditChainBroken):
            call()
    with pytest.raises(AuditChainBroken):
        verify_consistency(2, 4, [], tree.root(2), tree.root(4))
    with pytest.raises(AuditChainBroken):
        verify_consistency(0, 4, [], tree.root(0), tree.root(4))
    with pytest.raises(AuditChainBroken):
        verify_consistency(3, 4, [], tree.root(3), tree.root(4))
