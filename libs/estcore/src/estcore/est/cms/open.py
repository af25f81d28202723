"""The client's side of a sealed private key: opened, its signature verified.

The counterpart of ``estcore.est.cms.envelope`` for EnvelopedData in DER with AES-CBC. Whether the
signer may make keys is not decided here: the caller validates its certificate.
"""

from __future__ import annotations

import hmac
from dataclasses import dataclass

from cryptography import x509
from cryptography.hazmat.primitives import hashes, padding
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.asymmetric import padding as rsa_padding
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.keywrap import InvalidUnwrap, aes_key_unwrap

from estcore.errors import MalformedRequest, RequestRejected
from estcore.est.cms import algorithms as choice
from estcore.est.cms.envelope import (
    CONTENT_TYPE_OID,
    ENVELOPED_DATA_OID,
    KEY_PACKAGE_OID,
    MESSAGE_DIGEST_OID,
    SIGNED_DATA_OID,
)
from estcore.est.csr_keys import RSA_ENCRYPTION
from estcore.pki import der as der_codec
from estcore.pki.attributes import Attributes, read_attributes
from estcore.pki.parsers import PARSER_ERRORS, load_certificate

OpeningKey = bytes | rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey
"""What the client holds: the shared secret, or the private key of its certificate."""

MAX_SEALED_BYTES = 65_536
MAX_RECIPIENTS = 8
_HASH_NAMES = {oid: name for name, oid in choice.HASH_OIDS.items()}
_IMPLICIT_0, _EXPLICIT_0, _EXPLICIT_1, _EXPLICIT_2 = 0x80, 0xA0, 0xA1, 0xA2
_BLOCK_BITS = 128
_REFUSED: tuple[type[Exception], ...] = (*PARSER_ERRORS, InvalidUnwrap)


@dataclass(frozen=True, repr=False)
class OpenedKey:
    """The private key in PKCS#8, and the certificate whose key signed the package."""

    key: bytes
    signer: x509.Certificate


def unseal(sealed: bytes, *, key_identifier: bytes, opening_key: OpeningKey) -> OpenedKey:
    """Return the key in an EnvelopedData that is for ``key_identifier``.

    Raises:
        MalformedRequest: not such a message, not for this key, or its signature does not
            verify; one code for all, so that the answer is no oracle for a forger.
    """
    if len(sealed) > MAX_SEALED_BYTES:
        raise _cannot("it is too large")
    try:
        content_key, content = _enveloped(sealed, key_identifier, opening_key)
        return _verified(_decrypt(content_key, content))
    except RequestRejected as exc:
        raise _cannot(exc.reason) from exc
    except _REFUSED as exc:
        raise _cannot("wrong key or damaged") from exc


def _cannot(why: str) -> MalformedRequest:
    return MalformedRequest(f"cannot open the sealed key: {why}", code="keygen.sealed")


def _content(element: bytes, oid: str) -> bytes:
    """Return the content of a ContentInfo of one type."""
    kind, wrapped = der_codec.inside(element, der_codec.SEQUENCE)
    if der_codec.oid_text(kind) != oid:
        raise MalformedRequest("another content type")
    (content,) = der_codec.inside(wrapped, _EXPLICIT_0)
    return content


def _enveloped(sealed: bytes, key_identifier: bytes, key: OpeningKey) -> tuple[bytes, list[bytes]]:
    """Return the content key and the fields of EncryptedContentInfo."""
    enveloped = _content(sealed, ENVELOPED_DATA_OID)
    version, recipients, content = der_codec.inside(enveloped, der_codec.SEQUENCE)
    _check_version(version, 2)
    infos = der_codec.inside(recipients, der_codec.SET)
    if len(infos) > MAX_RECIPIENTS:
        raise MalformedRequest("too many recipients")
    for info in infos:
        content_key = _content_key(info, key_identifier, key)
        if content_key is not None:
            return content_key, der_codec.inside(content, der_codec.SEQUENCE)
    raise MalformedRequest("it is for another key")


def _check_version(element: bytes, version: int) -> None:
    if element != der_codec.integer(version):
        raise MalformedRequest(f"the version of a part is not {version}")


def _content_key(info: bytes, key_identifier: bytes, key: OpeningKey) -> bytes | None:
    """Return the content key, None where the recipient is another one."""
    tag, fields = info[0], der_codec.children(info)
    if isinstance(key, bytes) and tag == _EXPLICIT_2:
        version, identifier, algorithm, encrypted = fields
        if der_codec.inside(identifier, der_codec.SEQUENCE)[0] != _octet_string(key_identifier):
            return None
        _check_version(version, 4)
        choice.check_secret_wrap(algorithm, key)
        return aes_key_unwrap(key, _octets(encrypted))
    if isinstance(key, rsa.RSAPrivateKey) and tag == der_codec.SEQUENCE:
        version, named, algorithm, encrypted = fields
        if named != der_codec.tlv(_IMPLICIT_0, key_identifier):
            return None
        _check_version(version, 2)
        return key.decrypt(_octets(encrypted), choice.transport_scheme(algorithm))
    if isinstance(key, ec.EllipticCurvePrivateKey) and tag == _EXPLICIT_1:
        return _agreed_key(fields, key_identifier, key)
    return None


def _agreed_key(
    fields: list[bytes], key_identifier: bytes, key: ec.EllipticCurvePrivateKey
) -> bytes | None:
    version, originator, algorithm, recipients = fields
    _check_version(version, 3)
    (originator_key,) = der_codec.inside(originator, _EXPLICIT_0)
    theirs = choice.read_originator(originator_key, key.curve)
    ours = der_codec.tlv(_EXPLICIT_0, _octet_string(key_identifier))
    for recipient in der_codec.inside(recipients, der_codec.SEQUENCE)[:MAX_RECIPIENTS]:
        named, encrypted = der_codec.inside(recipient, der_codec.SEQUENCE)
        if named == ours:
            agreement = choice.read_agreement(algorithm)
            wrapping_key = agreement.key_encryption_key(key.exchange(ec.ECDH(), theirs))
            return aes_key_unwrap(wrapping_key, _octets(encrypted))
    return None


def _octets(element: bytes) -> bytes:
    return der_codec.content(element, der_codec.OCTET_STRING)


def _octet_string(octets: bytes) -> bytes:
    return der_codec.tlv(der_codec.OCTET_STRING, octets)


def _decrypt(content_key: bytes, content: list[bytes]) -> bytes:
    """Return the SignedData inside an EncryptedContentInfo."""
    kind, algorithm, encrypted = content
    if der_codec.oid_text(kind) != SIGNED_DATA_OID:
        raise MalformedRequest("the content is not signed")
    oid, initial_vector = der_codec.inside(algorithm, der_codec.SEQUENCE)
    if choice.content_key_bytes(der_codec.oid_text(oid)) != len(content_key):
        raise MalformedRequest("the content key is of another size")
    mode = modes.CBC(_octets(initial_vector))
    cipher = Cipher(algorithms.AES(content_key), mode).decryptor()
    octets = der_codec.content(encrypted, _IMPLICIT_0)
    padded = cipher.update(octets) + cipher.finalize()
    unpadder = padding.PKCS7(_BLOCK_BITS).unpadder()
    return unpadder.update(padded) + unpadder.finalize()


def _verified(signed_data: bytes) -> OpenedKey:
    """Return the key of a SignedData once its signature holds (RFC 5652 section 5.4)."""
    version, digests, encapsulated, certificates, signers = der_codec.inside(
        signed_data, der_codec.SEQUENCE
    )
    _check_version(version, 3)
    package = _octets(_content(encapsulated, KEY_PACKAGE_OID))
    (signer_info,) = der_codec.inside(signers, der_codec.SET)
    version, who, digest_algorithm, attributes, algorithm, signature = der_codec.inside(
        signer_info, der_codec.SEQUENCE
    )
    _check_version(version, 1)
    if digests != der_codec.tlv(der_codec.SET, digest_algorithm):
        raise MalformedRequest("another hash is announced")
    signer = _signer(der_codec.inside(certificates, _EXPLICIT_0), who)
    hash_name = _hash_name(digest_algorithm)
    _check_attributes(read_attributes(attributes), package, hash_name)
    # The signature is over the attributes as a SET, not as the field [0] they stand in.
    signed_octets = der_codec.tlv(der_codec.SET, *der_codec.children(attributes))
    _check_signature(signer, hash_name, algorithm, _octets(signature), signed_octets)
    (key,) = der_codec.inside(package, der_codec.SEQUENCE)
    return OpenedKey(key, signer)


def _signer(certificates: list[bytes], who: bytes) -> x509.Certificate:
    """Return the certificate that a SignerInfo names by issuer and serial number."""
    for element in certificates[:MAX_RECIPIENTS]:
        certificate = load_certificate(element)
        number = der_codec.integer(certificate.serial_number)
        if who == der_codec.tlv(der_codec.SEQUENCE, certificate.issuer.public_bytes(), number):
            return certificate
    raise MalformedRequest("the signer's certificate is missing")


def _hash_name(algorithm: bytes) -> str:
    oid = der_codec.oid_text(der_codec.inside(algorithm, der_codec.SEQUENCE)[0])
    if oid not in _HASH_NAMES:
        raise MalformedRequest("a hash algorithm that is not accepted")
    return _HASH_NAMES[oid]


def _check_attributes(attributes: Attributes, package: bytes, hash_name: str) -> None:
    digest = hashes.Hash(choice.HASHES[hash_name]())
    digest.update(package)
    expected = _octet_string(digest.finalize())
    (digest_attribute,) = attributes.get(MESSAGE_DIGEST_OID, (b"",))
    kind = attributes.get(CONTENT_TYPE_OID)
    if not hmac.compare_digest(digest_attribute, expected) or kind != (
        der_codec.oid(KEY_PACKAGE_OID),
    ):
        raise MalformedRequest("the package is not the one signed")


def _check_signature(
    signer: x509.Certificate, hash_name: str, algorithm: bytes, signature: bytes, octets: bytes
) -> None:
    public_key, hash_algorithm = signer.public_key(), choice.HASHES[hash_name]()
    if isinstance(public_key, ec.EllipticCurvePublicKey):
        if algorithm != choice.algorithm(choice.ECDSA_OIDS[hash_name]):
            raise MalformedRequest("another signature algorithm")
        public_key.verify(signature, octets, ec.ECDSA(hash_algorithm))
        return
    known = (choice.RSA_OIDS[hash_name], RSA_ENCRYPTION)
    allowed = [choice.algorithm(oid, choice.NULL) for oid in known]
    if not isinstance(public_key, rsa.RSAPublicKey) or algorithm not in allowed:
        raise MalformedRequest("another signature algorithm")
    public_key.verify(signature, octets, rsa_padding.PKCS1v15(), hash_algorithm)
