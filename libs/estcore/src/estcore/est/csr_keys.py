"""How CsrAttrs say which key and which signature a CSR must have.

RFC 9908 section 3.2 for the list (one attribute whose type is the kind of key) and section 3.4
for the template (a SubjectPublicKeyInfo without its key, or with a placeholder of the size).
"""

from __future__ import annotations

from typing import Literal

from estcore.errors import MalformedRequest
from estcore.pki import der as der_codec
from estcore.pki.profile import KeyAlgorithm

HashName = Literal["sha256", "sha384", "sha512"]

EC_PUBLIC_KEY = "1.2.840.10045.2.1"
RSA_ENCRYPTION = "1.2.840.113549.1.1.1"
ED25519 = "1.3.101.112"
_CURVES: dict[KeyAlgorithm, str] = {
    "ec-p256": "1.2.840.10045.3.1.7",
    "ec-p384": "1.3.132.0.34",
    "ec-p521": "1.3.132.0.35",
}
_CURVE_NAMES = {oid: name for name, oid in _CURVES.items()}
_RSA_SIZES: dict[KeyAlgorithm, int] = {"rsa-2048": 2048, "rsa-3072": 3072, "rsa-4096": 4096}
_RSA_NAMES = {size: name for name, size in _RSA_SIZES.items()}
_KINDS = (EC_PUBLIC_KEY, RSA_ENCRYPTION, ED25519)
_ANY_EC: KeyAlgorithm = "ec-p256"
_ANY_RSA: KeyAlgorithm = "rsa-3072"
"""What we make where a server leaves curve or size open."""

_ECDSA: dict[HashName, str] = {
    "sha256": "1.2.840.10045.4.3.2",
    "sha384": "1.2.840.10045.4.3.3",
    "sha512": "1.2.840.10045.4.3.4",
}
_RSA: dict[HashName, str] = {
    "sha256": "1.2.840.113549.1.1.11",
    "sha384": "1.2.840.113549.1.1.12",
    "sha512": "1.2.840.113549.1.1.13",
}
HASH_OF_SIGNATURE = {oid: name for table in (_ECDSA, _RSA) for name, oid in table.items()}
_HASHES: dict[KeyAlgorithm, HashName] = {"ec-p384": "sha384", "ec-p521": "sha512"}
_NULL = bytes.fromhex("0500")
_EXPONENT = 65537


def usual_hash(algorithm: KeyAlgorithm) -> HashName | None:
    """Return the hash a CSR is signed with; None where the scheme has its own (Ed25519)."""
    return None if algorithm == "ed25519" else _HASHES.get(algorithm, "sha256")


def signature_oid(algorithm: KeyAlgorithm, hash_name: HashName) -> str:
    """Return the identifier of the signature by such a key over such a hash."""
    if algorithm == "ed25519":
        return ED25519
    return (_ECDSA if algorithm in _CURVES else _RSA)[hash_name]


def classic_key(algorithm: KeyAlgorithm) -> tuple[str, *tuple[bytes, ...]]:
    """Return type and values of the attribute for a kind of key (RFC 9908 section 3.2).

    An Ed25519 key has no parameters, so its set of values is empty.
    """
    if algorithm in _CURVES:
        return EC_PUBLIC_KEY, der_codec.oid(_CURVES[algorithm])
    if algorithm in _RSA_SIZES:
        return RSA_ENCRYPTION, der_codec.integer(_RSA_SIZES[algorithm])
    return (ED25519,)


def read_classic_key(oid: str, values: tuple[bytes, ...]) -> KeyAlgorithm | None:
    """Return the kind of key an attribute asks for, None where it is about something else.

    Raises:
        MalformedRequest: a curve or size that is not supported, or more than one value.
    """
    if oid not in _KINDS:
        return None
    if len(values) > 1 or (oid == ED25519 and values):
        raise _unknown("more parameters than such a key has")
    if oid == ED25519:
        return "ed25519"
    if oid == EC_PUBLIC_KEY:
        return _curve(der_codec.oid_text(values[0])) if values else _ANY_EC
    return _size(der_codec.integer_value(values[0])) if values else _ANY_RSA


def template_key(algorithm: KeyAlgorithm) -> bytes:
    """Return the fields of a SubjectPublicKeyInfoTemplate, ready for its ``[0]`` tag.

    The size of an RSA key is given by a placeholder whose modulus is nothing but ones.
    """
    if algorithm in _CURVES:
        parameters = der_codec.oid(_CURVES[algorithm])
        return _algorithm(EC_PUBLIC_KEY, parameters)
    if algorithm == "ed25519":
        return _algorithm(ED25519, b"")
    modulus = (1 << _RSA_SIZES[algorithm]) - 1
    numbers = (der_codec.integer(modulus), der_codec.integer(_EXPONENT))
    key = der_codec.tlv(der_codec.SEQUENCE, *numbers)
    bits = der_codec.tlv(der_codec.BIT_STRING, b"\x00", key)
    return _algorithm(RSA_ENCRYPTION, _NULL) + bits


def _algorithm(oid: str, parameters: bytes) -> bytes:
    return der_codec.tlv(der_codec.SEQUENCE, der_codec.oid(oid), parameters)


def read_template_key(fields: list[bytes]) -> KeyAlgorithm:
    """Return the kind of key a SubjectPublicKeyInfoTemplate asks for.

    Raises:
        MalformedRequest: not such fields, or a key that is not supported.
    """
    if len(fields) not in (1, 2):
        raise _unknown("a key template is an algorithm and perhaps a placeholder")
    parts = der_codec.inside(fields[0], der_codec.SEQUENCE)
    oid = der_codec.oid_text(parts[0]) if parts else ""
    if oid == RSA_ENCRYPTION and parts[1:] == [_NULL]:
        return _size(_modulus_bits(fields[1])) if len(fields) > 1 else _ANY_RSA
    if len(fields) > 1:
        raise _unknown("only RSA keys have a placeholder")
    if oid == ED25519 and len(parts) == 1:
        return "ed25519"
    if oid == EC_PUBLIC_KEY and len(parts) == 2:  # noqa: PLR2004 - algorithm and curve
        return _curve(der_codec.oid_text(parts[1]))
    raise _unknown(f"keys of kind {oid}")


def _modulus_bits(element: bytes) -> int:
    bits = der_codec.content(element, der_codec.BIT_STRING)
    if bits[:1] != b"\x00":
        raise _unknown("the placeholder is not whole octets")
    numbers = der_codec.inside(bits[1:], der_codec.SEQUENCE)
    if len(numbers) != 2:  # noqa: PLR2004 - modulus and exponent
        raise _unknown("the placeholder is not an RSA key")
    return der_codec.integer_value(numbers[0]).bit_length()


def _curve(oid: str) -> KeyAlgorithm:
    if oid not in _CURVE_NAMES:
        raise _unknown(f"curve {oid}")
    return _CURVE_NAMES[oid]


def _size(bits: int) -> KeyAlgorithm:
    if bits not in _RSA_NAMES:
        raise _unknown("RSA keys of this size")
    return _RSA_NAMES[bits]


def _unknown(what: str) -> MalformedRequest:
    return MalformedRequest(f"csrattrs asks for {what}", code="csrattrs.key")
