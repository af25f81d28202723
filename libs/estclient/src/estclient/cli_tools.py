"""Verbs of ``estctl``: password and audit, of which verify needs no service."""

from __future__ import annotations

import getpass
import os
import sys
from pathlib import Path
from typing import Any

import click

from estcore.errors import ConfigurationError
from estcore.runtime.command_line import PATH, Group
from estcore.runtime.log_report import (
    verify_report,
)
from estcore.runtime.log_verification import (
    Choices,
    choices_options,
    open_lines,
    print_report,
    verify_log,
)
from estcore.runtime.terminal import write_document

_SHORTEST = 12
audit = Group("audit")
audit.lazy("search", "estclient.operators.audit_log", "Search the audit log as an auditor.")


audit.lazy("prove", "estclient.operators.audit_log", "Write a proof of a record or checkpoint.")


audit.lazy("purge-propose", "estclient.operators.audit_log", "Propose to purge a month.")
audit.lazy("purge-confirm", "estclient.operators.audit_log", "Confirm a proposed purge.")
audit.lazy("tail", "estclient.operators.audit_log", "Print new records as they come.")


audit.lazy("report", "estclient.operators.audit_log", "Write the report of a period.")
audit.lazy("export", "estclient.operators.audit_log", "Write the audit log to a file.")


@audit.command("verify-report", help="Verify a signed report, and compare it with an export.")
@click.option("--report", type=PATH, required=True, help="Folder of the report.")
@click.option("--vkey", required=True, help="Verifier key of the log, or a file with it.")
@click.option("--export", type=PATH, help="Export of the whole log: must give the same report.")
def _verify_report(report: Path, vkey: str, export: Path | None) -> None:
    verify_report(report, vkey, export)


@audit.command("verify-proof", help="Verify a proof of a record or of an older checkpoint.")
@click.option("--proof", type=PATH, required=True, help="File that prove wrote.")
@click.option("--vkey", required=True, help="Verifier key of the log, or a file with it.")
@click.option("--checkpoint", type=PATH, help="The older checkpoint of a proof of consistency.")
@click.option("--witness", multiple=True, metavar="VKEY", help="A witness that cosigned it.")
@click.option("--json", is_flag=True, help="Print what is proven as JSON.")
def _verify_proof(
    proof: Path, vkey: str, checkpoint: Path | None, witness: tuple[str, ...], json: bool
) -> None:
    from estcore.runtime.log_proof import verify_proof

    verify_proof(proof, vkey=vkey, checkpoint=checkpoint, witness=witness, as_json=json)


@audit.command("verify", help="Verify hash chain, tree, checkpoints and gaps of an export.")
@click.option("--export", type=PATH, required=True, help="File that est-audit export wrote.")
@choices_options
def _verify(export: Path, choices: Choices) -> int:
    with open_lines(export) as lines:
        report = verify_log(lines, choices)
    print_report(report, as_json=choices.json)
    return 0 if report.ok else 1


@click.command("password")
@click.option("--user", required=True, help="Name of the user.")
@click.option("--password-file", type=PATH, help="Default: ask for the password, or read a pipe.")
@click.option("--digest", is_flag=True, help="Add verifiers for HTTP Digest.")
@click.option("--realm", default="est", help="The setting digest.realm of the front ends.")
@click.option("--users-file", type=PATH, help="Add or replace the user there; print nothing.")
def password(
    user: str, password_file: Path | None, digest: bool, realm: str, users_file: Path | None
) -> None:
    """Print the verifiers of a password, for users_file, or write them into that file."""
    import yaml
    from argon2 import PasswordHasher

    from estcore.est.http_digest import DIGESTS, verifier

    text = _password(password_file)
    if len(text) < _SHORTEST:
        raise ConfigurationError(f"a password has {_SHORTEST} characters or more")
    hasher = PasswordHasher(time_cost=2, memory_cost=19_456, parallelism=1)
    entry: dict[str, Any] = {"argon2id": hasher.hash(text)}
    if digest:
        entry["digest"] = {name: verifier(user, realm, text, name) for name in DIGESTS}
    if users_file is not None:
        _add_user(users_file, user, entry)
    else:
        write_document(yaml.safe_dump({"users": {user: entry}}))


def _add_user(file: Path, user: str, entry: dict[str, Any]) -> None:
    """Write the file anew with the user in it, in one step: front ends look at it all the time.

    Comments in it are lost. Its mode and owner stay where it exists.

    Raises:
        ConfigurationError: the file is not a mapping with ``users``, or cannot be written.
    """
    import yaml

    from estcore.pki.profile import read_yaml

    document = read_yaml(file) if file.exists() else {"users": {}}
    users = document.get("users") if isinstance(document, dict) else None
    if not isinstance(users, dict):
        raise ConfigurationError(f"{file} is not a users_file: a mapping called users is expected")
    users[user] = entry
    new = file.with_name(f".{file.name}.{os.getpid()}")
    try:
        before = file.stat() if file.exists() else None
        descriptor = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "w", encoding="utf-8") as text:
            text.write(yaml.safe_dump(document, sort_keys=False))
            text.flush()
            os.fsync(descriptor)
        if before is not None:
            new.chmod(before.st_mode & 0o777)
            os.chown(new, before.st_uid, before.st_gid)
        new.replace(file)
    except OSError as exc:
        new.unlink(missing_ok=True)
        raise ConfigurationError(f"cannot write {file}: {exc.strerror}") from exc


def _password(file: Path | None) -> str:
    if file is not None:
        from estcore.runtime.settings import read_secret

        return read_secret(file, "the password")
    if not sys.stdin.isatty():
        return sys.stdin.readline().rstrip("\n")
    first = getpass.getpass("Password: ")
    if getpass.getpass("Again: ") != first:
        raise ConfigurationError("the two passwords differ")
    return first
