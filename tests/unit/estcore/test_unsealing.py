"""Unsealing: what was sealed opens for its key, and nothing else does."""

from __future__ import annotations

from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from hypothesis import given
from hypothesis import strategies as st

from estcore.errors import MalformedRequest
from estcore.est.cms.algorithms import (
    AES128_CBC,
    AES128_WRAP,
    AES192_WRAP,
    AES256_CBC,
    AES256_WRAP,
    RSAES_OAEP,
)
from estcore.est.cms.envelope import PackageSigner, seal
from estcore.est.cms.open import MAX_SEALED_BYTES, OpenedKey, unseal
from estcore.est.serverkeygen import Capability, KeyProtection, new_key, pkcs8
from estsuite_testing.key_holders import Holder, holder

RSA_ENCRYPTION = "1.2.840.113549.1.1.1"
ABLE = tuple(
    Capability(oid)
    for oid in (AES128_WRAP, AES192_WRAP, AES256_WRAP, RSAES_OAEP, AES128_CBC, AES256_CBC)
)
ID = b"pump-17"
RSA = holder(rsa.generate_private_key(65537, 2048))
P256 = holder(ec.generate_private_key(ec.SECP256R1()))
P384 = holder(ec.generate_private_key(ec.SECP384R1()))
SIGNER = PackageSigner(P384.certificate, P384.key)
KEY = new_key("ec-p256")
KEYS: dict[str, Any] = {
    "secret-128": bytes(range(16)),
    "secret-256": bytes(range(32)),
    "rsa": RSA.key,
    "p256": P256.key,
    "p384": P384.key,
    "p521": ec.generate_private_key(ec.SECP521R1()),
}


def sealed_for(
    key: Any, signer: PackageSigner = SIGNER, capabilities: tuple[Capability, ...] = ABLE
) -> bytes:
    symmetric = isinstance(key, bytes)
    return seal(
        KEY,
        protection=KeyProtection(symmetric, ID, capabilities),
        protecting_key=key if symmetric else key.public_key(),
        signer=signer,
    )


SEALED = {name: sealed_for(key) for name, key in KEYS.items()}


def opened(name: str, sealed: bytes, key_identifier: bytes = ID) -> OpenedKey:
    return unseal(sealed, key_identifier=key_identifier, opening_key=KEYS[name])


def refused(name: str, sealed: bytes, key_identifier: bytes = ID) -> None:
    with pytest.raises(MalformedRequest) as caught:
        opened(name, sealed, key_identifier)
    assert caught.value.code == "keygen.sealed"


@pytest.mark.parametrize("name", KEYS)
def test_H8_H10_what_is_sealed_opens(name: str) -> None:
    found = opened(name, SEALED[name])
    assert found.key == pkcs8(KEY)
    assert found.signer == P384.certificate


@pytest.mark.parametrize(
    "capability", [Capability(RSA_ENCRYPTION), Capability(RSAES_OAEP, bytes.fromhex("3000"))]
)
def test_H9_every_padding_opens(capability: Capability) -> None:
    assert opened("rsa", sealed_for(RSA.key, capabilities=(capability,))).key == pkcs8(KEY)


@pytest.mark.parametrize("who", [RSA, P256])
def test_H8_the_signer_is_named(who: Holder) -> None:
    sealed = sealed_for(RSA.key, PackageSigner(who.certificate, who.key))
    assert opened("rsa", sealed).signer == who.certificate


@pytest.mark.parametrize("name", KEYS)
def test_H11_no_other_key_and_no_other_identifier_opens(name: str) -> None:
    refused(name, SEALED[name], b"pump-18")
    for other in KEYS:
        if other != name:
            refused(other, SEALED[name])


@pytest.mark.parametrize("name", ["secret-128", "p256"])
def test_H8_every_changed_octet_is_found(name: str) -> None:
    """Or it is in the signer's certificate, which the caller validates."""
    sealed, tolerated = SEALED[name], 0
    for place in range(len(sealed)):
        damaged = sealed[:place] + bytes((sealed[place] ^ 1,)) + sealed[place + 1 :]
        try:
            found = opened(name, damaged)
            assert found.key == pkcs8(KEY)
            tolerated += found.signer == P384.certificate
        except MalformedRequest as exc:
            assert exc.code == "keygen.sealed"
    assert tolerated == 0
    for end in range(len(sealed)):
        refused(name, sealed[:end])
    refused(name, sealed + b"\x00")


def test_B15_a_sealed_key_has_a_greatest_size() -> None:
    refused("p256", bytes(MAX_SEALED_BYTES + 1))


@given(st.binary(max_size=300), st.integers(0, 1500), st.sampled_from(sorted(KEYS)))
def test_B15_any_octets_give_a_key_or_a_malformed_request(
    noise: bytes, place: int, name: str
) -> None:
    spliced = SEALED[name][:place] + noise + SEALED[name][place + len(noise) :]
    for candidate in (noise, spliced):
        try:
            assert opened(name, candidate).key == pkcs8(KEY)
        except MalformedRequest as exc:
            assert exc.code == "keygen.sealed"


def test_H14_an_opened_key_does_not_show() -> None:
    found = opened("p256", SEALED["p256"])
    assert "key=" not in repr(found)
