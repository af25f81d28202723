"""The log of a running est-audit and the cosignatures of a running witness, by libraries of others.

C2SP signed notes and cosignatures are read by transparency-dev/formats; the tree, its inclusion and
its consistency proofs by transparency-dev/merkle and by golang.org/x/mod/sumdb/tlog.
"""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

from audit import commands, read_commands
from estcore.tlog import export
from estcore.tlog.checkpoint import parse_signed
from estcore.tlog.cosignature import WitnessRequest, consistency_from
from estcore.tlog.tree import Frontier
from estsuite_testing.audit_stack import AuditWorld, empty_world, make_record
from estsuite_testing.foreign.log_verifier import Refused, proven, verified
from estsuite_testing.platform import Platform
from estsuite_testing.witness_stack import RunningWitness

pytestmark = pytest.mark.integration
CALL = "call-of-the-test"


@pytest.fixture
async def exports(platform: Platform, tmp_path: Path) -> tuple[AuditWorld, RunningWitness, Path]:
    """A log of some checkpoints, exported whole as log.jsonl, and one call of it as call.jsonl."""
    world = await empty_world(platform, tmp_path)
    (tmp_path / "witness").mkdir()
    witness = RunningWitness(tmp_path / "witness", world)
    out = tmp_path / "exports"
    out.mkdir()
    settings = world.settings(witnesses=(witness.asked,))
    async with (
        witness.running(),
        world.service(witnesses=(witness.asked,)),
        world.publisher() as publisher,
    ):
        for start in range(0, 60, 12):
            records = [make_record(n) for n in range(start, start + 12)]
            mine = records[3].model_copy(update={"correlation_id": CALL})
            await publisher.send(*records[:3], mine, *records[4:])
            await world.wait(f"select max(size) >= {start + 12} from cosignature", True)
        await commands.export_log(settings, out / "log.jsonl", None, sealed=False)
        await commands.export_log(settings, out / "call.jsonl", CALL, sealed=False)
    return world, witness, out


async def test_libraries_of_others_verify_log_cosignatures_and_proofs(
    exports: tuple[AuditWorld, RunningWitness, Path],
) -> None:
    world, witness, out = exports
    keys = str(world.vkey), witness.vkey
    whole = await verified(out / "log.jsonl", *keys)
    assert whole["records"] >= 60
    assert whole["checkpoints"] >= 5
    assert whole["cosigned"] >= 60
    assert abs(whole["cosigned_at"] - time.time()) < 600
    part = await verified(out / "call.jsonl", *keys)
    assert part["inclusions"] == part["records"] == 5


async def test_libraries_of_others_accept_what_a_witness_is_asked(
    exports: tuple[AuditWorld, RunningWitness, Path], tmp_path: Path
) -> None:
    world, witness, out = exports
    lines = [export.read_line(line) for line in (out / "log.jsonl").read_bytes().splitlines()]
    leaves = [bytes.fromhex(line["leaf_hash"]) for line in lines if line["type"] == "record"]
    newest = parse_signed(lines[-1]["note"])
    for old in (1, 2, 3, 7, 8, 31, 32, 48, newest.checkpoint.size):
        frontier = Frontier()
        for leaf in leaves[:old]:
            frontier.append(leaf)
        proof = consistency_from(frontier, leaves[old : newest.checkpoint.size])
        request = tmp_path / f"from-{old}"
        request.write_bytes(WitnessRequest(old, tuple(proof), newest).encode())
        found = await verified(out / "log.jsonl", str(world.vkey), witness.vkey, request)
        assert found["requested_from"] == old


async def test_libraries_of_others_verify_the_proofs_of_an_auditor(
    exports: tuple[AuditWorld, RunningWitness, Path], tmp_path: Path
) -> None:
    world, _, out = exports
    lines = [export.read_line(line) for line in (out / "log.jsonl").read_bytes().splitlines()]
    kept, vkey = tmp_path / "kept.txt", str(world.vkey)
    first = next(line for line in lines if line["type"] == "checkpoint")
    kept.write_text(first["note"])
    async with world.service():
        for index in (0, 17, 59):
            proof = tmp_path / f"{index}.tlog-proof"
            await read_commands.write_proof_of(world.settings(), index, None, proof)
            found = await proven("inclusion", proof, vkey)
            assert found["index"] == index
            assert json.loads(found["record"])["log_index"] == index
        since = tmp_path / "since"
        await read_commands.write_proof_of(world.settings(), None, kept, since)
        assert (await proven("consistency", since, vkey, kept))["old"] == first["size"]
    proof = tmp_path / "59.tlog-proof"
    octets = proof.read_bytes()
    for changed in (
        octets.replace(b"index 59", b"index 58"),
        octets.replace(b"extra ey", b"extra ez"),
    ):
        assert changed != octets
        proof.write_bytes(changed)
        with pytest.raises(Refused):
            await proven("inclusion", proof, vkey)
    since.write_bytes(
        since.read_bytes().replace(b"\n", b"\nAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=\n", 1)
    )
    with pytest.raises(Refused):
        await proven("consistency", since, vkey, kept)


async def test_libraries_of_others_refuse_what_was_changed(
    exports: tuple[AuditWorld, RunningWitness, Path], tmp_path: Path
) -> None:
    world, witness, out = exports
    lines = (out / "log.jsonl").read_bytes().splitlines()
    line = json.loads(lines[20])
    changed = lines.copy()
    changed[20] = lines[20].replace(b"phase", b"phrase", 1)
    rehashed = lines.copy()
    line["leaf"] += " "
    line["leaf_hash"] = "0" * 64
    rehashed[20] = json.dumps(line).encode()
    dropped = lines[:20] + lines[21:]
    swapped = [*lines[:20], lines[21], lines[20], *lines[22:]]
    note = lines[-1].replace(b"\xe2\x80\x94 ", b"\xe2\x80\x94 x", 1)
    for fault in (changed, rehashed, dropped, swapped, [*lines[:-1], note]):
        path = tmp_path / "changed.jsonl"
        assert fault != lines
        path.write_bytes(b"\n".join(fault) + b"\n")
        with pytest.raises(Refused):
            await verified(path, str(world.vkey), witness.vkey)
