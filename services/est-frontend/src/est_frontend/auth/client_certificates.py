"""Who the TLS peer is: our own path validation, per label, cached, never OpenSSL's word.

A label's anchors are its issuer's certificates, one for each generation that is accepted. A peer
is identified by the label it asks for, known only after the request line. A success is cached by
(leaf, issuer) until the trust changes, and its validity is looked at on every request; a failure
is never cached, because it can depend on the chain that was sent and on the time. Revocation is
checked against the ledger by the signer.
"""

from __future__ import annotations

import datetime as dt
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from hashlib import sha256

from cryptography import x509
from OpenSSL import crypto

from est_frontend.tls.connection import ClientConnection
from estcore.clock import Clock
from estcore.errors import MalformedRequest, NotAuthenticated, Unavailable
from estcore.ids import serial_hex
from estcore.pki.chain_strength import check_chain_strength, check_client_purpose
from estcore.pki.names import canonical_name, display_name
from estcore.pki.parsers import PARSER_ERRORS, load_certificate
from estcore.policy.labels import Label, Truststore

_CACHE_LIMIT = 20_000
_UNREADABLE: tuple[type[Exception], ...] = (crypto.Error, *PARSER_ERRORS)
"""What pyOpenSSL and cryptography raise for a certificate that only TLS could read."""
_NOT_YET_VALID, _EXPIRED = 9, 10  # X509_V_ERR_CERT_NOT_YET_VALID, ..._HAS_EXPIRED
_BREAKS_RFC_5280 = range(80, 95)
"""X509_V_ERR_PATHLEN_INVALID_FOR_NON_CA to ..._EC_KEY_EXPLICIT_PARAMS: by X509_STRICT only."""
_REASONS = {
    _NOT_YET_VALID: ("auth.certificate_not_yet_valid", "the client certificate is not yet valid"),
    _EXPIRED: ("auth.certificate_expired", "the client certificate has expired"),
}


@dataclass(frozen=True)
class Peer:
    """A client certificate that chains to an anchor of the label."""

    der: bytes
    fingerprint: bytes
    issuer_id: str
    subject_canonical: str
    subject: str
    serial_number: int
    certificate: x509.Certificate
    not_before: dt.datetime
    not_after: dt.datetime
    third_party: bool = False

    @property
    def principal_name(self) -> str:
        """Issuer and subject, as the principal of a certificate is named."""
        return f"{self.issuer_id}/{self.subject_canonical}"


class PeerValidator:
    """Validates client certificates against the anchors of labels.

    Explicit anchors are our issuers' certificates; truststores hold those of upstream CAs. They
    are kept apart: which of them a certificate chains to is part of who its holder is.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._anchors: dict[str, tuple[bytes, list[crypto.X509]]] = {}
        self._third_party: frozenset[str] = frozenset()
        self._lenient: frozenset[str] = frozenset()
        self._cache: OrderedDict[tuple[bytes, str], Peer] = OrderedDict()

    def set_anchors(self, issuer_id: str, certificates: Sequence[bytes]) -> None:
        """Trust the certificates of this issuer's generations instead of those before."""
        self._set(issuer_id, certificates)

    def set_truststores(self, stores: Mapping[str, Truststore]) -> None:
        """Take these truststores instead of those before."""
        for gone in self._third_party - stores.keys():
            del self._anchors[gone]
            self._cache.clear()
        lenient = frozenset(name for name, store in stores.items() if not store.strict)
        if lenient != self._lenient:
            self._cache.clear()
        self._third_party, self._lenient = frozenset(stores), lenient
        for name, store in stores.items():
            self._set(name, store.anchors)

    def _set(self, name: str, certificates: Sequence[bytes]) -> None:
        octets = b"".join(certificates)
        if name in self._anchors and self._anchors[name][0] == octets:
            return
        # OpenSSL reads the octets themselves: a corrected copy would not verify.
        anchors = [crypto.load_certificate(crypto.FILETYPE_ASN1, c) for c in certificates]
        self._anchors[name] = (octets, anchors)
        self._cache.clear()

    def identify(self, connection: ClientConnection, label: Label) -> Peer | None:
        """Return the peer on a label; None when no certificate was presented.

        Raises:
            NotAuthenticated: untrusted, expired, not yet valid, or not for client authentication.
            Unavailable: this front end has not received the CA certificates to check it with.
        """
        presented = connection.peer()
        if presented is None:
            return None
        fingerprint = sha256(presented[0]).digest()
        refused: NotAuthenticated | Unavailable | None = None
        for anchor in (*label.issuers, *label.truststores):
            peer = self._cache.get((fingerprint, anchor))
            try:
                if peer is None:
                    peer = self._validate(presented[0], connection, anchor, fingerprint)
                    self._remember(peer)
                return self._now_valid(peer)
            except Unavailable as exc:
                refused = exc
            except NotAuthenticated as exc:
                if refused is None or refused.code == "auth.certificate_untrusted":
                    refused = exc
        assert refused is not None  # noqa: S101 - a label has an issuer
        raise refused

    def _remember(self, peer: Peer) -> None:
        self._cache[peer.fingerprint, peer.issuer_id] = peer
        if len(self._cache) > _CACHE_LIMIT:
            self._cache.popitem(last=False)

    def _now_valid(self, peer: Peer) -> Peer:
        now = self._clock.now()
        if now > peer.not_after:
            raise _refused(_EXPIRED)
        if now < peer.not_before:
            raise _refused(_NOT_YET_VALID)
        return peer

    def _store(self, name: str) -> crypto.X509Store:
        # A new one each time: a store keeps the first time it was given.
        if name not in self._anchors:
            raise Unavailable(
                "the CA certificates of this label are not here yet", code="auth.no_anchors"
            )
        store = crypto.X509Store()
        flags = crypto.X509StoreFlags.PARTIAL_CHAIN
        if name not in self._lenient:
            flags |= crypto.X509StoreFlags.X509_STRICT
        store.set_flags(flags)
        for anchor in self._anchors[name][1]:
            store.add_cert(anchor)
        store.set_time(self._clock.now().replace(tzinfo=None))
        return store

    def _validate(
        self, der: bytes, connection: ClientConnection, issuer_id: str, fingerprint: bytes
    ) -> Peer:
        store = self._store(issuer_id)
        certificate, chain = _verified(store, der, connection)
        check_client_purpose(chain)
        if issuer_id in self._third_party:
            check_chain_strength(chain)
        subject = certificate.subject
        return Peer(
            der=der,
            fingerprint=fingerprint,
            issuer_id=issuer_id,
            subject_canonical=canonical_name(subject),
            subject=display_name(subject),
            serial_number=certificate.serial_number,
            certificate=certificate,
            not_before=certificate.not_valid_before_utc,
            not_after=certificate.not_valid_after_utc,
            third_party=issuer_id in self._third_party,
        )


def _verified(
    store: crypto.X509Store, der: bytes, connection: ClientConnection
) -> tuple[x509.Certificate, list[x509.Certificate]]:
    """Return the certificate and its chain to an anchor, to read, once OpenSSL has verified them.

    Raises:
        NotAuthenticated: not trusted, not valid now, or unreadable; with what is wrong.
    """
    try:
        certificate = load_certificate(der)
        leaf = crypto.load_certificate(crypto.FILETYPE_ASN1, der)
        context = crypto.X509StoreContext(store, leaf, list(connection.peer_chain()))
        found = context.get_verified_chain()
        octets = [crypto.dump_certificate(crypto.FILETYPE_ASN1, c) for c in found]
        return certificate, [certificate, *(_authority(c) for c in octets[1:])]
    except MalformedRequest as exc:
        raise _malformed(exc.reason) from exc
    except crypto.X509StoreContextError as exc:
        raise _refused(*exc.errors[:3]) from exc
    except _UNREADABLE as exc:
        raise _malformed("the client certificate cannot be read") from exc


@lru_cache(maxsize=256)
def _authority(der: bytes) -> x509.Certificate:
    """Return a CA certificate of a chain to read: a fleet has few of them, each in every chain."""
    return load_certificate(der)


def _malformed(reason: str) -> NotAuthenticated:
    return NotAuthenticated(reason, code="auth.certificate_malformed")


def _refused(number: int, depth: int = 0, text: str = "") -> NotAuthenticated:
    if number in _BREAKS_RFC_5280:
        return NotAuthenticated(
            f"certificate {depth + 1} of the client's chain breaks RFC 5280: {text}",
            code="auth.certificate_strict",
        )
    code, reason = _REASONS.get(
        number, ("auth.certificate_untrusted", "the client certificate is not trusted here")
    )
    return NotAuthenticated(reason, code=code)


@lru_cache(maxsize=1024)
def serial_of(der: bytes) -> str:
    """Return the serial number of a presented certificate for records; "" if unreadable."""
    try:
        return serial_hex(load_certificate(der).serial_number)
    except MalformedRequest:
        return ""
