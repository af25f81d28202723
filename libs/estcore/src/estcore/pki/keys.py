"""Public keys: which kinds there are, and which bytes we certify.

The certificate builder re-encodes a public key, so a key whose encoding is not the one the
builder would write (compressed point, explicit curve, RSA-PSS identifier) is refused: what we
certify is then octet for octet what the client proved to hold.
"""

from __future__ import annotations

from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.asymmetric.types import CertificatePublicKeyTypes
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from estcore.errors import MalformedRequest, WeakKey
from estcore.pki import der as der_codec

_CURVES = {"secp256r1": "ec-p256", "secp384r1": "ec-p384", "secp521r1": "ec-p521"}
KEY_ALGORITHMS = ("ec-p256", "ec-p384", "ec-p521", "rsa-2048", "rsa-3072", "rsa-4096", "ed25519")
_MIN_RSA, _MAX_RSA, _RSA_STEP = 2048, 4096, 8


def key_algorithm(key: CertificatePublicKeyTypes) -> str:
    """Return the short name of the key's kind, for example ``ec-p256`` or ``rsa-3072``.

    RSA sizes between the named ones count as the next smaller one.

    Raises:
        WeakKey: a kind or size that no profile may allow.
    """
    if isinstance(key, ec.EllipticCurvePublicKey):
        name = _CURVES.get(key.curve.name)
        if name is None:
            raise WeakKey(f"curve {key.curve.name} is not accepted", code="key.curve")
        return name
    if isinstance(key, ed25519.Ed25519PublicKey):
        return "ed25519"
    if isinstance(key, rsa.RSAPublicKey):
        return _rsa_algorithm(key)
    raise WeakKey("only EC, RSA and Ed25519 keys are accepted", code="key.type")


def _rsa_algorithm(key: rsa.RSAPublicKey) -> str:
    size = key.key_size
    if not _MIN_RSA <= size <= _MAX_RSA or size % _RSA_STEP:
        raise WeakKey(f"RSA keys have 2048 to 4096 bits, not {size}", code="key.size")
    if key.public_numbers().e != 65537:  # noqa: PLR2004 - the one exponent accepted
        raise WeakKey("RSA keys have the exponent 65537", code="key.exponent")
    return "rsa-4096" if size >= 4096 else "rsa-3072" if size >= 3072 else "rsa-2048"  # noqa: PLR2004


def key_encoding_fault(spki: bytes) -> str:
    """Return what is wrong with a SubjectPublicKeyInfo that is not the one we would write."""
    try:
        algorithm, bits = der_codec.children(spki)
        oid, *parameters = der_codec.children(algorithm)
        name = der_codec.oid_text(oid)
        point = der_codec.content(bits, der_codec.BIT_STRING)[1:]
    except (MalformedRequest, ValueError):
        return _ENCODINGS
    if name == _RSASSA_PSS:
        return f"the key is identified as RSASSA-PSS; {_ENCODINGS}"
    if name == _EC_PUBLIC_KEY and parameters and parameters[0][0] == der_codec.SEQUENCE:
        return f"the EC key has explicit curve parameters; {_ENCODINGS}"
    if name == _EC_PUBLIC_KEY and point[:1] in (b"\x02", b"\x03"):
        return f"the EC point is compressed; {_ENCODINGS}"
    if name == _RSA and parameters != [_NULL]:
        return f"the parameters of rsaEncryption are not NULL; {_ENCODINGS}"
    return _ENCODINGS


_ENCODINGS = "keys are named-curve uncompressed EC, rsaEncryption or Ed25519"
_RSA, _RSASSA_PSS = "1.2.840.113549.1.1.1", "1.2.840.113549.1.1.10"
_EC_PUBLIC_KEY = "1.2.840.10045.2.1"
_NULL = b"\x05\x00"


def spki_der(key: CertificatePublicKeyTypes) -> bytes:
    """Return the SubjectPublicKeyInfo as the certificate builder writes it."""
    return key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
