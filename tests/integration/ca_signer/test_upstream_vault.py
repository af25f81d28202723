"""The PKI engine of Vault as the CA, against a real OpenBao, whose API it is.

What a healthy server never says (500, nonsense, redirects) is said by a server of the test.
"""

from __future__ import annotations

import asyncio
import datetime as dt
import json
import ssl
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from aiohttp import web
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding

from ca_signer.upstream.issuer import load_upstreams
from ca_signer.upstream.main import check
from ca_signer.upstream.plugin import Refused, Retryable, Unknown, Upstream, Wanted
from ca_signer.upstream.plugins.vault import make
from estcore import ids
from estcore.errors import ConfigurationError, ESTSuiteError
from estsuite_testing.openbao import OpenBao, openbao
from estsuite_testing.operators import operator
from estsuite_testing.other_ca import DAY, OtherCA, named
from estsuite_testing.platform import Platform
from estsuite_testing.upstream_stack import ISSUER, UpstreamStack, upstream_settings, upstream_stack

pytestmark = [pytest.mark.integration, pytest.mark.asyncio(loop_scope="module")]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def bao(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[OpenBao]:
    async with openbao(tmp_path_factory.mktemp("bao")) as found:
        yield found


async def vault_issuer(bao: OpenBao, **options: Any) -> dict[str, Any]:
    """Settings of an issuer behind that server."""
    return {
        "certificate_file": bao.folder / "issuing.pem",
        "chain_file": bao.folder / "root.pem",
        "plugin": "vault",
        "options": {
            "url": bao.url,
            "ca_file": str(bao.ca_file),
            "mount": "pki",
            "role": "services",
            "auth": await bao.approle(),
            **options,
        },
    }


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def stack(
    platform: Platform, bao: OpenBao, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[UpstreamStack]:
    folder: Path = tmp_path_factory.mktemp("upstream")
    unused = OtherCA(folder / "other")
    issuer = await vault_issuer(bao)
    async with upstream_stack(platform, folder, unused, issuer=issuer) as found:
        yield found


def request(*san: str) -> bytes:
    builder = x509.CertificateSigningRequestBuilder(named(f"dev-{ids.uuid7()}"))
    if san:
        entries = [x509.DNSName(name) for name in san]
        builder = builder.add_extension(x509.SubjectAlternativeName(entries), critical=False)
    csr = builder.sign(ec.generate_private_key(ec.SECP256R1()), SHA256())
    return csr.public_bytes(Encoding.DER)


async def use(stack: UpstreamStack, bao: OpenBao, **options: Any) -> Upstream:
    """Give the running process a plug-in with other options; returns the one it had."""
    (settings,) = stack.settings.issuers
    changed = await vault_issuer(bao, **options)
    (fresh,) = load_upstreams(
        [settings.model_copy(update={"options": changed["options"]})]
    ).values()
    issuer = stack.parts.issuers[ISSUER]
    before, issuer.plugin = issuer.plugin, fresh.plugin
    await fresh.plugin.__aenter__()
    return before


async def put_back(stack: UpstreamStack, plugin: Upstream) -> None:
    issuer = stack.parts.issuers[ISSUER]
    issuer.succeeded()
    used, issuer.plugin = issuer.plugin, plugin
    await used.__aexit__(None, None, None)


async def test_vault_signs_exactly_what_was_decided(stack: UpstreamStack, bao: OpenBao) -> None:
    """No CN among the SANs, no longer life, and no more than the profile's usages."""
    message = stack.message(request("a.devices.test", "b.devices.test"))
    answer = await stack.ask(message)
    assert answer.outcome == "issued", answer
    certificate = x509.load_der_x509_certificate(answer.certificate or b"")
    san = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert sorted(san.get_values_for_type(x509.DNSName)) == ["a.devices.test", "b.devices.test"]
    assert certificate.not_valid_after_utc <= dt.datetime.now(dt.UTC) + 30 * DAY
    assert (await stack.row(message.id))["reference"]  # Vault's own request id


async def test_a_request_without_san_gets_none(stack: UpstreamStack) -> None:
    answer = await stack.ask(stack.message(request()))
    certificate = x509.load_der_x509_certificate(answer.certificate or b"")
    with pytest.raises(x509.ExtensionNotFound):
        certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName)


async def test_a_token_that_ended_is_replaced_without_a_failure(
    stack: UpstreamStack, bao: OpenBao
) -> None:
    assert (await stack.ask(stack.message(request()))).outcome == "issued"
    plugin: Any = stack.parts.issuers[ISSUER].plugin
    token = await plugin._login.token()
    await bao.call("POST", "auth/token/revoke", {"token": token})
    message = stack.message(request())
    assert (await stack.ask(message)).outcome == "issued"
    assert (await stack.row(message.id))["sendings"] == 1
    assert await plugin._login.token() != token


async def test_what_the_role_does_not_allow_is_refused(stack: UpstreamStack, bao: OpenBao) -> None:
    before = await use(stack, bao, role="narrow")
    try:
        made = len(await bao.certificates())
        answer = await stack.ask(stack.message(request("a.devices.test")))
        assert (answer.outcome, answer.code) == ("rejected", "upstream.refused")
        assert "not allowed" in (answer.reason or "")
        assert len(await bao.certificates()) == made
    finally:
        await put_back(stack, before)


async def test_verbatim_says_the_usages_whatever_the_role_gives(
    stack: UpstreamStack, bao: OpenBao
) -> None:
    before = await use(stack, bao, verbatim=True, role="wide")
    try:
        csr = request("a.devices.test")
        answer = await stack.ask(stack.message(csr))
        assert answer.outcome == "issued", answer
        certificate = x509.load_der_x509_certificate(answer.certificate or b"")
        usage = certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
        assert len(list(usage)) == 2
    finally:
        await put_back(stack, before)


@pytest.mark.logs_errors(
    "upstream certificate quarantined",
    "upstream revocation failed permanently, revoke manually",
)
async def test_more_than_was_decided_is_set_aside_and_revoked_at_vault(
    stack: UpstreamStack, bao: OpenBao
) -> None:
    before = await use(stack, bao, role="wide")
    try:
        message = stack.message(request())
        answer = await stack.ask(message)
        assert answer.code == "upstream.wrong_certificate"
        row = await stack.row(message.id)
        (kept,) = await stack.signer.rows(
            "select * from quarantine where issuance_id = $1", row["issuance_id"]
        )
        assert kept["check_failed"] == "extended_key_usage"
        serial = x509.load_der_x509_certificate(kept["certificate"]).serial_number
        async with asyncio.timeout(10):
            while not await bao.revoked(serial):
                await asyncio.sleep(0.1)
    finally:
        await put_back(stack, before)


async def test_an_operators_revocation_reaches_vault(stack: UpstreamStack, bao: OpenBao) -> None:
    answer = await stack.ask(stack.message(request()))
    certificate = x509.load_der_x509_certificate(answer.certificate or b"")
    revoker = await operator(stack.signer, "CN=revoker")
    serial = ids.serial_hex(certificate.serial_number)
    hold = await revoker.give(stack.signer, "certificate-hold", {"serial": serial})
    assert hold.outcome == "done"
    await asyncio.sleep(0.6)
    # A hold stays ours: Vault cannot take it back.
    assert not await bao.revoked(certificate.serial_number)
    await revoker.give(stack.signer, "certificate-unhold", {"serial": serial})
    done = await revoker.give(
        stack.signer, "certificate-revoke", {"serial": serial, "reason": "keyCompromise"}
    )
    assert done.outcome == "done"
    async with asyncio.timeout(10):
        while not await bao.revoked(certificate.serial_number):
            await asyncio.sleep(0.1)
        while not await stack.signer.audited("certificate.revoke_upstream"):
            await asyncio.sleep(0.1)
    # The signer with keys makes no list for an issuer whose key it has not.
    assert await stack.signer.value("select count(*) from crl where issuer_id = $1", ISSUER) == 0


async def test_a_sealed_vault_loses_no_request(stack: UpstreamStack, bao: OpenBao) -> None:
    await bao.call("PUT", "sys/seal")
    message = stack.message(request())
    try:
        await stack.signer.send(message)
        await asyncio.sleep(1.5)
        assert (await stack.row(message.id))["state"] == "recorded"
    finally:
        await bao.unseal()
    async with asyncio.timeout(30):
        answer = await stack.signer.answers[message.id]
    assert answer.outcome == "issued"


async def test_a_wrong_secret_is_refused(
    stack: UpstreamStack, bao: OpenBao, tmp_path: Path
) -> None:
    secret = tmp_path / "secret-id"
    secret.touch(mode=0o600)
    secret.write_text("not-the-secret")
    auth = await bao.approle()
    auth["approle"]["secret_id_file"] = str(secret)
    issuer = await vault_issuer(bao, auth=auth)
    plugin = make(issuer["options"], timeout_s=5)
    made = len(await bao.certificates())
    async with plugin:
        with pytest.raises(Retryable) as caught:
            await plugin.submit(wanted(stack))
    assert caught.value.code == "upstream.denied"
    assert "not-the-secret" not in caught.value.reason
    assert len(await bao.certificates()) == made


async def test_a_secret_everybody_may_read_stops_the_start(
    stack: UpstreamStack, bao: OpenBao, platform: Platform, tmp_path: Path
) -> None:
    issuer = await vault_issuer(bao)
    path = Path(issuer["options"]["auth"]["approle"]["secret_id_file"])
    path.chmod(0o644)
    settings = upstream_settings(platform, tmp_path, stack.other, issuer=issuer)
    try:
        with pytest.raises(ConfigurationError, match="others may read"):
            check(settings)
    finally:
        path.chmod(0o600)


async def test_two_ways_in_stop_the_start(
    stack: UpstreamStack, bao: OpenBao, platform: Platform, tmp_path: Path
) -> None:
    auth = await bao.approle() | {"token_file": "/nowhere"}
    issuer = await vault_issuer(bao, auth=auth)
    settings = upstream_settings(platform, tmp_path, stack.other, issuer=issuer)
    with pytest.raises(ConfigurationError, match="exactly one"):
        check(settings)


# What only an ill server says: these answers are written by hand after the API's documentation.


def wanted(stack: UpstreamStack) -> Wanted:
    csr = x509.load_der_x509_csr(request())
    pattern = stack.other.sign(csr)
    return Wanted("id", csr.public_bytes(Encoding.DER), pattern, DAY, 1)


@pytest.mark.parametrize(
    ("status", "body", "error", "code"),
    [
        (400, {"errors": ["common name x not allowed"]}, Refused, "upstream.refused"),
        (403, {"errors": ["permission denied"]}, Retryable, "upstream.denied"),
        (404, {"errors": []}, Retryable, "upstream.denied"),
        (307, {}, Retryable, "upstream.denied"),
        (429, {"errors": ["rate limit"]}, Retryable, "upstream.unavailable"),
        (473, {"errors": ["performance standby"]}, Retryable, "upstream.unavailable"),
        (503, {"errors": ["Vault is sealed"]}, Retryable, "upstream.unavailable"),
        (500, {"errors": ["internal error"]}, Unknown, "upstream.broken"),
        (502, "a proxy speaks", Unknown, "upstream.broken"),
        (200, {"data": {}}, Unknown, "upstream.unreadable"),
        (200, {"data": {"certificate": "none"}}, Unknown, "upstream.unreadable"),
        (200, "not even JSON", Unknown, "upstream.unreadable"),
        (200, "x" * 300_000, Unknown, "upstream.unreadable"),
    ],
)
async def test_each_answer_says_whether_it_may_be_asked_again(
    stack: UpstreamStack,
    tmp_path: Path,
    status: int,
    body: Any,
    error: type[ESTSuiteError],
    code: str,
) -> None:
    sick = OtherCA(tmp_path / "sick")
    asked: list[str] = []

    async def answer(request: web.Request) -> web.Response:
        asked.append(request.headers.get("X-Vault-Token", ""))
        text = body if isinstance(body, str) else json.dumps(body)
        return web.Response(status=status, text=text, headers={"Location": "https://other.test"})

    app = web.Application()
    app.router.add_post("/v1/pki/sign/services", answer)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(sick.path("server.pem"), sick.path("server.key"))
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=1)
    await runner.setup()
    await web.TCPSite(runner, "localhost", sick.port, ssl_context=context).start()
    token = tmp_path / "token"
    token.touch(mode=0o600)
    token.write_text("s.token-of-a-test")
    options = {
        "url": sick.url,
        "ca_file": str(sick.path("root.pem")),
        "role": "services",
        "auth": {"token_file": str(token)},
    }
    try:
        async with make(options, timeout_s=5) as plugin:
            with pytest.raises(error) as caught:
                await plugin.submit(wanted(stack))
    finally:
        await runner.cleanup()
    assert caught.value.code == code
    assert asked == ["s.token-of-a-test"]
    assert "s.token-of-a-test" not in caught.value.reason


async def test_an_unanswered_login_has_submitted_nothing(
    stack: UpstreamStack, tmp_path: Path
) -> None:
    """A time-out of the login is no unknown outcome: nothing was sent to be signed."""
    sick = OtherCA(tmp_path / "sick")

    async def hang(_: web.Request) -> web.Response:
        await asyncio.sleep(3)
        return web.Response()

    app = web.Application()
    app.router.add_post("/v1/auth/approle/login", hang)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(sick.path("server.pem"), sick.path("server.key"))
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=1)
    await runner.setup()
    await web.TCPSite(runner, "localhost", sick.port, ssl_context=context).start()
    secret = tmp_path / "secret-id"
    secret.touch(mode=0o600)
    secret.write_text("secret")
    options = {
        "url": sick.url,
        "ca_file": str(sick.path("root.pem")),
        "role": "services",
        "auth": {"approle": {"role_id": "x", "secret_id_file": str(secret)}},
    }
    try:
        async with make(options, timeout_s=1.5) as plugin:
            with pytest.raises(Retryable) as caught:
                await asyncio.wait_for(plugin.submit(wanted(stack)), 1.5)
    finally:
        await runner.cleanup()
    assert caught.value.code == "upstream.unreachable"
