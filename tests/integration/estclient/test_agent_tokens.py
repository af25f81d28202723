"""First certificates by access token, and by a certificate from before."""

from __future__ import annotations

import base64
import datetime as dt
import json
import ssl
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from cryptography.hazmat.primitives.serialization import Encoding
from hypothesis import given
from hypothesis import strategies as st
from joserfc.jwk import ECKey

from est_frontend.auth.tokens.dpop import check_proof
from estclient import Agent, AgentSettings
from estclient.errors import ServerAway, TokenRefused
from estclient.est.dpop import DPoPKey
from estclient.est.keys import key_pem
from estcore.clock import SystemClock
from estcore.errors import ConfigurationError, NotAuthenticated
from estcore.pki import jws
from estsuite_testing.est_server import ESTServer

CLOCK = SystemClock()


class TokenEndpoint:
    """An authorization server's token endpoint over TLS; ``script`` answers before it behaves."""

    def __init__(self, server: ESTServer) -> None:
        self.server = server
        self.script: list[web.Response] = []
        self.forms: list[dict[str, str]] = []
        self.headers: list[dict[str, str]] = []
        self.bound = True
        self.nonce: str | None = None
        self.url = ""

    async def __aenter__(self) -> TokenEndpoint:
        application = web.Application()
        application.router.add_post("/token", self._token)
        self._runner = web.AppRunner(application)
        await self._runner.setup()
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(
            self.server.folder / "server.pem", self.server.folder / "server.key"
        )
        site = web.TCPSite(self._runner, "localhost", 0, ssl_context=context)
        await site.start()
        port = site._server.sockets[0].getsockname()[1]  # type: ignore[union-attr]
        self.url = f"https://localhost:{port}/token"
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._runner.cleanup()

    async def _token(self, request: web.Request) -> web.Response:
        self.forms.append({k: str(v) for k, v in (await request.post()).items()})
        self.headers.append(dict(request.headers))
        if self.script:
            return self.script.pop(0)
        proof = request.headers.get("DPoP")
        if self.nonce is not None and proof is not None:
            claims = json.loads(jws.parse(proof).payload)
            if claims.get("nonce") != self.nonce:
                error = {"error": "use_dpop_nonce"}
                return web.json_response(error, status=400, headers={"DPoP-Nonce": self.nonce})
        kind = "DPoP" if proof and self.bound else "Bearer"
        return web.json_response({"access_token": "a.b.c", "token_type": kind})


@pytest.fixture
async def endpoint(server: ESTServer) -> AsyncIterator[TokenEndpoint]:
    async with TokenEndpoint(server) as started:
        yield started


def agent(server: ESTServer, **bootstrap: Any) -> Agent:
    trust = server.folder / "trust.pem"
    trust.write_bytes(server.ca.pem)
    values = {
        "server": {"urls": [server.url], "trust_file": trust, "label": "web", "timeout_s": 5},
        "store": server.folder / "store",
        "bootstrap": {"subject": "CN=web.demo"} | bootstrap,
    }
    return Agent(AgentSettings.model_validate(values))


def private(file: Path, text: str) -> Path:
    file.touch(mode=0o600)
    file.write_text(text)
    return file


def credentials(server: ESTServer, endpoint: TokenEndpoint, **changes: Any) -> dict[str, Any]:
    trust = server.folder / "roots.pem"
    trust.write_bytes(server.ca.pem)
    secret = private(server.folder / "client.secret", "p@ss:word+")
    values = {
        "token_url": endpoint.url, "client_id": "clinic web", "client_secret_file": secret,
        "ca_file": trust, "scope": "est",
    }  # fmt: skip
    return {"client_credentials": {k: v for k, v in (values | changes).items() if v is not None}}


async def test_client_credentials_give_a_token_that_is_used_with_proofs(
    server: ESTServer, endpoint: TokenEndpoint
) -> None:
    endpoint.nonce = "n-1"
    await agent(server, token=credentials(server, endpoint)).advance()
    assert endpoint.forms[-1] == {"grant_type": "client_credentials", "scope": "est"}
    basic = base64.b64decode(endpoint.headers[-1]["Authorization"].removeprefix("Basic "))
    assert basic == b"clinic+web:p%40ss%3Aword%2B"
    assert len(endpoint.forms) == 2  # the second one with the nonce
    assert server.seen[0].authorization == "DPoP a.b.c"
    proof = server.seen[0].headers["DPoP"]
    thumbprint = _thumbprint(proof)
    url = f"{server.url}/.well-known/est/web/simpleenroll"
    known: dict[str, Any] = {"thumbprint": thumbprint, "method": "POST", "clock": CLOCK}
    assert check_proof(proof, "a.b.c", url=url, **known)
    with pytest.raises(NotAuthenticated):
        check_proof(proof, "a.b.d", url=url, **known)


async def test_a_bearer_token_is_sent_as_one(server: ESTServer, endpoint: TokenEndpoint) -> None:
    endpoint.bound = False
    await agent(server, token=credentials(server, endpoint)).advance()
    assert server.seen[0].authorization == "Bearer a.b.c"
    assert "DPoP" not in server.seen[0].headers


async def test_a_client_may_sign_an_assertion_instead(
    server: ESTServer, endpoint: TokenEndpoint
) -> None:
    bundle = server.ca.bundle()
    key = private(server.folder / "client.key", key_pem(bundle.key).decode())
    token = credentials(server, endpoint, client_secret_file=None, private_key_file=key, dpop=False)
    await agent(server, token=token).advance()
    form = endpoint.forms[0]
    assert "Authorization" not in endpoint.headers[0]
    assertion = jws.parse(form["client_assertion"])
    assert jws.signature_by(assertion, bundle.key.public_key())
    claims = json.loads(assertion.payload)
    assert (claims["iss"], claims["sub"], claims["aud"]) == (
        "clinic web",
        "clinic web",
        endpoint.url,
    )


@pytest.mark.parametrize(
    ("answer", "error", "words"),
    [
        (
            web.json_response({"error": "invalid_client"}, status=401),
            TokenRefused,
            "invalid_client",
        ),
        (web.Response(status=400, text="<html>"), TokenRefused, "400"),
        (web.Response(status=503), ServerAway, "503"),
        (web.json_response({}), TokenRefused, "no access token"),
        (web.json_response([1]), TokenRefused, "no access token"),
        (web.json_response({"access_token": "a b"}), TokenRefused, "characters"),
        (web.json_response({"access_token": "a\r\nX: y"}), TokenRefused, "characters"),
        (web.json_response({"access_token": "x" * 9000}), TokenRefused, "8192"),
        (web.Response(status=302, headers={"Location": "https://x"}), TokenRefused, "302"),
    ],
)
async def test_an_answer_without_a_token_is_one_line(
    server: ESTServer, endpoint: TokenEndpoint, answer: web.Response, error: type, words: str
) -> None:
    endpoint.script = [answer]
    with pytest.raises(error, match=words) as caught:
        await agent(server, token=credentials(server, endpoint)).advance()
    assert "p@ss" not in str(caught.value)
    assert not server.seen


async def test_a_projected_token_is_read_again_each_time(server: ESTServer) -> None:
    file = server.folder / "token"
    file.write_text("first.token.x\n")
    file.chmod(0o644)  # as the kubelet writes it
    server.script = [web.Response(status=503)] * 4
    mine = agent(server, token={"service_account_file": file})
    with pytest.raises(ServerAway):
        await mine.advance()
    file.write_text("second.token.x")
    await mine.advance()
    assert {s.authorization for s in server.seen[:4]} == {"Bearer first.token.x"}
    assert server.seen[4].authorization == "Bearer second.token.x"
    bodies = {s.body for s in server.seen if s.operation == "simpleenroll"}
    assert len(bodies) == 1


async def test_a_token_of_an_operator_is_for_its_owner_alone(server: ESTServer) -> None:
    file = server.folder / "token"
    file.write_text("a.b.c")
    file.chmod(0o644)
    with pytest.raises(ConfigurationError) as caught:
        await agent(server, token={"token_file": file}).advance()
    assert caught.value.code == "secret.exposed"


async def test_a_certificate_from_before_authenticates_the_first_enrollment(
    server: ESTServer,
) -> None:
    idevid = server.ca.bundle("device-4711")
    chain, key = server.folder / "idevid.pem", server.folder / "idevid.key"
    chain.write_bytes(
        idevid.certificate.public_bytes(Encoding.PEM) + server.ca.issuer.public_bytes(Encoding.PEM)
    )
    private(key, key_pem(idevid.key).decode())
    mine = agent(server, certificate={"certificate_file": chain, "key_file": key})
    await mine.advance()
    assert (server.seen[0].operation, server.seen[0].client) == ("simpleenroll", idevid.fingerprint)
    stored = mine.store.load()
    assert stored is not None
    assert stored.in_use
    assert stored.key.public_key() != idevid.key.public_key()


@given(st.binary(max_size=40), st.sampled_from(["GET", "POST"]), st.text("abc/?#.", max_size=20))
def test_every_proof_is_good_at_the_server_and_for_one_request_only(
    octets: bytes, method: str, tail: str
) -> None:
    key = DPoPKey()
    token = base64.urlsafe_b64encode(octets).decode() + "x"
    url = f"https://est.example:8443/{tail}"
    proof = key.proof(method, url, now=CLOCK.now(), token=token)
    plain = url.partition("#")[0].partition("?")[0]
    known: dict[str, Any] = {"thumbprint": key.thumbprint, "clock": CLOCK}
    assert check_proof(proof, token, method=method, url=plain, **known)
    for changed in (
        {"method": "PUT", "url": plain},
        {"method": method, "url": plain + "y"},
        {"method": method, "url": plain, "thumbprint": DPoPKey().thumbprint},
    ):
        with pytest.raises(NotAuthenticated):
            check_proof(proof, token, **(known | changed))
    late = key.proof(method, url, now=CLOCK.now() - dt.timedelta(minutes=2), token=token)
    with pytest.raises(NotAuthenticated):
        check_proof(late, token, method=method, url=plain, **known)


def _thumbprint(proof: str) -> str:
    return ECKey.import_key(jws.parse(proof).header["jwk"]).thumbprint()


def test_two_ways_at_once_are_refused(tmp_path: Path) -> None:
    secret = {"user": "u", "secret_file": tmp_path / "s"}
    many: tuple[dict[str, Any], ...] = (
        {},
        secret | {"token": {"token_file": tmp_path / "t"}},
        {"token": {"token_file": tmp_path / "t", "service_account_file": tmp_path / "t"}},
        {"token": {}},
        {"user": "u"},
    )
    for ways in many:
        with pytest.raises(ValueError, match=r"exactly one|belong together"):
            AgentSettings.model_validate(
                {
                    "server": {"urls": ["https://x"], "trust_file": "t"},
                    "store": "s",
                    "bootstrap": {"subject": "CN=x"} | ways,
                }
            )
