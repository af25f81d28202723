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
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import ExtendedKeyUsageOID
from OpenSSL import crypto

from est_frontend.tls.connection import ClientConnection
from estcore.clock import Clock
from estcore.errors import NotAuthenticated, Unavailable
from estcore.pki.names import canonical_name, display_name
from estcore.policy.labels import Label, Truststore

_CACHE_LIMIT = 20_000
_NOT_YET_VALID, _EXPIRED = 9, 10  # X509_V_ERR_CERT_NOT_YET_VALID, ..._HAS_EXPIRED
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
        self._cache: OrderedDict[tuple[bytes, str], Peer] = OrderedDict()

    def set_anchors(self, issuer_id: str, certificates: Sequence[bytes]) -> None:
        """Trust the certificates of this issuer's generations instead of those before."""
        self._set(issuer_id, [x509.load_der_x509_certificate(c) for c in certificates])

    def set_truststores(self, stores: Mapping[str, Truststore]) -> None:
        """Take these truststores instead of those before."""
        for gone in self._third_party - stores.keys():
            del self._anchors[gone]
            self._cache.clear()
        self._third_party = frozenset(stores)
        for name, store in stores.items():
            self._set(name, store.anchors)

    def _set(self, name: str, certificates: list[x509.Certificate]) -> None:
        octets = b"".join(c.public_bytes(Encoding.DER) for c in certificates)
        if name in self._anchors and self._anchors[name][0] == octets:
            return
        self._anchors[name] = (octets, [crypto.X509.from_cryptography(c) for c in certificates])
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
        if name not in self._third_party:
            # The issuing CA itself is the anchor: nothing else below the root is accepted.
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
        try:
            certificate = x509.load_der_x509_certificate(der)
            leaf = crypto.X509.from_cryptography(certificate)
            crypto.X509StoreContext(store, leaf, list(connection.peer_chain())).verify_certificate()
            usable = _for_client_authentication(certificate)
            subject = certificate.subject
        except crypto.X509StoreContextError as exc:
            raise _refused(exc.errors[0]) from exc
        except (ValueError, crypto.Error) as exc:
            raise NotAuthenticated(
                "the client certificate cannot be read", code="auth.certificate_malformed"
            ) from exc
        if not usable:
            raise NotAuthenticated(
                "the certificate is not for client authentication", code="auth.certificate_usage"
            )
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


def _refused(number: int) -> NotAuthenticated:
    code, reason = _REASONS.get(
        number, ("auth.certificate_untrusted", "the client certificate is not trusted here")
    )
    return NotAuthenticated(reason, code=code)


def _for_client_authentication(certificate: x509.Certificate) -> bool:
    try:
        usage = certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    except x509.ExtensionNotFound:
        return True
    return ExtendedKeyUsageOID.CLIENT_AUTH in usage


@lru_cache(maxsize=1024)
def serial_of(der: bytes) -> str:
    """Return the serial number of a presented certificate for records; "" if unreadable."""
    try:
        return f"{x509.load_der_x509_certificate(der).serial_number:x}"
    except ValueError:
        return ""
