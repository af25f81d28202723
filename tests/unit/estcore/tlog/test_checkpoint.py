"""Signed checkpoints: C2SP tlog-checkpoint and signed-note."""

from __future__ import annotations

import base64

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given
from hypothesis import strategies as st

from estcore.errors import AuditChainBroken, ESTSuiteError, MalformedRequest
from estcore.tlog.checkpoint import (
    Checkpoint,
    VerifierKey,
    check_name,
    parse_signed,
    sign,
)

KEY = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
NAME = "est.example.org/audit"
POINT = Checkpoint(NAME, 3, bytes(range(32)))
VERIFIER = VerifierKey(NAME, KEY.public_key())
NOTE = sign(POINT, NAME, KEY)


def test_the_example_key_of_the_signed_note_specification_has_its_hash() -> None:
    """The vkey in the C2SP and Go documentation: "PeterNeumann+c74f20a3+ARpc2Qc…"."""
    vkey = "PeterNeumann+c74f20a3+ARpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW"
    assert str(VerifierKey.parse(vkey)) == vkey


def test_the_example_note_of_the_signed_note_specification_verifies() -> None:
    """The signature scheme is the one of golang.org/x/mod/sumdb/note."""
    vkey = "PeterNeumann+c74f20a3+ARpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW"
    key = VerifierKey.parse(vkey)
    text = (
        "If you think cryptography is the answer to your problem,\n"
        "then you don't know what your problem is.\n"
    )
    signature = base64.b64decode(
        "x08go/ZJkuBS9UG/SffcvIAQxVBtiFupLLr8pAcElZInNIuGUgYN1FFYC2pZSNXgKvqfqdngotpRZb6KE6RyyBwJnAM="
    )
    assert signature[:4] == key.key_hash
    key.public_key.verify(signature[4:], text.encode())


def test_a_signed_checkpoint_reads_back_and_verifies() -> None:
    signed = parse_signed(NOTE)
    assert signed.checkpoint == POINT
    signed.verify(VERIFIER)


def test_extension_lines_are_kept_and_signed() -> None:
    point = Checkpoint(NAME, 3, bytes(32), ("made by a test",))
    signed = parse_signed(sign(point, NAME, KEY))
    signed.verify(VERIFIER)
    assert signed.checkpoint.extensions == ("made by a test",)


def test_signatures_of_witnesses_are_let_be() -> None:
    witness = Ed25519PrivateKey.generate()
    line = sign(POINT, "witness.example", witness).split("\n\n")[1]
    signed = parse_signed(NOTE + line)
    signed.verify(VERIFIER)
    signed.verify(VerifierKey("witness.example", witness.public_key()))


def test_a_checkpoint_of_another_key_does_not_verify() -> None:
    other = Ed25519PrivateKey.generate()
    with pytest.raises(AuditChainBroken):
        parse_signed(sign(POINT, NAME, other)).verify(VERIFIER)


@given(st.integers(0, len(NOTE.encode()) * 8 - 1))
def test_any_flipped_bit_is_found(bit: int) -> None:
    octets = bytearray(NOTE.encode())
    octets[bit // 8] ^= 1 << bit % 8
    with pytest.raises((ESTSuiteError, UnicodeDecodeError)):
        parse_signed(octets.decode()).verify(VERIFIER)


@given(st.text(max_size=80))
def test_any_text_is_a_checkpoint_or_malformed(text: str) -> None:
    with pytest.raises(MalformedRequest):
        parse_signed(text)


@pytest.mark.parametrize(
    "vkey",
    ["", "a+b", "a+00000000+AQ==", str(VERIFIER).replace("+", "+0", 1), str(VERIFIER)[:-4]],
)
def test_wrong_verifier_keys_are_refused(vkey: str) -> None:
    with pytest.raises(MalformedRequest):
        VerifierKey.parse(vkey)


@pytest.mark.parametrize("name", ["", "a b", "a+b", "a\nb"])
def test_names_that_would_break_a_note_are_refused(name: str) -> None:
    with pytest.raises(MalformedRequest):
        check_name(name)
