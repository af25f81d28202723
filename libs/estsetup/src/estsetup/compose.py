"""Fill the folder that docker-compose.yml mounts: secrets, a development CA, settings.

    ca, keys             as ``estsetup.material`` makes them; no container mounts them
    config               settings, policy, profiles, certificates: nothing secret, and to be edited
    secrets/<container>  what this container may see, and no other
    data, operator       what containers write

A file of ``config`` that a person has changed is kept; others are written anew. ``extensions``
says what the files of ``deploy/compose`` that are in use add to all of this.
"""

from __future__ import annotations

import datetime as dt
import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from hashlib import sha256
from importlib import resources
from pathlib import Path

import yaml

from estcore.errors import ConfigurationError
from estsetup import nats
from estsetup.extensions import NATS_SERVERS, SERVICES, Extensions
from estsetup.material import ROLES, Material
from estsetup.service_settings import (
    AUDIT_ORIGIN,
    USER_ID,
    Places,
    compose_settings,
    operator_settings,
)

HOSTS = ("localhost", "127.0.0.1", "est-frontend")
HELD: dict[str, tuple[str, ...]] = {
    "postgres": ("postgres-superuser.password", *(f"{role}.password" for role in ROLES)),
    "migrate-ca-signer": ("nats-migrate.seed", "ca_signer_owner.password"),
    "migrate-renewal": ("nats-migrate.seed", "renewal_owner.password"),
    "migrate-audit": ("nats-migrate.seed", "audit_owner.password"),
    "ca-signer": ("nats-ca-signer.seed", "ca_signer.password", "issuing.key", "ca.passphrase"),
    "renewal": ("nats-renewal.seed", "renewal.password"),
    "audit": ("nats-audit.seed", "audit.password", "audit-checkpoint.pem"),
    "est-frontend": ("nats-est-frontend.seed", "server.key"),
    "estctl": ("nats-operator.seed", "operator.key"),
}
"""The secrets of each container, in ``secrets/<container>``."""
_WRITTEN = "written.json"
_STREAMS = "jetstream"
"""Where a NATS server keeps its streams in its folder."""
_DATA = ("postgres", "nats", "est-frontend", "ca-signer", "renewal", "audit")


@dataclass(frozen=True)
class Owners:
    """Whose files these are: containers read secrets and write data, a person edits the rest."""

    containers: tuple[int, int]
    person: tuple[int, int]


def prepare(
    folder: Path,
    places: Places | None = None,
    *,
    extensions: Extensions | None = None,
    owners: Owners | None = None,
    kept: Callable[[str], None] | None = None,
) -> None:
    """Fill ``folder``; ``places`` are the paths the settings name.

    ``extensions`` are the files of ``deploy/compose`` in use; none by default.
    ``kept`` receives the name of each file that was left as a person changed it. ``owners`` is for
    root; for others everything stays theirs.

    Raises:
        ConfigurationError: a ceremony failed; with its own line. Or the streams that are there
            were made by another number of NATS servers.
    """
    extensions = extensions or Extensions()
    _keep_servers(folder, extensions)
    material = Material(folder)
    material.make(ca_name="Compose Dev", hosts=HOSTS, origin=AUDIT_ORIGIN)
    extensions.make_secrets(material.keys)
    (folder / "config").mkdir(exist_ok=True)
    data = (*_DATA, *extensions.data_folders())
    for path in (*(f"data/{name}" for name in data), "secrets", "operator"):
        (folder / path).mkdir(parents=True, exist_ok=True, mode=0o700)
    _write_config(material, places or Places(), extensions, kept or (lambda _: None))
    _hand_out(material, extensions)
    if owners is not None:
        _hand_over(folder, owners)


def put_streams_aside(folder: Path, now: dt.datetime) -> Path | None:
    """Move what the NATS servers hold to a folder of its own; returns that, None: there is nothing.

    For another number of servers, which is stopped for it. Services publish again what their
    tables have. What waited in a stream only is in the folder, for the servers of before.
    """
    found = [path for path in (folder / "data" / name for name in NATS_SERVERS) if path.exists()]
    if not any((path / _STREAMS).exists() for path in found):
        return None
    aside = folder / "data" / f"nats-before-{now:%Y%m%dT%H%M%SZ}"
    aside.mkdir(mode=0o700)
    for path in found:
        path.rename(aside / path.name)
    return aside


def _keep_servers(folder: Path, extensions: Extensions) -> None:
    """Refuse to give the streams of one server to a cluster, or those of a cluster to one."""
    data = folder / "data"
    if not (data / NATS_SERVERS[0] / _STREAMS).exists():
        return
    several = (folder / "config" / f"{NATS_SERVERS[1]}.conf").exists()
    if several != extensions.ha:
        made = "three NATS servers (ha.yml)" if several else "one NATS server"
        raise ConfigurationError(
            f"the streams in {data / NATS_SERVERS[0]} were made by {made}: go on with the same "
            "files, or take everything down with them, then: "
            "docker compose run --rm setup new-streams --folder /compose/local"
        )


def owners_for(folder: Path) -> Owners | None:
    """Return who owns what when root prepares ``folder``: a person is who owns what is above it."""
    if os.getuid() != 0:
        return None
    above = folder.resolve().parent.stat()
    uid = int(os.environ.get("ESTSUITE_UID", USER_ID))
    gid = int(os.environ.get("ESTSUITE_GID", USER_ID))
    return Owners((uid, gid), (above.st_uid, above.st_gid))


def _write_config(
    material: Material, places: Places, extensions: Extensions, kept: Callable[[str], None]
) -> None:
    config, ca = material.folder / "config", material.ca
    examples = resources.files("estsetup").joinpath("examples")
    if not (config / "profiles.yaml").exists():
        text = examples.joinpath("profiles.yaml").read_text()
        (config / "profiles.yaml").write_text(text, encoding="utf-8")
    _write_policy(config / "policy.yaml", examples.joinpath("policy.yaml").read_text(), extensions)
    written = _Written(config, material.folder / _WRITTEN)
    for source in (
        *(ca / "root.pem", ca / "issuing.pem", ca / "chain.pem", ca / "server" / "server.pem"),
        *(material.verifier_key, material.operator_request),
    ):
        written.put(source.name, source.read_text(encoding="utf-8"))
    for name in SERVICES:
        settings = extensions.change(name, compose_settings(name, places, config), places)
        written.put(f"{name}.yaml", yaml.safe_dump(settings, sort_keys=False))
    settings = extensions.change("estctl", operator_settings(places), places)
    written.put("operator.yaml", yaml.safe_dump(settings, sort_keys=False))
    written.put("senders.json", material.senders())
    server = nats.server(material.accounts(), store="/data")
    configurations = extensions.nats_configurations(server, places)
    for host in NATS_SERVERS:
        if f"{host}.conf" not in configurations:  # it says how many servers there were
            (config / f"{host}.conf").unlink(missing_ok=True)
    for name, configuration in configurations.items():
        written.put(name, json.dumps(configuration, indent=1) + "\n")
    if extensions.monitoring:
        written.put("targets.json", json.dumps(extensions.scrape_targets(), indent=1) + "\n")
    written.save()
    for name in written.changed:
        kept(name)


def _write_policy(path: Path, example: str, extensions: Extensions) -> None:
    """Write the example policy, unless a person has changed it."""
    wanted = extensions.policy(example)
    others = {Extensions(keycloak=with_it).policy(example) for with_it in (False, True)}
    if not path.exists() or path.read_text(encoding="utf-8") in others - {wanted}:
        path.write_text(wanted, encoding="utf-8")


class _Written:
    """Files of a folder that were written here, by the hash of what was written."""

    def __init__(self, folder: Path, record: Path) -> None:
        self._folder, self._record = folder, record
        self._hashes: dict[str, str] = {}
        if record.exists():
            self._hashes = json.loads(record.read_text(encoding="utf-8"))
        self.changed: list[str] = []

    def put(self, name: str, text: str) -> None:
        """Write a file, unless a person has changed it."""
        path = self._folder / name
        if path.exists():
            found = _hash(path.read_bytes())
            if found == _hash(text.encode()):
                self._hashes[name] = found
                return
            if found != self._hashes.get(name):
                self.changed.append(name)
                return
        new = self._folder / f".{name}.new"  # services read some of them again: never half of one
        new.write_text(text, encoding="utf-8")
        new.chmod(0o644)
        new.replace(path)
        self._hashes[name] = _hash(text.encode())

    def save(self) -> None:
        """Remember what was written."""
        self._record.write_text(json.dumps(self._hashes, indent=1) + "\n", encoding="utf-8")


def _hash(octets: bytes) -> str:
    return sha256(octets).hexdigest()


def _hand_out(material: Material, extensions: Extensions) -> None:
    """Copy each secret to the containers that hold it; a container without it anymore loses it."""
    more = extensions.held()
    for container in HELD.keys() | more.keys():
        named = {name: name for name in HELD.get(container, ())} | more.get(container, {})
        folder = material.folder / "secrets" / container
        folder.mkdir(exist_ok=True, mode=0o700)
        for stale in {path.name for path in folder.iterdir()} - named.keys():
            (folder / stale).unlink()
        for name, source in named.items():
            _copy(material.keys / source, folder / name)


def _copy(source: Path, target: Path) -> None:
    octets = source.read_bytes()
    if target.exists() and target.read_bytes() == octets:
        return
    new = target.with_name(f".{target.name}.new")
    new.unlink(missing_ok=True)
    new.touch(mode=0o600)
    new.write_bytes(octets)
    new.replace(target)


def _hand_over(folder: Path, owners: Owners) -> None:
    _chown(folder, owners.person)
    for name in ("ca", "keys", "config"):
        for path in (folder / name, *(folder / name).rglob("*")):
            _chown(path, owners.person)
    for path in folder.iterdir():
        if path.is_file():
            _chown(path, owners.person)
    for name in ("secrets", "operator"):
        for path in (folder / name, *(folder / name).rglob("*")):
            _chown(path, owners.containers)
    _chown(folder / "data", owners.containers)
    # What is in them belongs to the containers already, and may be much.
    for path in (folder / "data").iterdir():
        _chown(path, owners.containers)


def _chown(path: Path, owner: tuple[int, int]) -> None:
    state = path.lstat()
    if (state.st_uid, state.st_gid) != owner:
        os.chown(path, *owner, follow_symlinks=False)
