"""The suite under Docker Compose, from a clone of this repository; for ``make compose-test``."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import ssl
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import aiohttp
import pytest
from estdeploy import compose_rules

from estcore.messages.text import without_surrogates
from estsuite_testing.cluster.load import Client
from estsuite_testing.e2e_stack import certificate_in, make_csr, same_key

ROOT = Path(__file__).resolve().parents[3]
PROJECT = "estsuite-test"
CLOSING_S = 0.3
"""aiohttp closes connections with TLS a moment after their session."""


class Compose:
    """A clone, and the compose command in it with ``files`` of ``deploy/compose``."""

    def __init__(self, folder: Path, *files: str) -> None:
        self.folder, self.files = folder, files
        self.local = folder / "deploy" / "compose" / "local"
        self.secret = ""
        tool = compose_rules.tool(install=False)
        if tool is None:
            pytest.exit("make compose-test: Compose is not installed", returncode=2)
        named = ["docker-compose.yml", *(f"deploy/compose/{name}.yml" for name in files)]
        if override := os.environ.get("COMPOSE_OVERRIDE"):
            named.append(override)
        self._command = [*tool, "-p", PROJECT, *(part for name in named for part in ("-f", name))]

    def __call__(self, *arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            [*self._command, *arguments],
            cwd=self.folder,
            capture_output=True,
            text=True,
            check=False,
            stdin=subprocess.DEVNULL,
        )
        assert not check or done.returncode == 0, without_surrogates(done.stdout + done.stderr)
        return done

    def up(self) -> None:
        """Start everything, and wait until est-frontend serves."""
        self("up", "-d")
        self.until(lambda: asyncio.run(self._serves()) == 200)

    def until(self, true: Callable[[], bool], *, seconds: float = 120) -> None:
        """Wait until something is true; the logs are the reason when it never is."""
        end = time.monotonic() + seconds
        while not true():
            assert time.monotonic() < end, self("logs", "--tail", "20").stdout
            time.sleep(1)

    def seconds(self, *names: str) -> list[str]:
        """Return the second containers of services, which ``ha.yml`` has."""
        return [f"{name}-2" for name in names] if "ha" in self.files else []

    async def _serves(self) -> int:
        try:
            return await self.client().cacerts()
        except (aiohttp.ClientError, OSError):
            return 0
        finally:
            await asyncio.sleep(CLOSING_S)

    def client(self, secret: str = "") -> Client:
        """Return a client of the port that Compose publishes."""
        root = self.local / "config" / "root.pem"
        context = ssl.create_default_context(cafile=str(root))
        return Client(("127.0.0.1", 8443), context, secret=secret, host="localhost")

    def operator(self, *arguments: str) -> dict[str, object]:
        """Give an operator's command; returns what it prints."""
        printed = self("run", "--rm", "-T", "estctl", *arguments, "--json").stdout
        found: dict[str, object] = json.loads(printed[printed.index("{") :])
        return found

    def make_secret(self) -> str:
        """Make an enrollment secret for ``web.clinic.example``."""
        self.secret = str(self.operator("secret", "create", "--id", "web-bootstrap")["secret"])
        return self.secret


@contextlib.contextmanager
def cloned(folder: Path, *files: str) -> Iterator[Compose]:
    """Copy what git knows of this repository; what was started in it ends."""
    listed = subprocess.run(
        ["git", "-C", ROOT, "ls-files", "-z"], capture_output=True, check=True, text=True
    )
    for name in filter(None, listed.stdout.split("\0")):
        if (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, folder / name)
    compose = Compose(folder, *files)
    try:
        yield compose
    finally:
        compose("down", "--volumes", "--timeout", "20", check=False)


def enrolled(client: Client, name: str = "web.clinic.example") -> int:
    """Enroll until it is done; returns the status of the last answer."""
    key, csr = make_csr(name)

    async def enroll() -> int:
        status = 0
        for _ in range(30):
            status, _, body = await client.enroll_once(csr)
            if status == 200:
                assert same_key(certificate_in(body), key)
            if status not in {202, 401, 503}:
                break
            await asyncio.sleep(1)
        await asyncio.sleep(CLOSING_S)
        return status

    return asyncio.run(enroll())
