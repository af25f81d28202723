"""Keys in a PKCS#11 token: made there, used there, renewed by mutual TLS, never in a file."""

from __future__ import annotations

import base64
import datetime as dt
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from hypothesis import given
from hypothesis import strategies as st

from estclient import Agent, AgentSettings
from estclient.errors import BundleInvalid, ServerAway, TokenFailed
from estclient.est.client import ESTClient
from estclient.est.keys import load_any_key, load_key, make_key
from estclient.est.token import ClientToken
from estclient.est.token_key import TokenKey, parse_reference, uri_of
from estcore.clock import SystemClock
from estcore.errors import ConfigurationError
from estsuite_testing.debian import debian_packages, environment
from estsuite_testing.est_server import CA, ESTServer
from estsuite_testing.softhsm import LABEL, SoftHSM

NOW = SystemClock().now


@pytest.fixture(scope="module")
def hsm(tmp_path_factory: pytest.TempPathFactory) -> SoftHSM:
    return SoftHSM(tmp_path_factory.mktemp("hsm"))


@pytest.fixture
def token(hsm: SoftHSM, monkeypatch: pytest.MonkeyPatch) -> SoftHSM:
    """The token, and OpenSSL's engine for curl."""
    engine = debian_packages("libengine-pkcs11-openssl", "libp11-3")
    for root in (hsm.root, engine):
        libraries = environment(root).get("LD_LIBRARY_PATH", "")
        known = os.environ.get("LD_LIBRARY_PATH", "")
        monkeypatch.setenv("LD_LIBRARY_PATH", ":".join(filter(None, (libraries, known))))
    monkeypatch.setenv("SOFTHSM2_CONF", str(hsm.configuration))
    engines = next(engine.glob("usr/lib/**/engines-3"))
    monkeypatch.setenv("OPENSSL_ENGINES", str(engines))
    return hsm


def settings(server: ESTServer, hsm: SoftHSM, name: str, **changes: Any) -> AgentSettings:
    trust, secret = server.folder / "trust.pem", server.folder / "secret"
    trust.write_bytes(server.ca.root.public_bytes(Encoding.PEM))
    secret.touch(mode=0o600)
    secret.write_text("s3cret")
    values = {
        "name": name,
        "server": {"urls": [server.url], "trust_file": trust, "timeout_s": 10},
        "store": server.folder / name,
        "bootstrap": {"subject": f"CN={name}", "san": [f"dns:{name}"], "user": "device-1",
                      "secret_file": secret},
        "pkcs11": {"module": hsm.module, "label": LABEL, "pin_file": hsm.pin_file},
        "ack_timeout_s": 1,
    }  # fmt: skip
    return AgentSettings.model_validate(values | changes)


def client_token(hsm: SoftHSM, name: str) -> ClientToken:
    return ClientToken(hsm.module, LABEL, hsm.pin_file, f"estctl-{name}")


@pytest.mark.parametrize("algorithm", ["ec-p256", "ec-p384", "rsa-2048"])
async def test_a_key_in_a_token_enrolls_renews_and_proves(
    server: ESTServer, token: SoftHSM, algorithm: str
) -> None:
    class Later:
        def now(self) -> dt.datetime:
            return NOW() + dt.timedelta(seconds=50)

    server.life = dt.timedelta(seconds=55)
    agent = Agent(settings(server, token, f"k-{algorithm}", key_algorithm=algorithm))
    await agent.advance()
    first = agent.store.load()
    assert first is not None
    csr = x509.load_der_x509_csr(base64.b64decode(server.seen[0].body))
    assert csr.is_signature_valid
    # What is on the disk is a reference.
    assert isinstance(first.key, TokenKey)
    with pytest.raises(BundleInvalid):
        load_key(first.files[1].read_bytes())
    assert b"PRIVATE" not in first.files[1].read_bytes()

    # Another process renews, by mutual TLS with the key in the token.
    again = Agent(settings(server, token, f"k-{algorithm}", key_algorithm=algorithm), clock=Later())
    await again.advance()
    second = again.store.load()
    assert second is not None
    assert second.fingerprint != first.fingerprint
    by = {s.operation: s.client for s in server.seen if s.client}
    assert by["simplereenroll"] == first.fingerprint
    assert by["rotation-ack"] == second.fingerprint
    assert second.proven
    renewal = next(s for s in server.seen if s.operation == "simplereenroll")
    renewed = x509.load_der_x509_csr(base64.b64decode(renewal.body))
    assert renewed.is_signature_valid
    assert renewed.subject == csr.subject
    assert "User-Agent" not in renewal.headers
    ack = next(s for s in server.seen if s.operation == "rotation-ack")
    assert (ack.body, ack.headers.get("Content-Type")) == (b"", None)


async def test_keys_of_the_past_and_of_refused_requests_leave_the_token(
    server: ESTServer, token: SoftHSM
) -> None:
    mine, other = client_token(token, "one"), client_token(token, "two")
    kept = await mine.generate("ec-p256")
    lost = await mine.generate("ec-p256")
    foreign = await other.generate("ec-p256")
    await mine.keep_only({kept.key_id})
    assert await mine.sign(kept, b"x")
    assert await other.sign(foreign, b"x")
    with pytest.raises(TokenFailed):
        await mine.sign(lost, b"x")


async def test_only_the_trust_given_is_trusted(server: ESTServer, token: SoftHSM) -> None:
    agent = Agent(settings(server, token, "trust"))
    await agent.advance()
    bundle = agent.store.load()
    assert bundle is not None
    from estclient.est.curl_transport import TokenCredential

    assert isinstance(bundle.key, TokenKey)
    credential = TokenCredential(bundle.files[0], bundle.key, client_token(token, "trust"))
    count = len(server.seen)
    other = CA().root.public_bytes(Encoding.PEM)
    with pytest.raises(ServerAway, match="certificate"):
        await ESTClient(server.url, trust=other, credential=credential).cacerts()
    assert len(server.seen) == count


async def test_a_wrong_pin_reaches_the_token_once(
    server: ESTServer, token: SoftHSM, tmp_path: Path
) -> None:
    pin = tmp_path / "wrong.pin"
    pin.touch(mode=0o600)
    pin.write_text("not the pin")
    wrong = ClientToken(token.module, LABEL, pin, "estctl-x")
    for _ in range(5):
        with pytest.raises(ConfigurationError) as caught:
            await wrong.check()
        assert caught.value.code == "client.pkcs11_pin"
    await client_token(token, "x").check()  # not locked


@pytest.mark.parametrize(
    "changes", [{"token_label": "no such token"}, {"module": Path("/nonexistent.so")}]
)
async def test_a_token_that_is_not_there_is_one_line(
    token: SoftHSM, changes: dict[str, Any]
) -> None:
    values: dict[str, Any] = {
        "module": token.module, "token_label": LABEL, "pin_file": token.pin_file,
    }  # fmt: skip
    with pytest.raises(TokenFailed):
        await ClientToken(**(values | changes), key_label="x").check()


async def test_without_curl_or_its_engine_the_line_says_so(
    server: ESTServer, token: SoftHSM, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    agent = Agent(settings(server, token, "engine"))
    await agent.advance()
    bundle = agent.store.load()
    assert bundle is not None
    from estclient.est.curl_transport import TokenCredential

    assert isinstance(bundle.key, TokenKey)
    credential = TokenCredential(bundle.files[0], bundle.key, client_token(token, "engine"))
    trust = server.folder / "trust.pem"
    for name, value in (("OPENSSL_ENGINES", str(tmp_path)), ("PATH", str(tmp_path))):
        monkeypatch.setenv(name, value)
        with pytest.raises(ConfigurationError) as caught:
            await ESTClient(server.url, trust=trust, credential=credential).cacerts()
        assert caught.value.code == "client.pkcs11_tls"


def test_the_agent_runs_without_the_extra() -> None:
    code = (
        "import sys; sys.modules['pkcs11'] = None\n"
        "import estclient.agent.host, asyncio, pathlib\n"
        "from estclient.est.token import ClientToken\n"
        "from estcore.errors import ConfigurationError\n"
        "p = pathlib.Path('x')\n"
        "try: asyncio.run(ClientToken(p, 'l', p, 'k').check())\n"
        "except ConfigurationError as exc: assert 'estsuite-client[pkcs11]' in exc.reason\n"
        "else: raise SystemExit('no error')"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@given(st.text(min_size=1, max_size=32), st.binary(min_size=1, max_size=32))
def test_a_reference_is_read_as_it_was_written(label: str, key_id: bytes) -> None:
    try:
        uri = uri_of(label, key_id)
    except UnicodeEncodeError:
        return  # half a surrogate pair: no label
    public: Any = make_key().public_key()
    key = TokenKey(uri, public)
    assert key.key_id == key_id
    assert load_any_key(key.pem()) == key


@given(st.binary(max_size=200), st.integers(0, 400))
def test_any_octets_are_a_reference_or_refused(octets: bytes, at: int) -> None:
    public: Any = make_key().public_key()
    pem = TokenKey(uri_of("t", b"1"), public).pem()
    for text in (octets, pem[:at] + octets + pem[at:]):
        try:
            parse_reference(text)
        except BundleInvalid:
            continue
