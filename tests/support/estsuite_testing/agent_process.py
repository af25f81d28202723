"""``estctl agent`` as a process of its own, at a whole suite with certificates of a minute."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import sys
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml
from cryptography import x509

from estsuite_testing.command_folder import command_folder
from estsuite_testing.e2e_stack import POLICY, Stack, start_stack

_PROFILES = Path(__file__).parents[3] / "libs/estsetup/src/estsetup/examples/profiles.yaml"


async def start_for_agents(
    folder: Path,
    names: Iterable[str],
    *,
    owner: Mapping[str, str] | None = None,
    operators: Iterable[dict[str, Any]] = (),
    renewal: Mapping[str, str],
    lifetime: str = "60s",
    **options: Any,
) -> Stack:
    """Start a suite whose label ``demo`` gives a certificate to each secret of ``names``."""
    policy = yaml.safe_load(POLICY.read_text())
    policy["operators"] = list(operators)
    for name in names:
        policy["rules"].append(
            {
                "name": name, "principal": {"secret": name}, "labels": ["demo"],
                "owner": dict(owner or {"tenant": "host", "service": name}), "profiles": ["demo"],
                "names": {"common_names": [f"{name}.example"]},
            }
        )  # fmt: skip
    path = folder / "policy.yaml"
    path.write_text(yaml.safe_dump(policy))
    profiles = yaml.safe_load(_PROFILES.read_text())
    for profile in profiles["profiles"]:
        if profile["name"] == "demo":
            profile |= {"lifetime": lifetime, "renewal": dict(renewal)}
    profiles_file = folder / "profiles.yaml"
    profiles_file.write_text(yaml.safe_dump(profiles))
    return await start_stack(folder, policy=path, profiles=profiles_file, **options)


class AgentProcess:
    """``estctl agent run`` with a folder of definitions; certificates are of the label ``demo``."""

    def __init__(
        self,
        stack: Stack,
        folder: Path,
        environment: Mapping[str, str] | None = None,
        **defaults: Any,
    ) -> None:
        self.stack, self.folder = stack, folder
        self._environment = dict(environment or {})
        self.definitions, self.out = folder / "agent.d", folder / "out"
        for made in (self.definitions, self.out):
            made.mkdir()
        self.config = folder / "agent.yaml"
        self.config.write_text(
            yaml.safe_dump(
                {
                    "definitions": str(self.definitions),
                    "state_folder": str(folder / "state"),
                    "admin": None,
                    "reload_every_s": 0.5,
                    "defaults": {
                        "server": {
                            "urls": [f"https://localhost:{stack.layout.ports.est}"],
                            "trust_file": str(stack.layout.root_file),
                            "label": "demo",
                        },
                        "retry_s": 0.5, "longest_retry_s": 5, "renew_at": 0.5,
                        **defaults,
                    },
                }
            )
        )  # fmt: skip
        self.notify = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.notify.bind(str(folder / "notify"))
        self.notify.setblocking(False)
        self.messages: list[str] = []
        self.process: asyncio.subprocess.Process | None = None

    async def secret(self, name: str) -> Path:
        """Return a file with a new one-time secret of this id."""
        config = str(self.stack.layout.config_file("ca-signer"))
        made = await self.stack.suite.command(
            "ca-signer", "secret", "create", "--id", name, "--one-time", "--config", config
        )
        file = self.folder / f"{name}.secret"
        file.touch(mode=0o600)
        file.write_text(made.strip())
        return file

    def define(self, file: str, name: str, secret: Path) -> None:
        """Write a definition; the secret has the id ``name``."""
        definition = {
            "bootstrap": {
                "subject": f"CN={name}.example",
                "user": name,
                "secret_file": str(secret),
            },
            "outputs": [{"format": "combined-pem", "path": str(self.out / f"{file}.pem")}],
        }
        (self.definitions / f"{file}.yaml").write_text(yaml.safe_dump(definition))

    async def __aenter__(self) -> AgentProcess:
        await self.start()
        return self

    async def start(self) -> None:
        """Start it, also once more after it was killed."""
        notify = {"NOTIFY_SOCKET": str(self.folder / "notify")}
        # A library that has to be loaded first needs a process that is executed.
        executed = "LD_PRELOAD" in self._environment
        commands = Path(sys.executable).parent if executed else command_folder()
        with (self.folder / "log").open("ab") as log:
            self.process = await asyncio.create_subprocess_exec(
                *(commands / "estctl", "agent", "run", "--config", self.config),
                env=os.environ | notify | self._environment,
                stderr=log,
            )

    async def __aexit__(self, *_: object) -> None:
        assert self.process is not None
        if self.process.returncode is None:
            self.process.terminate()
        code = await self.process.wait()
        self.notify.close()
        assert code == 0, (self.folder / "log").read_text()[-2000:]

    def received(self) -> list[str]:
        """Return what it sent to the service manager."""
        while True:
            try:
                self.messages.append(self.notify.recv(4096).decode())
            except BlockingIOError:
                return self.messages

    def facts(self, name: str) -> dict[str, Any]:
        """Return what its status file says of a definition."""
        file = self.folder / "state" / "status.json"
        report = json.loads(file.read_text()) if file.exists() else {"definitions": {}}
        found: dict[str, Any] = report["definitions"].get(name, {})
        return found

    def certificate(self, name: str) -> x509.Certificate:
        """Return the certificate in the output of a definition."""
        return x509.load_pem_x509_certificate((self.out / f"{name}.pem").read_bytes())


async def until(condition: Callable[[], Any], within_s: float = 60) -> None:
    """Wait for a condition."""
    async with asyncio.timeout(within_s):
        while not condition():
            await asyncio.sleep(0.1)
