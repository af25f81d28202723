"""What a verified chain of a different CA must be made of: keys, hashes, usages (pure).

Path validation is not done here. A library has found the chain good; it may still rest on a key
that can be broken or on a hash whose collisions are known, or be made for another purpose.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed448, ed25519, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID

from estcore.errors import ESTSuiteError, NotAuthenticated, WeakKey
from estcore.pki.parsers import PARSER_ERRORS, parser_errors
from estcore.pki.weak_keys import check_strength

_HASHES = (
    hashes.SHA256,
    hashes.SHA384,
    hashes.SHA512,
    hashes.SHA3_256,
    hashes.SHA3_384,
    hashes.SHA3_512,
)
_MIN_RSA_BITS, _MIN_EC_BITS = 2048, 256
_T = TypeVar("_T", bound=x509.ExtensionType)
_CODE = "auth.certificate_weak"


def check_chain_strength(chain: Sequence[x509.Certificate]) -> None:
    """Check keys and signatures of a verified chain, from the leaf to its anchor.

    The signature on the anchor is not looked at: it is trusted by configuration, not by that.

    Raises:
        NotAuthenticated: ``auth.certificate_weak``, with the place in the chain and the fault.
    """
    for place, certificate in enumerate(chain, 1):
        name = f"certificate {place} of the client's chain"
        with parser_errors(name, code=_CODE, error=NotAuthenticated):
            try:
                check_key_of_ca(certificate)
            except WeakKey as exc:
                raise NotAuthenticated(f"{name}: {exc.reason}", code=_CODE) from exc
            algorithm = None if place == len(chain) else certificate.signature_hash_algorithm
            if algorithm is not None and not isinstance(algorithm, _HASHES):
                raise NotAuthenticated(f"{name} is signed over {algorithm.name}", code=_CODE)


def check_key_of_ca(certificate: x509.Certificate) -> None:
    """Check the key in a certificate of a different CA: more kinds than we certify, none too small.

    Raises:
        WeakKey: too small, of a kind that signs nothing, or a key that can be broken.
    """
    try:
        key = certificate.public_key()
    except PARSER_ERRORS as exc:
        raise WeakKey("its key algorithm is not accepted", code="key.type") from exc
    if not isinstance(
        key,
        rsa.RSAPublicKey
        | ec.EllipticCurvePublicKey
        | ed25519.Ed25519PublicKey
        | ed448.Ed448PublicKey,
    ):
        raise WeakKey("its key is neither RSA nor EC, Ed25519 or Ed448", code="key.type")
    if isinstance(key, rsa.RSAPublicKey) and key.key_size < _MIN_RSA_BITS:
        raise WeakKey(f"its RSA key has {key.key_size} bits, fewer than 2048", code="key.size")
    if isinstance(key, ec.EllipticCurvePublicKey) and key.key_size < _MIN_EC_BITS:
        raise WeakKey(f"its EC key has {key.key_size} bits, fewer than 256", code="key.size")
    check_strength(key)


def check_client_purpose(chain: Sequence[x509.Certificate]) -> None:
    """Check that a verified chain, its anchor left out, is good for client authentication.

    An ExtendedKeyUsage of a CA restricts what it signs, as OpenSSL and browsers read it.

    Raises:
        NotAuthenticated: ``auth.certificate_usage``.
    """
    leaf, *others = chain
    usage = _extension(leaf, x509.KeyUsage)
    if usage is not None and not (usage.digital_signature or usage.key_agreement):
        raise _usage("the keyUsage of the client certificate allows no signature")
    for certificate in (leaf, *others[:-1]):
        purposes = _extension(certificate, x509.ExtendedKeyUsage)
        if purposes is not None and ExtendedKeyUsageOID.CLIENT_AUTH not in purposes:
            by_any = ExtendedKeyUsageOID.ANY_EXTENDED_KEY_USAGE in purposes
            if certificate is leaf or not by_any:
                raise _usage(
                    "the certificate is not for client authentication"
                    if certificate is leaf
                    else "a CA of the client's chain is not for client authentication"
                )


def _extension(certificate: x509.Certificate, kind: type[_T]) -> _T | None:
    try:
        return certificate.extensions.get_extension_for_class(kind).value
    except x509.ExtensionNotFound:
        return None


def _usage(reason: str) -> ESTSuiteError:
    return NotAuthenticated(reason, code="auth.certificate_usage")
