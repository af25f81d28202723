"""The ``accounts`` block of nats-server, from the table the services are tested with."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from estcore.messages import permissions
from estcore.messages.permissions import Permissions
from estcore.messages.signatures import Senders
from estsetup.keep import keep_secret
from estsetup.nkeys import new_user_seed, public_nkey, senders_document


def users(
    group: str = "default",
    agents: tuple[tuple[str, str], ...] = (),
    upstreams: tuple[str, ...] = (),
    issuers: tuple[str, ...] = ("issuing",),
) -> dict[str, Permissions]:
    """Return every NATS user with its permissions: services, jobs, operators, agents.

    ``issuers`` are those that labels of the front ends name, ``upstreams`` those that
    ca-signer-upstream serves; without any it has no user. An agent's user is named
    ``agent-<tenant>-<service>``.
    """
    found = {
        "migrate": permissions.provisioner(),
        "est-frontend": permissions.frontend(group, issuers),
        "ca-signer": permissions.signer(),
        "renewal": permissions.renewal(),
        "audit": permissions.audit(),
        "operator": permissions.operator(),
        "check-store": permissions.check_store(),
    }
    if upstreams:
        found["ca-signer-upstream"] = permissions.upstream(upstreams)
    for tenant, service in agents:
        found[f"agent-{tenant}-{service}"] = permissions.agent(tenant, service)
    return found


def seed_file(folder: Path, user: str) -> Path:
    """Return where the user's NKey seed lies in a folder of secrets."""
    return folder / f"nats-{user}.seed"


def public_keys(folder: Path, names: Mapping[str, Permissions]) -> dict[str, str]:
    """Return the public NKey of each user; seeds that are missing are made and kept."""
    keys = {}
    for name in names:
        path = seed_file(folder, name)
        keep_secret(path, new_user_seed())
        keys[name] = public_nkey(path.read_text(encoding="utf-8").strip())
    return keys


def existing_public_keys(folder: Path, names: Mapping[str, Permissions]) -> dict[str, str]:
    """Return the public NKey of each user that has a seed in a folder."""
    files = {name: seed_file(folder, name) for name in names}
    return {
        name: public_nkey(path.read_text(encoding="utf-8").strip())
        for name, path in files.items()
        if path.exists()
    }


def senders(
    folder: Path,
    names: Mapping[str, Permissions],
    group: str = "default",
    upstreams: tuple[str, ...] = (),
    issuers: tuple[str, ...] = ("issuing",),
) -> str:
    """Return the senders file for the seeds in a folder."""
    seeds = {name: seed_file(folder, name).read_text(encoding="utf-8") for name in names}
    return senders_document(seeds, group=group, issuers=issuers, upstreams=upstreams)


def joined(senders: str, previous: str) -> str:
    """Return a senders file with the keys of both, each once.

    Raises:
        ConfigurationError: one of them is no senders file.
    """
    keys: dict[str, object] = {}
    for text in (senders, previous):
        Senders.read(text)
        for key in json.loads(text)["keys"]:
            keys.setdefault(key["x"], key)
    return json.dumps({"keys": list(keys.values())}, indent=1) + "\n"


def render(block: Mapping[str, object]) -> str:
    """Return the ``accounts`` block as text to include in a nats-server configuration."""
    return f"accounts: {json.dumps(block, indent=2)}\n"


def server(block: Mapping[str, object], *, store: str) -> dict[str, object]:
    """Return a whole configuration for one server in a container."""
    return {
        "server_name": "estsuite",
        "host": "0.0.0.0",  # noqa: S104 - inside the container; compose publishes no port of it
        "port": 4222,
        "http": "127.0.0.1:8222",
        "max_payload": 1024 * 1024,
        # docs/adr/0057-worth-of-a-puback.md: what is younger is in the memory of who sent it.
        "jetstream": {
            "store_dir": store,
            "max_file_store": 20 * 1024**3,
            "sync_interval": "10s",
        },
        "accounts": dict(block),
    }
