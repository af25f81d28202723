"""A credential: certificate, key and CA certificates, and the checks that they fit together."""

from __future__ import annotations

import datetime as dt
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from estclient.errors import BundleInvalid
from estclient.est.keys import AnyKey
from estclient.est.trust_anchors import is_issued_by, is_of_key, is_root, is_valid
from estcore.ids import serial_hex
from estcore.pki.keys import spki_der
from estcore.pki.names import display_name

_LONGEST_CHAIN = 8


@dataclass(frozen=True)
class Bundle:
    """A certificate with its key and the CA certificates it came with.

    ``is_fallback``: a newer generation is in the store, and this one is used in its place.
    ``suggested_rotation``: the rotation that renewal information named for it.
    ``is_first``: the store had none before. ``is_renewed``: a certificate before authenticated it.
    """

    certificate: x509.Certificate
    key: AnyKey
    authorities: tuple[x509.Certificate, ...]
    rotation_id: str | None = None
    suggested_rotation: str | None = None
    in_use: bool = True
    proven: bool = True
    folder: Path | None = None
    is_fallback: bool = False
    is_first: bool = False
    is_renewed: bool = False

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the certificate, hexadecimal."""
        return sha256(self.certificate.public_bytes(Encoding.DER)).hexdigest()

    @property
    def serial(self) -> str:
        """The serial number, hexadecimal."""
        return serial_hex(self.certificate.serial_number)

    @property
    def files(self) -> tuple[Path, Path]:
        """Certificate chain and key as files.

        Raises:
            BundleInvalid: the bundle is not stored.
        """
        if self.folder is None:
            raise BundleInvalid("the bundle is not stored")
        return self.folder / "cert.pem", self.folder / "key.pem"


@dataclass(frozen=True)
class Pending:
    """A request under way: its key, its CSR, and the certificate it renews."""

    key: AnyKey
    csr: bytes
    predecessor: str


def verify_bundle(bundle: Bundle, *, now: dt.datetime) -> list[x509.Certificate]:
    """Return the chain from the certificate to a self-signed CA certificate of the bundle.

    Checks key, signatures, names and validity of every link. Whether the CA is trusted was
    decided where its certificates came from.

    Raises:
        BundleInvalid: the first thing that does not fit.
    """
    check_key(bundle)
    return verify_chain(bundle.certificate, bundle.authorities, now=now)


def verify_chain(
    certificate: x509.Certificate, authorities: Sequence[x509.Certificate], *, now: dt.datetime
) -> list[x509.Certificate]:
    """Return the chain from a certificate to a self-signed CA certificate among ``authorities``.

    Raises:
        BundleInvalid: a link is missing or not valid now.
    """
    chain = [certificate]
    while True:
        last = chain[-1]
        if not is_valid(last, now):
            raise BundleInvalid(f"{display_name(last.subject)} is not valid now")
        if is_root(last):
            return chain
        if len(chain) == _LONGEST_CHAIN:
            raise BundleInvalid("the chain is too long", code="bundle.chain")
        chain.append(_issuer(last, authorities, chain, now))


def unverified_chain(bundle: Bundle) -> list[x509.Certificate]:
    """Return the chain of a stored bundle as far as it goes, expired links included."""
    chain = [bundle.certificate]
    while not is_root(chain[-1]) and len(chain) < _LONGEST_CHAIN:
        issuers = [c for c in bundle.authorities if c not in chain and is_issued_by(chain[-1], c)]
        if not issuers:
            break
        chain.append(max(issuers, key=lambda c: (is_root(c), c.not_valid_after_utc)))
    return chain


def check_key(bundle: Bundle) -> None:
    """Check that the certificate is for the key.

    Raises:
        BundleInvalid: it is for another one.
    """
    if spki_der(bundle.key.public_key()) != spki_der(bundle.certificate.public_key()):
        raise BundleInvalid("the certificate is for another key", code="bundle.key")


def check_links(
    certificate: x509.Certificate,
    others: Sequence[x509.Certificate],
    roots: Sequence[x509.Certificate],
) -> None:
    """Check that a certificate leads through others to a root, at whatever time.

    Raises:
        BundleInvalid: one of the others, or the root, is missing.
    """
    reached, waiting = [certificate], list(others)
    while True:
        if any(c in roots or any(is_issued_by(c, root) for root in roots) for c in reached):
            return
        above = [c for c in waiting if any(is_issued_by(below, c) for below in reached)]
        if not above:
            name = display_name(reached[-1].issuer)
            raise BundleInvalid(f"no certificate of the issuer {name}", code="bundle.chain")
        reached += above
        waiting = [c for c in waiting if c not in above]


def served(chain: Sequence[x509.Certificate], bundle: Bundle) -> list[x509.Certificate]:
    """Return what the service sends: no root, but what links it to another root."""
    return sent_chain(chain, bundle.authorities)


def sent_chain(
    chain: Sequence[x509.Certificate], authorities: Sequence[x509.Certificate]
) -> list[x509.Certificate]:
    """Return what a service sends of a chain: no root, but what links it to another root."""
    root = chain[-1]
    cross = [c for c in authorities if is_of_key(c, root) and not is_root(c)]
    return [*chain[:-1], *cross] if len(chain) > 1 else [*chain, *cross]


def _issuer(
    certificate: x509.Certificate,
    authorities: Sequence[x509.Certificate],
    below: Sequence[x509.Certificate],
    now: dt.datetime,
) -> x509.Certificate:
    """Return who issued it: of now rather than not, a root rather than what links to another."""
    issuers = [c for c in authorities if c not in below and is_issued_by(certificate, c)]
    if not issuers:
        name = display_name(certificate.issuer)
        raise BundleInvalid(f"no certificate of the issuer {name}", code="bundle.chain")
    return min(issuers, key=lambda c: (not is_valid(c, now), not is_root(c)))
