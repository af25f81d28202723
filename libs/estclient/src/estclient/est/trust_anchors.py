"""Which CA certificates of a new ``/cacerts`` answer are trusted, given those of before (pure).

A root is trusted if it was trusted before, or if a trusted root certifies it: by NewWithOld, a
certificate of the new root's name and key, signed by the old one (RFC 4210 section 4.4). Names may
be the same on both sides, so the signature shows what is self-signed. Nothing else becomes a
root, from any sender.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Sequence

from cryptography import x509

from estclient.errors import AnswerInvalid
from estcore.pki.keys import spki_der
from estcore.pki.parsers import PARSER_ERRORS

Certificates = tuple[x509.Certificate, ...]
UNREADABLE = PARSER_ERRORS
"""What the library raises for a certificate, or a part of one, that it cannot read."""


def check_readable(certificate: x509.Certificate) -> None:
    """Read the parts of a certificate that are only read when they are used.

    Extensions are left out: a root whose extensions cannot be read is still an anchor.

    Raises:
        ValueError: names, validity or key cannot be read.
    """
    try:
        certificate.subject, certificate.issuer  # noqa: B018 - read for their errors
        certificate.not_valid_before_utc, certificate.not_valid_after_utc  # noqa: B018 - the same
        spki_der(certificate.public_key())
    except UNREADABLE as exc:
        raise ValueError(f"a certificate cannot be read: {exc}") from exc


def is_issued_by(certificate: x509.Certificate, issuer: x509.Certificate) -> bool:
    """Return whether names and signature fit; not whether the issuer may sign, nor the time."""
    try:
        certificate.verify_directly_issued_by(issuer)
    except UNREADABLE:
        return False
    return True


def is_root(certificate: x509.Certificate) -> bool:
    """Return whether a certificate is signed by its own key."""
    return certificate.issuer == certificate.subject and is_issued_by(certificate, certificate)


def is_of_key(certificate: x509.Certificate, root: x509.Certificate) -> bool:
    """Return whether a certificate is another one of the root's name and key."""
    same_name = certificate.subject == root.subject
    return same_name and spki_der(certificate.public_key()) == spki_der(root.public_key())


def is_valid(certificate: x509.Certificate, now: dt.datetime) -> bool:
    """Return whether a certificate is of now."""
    return certificate.not_valid_before_utc <= now < certificate.not_valid_after_utc


def trusted_roots(
    known: Sequence[x509.Certificate], received: Sequence[x509.Certificate], *, now: dt.datetime
) -> Certificates:
    """Return the roots among ``received`` that are known, or that a known root leads to."""
    trusted = [c for c in known if is_root(c)]
    waiting = [c for c in received if is_root(c) and c not in trusted]
    cross = [c for c in received if not is_root(c) and _may_sign(c) and is_valid(c, now)]
    changed = True
    while changed:
        changed = False
        for root in list(waiting):
            links = [c for c in cross if is_of_key(c, root)]
            if any(is_issued_by(c, above) for c in links for above in trusted):
                trusted.append(root)
                waiting.remove(root)
                changed = True
    return tuple(c for c in dict.fromkeys(received) if c in trusted)


def take_up(
    known: Sequence[x509.Certificate], received: Sequence[x509.Certificate], *, now: dt.datetime
) -> Certificates:
    """Return what of ``received`` takes the place of ``known``: trusted roots, and CAs under them.

    Raises:
        AnswerInvalid: no root in it is trusted.
    """
    roots = trusted_roots(known, received, now=now)
    if not roots:
        raise AnswerInvalid(
            "no root in /cacerts is trusted, or signed by a trusted one", code="client.trust"
        )
    adopted = list(roots)
    changed = True
    while changed:
        changed = False
        for certificate in received:
            above = [c for c in adopted if is_issued_by(certificate, c)]
            if (
                certificate not in adopted
                and above
                and not is_root(certificate)
                and _may_sign(certificate)
            ):
                adopted.append(certificate)
                changed = True
    return tuple(c for c in dict.fromkeys(received) if c in adopted)


def _may_sign(certificate: x509.Certificate) -> bool:
    try:
        constraints = certificate.extensions.get_extension_for_class(x509.BasicConstraints)
    except UNREADABLE:
        return False
    return constraints.value.ca
