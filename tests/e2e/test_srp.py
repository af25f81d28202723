"""TLS-SRP (RFC 7030 section 3.3.3, RFC 5054): est-frontend-srp beside a running suite, with curl."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import socket
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
import yaml

from estdev.local import Running, admin_get
from estdev.ports import free_port
from estsuite_testing.command_folder import command_folder
from estsuite_testing.e2e_stack import (
    POLICY,
    Stack,
    certificate_in,
    make_csr,
    same_key,
    start_stack,
    stop_stack,
)
from estsuite_testing.raw_client import BASE, b64

pytestmark = [pytest.mark.e2e, pytest.mark.asyncio(loop_scope="module")]

PASSWORD = "correct horse battery"
USERS = ("alice", "bob", "carol", "dave")
SLOWED = "carol"
"""A source with many wrong passwords; no other test uses it."""
BAD_MAC = "bad record mac"


@dataclass
class World:
    """A suite, the process beside it, and curl."""

    stack: Stack
    folder: Path
    config: Path
    port: int
    admin: int
    process: asyncio.subprocess.Process

    async def curl(
        self, user: str, password: str, *more: str, path: str = "cacerts", tls: str = "1.2"
    ) -> tuple[int, bytes, str]:
        """Exit code, body and messages; the password goes by a file, not by the arguments."""
        config = self.folder / "curlrc"
        config.write_text(f'tlsauthtype = "SRP"\ntlsuser = "{user}"\ntlspassword = "{password}"\n')
        process = await asyncio.create_subprocess_exec(
            *("curl", "-q", "-sS", "-k", "-i", "-K", str(config), "--tls-max", tls),
            *("--max-time", "20", *more, f"https://localhost:{self.port}{BASE}/{path}"),
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        out, err = await process.communicate()
        assert process.returncode is not None
        return process.returncode, out, err.decode()

    async def enroll(self, user: str, csr: bytes, path: str = "srp/simpleenroll") -> Any:
        body = self.folder / "request.b64"
        body.write_bytes(b64(csr))
        more = ("-H", "Content-Type: application/pkcs10", "--data-binary", f"@{body}")
        return await self.curl(user, PASSWORD, *more, path=path)

    async def set_user(self, *arguments: str, password: str = "") -> None:
        process = await asyncio.create_subprocess_exec(
            command_folder() / "est-frontend-srp",
            *("user", "--config", str(self.config), *arguments),
            stdin=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        _, err = await process.communicate(f"{password}\n".encode())
        assert process.returncode == 0, err.decode()

    async def audited(self) -> list[dict[str, Any]]:
        await asyncio.sleep(1.5)
        return await self.stack.records()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def world(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[World]:
    folder = tmp_path_factory.mktemp("srp")
    policy = yaml.safe_load(POLICY.read_text())
    profiles = policy["labels"][policy["default_label"]]["profiles"]
    shared = {"issuer": "issuing", "profiles": profiles}
    policy["labels"]["srp"] = {**shared, "authentication": ["srp"]}
    policy["labels"]["bound"] = {**shared, "authentication": ["srp"], "linking": "require"}
    for user in USERS:
        policy["rules"].append(
            {
                "name": user,
                "principal": {"user": user},
                "owner": {"tenant": "test", "service": user},
                "labels": ["srp", "bound"],
                "profiles": profiles,
                "names": {"common_names": ["dev-*"]},
            }
        )
    file = folder / "policy.yaml"
    file.write_text(yaml.safe_dump(policy))
    stack = await start_stack(folder / "suite", policy=file)
    layout = stack.layout
    port, admin = free_port(), free_port()
    config = layout.write_settings("est-frontend", "srp", admin)
    settings = yaml.safe_load(config.read_text())
    settings["listen"] |= {"port": port, "handshake_timeout_s": 3}
    settings["limits"] = {"head_timeout_s": 2}
    settings["reload_every_s"] = 0.2
    settings["srp"] = {"verifiers_file": str(folder / "srp.yaml"), "max_connections": 12}
    config.write_text(yaml.safe_dump(settings))
    world = World(stack, folder, config, port, admin, None)  # type: ignore[arg-type] # in a moment
    for user in USERS:
        await world.set_user("--name", user, password=PASSWORD)
    log = (layout.logs / "srp.log").open("ab")
    world.process = await stack.suite.spawn(
        *("est-frontend-srp", "run", "--config", str(config)), stdout=log, stderr=log
    )
    await stack.suite.wait_ready(Running("est-frontend", "srp", admin, world.process, log))
    try:
        yield world
    finally:
        if world.process.returncode is None:
            world.process.send_signal(signal.SIGTERM)
            await world.process.wait()
        log.close()
        await stop_stack(stack)


async def test_K15_cacerts_over_srp_with_curl(world: World) -> None:
    code, out, err = await world.curl("alice", PASSWORD)
    assert code == 0, err
    assert out.startswith(b"HTTP/1.1 200 OK\r\n")


async def test_K15_a_user_enrolls_and_is_the_principal_in_ledger_and_log(world: World) -> None:
    key, csr = make_csr("dev-srp")
    code, out, err = await world.enroll("alice", csr)
    assert code == 0, err
    head, _, body = out.rpartition(b"\r\n\r\n")
    assert b"HTTP/1.1 200 OK" in head, out
    certificate = certificate_in(body)
    assert same_key(certificate, key)
    records = [r for r in await world.audited() if r["actor"].get("subject") == "srp:alice"]
    assert {r["action"] for r in records} == {"certificate.issue"}
    assert {r["actor"]["auth_method"] for r in records} == {"srp"}
    assert {r["origin"]["tls_version"] for r in records} == {"TLSv1.2"}
    assert await world.stack.verify_cross()


async def test_K15_a_wrong_password_and_an_unknown_user_end_alike(world: World) -> None:
    """RFC 5054 2.5.1.3: "the server could simulate the existence of a PSK identity"."""
    wrong = await world.curl("bob", "not the password")
    unknown = await world.curl("unknown-user", "not the password")
    assert wrong[0] == unknown[0] == 35
    assert BAD_MAC in wrong[2]
    assert wrong[2].lower() == unknown[2].lower()
    records = await world.audited()
    assert sum(r.get("reason_code") == "auth.srp" for r in records) >= 2
    assert "unknown-user" not in json.dumps(records)
    assert (await world.curl("bob", PASSWORD))[0] == 0


async def test_K15_failures_make_growing_pauses_for_users_known_or_not(world: World) -> None:
    for name in (SLOWED, "ghost"):
        seen = [(await world.curl(name, "a wrong one"))[2] for _ in range(9)]
        assert BAD_MAC in seen[0]
        assert "access denied" in seen[-1], seen
        if name == SLOWED:
            # The right password must pause too, from here; others need not.
            assert "access denied" in (await world.curl(SLOWED, PASSWORD))[2]
    assert (await world.curl("alice", PASSWORD))[0] == 0


async def test_K15_nothing_but_srp_and_tls_1_2_is_spoken(world: World) -> None:
    async def plain(*more: str) -> tuple[int, str]:
        process = await asyncio.create_subprocess_exec(
            *("curl", "-q", "-sS", "-k", *more, f"https://localhost:{world.port}{BASE}/cacerts"),
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.PIPE,
        )
        _, err = await process.communicate()
        assert process.returncode is not None
        return process.returncode, err.decode()

    for more in ((), ("--tls-max", "1.2"), ("--tlsv1.3",)):
        code, err = await plain(*more)
        assert code == 35, err
    code, _, err = await world.curl("alice", PASSWORD, tls="1.1")
    assert code == 35, err


async def test_K15_a_label_without_srp_wants_other_credentials(world: World) -> None:
    _, csr = make_csr("dev-other")
    _, out, _ = await world.enroll("alice", csr, path="simpleenroll")
    assert b"HTTP/1.1 401" in out
    assert b"X-Error-Code: auth.required" in out


async def test_K15_the_usual_listener_knows_nothing_of_srp(world: World) -> None:
    _, csr = make_csr("dev-other")
    body = world.folder / "request.b64"
    body.write_bytes(b64(csr))
    process = await asyncio.create_subprocess_exec(
        *("curl", "-q", "-sS", "--cacert", str(world.stack.layout.root_file), "-i"),
        *("-H", "Content-Type: application/pkcs10", "--data-binary", f"@{body}"),
        f"https://localhost:{world.stack.layout.ports.est}{BASE}/srp/simpleenroll",
        stdout=asyncio.subprocess.PIPE,
    )
    out, _ = await process.communicate()
    assert out.startswith(b"HTTP/1.1 401")


async def test_K15_users_come_and_go_while_it_runs(world: World) -> None:
    await world.set_user("--name", "erin", password=PASSWORD)
    async with asyncio.timeout(5):
        while (await world.curl("erin", PASSWORD))[0] != 0:
            await asyncio.sleep(0.3)
    await world.set_user("--name", "erin", "--remove")
    async with asyncio.timeout(5):
        while (await world.curl("erin", PASSWORD))[0] == 0:
            await asyncio.sleep(0.3)


async def test_a_connection_that_says_nothing_is_ended(world: World) -> None:
    started = time.monotonic()
    reader, writer = await asyncio.open_connection("localhost", world.port)
    writer.write(b"\x16\x03\x01")
    with contextlib.suppress(ConnectionError):
        assert await reader.read() == b""
    assert 2 < time.monotonic() - started < 10
    await closed(writer)


async def test_connections_beyond_the_limit_are_ended_and_room_comes_back(world: World) -> None:
    opened = [socket.create_connection(("localhost", world.port)) for _ in range(20)]
    await asyncio.sleep(0.5)
    code, _, _ = await world.curl("alice", PASSWORD)
    assert code != 0
    for one in opened:
        one.close()
    async with asyncio.timeout(10):
        while (await world.curl("alice", PASSWORD))[0] != 0:
            await asyncio.sleep(0.2)


async def test_octets_of_any_kind_do_not_harm_it(world: World) -> None:
    for octets in (
        os.urandom(400),
        b"GET / HTTP/1.1\r\n\r\n",
        b"\x16\x03\x03\x00\x04\x01\x00\x00\x00",
        b"\x15\x03\x03\x00\x02\x02\x28",
    ):
        reader, writer = await asyncio.open_connection("localhost", world.port)
        writer.write(octets)
        async with asyncio.timeout(8):
            with contextlib.suppress(ConnectionError):
                await reader.read()
        await closed(writer)
    assert (await admin_get(world.admin, "/readyz")).startswith("ready")
    assert (await world.curl("dave", PASSWORD))[0] == 0


async def test_no_password_and_no_unknown_name_is_in_the_log(world: World) -> None:
    await world.curl("typed-a-password-here", "something secret")
    log = (world.stack.layout.logs / "srp.log").read_text()
    assert "Traceback" not in log
    for secret in (PASSWORD, "something secret", "typed-a-password-here"):
        assert secret not in log


async def closed(writer: asyncio.StreamWriter) -> None:
    writer.close()
    with contextlib.suppress(ConnectionError):
        await writer.wait_closed()
