"""What ``/cacerts`` contains for an issuer and its generations (pure), and root link certificates.

During a rollover of the root (RFC 7030 section 4.1.3, RFC 4210 section 4.4) these are the chain of
the signing generation, the chains of the others, OldWithNew and NewWithOld: a client with one of
the two roots can verify certificates under both. Generations under one root need no link.
"""

from __future__ import annotations

import datetime as dt
import logging
from collections.abc import Mapping, Sequence

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.serialization import Encoding

from ca_signer.issuers.generations import Generations
from ca_signer.issuers.issuer import CACertificate
from estcore.errors import ConfigurationError
from estcore.messages.state import AcceptedIssuer, CACertificates
from estcore.pki.keys import spki_der
from estcore.runtime.logs import fields

log = logging.getLogger(__name__)


def cacerts_of(
    family: str, issuers: Mapping[str, CACertificate], generations: Generations, now: dt.datetime
) -> CACertificates | None:
    """Return the message about an issuer for front ends.

    None where an issuer that belongs to it is not configured here: a signer that knows only a
    part must not take trust away that another one published.
    """
    issuer_ids = generations.shown(family)
    missing = [i for i in issuer_ids if i not in issuers]
    if missing:
        log.error("issuer not configured in this signer", extra=fields(issuer=", ".join(missing)))
        return None
    shown_issuers = [issuers[i] for i in issuer_ids]
    chain = _octets([shown_issuers[0].certificate.certificate, *shown_issuers[0].chain])
    other_chains = [c for i in shown_issuers[1:] for c in (i.certificate.certificate, *i.chain)]
    roots = [i.root for i in shown_issuers]
    cross = [c for i in shown_issuers for c in i.cross if links(c, roots)]
    extra = [der for der in _octets([*other_chains, *cross]) if der not in chain]
    return CACertificates(
        issuer_id=family,
        updated_at=now,
        chain=tuple(chain),
        extra=tuple(extra),
        accepted=tuple(
            AcceptedIssuer(issuer_id=i, certificate=issuers[i].certificate.der)
            for i in generations.accepted(family)
        ),
        rollover=generations.watched.get(family),
    )


def own_cacerts(issuer: CACertificate, now: dt.datetime) -> CACertificates:
    """Return the chain of one generation by itself."""
    chain = _octets([issuer.certificate.certificate, *issuer.chain])
    return CACertificates(issuer_id=issuer.issuer_id, updated_at=now, chain=tuple(chain))


def _octets(certificates: Sequence[x509.Certificate]) -> list[bytes]:
    """Return the certificates as DER, each once, in order."""
    return list(dict.fromkeys(c.public_bytes(Encoding.DER) for c in certificates))


def links(certificate: x509.Certificate, roots: Sequence[x509.Certificate]) -> bool:
    """Return whether a certificate is of one root's key, signed by another root."""
    return any(_is_key_of(certificate, new) for new in roots) and any(
        _is_issued_by(certificate, old) for old in roots if not _is_key_of(certificate, old)
    )


def linked(issuer: CACertificate, other: CACertificate) -> bool:
    """Return whether a client with one of the two roots can come to trust the other one."""
    if _is_key_of(issuer.root, other.root):
        return True
    cross = (*issuer.cross, *other.cross)
    pairs = ((issuer.root, other.root), (other.root, issuer.root))
    return all(any(_is_key_of(c, a) and _is_issued_by(c, b) for c in cross) for a, b in pairs)


def check_cross(issuers: Mapping[str, CACertificate]) -> None:
    """Check that every cross certificate links two roots of its issuer's family.

    Raises:
        ConfigurationError: one does not, or is no CA certificate, or an issuer is a generation
            of a generation.
    """
    for issuer in issuers.values():
        above = issuers.get(issuer.family)
        if above is not None and above.family != above.issuer_id:
            raise ConfigurationError(
                f"{issuer.issuer_id} is a generation of {above.issuer_id}, which is one itself",
                code="issuer.generation_of",
            )
        roots = [i.root for i in issuers.values() if i.family == issuer.family]
        for certificate in issuer.cross:
            if not links(certificate, roots) or not _may_sign(certificate):
                raise ConfigurationError(
                    f"{certificate.subject.rfc4514_string()} in cross_file of {issuer.issuer_id} "
                    f"does not link two roots of {issuer.family}",
                    code="issuer.cross",
                )


def _is_key_of(certificate: x509.Certificate, root: x509.Certificate) -> bool:
    same_key = spki_der(certificate.public_key()) == spki_der(root.public_key())
    return same_key and certificate.subject == root.subject


def _is_issued_by(certificate: x509.Certificate, root: x509.Certificate) -> bool:
    try:
        certificate.verify_directly_issued_by(root)
    except (ValueError, TypeError, InvalidSignature):
        return False
    return True


def _may_sign(certificate: x509.Certificate) -> bool:
    try:
        constraints = certificate.extensions.get_extension_for_class(x509.BasicConstraints).value
        usage = certificate.extensions.get_extension_for_class(x509.KeyUsage).value
    except (x509.ExtensionNotFound, ValueError):
        return False
    return constraints.ca and usage.key_cert_sign
