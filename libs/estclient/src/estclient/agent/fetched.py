"""What a client fetches where the server renews by itself: checked, a sealed key opened.

The certificate has the names of the one before. Its key is the one before, or comes sealed for a
certificate of this client; the package is signed by a certificate that the same CA issued for the
generation of keys (id-kp-cmKGA, RFC 9480 section 2.2).
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Sequence

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import load_der_private_key

from estclient.agent.bundle import verify_chain
from estclient.errors import AnswerInvalid, BundleInvalid
from estclient.est.client import Renewed
from estclient.est.keys import AnyKey, PrivateKey
from estcore.errors import MalformedRequest
from estcore.est.cms.open import OpenedKey, unseal
from estcore.pki.keys import spki_der
from estcore.pki.names import canonical_name, san_entries
from estcore.pki.parsers import PARSER_ERRORS

_KEY_GENERATION = x509.ObjectIdentifier("1.3.6.1.5.5.7.3.32")
Holder = tuple[x509.Certificate, AnyKey]


def fetched_key(
    renewed: Renewed,
    holders: Sequence[Holder],
    authorities: Sequence[x509.Certificate],
    *,
    now: dt.datetime,
) -> AnyKey:
    """Return the key of a fetched certificate.

    ``holders`` are certificates of this client with their keys, first the one that is replaced.
    Does not verify the chain of the fetched certificate: who stores it does.

    Raises:
        AnswerInvalid: it is of another identity or another key, or the sealed key cannot be opened
            or was sealed by a party that may not make keys.
    """
    current, key = holders[0]
    if _identity(renewed.certificate) != _identity(current):
        raise AnswerInvalid(
            "the fetched certificate has other names than the one it replaces",
            code="client.another_identity",
        )
    if renewed.sealed_key is not None:
        opened = _open(renewed.sealed_key, holders)
        _check_signer(opened.signer, authorities, now)
        key = _private_key(opened.key)
    if spki_der(key.public_key()) != spki_der(renewed.certificate.public_key()):
        raise AnswerInvalid("the certificate is for another key", code="client.another_key")
    return key


def _identity(certificate: x509.Certificate) -> tuple[str, tuple[str, ...]]:
    san: tuple[str, ...] = ()
    try:
        extension = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName)
        san = san_entries(extension.value)
    except x509.ExtensionNotFound:
        pass
    except PARSER_ERRORS as exc:
        raise AnswerInvalid("names of a certificate cannot be read") from exc
    return canonical_name(certificate.subject), san


def _open(sealed: bytes, holders: Sequence[Holder]) -> OpenedKey:
    problem = "no key of this client is in memory"
    for certificate, key in holders:
        if not isinstance(key, (ec.EllipticCurvePrivateKey, rsa.RSAPrivateKey)):
            continue
        try:
            extension = certificate.extensions.get_extension_for_class(x509.SubjectKeyIdentifier)
            return unseal(sealed, key_identifier=extension.value.digest, opening_key=key)
        except MalformedRequest as exc:
            problem = exc.reason
        except x509.ExtensionNotFound:
            problem = "the certificate has no key identifier"
    raise AnswerInvalid(problem, code="keygen.sealed")


def _check_signer(
    signer: x509.Certificate, authorities: Sequence[x509.Certificate], now: dt.datetime
) -> None:
    try:
        verify_chain(signer, authorities, now=now)
        usages = signer.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    except (BundleInvalid, x509.ExtensionNotFound) as exc:
        raise _not_a_generator() from exc
    if _KEY_GENERATION not in usages:
        raise _not_a_generator()


def _not_a_generator() -> AnswerInvalid:
    return AnswerInvalid(
        "the sealed key is not signed by a key generator of the CA", code="client.key_generator"
    )


def _private_key(pkcs8: bytes) -> PrivateKey:
    try:
        key = load_der_private_key(pkcs8, None)
    except PARSER_ERRORS as exc:
        raise AnswerInvalid("the sealed key cannot be read", code="keygen.sealed") from exc
    if not isinstance(key, PrivateKey):
        raise AnswerInvalid("the sealed key is of another kind", code="keygen.sealed")
    return key
