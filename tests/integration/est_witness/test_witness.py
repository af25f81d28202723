"""A witness: cosigns what continues what it has seen, refuses a fork, forgets nothing."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from est_witness.seen import SeenFiles
from est_witness.witness import ForkFound, OtherSize, Witness
from estcore.clock import SystemClock
from estcore.errors import ConfigurationError, MalformedRequest, NotAuthenticated
from estcore.tlog.checkpoint import Checkpoint, VerifierKey, parse_signed, sign
from estcore.tlog.cosignature import (
    CosignerKey,
    WitnessRequest,
    verify_cosignature,
    with_cosignatures,
)
from estcore.tlog.tree import Tree

ORIGIN = "log.example/audit"
LOG_KEY, OTHER_KEY, KEY = (Ed25519PrivateKey.generate() for _ in range(3))
NAME = "witness.example/w1"
PUBLIC = CosignerKey(NAME, KEY.public_key())
LOGS = {ORIGIN: VerifierKey(ORIGIN, LOG_KEY.public_key())}


def tree(size: int, salt: bytes = b"") -> Tree:
    return Tree(hashlib.sha256(salt + b"%d" % n).digest() for n in range(size))


def request(
    old: int,
    new: int,
    *,
    of: Tree | None = None,
    key: Ed25519PrivateKey = LOG_KEY,
    origin: str = ORIGIN,
) -> bytes:
    whole = of or tree(new)
    proof = whole.consistency(old, new) if 0 < old <= new else []
    note = sign(Checkpoint(origin, new, whole.root(new)), origin, key)
    return WitnessRequest(old, tuple(proof), parse_signed(note)).encode()


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[[], Witness]]:
    """Start a witness on the same folder again and again."""
    held: list[SeenFiles] = []

    def begin() -> Witness:
        for files in held:
            files.close()
        held[:] = [SeenFiles(tmp_path / "state")]
        return Witness(NAME, KEY, LOGS, held[0], SystemClock())

    yield begin
    for files in held:
        files.close()


def test_what_continues_is_cosigned_and_remembered(start: Callable[[], Witness]) -> None:
    witness, old = start(), 0
    for size in (1, 3, 3, 8, 100):
        body = request(old, size)
        line = witness.answer(body)
        assert line
        note = with_cosignatures(WitnessRequest.parse(body).signed.note, [line])
        assert verify_cosignature(parse_signed(note), PUBLIC) > 1_700_000_000
        witness, old = start(), size  # what it saw outlives it


@pytest.mark.logs_errors("the log contradicts what was seen of it")
def test_a_fork_is_never_cosigned(start: Callable[[], Witness]) -> None:
    witness = start()
    witness.answer(request(0, 10))
    forked = tree(20, b"x")
    with pytest.raises(ForkFound):
        witness.answer(request(10, 20, of=forked))
    with pytest.raises(OtherSize) as same_size:
        witness.answer(request(10, 10, of=tree(10, b"x")))
    assert same_size.value.size == 10
    wrong_proof = request(10, 20).split(b"\n")
    wrong_proof[1] = wrong_proof[2]
    with pytest.raises(ForkFound):
        witness.answer(b"\n".join(wrong_proof))
    assert witness.answer(request(10, 20))
    with pytest.raises(OtherSize):
        witness.answer(request(10, 20))


def test_a_shorter_log_is_not_cosigned(start: Callable[[], Witness]) -> None:
    witness = start()
    witness.answer(request(0, 10))
    with pytest.raises(OtherSize) as shorter:
        witness.answer(request(5, 7))
    assert shorter.value.size == 10
    with pytest.raises(MalformedRequest):
        witness.answer(request(10, 7))
    with pytest.raises(OtherSize):
        witness.answer(request(0, 20))


def test_unknown_logs_and_other_keys_are_refused(start: Callable[[], Witness]) -> None:
    witness = start()
    with pytest.raises(MalformedRequest) as unknown:
        witness.answer(request(0, 3, origin="other.example/log"))
    assert unknown.value.code == "witness.log"
    with pytest.raises(NotAuthenticated):
        witness.answer(request(0, 3, key=OTHER_KEY))
    for body in (b"", b"old 0\n\n", b"\xff", request(0, 3)[:-1], b"old -1" + request(0, 3)[5:]):
        with pytest.raises(MalformedRequest):
            witness.answer(body)


def test_what_cannot_be_stored_is_not_signed(
    start: Callable[[], Witness], monkeypatch: pytest.MonkeyPatch
) -> None:
    witness = start()
    witness.answer(request(0, 5))

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(SeenFiles, "store", full)
        with pytest.raises(OSError, match="No space"):
            witness.answer(request(5, 9))
    assert witness.answer(request(5, 9))


@pytest.mark.parametrize("damage", [b"", b"{}", b"\xff", b'{"origin":"x","size":1,"root":""}'])
def test_a_witness_that_has_forgotten_does_not_start(
    start: Callable[[], Witness], tmp_path: Path, damage: bytes
) -> None:
    start().answer(request(0, 5))
    (file,) = (tmp_path / "state").glob("*.json")
    file.write_bytes(damage)
    with pytest.raises(ConfigurationError) as refused:
        start()
    assert refused.value.code == "witness.state"


def test_one_process_holds_a_folder(start: Callable[[], Witness], tmp_path: Path) -> None:
    start()
    with pytest.raises(ConfigurationError) as refused:
        SeenFiles(tmp_path / "state")
    assert refused.value.code == "witness.locked"
