"""The key set of a token issuer through rotation, attack and outage, over real HTTPS."""

from __future__ import annotations

import asyncio
import functools
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from prometheus_client import REGISTRY

from est_frontend.auth.tokens.access_token import TokenValidator
from est_frontend.auth.tokens.jwks import KeySource, _checksum
from estcore.clock import unix_ms
from estcore.errors import ConfigurationError
from estsuite_testing.token_issuer import (
    TestIssuer,
    answered,
    jwk,
    private_key,
    refusal,
    running,
    self_signed,
    serving,
    until_true,
    validating,
)


@pytest.fixture
async def issuer(tmp_path: Path) -> AsyncIterator[TestIssuer]:
    async with serving(tmp_path) as found:
        yield found


def validator_of(issuer: TestIssuer, source: KeySource) -> TokenValidator:
    return TokenValidator({issuer.issuer: (issuer.settings(), source)}, issuer.clock)


def fetches(result: str, issuer: str = "keycloak") -> float:
    labels = {"issuer": issuer, "result": result}
    return REGISTRY.get_sample_value("est_frontend_jwks_fetches_total", labels) or 0.0


# Rotation


async def test_a_new_key_is_picked_up_at_once(issuer: TestIssuer) -> None:
    async with validating(issuer) as validator:
        issuer.published.append("ec-new")
        await validator.validate(issuer.token("ec-new"))
        assert issuer.fetches == 2
        await validator.validate(issuer.token("ec-new"))
        assert issuer.fetches == 2


async def test_a_key_that_left_the_set_is_refused_from_the_next_fetch_on(
    issuer: TestIssuer,
) -> None:
    async with validating(issuer, refresh_s=1) as validator:
        token = issuer.token("ec-1")
        await validator.validate(token)
        issuer.published.remove("ec-1")
        before = issuer.fetches
        await until_true(lambda: issuer.fetches > before)
        await asyncio.sleep(0.1)
        assert await refusal(validator, token) == "auth.token_key"
        await validator.validate(issuer.token("rsa-1"))


async def test_another_key_under_the_same_id_replaces_it(issuer: TestIssuer) -> None:
    async with validating(issuer, refresh_s=1) as validator:
        before = issuer.fetches
        other = {"keys": [{"kid": "ec-1", **jwk(private_key("ec-2"))}]}
        issuer.answer = lambda _: answered(web.json_response(other))
        await until_true(lambda: issuer.fetches > before)
        await asyncio.sleep(0.1)
        assert await refusal(validator, issuer.token("ec-1")) == "auth.token_signature"
        await validator.validate(issuer.token("ec-2", header={"kid": "ec-1"}))


async def test_a_server_that_insists_on_the_media_type_of_key_sets_answers(
    issuer: TestIssuer,
) -> None:
    """As a Kubernetes API server does."""
    usual = issuer.answer

    async def strict(request: web.Request) -> web.StreamResponse:
        if "application/jwk-set+json" not in request.headers.get("Accept", ""):
            return web.Response(status=406)
        issuer.answer = usual
        try:
            answer = await issuer._answer(request)
        finally:
            issuer.answer = strict
        answer.content_type = "application/jwk-set+json"
        return answer

    issuer.answer = strict
    async with validating(issuer) as validator:
        await validator.validate(issuer.token("ec-1"))


# Attack


async def test_a_flood_of_invented_key_ids_causes_one_fetch_in_a_cool_down(
    issuer: TestIssuer,
) -> None:
    async with validating(issuer, cool_down_s=1) as validator:

        async def flood(name: str) -> None:
            tokens = [issuer.token(header={"kid": f"{name}-{n}"}) for n in range(200)]
            codes = await asyncio.gather(*(refusal(validator, token) for token in tokens))
            assert set(codes) == {"auth.token_key"}

        loop = asyncio.get_running_loop()
        before, began = issuer.fetches, loop.time()
        for name in ("a", "b", "c"):
            await flood(name)
            # The first, and one more for each second that passed.
            assert 1 <= issuer.fetches - before <= 1 + (loop.time() - began)
        await asyncio.sleep(1)
        before = issuer.fetches
        await flood("d")
        assert issuer.fetches == before + 1
        # Good tokens pass all the while.
        await validator.validate(issuer.token())


async def test_one_stuck_client_leaves_the_next_turn_to_others(issuer: TestIssuer) -> None:
    async with validating(issuer, cool_down_s=0.5) as validator:
        stuck = issuer.token(header={"kid": "long-gone"})
        await refusal(validator, stuck)
        before = issuer.fetches
        await asyncio.sleep(0.6)
        await refusal(validator, stuck)
        assert issuer.fetches == before
        issuer.published.append("ec-new")
        await validator.validate(issuer.token("ec-new"))


async def test_the_memory_of_unknown_ids_is_bounded(issuer: TestIssuer) -> None:
    async with running(KeySource(issuer.settings(), issuer.folder)) as source:
        await until_true(lambda: source.ready)
        await asyncio.gather(*(source.key(f"k{n}") for n in range(3000)))
        assert len(source._unknown) <= 1024


async def test_a_flood_during_an_outage_does_not_touch_the_good_keys(issuer: TestIssuer) -> None:
    async with validating(issuer, cool_down_s=0.1) as validator:
        await issuer.stop()
        for n in range(3):
            await asyncio.sleep(0.1)
            assert (
                await refusal(validator, issuer.token(header={"kid": str(n)})) == "auth.token_key"
            )
        await validator.validate(issuer.token())


async def test_a_client_that_disconnects_while_waiting_disturbs_no_other(
    issuer: TestIssuer,
) -> None:
    async def slowly(_: web.Request) -> web.StreamResponse:
        await asyncio.sleep(0.3)
        return web.json_response(issuer.key_set())

    async with validating(issuer) as validator:
        issuer.published.append("ec-new")
        issuer.answer = slowly
        first = asyncio.ensure_future(validator.validate(issuer.token("ec-new")))
        second = asyncio.ensure_future(validator.validate(issuer.token("ec-new")))
        await asyncio.sleep(0.1)
        first.cancel()
        assert (await second).issuer_id == "keycloak"
        assert issuer.fetches == 2


async def big(request: web.Request) -> web.StreamResponse:
    answer = web.StreamResponse()
    await answer.prepare(request)
    for _ in range(160):
        await answer.write(b" " * 65_536)
    return answer


async def slow(request: web.Request) -> web.StreamResponse:
    answer = web.StreamResponse()
    await answer.prepare(request)
    for _ in range(60):
        await answer.write(b" ")
        await asyncio.sleep(0.1)
    return answer


async def redirect(request: web.Request) -> web.StreamResponse:
    # Where it leads there would be good keys.
    if request.path == "/certs":
        raise web.HTTPFound("/moved")
    return web.json_response({"keys": [{"kid": "ec-1", **jwk(private_key("ec-1"))}]})


BAD_BODIES: dict[str, Any] = {
    "nothing": b"",
    "no JSON": b"{",
    "a list": b"[]",
    "no keys": b'{"keys": []}',
    "keys is an object": b'{"keys": {}}',
    "keys are texts": b'{"keys": ["x"]}',
    "kty is a list": b'{"keys": [{"kid": "a", "kty": ["RSA"]}]}',
    "nested deeply": b"[" * 100_000,
    "not UTF-8": b'{"keys": "\xff"}',
    "UTF-16": '{"keys": []}'.encode("utf-16"),
    "too many": json.dumps({"keys": [jwk(private_key("ec-1")) | {"kid": "ec-1"}] * 65}).encode(),
}


@pytest.mark.parametrize("body", BAD_BODIES.values(), ids=BAD_BODIES.keys())
async def test_a_bad_key_set_leaves_the_good_one(issuer: TestIssuer, body: bytes) -> None:
    await misbehaving(issuer, lambda _: answered(web.Response(body=body)))


@pytest.mark.parametrize("status", [204, 401, 404, 500, 503])
async def test_a_status_other_than_200_leaves_the_good_set(issuer: TestIssuer, status: int) -> None:
    await misbehaving(
        issuer, lambda _: answered(web.json_response(issuer.key_set(), status=status))
    )


async def test_a_redirect_is_not_followed(issuer: TestIssuer) -> None:
    before = issuer.fetches
    await misbehaving(issuer, redirect)
    assert issuer.fetches == before + 3


# The issuer's own server logs that its answer was not read to the end.
@pytest.mark.logs_errors("Error handling request from 127.0.0.1", "Unhandled exception")
async def test_a_body_of_10_megabytes_is_not_read(issuer: TestIssuer) -> None:
    await misbehaving(issuer, big)


async def misbehaving(issuer: TestIssuer, answer: Any) -> None:
    """One fetch goes wrong; what is known stays, and the job lives on."""
    async with validating(issuer, cool_down_s=0.1) as validator:
        failed = fetches("failed")
        issuer.answer = answer
        assert await refusal(validator, issuer.token(header={"kid": "x"})) == "auth.token_key"
        assert fetches("failed") == failed + 1
        await validator.validate(issuer.token())
        issuer.answer = None
        issuer.published.append("ec-new")
        await asyncio.sleep(0.1)
        await validator.validate(issuer.token("ec-new"))


# The stand-in for the issuer loses its client in the middle of an answer.
@pytest.mark.logs_errors("Error handling request from 127.0.0.1", "Unhandled exception")
async def test_a_slow_issuer_times_out_after_three_seconds(issuer: TestIssuer) -> None:
    async with validating(issuer) as validator:
        issuer.answer = slow
        loop = asyncio.get_running_loop()
        began = loop.time()
        await refusal(validator, issuer.token(header={"kid": "x"}))
        assert 2.5 < loop.time() - began < 6
        await validator.validate(issuer.token())


# Outage and restart


async def test_keys_outlive_the_issuer_and_a_restart(issuer: TestIssuer) -> None:
    async with validating(issuer) as validator:
        await until_true(lambda: (issuer.folder / "jwks.keycloak.json").exists())
        await issuer.stop()
        await validator.validate(issuer.token())
    async with running(KeySource(issuer.settings(), issuer.folder)) as source:
        source.load()
        assert source.ready
        await validator_of(issuer, source).validate(issuer.token())


async def test_without_keys_no_token_is_accepted_until_the_issuer_answers(
    issuer: TestIssuer,
) -> None:
    await issuer.stop()
    mine = issuer.settings(refresh_s=1)
    async with running(KeySource(mine, issuer.folder)) as source:
        validator = TokenValidator({issuer.issuer: (mine, source)}, issuer.clock)
        source.load()
        assert not source.ready
        assert await refusal(validator, issuer.token()) == "auth.token_keys_unavailable"
        await issuer.start()
        await until_true(lambda: source.ready)
        await validator.validate(issuer.token())


async def kept(issuer: TestIssuer) -> Path:
    path = issuer.folder / "jwks.keycloak.json"
    async with validating(issuer):
        await until_true(path.exists)
    await issuer.stop()
    return path


async def test_a_kept_file_is_for_its_owner_only(issuer: TestIssuer) -> None:
    path = await kept(issuer)
    assert path.stat().st_mode & 0o777 == 0o600
    assert list(issuer.folder.glob(".jwks*")) == []


@pytest.mark.parametrize(
    "change",
    [
        lambda text: text.replace("ec-1", "ec-9"),
        lambda text: text[:-20],
        lambda text: "",
        lambda text: "[]",
        lambda text: "[" * 100_000,
        lambda text: text.replace('"fetched_at": 1', '"fetched_at": 2'),
        lambda text: text.replace("sso.clinic", "sso.evil"),
    ],
    ids=["body", "cut off", "empty", "a list", "nested", "date", "issuer"],
)
async def test_a_kept_file_that_was_tampered_with_is_ignored(
    issuer: TestIssuer, change: Any
) -> None:
    path = await kept(issuer)
    path.write_text(change(path.read_text()))
    source = KeySource(issuer.settings(), issuer.folder)
    source.load()
    assert not source.ready


async def test_a_kept_file_of_another_issuer_is_ignored(issuer: TestIssuer) -> None:
    await kept(issuer)
    source = KeySource(issuer.settings(issuer="https://other.example"), issuer.folder)
    source.load()
    assert not source.ready


def is_empty(source: KeySource) -> bool:
    return not source.usable


def has_failed_since(count: float) -> bool:
    return fetches("failed") > count


async def test_keys_are_not_trusted_for_ever(issuer: TestIssuer) -> None:
    """The hard limit ends belief, not readiness: the front end knows other ways to authenticate."""
    path = await kept(issuer)
    for age_s, usable in ((57, True), (61, False), (-3600, None)):
        rewrite(path, age_s)
        source = KeySource(issuer.settings(keep_s=60), issuer.folder)
        source.load()
        assert (source.ready, source.usable) == (usable is not None, bool(usable))
        if usable:
            async with running(source):
                validator = validator_of(issuer, source)
                await validator.validate(issuer.token())
                await until_true(functools.partial(is_empty, source))
                assert await refusal(validator, issuer.token()) == "auth.token_keys_unavailable"


def rewrite(path: Path, age_s: int) -> None:
    """The same keys, as if they had been fetched so long before."""
    found = json.loads(path.read_text())
    found["fetched_at"] = unix_ms() // 1000 - age_s
    path.write_text(json.dumps(found | {"sha256": _checksum(found)}))


async def test_a_folder_that_cannot_be_written_stops_no_request(issuer: TestIssuer) -> None:
    async with running(KeySource(issuer.settings(), issuer.folder / "nowhere")) as source:
        await until_true(lambda: source.ready)
        await validator_of(issuer, source).validate(issuer.token())


# TLS


async def test_another_root_than_the_pinned_one_is_refused(issuer: TestIssuer) -> None:
    other = issuer.folder / "other.pem"
    self_signed(other, issuer.folder / "other.key")
    for ca_file in (other, None):
        failed = fetches("failed")
        async with running(
            KeySource(issuer.settings(ca_file=ca_file), issuer.folder / "x")
        ) as source:
            await until_true(functools.partial(has_failed_since, failed))
            assert not source.ready
    assert issuer.fetches == 0


async def test_the_host_must_be_the_certificates(issuer: TestIssuer) -> None:
    url = f"https://127.0.0.2:{issuer.port}/certs"
    failed = fetches("failed")
    async with running(KeySource(issuer.settings(jwks_url=url), issuer.folder / "x")) as source:
        await until_true(lambda: fetches("failed") > failed)
        assert not source.ready


def test_a_file_without_certificates_is_a_wrong_configuration(tmp_path: Path) -> None:
    (tmp_path / "empty.pem").write_text("")
    for name in ("empty.pem", "missing.pem"):
        with pytest.raises(ConfigurationError):
            KeySource(TestIssuer(tmp_path).settings(ca_file=tmp_path / name), tmp_path)
