"""DPoP proofs (RFC 9449) and tokens bound to a certificate (RFC 8705)."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.hashes import SHA256
from hypothesis import given
from hypothesis import strategies as st

from est_frontend.auth.active_policy import ActivePolicy
from est_frontend.auth.authenticator import Authenticator, Credentials
from est_frontend.auth.client_certificates import PeerValidator
from est_frontend.auth.http_digest import DigestVerifier
from est_frontend.auth.password_file import PasswordFile
from est_frontend.auth.tokens.dpop import _thumbprint, check_proof
from est_frontend.signer_state.cache import SignerState
from estcore.errors import NotAuthenticated
from estcore.messages.signatures import Senders
from estcore.policy.document import load_policy
from estcore.policy.labels import Label
from estcore.testing.clock import FakeClock
from estsuite_testing.e2e_stack import POLICY
from estsuite_testing.token_issuer import (
    b64,
    dpop_proof,
    jwk,
    number,
    private_key,
    self_signed,
    serving,
    thumbprint,
    validating,
)

URL = "https://est.clinic.example:8443/.well-known/est/simpleenroll"
TOKEN = "aaaa.bbbb.cccc"
CLOCK = FakeClock()


def check(proof: str, *, key: str = "ec-1", url: str = URL, method: str = "POST") -> str:
    return check_proof(
        proof, TOKEN, thumbprint=thumbprint(private_key(key)), method=method, url=url, clock=CLOCK
    )


def proof(key: str = "ec-1", *, url: str = URL, **changes: Any) -> str:
    return dpop_proof(key, TOKEN, url, CLOCK, **changes)


@pytest.mark.parametrize("key", ["ec-1", "rsa-1", "pss-1", "p384-1", "ed-1"])
def test_a_good_proof_is_accepted_and_spent_under_a_stable_id(key: str) -> None:
    one = proof(key, jti="1")
    assert check(one, key=key) == check(one, key=key)
    assert check(one, key=key) == check(
        proof(key, jti="1", iat=int(CLOCK.now().timestamp()) - 5), key=key
    )
    assert check(one, key=key) != check(proof(key, jti="2"), key=key)
    assert len(check(one, key=key)) == 64


def test_two_keys_may_use_the_same_jti() -> None:
    assert check(proof("ec-1", jti="1")) != check(proof("ec-2", jti="1"), key="ec-2")


@pytest.mark.parametrize(
    ("claimed", "asked"),
    [
        (URL + "?x=1#y", URL),
        ("https://EST.clinic.example:8443/.well-known/est/simpleenroll", URL),
        ("https://est.clinic.example/x", "https://est.clinic.example:443/x"),
        ("https://est.clinic.example:443/x", "https://EST.clinic.example/x"),
    ],
)
def test_urls_that_are_the_same_are_the_same(claimed: str, asked: str) -> None:
    check(proof(url=claimed), url=asked)


NOW = int(CLOCK.now().timestamp())
WRONG: list[dict[str, Any]] = [
    {"htm": "GET"}, {"htm": "post"}, {"htm": None}, {"htm": 1},
    {"htu": URL.replace("simple", "simplere")}, {"htu": URL + "/"}, {"htu": None}, {"htu": 7},
    {"htu": URL.replace("https", "http")}, {"htu": URL.replace(":8443", "")},
    {"htu": URL.replace("https://", "https://user@")}, {"htu": URL.replace("8443", "99999")},
    {"htu": "https://["}, {"htu": URL.replace("est.clinic", "evil")}, {"htu": URL.upper()},
    {"ath": None}, {"ath": "x"}, {"ath": 1}, {"ath": b64(bytes(32))},
    {"iat": NOW - 61}, {"iat": NOW + 61}, {"iat": None}, {"iat": True}, {"iat": "now"},
    {"iat": 10**400}, {"iat": -(10**400)},
    {"jti": None}, {"jti": ""}, {"jti": 7}, {"jti": "x" * 256}, {"jti": "\ud800"},
    {"header": {"typ": "JWT"}}, {"header": {"typ": None}}, {"header": {"alg": "none"}},
    {"header": {"alg": "HS256"}}, {"header": {"alg": ["ES256"]}}, {"header": {"alg": "ES384"}},
    {"header": {"alg": "RS256"}}, {"header": {"alg": None}}, {"header": {"crit": ["exp"]}},
    {"header": {"b64": False}}, {"header": {"jwk": None}}, {"header": {"jwk": "x"}},
    {"header": {"jwk": {}}}, {"header": {"jwk": {"kty": ["EC"]}}},
    {"header": {"jwk": jwk(private_key("ec-1")) | {"x": 7}}},
    {"header": {"jwk": jwk(private_key("ec-1")) | {"d": "AAAA"}}},
    {"header": {"jwk": jwk(private_key("ec-2"))}},
    {"header": {"jwk": {"kty": "oct", "k": "AAAA"}}},
    {"header": {"jwk": jwk(private_key("rsa-1"))}},
]  # fmt: skip


# Not by content: the keys differ from process to process.
@pytest.mark.parametrize("change", WRONG, ids=[f"{n} {min(c)}" for n, c in enumerate(WRONG)])
def test_a_proof_with_one_thing_wrong_is_refused(change: dict[str, Any]) -> None:
    with pytest.raises(NotAuthenticated) as caught:
        check(proof(**change))
    assert caught.value.code == "auth.dpop"


def test_a_proof_by_another_key_is_refused() -> None:
    with pytest.raises(NotAuthenticated):
        check(proof("ec-2"))
    # The right key in the header, but another one signed.
    with pytest.raises(NotAuthenticated):
        check(proof("ec-2", header={"jwk": jwk(private_key("ec-1"))}))


def test_a_proof_with_the_whole_private_key_inside_is_refused() -> None:
    key = private_key("rsa-1")
    assert isinstance(key, rsa.RSAPrivateKey)
    numbers = key.private_numbers()
    for name in ("d", "p", "q"):
        inside = jwk(key) | {name: number(getattr(numbers, name))}
        with pytest.raises(NotAuthenticated):
            check(proof("rsa-1", header={"jwk": inside}), key="rsa-1")


def test_a_proof_for_another_token_or_method_is_refused() -> None:
    with pytest.raises(NotAuthenticated):
        check(dpop_proof("ec-1", TOKEN + "x", URL, CLOCK))
    with pytest.raises(NotAuthenticated):
        check(proof(), method="GET")


def test_a_proof_of_a_minute_ago_passes_and_an_older_one_does_not() -> None:
    check(proof(iat=NOW - 60))
    check(proof(iat=NOW + 60))


def test_no_octet_of_a_good_proof_can_be_another() -> None:
    good = proof()
    for place, octet in enumerate(good):
        for bit in (1, 2, 32):
            with pytest.raises(NotAuthenticated):
                check(good[:place] + chr(ord(octet) ^ bit) + good[place + 1 :])


@given(st.text() | st.from_regex(r"[A-Za-z0-9_-]*\.[A-Za-z0-9_-]*\.[A-Za-z0-9_-]*"))
def test_any_text_is_refused_and_nothing_else_happens(text: str) -> None:
    with pytest.raises(NotAuthenticated):
        check(text)


def test_a_proof_that_is_too_long_is_refused() -> None:
    with pytest.raises(NotAuthenticated):
        check(proof(more="x" * 4096))


async def test_L13_the_binding_of_a_token_is_named(tmp_path: Path) -> None:
    self_signed(tmp_path / "client.pem", tmp_path / "client.key")
    certificate = x509.load_pem_x509_certificate((tmp_path / "client.pem").read_bytes())
    bound_to = b64(certificate.fingerprint(SHA256()))
    async with serving(tmp_path) as issuer, validating(issuer) as validator:
        by_certificate = await validator.validate(issuer.token(cnf={"x5t#S256": bound_to}))
        by_key = await validator.validate(
            issuer.token(cnf={"jkt": thumbprint(private_key("ec-1"))})
        )
        free = await validator.validate(issuer.token())
    assert (by_certificate.certificate_thumbprint, by_certificate.key_thumbprint) == (
        bound_to,
        None,
    )
    assert (by_key.certificate_thumbprint, by_key.key_thumbprint) == (
        None,
        thumbprint(private_key("ec-1")),
    )
    assert (by_certificate.bound, by_key.bound, free.bound) == (True, True, False)


async def test_a_proof_is_good_for_one_request_whatever_becomes_of_that(tmp_path: Path) -> None:
    """What the front end refuses after this never reaches the ledger that remembers proofs."""
    peers, users = PeerValidator(CLOCK), PasswordFile.load(None)
    state = SignerState(tmp_path, peers.set_anchors, CLOCK, Senders([]))
    label = Label(issuer="issuing", profiles=("service-mtls",), authentication=("token",))
    async with serving(tmp_path) as issuer, validating(issuer) as validator:
        authenticator = Authenticator(
            peers=peers,
            state=state,
            users=users,
            digest=DigestVerifier(users, CLOCK, realm="est", key=None),
            tokens=validator,
            active_policy=ActivePolicy(load_policy(POLICY)),
            clock=issuer.clock,
            names=lambda: frozenset({"est.clinic.example"}),
        )
        token = issuer.token(cnf={"jkt": thumbprint(private_key("ec-1"))})

        def credentials(dpop: str) -> Credentials:
            return Credentials(
                connection=cast("Any", None),  # not asked for a token that is bound to a key
                source="192.0.2.1",
                method="POST",
                host="est.clinic.example",
                url=URL,
                path="/.well-known/est/simpleenroll",
                authorization=f"DPoP {token}",
                dpop=dpop,
            )

        first = dpop_proof("ec-1", token, URL, issuer.clock)
        (claim,) = (await authenticator.any_of(credentials(first), label)).single_use_claims
        assert claim.kind == "dpop"
        with pytest.raises(NotAuthenticated) as caught:
            await authenticator.any_of(credentials(first), label)
        assert caught.value.code == "auth.replayed"
        await authenticator.any_of(credentials(dpop_proof("ec-1", token, URL, issuer.clock)), label)


def test_the_thumbprint_is_that_of_rfc_7638() -> None:
    """Section 3.1: the RSA key of the example and its thumbprint."""
    key = {
        "kty": "RSA",
        "n": "0vx7agoebGcQSuuPiLJXZptN9nndrQmbXEps2aiAFbWhM78LhWx4cbbfAAtVT86zwu1RK7aPFFxuhDR1L6tSoc_BJECPebWKRXjBZCiFV4n3oknjhMstn64tZ_2W-5JsGY4Hc5n9yBXArwl93lqt7_RN5w6Cf0h4QyQ5v-65YGjQR0_FDW2QvzqY368QQMicAtaSqzs8KJZgnYb9c7d0zgdAZHzu6qMQvRL5hajrn1n91CbOpbISD08qNLyrdkt-bFTWhAI4vMQFh6WeZu0fM4lFd2NcRwr3XPksINHaQ-G_xBniIqbw0Ls1jF44-csFCur-kEgU8awapJzKnqDKgw",
        "e": "AQAB",
    }
    assert _thumbprint(key) == "NzbLsXh8uDCcd-6MNwXF4W_7noWXFZAfHkxZsRGC9Xs"
