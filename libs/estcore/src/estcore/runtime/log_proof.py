"""Command line of proofs from the audit log, shared by ``estctl`` and ``est-audit``."""

from __future__ import annotations

import datetime as dt
from pathlib import Path
from typing import Any

import click

from estcore.errors import ConfigurationError, MalformedRequest
from estcore.runtime.command_line import PATH
from estcore.runtime.log_verification import (
    choose_key,
    choose_witness,
    open_lines,
    read_note,
)
from estcore.runtime.terminal import write_json, write_line
from estcore.tlog import canonical
from estcore.tlog.checkpoint import SignedCheckpoint, VerifierKey, parse_signed
from estcore.tlog.cosignature import WitnessRequest, verify_cosignature
from estcore.tlog.proof import MAGIC, ExportedTree, InclusionProof, verify_consistent


def proof_options() -> list[click.Parameter]:
    """Return the options of ``prove``."""
    return [
        click.Option(
            ["--index"], type=click.IntRange(0), help="Log index of a record: prove it is there."
        ),
        click.Option(
            ["--checkpoint"],
            type=PATH,
            metavar="FILE",
            help="Checkpoint kept from an earlier time: prove that the log continues it.",
        ),
        click.Option(["--out"], type=PATH, required=True, help="File to create."),
    ]


def check_choice(index: int | None, checkpoint: Path | None) -> None:
    """Check that one thing is to be proven.

    Raises:
        ConfigurationError: none, or two.
    """
    if (index is None) == (checkpoint is None):
        raise ConfigurationError("give exactly one of --index, --checkpoint")


def old_size(checkpoint: Path) -> int:
    """Return how many records a kept checkpoint covers.

    Raises:
        ConfigurationError: the file has none, or one of an empty log.
    """
    size = _kept(checkpoint).checkpoint.size
    if size == 0:
        raise ConfigurationError(f"the checkpoint in {checkpoint} covers nothing")
    return size


def prove_from_export(
    file: Path, index: int | None, checkpoint: Path | None
) -> InclusionProof | WitnessRequest:
    """Return a proof from an export of the whole log.

    Raises:
        ConfigurationError: a file cannot be read.
        MalformedRequest, AuditChainBroken: the export has no such proof.
    """
    with open_lines(file) as lines:
        tree = ExportedTree(lines, index)
    if checkpoint is not None:
        return tree.consistency(old_size(checkpoint))
    return tree.inclusion(index or 0)


def write_proof(out: Path, proof: bytes) -> None:
    """Write a proof to a file that does not exist yet.

    Raises:
        ConfigurationError: it exists, or cannot be written.
    """
    try:
        with out.open("xb") as file:
            file.write(proof)
    except OSError as exc:
        raise ConfigurationError(f"cannot write {out}: {exc.strerror}") from exc
    write_line(f"proof in {out}")


def verify_proof(
    file: Path,
    *,
    vkey: str,
    checkpoint: Path | None,
    witness: tuple[str, ...],
    as_json: bool,
) -> None:
    """Verify a file that ``prove`` wrote, and print what it proves.

    Raises:
        ConfigurationError: a file or a key cannot be used.
        MalformedRequest: the file is no proof.
        AuditChainBroken: it proves nothing.
    """
    octets = file.read_bytes()
    key = choose_key(vkey)
    if octets.startswith(MAGIC.encode()):
        facts = _verify_inclusion(octets, key)
        signed = InclusionProof.parse(octets).signed
    else:
        facts, signed = _verify_consistency(octets, key, checkpoint)
    for each in witness:
        cosigner = choose_witness(each)
        moment = dt.datetime.fromtimestamp(verify_cosignature(signed, cosigner), dt.UTC)
        facts[f"witness {cosigner.name}"] = moment.isoformat()
    if as_json:
        write_json(facts, indent=1)
        return
    for name, value in facts.items():
        write_line(f"{name:<12} {value}")
    write_line("verified")


def _verify_inclusion(octets: bytes, key: VerifierKey) -> dict[str, Any]:
    proof = InclusionProof.parse(octets)
    proof.verify(key)
    point = proof.signed.checkpoint
    return {
        "log": point.origin,
        "index": proof.index,
        "tree size": point.size,
        "root": point.root.hex(),
        "record": canonical.render(canonical.parse(proof.leaf)),
    }


def _verify_consistency(
    octets: bytes, key: VerifierKey, checkpoint: Path | None
) -> tuple[dict[str, Any], SignedCheckpoint]:
    if checkpoint is None:
        raise ConfigurationError("a proof of consistency needs the older --checkpoint")
    request, old = WitnessRequest.parse(octets), _kept(checkpoint)
    verify_consistent(request, old, key)
    point = request.signed.checkpoint
    facts = {
        "log": point.origin,
        "continues": f"{old.checkpoint.size} records",
        "tree size": point.size,
        "root": point.root.hex(),
    }
    return facts, request.signed


def _kept(path: Path) -> SignedCheckpoint:
    try:
        return parse_signed(read_note(path))
    except MalformedRequest as exc:
        raise ConfigurationError(f"{path} has no checkpoint: {exc.reason}") from exc
