"""OCSP end to end: ``openssl ocsp`` asks the front end, the signer answers; then it is unavailable."""

from __future__ import annotations

import asyncio
import base64
import json
import subprocess
import urllib.parse
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import pytest_asyncio
import yaml
from cryptography import x509
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding

from estdev.operator import make_operator
from estdev.ports import free_port
from estsuite_testing.e2e_stack import (
    POLICY,
    Stack,
    certificate_in,
    make_csr,
    start_stack,
    stop_stack,
)
from estsuite_testing.raw_client import Client, b64

pytestmark = [pytest.mark.e2e, pytest.mark.asyncio(loop_scope="module")]


@dataclass
class Asking:
    """Where to ask, and openssl to do it."""

    stack: Stack
    port: int
    folder: Path

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/ocsp/issuing"

    @property
    def trusted(self) -> list[str]:
        chain = self.folder / "chain.pem"
        issuing = self.stack.layout.ca / "issuing.pem"
        chain.write_bytes(issuing.read_bytes() + self.stack.layout.root_file.read_bytes())
        return ["-issuer", str(issuing), "-CAfile", str(chain)]

    async def run(self, *command: str) -> subprocess.CompletedProcess[str]:
        return await asyncio.to_thread(
            subprocess.run,
            command,
            cwd=self.folder,
            capture_output=True,
            text=True,
            check=False,
            timeout=30,
        )

    async def openssl(self, *arguments: str) -> str:
        """Output of ``openssl ocsp``, which must have verified the response."""
        async with asyncio.timeout(20):
            while True:  # a signer that has just started has no certificate to answer with
                found = await self.run("openssl", "ocsp", *self.trusted, *arguments)
                if "trylater" not in found.stdout + found.stderr:
                    break
                await asyncio.sleep(0.2)
        assert "Response verify OK" in found.stderr, found
        return found.stdout + found.stderr

    async def enrolled(self, name: str) -> x509.Certificate:
        body = (await Client.of(self.stack).enroll(b64(make_csr(name)[1]))).body
        certificate = certificate_in(body)
        (self.folder / f"{name}.pem").write_bytes(certificate.public_bytes(Encoding.PEM))
        return certificate


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def asking(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Asking]:
    folder: Path = tmp_path_factory.mktemp("ocsp")
    policy = yaml.safe_load(POLICY.read_text())
    operator = {
        "name": "boss",
        "certificate_issuer": "issuing",
        "certificate_subject": "CN=boss",
        "roles": ["revoker", "auditor"],
    }
    policy["operators"] = [operator]
    path = folder / "policy.yaml"
    path.write_text(yaml.safe_dump(policy))
    port = free_port()
    overrides = {
        "est-frontend": {"crl_listen": {"port": port, "ocsp": True}},
        "ca-signer": {"ocsp": {"answer_lifetime_s": 600}},
    }
    stack = await start_stack(folder, policy=path, overrides=overrides)
    try:
        yield Asking(stack, port, folder)
    finally:
        await stop_stack(stack)


async def test_N5_openssl_reads_good_revoked_and_unknown_with_nonce(asking: Asking) -> None:
    good, bad = await asking.enrolled("dev-good"), await asking.enrolled("dev-bad")
    settings = await make_operator(asking.stack.suite, "CN=boss")
    fingerprint = bad.fingerprint(SHA256()).hex()
    revoke = ["cert", "revoke", "--fingerprint", fingerprint, "--reason", "keyCompromise"]
    result = await asking.stack.suite.run("estctl", *revoke, "--config", str(settings), "--json")
    assert json.loads(result)["changed"]
    for nonce in ("-nonce", "-no_nonce"):
        output = await asking.openssl("-url", asking.url, nonce, "-cert", "dev-good.pem")
        assert "dev-good.pem: good" in output
        assert "no nonce in response" not in output
        output = await asking.openssl("-url", asking.url, nonce, "-cert", "dev-bad.pem")
        assert "dev-bad.pem: revoked" in output
        assert "Reason: keyCompromise" in output
        output = await asking.openssl("-url", asking.url, nonce, "-serial", "0x0123456789")
        assert "0x0123456789: unknown" in output
    assert good.serial_number != bad.serial_number
    # The responder's own certificate is in ledger, audit and renewal as every other.
    assert [r for r in await asking.stack.ledger() if r["profile"] == "ocsp-responder"]
    await asking.stack.verify_cross()


async def test_a_get_is_answered_for_caches(asking: Asking) -> None:
    await asking.enrolled("dev-get")
    request = ("openssl", "ocsp", *asking.trusted, "-cert", "dev-get.pem", "-no_nonce")
    assert (await asking.run(*request, "-reqout", "get.req")).returncode == 0
    octets = (asking.folder / "get.req").read_bytes()
    text = urllib.parse.quote(base64.b64encode(octets).decode(), safe="")
    url = f"{asking.url}/{text}"
    fetched = await asking.run("curl", "-sSf", "-D", "get.head", "-o", "get.resp", url)
    assert fetched.returncode == 0, fetched
    head = (asking.folder / "get.head").read_text()
    assert "Content-Type: application/ocsp-response" in head
    age = int(head.partition("max-age=")[2].partition(",")[0])
    assert 500 < age <= 600
    output = await asking.openssl("-respin", "get.resp", "-cert", "dev-get.pem", "-no_nonce")
    assert "dev-get.pem: good" in output


async def test_cached_answers_are_served_while_the_signer_is_unavailable(asking: Asking) -> None:
    await asking.enrolled("dev-outage")
    await asking.enrolled("dev-never-asked")
    arguments = ("-url", asking.url, "-no_nonce", "-cert")
    await asking.openssl(*arguments, "dev-outage.pem")
    await asking.stack.suite.stop_service("ca-signer", kill=True)
    try:
        output = await asking.openssl(*arguments, "dev-outage.pem")
        assert "dev-outage.pem: good" in output
        ask = ("openssl", "ocsp", *asking.trusted, *arguments, "dev-never-asked.pem")
        never = await asking.run(*ask)
        assert "trylater" in never.stdout + never.stderr, never
    finally:
        await asking.stack.suite.start_service("ca-signer", "ca-signer", wait=True)
    output = await asking.openssl(*arguments, "dev-never-asked.pem")
    assert "dev-never-asked.pem: good" in output
