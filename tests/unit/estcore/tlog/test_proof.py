"""Proofs as files: encoded, parsed strictly, verified; from an export, and of trees with an edge."""

from __future__ import annotations

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given
from hypothesis import strategies as st

from estcore.errors import AuditChainBroken, ESTSuiteError, MalformedRequest
from estcore.tlog import export
from estcore.tlog.checkpoint import Checkpoint, VerifierKey, parse_signed, sign
from estcore.tlog.proof import ExportedTree, InclusionProof, verify_consistent
from estcore.tlog.tree import (
    Frontier,
    Tree,
    leaf_hash,
    verify_consistency,
    verify_inclusion,
)

ORIGIN = "test.example/audit"
KEY = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
VKEY = VerifierKey(ORIGIN, KEY.public_key())
LEAVES = [f"leaf {n}" for n in range(70)]


def point(size: int, origin: str = ORIGIN) -> str:
    tree = Tree(leaf_hash(leaf.encode()) for leaf in LEAVES[:size])
    return sign(Checkpoint(origin, size, tree.root()), ORIGIN, KEY)


def exported(size: int = len(LEAVES)) -> list[bytes]:
    records = [
        export.record_line(n, leaf, leaf_hash(leaf.encode()), bytes(32))
        for n, leaf in enumerate(LEAVES)
    ]
    header = export.Header(ORIGIN, str(VKEY), len(LEAVES), 1).line()
    return [header, *records, export.checkpoint_line(size, point(size))]


@pytest.mark.parametrize("index", [0, 1, 31, 63, 64, 69])
def test_a_proof_from_an_export_verifies_after_a_round_trip(index: int) -> None:
    proof = ExportedTree(exported(), index).inclusion(index)
    again = InclusionProof.parse(proof.encode())
    assert again == proof
    assert again.leaf.decode() == LEAVES[index]
    again.verify(VKEY)


def test_any_changed_octet_of_a_proof_is_refused_or_of_an_unknown_signature() -> None:
    octets = ExportedTree(exported(), 17).inclusion(17).encode()
    for place in range(len(octets)):
        changed = bytearray(octets)
        changed[place] ^= 1
        with pytest.raises(ESTSuiteError):
            InclusionProof.parse(bytes(changed)).verify(VKEY)


def test_a_proof_of_a_different_log_is_refused() -> None:
    proof = ExportedTree(exported(), 3).inclusion(3)
    other = Ed25519PrivateKey.from_private_bytes(bytes(32)).public_key()
    with pytest.raises(AuditChainBroken):
        proof.verify(VerifierKey(ORIGIN, other))
    with pytest.raises(AuditChainBroken, match="is of"):
        proof.verify(VerifierKey("other.example/audit", KEY.public_key()))


def test_a_record_no_checkpoint_covers_has_no_proof() -> None:
    with pytest.raises(MalformedRequest, match="covers 60 records") as caught:
        ExportedTree(exported(60), 60).inclusion(60)
    assert caught.value.code == "proof.unsealed"


def test_an_export_of_one_call_proves_nothing_else() -> None:
    header = export.Header(ORIGIN, str(VKEY), 0, 0, "call").line()
    with pytest.raises(MalformedRequest, match="export the whole log"):
        ExportedTree([header], 0)


@pytest.mark.parametrize("old", [1, 2, 33, 64, 70])
def test_a_newer_checkpoint_continues_an_older_one(old: int) -> None:
    request = ExportedTree(exported()).consistency(old)
    verify_consistent(request, parse_signed(point(old)), VKEY)
    if old > 2:
        with pytest.raises(AuditChainBroken, match="the proof begins at"):
            verify_consistent(request, parse_signed(point(old - 1)), VKEY)


def test_a_rewritten_log_does_not_continue_a_kept_checkpoint() -> None:
    rewritten = Tree(leaf_hash(f"other {n}".encode()) for n in range(20))
    kept = parse_signed(sign(Checkpoint(ORIGIN, 20, rewritten.root()), ORIGIN, KEY))
    with pytest.raises(AuditChainBroken, match="does not begin with"):
        verify_consistent(ExportedTree(exported()).consistency(20), kept, VKEY)


@given(st.integers(0, 70), st.integers(1, 60))
def test_a_tree_with_an_edge_has_the_roots_and_proofs_behind_it(edge: int, more: int) -> None:
    hashes = [leaf_hash(str(n).encode()) for n in range(edge + more)]
    whole, frontier = Tree(hashes), Frontier()
    for leaf in hashes[:edge]:
        frontier.append(leaf)
    behind = Tree(hashes[edge:], frontier)
    size = edge + more
    assert behind.size == size
    for end in range(max(edge, 1), size + 1):
        assert behind.root(end) == whole.root(end)
        proof = behind.consistency(end, size)
        verify_consistency(end, size, proof, whole.root(end), whole.root(size))
    for index in range(edge, size):
        proof = behind.inclusion(index, size)
        verify_inclusion(hashes[index], index, size, proof, whole.root(size))
