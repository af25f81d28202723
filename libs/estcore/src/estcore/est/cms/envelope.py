"""A generated private key, signed and encrypted for its client (RFC 7030 section 4.4.2).

    ContentInfo
    └── EnvelopedData                 AES-CBC under a key of its own
        ├── RecipientInfo             kekri, ktri or kari: that key, for the client
        └── SignedData                by the party that made the key
            └── AsymmetricKeyPackage  RFC 5958: one PKCS#8 key

RFC 5652 numbers the parts, RFC 3565 is AES in CMS, RFC 3560 RSAES-OAEP, RFC 5753 ECDH. Which
algorithms are used is the client's choice among its SMIMECapabilities, in its order; where none
of them will do the request fails, and never is a key sent with less protection than was asked.
"""

from __future__ import annotations

import os
from dataclasses import dataclass

from cryptography import x509
from cryptography.hazmat.primitives import hashes, padding
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.asymmetric import padding as rsa_padding
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.serialization import Encoding

from estcore.errors import ConfigurationError, RequestRejected
from estcore.est.cms import algorithms as choice
from estcore.est.serverkeygen import GeneratedKey, KeyProtection, pkcs8
from estcore.ids import RandomBytes
from estcore.pki import der as der_codec
from estcore.pki.attributes import attribute
from estcore.pki.certificate import SigningHash, signing_hash

SIGNED_DATA_OID = "1.2.840.113549.1.7.2"
ENVELOPED_DATA_OID = "1.2.840.113549.1.7.3"
KEY_PACKAGE_OID = "2.16.840.1.101.2.1.2.78.5"
CONTENT_TYPE_OID = "1.2.840.113549.1.9.3"
MESSAGE_DIGEST_OID = "1.2.840.113549.1.9.4"

ProtectingKey = bytes | rsa.RSAPublicKey | ec.EllipticCurvePublicKey
"""A shared secret of 16, 24 or 32 octets, or the public key the client named."""

_IMPLICIT_0, _EXPLICIT_0, _EXPLICIT_1, _EXPLICIT_2 = 0x80, 0xA0, 0xA1, 0xA2
_BLOCK_BITS = 128
_BLOCK_BYTES = 16


@dataclass(frozen=True, repr=False)
class PackageSigner:
    """Who signs the key package: a certificate the client can verify, and its key.

    Not Ed25519: OpenSSL 3.0 cannot verify it in CMS. Another kind of key, or one that is
    not the certificate's, is a ConfigurationError.
    """

    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey

    def __post_init__(self) -> None:
        pair = self.certificate.public_key() == self.key.public_key()
        if not pair or not isinstance(self.key, ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey):
            raise ConfigurationError(
                "key packages are signed with an EC or RSA key and its certificate",
                code="keygen.signer",
            )


def seal(
    key: GeneratedKey,
    *,
    protection: KeyProtection,
    protecting_key: ProtectingKey,
    signer: PackageSigner,
    random_bytes: RandomBytes = os.urandom,
) -> bytes:
    """Return the EnvelopedData (DER) with ``key`` inside, for the client's ``protecting_key``.

    Does not check that the key belongs to ``protection.key_identifier``: who looked it up did.

    Raises:
        RequestRejected: a protecting key of another kind than was asked for, or unfit
            (``keygen.key_unusable``), or no algorithm of the client's that is strong enough
            (``keygen.algorithms``).
    """
    if protection.symmetric != isinstance(protecting_key, bytes):
        raise RequestRejected("the key named is of another kind", code="keygen.key_unusable")
    strength = choice.strength(protecting_key)
    content = choice.content_encryption(protection.capabilities, strength)
    content_key = random_bytes(content.key_bytes)
    recipient = _recipient(protection, protecting_key, content_key)
    initial_vector = random_bytes(_BLOCK_BYTES)
    package = der_codec.tlv(der_codec.SEQUENCE, pkcs8(key))
    encrypted = _encrypt(content_key, initial_vector, sign_package(package, signer))
    encrypted_content = der_codec.tlv(
        der_codec.SEQUENCE,
        der_codec.oid(SIGNED_DATA_OID),
        choice.algorithm(content.oid, _octets(initial_vector)),
        der_codec.tlv(_IMPLICIT_0, encrypted),
    )
    # Version 2: no recipient here has version 0 (RFC 5652 section 6.1).
    enveloped = der_codec.tlv(
        der_codec.SEQUENCE,
        der_codec.integer(2),
        der_codec.tlv(der_codec.SET, recipient),
        encrypted_content,
    )
    return content_info(ENVELOPED_DATA_OID, enveloped)


def content_info(oid: str, content: bytes) -> bytes:
    """Return the ContentInfo around one content (RFC 5652 section 3)."""
    wrapped = der_codec.tlv(_EXPLICIT_0, content)
    return der_codec.tlv(der_codec.SEQUENCE, der_codec.oid(oid), wrapped)


def _encrypt(key: bytes, initial_vector: bytes, content: bytes) -> bytes:
    padder = padding.PKCS7(_BLOCK_BITS).padder()
    cipher = Cipher(algorithms.AES(key), modes.CBC(initial_vector)).encryptor()
    return cipher.update(padder.update(content) + padder.finalize()) + cipher.finalize()


def _recipient(
    protection: KeyProtection, protecting_key: ProtectingKey, content_key: bytes
) -> bytes:
    if isinstance(protecting_key, bytes):
        return _secret_recipient(protection, protecting_key, content_key)
    if isinstance(protecting_key, rsa.RSAPublicKey):
        return _transport_recipient(protection, protecting_key, content_key)
    return _agreement_recipient(protection, protecting_key, content_key)


def _secret_recipient(protection: KeyProtection, secret: bytes, content_key: bytes) -> bytes:
    """Return the KEKRecipientInfo (RFC 5652 section 6.2.3)."""
    wrap = choice.secret_wrap(protection.capabilities, secret)
    return der_codec.tlv(
        _EXPLICIT_2,
        der_codec.integer(4),
        der_codec.tlv(der_codec.SEQUENCE, _octets(protection.key_identifier)),
        choice.algorithm(wrap.oid),
        _octets(choice.wrapped(secret, content_key)),
    )


def _transport_recipient(
    protection: KeyProtection, public_key: rsa.RSAPublicKey, content_key: bytes
) -> bytes:
    """Return the KeyTransRecipientInfo by subjectKeyIdentifier (RFC 5652 section 6.2.1)."""
    algorithm, scheme = choice.transport(protection.capabilities)
    return der_codec.tlv(
        der_codec.SEQUENCE,
        der_codec.integer(2),
        der_codec.tlv(_IMPLICIT_0, protection.key_identifier),
        algorithm,
        _octets(public_key.encrypt(content_key, scheme)),
    )


def _agreement_recipient(
    protection: KeyProtection, public_key: ec.EllipticCurvePublicKey, content_key: bytes
) -> bytes:
    """Return the KeyAgreeRecipientInfo with a key of its own (RFC 5753 section 3.1.1)."""
    agreement = choice.agreement(protection.capabilities, public_key)
    ephemeral = ec.generate_private_key(public_key.curve)
    shared = ephemeral.exchange(ec.ECDH(), public_key)
    wrapped = choice.wrapped(agreement.key_encryption_key(shared), content_key)
    identifier = der_codec.tlv(_EXPLICIT_0, _octets(protection.key_identifier))
    recipient = der_codec.tlv(der_codec.SEQUENCE, identifier, _octets(wrapped))
    return der_codec.tlv(
        _EXPLICIT_1,
        der_codec.integer(3),
        der_codec.tlv(_EXPLICIT_0, choice.originator(ephemeral.public_key())),
        agreement.algorithm,
        der_codec.tlv(der_codec.SEQUENCE, recipient),
    )


def _octets(octets: bytes) -> bytes:
    return der_codec.tlv(der_codec.OCTET_STRING, octets)


def sign_package(package: bytes, signer: PackageSigner) -> bytes:
    """Return the SignedData (DER) over an AsymmetricKeyPackage (RFC 5652 section 5).

    Without a signing time: the certificate that comes beside the key has a notBefore.
    """
    hash_algorithm = signing_hash(signer.key.public_key()) or hashes.SHA256()
    digest = hashes.Hash(hash_algorithm)
    digest.update(package)
    attributes = sorted(
        (
            attribute(CONTENT_TYPE_OID, der_codec.oid(KEY_PACKAGE_OID)),
            attribute(MESSAGE_DIGEST_OID, _octets(digest.finalize())),
        )
    )
    digest_algorithm = choice.algorithm(choice.HASH_OIDS[hash_algorithm.name])
    signed_octets = der_codec.tlv(der_codec.SET, *attributes)
    signature_algorithm, signature = _sign(signer.key, hash_algorithm, signed_octets)
    certificate = signer.certificate
    who = der_codec.tlv(
        der_codec.SEQUENCE,
        certificate.issuer.public_bytes(),
        der_codec.integer(certificate.serial_number),
    )
    signer_info = der_codec.tlv(
        der_codec.SEQUENCE,
        der_codec.integer(1),
        who,
        digest_algorithm,
        der_codec.tlv(_EXPLICIT_0, *attributes),
        signature_algorithm,
        _octets(signature),
    )
    encapsulated = der_codec.tlv(_EXPLICIT_0, _octets(package))
    # Version 3: the content is not id-data (RFC 5652 section 5.1).
    return der_codec.tlv(
        der_codec.SEQUENCE,
        der_codec.integer(3),
        der_codec.tlv(der_codec.SET, digest_algorithm),
        der_codec.tlv(der_codec.SEQUENCE, der_codec.oid(KEY_PACKAGE_OID), encapsulated),
        der_codec.tlv(_EXPLICIT_0, certificate.public_bytes(Encoding.DER)),
        der_codec.tlv(der_codec.SET, signer_info),
    )


def _sign(
    key: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey,
    hash_algorithm: SigningHash,
    octets: bytes,
) -> tuple[bytes, bytes]:
    """Return AlgorithmIdentifier and signature."""
    if isinstance(key, ec.EllipticCurvePrivateKey):
        signature = key.sign(octets, ec.ECDSA(hash_algorithm))
        return choice.algorithm(choice.ECDSA_OIDS[hash_algorithm.name]), signature
    signature = key.sign(octets, rsa_padding.PKCS1v15(), hash_algorithm)
    return choice.algorithm(choice.RSA_OIDS[hash_algorithm.name], choice.NULL), signature
