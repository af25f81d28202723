"""``GET <label>/renewed/<certificate id>``: what replaces a certificate, fetched by its client.

The client authenticates with the certificate named, or a newer one of the same identity. ca-signer
decides and answers from its ledger; nothing is kept here.

| status | means |
|---|---|
| 200 | the newest certificate, as ``simpleenroll`` answers it; with its sealed key, where ca-signer
made one, as ``serverkeygen`` does |
| 202 | it is being made; Retry-After says when to ask again |
| 204 | nothing replaces the certificate yet; renewal information says when |
| 401, 403 | not authenticated, or the certificate named is of another identity |
| 409 | the generated key was deleted, since its certificate is proven in use |
"""

from __future__ import annotations

from dataclasses import dataclass, field

from aiohttp import web

from est_frontend.auth.authenticator import Authenticator, Credentials
from est_frontend.enrollment.certificate_check import check_issued
from est_frontend.rate_limits import Buckets
from est_frontend.settings import FrontendSettings
from est_frontend.signer_state.cache import SignerState
from est_frontend.web import responses
from est_frontend.web.exchange import Exchange
from estcore import ids
from estcore.errors import BusUnavailable, rejection
from estcore.est.certs_only import certs_only
from estcore.est.keygen_response import KeygenResponse, encode_keygen_response
from estcore.est.renewal_info import parse_cert_id
from estcore.est.transfer import encode_response
from estcore.messages.envelope import decode, encode
from estcore.messages.state import RenewedCertificateAnswered, RenewedCertificateRequested
from estcore.messages.topics import fetch_topic
from estcore.pki.parsers import load_certificate
from estcore.policy.labels import Label
from estcore.runtime.bus import Bus

_TIMEOUT_S = 4


@dataclass(kw_only=True, eq=False, slots=True)
class RenewedCertificateAnswers:
    """Asks ca-signer for the client of each request."""

    settings: FrontendSettings
    state: SignerState
    authenticator: Authenticator
    bus: Bus
    _rates: Buckets = field(init=False)

    def __post_init__(self) -> None:
        rates = self.settings.rates
        self._rates = Buckets("identity", rate=rates.identity_per_s, burst=rates.identity_burst)

    async def answer(self, exchange: Exchange, label: Label, certificate_id: str) -> web.Response:
        """Return the answer to a client.

        Raises:
            RequestRejected: no certificate id, not authenticated, or refused by ca-signer.
            Unavailable: no answer of ca-signer in time.
        """
        parse_cert_id(certificate_id)
        credentials = Credentials.of(exchange.request, exchange.connection, exchange.peer)
        who = exchange.who = await self.authenticator.own_certificate(credentials, label)
        self._rates.take(who.principal.key)
        assert who.peer is not None  # noqa: S101 - authenticated by certificate
        exchange.request_id = ids.uuid7()
        answer = await self._ask(
            RenewedCertificateRequested(
                request_id=exchange.request_id,
                correlation_id=exchange.correlation_id,
                label=exchange.label_name,
                group=self.settings.group,
                peer=who.peer.der,
                certificate_id=certificate_id,
            )
        )
        match answer.outcome:
            case "rejected":
                raise rejection(
                    answer.kind or "", answer.reason or "refused", answer.code or "request.rejected"
                )
            case "pending":
                wait_s = answer.retry_after_s or label.retry_after_s
                return responses.pending(wait_s, exchange.correlation_id)
            case "none":
                return responses.empty(exchange.correlation_id)
            case "ready":
                return self._ready(exchange, label, answer)

    async def _ask(self, request: RenewedCertificateRequested) -> RenewedCertificateAnswered:
        octets = await self.bus.request(
            fetch_topic(self.settings.group),
            encode(request),
            answered_by=("ca-signer",),
            timeout_s=_TIMEOUT_S,
        )
        return decode(RenewedCertificateAnswered, octets)

    def _ready(
        self, exchange: Exchange, label: Label, answer: RenewedCertificateAnswered
    ) -> web.Response:
        if answer.certificate is None or answer.issuer is None:
            raise BusUnavailable("the answer has no certificate", code="renewed.incomplete")
        check_issued(
            answer.certificate,
            self.state.cacerts(answer.issuer),
            correlation_id=exchange.correlation_id,
        )
        certificate = load_certificate(answer.certificate)
        exchange.fetched_serial = ids.serial_hex(certificate.serial_number)
        chain, form = certs_only([answer.certificate]), exchange.written_form(label)
        if answer.sealed_key is not None:
            response = KeygenResponse(answer.sealed_key, sealed=True, certificate=chain)
            return responses.generated(
                encode_keygen_response(response, form), exchange.correlation_id
            )
        body = encode_response(chain, form)
        return responses.pkcs7(body, responses.CERTS_ONLY, exchange.correlation_id)
