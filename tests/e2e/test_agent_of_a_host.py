"""The agent of a host at a real suite: what it keeps, what it cannot keep, and what is on record."""

from __future__ import annotations

import asyncio
import json
import ssl
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
import yaml
from cryptography.hazmat.primitives.hashes import SHA256

from estdev.operator import make_operator
from estsuite_testing.agent_process import AgentProcess, start_for_agents, until
from estsuite_testing.command_folder import command_folder
from estsuite_testing.e2e_stack import Stack, stop_stack

pytestmark = [pytest.mark.e2e, pytest.mark.asyncio(loop_scope="module")]

NAMES = ("kept", "revoked", "withdrawn")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def stack(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Stack]:
    """A suite whose label ``demo`` gives certificates of one minute."""
    folder = tmp_path_factory.mktemp("host")
    operator = {
        "name": "boss", "certificate_issuer": "issuing", "certificate_subject": "CN=boss",
        "roles": ["revoker"],
    }  # fmt: skip
    renewal = {"reaction_time": "5s", "overlap": "10s"}
    started = await start_for_agents(
        folder, (*NAMES, "spent"), operators=[operator], renewal=renewal
    )
    try:
        yield started
    finally:
        await stop_stack(started)


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
