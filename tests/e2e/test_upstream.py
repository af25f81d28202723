"""Two suites, one the registration authority of the other: real TLS, real processes, kills.

The promise: whatever crashes, and wherever, each client ends with one certificate of the upstream
CA, and the upstream CA has made no second one.
"""

from __future__ import annotations

import asyncio
import contextlib
import ssl
import subprocess
from base64 import b64decode, b64encode
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import pytest_asyncio
import yaml
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, pkcs7

from estcore import ids
from estcore.messages import permissions
from estdev.local import admin_get
from estdev.ports import free_port
from estsuite_testing.e2e_stack import (
    Stack,
    certificate_in,
    make_csr,
    start_stack,
    stop_stack,
    write_key,
)

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.slow,
    pytest.mark.timeout(300),
    pytest.mark.asyncio(loop_scope="module"),
]

ISSUER = "corporate"
STEPS = (
    "upstream.5.recorded",
    "upstream.6.audited",
    "upstream.7.submitted",
    "upstream.7.answered",
    "upstream.9.stored",
    "upstream.10.announced",
    "upstream.11.acked",
)
OTHERS_POLICY: dict[str, Any] = {
    "default_label": "registrars",
    "labels": {
        "registrars": {
            "issuer": "issuing",
            "profiles": ["ra"],
            "authentication": ["secret", "certificate"],
        },
        "wards": {
            "issuer": "issuing",
            "profiles": ["device"],
            "authentication": ["certificate"],
            "linking": "off",
        },
    },
    "rules": [
        {
            "name": "bootstrap",
            "principal": {"secret": "load"},
            "owner": {"tenant": "test", "service": "registrar"},
            "labels": ["registrars"],
            "profiles": ["ra"],
            "names": {"common_names": ["registrar"]},
        },
        {
            "name": "registrar",
            "principal": {
                "certificate_issuer": "issuing",
                "certificate_subject": "CN=registrar",
            },
            "owner": {"tenant": "test", "service": "ward"},
            "labels": ["wards"],
            "profiles": ["device"],
            "registrar": True,
            "names": {"common_names": ["bed-*"]},
        },
    ],
}
OUR_POLICY: dict[str, Any] = {
    "default_label": "own",
    "labels": {
        "own": {"issuer": "issuing", "profiles": ["service-mtls"]},
        "corp": {
            "issuer": ISSUER,
            "profiles": ["device"],
            "authentication": ["certificate", "secret"],
            "retry_after_s": 1,
            "linking": "off",
        },
    },
    "rules": [
        {
            "name": "load",
            "principal": {"secret": "load"},
            "owner": {"tenant": "test", "service": "beds"},
            "labels": ["corp"],
            "profiles": ["device"],
            "names": {"common_names": ["bed-*"]},
        }
    ],
}


OWN_RULE = {
    "name": "own",
    "principal": {"secret": "load"},
    "owner": {"tenant": "test", "service": "own"},
    "labels": ["own"],
    "profiles": ["service-mtls"],
    "names": {"common_names": ["dev-*"]},
}


@dataclass
class World:
    """Our suite, the other one, and the process between."""

    ours: Stack
    theirs: Stack
    folder: Path
    process: asyncio.subprocess.Process | None = None
    admin_port: int = 0
    repeatable_s: float = 500

    @property
    def config(self) -> Path:
        return self.folder / "upstream.yaml"

    def write_config(self) -> None:
        layout, other = self.ours.layout, self.theirs.layout
        role = layout.roles["ca-signer"]
        self.admin_port = free_port()
        settings = {
            "instance": "upstream-0",
            "bus": {
                "url": layout.nats.url,
                "nkey_seed_file": str(layout.nats.seed_file("ca-signer-upstream")),
                "migration_nkey_seed_file": str(layout.nats.seed_file("migrate")),
                "senders_file": str(layout.nats.senders_file),
            },
            "admin": {"port": self.admin_port},
            "database": {
                "url": layout.postgres.url(role.runtime),
                "password_file": str(role.runtime_password_file),
                "migration_url": layout.postgres.url(role.owner),
                "migration_password_file": str(role.owner_password_file),
            },
            "policy_file": str(layout.config / "policy.yaml"),
            "profiles_file": str(layout.config / "profiles.yaml"),
            "remote_issuers": ["issuing"],
            "issuers": [
                {
                    "issuer_id": ISSUER,
                    "certificate_file": str(other.ca / "issuing.pem"),
                    "chain_file": str(other.ca / "chain.pem"),
                    "plugin": "est",
                    "timeout_s": 1,
                    "pause_s": 0.2,
                    "longest_pause_s": 1,
                    "options": {
                        "url": f"https://localhost:{other.ports.est}",
                        "label": "wards",
                        "ca_file": str(other.root_file),
                        "certificate_file": str(self.folder / "ra.pem"),
                        "key_file": str(self.folder / "ra.key"),
                        "repeatable_s": self.repeatable_s,
                    },
                }
            ],
            "groups": {"default": {"labels": ["corp"], "profiles": ["device"]}},
            "lease_s": 6,
            "sweep_every_s": 0.5,
            "unknown_retry_after_s": 1,
        }
        self.config.write_text(yaml.safe_dump(settings))

    async def command(self, *arguments: str) -> str:
        return await self.ours.suite.run(
            "ca-signer-upstream", *arguments, "--config", str(self.config)
        )

    async def start(self, fault: str | None = None) -> asyncio.subprocess.Process:
        self.write_config()
        with (self.ours.layout.logs / "upstream-0.log").open("ab") as log:
            self.process = await self.ours.suite.spawn(
                "ca-signer-upstream",
                *("run", "--config", str(self.config)),
                stdout=log,
                stderr=log,
                environment={} if fault is None else {"ESTSUITE_FAULT": f"{fault}:exit:1"},
            )
        async with asyncio.timeout(30):
            while not (await admin_get(self.admin_port, "/readyz")).startswith("ready"):
                assert self.process.returncode is None
                await asyncio.sleep(0.1)
        return self.process

    async def stop(self, *, kill: bool = False) -> None:
        process, self.process = self.process, None
        if process is None or process.returncode is not None:
            return
        if kill:
            process.kill()
        else:
            process.terminate()
        await asyncio.wait_for(process.wait(), 40)

    async def cacerts(self) -> list[x509.Certificate]:
        """What our label of the upstream CA shows."""
        connector = aiohttp.TCPConnector(ssl=self.ours.client_context(), force_close=True)
        url = f"https://localhost:{self.ours.layout.ports.est}/.well-known/est/corp/cacerts"
        async with (
            aiohttp.ClientSession(connector=connector) as session,
            session.get(url) as response,
        ):
            if response.status != 200:
                return []
            return pkcs7.load_der_pkcs7_certificates(b64decode(await response.read()))

    async def label_is_there(self) -> None:
        async with asyncio.timeout(30):
            while not await self.cacerts():
                await asyncio.sleep(0.2)

    async def made_there(self) -> list[dict[str, Any]]:
        """Every certificate the upstream CA ever made for our clients."""
        return [row for row in await self.theirs.ledger() if row["profile"] == "device"]

    async def ask(
        self, operation: str, csr: bytes, context: ssl.SSLContext, secret: str | None
    ) -> tuple[int, bytes]:
        headers = {"Content-Type": "application/pkcs10"}
        if secret is not None:
            headers["Authorization"] = aiohttp.encode_basic_auth("load", secret)
        connector = aiohttp.TCPConnector(ssl=context, force_close=True)
        async with (
            aiohttp.ClientSession(connector=connector) as session,
            session.post(
                f"https://localhost:{self.ours.layout.ports.est}/.well-known/est/corp/{operation}",
                data=b64encode(csr),
                headers=headers,
                timeout=aiohttp.ClientTimeout(total=15),
            ) as response,
        ):
            return response.status, await response.read()

    async def enroll(self, name: str, *, deadline_s: float = 90) -> tuple[Any, x509.Certificate]:
        """A client that never gives up."""
        key, csr = make_csr(name)
        async with asyncio.timeout(deadline_s):
            while True:
                with contextlib.suppress(aiohttp.ClientError, OSError, TimeoutError):
                    context = self.ours.client_context()
                    status, body = await self.ask("simpleenroll", csr, context, self.ours.secret)
                    if status == 200:
                        return key, certificate_in(body)
                    assert status in {202, 503}, (status, body)
                await asyncio.sleep(0.5)


async def become_registrar(theirs: Stack, folder: Path) -> None:
    """Enroll as an RA at the upstream CA, as its operator's runbook says."""
    key, csr = make_csr("registrar")
    write_key(folder / "ra.key", key)
    connector = aiohttp.TCPConnector(ssl=theirs.client_context(), force_close=True)
    async with (
        aiohttp.ClientSession(connector=connector) as session,
        session.post(
            f"https://localhost:{theirs.layout.ports.est}/.well-known/est/registrars/simpleenroll",
            data=b64encode(csr),
            headers={
                "Content-Type": "application/pkcs10",
                "Authorization": aiohttp.encode_basic_auth("load", theirs.secret),
            },
        ) as response,
    ):
        body = await response.read()
        assert response.status == 200, body
    certificate = certificate_in(body)
    (folder / "ra.pem").write_bytes(certificate.public_bytes(Encoding.PEM))


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def world(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[World]:
    folder = tmp_path_factory.mktemp("two")
    policies = {}
    before = OUR_POLICY | {"labels": {"own": OUR_POLICY["labels"]["own"]}, "rules": [OWN_RULE]}
    for name, policy in (("ours", before), ("theirs", OTHERS_POLICY)):
        policies[name] = folder / f"{name}.yaml"
        policies[name].write_text(yaml.safe_dump(policy))
    theirs = await start_stack(folder / "theirs", policy=policies["theirs"])
    try:
        ours = await start_stack(
            folder / "ours",
            policy=policies["ours"],
            overrides={"ca-signer": {"remote_issuers": [ISSUER]}},
            users={"ca-signer-upstream": permissions.upstream([ISSUER])},
        )
        try:
            found = World(ours, theirs, folder)
            await become_registrar(theirs, folder)
            # The upstream CA is added to a suite that runs: a new label, a new process.
            (ours.layout.config / "policy.yaml").write_text(yaml.safe_dump(OUR_POLICY))
            ours.layout.prepare()
            ours.layout.nats.reload()
            found.write_config()
            await found.command("migrate")
            await found.start()
            await found.label_is_there()
            await found.stop()
            yield found
            await found.stop()
        finally:
            await stop_stack(ours)
    finally:
        await stop_stack(theirs)


@pytest_asyncio.fixture(loop_scope="module")
async def serving(world: World) -> AsyncIterator[World]:
    world.repeatable_s = 500
    await world.start()
    yield world
    await world.stop()


async def test_a_client_gets_a_certificate_of_the_ca_behind(serving: World, tmp_path: Path) -> None:
    assert "shows the issuer that is configured" in await serving.command("probe")
    name = f"bed-{ids.uuid7()}"
    key, certificate = await serving.enroll(name)
    leaf = tmp_path / "leaf.pem"
    leaf.write_bytes(certificate.public_bytes(Encoding.PEM))
    other = serving.theirs.layout
    done = subprocess.run(
        ["openssl", "verify", "-CAfile", other.root_file, "-untrusted", other.ca / "issuing.pem",
         leaf],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    issuing = x509.load_pem_x509_certificate((other.ca / "issuing.pem").read_bytes())
    assert issuing in await serving.cacerts()
    # The certificate renews itself here, by mutual TLS, at the same CA.
    own = write_key(tmp_path / "leaf.key", key)
    context = serving.ours.client_context(leaf, own)
    _, again = make_csr(name)
    status, body = await serving.ask("simplereenroll", again, context, None)
    assert status == 200, body
    assert certificate_in(body).issuer == issuing.subject
    # Both sides know what they made; every record of ours fits the ledger.
    serials = {row["serial"] for row in await serving.made_there()}
    assert ids.serial_hex(certificate.serial_number) in serials


async def test_kill_the_process_at_every_step_and_each_client_gets_one_certificate(
    world: World,
) -> None:
    """The upstream CA answers the same CSR again, so no operator is needed."""
    world.repeatable_s = 500
    before = {row["serial"] for row in await world.made_there()}
    for step in STEPS:
        process = await world.start(step)
        names = [f"bed-{ids.uuid7()}" for _ in range(4)]
        clients = [asyncio.ensure_future(world.enroll(name)) for name in names]
        await asyncio.wait_for(process.wait(), 30)
        assert process.returncode == 137, step
        await world.start()
        certificates = [certificate for _, certificate in await asyncio.gather(*clients)]
        await world.stop()
        assert len({c.serial_number for c in certificates}) == len(names), step
    made = Counter(row["enrollment_id"] for row in await world.made_there())
    assert set(made.values()) == {1}
    ours = await world.ours.ledger()
    issued = {row["serial"] for row in ours if row["state"] == "issued" and row["tenant"] == "test"}
    assert {row["serial"] for row in await world.made_there()} - before <= issued


@pytest.mark.parametrize("step", ["upstream.7.submitted", "upstream.7.answered"])
async def test_without_that_promise_a_kill_leaves_a_question_and_no_second_certificate(
    world: World, step: str
) -> None:
    world.repeatable_s = 0
    process = await world.start(step)
    before = len(await world.made_there())
    name = f"bed-{ids.uuid7()}"
    _, csr = make_csr(name)
    context = world.ours.client_context()
    status, _ = await world.ask("simpleenroll", csr, context, world.ours.secret)
    assert status == 202
    await asyncio.wait_for(process.wait(), 30)
    await world.start()
    try:
        async with asyncio.timeout(40):
            while True:
                counted = await admin_get(world.admin_port, "/metrics")
                if (
                    'ca_signer_upstream_submissions{issuer="corporate",state="unknown"} 0'
                    in counted
                ):
                    pass
                elif 'state="unknown"}' in counted:
                    break
                await asyncio.sleep(0.5)
        status, _ = await world.ask("simpleenroll", csr, context, world.ours.secret)
        assert status == 202
    finally:
        await world.stop()
    made = len(await world.made_there()) - before
    assert made == (0 if step == "upstream.7.submitted" else 1)


async def test_exports_and_log_agree_about_certificates_of_an_upstream_ca(world: World) -> None:
    assert "\nverified: " in await world.ours.verify_cross()
