"""Three nats-servers that form one JetStream, each behind a proxy, where the suite has one."""

from __future__ import annotations

import asyncio
import contextlib
import json
import shutil
import signal
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
from typing_extensions import override

from estcore.errors import ConfigurationError
from estcore.messages.permissions import Permissions
from estdev import nats
from estdev.nats import EmbeddedNATS
from estdev.ports import free_port
from estsuite_testing.chaos.fault_proxy import FaultProxy

MEMBERS = 3
_READY_S = 40


@dataclass
class Member:
    """One server of the cluster."""

    name: str
    folder: Path
    port: int = field(default_factory=free_port)
    route: int = field(default_factory=free_port)
    monitor: int = field(default_factory=free_port)
    proxy: FaultProxy = field(init=False)
    process: subprocess.Popen[bytes] | None = None

    def __post_init__(self) -> None:
        self.proxy = FaultProxy(free_port(), self.port)

    @property
    def store(self) -> Path:
        return self.folder / "store"

    def start(self) -> None:
        """Start the process; it joins the others by itself."""
        self.store.mkdir(parents=True, exist_ok=True)
        self.process = subprocess.Popen(
            [nats.nats_binary(), "-c", self.folder / "nats.conf", "-l", self.folder / "nats.log"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )

    async def stop(self, number: signal.Signals = signal.SIGKILL) -> None:
        """End the process by a signal."""
        if self.process is not None:
            self.process.send_signal(number)
            await asyncio.to_thread(self.process.wait)
            self.process = None

    def signal(self, number: signal.Signals) -> None:
        """Send the process a signal that does not end it."""
        if self.process is not None:
            self.process.send_signal(number)

    def wipe(self) -> None:
        """Lose everything that is on its disk."""
        for path in self.store.iterdir():
            shutil.rmtree(path, ignore_errors=True)

    async def healthy(self) -> bool:
        """Whether it says that it is up, and current with the others."""
        url = f"http://127.0.0.1:{self.monitor}/healthz"
        with contextlib.suppress(aiohttp.ClientError, OSError, TimeoutError):
            timeout = aiohttp.ClientTimeout(total=2)
            async with (
                aiohttp.ClientSession(timeout=timeout) as session,
                session.get(url) as answer,
            ):
                return answer.status == 200
        return False


class NATSCluster(EmbeddedNATS):
    """The suite's NATS, as three members with every stream on all of them."""

    def __init__(self, folder: Path, users: Mapping[str, Permissions]) -> None:
        super().__init__(folder, free_port(), users)
        self.members = [
            Member(f"nats-{number}", folder / "nats" / f"nats-{number}")
            for number in range(MEMBERS)
        ]

    @property
    @override
    def url(self) -> str:
        return ",".join(f"nats://127.0.0.1:{member.proxy.port}" for member in self.members)

    @property
    @override
    def running(self) -> bool:
        return all(member.process is not None for member in self.members)

    @override
    async def start(self) -> None:
        self._write_config()
        for member in self.members:
            await member.proxy.start()
            member.start()
        await self.until_healthy()

    async def until_healthy(self, within_s: float = _READY_S) -> None:
        """Wait until every member is current.

        Raises:
            ConfigurationError: one is not, in time.
        """
        for _ in range(int(within_s * 5)):
            if all(await asyncio.gather(*(member.healthy() for member in self.members))):
                return
            await asyncio.sleep(0.2)
        raise ConfigurationError(f"the NATS cluster does not become healthy; see {self.folder}")

    def thaw(self) -> None:
        """Let every member go on that was frozen, and the proxies forward."""
        for member in self.members:
            member.signal(signal.SIGCONT)
            member.proxy.release()

    @override
    async def stop(self, *, kill: bool = False) -> None:
        for member in self.members:
            await member.proxy.stop()
            await member.stop(signal.SIGKILL if kill else signal.SIGTERM)

    @override
    def _write_config(self) -> None:
        super()._write_config()
        common: dict[str, Any] = json.loads(self.config_file.read_text())
        for member in self.members:
            member.folder.mkdir(parents=True, exist_ok=True)
            config = common | {
                "port": member.port,
                "server_name": member.name,
                "client_advertise": f"127.0.0.1:{member.proxy.port}",
                "http": f"127.0.0.1:{member.monitor}",
                "jetstream": {"store_dir": str(member.store), "max_file_store": 20 * 1024**3},
                "cluster": {
                    "name": "estsuite",
                    "listen": f"127.0.0.1:{member.route}",
                    "routes": [
                        f"nats-route://127.0.0.1:{other.route}"
                        for other in self.members
                        if other is not member
                    ],
                },
            }
            path = member.folder / "nats.conf"
            path.touch(mode=0o600)
            path.write_text(json.dumps(config, indent=1))
