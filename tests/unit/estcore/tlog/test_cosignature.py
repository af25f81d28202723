"""Cosignatures of witnesses: proofs from a frontier, notes, requests."""

from __future__ import annotations

import hashlib

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given
from hypothesis import strategies as st

from estcore.errors import AuditChainBroken, MalformedRequest
from estcore.tlog.checkpoint import Checkpoint, VerifierKey, parse_signed, sign
from estcore.tlog.cosignature import (
    CosignerKey,
    WitnessRequest,
    consistency_from,
    cosign,
    verify_cosignature,
    with_cosignatures,
)
from estcore.tlog.tree import Frontier, Tree, verify_consistency

LOG_KEY, WITNESS_KEY = Ed25519PrivateKey.generate(), Ed25519PrivateKey.generate()
WITNESS = CosignerKey("witness.example/w1", WITNESS_KEY.public_key())


def leaves(count: int) -> list[bytes]:
    return [hashlib.sha256(b"%d" % n).digest() for n in range(count)]


def checkpoint(size: int) -> Checkpoint:
    return Checkpoint("log.example/audit", size, Tree(leaves(size)).root())


def note(size: int) -> str:
    return sign(checkpoint(size), "log.example/audit", LOG_KEY)


@given(st.integers(1, 150), st.integers(0, 150))
def test_a_proof_from_the_frontier_is_that_of_the_whole_tree(old: int, more: int) -> None:
    everything = leaves(old + more)
    frontier = Frontier()
    for leaf in everything[:old]:
        frontier.append(leaf)
    tree = Tree(everything)
    proof = consistency_from(frontier, everything[old:])
    assert proof == tree.consistency(old, old + more)
    verify_consistency(old, old + more, proof, tree.root(old), tree.root())


def test_there_is_no_proof_from_nothing() -> None:
    with pytest.raises(AuditChainBroken):
        consistency_from(Frontier(), leaves(3))


@given(st.integers(0, 253_402_300_799))
def test_a_cosignature_says_who_and_when_and_leaves_the_log_s_own(seconds: int) -> None:
    line = cosign(checkpoint(7), WITNESS.name, WITNESS_KEY, seconds)
    whole = with_cosignatures(note(7), [line, line])
    assert whole.count("—") == 2
    signed = parse_signed(whole)
    signed.verify(VerifierKey("log.example/audit", LOG_KEY.public_key()))
    assert verify_cosignature(signed, WITNESS) == seconds
    assert with_cosignatures(whole, [line]) == whole


@given(st.data())
def test_every_changed_octet_is_refused(data: st.DataObject) -> None:
    line = cosign(checkpoint(7), WITNESS.name, WITNESS_KEY, 1764417600)
    signed = parse_signed(with_cosignatures(note(7), [line]))
    name, key_hash, octets = signed.signatures[1]
    place = data.draw(st.integers(0, len(octets) - 1))
    changed = bytearray(octets)
    changed[place] ^= data.draw(st.integers(1, 255))
    forged = type(signed)(signed.checkpoint, ((name, key_hash, bytes(changed)),))
    with pytest.raises(AuditChainBroken) as refused:
        verify_cosignature(forged, WITNESS)
    assert refused.value.code == "witness.signature"
    other = type(signed)(checkpoint(8), signed.signatures)
    with pytest.raises(AuditChainBroken):
        verify_cosignature(other, WITNESS)


def test_a_note_without_the_witness_and_other_keys_are_refused() -> None:
    with pytest.raises(AuditChainBroken) as refused:
        verify_cosignature(parse_signed(note(3)), WITNESS)
    assert refused.value.code == "witness.missing"
    assert CosignerKey.parse(str(WITNESS)) == WITNESS
    log_key = str(VerifierKey("log.example/audit", LOG_KEY.public_key()))
    for text in ("", "a", log_key, str(WITNESS)[:-1], "x" + str(WITNESS)):
        with pytest.raises(MalformedRequest):
            CosignerKey.parse(text)


@given(st.integers(0, 10**18), st.lists(st.binary(min_size=32, max_size=32), max_size=63))
def test_a_request_reads_as_it_was_written(old: int, proof: list[bytes]) -> None:
    request = WitnessRequest(old, tuple(proof), parse_signed(note(5)))
    assert WitnessRequest.parse(request.encode()) == request


@given(st.one_of(st.binary(max_size=300), st.text(max_size=300).map(str.encode)))
def test_anything_else_is_no_request(body: bytes) -> None:
    with pytest.raises(MalformedRequest):
        WitnessRequest.parse(body)


@given(st.data())
def test_damaged_requests_are_read_or_refused(data: st.DataObject) -> None:
    body = bytearray(WitnessRequest(3, (b"\x01" * 32,), parse_signed(note(5))).encode())
    body[data.draw(st.integers(0, len(body) - 1))] = data.draw(st.integers(0, 255))
    try:
        WitnessRequest.parse(bytes(body))
    except MalformedRequest as exc:
        assert exc.code in {"witness.malformed", "checkpoint.malformed"}


def test_a_time_beyond_any_calendar_is_refused() -> None:
    line = cosign(checkpoint(7), WITNESS.name, WITNESS_KEY, 253_402_300_800)
    with pytest.raises(AuditChainBroken):
        verify_cosignature(parse_signed(with_cosignatures(note(7), [line])), WITNESS)
