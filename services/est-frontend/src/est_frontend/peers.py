"""Who the TLS peer is: our own path validation, per label, cached, never OpenSSL's word.

A label's anchors are its issuers' certificates. A peer is identified by the label it asks for,
known only after the request line; the result is cached by (leaf, label, generation of the
trust) and the validity is looked at on every request. Revocation is checked against the ledger
by the signer.
"""

from __future__ import annotations

import datetime as dt
from collections import OrderedDict
from dataclasses import dataclass
from functools import lru_cache
from hashlib import sha256

from cryptography import x509
from cryptography.x509.oid import ExtendedKeyUsageOID
from OpenSSL import crypto

from est_frontend.tls import EngineConnection
from estcore.clock import Clock
from estcore.errors import NotAuthenticated
from estcore.pki.names import canonical_name, display_name

_CACHE_LIMIT = 20_000
_REASONS = {
    9: ("auth.certificate_not_yet_valid", "the client certificate is not yet valid"),
    10: ("auth.certificate_expired", "the client certificate has expired"),
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

    @property
    def principal_name(self) -> str:
        """Issuer and subject, as the principal of a certificate is named."""
        return f"{self.issuer_id}/{self.subject_canonical}"


class PeerValidator:
    """Validates client certificates against the anchors of labels."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._anchors: dict[str, bytes] = {}
        self._stores: dict[str, crypto.X509Store] = {}
        self._cache: OrderedDict[tuple[bytes, str], Peer | NotAuthenticated] = OrderedDict()

    def set_anchor(self, issuer_id: str, certificate: bytes) -> None:
        """Trust this issuer's certificate; a changed one starts a new generation of trust."""
        if self._anchors.get(issuer_id) == certificate:
            return
        store = crypto.X509Store()
        # The issuing CA itself is the anchor: nothing else below the root is accepted.
        store.set_flags(crypto.X509StoreFlags.PARTIAL_CHAIN | crypto.X509StoreFlags.X509_STRICT)
        store.add_cert(crypto.X509.from_cryptography(x509.load_der_x509_certificate(certificate)))
        self._anchors[issuer_id] = certificate
        self._stores[issuer_id] = store
        self._cache.clear()

    def identify(self, connection: EngineConnection, issuer_id: str) -> Peer | None:
        """Return the peer on a label of that issuer; None when no certificate was presented.

        Raises:
            NotAuthenticated: untrusted, expired, not yet valid, or not for client authentication.
        """
        presented = connection.peer()
        if presented is None:
            return None
        key = (sha256(presented[0]).digest(), issuer_id)
        found = self._cache.get(key)
        if found is None:
            found = self._validate(presented[0], connection, issuer_id, key[0])
            self._cache[key] = found
            if len(self._cache) > _CACHE_LIMIT:
                self._cache.popitem(last=False)
        if isinstance(found, NotAuthenticated):
            raise NotAuthenticated(found.reason, code=found.code)
        now = self._clock.now()
        if now > found.not_after:
            code, reason = _REASONS[10]
            raise NotAuthenticated(reason, code=code)
        return found

    def _validate(
        self, der: bytes, connection: EngineConnection, issuer_id: str, fingerprint: bytes
    ) -> Peer | NotAuthenticated:
        store = self._stores.get(issuer_id)
        if store is None:
            return NotAuthenticated("no anchors for this label yet", code="auth.no_anchors")
        try:
            certificate = x509.load_der_x509_certificate(der)
            leaf = crypto.X509.from_cryptography(certificate)
            crypto.X509StoreContext(store, leaf, list(connection.peer_chain())).verify_certificate()
            usable = _for_client_authentication(certificate)
            subject = certificate.subject
        except crypto.X509StoreContextError as exc:
            code, reason = _REASONS.get(
                exc.errors[0],
                ("auth.certificate_untrusted", "the client certificate is not trusted here"),
            )
            return NotAuthenticated(reason, code=code)
        except (ValueError, crypto.Error):
            return NotAuthenticated(
                "the client certificate cannot be read", code="auth.certificate_malformed"
            )
        if not usable:
            return NotAuthenticated(
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
        )


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
