"""A root rolled over while a fleet renews: ``estctl ca rollover``, EST, checked with openssl."""

from __future__ import annotations

import asyncio
import json
import shutil
import ssl
import subprocess
from base64 import b64decode
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
import yaml
from cryptography import x509
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, pkcs7

from estclient.agent.agent import Agent
from estclient.agent.settings import AgentSettings
from estcore.errors import ConfigurationError
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
from estsuite_testing.raw_client import BASE, Answer, Client, b64

pytestmark = [pytest.mark.e2e, pytest.mark.asyncio(loop_scope="module")]


@dataclass
class Story:
    """A suite of two signers, an operator, and a second CA that waits for its time."""

    stack: Stack
    folder: Path
    crl_port: int
    operator: Path = Path()
    files: list[Path] = field(default_factory=list)

    @property
    def new_ca(self) -> Path:
        return self.folder / "ca2"

    def root(self, which: str) -> Path:
        return self.stack.layout.root_file if which == "old" else self.new_ca / "root.pem"

    async def give(self, verb: str, *arguments: str) -> dict[str, Any]:
        command = ["ca", "rollover", verb, "--issuer", "issuing", *arguments, "--json"]
        out = await self.stack.suite.run("estctl", *command, "--config", str(self.operator))
        return dict(json.loads(out))

    async def refused(self, verb: str, *arguments: str) -> str:
        with pytest.raises(ConfigurationError) as refused:
            await self.give(verb, *arguments)
        return refused.value.reason

    async def until(self, condition: Callable[[], Any]) -> Any:
        """Ask until it is so."""
        async with asyncio.timeout(20):
            while not (found := await condition()):
                await asyncio.sleep(0.2)
        return found

    async def cacerts(self, context: ssl.SSLContext | None = None) -> list[x509.Certificate]:
        client = Client.of(self.stack)
        answer = await client.request("GET", f"{BASE}/cacerts", context=context)
        assert answer.status == 200
        return pkcs7.load_der_pkcs7_certificates(b64decode(answer.body))

    async def shows(self, number: int) -> list[x509.Certificate]:
        """Wait until /cacerts has so many certificates."""

        async def so_many() -> list[x509.Certificate] | None:
            found = await self.cacerts()
            return found if len(found) == number else None

        found: list[x509.Certificate] = await self.until(so_many)
        return found

    async def enroll(self, name: str) -> Credential:
        key, csr = make_csr(name)
        answer = await Client.of(self.stack).enroll(b64(csr))
        return self.keep(name, key, answer)

    async def reenroll(self, by: Credential) -> Credential:
        key, csr = make_csr(by.name)
        return self.keep(by.name, key, await self.ask_with(by, csr))

    async def ask_with(self, by: Credential, csr: bytes) -> Answer:
        context = self.stack.client_context(by.pem, by.key)
        client = Client.of(self.stack)
        async with asyncio.timeout(30):
            while True:
                path = f"{BASE}/simplereenroll"
                answer = await client.request("POST", path, b64(csr), context=context)
                if answer.status != 202:
                    return answer
                await asyncio.sleep(0.5)

    def keep(self, name: str, key: Any, answer: Answer) -> Credential:
        assert answer.status == 200, answer.text
        certificate = certificate_in(answer.body)
        pem = self.folder / f"{len(self.files)}.pem"
        self.files.append(pem)
        pem.write_bytes(certificate.public_bytes(Encoding.PEM))
        return Credential(name, certificate, pem, write_key(pem.with_suffix(".key"), key))


@dataclass
class Credential:
    name: str
    certificate: x509.Certificate
    pem: Path
    key: Path


def issuers(story: Story) -> list[dict[str, str]]:
    passphrase = str(story.stack.layout.secrets / "ca.passphrase")
    found = []
    for name, folder in (("issuing", story.stack.layout.ca), ("issuing-2", story.new_ca)):
        found.append(
            {
                "issuer_id": name,
                "certificate_file": str(folder / "issuing.pem"),
                "chain_file": str(folder / "chain.pem"),
                "key_file": str(folder / "issuing.key"),
                "passphrase_file": passphrase,
            }
        )
    found[1] |= {"generation_of": "issuing", "cross_file": str(story.folder / "cross.pem")}
    return found


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def story(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Story]:
    folder: Path = tmp_path_factory.mktemp("rollover")
    policy = yaml.safe_load(POLICY.read_text())
    policy["operators"] = [
        {
            "name": "boss",
            "certificate_issuer": "issuing",
            "certificate_subject": "CN=boss",
            "roles": ["ca", "renewer", "auditor"],
        }
    ]
    path = folder / "policy.yaml"
    path.write_text(yaml.safe_dump(policy))
    port = free_port()
    overrides = {"est-frontend": {"crl_listen": {"port": port}}}
    stack = await start_stack(folder, policy=path, overrides=overrides)
    try:
        yield Story(stack, folder, port)
    finally:
        await stop_stack(stack)


async def make_new_ca(story: Story) -> None:
    """Do what the runbook says: offline first, then every signer, one after the other."""
    suite, layout = story.stack.suite, story.stack.layout
    passphrase = ["--passphrase-file", str(layout.secrets / "ca.passphrase")]
    make = ["--folder", str(story.new_ca), "--name", "Clinic Dev", "--generation", "2"]
    await suite.run("ca-signer", "ca", "init", *make, *passphrase)
    cross = ["--old", str(layout.ca), "--new", str(story.new_ca)]
    cross += ["--out", str(story.folder / "cross.pem")]
    await suite.run("ca-signer", "ca", "cross", *cross, *passphrase)
    layout.overrides["ca-signer"] = {"issuers": issuers(story)}
    config = layout.write_settings("ca-signer", "migrating", 0)
    await suite.command("ca-signer", "migrate", "--config", str(config))
    await suite.start_service("ca-signer", "ca-signer-2", wait=True)
    await suite.stop_service("ca-signer")
    await suite.start_service("ca-signer", "ca-signer", wait=True)


def verifies(root: Path, certificates: list[x509.Certificate], leaf: Path, folder: Path) -> bool:
    """Verify with openssl, one root alone and what /cacerts had, roots left out.

    And with what stands behind the leaf in its file, as a service sends it.
    """
    sent = folder / "sent.pem"
    pems = [c.public_bytes(Encoding.PEM) for c in certificates if c.subject != c.issuer]
    pems += leaf.read_bytes().partition(b"-----END CERTIFICATE-----\n")[2:]
    sent.write_bytes(b"".join(pems))
    command = ["openssl", "verify", "-x509_strict", "-no-CApath", "-no-CAstore"]
    command += ["-CAfile", str(root), "-untrusted", str(sent), str(leaf)]
    return subprocess.run(command, check=False, capture_output=True).returncode == 0


def serves(story: Story, root: Path) -> bool:
    """Let openssl connect to the front end, trusting one root alone."""
    command = ["openssl", "s_client", "-connect", f"localhost:{story.stack.layout.ports.est}"]
    command += ["-verify_return_error", "-no-CApath", "-no-CAstore", "-CAfile", str(root)]
    command += ["-servername", "localhost", "-verify_hostname", "localhost"]
    done = subprocess.run(command, input=b"", check=False, capture_output=True, timeout=20)
    return done.returncode == 0


def agent_settings(story: Story) -> AgentSettings:
    """An agent whose trust file has the old root alone."""
    trust, secret = story.folder / "trust.pem", story.folder / "load.secret"
    trust.write_bytes(story.stack.layout.root_file.read_bytes())
    secret.write_text(story.stack.secret)
    secret.chmod(0o600)
    bootstrap = {"subject": "CN=dev-agent", "user": "load", "secret_file": secret}
    values = {
        "server": {
            "urls": [f"https://localhost:{story.stack.layout.ports.est}"],
            "trust_file": trust,
        },
        "store": story.folder / "agent",
        "bootstrap": bootstrap,
        "cacerts_every_s": 1,
        "retry_s": 0.5,
    }
    return AgentSettings.model_validate(values)


async def requested_all(story: Story, campaign: str) -> dict[str, Any] | None:
    """Return a running campaign whose members were all requested."""
    show = ["campaign", "show", "--id", campaign, "--json", "--config", str(story.operator)]
    shown = json.loads(await story.stack.suite.run("estctl", *show))
    progress = shown["progress"]
    done = progress and progress["members"] == progress["requested"] + progress["skipped"] == 3
    return dict(shown) if shown["state"] == "running" and done else None


async def has_trust(agent: Agent, number: int) -> bool:
    """Return whether an agent's service has so many CA certificates."""
    return (agent.store.current / "ca.pem").read_text().count("BEGIN") == number


async def test_C5_D1_D3_D4_D6_D8_a_root_is_rolled_over_while_a_fleet_renews(story: Story) -> None:
    stack, suite = story.stack, story.stack.suite
    # 1. A fleet of three, one of them an agent, under the old root; then the new CA, made offline, on both signers.
    story.operator = await make_operator(suite, "CN=boss")
    first, second = await story.enroll("dev-client"), await story.enroll("dev-second")
    agent = Agent(agent_settings(story))
    await agent.advance()
    await make_new_ca(story)
    assert len(await story.cacerts()) == 2

    # 2. Planned, published, rolled back, and once more; what was rolled back leaves nothing.
    assert (await story.give("plan", "--to", "issuing-2"))["state"] == "planned"
    assert (await story.give("publish"))["state"] == "published"
    await story.shows(6)
    assert (await story.give("rollback"))["state"] == "rolled_back"
    await story.shows(2)
    await story.give("plan", "--to", "issuing-2")
    await story.give("publish")
    shown = await story.shows(6)
    assert len(set(shown)) == 6

    # 3. No client has fetched it with a certificate, so it does not sign.
    assert "0 of 3" in await story.refused("sign")
    await story.cacerts(stack.client_context(first.pem, first.key))
    # An agent asks by itself, and takes the new root up.
    asking = asyncio.ensure_future(agent.work(stop := asyncio.Event()))

    async def two_have() -> bool:
        return bool((await story.give("status"))["fetched"] == 2)

    await story.until(two_have)
    await story.until(lambda: has_trust(agent, 6))
    lacking = (await story.give("status", "--lacking"))["lacking"]
    assert [slot["subject"] for slot in lacking] == ["CN=dev-second"]
    assert "2 of 3" in await story.refused("sign")
    assert (await story.give("status"))["rollovers"][0]["state"] == "published"

    # 4. A signer is killed; the switch is made; it comes back and knows.
    await suite.stop_service("ca-signer-2", kill=True)
    renewing = ("--renew-per-minute", "600")
    switched = await story.give("sign", "--min-fetched", "60", *renewing)
    assert (switched["state"], switched["fetched_at_switch"]) == ("signing", 2)
    # The old generation is renewed by a campaign; saying it again starts no other one.
    again = await story.give("sign", "--min-fetched", "60", *renewing)
    assert again["campaign"] == switched["campaign"]
    campaign = await story.until(lambda: requested_all(story, switched["campaign"]))
    assert (campaign["reason"], campaign["selector"]) == ("ca_rollover", "issuer=issuing")
    await suite.start_service("ca-signer", "ca-signer-2", wait=True)

    # 5. Renewals lead to the new generation, by certificates of the old and then of the new one.
    async def renewed() -> Credential | None:
        found = await story.reenroll(first)
        return found if "CA 2" in found.certificate.issuer.rfc4514_string() else None

    third: Credential = await story.until(renewed)
    fourth = await story.reenroll(third)
    assert fourth.certificate.issuer == third.certificate.issuer
    fresh = await story.enroll("dev-fresh")
    assert fresh.certificate.issuer == third.certificate.issuer

    held = agent.store.load()
    assert held is not None
    await agent._renew(held, None)

    # 6. A client with one root alone verifies leaves of both, with what /cacerts has.
    shown = await story.shows(6)
    for leaf in (first, third):
        for root in ("old", "new"):
            assert verifies(story.root(root), shown, leaf.pem, story.folder), (leaf.pem, root)
            assert verifies(story.root(root), [], agent.store.current / "cert.pem", story.folder)
    unlinked = [c for c in shown if "Issuing" in c.subject.rfc4514_string()]
    assert not verifies(story.root("old"), unlinked, third.pem, story.folder)

    # 7. The front end gets a certificate under the new root and sends NewWithOld with it.
    assert not serves(story, story.root("new"))
    out, served = story.folder / "server", stack.layout.ca / "server"
    passphrase = ["--passphrase-file", str(stack.layout.secrets / "ca.passphrase")]
    make = ["--folder", str(story.new_ca), "--out", str(out), "--host", "localhost"]
    await suite.run("ca-signer", "ca", "server-certificate", *make, *passphrase)
    shutil.copy(out / "server.key", served / "server.key")
    chain = (out / "server.pem").read_bytes() + (story.folder / "cross.pem").read_bytes()
    (served / "server.pem").write_bytes(chain)

    async def both_connect() -> bool:
        found = [await asyncio.to_thread(serves, story, story.root(r)) for r in ("old", "new")]
        return all(found)

    await story.until(both_connect)
    # Who begins now pins the root that is meant, whichever of the two that is.
    for which in ("old", "new"):
        pinned, wanted = story.folder / f"pinned-{which}.pem", story.root(which)
        meant = x509.load_pem_x509_certificate(wanted.read_bytes()).fingerprint(SHA256()).hex()
        url = f"https://localhost:{stack.layout.ports.est}"
        begin = ["trust", "--url", url, "--out", str(pinned), "--fingerprint", meant]
        await suite.run("estctl", *begin)
        assert pinned.read_bytes() == wanted.read_bytes()

    # 8. Who has only a certificate of the old generation keeps it from retiring.
    assert "1 slots" in await story.refused("retire")
    story.operator.unlink()
    (stack.layout.secrets / "operator.pem").unlink()
    story.operator = await make_operator(suite, "CN=boss")
    assert (await story.give("retire", "--left-behind", "1"))["state"] == "retired"
    left = await story.shows(2)
    assert all("2" in c.subject.rfc4514_string() for c in left)

    # 9. Certificates of the old generation do not authenticate; those of the new one do.
    refused = await story.ask_with(second, make_csr(second.name)[1])
    assert (refused.status, "[auth.certificate_untrusted]" in refused.text) == (401, True)
    await story.reenroll(fourth)
    # The agent follows the server to the new root, which its trust file does not have.
    await story.until(lambda: has_trust(agent, 2))
    stop.set()
    await asking

    # 10. The old revocation list goes on beside the new one.
    for name in ("issuing", "issuing-2"):
        url = f"http://127.0.0.1:{story.crl_port}/crl/{name}.crl"
        fetched = await asyncio.to_thread(
            subprocess.run, ["curl", "-sSf", url], check=True, capture_output=True
        )
        assert x509.load_der_x509_crl(fetched.stdout).next_update_utc is not None
    assert "\nverified: " in await stack.verify_cross()
