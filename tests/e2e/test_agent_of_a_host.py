"""The agent of a host at a real suite: what it keeps, what it cannot keep, and what is on record."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import ssl
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
import yaml
from cryptography import x509
from cryptography.hazmat.primitives.hashes import SHA256

from estdev.operator import make_operator
from estsuite_testing.command_folder import command_folder
from estsuite_testing.e2e_stack import POLICY, Stack, start_stack, stop_stack

pytestmark = [pytest.mark.e2e, pytest.mark.asyncio(loop_scope="module")]

NAMES = ("kept", "revoked", "withdrawn")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def stack(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Stack]:
    """A suite whose label ``demo`` gives certificates of one minute."""
    folder = tmp_path_factory.mktemp("host")
    policy = yaml.safe_load(POLICY.read_text())
    policy["operators"] = [
        {
            "name": "boss", "certificate_issuer": "issuing", "certificate_subject": "CN=boss",
            "roles": ["revoker"],
        }
    ]  # fmt: skip
    for name in (*NAMES, "spent"):
        policy["rules"].append(
            {
                "name": name, "principal": {"secret": name}, "labels": ["demo"],
                "owner": {"tenant": "host", "service": name}, "profiles": ["demo"],
                "names": {"common_names": [f"{name}.example"]},
            }
        )  # fmt: skip
    path = folder / "policy.yaml"
    path.write_text(yaml.safe_dump(policy))
    profiles = yaml.safe_load(
        (
            Path(__file__).parents[2] / "libs/estsetup/src/estsetup/examples/profiles.yaml"
        ).read_text()
    )
    for profile in profiles["profiles"]:
        if profile["name"] == "demo":
            profile |= {"lifetime": "60s", "renewal": {"reaction_time": "5s", "overlap": "10s"}}
    profiles_file = folder / "profiles.yaml"
    profiles_file.write_text(yaml.safe_dump(profiles))
    started = await start_stack(folder, policy=path, profiles=profiles_file)
    try:
        yield started
    finally:
        await stop_stack(started)


class AgentProcess:
    """``estctl agent run`` with a folder of definitions."""

    def __init__(self, stack: Stack, folder: Path) -> None:
        self.stack, self.folder = stack, folder
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
        config = str(self.stack.layout.config_file("ca-signer"))
        made = await self.stack.suite.command(
            "ca-signer", "secret", "create", "--id", name, "--one-time", "--config", config
        )
        file = self.folder / f"{name}.secret"
        file.touch(mode=0o600)
        file.write_text(made.strip())
        return file

    def define(self, file: str, name: str, secret: Path) -> None:
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
        with (self.folder / "log").open("wb") as log:
            self.process = await asyncio.create_subprocess_exec(
                *(command_folder() / "estctl", "agent", "run", "--config", self.config),
                env=os.environ | {"NOTIFY_SOCKET": str(self.folder / "notify")},
                stderr=log,
            )
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self.process is not None
        if self.process.returncode is None:
            self.process.terminate()
        code = await self.process.wait()
        self.notify.close()
        assert code == 0, (self.folder / "log").read_text()[-2000:]

    def received(self) -> list[str]:
        while True:
            try:
                self.messages.append(self.notify.recv(4096).decode())
            except BlockingIOError:
                return self.messages

    def facts(self, name: str) -> dict[str, Any]:
        file = self.folder / "state" / "status.json"
        report = json.loads(file.read_text()) if file.exists() else {"definitions": {}}
        found: dict[str, Any] = report["definitions"].get(name, {})
        return found

    def certificate(self, name: str) -> x509.Certificate:
        return x509.load_pem_x509_certificate((self.out / f"{name}.pem").read_bytes())


async def until(condition: Callable[[], Any], within_s: float = 60) -> None:
    async with asyncio.timeout(within_s):
        while not condition():
            await asyncio.sleep(0.1)


async def until_logged(stack: Stack, code: str) -> dict[str, Any]:
    """The record of a refusal with this code."""
    async with asyncio.timeout(30):
        while True:
            for record in await stack.records():
                if record.get("reason_code") == code and record["outcome"] == "failure":
                    return record
            await asyncio.sleep(0.5)


async def test_a_host_keeps_what_it_can_and_says_what_it_cannot(
    stack: Stack, tmp_path: Path
) -> None:
    operator = await make_operator(stack.suite, "CN=boss")
    agent = AgentProcess(stack, tmp_path)
    for name in NAMES:
        agent.define(name, name, await agent.secret(name))
    spent = await agent.secret("spent")
    agent.define("first", "spent", spent)
    async with agent:
        # 1. Ready when every service can read its credential.
        await until(lambda: "READY=1" in agent.received())
        for name in (*NAMES, "first"):
            ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(agent.out / f"{name}.pem")
        kept = agent.certificate("kept")

        # 2. Another definition with a secret that was spent: the end is clear, and on record.
        agent.define("second", "spent", spent)
        await until(lambda: agent.facts("second").get("state") == "needs attention")
        assert agent.facts("second")["code"] == "secret.spent"
        record = await until_logged(stack, "secret.spent")
        assert "secret:spent" in json.dumps(record)

        # 3. One certificate is revoked, and one rule is withdrawn, before they are due.
        fingerprint = agent.certificate("revoked").fingerprint(SHA256()).hex()
        revoke = ["cert", "revoke", "--fingerprint", fingerprint, "--reason", "superseded"]
        await stack.suite.run("estctl", *revoke, "--config", str(operator), "--json")
        policy_file = stack.layout.config / "policy.yaml"
        policy = yaml.safe_load(policy_file.read_text())
        policy["rules"] = [r for r in policy["rules"] if r["name"] != "withdrawn"]
        policy_file.write_text(yaml.safe_dump(policy))

        await until(lambda: agent.facts("revoked").get("state") == "needs attention")
        assert agent.facts("revoked")["code"] == "auth.certificate_revoked"
        await until_logged(stack, "auth.certificate_revoked")
        await until(lambda: agent.facts("withdrawn").get("state") == "needs attention")
        code = agent.facts("withdrawn")["code"]
        assert code == "policy.renewal_withdrawn"
        record = await until_logged(stack, code)
        assert "CN=withdrawn.example" in json.dumps(record)

        # 4. The others are not disturbed: this one was renewed.
        await until(lambda: agent.certificate("kept") != kept)
        await until(lambda: agent.facts("kept").get("state") == "valid")
        # The connection by the new certificate proved it: no NATS user, no event.
        await until(lambda: agent.facts("kept").get("proven") is True)
        done = await asyncio.create_subprocess_exec(
            *(command_folder() / "estctl", "agent", "status", "--config", agent.config),
            stdout=asyncio.subprocess.PIPE,
        )
        table, _ = await done.communicate()
        assert done.returncode == 3
        assert b"[policy.renewal_withdrawn]" in table
