"""A verifier of audit logs around Go libraries for transparency logs, pinned by go.sum."""

from __future__ import annotations

import asyncio
import json
import shutil
from pathlib import Path
from typing import Any

from estsuite_testing.build_cache import built, run_build
from estsuite_testing.foreign.sources import CLIENTS
from estsuite_testing.foreign.toolchains import of_group, with_path

_MODULE = CLIENTS / "log_verifier"
_RECIPE = [_MODULE / name for name in ("go.mod", "go.sum", "main.go")]


def command() -> Path:
    """Return the program; the first call builds it."""

    def build(folder: Path) -> None:
        go = of_group("go")
        module = folder.parent / "module"
        shutil.copytree(_MODULE, module)
        env = with_path(go.parent) | {"GOTOOLCHAIN": "local"}
        run_build([str(go), "build", "-o", f"{folder}/log-verifier", "."], cwd=module, env=env)

    return built("log-verifier", _RECIPE, build) / "log-verifier"


class Refused(Exception):
    """The libraries found a fault; the text is theirs."""


async def verified(export: Path, log: str, witness: str, *request: Path) -> dict[str, Any]:
    """Return what the program verified of an export.

    Raises:
        Refused: it found a fault.
    """
    return await _run(str(export), log, witness, *map(str, request))


async def proven(kind: str, proof: Path, log: str, *checkpoint: Path) -> dict[str, Any]:
    """Return what the program verified of one proof: ``inclusion``, or ``consistency``.

    Raises:
        Refused: it found a fault.
    """
    return await _run(kind, str(proof), log, *map(str, checkpoint))


async def _run(*arguments: str) -> dict[str, Any]:
    process = await asyncio.create_subprocess_exec(
        str(command()),
        *arguments,
        stdout=asyncio.subprocess.PIPE,
    )
    out, _ = await process.communicate()
    if process.returncode:
        raise Refused(out.decode())
    found: dict[str, Any] = json.loads(out)
    return found
