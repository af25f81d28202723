"""Access tokens as Entra ID, Okta, Auth0 and AD FS write them, with the settings of tokens.md."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import ValidationError

from est_frontend.auth.tokens.access_token import TokenValidator
from est_frontend.settings import TokenIssuerSettings
from estsuite_testing.token_issuer import TestIssuer, refusal, serving, validating

PAGE = Path(__file__).parents[3] / "docs/operations/tokens.md"
TENANT, APP, CLIENT = (
    "72f988bf-86f1-41af-91ab-2d7cd011db47",
    "0e3a5d2c-7c1b-4b8e-9f0a-3f2d1c4b5a69",
    "6731de76-14a6-49ae-97bc-6eba6914391e",
)
SHAPES: dict[str, tuple[dict[str, Any], dict[str, Any], str]] = {
    # What differs from a token of Keycloak; None is not there. Then whose it is.
    "entra": (
        {"typ": "JWT"},
        {
            "aud": APP, "azp": CLIENT, "azpacr": "1", "idtyp": "app", "oid": "oid-of-the-service",
            "sub": "oid-of-the-service", "tid": TENANT, "uti": "AbCd", "ver": "2.0", "rh": "0.A",
            "roles": ["service-mtls"], "jti": None, "typ": None, "resource_access": None,
        },
        "oid-of-the-service",
    ),
    "okta": (
        {"typ": None},
        {
            "aud": "api://est", "azp": None, "cid": "0oa1client", "sub": "0oa1client", "ver": 1,
            "scp": ["enroll"], "jti": "AT.x", "typ": None, "resource_access": None,
        },
        "0oa1client",
    ),
    "auth0": (
        {"typ": "JWT"},
        {
            "aud": "https://est.clinic.example", "azp": "clientid", "gty": "client-credentials",
            "sub": "clientid@clients", "jti": None, "typ": None, "resource_access": None,
        },
        "clientid",
    ),
    "adfs": (
        {"typ": "JWT", "x5t": "abc"},
        {
            "aud": "microsoft:identityserver:api://est", "appid": CLIENT, "apptype": "Confidential",
            "authmethod": "http://schemas.microsoft.com/ws/2008/06/identity/authenticationmethod",
            "ver": "1.0", "sub": None, "azp": None, "jti": None, "typ": None,
            "resource_access": None,
        },
        CLIENT,
    ),
}  # fmt: skip


def documented() -> dict[str, dict[str, Any]]:
    """The worked examples of the page, by id."""
    blocks = re.findall(r"```yaml\n(token_issuers:.*?)```", PAGE.read_text("utf-8"), re.S)
    issuers = [issuer for block in blocks for issuer in yaml.safe_load(block)["token_issuers"]]
    return {issuer["id"]: issuer for issuer in issuers}


EXAMPLES = documented()


@asynccontextmanager
async def provider(
    folder: Path, name: str, **changes: Any
) -> AsyncIterator[tuple[TestIssuer, TokenValidator]]:
    """The provider with the settings of the page; only where its keys are is ours."""
    example = EXAMPLES[name]
    kept = {k: v for k, v in example.items() if k not in ("id", "issuer", "jwks_url", "ca_file")}
    async with (
        serving(folder, id=name, issuer=example["issuer"], audience=example["audience"]) as issuer,
        validating(issuer, **kept | changes) as validator,
    ):
        yield issuer, validator


@pytest.mark.parametrize("name", sorted(EXAMPLES))
def test_the_examples_of_the_page_are_settings(name: str) -> None:
    TokenIssuerSettings.model_validate(EXAMPLES[name])


def test_every_provider_of_the_page_is_tested() -> None:
    assert EXAMPLES.keys() - {"keycloak", "cluster"} == SHAPES.keys()


@pytest.mark.parametrize("name", SHAPES)
async def test_a_token_of_the_provider_names_its_client(tmp_path: Path, name: str) -> None:
    header, claims, subject = SHAPES[name]
    async with provider(tmp_path, name) as (issuer, validator):
        token = await validator.validate(issuer.token("rsa-1", header=header, **claims))
    assert (token.issuer_id, token.subject) == (name, subject)


@pytest.mark.parametrize("name", SHAPES)
async def test_without_its_settings_a_token_of_the_provider_is_refused(
    tmp_path: Path, name: str
) -> None:
    header, claims, _ = SHAPES[name]
    defaults = {"types": ("jwt", "at+jwt"), "claims": {}}
    async with provider(tmp_path, name, **defaults) as (issuer, validator):
        code = await refusal(validator, issuer.token("rsa-1", header=header, **claims))
    assert code in {"auth.token_claims", "auth.token_type"}


@pytest.mark.parametrize("name", SHAPES)
async def test_a_claim_that_the_settings_name_must_be_there(tmp_path: Path, name: str) -> None:
    header, claims, _ = SHAPES[name]
    settings = TokenIssuerSettings.model_validate(EXAMPLES[name])
    needed = {*settings.claims.subject, *settings.claims.client, *settings.claims.required}
    needed |= {settings.claims.token_id} if settings.claims.token_id else set()
    async with provider(tmp_path, name) as (issuer, validator):
        for claim in sorted(needed):
            for value in (None, "", 7, ["x"], "x" * 256, "line\nend"):
                token = issuer.token("rsa-1", header=header, **claims | {claim: value})
                assert await refusal(validator, token) == "auth.token_claims", (claim, value)


@pytest.mark.parametrize("name", SHAPES)
async def test_a_token_of_the_provider_for_something_else_is_refused(
    tmp_path: Path, name: str
) -> None:
    header, claims, _ = SHAPES[name]
    async with provider(tmp_path, name) as (issuer, validator):
        for changes, code in (
            ({"aud": "00000003-0000-0000-c000-000000000000"}, "auth.token_audience"),
            ({"aud": None}, "auth.token_audience"),
            ({"nonce": "n"}, "auth.token_type"),  # an ID token
            ({"at_hash": "h"}, "auth.token_type"),
            ({"iss": "https://evil.example/"}, "auth.token_issuer"),
        ):
            token = issuer.token("rsa-1", header=header, **claims | changes)
            assert await refusal(validator, token) == code
        for typ in ("id+jwt", "dpop+jwt", "logout+jwt", "none", "", 1, "JWE"):
            token = issuer.token("rsa-1", header=header | {"typ": typ}, **claims)
            assert await refusal(validator, token) == "auth.token_type"


async def test_a_token_of_another_tenant_or_of_a_user_is_refused(tmp_path: Path) -> None:
    header, claims, _ = SHAPES["entra"]
    async with provider(tmp_path, "entra") as (issuer, validator):
        for changes in ({"tid": CLIENT}, {"idtyp": "user"}, {"idtyp": None}):
            token = issuer.token("rsa-1", header=header, **claims | changes)
            assert await refusal(validator, token) == "auth.token_claims"


async def test_the_first_subject_claim_that_is_present_counts_and_no_second_choice(
    tmp_path: Path,
) -> None:
    header, claims, _ = SHAPES["auth0"]
    mapping = {"subject": ["sub", "azp"], "client": ["azp"], "token_id": None}
    async with provider(tmp_path, "auth0", claims=mapping) as (issuer, validator):
        token = await validator.validate(issuer.token("rsa-1", header=header, **claims))
        assert token.subject == "clientid@clients"
        without = await validator.validate(
            issuer.token("rsa-1", header=header, **claims | {"sub": None})
        )
        assert without.subject == "clientid"
        damaged = issuer.token("rsa-1", header=header, **claims | {"sub": 7})
        assert await refusal(validator, damaged) == "auth.token_claims"


@pytest.mark.parametrize(
    "change",
    [
        {"types": ()},
        {"types": ("id+jwt",)},
        {"claims": {"subject": []}},
        {"claims": {"client": []}},
        {"claims": {"subject": [""]}},
        {"claims": {"token_id": ""}},
        {"claims": {"audience": None}},
        {"claims": {"username": "email"}},
    ],
    ids=str,
)
def test_a_mapping_that_names_nothing_is_refused(tmp_path: Path, change: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        TestIssuer(tmp_path).settings(**change)
