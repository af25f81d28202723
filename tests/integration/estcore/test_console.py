"""Every command line: help texts, versions, errors, lazy imports, closed output."""

from __future__ import annotations

import importlib
import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from audit.main import COMMAND as AUDIT
from ca_signer.cli.entry import ca_signer
from ca_signer.upstream.main import _COMMAND as UPSTREAM
from est_frontend.main import _COMMAND as FRONTEND
from est_frontend_srp.main import _COMMAND as SRP
from estclient.cli import estctl
from estdev.cli import estsuite
from estsuite_testing.memory_log import make_log
from renewal.main import COMMAND as RENEWAL

ROOT = Path(__file__).parents[3]
BIN = Path(sys.executable).parent
SCRIPTS = {
    name: function
    for file in sorted(ROOT.glob("*/*/pyproject.toml"))
    for name, function in tomllib.loads(file.read_text())["project"].get("scripts", {}).items()
}


def unread(*command: object) -> tuple[int, str]:
    """Run a command whose standard output has no reader; returns exit code and errors."""
    reader, writer = os.pipe()
    os.close(reader)
    try:
        done = subprocess.run(
            [str(part) for part in command],
            stdout=writer,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
            timeout=60,
        )
    finally:
        os.close(writer)
    return done.returncode, done.stderr


@pytest.fixture
def export(tmp_path: Path) -> Path:
    file = tmp_path / "audit.jsonl"
    file.write_bytes(b"".join(line + b"\n" for line in make_log(9).export()))
    return file


@pytest.mark.parametrize("script", SCRIPTS)
def test_every_command_has_the_shared_entry(script: str) -> None:
    module, function = SCRIPTS[script].split(":")
    assert hasattr(getattr(importlib.import_module(module), function), "__wrapped__")


@pytest.mark.parametrize("command", [[s] for s in SCRIPTS] + [["ca-signer", "ca"]])
def test_every_command_ends_quietly(command: list[str]) -> None:
    code, errors = unread(BIN / command[0], *command[1:], "--help")
    assert errors == ""
    assert code == 141


@pytest.mark.parametrize("script", SCRIPTS)
def test_every_command_prints_its_version_and_refuses_an_unknown_verb(
    script: str, capsys: pytest.CaptureFixture[str]
) -> None:
    module, function = SCRIPTS[script].split(":")
    main = getattr(importlib.import_module(module), function)
    assert main(["--version"]) == 0
    version = rf"{script} \d+\.\d+\.\d+ \(Python 3\.\d+\.\d+\)\n"
    assert re.fullmatch(version, capsys.readouterr().out)
    assert main(["xyzzy"]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err == f"{script}: no command xyzzy (see {script} --help)\n"


GROUPS = (
    *(estctl, estsuite, ca_signer),
    *(command.group for command in (AUDIT, FRONTEND, RENEWAL, SRP, UPSTREAM)),
)


def verbs(command: click.Command, path: str) -> Iterator[tuple[str, click.Command]]:
    yield path, command
    if isinstance(command, click.Group):
        context = click.Context(command)
        for name in command.list_commands(context):
            verb = command.get_command(context, name)
            assert verb is not None
            yield from verbs(verb, f"{path} {name}")


def test_every_verb_and_every_option_has_a_help_text_of_its_own() -> None:
    every = [found for group in GROUPS for found in verbs(group, str(group.name))]
    assert len(every) > 90
    for path, command in every:
        text = command.help or ""
        assert text[:1].isupper(), path
        assert text.partition("\n\n")[0].endswith("."), path
        for option in command.params:
            if isinstance(option, click.Option):
                assert (option.help or "").endswith("."), (path, option.opts)


def test_no_option_takes_a_secret_itself() -> None:
    taken = {
        option
        for group in GROUPS
        for _, command in verbs(group, "")
        for parameter in command.params
        for option in parameter.opts
        if re.search("password|passphrase|pin|secret|token|seed", option)
    }
    files = {option for option in taken if option.endswith("-file")} | {"--nats-seed"}
    assert taken - files == {"--secret"}  # the id of one, for policy explain


@pytest.mark.parametrize(
    ("script", "arguments", "unused"),
    [
        ("ca_signer.cli.entry", ["ca", "--help"], {"nats", "asyncpg", "sqlalchemy", "uvloop"}),
        ("ca_signer.cli.entry", ["token", "--help"], {"nats", "sqlalchemy", "alembic"}),
        ("estclient.cli", ["--help"], {"nats", "aiohttp", "cryptography", "pydantic"}),
        ("estclient.cli", ["audit", "verify", "--help"], {"nats", "aiohttp", "uvloop"}),
        ("estclient.cli", ["cert", "list", "--help"], {"argon2", "uvloop"}),
        ("audit.main", ["--version"], {"aiohttp"}),
        ("renewal.main", ["--version"], {"aiohttp"}),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_a_verb_imports_only_what_it_uses(
    script: str, arguments: list[str], unused: set[str]
) -> None:
    code = (
        f"import sys; from {script} import main; assert main({arguments}) == 0; "
        "print(*sys.modules, file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert unused & set(done.stderr.split()) == set()


@pytest.mark.parametrize("command", [("estctl", "audit"), ("est-audit",)])
def test_verifying_ends_quietly(export: Path, command: tuple[str, ...]) -> None:
    name, *verbs = command
    assert unread(BIN / name, *verbs, "verify", "--export", export) == (141, "")
    export.write_bytes(export.read_bytes().replace(b"auth.denied", b"auth.passed"))
    assert unread(BIN / name, *verbs, "verify", "--export", export) == (141, "")


PRINTING = """
import asyncio, sys
from estcore.runtime.console import console_script

async def printing():
    while True:
        print("x" * 1000)
        await asyncio.sleep(0)

async def tasks():
    async with asyncio.TaskGroup() as group:
        group.create_task(printing())

@console_script
def main():
    asyncio.run(tasks())

main()
"""
RAISING = """
from estcore.runtime.console import console_script

@console_script
def main():
    raise BrokenPipeError("of a connection")

main()
"""


def test_output_of_a_task_ends_quietly() -> None:
    assert unread(sys.executable, "-c", PRINTING) == (141, "")


def test_a_broken_connection_is_not_taken_for_closed_output() -> None:
    done = subprocess.run(
        [sys.executable, "-c", RAISING], capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert "BrokenPipeError: of a connection" in done.stderr
