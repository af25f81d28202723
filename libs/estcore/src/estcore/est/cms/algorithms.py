"""Which algorithms seal a private key: what the client can, as long as it is strong enough.

RFC 7030 section 4.4.2 takes the key encryption from the client's SMIMECapabilities and wants a
content key no weaker than the key that protects it. Strengths are those of NIST SP 800-57
part 1, table 2.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.asymmetric import padding as rsa_padding
from cryptography.hazmat.primitives.kdf.x963kdf import X963KDF
from cryptography.hazmat.primitives.keywrap import aes_key_wrap
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from estcore.errors import MalformedRequest, RequestRejected, WeakKey
from estcore.est.csr_keys import EC_PUBLIC_KEY, RSA_ENCRYPTION
from estcore.est.serverkeygen import Capability
from estcore.pki import der as der_codec
from estcore.pki.keys import key_algorithm

Capabilities = tuple[Capability, ...]

_AES = "2.16.840.1.101.3.4.1"
AES128_CBC, AES192_CBC, AES256_CBC = f"{_AES}.2", f"{_AES}.22", f"{_AES}.42"
AES128_WRAP, AES192_WRAP, AES256_WRAP = f"{_AES}.5", f"{_AES}.25", f"{_AES}.45"
RSAES_OAEP = "1.2.840.113549.1.1.7"
_MGF1 = "1.2.840.113549.1.1.8"
NULL = bytes.fromhex("0500")
_DEFAULTS = bytes.fromhex("3000")

HASH_OIDS = {
    "sha256": "2.16.840.1.101.3.4.2.1",
    "sha384": "2.16.840.1.101.3.4.2.2",
    "sha512": "2.16.840.1.101.3.4.2.3",
}
ECDSA_OIDS = {
    "sha256": "1.2.840.10045.4.3.2",
    "sha384": "1.2.840.10045.4.3.3",
    "sha512": "1.2.840.10045.4.3.4",
}
RSA_OIDS = {
    "sha256": "1.2.840.113549.1.1.11",
    "sha384": "1.2.840.113549.1.1.12",
    "sha512": "1.2.840.113549.1.1.13",
}
HASHES: dict[str, type[hashes.SHA256 | hashes.SHA384 | hashes.SHA512]] = {
    "sha256": hashes.SHA256,
    "sha384": hashes.SHA384,
    "sha512": hashes.SHA512,
}
_STRENGTHS = {
    "rsa-2048": 112,
    "rsa-3072": 128,
    "rsa-4096": 128,
    "ec-p256": 128,
    "ec-p384": 192,
    "ec-p521": 256,
}
_AGREEMENTS = {
    "1.3.132.1.11.1": "sha256",
    "1.3.132.1.11.2": "sha384",
    "1.3.132.1.11.3": "sha512",
}
"""dhSinglePass-stdDH with the ANSI X9.63 KDF over a hash (RFC 5753 section 7.1.4)."""
_AGREEMENT_OF_CURVE = {
    "ec-p256": "1.3.132.1.11.1",
    "ec-p384": "1.3.132.1.11.2",
    "ec-p521": "1.3.132.1.11.3",
}


@dataclass(frozen=True)
class AES:
    """An AES algorithm of CMS and the octets of its key."""

    oid: str
    key_bytes: int


_CONTENT = {o: AES(o, n) for o, n in ((AES128_CBC, 16), (AES192_CBC, 24), (AES256_CBC, 32))}
_WRAPS = {o: AES(o, n) for o, n in ((AES128_WRAP, 16), (AES192_WRAP, 24), (AES256_WRAP, 32))}


@dataclass(frozen=True)
class Agreement:
    """How an ECDH secret becomes the key that wraps (RFC 5753 section 7.2)."""

    scheme: str
    wrap: AES

    @property
    def algorithm(self) -> bytes:
        """The keyEncryptionAlgorithm: the scheme with the wrap as its parameter."""
        return algorithm(self.scheme, algorithm(self.wrap.oid))

    def key_encryption_key(self, shared: bytes) -> bytes:
        """Return the key derived from the x-coordinate that both sides computed."""
        bits = (self.wrap.key_bytes * 8).to_bytes(4, "big")
        length = der_codec.tlv(0xA2, der_codec.tlv(der_codec.OCTET_STRING, bits))
        info = der_codec.tlv(der_codec.SEQUENCE, algorithm(self.wrap.oid), length)
        hash_algorithm = HASHES[_AGREEMENTS[self.scheme]]()
        return X963KDF(hash_algorithm, self.wrap.key_bytes, info).derive(shared)


def algorithm(oid: str, parameters: bytes = b"") -> bytes:
    """Return an AlgorithmIdentifier; without parameters they are absent, not NULL."""
    return der_codec.tlv(der_codec.SEQUENCE, der_codec.oid(oid), parameters)


def wrapped(key_encryption_key: bytes, key: bytes) -> bytes:
    """Return ``key`` under the AES key wrap (RFC 3394)."""
    return aes_key_wrap(key_encryption_key, key)


def strength(protecting_key: bytes | rsa.RSAPublicKey | ec.EllipticCurvePublicKey) -> int:
    """Return the security strength of a protecting key in bits.

    Raises:
        RequestRejected: a key that protects nothing.
    """
    if isinstance(protecting_key, bytes):
        bits = len(protecting_key) * 8
        if bits not in (128, 192, 256):
            raise RequestRejected("the secret is not an AES key", code="keygen.key_unusable")
        return bits
    try:
        return _STRENGTHS[key_algorithm(protecting_key)]
    except WeakKey as exc:
        raise RequestRejected(f"cannot encrypt: {exc}", code="keygen.key_unusable") from exc


def _none(what: str) -> RequestRejected:
    return RequestRejected(
        f"SMIMECapabilities have no {what} that is strong enough", code="keygen.algorithms"
    )


def content_encryption(capabilities: Capabilities, bits: int) -> AES:
    """Return the first content encryption of at least ``bits``; AES-256-CBC if none is listed.

    Raises:
        RequestRejected: those listed are all weaker.
    """
    listed = [_CONTENT[c.oid] for c in capabilities if c.oid in _CONTENT]
    if not listed:
        return _CONTENT[AES256_CBC]
    return _first(listed, bits, "content encryption")


def _first(listed: list[AES], bits: int, what: str) -> AES:
    wrap = next((aes for aes in listed if aes.key_bytes * 8 >= bits), None)
    if wrap is None:
        raise _none(what)
    return wrap


def secret_wrap(capabilities: Capabilities, secret: bytes) -> AES:
    """Return the key wrap for a shared secret: the one of its size, if the client lists it.

    Raises:
        RequestRejected: it does not.
    """
    listed = [_WRAPS[c.oid] for c in capabilities if c.oid in _WRAPS]
    fitting = [wrap for wrap in listed if wrap.key_bytes == len(secret)]
    return _first(fitting, 0, "key wrap of the secret's size")


def check_secret_wrap(identifier: bytes, secret: bytes) -> None:
    """Refuse a key wrap that is not the one for secrets of this size.

    Raises:
        RequestRejected: it is another one.
    """
    fitting = [algorithm(w.oid) for w in _WRAPS.values() if w.key_bytes == len(secret)]
    if identifier not in fitting:
        raise _none("key wrap of the secret's size")


def transport(capabilities: Capabilities) -> tuple[bytes, rsa_padding.AsymmetricPadding]:
    """Return AlgorithmIdentifier and padding for RSA; PKCS#1 v1.5 only where no OAEP is listed.

    Raises:
        RequestRejected: neither is.
    """
    for capability in capabilities:
        if capability.oid == RSAES_OAEP:
            hash_algorithm = _oaep_hash(capability.parameters)
            if hash_algorithm is not None:
                parameters = _oaep_parameters(hash_algorithm.name)
                mask = rsa_padding.MGF1(hash_algorithm)
                scheme = rsa_padding.OAEP(mask, hash_algorithm, None)
                return algorithm(RSAES_OAEP, parameters), scheme
    if any(c.oid == RSA_ENCRYPTION for c in capabilities):
        return algorithm(RSA_ENCRYPTION, NULL), rsa_padding.PKCS1v15()
    raise _none("RSA key transport")


def transport_scheme(identifier: bytes) -> rsa_padding.AsymmetricPadding:
    """Return the padding that an AlgorithmIdentifier of RSA key transport names.

    Raises:
        RequestRejected: one we do not have.
    """
    if identifier == algorithm(RSA_ENCRYPTION, NULL):
        return rsa_padding.PKCS1v15()
    oid, *parameters = der_codec.inside(identifier, der_codec.SEQUENCE)
    if oid != der_codec.oid(RSAES_OAEP):
        raise _none("RSA key transport")
    return transport((Capability(RSAES_OAEP, b"".join(parameters)),))[1]


def _oaep_hash(parameters: bytes) -> hashes.HashAlgorithm | None:
    """Return the hash of an OAEP capability, None for one we do not have."""
    if not parameters:
        return hashes.SHA256()
    if parameters == _DEFAULTS:
        # RFC 3560 section 4: the client says so, and OAEP does not rest on collisions.
        return hashes.SHA1()  # noqa: S303
    known = {_oaep_parameters(name): hash_type for name, hash_type in HASHES.items()}
    hash_type = known.get(parameters)
    return None if hash_type is None else hash_type()


def _oaep_parameters(hash_name: str) -> bytes:
    """Return RSAES-OAEP-params (RFC 4055 section 4.1); SHA-1 is its default."""
    if hash_name == "sha1":
        return _DEFAULTS
    hash_algorithm = algorithm(HASH_OIDS[hash_name], NULL)
    hash_function = der_codec.tlv(0xA0, hash_algorithm)
    mask_function = der_codec.tlv(0xA1, algorithm(_MGF1, hash_algorithm))
    return der_codec.tlv(der_codec.SEQUENCE, hash_function, mask_function)


def agreement(capabilities: Capabilities, public_key: ec.EllipticCurvePublicKey) -> Agreement:
    """Return the first key agreement and key wrap no weaker than the client's key.

    A wrap is listed as the parameter of a scheme (RFC 5753 section 7.1.4) or by itself.

    Raises:
        RequestRejected: there is none.
    """
    bits = strength(public_key)
    for candidate in _agreements(capabilities, key_algorithm(public_key)):
        if candidate.wrap.key_bytes * 8 >= bits:
            return candidate
    raise _none("key agreement")


def _agreements(capabilities: Capabilities, curve: str) -> Iterator[Agreement]:
    wraps = [_WRAPS[c.oid] for c in capabilities if c.oid in _WRAPS]
    schemes = [c for c in capabilities if c.oid in _AGREEMENTS]
    own = {algorithm(oid): wrap for oid, wrap in _WRAPS.items()}
    for scheme in schemes:
        if not scheme.parameters:
            yield from (Agreement(scheme.oid, wrap) for wrap in wraps)
        elif scheme.parameters in own:
            yield Agreement(scheme.oid, own[scheme.parameters])
    if not schemes:
        yield from (Agreement(_AGREEMENT_OF_CURVE[curve], wrap) for wrap in wraps)


def read_agreement(identifier: bytes) -> Agreement:
    """Return the agreement that a keyEncryptionAlgorithm names.

    Raises:
        RequestRejected: one we do not have.
    """
    for scheme in _AGREEMENTS:
        for wrap in _WRAPS.values():
            if Agreement(scheme, wrap).algorithm == identifier:
                return Agreement(scheme, wrap)
    raise _none("key agreement")


def content_key_bytes(oid: str) -> int | None:
    """Return the size of the key of a content encryption, None for one we do not have."""
    return _CONTENT[oid].key_bytes if oid in _CONTENT else None


def originator(public_key: ec.EllipticCurvePublicKey) -> bytes:
    """Return the originatorKey; the curve is the recipient's and stays absent (RFC 5753)."""
    point = public_key.public_bytes(Encoding.X962, PublicFormat.UncompressedPoint)
    bits = der_codec.tlv(der_codec.BIT_STRING, b"\x00", point)
    return der_codec.tlv(0xA1, algorithm(EC_PUBLIC_KEY), bits)


def read_originator(element: bytes, curve: ec.EllipticCurve) -> ec.EllipticCurvePublicKey:
    """Return the sender's key; parameters of its algorithm are the recipient's, or absent.

    Raises:
        MalformedRequest: not an originatorKey.
        ValueError: not a point of the curve.
    """
    kind, bits = der_codec.inside(element, 0xA1)
    oid = der_codec.inside(kind, der_codec.SEQUENCE)[0]
    octets = der_codec.content(bits, der_codec.BIT_STRING)
    if oid != der_codec.oid(EC_PUBLIC_KEY) or octets[:1] != b"\x00":
        raise MalformedRequest("the sender's key is no EC key", code="der.malformed")
    return ec.EllipticCurvePublicKey.from_encoded_point(curve, octets[1:])
