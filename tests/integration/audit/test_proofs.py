"""Tiles, and proofs from the running log, compared with the tree of all records."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from audit import commands, indexer, proofs, read_commands, tiles
from estclient import cli
from estcore.errors import AuditChainBroken, Conflict
from estcore.messages.audit import AuditRecord
from estcore.tlog.checkpoint import parse_signed
from estcore.tlog.cosignature import WitnessRequest
from estcore.tlog.proof import InclusionProof, verify_consistent
from estcore.tlog.tree import Tree
from estsuite_testing.audit_stack import AuditWorld

pytestmark = pytest.mark.integration
Build = Callable[..., AuditRecord]


@pytest.fixture
async def long_log(world: AuditWorld, record: Build, monkeypatch: pytest.MonkeyPatch) -> AuditWorld:
    """A log of a little more than two tiles, with checkpoints."""
    monkeypatch.setattr(indexer, "_LINGER_S", 0.1)
    async with world.service(), world.publisher() as publisher:
        for first in range(0, 600, 100):
            await publisher.send(*(record(n) for n in range(first, first + 100)))
            await world.wait(f"select max(size) > {first + 100} from checkpoint", True)
        await world.wait("select count(*) from tile", 2)
    return world


async def test_every_proof_from_tiles_is_that_of_the_tree(long_log: AuditWorld) -> None:
    connection: Any = await long_log.superuser()
    try:
        leaves = [r[0] for r in await connection.fetch(LEAVES)]
        size = len(leaves)
        assert size > 600
        tree = Tree(leaves)
        reader = tiles.TreeReader(connection)
        for index in (0, 1, 255, 256, 300, 511, 512, size - 1):
            assert await reader.inclusion(index, size) == tree.inclusion(index, size)
            if index:
                assert await reader.consistency(index, size) == tree.consistency(index, size)
                frontier = await reader.frontier(index)
                assert frontier.root() == tree.root(index)
        for start, end in ((0, size), (5, 250), (200, 300), (256, 512), (510, size), (600, 603)):
            assert await tiles.leaf_hashes(connection, start, end) == leaves[start:end]
        proof = await proofs.inclusion(connection, 300)
        InclusionProof.parse(proof.encode()).verify(long_log.vkey)
        for size in (1, 300):
            request = await proofs.consistency(connection, size)
            assert WitnessRequest.parse(request.encode()) == request
        with pytest.raises(Conflict, match="not among them"):
            await proofs.inclusion(connection, 10_000)
        with pytest.raises(Conflict, match="covers"):
            await proofs.consistency(connection, 10_000)
    finally:
        await connection.close()


LEAVES = "select leaf_hash from record order by log_index"


async def test_a_tile_that_was_changed_proves_nothing(long_log: AuditWorld) -> None:
    connection: Any = await long_log.superuser()
    try:
        change = "update tile set hashes = set_byte(hashes, 40, 1 # get_byte(hashes, 40))"
        with pytest.raises(Exception, match="append-only"):
            await connection.execute(change)
        await connection.execute("alter table tile disable trigger no_change")
        await connection.execute(change)
        with pytest.raises(AuditChainBroken):
            await proofs.inclusion(connection, 0)
    finally:
        await connection.close()


async def test_proofs_by_the_command_lines_verify_offline(
    long_log: AuditWorld, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    note = str(await long_log.value("select note from checkpoint where size > 100 order by size"))
    kept, vkey = tmp_path / "kept.txt", str(long_log.vkey)
    kept.write_text(note)
    settings = long_log.settings()
    async with long_log.service():
        await read_commands.write_proof_of(settings, 42, None, tmp_path / "42.tlog-proof")
        await read_commands.write_proof_of(settings, None, kept, tmp_path / "since")
        await commands.export_log(settings, tmp_path / "log.jsonl", None, sealed=True)
        wanted = "select count(*) from record where action = 'audit.prove'"
        await long_log.wait(wanted, 2)
    log = ["--export", str(tmp_path / "log.jsonl"), "--out"]
    assert cli.main(["audit", "prove", "--index", "42", *log, str(tmp_path / "x")]) == 0
    assert cli.main(["audit", "prove", "--checkpoint", str(kept), *log, str(tmp_path / "y")]) == 0
    check = ["audit", "verify-proof", "--vkey", vkey, "--proof"]
    for name in ("42.tlog-proof", "x"):
        capsys.readouterr()
        assert cli.main([*check, str(tmp_path / name)]) == 0
        shown = capsys.readouterr().out
        assert '"log_index":42,' in shown
        assert shown.endswith("verified\n")
    for name in ("since", "y"):
        assert cli.main([*check, str(tmp_path / name), "--checkpoint", str(kept)]) == 0
        request = WitnessRequest.parse((tmp_path / name).read_bytes())
        verify_consistent(request, parse_signed(note), long_log.vkey)
    assert cli.main([*check, str(tmp_path / "since")]) == 2
    changed = (tmp_path / "x").read_bytes().replace(b"index 42", b"index 43")
    (tmp_path / "z").write_bytes(changed)
    assert cli.main([*check, str(tmp_path / "z")]) == 1
    assert cli.main(["audit", "prove", *log, str(tmp_path / "no")]) == 2
