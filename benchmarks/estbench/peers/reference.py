"""The Go program of ``benchmarks/reference``: TLS, HTTP and a signature, nothing stored."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from pathlib import Path

from estbench import programs
from estbench.server import ended, started
from estbench.suite import Suite
from estdev.ports import free_port


class Reference:
    """The floor: what a new connection and a certificate cost in Go."""

    name = "Go mock"
    settle_s = 0.2

    def __init__(self, suite: Suite, folder: Path) -> None:
        self._clients, self._folder, self._port = suite.clients, folder, free_port()
        self._process: asyncio.subprocess.Process | None = None

    async def start(self) -> None:
        """Start it with the certificates of the suite."""
        self._process = await started(
            programs.reference(), "-addr", f"127.0.0.1:{self._port}",
            "-cert", self._clients.server_certificate, "-key", self._clients.server_key,
            "-ca", self._clients.bundle, log=self._folder / "reference.log", port=self._port,
        )  # fmt: skip

    def processes(self) -> Mapping[str, int]:
        """Return the only process."""
        assert self._process is not None
        return {"server": self._process.pid}

    def load_options(self) -> list[str]:
        """Return what the suite's own options are, but for the port."""
        return [*self._clients.options(), "-addr", f"127.0.0.1:{self._port}"]

    async def counts(self) -> dict[str, float]:
        """Return nothing: it counts nothing."""
        return {}

    async def stop(self) -> None:
        """End it."""
        if self._process is not None:
            await ended(self._process)
