"""The command est-witness: run, keygen, check-config."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Sequence
from pathlib import Path

import click
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)

from est_witness.seen import SeenFiles
from est_witness.settings import PREFIX, WitnessSettings
from est_witness.web import WitnessServer, tls_context
from est_witness.witness import Witness
from estcore.clock import SystemClock
from estcore.errors import ConfigurationError, MalformedRequest
from estcore.runtime import command_line, logs
from estcore.runtime.admin import AdminServer
from estcore.runtime.command_line import PATH, Group
from estcore.runtime.console import console_script
from estcore.runtime.service import stop_on_signals
from estcore.runtime.settings import load_settings, read_secret
from estcore.runtime.terminal import write_line
from estcore.tlog.checkpoint import check_name
from estcore.tlog.cosignature import CosignerKey

NAME = "est-witness"
witness = Group(
    NAME,
    distribution="estsuite-witness",
    help="Witnesses audit logs: cosigns checkpoints that continue what it has seen.",
)
_config = click.option(
    "--config", type=PATH, help=f"YAML file with the settings; or {PREFIX}_CONFIG."
)


async def run(settings: WitnessSettings, stop: asyncio.Event) -> None:
    """Serve until ``stop``.

    Raises:
        ConfigurationError: a file cannot be used, or a port is taken.
    """
    key = load_key(settings.key_file)
    files = SeenFiles(settings.state_folder)
    try:
        part = Witness(settings.name, key, settings.keys(), files, SystemClock())
        await _serve(settings, part, stop)
    finally:
        files.close()


async def _serve(settings: WitnessSettings, part: Witness, stop: asyncio.Event) -> None:
    server = WitnessServer(settings.listen, part)
    admin = AdminServer(settings.admin, {})
    try:
        await admin.start()
        await server.start()
        await stop.wait()
    finally:
        admin.stopping = True
        await server.stop()
        await admin.stop()


@witness.command("run", help="Serve until SIGTERM.")
@_config
def _run(config: Path | None) -> None:
    settings = load_settings(WitnessSettings, PREFIX, config)
    logs.configure(NAME, settings.name, settings.telemetry.log_level)

    async def serve() -> None:
        await run(settings, stop_on_signals())

    asyncio.run(serve())


@witness.command("check-config", help="Read the settings and the files they name.")
@_config
def _check(config: Path | None) -> None:
    settings = load_settings(WitnessSettings, PREFIX, config)
    load_key(settings.key_file)
    tls_context(settings.listen)
    write_line("good")


@witness.command("keygen", help="Make the key of a witness and print its verifier key.")
@click.option("--out", type=PATH, required=True, help="File to make, mode 0600.")
@click.option("--name", required=True, help="The setting name.")
def _keygen(out: Path, name: str) -> None:
    try:
        check_name(name)
    except MalformedRequest as exc:
        raise ConfigurationError(exc.reason) from exc
    key = Ed25519PrivateKey.generate()
    pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    try:
        descriptor = os.open(out, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except OSError as exc:
        raise ConfigurationError(f"cannot create {out}: {exc.strerror}") from exc
    with os.fdopen(descriptor, "wb") as file:
        file.write(pem)
    write_line(str(CosignerKey(name, key.public_key())))


@witness.command("vkey", help="Print the verifier key, for the settings of est-audit.")
@_config
def _vkey(config: Path | None) -> None:
    settings = load_settings(WitnessSettings, PREFIX, config)
    write_line(str(CosignerKey(settings.name, load_key(settings.key_file).public_key())))


def load_key(file: Path) -> Ed25519PrivateKey:
    """Return the witness's key.

    Raises:
        ConfigurationError: missing, not for its owner alone, or not an Ed25519 key.
    """
    pem = read_secret(file, "the key of the witness")
    try:
        key = load_pem_private_key(pem.encode(), password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as exc:
        raise ConfigurationError(f"not a PKCS#8 key without password: {file}") from exc
    if not isinstance(key, Ed25519PrivateKey):
        raise ConfigurationError(f"the key of the witness is not Ed25519: {file}")
    return key


@console_script
def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point of ``est-witness``."""
    return command_line.run(witness, NAME, arguments)
