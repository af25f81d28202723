"""Sealed private keys: openssl opens what we seal, and nothing weaker than asked is sent."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding
from pyasn1.codec.der.decoder import decode as pyasn1_decode
from pyasn1_alt_modules import rfc5652, rfc5958

from estcore.errors import ConfigurationError, RequestRejected
from estcore.est.cms.algorithms import (
    AES128_CBC,
    AES128_WRAP,
    AES192_CBC,
    AES192_WRAP,
    AES256_CBC,
    AES256_WRAP,
    RSAES_OAEP,
    algorithm,
)
from estcore.est.cms.envelope import (
    ENVELOPED_DATA_OID,
    KEY_PACKAGE_OID,
    SIGNED_DATA_OID,
    PackageSigner,
    content_info,
    seal,
)
from estcore.est.serverkeygen import Capability, KeyProtection, new_key, pkcs8
from estcore.pki import der
from estsuite_testing.key_holders import Holder, holder

RSA_ENCRYPTION = "1.2.840.113549.1.1.1"
ECDH_SHA256, ECDH_SHA384, ECDH_SHA512 = "1.3.132.1.11.1", "1.3.132.1.11.2", "1.3.132.1.11.3"
SECRET_ID = b"pump-17"
OPENSSL_VERIFY = ["openssl", "cms", "-verify", "-binary", "-purpose", "any", "-inform", "DER"]
WRAPS = {16: AES128_WRAP, 24: AES192_WRAP, 32: AES256_WRAP}
CONTENTS = {16: AES128_CBC, 24: AES192_CBC, 32: AES256_CBC}

# The well-known DER of RFC 3560 section 4 / RFC 8551: OAEP with SHA-256 and its MGF1.
OAEP_SHA256 = bytes.fromhex(
    "302fa00f300d06096086480165030402010500a11c301a06092a864886f70d010108300d06096086480165030402010500"
)
OAEP_SHA1 = bytes.fromhex("3000")


RSA = holder(rsa.generate_private_key(65537, 2048))
RSA_3072 = holder(rsa.generate_private_key(65537, 3072))
P256 = holder(ec.generate_private_key(ec.SECP256R1()))
P384 = holder(ec.generate_private_key(ec.SECP384R1()))
P521 = holder(ec.generate_private_key(ec.SECP521R1()))
SIGNER = PackageSigner(P256.certificate, P256.key)
KEY = new_key("ec-p256")


def able(*capabilities: str | tuple[str, bytes]) -> tuple[Capability, ...]:
    return tuple(Capability(c) if isinstance(c, str) else Capability(*c) for c in capabilities)


def sealed_for(
    recipient: Holder | bytes,
    *capabilities: str | tuple[str, bytes],
    key: Any = KEY,
    signer: PackageSigner = SIGNER,
) -> bytes:
    symmetric = isinstance(recipient, bytes)
    identifier = SECRET_ID if isinstance(recipient, bytes) else recipient.identifier
    return seal(
        key,
        protection=KeyProtection(symmetric, identifier, able(*capabilities)),
        protecting_key=recipient if isinstance(recipient, bytes) else recipient.key.public_key(),
        signer=signer,
    )


def run_decrypt(
    sealed: bytes, recipient: Holder | bytes, folder: Path
) -> subprocess.CompletedProcess[bytes]:
    """By openssl, as the client."""
    (folder / "sealed.der").write_bytes(sealed)
    if isinstance(recipient, bytes):
        how = ["-secretkey", recipient.hex(), "-secretkeyid", SECRET_ID.hex()]
    else:
        certificate, key = recipient.write(folder)
        how = ["-recip", certificate, "-inkey", key]
    return subprocess.run(
        ["openssl", "cms", "-decrypt", "-binary", "-inform", "DER", "-in", "sealed.der", *how],
        cwd=folder,
        capture_output=True,
        check=False,
    )


def decrypt(sealed: bytes, recipient: Holder | bytes, folder: Path) -> bytes:
    run = run_decrypt(sealed, recipient, folder)
    assert run.returncode == 0, run.stderr.decode()
    return run.stdout


def verify(signed_data: bytes, signer: PackageSigner, folder: Path) -> bytes:
    """By openssl. Returns the AsymmetricKeyPackage."""
    (folder / "signed.der").write_bytes(content_info(SIGNED_DATA_OID, signed_data))
    (folder / "ca.pem").write_bytes(signer.certificate.public_bytes(Encoding.PEM))
    run = subprocess.run(
        [*OPENSSL_VERIFY, "-in", "signed.der", "-CAfile", "ca.pem"],
        cwd=folder,
        capture_output=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr.decode()
    return run.stdout


def opened(
    sealed: bytes, recipient: Holder | bytes, folder: Path, signer: PackageSigner = SIGNER
) -> bytes:
    """The PKCS#8 that a client finds, with openssl doing all cryptography."""
    package = verify(decrypt(sealed, recipient, folder), signer, folder)
    (key,) = der.children(package)
    return key


def enveloped(sealed: bytes) -> Any:
    """By pyasn1's RFC 5652 module."""
    outer, rest = pyasn1_decode(sealed, asn1Spec=rfc5652.ContentInfo())
    assert not rest
    assert str(outer["contentType"]) == ENVELOPED_DATA_OID
    found, rest = pyasn1_decode(bytes(outer["content"]), asn1Spec=rfc5652.EnvelopedData())
    assert not rest
    return found


def content_oid(sealed: bytes) -> str:
    encrypted = enveloped(sealed)["encryptedContentInfo"]
    return str(encrypted["contentEncryptionAlgorithm"]["algorithm"])


def refused(recipient: Holder | bytes, *capabilities: str | tuple[str, bytes]) -> str:
    with pytest.raises(RequestRejected) as caught:
        sealed_for(recipient, *capabilities)
    return caught.value.code


@pytest.mark.parametrize("size", [16, 24, 32])
def test_H8_a_key_for_a_shared_secret(size: int, tmp_path: Path) -> None:
    secret = bytes(range(size))
    sealed = sealed_for(secret, *WRAPS.values(), CONTENTS[size])
    assert opened(sealed, secret, tmp_path) == pkcs8(KEY)
    (recipient,) = enveloped(sealed)["recipientInfos"]
    kekri = recipient["kekri"]
    assert recipient.getName() == "kekri"
    assert int(kekri["version"]) == 4
    assert bytes(kekri["kekid"]["keyIdentifier"]) == SECRET_ID
    assert str(kekri["keyEncryptionAlgorithm"]["algorithm"]) == WRAPS[size]


@pytest.mark.parametrize(
    "capability",
    [RSAES_OAEP, (RSAES_OAEP, OAEP_SHA256), (RSAES_OAEP, OAEP_SHA1), RSA_ENCRYPTION],
    ids=["oaep", "oaep-sha256", "oaep-sha1", "pkcs1"],
)
@pytest.mark.parametrize("recipient", [RSA, RSA_3072], ids=["rsa-2048", "rsa-3072"])
def test_H9_a_key_for_an_rsa_certificate(
    capability: Any, recipient: Holder, tmp_path: Path
) -> None:
    sealed = sealed_for(recipient, capability, AES256_CBC)
    assert opened(sealed, recipient, tmp_path) == pkcs8(KEY)
    (info,) = enveloped(sealed)["recipientInfos"]
    ktri = info["ktri"]
    assert int(ktri["version"]) == 2
    assert bytes(ktri["rid"]["subjectKeyIdentifier"]) == recipient.identifier
    oid = capability if isinstance(capability, str) else capability[0]
    assert str(ktri["keyEncryptionAlgorithm"]["algorithm"]) == oid


def test_H9_pkcs1_padding_only_where_no_oaep_is_listed() -> None:
    sealed = sealed_for(RSA, RSA_ENCRYPTION, RSAES_OAEP)
    (info,) = enveloped(sealed)["recipientInfos"]
    assert str(info["ktri"]["keyEncryptionAlgorithm"]["algorithm"]) == RSAES_OAEP
    assert refused(RSA, AES256_WRAP) == "keygen.algorithms"
    assert refused(RSA, (RSAES_OAEP, bytes.fromhex("0500"))) == "keygen.algorithms"


def test_H9_oaep_parameters_are_those_of_the_rfc() -> None:
    (info,) = enveloped(sealed_for(RSA, RSAES_OAEP))["recipientInfos"]
    found = bytes(info["ktri"]["keyEncryptionAlgorithm"]["parameters"])
    assert found == OAEP_SHA256


@pytest.mark.parametrize(
    ("recipient", "capabilities"),
    [
        (P256, [(ECDH_SHA256, algorithm(AES128_WRAP)), AES128_CBC]),
        (P256, [(ECDH_SHA512, algorithm(AES256_WRAP)), AES256_CBC]),
        (P384, [ECDH_SHA384, AES256_WRAP, AES256_CBC]),
        (P384, [(ECDH_SHA384, algorithm(AES192_WRAP)), AES192_CBC]),
        (P521, [AES256_WRAP]),
        (P256, [AES192_WRAP]),
    ],
)
def test_H10_a_key_for_an_ec_certificate(
    recipient: Holder, capabilities: list[Any], tmp_path: Path
) -> None:
    sealed = sealed_for(recipient, *capabilities)
    assert opened(sealed, recipient, tmp_path) == pkcs8(KEY)
    (info,) = enveloped(sealed)["recipientInfos"]
    kari = info["kari"]
    assert int(kari["version"]) == 3
    (encrypted,) = kari["recipientEncryptedKeys"]
    rid = encrypted["rid"]["rKeyId"]["subjectKeyIdentifier"]
    assert bytes(rid) == recipient.identifier


@pytest.mark.parametrize("kind", ["ec-p521", "rsa-2048", "ed25519"])
def test_H8_H10_every_kind_of_key_can_be_sealed(kind: str, tmp_path: Path) -> None:
    key = new_key(kind)  # type: ignore[arg-type]
    for recipient in (bytes(32), P256):
        sealed = sealed_for(recipient, AES256_WRAP, key=key)
        assert opened(sealed, recipient, tmp_path) == pkcs8(key)


@pytest.mark.parametrize("who", [RSA, P384, P521])
def test_H8_the_maker_of_the_key_signs_it(who: Holder, tmp_path: Path) -> None:
    signer = PackageSigner(who.certificate, who.key)
    sealed = sealed_for(bytes(32), AES256_WRAP, signer=signer)
    assert opened(sealed, bytes(32), tmp_path, signer) == pkcs8(KEY)


def test_H8_a_signer_that_clients_cannot_check_stops_the_start() -> None:
    other = holder(ed25519.Ed25519PrivateKey.generate())
    for certificate, key in ((other.certificate, other.key), (P256.certificate, P384.key)):
        with pytest.raises(ConfigurationError) as caught:
            PackageSigner(certificate, key)
        assert caught.value.code == "keygen.signer"


def test_H8_the_content_is_a_signed_key_package(tmp_path: Path) -> None:
    sealed = sealed_for(bytes(32), AES256_WRAP)
    assert int(enveloped(sealed)["version"]) == 2
    assert str(enveloped(sealed)["encryptedContentInfo"]["contentType"]) == SIGNED_DATA_OID
    plain = decrypt(sealed, bytes(32), tmp_path)
    signed, rest = pyasn1_decode(plain, asn1Spec=rfc5652.SignedData())
    assert not rest
    assert int(signed["version"]) == 3
    assert str(signed["encapContentInfo"]["eContentType"]) == KEY_PACKAGE_OID
    octets = bytes(signed["encapContentInfo"]["eContent"])
    package, rest = pyasn1_decode(octets, asn1Spec=rfc5958.AsymmetricKeyPackage())
    assert not rest
    assert len(package) == 1


def test_H8_a_changed_package_is_found(tmp_path: Path) -> None:
    plain = bytearray(decrypt(sealed_for(bytes(32), AES256_WRAP), bytes(32), tmp_path))
    place = plain.index(pkcs8(KEY)) + 40
    plain[place] ^= 1
    with pytest.raises(AssertionError, match="verification failure"):
        verify(bytes(plain), SIGNER, tmp_path)


@pytest.mark.parametrize("recipient", [bytes(16), RSA, P256], ids=["secret", "rsa", "ec"])
def test_H8_H10_another_key_opens_nothing(recipient: Holder | bytes, tmp_path: Path) -> None:
    sealed = sealed_for(recipient, AES128_WRAP, RSAES_OAEP, AES128_CBC)
    other: Holder | bytes = bytes(15) + b"\x01"
    if isinstance(recipient, Holder):
        other = Holder(RSA_3072.key if recipient is RSA else SECOND_P256.key, recipient.certificate)
    assert pkcs8(KEY) in run_decrypt(sealed, recipient, tmp_path).stdout
    assert pkcs8(KEY) not in run_decrypt(sealed, other, tmp_path).stdout


SECOND_P256 = holder(ec.generate_private_key(ec.SECP256R1()))


def test_H11_a_protecting_key_of_another_kind_is_refused() -> None:
    for symmetric, key in ((True, RSA.key.public_key()), (False, bytes(32))):
        with pytest.raises(RequestRejected) as caught:
            seal(
                KEY,
                protection=KeyProtection(symmetric, b"id", able(AES256_WRAP)),
                protecting_key=key,
                signer=SIGNER,
            )
        assert caught.value.code == "keygen.key_unusable"


def test_H11_an_unfit_protecting_key_is_refused() -> None:
    weak = holder(rsa.generate_private_key(65537, 1024))  # noqa: S505
    other_curve = holder(ec.generate_private_key(ec.SECP256K1()))
    assert refused(bytes(20), AES256_WRAP) == "keygen.key_unusable"
    assert refused(weak, RSAES_OAEP) == "keygen.key_unusable"
    assert refused(other_curve, AES256_WRAP) == "keygen.key_unusable"


def test_H11_no_common_algorithm_is_refused() -> None:
    assert refused(bytes(32), AES128_WRAP) == "keygen.algorithms"
    assert refused(bytes(32), "1.2.3") == "keygen.algorithms"
    assert refused(P256, RSAES_OAEP) == "keygen.algorithms"
    assert refused(P256, (ECDH_SHA256, algorithm("1.2.3"))) == "keygen.algorithms"


def test_H13_the_content_key_is_no_weaker_than_the_protecting_key() -> None:
    assert content_oid(sealed_for(bytes(32), AES256_WRAP)) == AES256_CBC
    assert content_oid(sealed_for(bytes(16), AES128_WRAP, AES128_CBC)) == AES128_CBC
    both = sealed_for(bytes(24), AES192_WRAP, AES128_CBC, AES192_CBC, AES256_CBC)
    assert content_oid(both) == AES192_CBC
    assert refused(bytes(32), AES256_WRAP, AES128_CBC) == "keygen.algorithms"
    assert refused(P384, AES256_WRAP, AES128_CBC) == "keygen.algorithms"
    assert refused(P384, AES128_WRAP, AES256_CBC) == "keygen.algorithms"
    assert refused(P521, AES192_WRAP) == "keygen.algorithms"


def test_H8_no_key_and_no_vector_is_used_twice() -> None:
    calls: list[int] = []

    def counted(size: int) -> bytes:
        calls.append(size)
        return bytes((len(calls),)) * size

    protection = KeyProtection(True, SECRET_ID, able(AES256_WRAP))
    arguments: dict[str, Any] = {
        "protection": protection,
        "protecting_key": bytes(32),
        "signer": SIGNER,
    }
    sealed = seal(KEY, **arguments, random_bytes=counted)
    assert calls == [32, 16]
    assert bytes((2,)) * 16 in sealed
    assert len({seal(KEY, **arguments)[-64:] for _ in range(4)}) == 4


def test_H14_a_signer_does_not_show_its_key() -> None:
    assert "key=" not in repr(SIGNER)
