"""Make everything docker-compose.yml mounts: secrets, a development CA, configuration.

Called by: deploy/compose/prepare.py
What exists is kept, so that a second run continues with the same CA; settings files and
nats.conf are written anew each time.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
import subprocess
import sys
from importlib import resources
from pathlib import Path

import yaml

from estcore.errors import ConfigurationError
from estcore.messages.accounts import server_accounts
from estdeploy import nats
from estdeploy.services import SERVICES, USER_ID, Places, compose_settings
from estdev.layout import keep_secret
from estdev.service_settings import AUDIT_ORIGIN

_DATA = tuple(f"data/{name}" for name in ("est-frontend", "ca-signer", "renewal", "audit"))
HOSTS = ("localhost", "127.0.0.1", "est-frontend")


def prepare(folder: Path, places: Places | None = None) -> None:
    """Fill ``folder``; ``places`` are the paths the settings name.

    Raises:
        ConfigurationError: a ceremony failed; with its own line.
    """
    for name in ("", "config", "secrets", "data/postgres", "data/nats", *_DATA):
        (folder / name).mkdir(parents=True, exist_ok=True, mode=0o700)
    _make_secrets(folder / "secrets")
    _make_ca(folder)
    _write_config(folder, places or Places())
    _hand_over(folder)


def _make_secrets(folder: Path) -> None:
    keep_secret(folder / "ca.passphrase", secrets.token_urlsafe(24))
    keep_secret(folder / "postgres-superuser.password", secrets.token_urlsafe(24))
    for service in SERVICES.values():
        if service.schema is not None:
            for role in (service.schema, f"{service.schema}_owner"):
                keep_secret(folder / f"{role}.password", secrets.token_urlsafe(24))
    keep_secret(folder / "ca_signer_reader.password", secrets.token_urlsafe(24))


def _make_ca(folder: Path) -> None:
    ca, hidden = folder / "ca", folder / "secrets"
    common = ["--folder", str(ca), "--passphrase-file", str(hidden / "ca.passphrase")]
    if not (ca / "root.pem").exists():
        _run("ca-signer", "ca", "init", "--name", "Compose Dev", *common)
    if not (ca / "server" / "server.pem").exists():
        hosts = [argument for host in HOSTS for argument in ("--host", host)]
        out = ["--out", str(ca / "server"), *hosts]
        _run("ca-signer", "ca", "server-certificate", *common, *out)
    key = hidden / "audit-checkpoint.pem"
    if not key.exists():
        vkey = _run("est-audit", "keygen", "--origin", AUDIT_ORIGIN, "--out", str(key))
        (folder / "config" / "audit.vkey").write_text(vkey.strip() + "\n", encoding="utf-8")
    # The root's key stays in ca/, which no container mounts.
    keep_secret(hidden / "issuing.key", (ca / "issuing.key").read_text(encoding="utf-8"))
    keep_secret(hidden / "server.key", (ca / "server" / "server.key").read_text(encoding="utf-8"))


def _write_config(folder: Path, places: Places) -> None:
    config, ca = folder / "config", folder / "ca"
    for name in ("policy.yaml", "profiles.yaml"):
        if not (config / name).exists():
            text = resources.files("estdev").joinpath("examples", name).read_text()
            (config / name).write_text(text, encoding="utf-8")
    for source in (ca / "issuing.pem", ca / "chain.pem", ca / "server" / "server.pem"):
        shutil.copyfile(source, config / source.name)
    for service in SERVICES.values():
        settings = compose_settings(service, places, config)
        text = yaml.safe_dump(settings, sort_keys=False)
        (config / f"{service.name}.yaml").write_text(text, encoding="utf-8")
    names = nats.users()
    block = server_accounts(names, nats.public_keys(folder / "secrets", names))
    senders = nats.senders(folder / "secrets", names)
    (config / "senders.json").write_text(senders, encoding="utf-8")
    text = json.dumps(nats.server(block, store="/data"), indent=1)
    (config / "nats.conf").write_text(text, encoding="utf-8")


def _hand_over(folder: Path) -> None:
    """Containers run as the owner of these files; as root that is the images' own user."""
    uid, gid = os.getuid(), os.getgid()
    if uid == 0:
        uid = gid = USER_ID
        for path in (folder, *folder.rglob("*")):
            os.chown(path, uid, gid, follow_symlinks=False)
    lines = ("COMPOSE_PROJECT_NAME=estsuite", f"ESTSUITE_UID={uid}", f"ESTSUITE_GID={gid}")
    (folder / "env").write_text("\n".join(lines) + "\n", encoding="utf-8")


def _run(command: str, *arguments: str) -> str:
    path = Path(sys.executable).parent / command
    if not path.exists():
        raise ConfigurationError(f"{command} is not installed beside {sys.executable}")
    done = subprocess.run([path, *arguments], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        lines = done.stderr.strip().splitlines() or ["no message"]
        raise ConfigurationError(f"{command} {arguments[0]}: {lines[-1]}")
    return done.stdout
