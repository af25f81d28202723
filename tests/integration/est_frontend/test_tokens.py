"""Access tokens: what is accepted, and everything that is not."""

from __future__ import annotations

import functools
import hmac
from base64 import b64encode
from collections.abc import AsyncIterator
from hashlib import sha256
from pathlib import Path
from typing import Any

import jwt
import pytest

from est_frontend.auth.tokens.access_token import TokenValidator, claim_at
from estcore.errors import ConfigurationError
from estsuite_testing.token_issuer import (
    ISSUER,
    TestIssuer,
    compact,
    jwk,
    now_s,
    private_key,
    public_pem,
    refusal,
    serving,
    validating,
)

CLUSTER = "https://kubernetes.default.svc.cluster.local"


@pytest.fixture
async def issuer(tmp_path: Path) -> AsyncIterator[TestIssuer]:
    async with serving(tmp_path) as found:
        yield found


@pytest.fixture
async def validator(issuer: TestIssuer) -> AsyncIterator[TokenValidator]:
    async with validating(issuer) as found:
        yield found


# Accepted


@pytest.mark.parametrize("kid", ["rsa-1", "pss-1", "ec-1", "p384-1", "ed-1"])
@pytest.mark.parametrize("header", [{}, {"typ": "at+jwt"}, {"typ": "application/at+jwt"}])
async def test_a_good_token_is_accepted_and_pyjwt_agrees(
    issuer: TestIssuer, kid: str, header: dict[str, Any]
) -> None:
    issuer.published.append("p384-1")
    token = issuer.token(kid, header=header)
    async with validating(issuer) as validator:
        found = await validator.validate(token)
    assert (found.issuer_id, found.subject, found.bound) == ("keycloak", "5f6c", False)
    claims = jwt.decode(
        token,
        public_pem(private_key(kid)),
        algorithms=[
            {"rsa": "RS256", "pss": "PS256", "ec": "ES256", "p384": "ES384", "ed": "EdDSA"}[
                kid.split("-")[0]
            ]
        ],
        audience="est",
        issuer=ISSUER,
        options={
            "require": ["exp", "iat", "iss", "aud", "jti"],
            "verify_exp": False,
            "verify_iat": False,
        },
    )
    assert claims == found.payload


async def test_rfc_9864s_name_of_eddsa_means_the_same_key(issuer: TestIssuer) -> None:
    token = issuer.token("ed-1", header={"alg": "Ed25519"})
    async with validating(issuer, algorithms=("Ed25519",)) as validator:
        assert (await validator.validate(token)).subject == "5f6c"
        assert await refusal(validator, issuer.token("ed-1")) == "auth.token_algorithm"


@pytest.mark.parametrize(
    "changes",
    [
        {"aud": "est"},
        {"azp": None, "client_id": "clinic-web"},
        {"typ": None},
        {"typ": "DPoP", "cnf": {"jkt": "A" * 43}},
        {"typ": "DPoP", "cnf": {"jkt": "A" * 43, "kc-jkt-type": "DPoP"}},
        {"sub": None},
        {"nbf": 1},
    ],
    ids=str,
)
async def test_what_may_differ_between_good_tokens(
    issuer: TestIssuer, validator: TokenValidator, changes: dict[str, Any]
) -> None:
    await validator.validate(issuer.token(**changes))


async def test_L11_libest_sends_base64_of_the_token(
    issuer: TestIssuer, validator: TokenValidator
) -> None:
    token = issuer.token()
    wrapped = b64encode(token.encode()).decode()
    assert (await validator.validate(wrapped)).payload == (await validator.validate(token)).payload


async def test_clocks_may_differ_by_the_leeway_and_no_more(
    issuer: TestIssuer, validator: TokenValidator
) -> None:
    now = now_s(issuer.clock)
    await validator.validate(issuer.token(exp=now - 29, iat=now - 300))
    await validator.validate(issuer.token(iat=now + 30))
    await validator.validate(issuer.token(nbf=now + 30))
    await validator.validate(issuer.token(iat=now - 3630))
    assert await refusal(validator, issuer.token(exp=now - 30)) == "auth.token_expired"
    assert await refusal(validator, issuer.token(iat=now + 31)) == "auth.token_not_yet_valid"
    assert await refusal(validator, issuer.token(nbf=now + 31)) == "auth.token_not_yet_valid"
    assert await refusal(validator, issuer.token(iat=now - 3631)) == "auth.token_expired"


# Refused by what they claim


WRONG_CLAIMS: list[tuple[dict[str, Any], str]] = [
    ({"iss": None}, "auth.token_issuer"),
    ({"iss": ISSUER + "/"}, "auth.token_issuer"),
    ({"iss": ISSUER[:-1]}, "auth.token_issuer"),
    ({"iss": ISSUER + "x"}, "auth.token_issuer"),
    ({"iss": ISSUER.upper()}, "auth.token_issuer"),
    ({"iss": [ISSUER]}, "auth.token_issuer"),
    ({"iss": {}}, "auth.token_issuer"),
    ({"aud": None}, "auth.token_audience"),
    ({"aud": "account"}, "auth.token_audience"),
    ({"aud": ["account", "est2"]}, "auth.token_audience"),
    ({"aud": []}, "auth.token_audience"),
    ({"aud": "estsuite"}, "auth.token_audience"),
    ({"aud": {"est": "est"}}, "auth.token_audience"),
    ({"aud": [["est"]]}, "auth.token_audience"),
    ({"exp": None}, "auth.token_claims"),
    ({"iat": None}, "auth.token_claims"),
    ({"exp": "4102444800"}, "auth.token_claims"),
    ({"exp": True}, "auth.token_claims"),
    ({"exp": 10**30}, "auth.token_claims"),
    ({"exp": -1}, "auth.token_claims"),
    ({"iat": []}, "auth.token_claims"),
    ({"nbf": "now"}, "auth.token_claims"),
    ({"jti": None}, "auth.token_claims"),
    ({"jti": ""}, "auth.token_claims"),
    ({"jti": 7}, "auth.token_claims"),
    ({"azp": None}, "auth.token_claims"),
    ({"azp": ["clinic-web"]}, "auth.token_claims"),
    ({"sub": 7}, "auth.token_claims"),
    ({"sub": ""}, "auth.token_claims"),
    ({"sub": "a\nb"}, "auth.token_claims"),
    ({"sub": "x" * 256}, "auth.token_claims"),
    ({"typ": "ID"}, "auth.token_type"),
    ({"typ": "Refresh"}, "auth.token_type"),
    ({"typ": "Offline"}, "auth.token_type"),
    ({"typ": ["Bearer"]}, "auth.token_type"),
    ({"typ": {"Bearer": 1}}, "auth.token_type"),
    ({"typ": None, "nonce": "n-0S6"}, "auth.token_type"),
    ({"typ": None, "at_hash": "x"}, "auth.token_type"),
    ({"typ": None, "events": {}}, "auth.token_type"),
    ({"cnf": {}}, "auth.token_claims"),
    ({"cnf": "x"}, "auth.token_claims"),
    ({"cnf": {"jwk": {}}}, "auth.token_claims"),
    ({"cnf": {"kc-jkt-type": "DPoP"}}, "auth.token_claims"),
    ({"cnf": {"jkt": "A" * 43, "kid": "x"}}, "auth.token_claims"),
    ({"cnf": {"jkt": "é" * 43}}, "auth.token_claims"),
    ({"cnf": {"jkt": "short"}}, "auth.token_claims"),
    ({"cnf": {"x5t#S256": 7}}, "auth.token_claims"),
    ({"cnf": {"x5t#S256": "A" * 43, "jkt": "A" * 43}}, "auth.token_claims"),
]


@pytest.mark.parametrize(("changes", "code"), WRONG_CLAIMS, ids=str)
async def test_a_token_with_a_wrong_claim_is_refused(
    issuer: TestIssuer, validator: TokenValidator, changes: dict[str, Any], code: str
) -> None:
    assert await refusal(validator, issuer.token(**changes)) == code


async def test_a_token_with_a_claim_of_null_is_refused(
    issuer: TestIssuer, validator: TokenValidator
) -> None:
    for name in ("aud", "exp", "iat", "nbf", "sub", "typ", "cnf"):
        header = {"alg": "ES256", "typ": "JWT", "kid": "ec-1"}
        token = compact(header, issuer.claims() | {name: None}, issuer.signer("ec-1"))
        assert (await refusal(validator, token)).startswith("auth.token_")


# Refused by their header or key


WRONG_HEADERS: list[tuple[dict[str, Any], str]] = [
    ({"alg": "none"}, "auth.token_algorithm"),
    ({"alg": "None"}, "auth.token_algorithm"),
    ({"alg": None}, "auth.token_algorithm"),
    ({"alg": ["ES256"]}, "auth.token_algorithm"),
    ({"alg": "HS256"}, "auth.token_algorithm"),
    ({"alg": "ES512"}, "auth.token_algorithm"),
    ({"alg": "ES256K"}, "auth.token_algorithm"),
    ({"alg": "RS256"}, "auth.token_algorithm"),
    ({"alg": "ES384"}, "auth.token_algorithm"),
    ({"alg": "EdDSA"}, "auth.token_algorithm"),
    ({"kid": "rsa-1"}, "auth.token_algorithm"),
    ({"typ": None}, "auth.token_type"),
    ({"typ": "dpop+jwt"}, "auth.token_type"),
    ({"typ": "logout+jwt"}, "auth.token_type"),
    ({"typ": ["JWT"]}, "auth.token_type"),
    ({"crit": ["exp"]}, "auth.token_malformed"),
    ({"crit": []}, "auth.token_malformed"),
    ({"crit": ["b64"], "b64": False}, "auth.token_malformed"),
    ({"b64": True}, "auth.token_malformed"),
    ({"kid": None}, "auth.token_key"),
    ({"kid": ""}, "auth.token_key"),
    ({"kid": 7}, "auth.token_key"),
    ({"kid": "k" * 256}, "auth.token_key"),
    ({"kid": "unknown"}, "auth.token_key"),
    ({"kid": "../../etc/passwd"}, "auth.token_key"),
    ({"kid": "ec-2"}, "auth.token_key"),
]


@pytest.mark.parametrize(("header", "code"), WRONG_HEADERS, ids=str)
async def test_a_token_with_a_wrong_header_is_refused(
    issuer: TestIssuer, validator: TokenValidator, header: dict[str, Any], code: str
) -> None:
    assert await refusal(validator, issuer.token(header=header)) == code


def mac(secret: bytes, data: bytes) -> bytes:
    return hmac.new(secret, data, sha256).digest()


async def test_the_public_key_is_no_secret_of_a_mac(
    issuer: TestIssuer, validator: TokenValidator
) -> None:
    for secret in (public_pem(private_key("rsa-1")), public_pem(private_key("rsa-1")).strip()):
        token = compact(
            {"alg": "HS256", "typ": "JWT", "kid": "rsa-1"},
            issuer.claims(),
            functools.partial(mac, secret),
        )
        assert await refusal(validator, token) == "auth.token_algorithm"


async def test_an_algorithm_the_issuer_is_not_configured_for_is_refused(issuer: TestIssuer) -> None:
    async with validating(issuer, algorithms=("RS256",)) as validator:
        await validator.validate(issuer.token("rsa-1"))
        assert await refusal(validator, issuer.token("ec-1")) == "auth.token_algorithm"
        assert await refusal(validator, issuer.token("pss-1")) == "auth.token_algorithm"


@pytest.mark.parametrize("name", ["jwk", "jku", "x5u", "x5c"])
async def test_a_key_that_the_token_brings_along_does_not_count(
    issuer: TestIssuer, validator: TokenValidator, name: str
) -> None:
    brought = {
        "jwk": jwk(private_key("ec-evil")) | {"kid": "ec-1"},
        "jku": f"https://127.0.0.1:{issuer.port}/evil",
        "x5u": f"https://127.0.0.1:{issuer.port}/evil",
        "x5c": ["MIIB"],
    }
    before = issuer.fetches
    header = {"alg": "ES256", "typ": "JWT", "kid": "ec-1", name: brought[name]}
    token = compact(header, issuer.claims(), issuer.signer("ec-evil"))
    assert await refusal(validator, token) == "auth.token_signature"
    # The same header under a good signature: ignored, and no server is asked.
    await validator.validate(issuer.token(header={name: brought[name]}))
    assert issuer.fetches == before


async def test_a_key_of_another_issuer_does_not_count(tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    async with (
        serving(tmp_path, published=["ec-1"]) as a,
        serving(tmp_path / "b", issuer=ISSUER + "2", id="other", published=["ec-2"]) as b,
        validating(a, b) as validator,
    ):
        await validator.validate(a.token("ec-1"))
        await validator.validate(b.token("ec-2"))
        assert await refusal(validator, a.token("ec-2")) == "auth.token_key"
        assert await refusal(validator, b.token("ec-1")) == "auth.token_key"
        # The id of one with the signature of the other.
        crossed = a.token("ec-2", header={"kid": "ec-1"})
        assert await refusal(validator, crossed) == "auth.token_signature"


async def test_two_issuers_under_one_id_are_a_wrong_configuration(issuer: TestIssuer) -> None:
    async with validating(issuer) as validator:
        ((mine, source),) = validator._issuers.values()
    with pytest.raises(ConfigurationError):
        TokenValidator({"a": (mine, source), "b": (mine, source)}, issuer.clock)


# Kubernetes


def pod_claims(issuer: TestIssuer, **changes: Any) -> dict[str, Any]:
    place = {"namespace": "clinic", "serviceaccount": {"name": "web", "uid": "1"}}
    return {"iss": CLUSTER, "azp": None, "typ": None, "sub": "system:serviceaccount:clinic:web",
            "kubernetes.io": place} | changes  # fmt: skip


async def test_a_pods_token_needs_no_client_and_no_typ(tmp_path: Path) -> None:
    async with (
        serving(tmp_path, issuer=CLUSTER, id="cluster", published=["rsa-1"]) as cluster,
        validating(cluster, kind="kubernetes") as validator,
    ):
        token = cluster.token("rsa-1", header={"typ": None}, **pod_claims(cluster))
        found = await validator.validate(token)
        wanted = frozenset({"kubernetes.io.namespace", "kubernetes.io.serviceaccount.name", "sub"})
        assert found.claims(wanted) == {
            "kubernetes.io.namespace": "clinic",
            "kubernetes.io.serviceaccount.name": "web",
            "sub": "system:serviceaccount:clinic:web",
        }
        for changes, code in (
            ({"aud": CLUSTER}, "auth.token_audience"),
            ({"exp": None}, "auth.token_claims"),
            ({"sub": None}, "auth.token_claims"),
        ):
            token = cluster.token("rsa-1", **pod_claims(cluster, **changes))
            assert await refusal(validator, token) == code
    async with (
        serving(tmp_path, issuer=CLUSTER, id="again", published=["rsa-1"]) as cluster,
        validating(cluster) as validator,
    ):
        token = cluster.token("rsa-1", **pod_claims(cluster))
        assert await refusal(validator, token) == "auth.token_claims"


def test_claims_are_found_by_their_path() -> None:
    payload = {
        "a": {"b": "1", "b.c": "2"},
        "a.b": {"c": "3"},
        "l": ["x", "y"],
        "m": ["x", 1],
        "t": True,
    }
    assert claim_at(payload, "a.b.c") == "3"
    assert claim_at(payload, "a.b") is None
    assert claim_at(payload, "l") == ("x", "y")
    assert claim_at(payload, "m") is None
    assert claim_at(payload, "t") == "true"
    assert claim_at(payload, "l.x") is None
    assert claim_at(payload, "nothing") is None
