"""Plug-in for another EST server (RFC 7030), for which we are the registration authority.

The client's CSR is forwarded unchanged, so the client proves possession of the key. Our TLS client
certificate identifies us; the server must accept it as a registration authority's. Every operation
is sent as ``simpleenroll``: which certificate is renewed is decided here. EST cannot revoke.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from cryptography import x509
from pydantic import Field

from ca_signer.upstream.plugin import (
    Pending,
    Refused,
    Retryable,
    Submitted,
    Unknown,
    Upstream,
    Wanted,
)
from ca_signer.upstream.plugins.https import Answer, HTTPSettings, HTTPSPlugin, Transport, plain
from ca_signer.upstream.plugins.options import read_options
from estcore.errors import ConfigurationError, MalformedRequest
from estcore.est.certs_only import read_certs_only
from estcore.est.transfer import decode_request, encode_response
from estcore.pki.keys import spki_der
from estcore.pki.parsers import load_certificate
from estcore.pki.profile import Token

_BASE = "/.well-known/est"
_DEFAULT_RETRY_S = 60
OK, ACCEPTED = 200, 202
_LATER = {429, 503}
_CREDENTIAL = {401, 404, 405, 407}
_REFUSALS = range(400, 500)
_NOT_UNDERSTOOD = {501, 505}


class ESTOptions(HTTPSettings):
    """``options`` of the plug-in ``est``."""

    label: Token | None = Field(default=None, description="label of the other server, if it has")
    repeatable_s: float = Field(
        default=0,
        ge=0,
        le=86_400,
        description="for so long the other server answers the same CSR with the same certificate "
        "(its idempotency window, if it is this suite); 0: it does not",
    )


def make(options: dict[str, Any], *, timeout_s: float) -> Upstream:
    """Return the plug-in.

    Raises:
        ConfigurationError: an option or a file is not good.
    """
    return ESTUpstream(read_options(ESTOptions, options, "est"), timeout_s=timeout_s)


class ESTUpstream(HTTPSPlugin):
    """One EST server."""

    can_revoke = False

    def __init__(self, options: ESTOptions, *, timeout_s: float) -> None:
        if options.certificate_file is None:
            raise ConfigurationError("est: a registrar has a certificate_file and a key_file")
        self.repeatable_s = options.repeatable_s
        self._base = _BASE if options.label is None else f"{_BASE}/{options.label}"
        self._limit = options.max_response_bytes
        # Where a request may be repeated, one lost with a kept connection is only slower.
        fresh = options.repeatable_s == 0
        self._transport = Transport(options, timeout_s=timeout_s, fresh=fresh)

    async def submit(self, request: Wanted) -> Submitted:
        """Enroll with the client's CSR (RFC 7030 section 4.2.1)."""
        answer = await self._transport.call(
            "POST",
            f"{self._base}/simpleenroll",
            body=encode_response(request.csr, "wrapped"),
            headers={
                "Content-Type": "application/pkcs10",
                # RFC 8951 section 3 takes it back; servers from before it look for it.
                "Content-Transfer-Encoding": "base64",
                "Accept": "application/pkcs7-mime",
            },
        )
        if answer.status == OK:
            return Submitted(_chosen(self._certificates(answer), request))
        raise _no_certificate(answer)

    async def revoke(self, certificate: bytes, reason: str) -> None:
        """EST cannot."""
        del certificate, reason
        raise Refused("EST has no revocation; revoke it at the upstream CA")

    async def authorities(self) -> Sequence[x509.Certificate]:
        """Return what ``/cacerts`` shows."""
        answer = await self._transport.call(
            "GET", f"{self._base}/cacerts", headers={"Accept": "application/pkcs7-mime"}
        )
        if answer.status != OK:
            raise Retryable(f"/cacerts answers {answer.status}")
        try:
            return [load_certificate(c) for c in self._certificates(answer)]
        except MalformedRequest as exc:
            raise Unknown(f"/cacerts: {exc.reason}", code=_UNREADABLE) from exc

    def _certificates(self, answer: Answer) -> list[bytes]:
        try:
            octets = decode_request(answer.body, max_der_bytes=self._limit)
            certificates = read_certs_only(octets)
        except MalformedRequest as exc:
            raise Unknown(f"200 without certificates: {exc.reason}", code=_UNREADABLE) from exc
        if not certificates:
            raise Unknown("200 without certificates", code=_UNREADABLE)
        return certificates


_UNREADABLE = "upstream.unreadable"


def _chosen(certificates: list[bytes], request: Wanted) -> bytes:
    """RFC 7030 section 4.2.3 allows one only; some servers send the chain as well."""
    if len(certificates) == 1:
        return certificates[0]
    spki = spki_der(request.pattern.public_key())
    for der in certificates:
        try:
            if spki_der(load_certificate(der).public_key()) == spki:
                return der
        except MalformedRequest:
            continue  # none of ours
    return certificates[0]


def _no_certificate(answer: Answer) -> Pending | Refused | Retryable | Unknown:
    status = answer.status
    text = plain(answer.body[:400].decode("ascii", "replace"))
    reason = f"the other server answers {status}" + (f": {text}" if text else "")
    if status == ACCEPTED:
        return Pending(reason, retry_after_s=answer.retry_after_s(_DEFAULT_RETRY_S))
    if status in _LATER:
        return Retryable(reason, retry_after_s=answer.retry_after_s(1))
    if status in _CREDENTIAL or status in _NOT_UNDERSTOOD or status in range(300, 400):
        # Nothing about this request: who we are, or where we knock, is not right.
        return Retryable(reason, code="upstream.denied", retry_after_s=30)
    if status in _REFUSALS:
        return Refused(reason)
    return Unknown(reason, code="upstream.broken")
