"""The EST client against a real TLS server."""

from __future__ import annotations

import datetime as dt
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from estclient.agent.credential_store import CredentialStore
from estclient.errors import (
    AnswerInvalid,
    RenewalInfoExpired,
    RenewalInfoUnknown,
    ServerAway,
    ServerRefused,
    StillPending,
)
from estclient.est.client import ESTClient, Limits
from estclient.est.keys import make_csr, make_key
from estcore.clock import SystemClock
from estcore.errors import ConfigurationError
from estcore.est.renewal_info import RenewalInfo, cert_id
from estdev.ports import free_port

QUICK = Limits(timeout_s=5, attempts=3, pending_limit_s=5, longest_pause_s=1)


def client(server: Any, **changes: Any) -> ESTClient:
    arguments = {"trust": server.ca.pem, "limits": QUICK, "secret": ("device-1", "s3cret")}
    return ESTClient(changes.pop("urls", server.url), **(arguments | changes))


def csr() -> bytes:
    return make_csr(make_key(), "CN=web.demo", ["dns:web.demo"])


async def test_cacerts_are_fetched(server: Any) -> None:
    found = await client(server, label="web").cacerts()
    assert {c.subject for c in found} == {server.ca.root.subject, server.ca.issuer.subject}


async def test_an_enrollment_by_secret(server: Any) -> None:
    enrolled = await client(server).simpleenroll(csr())
    assert enrolled.correlation_id == "c-42"
    assert enrolled.certificate.issuer == server.ca.issuer.subject
    (seen,) = server.seen
    assert seen.authorization is not None
    assert seen.authorization.startswith("Basic ")
    assert seen.client is None


async def test_a_reenrollment_presents_the_current_certificate(server: Any, tmp_path: Path) -> None:
    bundle = CredentialStore(tmp_path / "s").save(server.ca.bundle(), now=SystemClock().now())
    await client(server, secret=None, credential=bundle.files).simplereenroll(csr())
    assert server.seen[0].client == bundle.fingerprint


async def test_every_poll_after_202_is_a_new_connection(server: Any) -> None:
    server.script = [lambda: web.Response(status=202, headers={"Retry-After": "0"})] * 2
    await client(server).simpleenroll(csr())
    assert len(server.seen) == 3
    assert len({s.body for s in server.seen}) == 1
    assert len({s.connection for s in server.seen}) > 1


async def test_a_pending_request_is_not_polled_for_ever(server: Any) -> None:
    server.script = [web.Response(status=202, headers={"Retry-After": "60"})]
    with pytest.raises(StillPending):
        await client(server).simpleenroll(csr())


async def test_a_certificate_for_another_key_is_refused(server: Any) -> None:
    server.wrong_key = True
    with pytest.raises(AnswerInvalid) as caught:
        await client(server).simpleenroll(csr())
    assert caught.value.code == "client.another_key"


async def test_an_answer_without_certificates_is_refused(server: Any) -> None:
    server.script = [web.Response(body=b"hello", content_type="application/pkcs7-mime")]
    with pytest.raises(AnswerInvalid):
        await client(server).cacerts()


@pytest.mark.parametrize("status", [429, 503])
async def test_a_busy_server_is_asked_again(server: Any, status: int) -> None:
    server.script = [web.Response(status=status, headers={"Retry-After": "1"})]
    await client(server).simpleenroll(csr())
    assert server.operations() == ["simpleenroll", "simpleenroll"]


async def test_a_server_that_stays_busy_is_not_asked_again(server: Any) -> None:
    server.script = [lambda: web.Response(status=503, text="no ledger")] * 9
    with pytest.raises(ServerAway, match="503: no ledger"):
        await client(server).cacerts()
    assert len(server.seen) == 3


async def test_a_long_retry_after_is_not_waited_for(server: Any) -> None:
    later = (SystemClock().now() + dt.timedelta(hours=1)).strftime("%a, %d %b %Y %H:%M:%S GMT")
    server.script = [web.Response(status=503, headers={"Retry-After": later})]
    with pytest.raises(ServerAway):
        await client(server).cacerts()
    assert len(server.seen) == 1


async def test_another_front_end_takes_over(server: Any) -> None:
    dead = f"https://localhost:{free_port()}"
    await client(server, urls=[dead, server.url]).simpleenroll(csr())
    assert server.operations() == ["simpleenroll"]


async def test_a_refusal_carries_the_servers_text(server: Any) -> None:
    server.script = [
        web.Response(status=403, text="no rule\n", headers={"X-Correlation-ID": "c-9"})
    ]
    with pytest.raises(ServerRefused) as caught:
        await client(server).simpleenroll(csr())
    assert (caught.value.status, caught.value.text) == (403, "no rule")
    assert caught.value.correlation_id == "c-9"
    assert len(server.seen) == 1


async def test_a_redirect_is_a_refusal(server: Any) -> None:
    server.script = [web.Response(status=307, headers={"Location": "https://other.test"})]
    with pytest.raises(ServerRefused):
        await client(server).cacerts()


async def test_a_server_of_a_different_ca_is_not_trusted(server: Any) -> None:
    with pytest.raises(ServerAway, match="certificate verify failed"):
        await client(server, trust=type(server.ca)().pem).cacerts()
    assert not server.seen


async def test_files_that_cannot_be_used_are_a_configuration_error(
    server: Any, tmp_path: Path
) -> None:
    with pytest.raises(ConfigurationError):
        client(server, trust=tmp_path / "missing.pem")


async def test_a_proof_of_use_is_sent_as_jose(server: Any) -> None:
    await client(server).rotation_ack("a.b.c")
    assert server.seen[0].body == b"a.b.c"
    assert server.operations() == ["rotation-ack"]


async def test_renewal_information_needs_no_authentication(server: Any) -> None:
    certificate = server.ca.bundle().certificate
    now = SystemClock().now().replace(microsecond=0)
    info = RenewalInfo(now, now + dt.timedelta(hours=1), "rotation-1")
    server.info = lambda _: web.Response(
        body=info.encode(), content_type="application/json", headers={"Retry-After": "21600"}
    )
    answer = await client(server, secret=None, label="web").renewal_info(certificate)
    assert answer == replace(info, retry_after_s=21_600)
    (seen,) = server.asked
    assert (seen.operation, seen.authorization, seen.client) == (cert_id(certificate), None, None)


@pytest.mark.parametrize(
    ("status", "kind"), [(404, RenewalInfoUnknown), (410, RenewalInfoExpired), (403, ServerRefused)]
)
async def test_no_renewal_information_is_an_error_of_its_own(
    server: Any, status: int, kind: type[ServerRefused]
) -> None:
    server.info = lambda _: web.Response(status=status, text="why [code]")
    with pytest.raises(ServerRefused) as caught:
        await client(server).renewal_info(server.ca.bundle().certificate)
    assert type(caught.value) is kind


async def test_renewal_information_that_cannot_be_read_is_refused(server: Any) -> None:
    server.info = lambda _: web.Response(body=b"<html>", content_type="application/json")
    with pytest.raises(AnswerInvalid) as caught:
        await client(server).renewal_info(server.ca.bundle().certificate)
    assert caught.value.code == "renewal_info.malformed"


async def test_use_is_proven_by_the_new_certificate_and_an_empty_body(
    server: Any, tmp_path: Path
) -> None:
    bundle = CredentialStore(tmp_path / "s").save(server.ca.bundle(), now=SystemClock().now())
    await client(server, secret=None, credential=bundle.files).prove_use()
    (seen,) = server.seen
    assert (seen.operation, seen.body, seen.client) == ("rotation-ack", b"", bundle.fingerprint)
