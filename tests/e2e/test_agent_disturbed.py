"""The agent with a wrong clock (libfaketime), and while no certificate is signed."""

from __future__ import annotations

import asyncio
import datetime as dt
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256, SHA384
from cryptography.hazmat.primitives.serialization import Encoding, load_pem_private_key

from estsuite_testing.agent_process import AgentProcess, start_for_agents, until
from estsuite_testing.chaos.world import libfaketime
from estsuite_testing.debian import debian_packages
from estsuite_testing.e2e_stack import Stack, stop_stack

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(240), pytest.mark.asyncio(loop_scope="module")]
_DAY_S = 86_400
OFFSETS_S = {"ahead": 600, "behind": -600, "far-ahead": 40 * _DAY_S, "far-behind": -40 * _DAY_S}
SOLD = dt.timedelta(days=100)
"""How long the certificates of the suite have been valid when the test begins."""


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def stack(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Stack]:
    """A suite of a while ago whose certificates of a minute are renewed after ten seconds."""
    folder = tmp_path_factory.mktemp("clock")
    renewal = {"reaction_time": "50s", "overlap": "5s"}
    started = await start_for_agents(folder, [*OFFSETS_S, "before", "patient"], renewal=renewal)
    try:
        make_older(started)
        for service in ("ca-signer", "est-frontend"):
            await started.suite.stop_service(service)
            await started.suite.start_service(service, service, wait=True)
        yield started
    finally:
        await stop_stack(started)


def make_older(stack: Stack) -> None:
    """Certify the keys of root, issuing CA and front end again, from long ago on."""
    ca = stack.layout.ca
    passphrase = (stack.layout.secrets / "ca.passphrase").read_text().strip().encode()
    signers = {}
    for name in ("root", "issuing", "infrastructure"):
        certificate = x509.load_pem_x509_certificate((ca / f"{name}.pem").read_bytes())
        key = load_pem_private_key((ca / f"{name}.key").read_bytes(), passphrase)
        assert isinstance(key, ec.EllipticCurvePrivateKey)
        signers[certificate.subject] = key
    for file in (ca / "root.pem", ca / "issuing.pem", ca / "chain.pem", ca / "server/server.pem"):
        found = x509.load_pem_x509_certificates(file.read_bytes())
        file.write_bytes(b"".join(older(one, signers[one.issuer]) for one in found))


def older(one: x509.Certificate, signer: ec.EllipticCurvePrivateKey) -> bytes:
    builder = x509.CertificateBuilder(
        one.issuer, one.subject, one.public_key(), one.serial_number,
        one.not_valid_before_utc - SOLD, one.not_valid_after_utc,
    )  # fmt: skip
    for extension in one.extensions:
        builder = builder.add_extension(extension.value, extension.critical)
    algorithm = SHA384() if isinstance(one.signature_hash_algorithm, SHA384) else SHA256()
    return builder.sign(signer, algorithm).public_bytes(Encoding.PEM)


async def test_an_agent_with_a_wrong_clock_enrolls_renews_and_proves_in_time(
    stack: Stack, tmp_path: Path
) -> None:
    root = await asyncio.to_thread(debian_packages, "libfaketime")

    async def one(name: str, offset_s: int) -> None:
        folder = tmp_path / name
        folder.mkdir()
        agent = AgentProcess(stack, folder, libfaketime(root, f"{offset_s:+}"))
        agent.define(name, name, await agent.secret(name))
        async with agent:
            try:
                await until(lambda: agent.facts(name).get("state") == "valid")
                serials = [agent.certificate(name).serial_number]
                await until(lambda: agent.certificate(name).serial_number not in serials)
                await until(lambda: agent.facts(name).get("proven") is True)
                # The server's time less the machine's.
                assert agent.facts(name)["clock_offset_s"] == pytest.approx(-offset_s, abs=5)
            except TimeoutError:
                print(name, agent.facts(name), (folder / "log").read_text()[-3000:])
                raise

    async with asyncio.TaskGroup() as group:
        for name, offset_s in OFFSETS_S.items():
            group.create_task(one(name, offset_s))
    # Neither in a loop: a clock that is wrong is no reason for another certificate.
    issued = Counter(str(row["service"]) for row in await stack.ledger())
    assert {issued[name] for name in OFFSETS_S} == {2}, issued


async def test_a_clock_by_which_the_server_is_not_valid_is_waited_for(
    stack: Stack, tmp_path: Path
) -> None:
    """No certificate can be trusted by it; the agent says so, and goes on when it is right."""
    root = await asyncio.to_thread(debian_packages, "libfaketime")
    clock = tmp_path / "clock"
    clock.write_text("-200d\n")
    environment = libfaketime(root, "") | {
        "FAKETIME_TIMESTAMP_FILE": str(clock),
        "FAKETIME_CACHE_DURATION": "1",
    }
    del environment["FAKETIME"]
    agent = AgentProcess(stack, tmp_path, environment)
    agent.define("before", "before", await agent.secret("before"))
    async with agent:
        await until(lambda: "not yet valid" in str(agent.facts("before").get("reason")))
        clock.write_text("+0\n")
        await until(lambda: agent.facts("before").get("state") == "valid")


async def test_a_signer_that_is_stopped_for_longer_than_the_window_costs_no_certificate(
    stack: Stack, tmp_path: Path
) -> None:
    agent = AgentProcess(stack, tmp_path)
    agent.define("patient", "patient", await agent.secret("patient"))
    async with agent:
        await until(lambda: agent.facts("patient").get("state") == "valid")
        old = agent.certificate("patient")
        await stack.suite.stop_service("ca-signer", kill=True)
        # Due after 10 s, and the window ends a quarter of what is then left later.
        over = old.not_valid_before_utc + dt.timedelta(seconds=25)
        await asyncio.sleep((over - dt.datetime.now(dt.UTC)).total_seconds())
        assert agent.facts("patient")["state"] in {"renewing", "retrying"}
        await stack.suite.start_service("ca-signer", "ca-signer", wait=True)
        await until(lambda: agent.certificate("patient") != old, 30)
        await until(lambda: agent.facts("patient").get("proven") is True)
    assert agent.certificate("patient").not_valid_before_utc < old.not_valid_after_utc
    actions = {r["action"] for r in await stack.records()}
    assert not {"rotation.stalled", "rotation.expired"} & actions
