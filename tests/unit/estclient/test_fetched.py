"""What a client fetches where the server renews by itself: other names, keys and signers refused."""

from __future__ import annotations

from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

from estclient.agent.bundle import Bundle
from estclient.agent.fetched import fetched_key
from estclient.errors import AnswerInvalid
from estclient.est.client import Renewed
from estcore.clock import SystemClock
from estcore.est.cms.algorithms import AES256_CBC, AES256_WRAP, RSAES_OAEP
from estcore.est.cms.envelope import PackageSigner, seal
from estcore.est.serverkeygen import Capability, KeyProtection, new_key
from estsuite_testing.e2e_stack import same_key
from estsuite_testing.est_server import CA, name

KEY_GENERATION = x509.ObjectIdentifier("1.3.6.1.5.5.7.3.32")
CLIENT_AUTH = x509.ObjectIdentifier("1.3.6.1.5.5.7.3.2")
CAPABILITIES = tuple(map(Capability, (AES256_CBC, AES256_WRAP, RSAES_OAEP)))
NOW = SystemClock().now


@pytest.fixture(scope="module")
def ca() -> CA:
    return CA()


def certificate(ca: CA, key: Any, subject: str = "web.demo", *extensions: Any) -> x509.Certificate:
    names = x509.SubjectAlternativeName([x509.DNSName(subject)])
    identifier = x509.SubjectKeyIdentifier.from_public_key(key.public_key())
    builder = x509.CertificateSigningRequestBuilder(name(subject))
    for extension in (names, identifier, *extensions):
        builder = builder.add_extension(extension, critical=False)
    signed_by = None if isinstance(key, ed25519.Ed25519PrivateKey) else hashes.SHA256()
    return ca.issue(builder.sign(key, signed_by))


def signer(ca: CA, usage: x509.ObjectIdentifier = KEY_GENERATION) -> PackageSigner:
    key = ec.generate_private_key(ec.SECP256R1())
    extension = x509.ExtendedKeyUsage([usage])
    return PackageSigner(certificate(ca, key, "generator", extension), key)


def sealed(key: Any, holder: x509.Certificate, by: PackageSigner) -> bytes:
    extension = holder.extensions.get_extension_for_class(x509.SubjectKeyIdentifier)
    public_key: Any = holder.public_key()
    return seal(
        key,
        protection=KeyProtection(False, extension.value.digest, CAPABILITIES),
        protecting_key=public_key,
        signer=by,
    )


def current(ca: CA, key: Any) -> Bundle:
    return Bundle(certificate(ca, key), key, (ca.root, ca.issuer))


def fetched(renewed: Renewed, bundle: Bundle, *others: tuple[x509.Certificate, Any]) -> Any:
    holders = [(bundle.certificate, bundle.key), *others]
    return fetched_key(renewed, holders, bundle.authorities, now=NOW())


@pytest.mark.parametrize(
    "key",
    [ec.generate_private_key(ec.SECP256R1()), rsa.generate_private_key(65537, 2048)],
    ids=["ec", "rsa"],
)
def test_a_sealed_key_is_opened_by_the_key_of_the_certificate_before(ca: CA, key: Any) -> None:
    bundle, made = current(ca, key), new_key("ec-p256")
    renewed = Renewed(certificate(ca, made), sealed(made, bundle.certificate, signer(ca)), None)
    assert same_key(renewed.certificate, fetched(renewed, bundle))


def test_a_key_sealed_for_the_first_certificate_is_opened_by_its_key(ca: CA) -> None:
    bundle, made = current(ca, new_key("ed25519")), new_key("ec-p256")
    first = new_key("ec-p384")
    identity = certificate(ca, first, "device")
    renewed = Renewed(certificate(ca, made), sealed(made, identity, signer(ca)), None)
    assert same_key(renewed.certificate, fetched(renewed, bundle, (identity, first)))
    with pytest.raises(AnswerInvalid) as caught:
        fetched(renewed, bundle)
    assert caught.value.code == "keygen.sealed"


def test_the_same_key_stays(ca: CA) -> None:
    key = new_key("ec-p256")
    assert fetched(Renewed(certificate(ca, key), None, None), current(ca, key)) is key


@pytest.mark.parametrize(
    ("wrong", "code"),
    [
        ("names", "client.another_identity"),
        ("key", "client.another_key"),
        ("sealed key", "client.another_key"),
        ("usage", "client.key_generator"),
        ("signer", "client.key_generator"),
        ("octets", "keygen.sealed"),
        ("recipient", "keygen.sealed"),
    ],
)
def test_what_is_not_this_clients_is_refused(ca: CA, wrong: str, code: str) -> None:
    key, made, other = new_key("ec-p256"), new_key("ec-p256"), new_key("ec-p256")
    bundle = current(ca, key)
    new = certificate(ca, made)
    good = sealed(made, bundle.certificate, signer(ca))
    envelope: bytes | None = good
    if wrong == "names":
        new = certificate(ca, made, "other.demo")
    elif wrong == "key":
        envelope = None
    elif wrong == "sealed key":
        envelope = sealed(other, bundle.certificate, signer(ca))
    elif wrong == "usage":
        envelope = sealed(made, bundle.certificate, signer(ca, CLIENT_AUTH))
    elif wrong == "signer":
        envelope = sealed(made, bundle.certificate, signer(CA()))
    elif wrong == "octets":
        envelope = good[:-1] + bytes([good[-1] ^ 1])
    elif wrong == "recipient":
        envelope = sealed(made, certificate(ca, other), signer(ca))
    with pytest.raises(AnswerInvalid) as caught:
        fetched(Renewed(new, envelope, None), bundle)
    assert caught.value.code == code
