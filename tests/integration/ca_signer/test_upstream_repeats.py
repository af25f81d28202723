"""An upstream CA that answers the same request with the same certificate, or does not answer at all."""

from __future__ import annotations

import asyncio
import datetime as dt
import shutil
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from aiohttp import web
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from pydantic import ValidationError

from ca_signer.upstream.issuer import load_upstreams
from ca_signer.upstream.main import check
from ca_signer.upstream.plugin import Retryable
from estcore.errors import ConfigurationError
from estsuite_testing.other_ca import OtherCA, certs_only
from estsuite_testing.platform import Platform
from estsuite_testing.upstream_stack import (
    ISSUER,
    UpstreamStack,
    est_options,
    upstream_settings,
    upstream_stack,
)

pytestmark = [pytest.mark.integration, pytest.mark.asyncio(loop_scope="module")]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def stack(
    platform: Platform, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[UpstreamStack]:
    folder: Path = tmp_path_factory.mktemp("upstream")
    other = OtherCA(folder / "other")
    issuer = {"options": est_options(other, repeatable_s=600), "failures": 3, "longest_pause_s": 1}
    async with (
        other.running(),
        upstream_stack(platform, folder, other, issuer=issuer, max_attempts=5) as found,
    ):
        yield found


@pytest.fixture
def other(stack: UpstreamStack) -> OtherCA:
    """A CA that makes one certificate of one CSR, however often it comes."""
    known: dict[bytes, x509.Certificate] = {}

    async def once(_: web.Request, octets: bytes) -> web.StreamResponse:
        made = known.get(octets)
        if made is None:
            made = known[octets] = stack.other.sign(x509.load_der_x509_csr(octets))
            stack.other.issued.append(made)
        return certs_only(made)

    stack.other.behaviour = once
    stack.other.seen.clear()
    stack.other.issued.clear()
    stack.parts.issuers[ISSUER].succeeded()
    return stack.other


def losing(other: OtherCA, answers: int) -> None:
    """Let so many answers get lost, after the certificate was made."""
    honest = other.behaviour
    assert honest is not None
    left = answers

    async def lose(request: web.Request, octets: bytes) -> web.StreamResponse:
        nonlocal left
        answer = await honest(request, octets)
        if left > 0:
            left -= 1
            assert request.transport is not None
            request.transport.abort()
        return answer

    other.behaviour = lose


async def test_a_lost_answer_is_asked_for_again_and_is_the_same(
    stack: UpstreamStack, other: OtherCA
) -> None:
    losing(other, 1)
    message = stack.message()
    answer = await stack.ask(message)
    assert answer.outcome == "issued"
    assert other.seen == [message.csr] * 2
    (made,) = other.issued
    assert answer.certificate == made.public_bytes(Encoding.DER)
    assert (await stack.row(message.id))["sendings"] == 2


async def test_what_was_being_sent_at_a_crash_is_asked_for_again(
    stack: UpstreamStack, other: OtherCA
) -> None:
    message = stack.message()
    held: Any = await stack.resolve(message)
    assert await stack.parts.submissions.begin(held)
    await stack.expire_lease(message)
    answer = await stack.ask(stack.message(message.csr))
    assert answer.outcome == "issued"
    assert len(other.issued) == 1


async def test_two_holders_of_one_request_get_one_certificate_and_both_are_right(
    stack: UpstreamStack, other: OtherCA
) -> None:
    """One was thought dead and answers late: the same certificate, neither wrong nor new."""
    honest, gate, entered = other.behaviour, asyncio.Event(), asyncio.Event()
    assert honest is not None

    async def hold_the_first(request: web.Request, octets: bytes) -> web.StreamResponse:
        if not entered.is_set():
            entered.set()
            await gate.wait()
        return await honest(request, octets)

    other.behaviour = hold_the_first
    message = stack.message()
    await stack.signer.send(message)
    await asyncio.wait_for(entered.wait(), 5)
    await stack.expire_lease(message)
    answer = await stack.ask(stack.message(message.csr))
    assert answer.outcome == "issued"
    gate.set()
    async with asyncio.timeout(15):
        first = await stack.signer.answers[message.id]
    assert (first.outcome, first.certificate) == ("issued", answer.certificate)
    assert len(other.issued) == 1
    row = await stack.row(message.id)
    for table in ("quarantine", "upstream_revocation"):
        sql = f"select count(*) from {table} where issuance_id = $1"
        assert await stack.signer.value(sql, row["issuance_id"]) == 0


async def test_the_first_of_two_holders_stores_what_both_get(
    stack: UpstreamStack, other: OtherCA
) -> None:
    """The late one is the faster: its certificate counts, though its fence is old."""
    message = stack.message()
    late: Any = await stack.resolve(message)
    assert await stack.parts.submissions.begin(late)
    await stack.expire_lease(message)
    await stack.signer.value(
        "update submission set fence = fence + 1, lease_until = now() + interval '8 seconds' "
        "where request_id = $1",
        message.id,
    )
    csr = x509.load_der_x509_csr(message.csr)
    made = other.sign(csr)
    der = made.public_bytes(Encoding.DER)
    kept = await stack.parts.submissions.store(late, made, der, reference=None, shared=True)
    assert kept is not None
    assert (await stack.ask(stack.message(message.csr))).certificate == der


async def test_while_it_may_be_repeated_the_sweeper_asks_no_person(
    stack: UpstreamStack, other: OtherCA
) -> None:
    message = stack.message()
    held: Any = await stack.resolve(message)
    assert await stack.parts.submissions.begin(held)
    await stack.expire_lease(message)
    await asyncio.sleep(0.7)  # three sweeps
    assert (await stack.row(message.id))["state"] == "submitted"
    await stack.submitted_ago(message, dt.timedelta(minutes=11))
    async with asyncio.timeout(5):
        while (await stack.row(message.id))["state"] != "unknown":
            await asyncio.sleep(0.1)


async def test_after_its_window_a_lost_answer_waits_for_a_person(
    stack: UpstreamStack, other: OtherCA
) -> None:
    message = stack.message()
    held: Any = await stack.resolve(message)
    assert await stack.parts.submissions.begin(held)
    await stack.expire_lease(message)
    await stack.submitted_ago(message, dt.timedelta(minutes=11))
    assert (await stack.ask(stack.message(message.csr))).outcome == "pending"
    assert (await stack.row(message.id))["state"] == "unknown"
    assert other.seen == []


async def test_after_failures_in_a_row_the_circuit_opens_and_no_request_is_lost(
    stack: UpstreamStack, other: OtherCA
) -> None:
    """The breaker: requests wait in the stream while the upstream CA is unavailable."""
    honest, other.behaviour = other.behaviour, other.answering(503)
    messages = [stack.message() for _ in range(6)]
    for message in messages:
        await stack.signer.send(message)
    async with asyncio.timeout(10):
        while stack.parts.issuers[ISSUER].usable:
            await asyncio.sleep(0.02)
    knocked = len(other.seen)
    await asyncio.sleep(6)
    # Only single probes, after growing pauses; waiting for them costs a request no delivery.
    assert 1 <= len(other.seen) - knocked <= 12
    other.behaviour = honest
    for message in messages:
        async with asyncio.timeout(30):
            assert (await stack.signer.answers[message.id]).outcome == "issued"
    assert len(other.issued) == len(messages)


async def test_an_outage_is_probed_without_asking_for_a_certificate(
    stack: UpstreamStack, other: OtherCA
) -> None:
    """Each probe by a CSR could be one more certificate that a person must look for."""
    honest, other.behaviour, other.unavailable = other.behaviour, other.answering(503), True
    messages = [stack.message() for _ in range(3)]
    for message in messages:
        await stack.signer.send(message)
    try:
        async with asyncio.timeout(10):
            while stack.parts.issuers[ISSUER].usable:
                await asyncio.sleep(0.02)
        await asyncio.sleep(0.3)
        sent = len(other.seen)
        await asyncio.sleep(3)
        assert len(other.seen) == sent
    finally:
        other.behaviour, other.unavailable = honest, False
    for message in messages:
        async with asyncio.timeout(30):
            assert (await stack.signer.answers[message.id]).outcome == "issued"


async def test_our_tls_certificate_is_reloaded_while_running(
    stack: UpstreamStack, other: OtherCA
) -> None:
    await stack.ask(stack.message())
    assert other.peers[-1] == "our-ra"
    other.credential("ra", common_name="our-ra-renewed")
    stack.parts.issuers[ISSUER].plugin.reload()
    await stack.ask(stack.message())
    assert other.peers[-1] == "our-ra-renewed"
    kept = other.path("ra.key").read_bytes()
    other.path("ra.key").write_text("nonsense")
    with pytest.raises(ConfigurationError):
        stack.parts.issuers[ISSUER].plugin.reload()
    other.path("ra.key").write_bytes(kept)
    assert (await stack.ask(stack.message())).outcome == "issued"


async def test_a_ca_that_cannot_be_verified_gets_nothing(
    stack: UpstreamStack, other: OtherCA, tmp_path: Path
) -> None:
    """Not even a connection: TLS is verified, and there is no switch."""
    stranger = OtherCA(tmp_path / "stranger")
    options = est_options(other, ca_file=str(stranger.path("root.pem")))
    (settings,) = stack.settings.issuers
    issuers = load_upstreams([settings.model_copy(update={"options": options})])
    plugin = issuers[ISSUER].plugin
    async with plugin:
        with pytest.raises(Retryable) as caught:
            await plugin.authorities()
    assert caught.value.code == "upstream.unreachable"


async def test_a_rollover_of_the_upstream_ca_is_seen(stack: UpstreamStack, tmp_path: Path) -> None:
    issuer = stack.parts.issuers[ISSUER]
    assert await issuer.shows_itself()
    stranger = OtherCA(tmp_path / "stranger")
    own = {
        "certificate_file": stranger.path("issuing.pem"),
        "chain_file": stranger.path("root.pem"),
    }
    (settings,) = stack.settings.issuers
    issuers = load_upstreams([settings.model_copy(update=own)])
    async with issuers[ISSUER].plugin:
        assert not await issuers[ISSUER].shows_itself()


@pytest.mark.parametrize(
    ("issuer", "line"),
    [
        ({"plugin": "nosuch"}, "0 plug-ins are named 'nosuch' (installed: est, vault)"),
        ({"options": {"url": "https://x", "colour": "red"}}, "options of est: "),
        ({"options": {"url": "http://x", "ca_file": "x"}}, "options of est: url: "),
    ],
)
async def test_a_bad_configuration_stops_the_start(
    stack: UpstreamStack, platform: Platform, tmp_path: Path, issuer: dict[str, Any], line: str
) -> None:
    settings = upstream_settings(platform, tmp_path, stack.other, issuer=issuer)
    with pytest.raises(ConfigurationError) as caught:
        check(settings)
    assert line in caught.value.reason


async def test_a_registrar_without_a_certificate_is_none(
    stack: UpstreamStack, platform: Platform, tmp_path: Path
) -> None:
    options = est_options(stack.other, certificate_file=None, key_file=None)
    settings = upstream_settings(platform, tmp_path, stack.other, issuer={"options": options})
    with pytest.raises(ConfigurationError, match="a registrar has a certificate_file"):
        check(settings)


async def test_a_chain_that_breaks_stops_the_start(
    stack: UpstreamStack, platform: Platform, tmp_path: Path
) -> None:
    stranger = OtherCA(tmp_path / "stranger")
    settings = upstream_settings(platform, tmp_path, stack.other, issuer={})
    shutil.copy(stranger.path("root.pem"), settings.issuers[0].chain_file)
    try:
        with pytest.raises(ConfigurationError, match="breaks at"):
            check(settings)
    finally:
        shutil.copy(stack.other.path("root.pem"), settings.issuers[0].chain_file)


async def test_a_lease_shorter_than_an_answer_stops_the_start(
    stack: UpstreamStack, platform: Platform, tmp_path: Path
) -> None:
    with pytest.raises(ValidationError, match="lease_s must be"):
        upstream_settings(platform, tmp_path, stack.other, issuer={"timeout_s": 6})
