"""The runbook "The CA has expired" on a suite whose issuing CA certificate ends during the test."""

from __future__ import annotations

import asyncio
import datetime as dt
import json
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio
import yaml
from cryptography import x509
from cryptography.hazmat.primitives.hashes import SHA384
from cryptography.hazmat.primitives.serialization import Encoding, load_pem_private_key

from estcore.errors import ConfigurationError
from estcore.runtime.bus import Bus
from estcore.runtime.settings import BusSettings
from estdev.operator import make_operator
from estsuite_testing.e2e_stack import (
    POLICY,
    Stack,
    certificate_in,
    make_csr,
    start_stack,
    stop_stack,
)
from estsuite_testing.raw_client import Client, b64
from estsuite_testing.runbook_pages import Watched

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.slow,
    pytest.mark.timeout(240),
    pytest.mark.asyncio(loop_scope="module"),
]
LIFE = dt.timedelta(seconds=30)
TO_NEW = ("replace-expired", "--issuer", "issuing", "--to", "issuing-2")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def stack(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Stack]:
    folder: Path = tmp_path_factory.mktemp("expired")
    policy = yaml.safe_load(POLICY.read_text())
    boss = {"name": "boss", "certificate_issuer": "issuing", "certificate_subject": "CN=boss"}
    policy["operators"] = [boss | {"roles": ["ca", "auditor"]}]
    path = folder / "policy.yaml"
    path.write_text(yaml.safe_dump(policy))
    whole = await start_stack(folder, policy=path)
    try:
        yield whole
    finally:
        await stop_stack(whole)


def shorten_issuing_ca(stack: Stack) -> dt.datetime:
    """Certify the issuing key again, for seconds only; returns the end."""
    ca = stack.layout.ca
    passphrase = (stack.layout.secrets / "ca.passphrase").read_text().strip().encode()
    root = x509.load_pem_x509_certificate((ca / "root.pem").read_bytes())
    root_key = load_pem_private_key((ca / "root.key").read_bytes(), passphrase)
    long = x509.load_pem_x509_certificate((ca / "issuing.pem").read_bytes())
    end = dt.datetime.now(dt.UTC).replace(microsecond=0) + LIFE
    builder = (
        x509.CertificateBuilder()
        .subject_name(long.subject)
        .issuer_name(long.issuer)
        .public_key(long.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(long.not_valid_before_utc)
        .not_valid_after(end)
    )
    for extension in long.extensions:
        builder = builder.add_extension(extension.value, extension.critical)
    pem = builder.sign(root_key, SHA384()).public_bytes(Encoding.PEM)  # type: ignore[arg-type]
    (ca / "issuing.pem").write_bytes(pem)
    (ca / "chain.pem").write_bytes(root.public_bytes(Encoding.PEM))
    return end


async def restart_signer(stack: Stack) -> None:
    await stack.suite.stop_service("ca-signer")
    await stack.suite.start_service("ca-signer", "ca-signer", wait=True)


async def add_generation(stack: Stack) -> None:
    """Steps 1 and 2 of "Roll over the issuing CA"."""
    layout, new = stack.layout, stack.folder / "ca2"
    passphrase = layout.secrets / "ca.passphrase"
    make = ["--folder", str(layout.ca), "--out", str(new), "--name", "Clinic Dev"]
    make += ["--generation", "2", "--passphrase-file", str(passphrase)]
    await stack.suite.run("ca-signer", "ca", "issuing", *make)
    issuers = [
        {
            "issuer_id": name,
            "certificate_file": str(folder / "issuing.pem"),
            "chain_file": str(folder / "chain.pem"),
            "key_file": str(folder / "issuing.key"),
            "passphrase_file": str(passphrase),
        }
        for name, folder in (("issuing", layout.ca), ("issuing-2", new))
    ]
    issuers[1]["generation_of"] = "issuing"
    layout.overrides["ca-signer"] = {"issuers": issuers}
    config = layout.write_settings("ca-signer", "migrating", 0)
    await stack.suite.command("ca-signer", "migrate", "--config", str(config))
    await restart_signer(stack)


async def replace_expired(stack: Stack) -> str:
    config = str(stack.layout.config_file("ca-signer"))
    return await stack.suite.run("ca-signer", *TO_NEW, "--config", config)


async def rollover(stack: Stack, operator: Path, verb: str, *more: str) -> dict[str, object]:
    command = ["ca", "rollover", verb, "--issuer", "issuing", *more, "--json"]
    return dict(json.loads(await stack.suite.run("estctl", *command, "--config", str(operator))))


async def test_a_CA_that_has_expired_is_replaced(stack: Stack) -> None:
    layout = stack.layout
    end = shorten_issuing_ca(stack)
    await restart_signer(stack)
    operator = await make_operator(stack.suite, "CN=boss")
    _, csr = make_csr("dev-before")
    answer = await Client.of(stack).enroll(b64(csr))
    assert answer.status == 200, answer.text
    assert certificate_in(answer.body).not_valid_after_utc <= end

    # 1. While it is valid, the console replaces nothing.
    await add_generation(stack)
    with pytest.raises(ConfigurationError, match="use estctl ca rollover"):
        await replace_expired(stack)

    # 2. It expires: what the page says is seen, and no operator can command.
    seed = layout.nats.seed_file("migrate")
    settings = BusSettings(url=layout.nats.url, nkey_seed_file=seed)
    bus = await Bus.connect(settings, "migrate", "test", seed=seed.read_text().strip())
    watched = Watched(stack, bus)
    await watched.begin()
    traffic = asyncio.create_task(watched.traffic("/.well-known/est/simpleenroll"))
    try:
        await asyncio.sleep(max((end - dt.datetime.now(dt.UTC)).total_seconds(), 0) + 1)
        with pytest.raises(ConfigurationError, match="the operator's certificate is over"):
            await rollover(stack, operator, "status")
        await watched.until_seen("The CA has expired")

        # 3. It is replaced, once.
        assert "signs from now on" in await replace_expired(stack)
        assert "signs already" in await replace_expired(stack)
        await watched.until_over()
    finally:
        traffic.cancel()
        await asyncio.gather(traffic, return_exceptions=True)
        await bus.close()

    # 4. Operators are enrolled again, and end the overlap.
    (layout.secrets / "operator.pem").unlink()
    operator = await make_operator(stack.suite, "CN=boss")
    assert (await rollover(stack, operator, "retire"))["state"] == "retired"

    # 5. Clients verify by the root they have.
    _, csr = make_csr("dev-after")
    answer = await Client.of(stack).enroll(b64(csr))
    assert answer.status == 200, answer.text
    leaf = stack.folder / "leaf.pem"
    leaf.write_bytes(certificate_in(answer.body).public_bytes(Encoding.PEM))
    untrusted = str(stack.folder / "ca2" / "issuing.pem")
    command = ["openssl", "verify", "-x509_strict", "-CAfile", str(layout.root_file)]
    subprocess.run([*command, "-untrusted", untrusted, str(leaf)], check=True)

    # 6. Every step is on record, by whom; the log agrees with the ledger.
    assert "\nverified: " in await stack.verify_cross()
    steps = [
        record
        for record in await stack.records()
        if str(record["action"]).startswith("operator.rollover-")
        and record["actor"]["auth_method"] == "console"
    ]
    assert [record["details"]["state"] for record in steps] == ["planned", "published", "signing"]
    assert all(record["actor"]["subject"].startswith("console:") for record in steps)
