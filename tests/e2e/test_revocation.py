"""Revocation end to end: ``estctl cert revoke``, then EST, CRL and openssl agree."""

from __future__ import annotations

import asyncio
import json
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
import yaml
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
    write_key,
)
from estsuite_testing.raw_client import BASE, Client, b64

pytestmark = [pytest.mark.e2e, pytest.mark.asyncio(loop_scope="module")]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def served(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[tuple[Stack, int]]:
    folder: Path = tmp_path_factory.mktemp("revocation")
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
    overrides = {"est-frontend": {"crl_listen": {"port": port}}}
    stack = await start_stack(folder, policy=path, overrides=overrides)
    try:
        yield stack, port
    finally:
        await stop_stack(stack)


async def estctl(stack: Stack, settings: Path, *arguments: str) -> Any:
    out = await stack.suite.run("estctl", *arguments, "--config", str(settings), "--json")
    return json.loads(out)


async def test_N5_a_revoked_certificate_is_refused_and_on_the_list_that_is_served(
    served: tuple[Stack, int], tmp_path: Path
) -> None:
    stack, port = served
    settings = await make_operator(stack.suite, "CN=boss")
    client = Client.of(stack)
    key, csr = make_csr("dev-client")
    certificate = certificate_in((await client.enroll(b64(csr))).body)
    pem = tmp_path / "client.pem"
    pem.write_bytes(certificate.public_bytes(Encoding.PEM))
    key_file = write_key(tmp_path / "client.key", key)
    context = stack.client_context(pem, key_file)
    renewal = b64(make_csr("dev-client")[1])
    path = f"{BASE}/simplereenroll"
    assert (await client.request("POST", path, renewal, context=context)).status == 200

    fingerprint = certificate.fingerprint(SHA256()).hex()
    revoke = ["cert", "revoke", "--fingerprint", fingerprint, "--reason", "keyCompromise"]
    result = await estctl(stack, settings, *revoke)
    assert (result["changed"], result["reason"]) == (True, "keyCompromise")
    again = b64(make_csr("dev-client")[1])
    refused = await client.request("POST", path, again, context=context)
    assert refused.status == 401
    assert "[auth.certificate_revoked]" in refused.text

    crl, chain = tmp_path / "issuing.crl", tmp_path / "chain.pem"
    chain.write_bytes(
        (stack.layout.ca / "issuing.pem").read_bytes() + stack.layout.root_file.read_bytes()
    )
    url = f"http://127.0.0.1:{port}/crl/issuing.crl"
    fetch = ["curl", "-sSf", "-o", str(crl), url]
    to_pem = ["openssl", "crl", "-inform", "DER", "-in", str(crl), "-out", f"{crl}.pem"]
    check = ["openssl", "verify", "-crl_check", "-CAfile", str(chain), "-CRLfile", f"{crl}.pem"]
    async with asyncio.timeout(15):
        while True:
            fetched = await asyncio.to_thread(
                subprocess.run, fetch, check=False, capture_output=True
            )
            if fetched.returncode == 0:
                await asyncio.to_thread(subprocess.run, to_pem, check=True, capture_output=True)
                judged = await asyncio.to_thread(
                    subprocess.run, [*check, str(pem)], check=False, capture_output=True, text=True
                )
                if "certificate revoked" in judged.stderr:
                    return
            await asyncio.sleep(0.3)
