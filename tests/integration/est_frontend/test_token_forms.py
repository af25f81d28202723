"""Tokens in a wrong form, damaged tokens and any text at all: refused, and nothing else happens."""

from __future__ import annotations

import json
from base64 import b64encode
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from est_frontend.auth.tokens.access_token import MAX_TOKEN_BYTES, TokenValidator
from est_frontend.auth.tokens.jwks import KeySource, public_key
from estcore.errors import NotAuthenticated
from estsuite_testing.token_issuer import (
    ISSUER,
    TestIssuer,
    answered,
    b64,
    compact,
    jwk,
    private_key,
    refusal,
    running,
    serving,
    until_true,
    validating,
)


@pytest.fixture
async def issuer(tmp_path: Path) -> AsyncIterator[TestIssuer]:
    async with serving(tmp_path) as found:
        yield found


@pytest.fixture
async def validator(issuer: TestIssuer) -> AsyncIterator[TokenValidator]:
    async with validating(issuer) as found:
        yield found


def forms(issuer: TestIssuer) -> dict[str, str]:
    head, body, tail = issuer.token().split(".")
    sign = issuer.signer("ec-1")
    header = {"alg": "ES256", "typ": "JWT", "kid": "ec-1"}
    text = json.dumps(header)
    claims = json.dumps(issuer.claims())
    return {
        "empty": "",
        "one part": head,
        "two parts": f"{head}.{body}",
        "four parts": f"{head}.{body}.{tail}.{tail}",
        "five parts": f"{head}.{head}.{body}.{tail}.{tail}",
        "doubled": ".".join([head, body, tail] * 2),
        "no signature": f"{head}.{body}.",
        "no payload": f"{head}..{tail}",
        "no header": f".{body}.{tail}",
        "padding": f"{head}.{body}.{tail}==",
        "standard base64": f"{head}.{body}.{tail[:-2]}+/",
        "space": f"{head}. {body}.{tail}",
        "line end": f"{head}.{body}.{tail}\n",
        "not ascii": f"{head}.{body}.é{tail[1:]}",
        "surrogate": f"{head}.{body}.\udcff{tail[1:]}",
        "garbage": "a.b.c",
        "wrapped garbage": b64encode(b"\xff\xfe").decode(),
        "wrapped twice": b64encode(b64encode(issuer.token().encode())).decode(),
        "not wrapped well": b64encode(issuer.token().encode()).decode() + "=",
        "too long": issuer.token(more="x" * MAX_TOKEN_BYTES),
        "header is a list": compact("[]", claims, sign),
        "header is no JSON": compact("{", claims, sign),
        "header is two": compact(text + text, claims, sign),
        "header is nested deeply": compact("[" * 5000, claims, sign),
        "header nests deeply": compact('{"a":' + "[" * 2500 + "]" * 2500 + "}", claims, sign),
        "alg stands twice": compact(text[:-1] + ', "alg": "ES256"}', claims, sign),
        "iss stands twice": compact(header, claims[:-1] + f', "iss": "{ISSUER}"}}', sign),
        "payload is a text": compact(header, '"x"', sign),
        "NaN": compact(header, claims[:-1] + ', "exp": NaN}', sign),
        "Infinity": compact(header, claims[:-1] + ', "x": Infinity}', sign),
        "huge number": compact(header, claims[:-1] + f', "x": {"9" * 5000}}}', sign),
        "half a character": compact(header, claims[:-1] + ', "x": "\\ud800"}', sign),
        "half a character as name": compact(header, claims[:-1] + ', "\\udfff": 1}', sign),
        "not UTF-8": f"{head}.{b64(claims.encode() + bytes([255]))}.{tail}",
        "UTF-16": f"{head}.{b64(claims.encode('utf-16'))}.{tail}",
    }


FORMS = sorted(forms(TestIssuer(Path())))


@pytest.mark.parametrize("form", FORMS)
async def test_what_is_not_a_jwt_is_refused(
    issuer: TestIssuer, validator: TokenValidator, form: str
) -> None:
    assert await refusal(validator, forms(issuer)[form]) == "auth.token_malformed"


@pytest.mark.parametrize("kid", ["ec-1", "rsa-1", "ed-1"])
async def test_a_signature_of_the_wrong_length_is_refused(
    issuer: TestIssuer, validator: TokenValidator, kid: str
) -> None:
    signed, _, _ = issuer.token(kid).rpartition(".")
    right = issuer.signer(kid)(signed.encode())
    for other in (b"\0", right[:-1], right + b"\0", bytes(len(right)), b"\xff" * len(right)):
        assert await refusal(validator, f"{signed}.{b64(other)}") == "auth.token_signature"


@pytest.mark.parametrize("kid", ["ec-1", "rsa-1", "ed-1"])
@pytest.mark.parametrize("wrap", [False, True], ids=["plain", "wrapped"])
async def test_no_octet_of_a_good_token_can_be_another(
    issuer: TestIssuer, validator: TokenValidator, kid: str, wrap: bool
) -> None:
    token = issuer.token(kid)
    good = b64encode(token.encode()).decode() if wrap else token
    await validator.validate(good)
    for place, octet in enumerate(good):
        for bit in (1, 2, 4, 32):
            other = chr(ord(octet) ^ bit)
            await refusal_of_any(validator, good[:place] + other + good[place + 1 :])
        await refusal_of_any(validator, good[:place] + good[place + 1 :])


async def refusal_of_any(validator: TokenValidator, token: str) -> None:
    with pytest.raises(NotAuthenticated):
        await validator.validate(token)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@given(text=st.text() | st.from_regex(r"[A-Za-z0-9_-]*\.[A-Za-z0-9_-]*\.[A-Za-z0-9_-]*"))
@example(text="..")
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
async def test_any_text_is_refused_and_nothing_else_happens(
    validator: TokenValidator, text: str
) -> None:
    await refusal_of_any(validator, text)


@given(
    header=st.dictionaries(st.sampled_from(["alg", "typ", "kid", "crit", "b64"]), json_values),
    payload=st.dictionaries(
        st.sampled_from(["iss", "aud", "exp", "iat", "nbf", "sub", "azp", "jti", "typ", "cnf"]),
        json_values,
    ),
)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
async def test_whatever_an_issuer_signs_gives_a_token_or_a_refusal(
    issuer: TestIssuer, validator: TokenValidator, header: dict[str, Any], payload: dict[str, Any]
) -> None:
    good = {"alg": "ES256", "typ": "JWT", "kid": "ec-1"}
    for head, body in ((good, issuer.claims() | payload), (good | header, issuer.claims())):
        try:
            found = await validator.validate(compact(head, body, issuer.signer("ec-1")))
        except NotAuthenticated:
            continue
        found.claims(frozenset({"aud", "sub", "cnf", "cnf.jkt"}))
        assert found.subject.isprintable()


@pytest.mark.parametrize(
    "change",
    [
        {"jwks_url": "http://sso.clinic.example/certs"},
        {"jwks_url": "https://"},
        {"jwks_url": "https:///certs"},
        {"jwks_url": "https://user:word@sso.clinic.example/certs"},
        {"jwks_url": "file:///etc/passwd"},
        {"algorithms": ()},
        {"algorithms": ("none",)},
        {"algorithms": ("HS256",)},
        {"issuer": ""},
        {"audience": ""},
        {"leeway_s": 61},
        {"verify": False},
    ],
    ids=str,
)
def test_settings_that_weaken_the_checks_are_refused(
    tmp_path: Path, change: dict[str, Any]
) -> None:
    with pytest.raises(ValidationError):
        TestIssuer(tmp_path).settings(**change)


# Keys in a wrong form


def test_only_public_keys_of_strength_are_keys() -> None:
    good = jwk(private_key("rsa-1"))
    public_key(good)
    public_key(good | {"x5u": 7, "key_ops": "nonsense", "x": []})
    ec = jwk(private_key("ec-1"))
    for entry in (
        good | {"d": "AQAB"}, good | {"p": "AQAB"}, good | {"oth": []}, ec | {"d": ec["x"]},
        {"kty": "oct", "k": b64(bytes(32))}, {"kty": ["RSA"]}, {}, {"kty": "RSA"},
        good | {"e": "AQ"}, good | {"n": 7}, good | {"n": "+/+/"}, good | {"alg": ["RS256"]},
        jwk(private_key("short-1")), ec | {"y": ec["x"]}, ec | {"crv": "P-384"},
        ec | {"crv": "nistp256"}, {"kty": "OKP", "crv": "Ed25519", "x": "AA"},
    ):  # fmt: skip
        with pytest.raises(ValueError):  # noqa: PT011 - whatever it says
            public_key(entry)


async def test_unusable_keys_of_a_set_are_left_out(issuer: TestIssuer) -> None:
    good = [{"kid": "ec-1", **jwk(private_key("ec-1"))}]
    odd = [
        {"kid": "enc", "use": "enc", **jwk(private_key("ec-2"))},
        {"kid": "ops", "key_ops": ["sign"], **jwk(private_key("ec-2"))},
        {"kid": "short", **jwk(private_key("short-1"))},
        {"kid": "mac", "kty": "oct", "k": b64(bytes(32))},
        {"kid": ["list"], **jwk(private_key("ec-2"))},
        {"kid": "ec-1", **jwk(private_key("ec-2"))},
        jwk(private_key("ec-2")),
        {"kid": "P-521", "kty": "EC", "crv": "P-521", "x": "AA", "y": "AA"},
        7,
    ]
    issuer.answer = lambda _: answered(web.json_response({"keys": good + odd}))
    async with running(KeySource(issuer.settings(), issuer.folder)) as source:
        await until_true(lambda: source.ready)
        assert source._keys.keys() == {"ec-1"}
        assert await source.key("ec-1") is not None


async def test_a_key_for_one_algorithm_is_good_for_that_one_only(issuer: TestIssuer) -> None:
    keys = [{"kid": "rsa-1", "alg": "PS256", **jwk(private_key("rsa-1"))}]
    issuer.answer = lambda _: answered(web.json_response({"keys": keys}))
    async with validating(issuer) as validator:
        assert await refusal(validator, issuer.token("rsa-1")) == "auth.token_algorithm"
