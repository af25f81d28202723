"""Tokens of a real Keycloak with the realm of ``deploy/keycloak``, and what they may ask for."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import os
import re
import shutil
import signal
import subprocess
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
import yaml
from cryptography import x509
from cryptography.hazmat.primitives.hashes import SHA256

from est_frontend.auth.tokens.access_token import AccessToken, TokenValidator
from est_frontend.auth.tokens.dpop import check_proof
from est_frontend.auth.tokens.jwks import KeySource
from est_frontend.settings import TokenIssuerSettings
from estclient import Agent, AgentSettings
from estclient.errors import TokenRefused
from estcore.clock import SystemClock
from estcore.errors import NotAuthenticated, NotAuthorized
from estcore.pki.csr import parse_csr
from estcore.policy.decide import Grant, check_names, find_rule, grant
from estcore.policy.document import PolicyDocument
from estsuite_testing.e2e_stack import certificate_in, make_csr, same_key, start_stack, stop_stack
from estsuite_testing.keycloak import Admin, Keycloak, administration
from estsuite_testing.token_issuer import (
    b64,
    dpop_proof,
    private_key,
    refusal,
    running,
    thumbprint,
    until_true,
)

PAGE = Path(__file__).parents[3] / "docs" / "operations" / "tokens.md"
CLOCK = SystemClock()
LABEL = "tokens"
URL = f"https://est.clinic.example/.well-known/est/{LABEL}/simpleenroll"


@dataclass
class World:
    """The server, and how a front end trusts it."""

    keycloak: Keycloak
    policy: PolicyDocument = field(default_factory=lambda: policy_of_the_page())

    def settings(self, **changes: Any) -> TokenIssuerSettings:
        raw = {
            "id": "keycloak", "issuer": self.keycloak.issuer, "audience": "est",
            "jwks_url": self.keycloak.jwks_url, "ca_file": self.keycloak.ca_file,
        }  # fmt: skip
        return TokenIssuerSettings.model_validate(raw | changes)

    @contextlib.asynccontextmanager
    async def validating(self, **changes: Any) -> AsyncIterator[TokenValidator]:
        mine = self.settings(**changes)
        async with running(KeySource(mine, self.keycloak.folder)) as source:
            await until_true(lambda: source.ready)
            yield TokenValidator({mine.issuer: (mine, source)}, CLOCK)

    def granted(self, token: AccessToken, common_name: str) -> Grant:
        """What the policy gives the token; raises like the front end and the signer do."""
        claims = token.claims(self.policy.claims_wanted("keycloak"))
        name = f"{token.issuer_id}/{token.subject}"
        rule = find_rule(self.policy, method="token", name=name, claims=claims)
        found = grant(self.policy, rule, LABEL, claims=claims)
        check_names(parse_csr(make_csr(common_name)[1]), found.rule.names)
        return found


def blocks() -> list[Any]:
    """The YAML of the operators' page."""
    return [yaml.safe_load(b) for b in re.findall(r"```yaml\n(.*?)```", PAGE.read_text(), re.S)]


def policy_of_the_page() -> PolicyDocument:
    return PolicyDocument.model_validate(next(b for b in blocks() if "rules" in b))


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    keycloak = Keycloak(tmp_path_factory.mktemp("keycloak"))
    keycloak.client_certificate("gateway")
    keycloak.start()
    try:
        yield World(keycloak)
    finally:
        keycloak.stop()


@pytest.fixture
async def admin(world: World) -> AsyncIterator[Admin]:
    async with administration(world.keycloak) as found:
        yield found


async def test_the_settings_on_the_operators_page_are_settings(world: World) -> None:
    for raw in (raw for b in blocks() for raw in b.get("token_issuers", ())):
        TokenIssuerSettings.model_validate(raw)
    assert world.policy.labels[LABEL].authentication == ("token",)


async def test_L10_a_token_of_keycloak_is_accepted(world: World, admin: Admin) -> None:
    token = (await admin.tokens("clinic-web"))["access_token"]
    async with world.validating() as validator:
        found = await validator.validate(token)
        await validator.validate(base64.b64encode(token.encode()).decode())
    assert found.payload["azp"] == "clinic-web"
    assert not found.bound


async def test_L14_a_token_gets_its_own_profile_and_its_own_name(
    world: World, admin: Admin
) -> None:
    async with world.validating() as validator:
        web = await validator.validate((await admin.tokens("clinic-web"))["access_token"])
        lab = await validator.validate((await admin.tokens("clinic-lab"))["access_token"])
    found = world.granted(web, "clinic-web.clinic.example")
    assert found.profile == "service-mtls"
    assert (found.rule.owner.tenant, found.rule.owner.service) == ("clinic", "clinic-web")
    assert world.granted(lab, "clinic-lab.clinic.example").profile == "server-only"
    for token, name in (
        (web, "clinic-lab.clinic.example"),
        (lab, "clinic-web.clinic.example"),
        (web, "clinic.example"),
        (web, "x.clinic-web.clinic.example"),
    ):
        with pytest.raises(NotAuthorized) as caught:
            world.granted(token, name)
        assert caught.value.code == "policy.subject"


async def test_a_client_without_a_role_gets_nothing(world: World, admin: Admin) -> None:
    await new_client(admin, "clinic-none")
    async with world.validating() as validator:
        token = await validator.validate((await admin.tokens("clinic-none"))["access_token"])
    with pytest.raises(NotAuthorized) as caught:
        world.granted(token, "clinic-none.clinic.example")
    assert caught.value.code == "policy.role"


async def test_a_token_without_our_audience_is_refused(world: World, admin: Admin) -> None:
    await new_client(admin, "without-scope", defaultClientScopes=[])
    token = (await admin.tokens("without-scope"))["access_token"]
    async with world.validating() as validator:
        assert await refusal(validator, token) == "auth.token_audience"


async def test_id_and_refresh_tokens_are_refused(world: World, admin: Admin) -> None:
    attributes = {"client_credentials.use_refresh_token": "true"}
    await new_client(admin, "clinic-openid", attributes=attributes)
    found = await admin.tokens("clinic-openid", scope="openid")
    async with world.validating() as validator:
        await validator.validate(found["access_token"])
        assert await refusal(validator, found["id_token"]) == "auth.token_audience"
        assert await refusal(validator, found["refresh_token"]) == "auth.token_algorithm"
    # Even where the audience would be right.
    async with world.validating(audience="clinic-openid") as validator:
        assert await refusal(validator, found["id_token"]) == "auth.token_type"


async def test_a_damaged_token_of_keycloak_is_refused(world: World, admin: Admin) -> None:
    token = (await admin.tokens("clinic-web"))["access_token"]
    async with world.validating() as validator:
        for place in range(0, len(token), 7):
            other = "A" if token[place] != "A" else "B"
            with pytest.raises(NotAuthenticated):
                await validator.validate(token[:place] + other + token[place + 1 :])


async def test_keys_may_change_while_everybody_works(world: World, admin: Admin) -> None:
    """A new key works at once; the old one until Keycloak takes it out of its set."""
    async with world.validating(refresh_s=1, cool_down_s=0.1) as validator:
        old = (await admin.tokens("clinic-web"))["access_token"]
        await validator.validate(old)
        before = await providers(admin)
        await admin.call("POST", "/components", {
            "name": "newer", "providerId": "ecdsa-generated",
            "providerType": "org.keycloak.keys.KeyProvider",
            "config": {"priority": [str(100 + len(before))], "ecdsaEllipticCurveKey": ["P-256"]},
        })  # fmt: skip
        new = (await admin.tokens("clinic-web"))["access_token"]
        assert new.partition(".")[0] != old.partition(".")[0]
        await validator.validate(new)
        await validator.validate(old)
        for provider in before:
            await admin.call("DELETE", f"/components/{provider['id']}")
        async with asyncio.timeout(10):
            with pytest.raises(NotAuthenticated) as caught:  # noqa: PT012 - until it is refused
                while True:
                    await validator.validate(old)
                    await asyncio.sleep(0.1)
        assert caught.value.code == "auth.token_key"
        await validator.validate(new)


async def test_L15_while_keycloak_is_dead_its_tokens_stay_good(world: World, admin: Admin) -> None:
    assert world.keycloak.process is not None
    token = (await admin.tokens("clinic-web"))["access_token"]
    async with world.validating(refresh_s=1) as validator:
        await validator.validate(token)
        os.killpg(world.keycloak.process.pid, signal.SIGSTOP)
        try:
            for _ in range(3):
                await asyncio.sleep(0.5)
                await validator.validate(token)
            # A front end that starts now has what the one before it kept.
            source = KeySource(world.settings(), world.keycloak.folder)
            source.load()
            async with running(source):
                mine = world.settings()
                await TokenValidator({mine.issuer: (mine, source)}, CLOCK).validate(token)
        finally:
            os.killpg(world.keycloak.process.pid, signal.SIGCONT)
        await validator.validate((await admin.tokens("clinic-web"))["access_token"])


async def test_L13_a_token_for_one_client_certificate_says_so(world: World, admin: Admin) -> None:
    files = world.keycloak.client_certificate("gateway")
    token = (await admin.tokens("clinic-gateway", certificate=files))["access_token"]
    async with world.validating() as validator:
        found = await validator.validate(token)
    certificate = x509.load_pem_x509_certificate(files[0].read_bytes())
    assert found.certificate_thumbprint == b64(certificate.fingerprint(SHA256()))
    with pytest.raises(RuntimeError):
        await admin.tokens("clinic-gateway")


async def test_a_dpop_token_of_keycloak_is_good_with_a_proof_only(
    world: World, admin: Admin
) -> None:
    token = await dpop_token(world, admin)
    async with world.validating() as validator:
        found = await validator.validate(token)
    bound_to = thumbprint(private_key("ec-agent"))
    assert found.key_thumbprint == bound_to
    proof = dpop_proof("ec-agent", token, URL, CLOCK)
    known = {"thumbprint": bound_to, "method": "POST", "clock": CLOCK}
    assert len(check_proof(proof, token, url=URL, **known)) == 64  # type: ignore[arg-type]
    with pytest.raises(NotAuthenticated):
        check_proof(proof, token, url=URL + "x", **known)  # type: ignore[arg-type]
    with pytest.raises(RuntimeError):
        await admin.tokens("clinic-records")


async def dpop_token(world: World, admin: Admin) -> str:
    url = f"{world.keycloak.issuer}/protocol/openid-connect/token"
    headers = {"DPoP": dpop_proof("ec-agent", None, url, CLOCK)}
    answer = await admin.tokens("clinic-records", headers=headers)
    assert answer["token_type"] == "DPoP"
    return str(answer["access_token"])


async def new_client(admin: Admin, client_id: str, **more: Any) -> None:
    client = {
        "clientId": client_id, "serviceAccountsEnabled": True, "standardFlowEnabled": False,
        "defaultClientScopes": ["est"], "optionalClientScopes": [],
    }  # fmt: skip
    await admin.call("POST", "/clients", client | more)


async def providers(admin: Admin) -> list[dict[str, Any]]:
    """The providers of the keys tokens are signed with."""
    found = await admin.call("GET", "/components?type=org.keycloak.keys.KeyProvider")
    return [one for one in found if one["providerId"] == "ecdsa-generated"]


@pytest.mark.e2e
async def test_curl_enrolls_with_a_token_of_keycloak(
    world: World, admin: Admin, tmp_path: Path
) -> None:
    policy = tmp_path / "policy.yaml"
    policy.write_text(yaml.safe_dump(next(b for b in blocks() if "rules" in b)))
    issuer = world.settings().model_dump(mode="json", exclude_defaults=True)
    overrides = {"est-frontend": {"token_issuers": [issuer]}}
    stack = await start_stack(tmp_path / "stack", overrides=overrides, policy=policy)
    try:
        base = f"https://localhost:{stack.layout.ports.est}"
        root = stack.layout.root_file
        url = f"{base}/.well-known/est/{LABEL}/simpleenroll"
        token = (await admin.tokens("clinic-web"))["access_token"]
        key, csr = make_csr("clinic-web.clinic.example")
        bearer = f'oauth2-bearer = "{token}"\n'
        status, body = await asyncio.to_thread(curl, tmp_path, root, url, bearer, csr)
        assert status == 200, body
        assert same_key(certificate_in(body), key)
        # L14: not another's name. L12: what is wrong stands in the answer.
        _, other = make_csr("clinic-lab.clinic.example")
        status, body = await asyncio.to_thread(curl, tmp_path, root, url, bearer, other)
        assert (status, b"policy.subject" in body) == (403, True), body
        bad = f'oauth2-bearer = "{token[:-8]}AAAAAAAA"\n'
        status, body = await asyncio.to_thread(curl, tmp_path, root, url, bad, csr)
        assert (status, b"auth.token_signature" in body) == (401, True), body
        # DPoP: one proof, one request.
        token = await dpop_token(world, admin)
        _, csr = make_csr("clinic-records.clinic.example")
        proof = dpop_proof("ec-agent", token, url, CLOCK)
        bound = f'header = "Authorization: DPoP {token}"\nheader = "DPoP: {proof}"\n'
        status, body = await asyncio.to_thread(curl, tmp_path, root, url, bound, csr)
        assert status == 200, body
        _, csr = make_csr("clinic-records.clinic.example")
        status, body = await asyncio.to_thread(curl, tmp_path, root, url, bound, csr)
        assert status in {401, 403, 409}, body
        # A proof made for another server does not fit here, whatever Host says.
        other_url = url.replace(base, "https://other.example")
        proof = dpop_proof("ec-agent", token, other_url, CLOCK)
        lines = f'header = "DPoP: {proof}"\nheader = "Host: other.example"\n'
        lines += f'header = "Authorization: DPoP {token}"\n'
        status, body = await asyncio.to_thread(curl, tmp_path, root, url, lines, csr)
        assert (status, b"auth.dpop" in body) == (401, True), body
        stolen = f'oauth2-bearer = "{token}"\n'
        status, body = await asyncio.to_thread(curl, tmp_path, root, url, stolen, csr)
        assert (status, b"auth.dpop" in body) == (401, True), body
        await the_agent_enrolls(world, admin, base, root, tmp_path)
    finally:
        await stop_stack(stack)


async def the_agent_enrolls(
    world: World, admin: Admin, base: str, root: Path, folder: Path
) -> None:
    """By client credentials: with proofs where the client must, and where Keycloak only may."""
    for client, dpop, ok in (
        ("clinic-web", False, True),
        ("clinic-web", True, True),
        ("clinic-records", True, True),
        ("clinic-records", False, False),
    ):
        secret = folder / f"{client}.secret"
        secret.touch(mode=0o600)
        secret.write_text(await admin.secret_of(client))
        credentials = {
            "token_url": f"{world.keycloak.issuer}/protocol/openid-connect/token",
            "client_id": client, "client_secret_file": secret, "dpop": dpop,
            "ca_file": world.keycloak.ca_file,
        }  # fmt: skip
        values = {
            "server": {"urls": [base], "trust_file": root, "label": LABEL},
            "store": folder / f"{client}-{dpop}",
            "bootstrap": {
                "subject": f"CN={client}.clinic.example",
                "token": {"client_credentials": credentials},
            },
        }
        agent = Agent(AgentSettings.model_validate(values))
        if ok:
            await agent.advance()
            assert agent.store.load() is not None
            continue
        with pytest.raises(TokenRefused, match="invalid_request"):
            await agent.advance()


def curl(folder: Path, root: Path, url: str, config: str, csr: bytes) -> tuple[int, bytes]:
    """Status and body. The token goes in by standard input: no process list shows it."""
    file = folder / f"{sha256(csr).hexdigest()[:8]}.b64"
    file.write_bytes(base64.encodebytes(csr))
    done = subprocess.run(
        [
            shutil.which("curl") or "curl", "-sS", "-K", "-", "--cacert", str(root),
            "-H", "Content-Type: application/pkcs10", "--data-binary", f"@{file}",
            "-w", "\n%{http_code}", url,
        ],
        input=config.encode(), capture_output=True, check=True,
    )  # fmt: skip
    body, _, status = done.stdout.rpartition(b"\n")
    return int(status), body
