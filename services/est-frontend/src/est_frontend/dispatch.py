"""One request from its path to its answer."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass, field

from aiohttp import web

from est_frontend import metrics
from est_frontend.audit_trail.trail import AuditTrail
from est_frontend.auth.active_policy import ActivePolicy
from est_frontend.auth.authenticator import Authenticator, Credentials
from est_frontend.enrollment.enroller import Enroller
from est_frontend.enrollment.renewed_certificate import RenewedCertificateAnswers
from est_frontend.headers import request_target
from est_frontend.rate_limits import Buckets, TooOften
from est_frontend.renewal_info.answer import RenewalInfoAnswers
from est_frontend.settings import FrontendSettings
from est_frontend.signer_state.cache import SignerState
from est_frontend.tls.connection import ClientConnection
from est_frontend.trust_adoption import TrustAdoptionReporter
from est_frontend.web import responses
from est_frontend.web.exchange import Exchange
from est_frontend.web.request_body import check_type, read_body
from estcore import ids
from estcore.clock import monotonic_s
from estcore.errors import (
    AuditUnavailable,
    BusUnavailable,
    ClockWrong,
    ESTSuiteError,
    IssuerUnavailable,
    MalformedRequest,
    NotAuthenticated,
    Unavailable,
    rejection,
)
from estcore.est.csrattrs import CSRAttrsForm, encode_csrattrs
from estcore.est.paths import Route, is_served, parse_path
from estcore.est.transfer import encode_response
from estcore.messages.envelope import decode, encode, without_none
from estcore.messages.state import RotationAck, RotationAckAnswered
from estcore.messages.topics import ack_topic
from estcore.policy.decide import label_named
from estcore.policy.labels import Label, Operation
from estcore.runtime.bus import Bus
from estcore.runtime.logs import fields
from estcore.runtime.sockets import source_of
from estcore.runtime.tracing import Tracing, exemplar

log = logging.getLogger(__name__)

_METHODS = {
    "cacerts": ("GET", "HEAD"),
    "csrattrs": ("GET", "HEAD"),
    "simpleenroll": ("POST",),
    "simplereenroll": ("POST",),
    "serverkeygen": ("POST",),
    "fullcmc": ("POST",),
    "rotation-ack": ("POST",),
    "renewal-info": ("GET", "HEAD"),
    "renewed": ("GET",),
}
_JWS_LIMIT = 4096
_ACK_TIMEOUT_S = 4
_RETRY_S = 5
_UNAUTHORIZED, _FORBIDDEN = 401, 403


@dataclass(kw_only=True, eq=False, slots=True)
class Dispatcher:
    """Answers every request of this process."""

    settings: FrontendSettings
    active_policy: ActivePolicy
    state: SignerState
    authenticator: Authenticator
    enroller: Enroller
    adoption: TrustAdoptionReporter
    renewal_info: RenewalInfoAnswers
    renewed: RenewedCertificateAnswers
    trail: AuditTrail
    bus: Bus
    tracing: Tracing
    names: Callable[[], frozenset[str]]
    _in_flight: int = field(default=0, init=False)
    _label_rates: Buckets = field(default_factory=lambda: Buckets("label"), init=False)
    _rates: Buckets = field(init=False)

    def __post_init__(self) -> None:
        rates = self.settings.rates
        self._rates = Buckets("address", rate=rates.source_per_s, burst=rates.source_burst)

    async def __call__(self, request: web.BaseRequest) -> web.StreamResponse:
        """Answer one request; every error becomes one line of text and an audit record."""
        started = monotonic_s()
        transport = request.transport
        if transport is None:
            raise ConnectionResetError
        connection: ClientConnection = transport.get_extra_info("ssl_object")
        exchange = Exchange(request, ids.uuid7(), connection)
        path = request_target(request).path[:200]
        with self.tracing.root("est request", path=path) as traceparent:
            exchange.traceparent = traceparent
            try:
                response = await self._route(exchange)
            except NotAuthenticated as exc:
                response = self._failed(exchange, self._by_a_right_clock(exc))
            except ESTSuiteError as exc:
                response = self._failed(exchange, exc)
            except (ConnectionError, asyncio.CancelledError):
                raise
            except Exception:  # Bulkhead: one request must not take the process down.
                log.exception(
                    "request failed", extra=fields(correlation_id=exchange.correlation_id)
                )
                error = ESTSuiteError("internal error", code="internal")
                response = self._failed(exchange, error)
        status = str(response.status)
        metrics.REQUESTS.labels(exchange.operation, exchange.label_name, status).inc()
        metrics.SECONDS.labels(exchange.operation).observe(
            monotonic_s() - started, exemplar(traceparent)
        )
        return response

    def refuse(self, request: web.BaseRequest, error: ESTSuiteError) -> web.Response:
        """Answer what aiohttp could not read, or could not finish, like any other refusal."""
        transport = request.transport
        if transport is None:
            raise ConnectionResetError
        exchange = Exchange(request, ids.uuid7(), transport.get_extra_info("ssl_object"))
        response = self._failed(exchange, error)
        metrics.REQUESTS.labels(exchange.operation, exchange.label_name, str(response.status)).inc()
        return response

    async def _route(self, exchange: Exchange) -> web.Response:
        request = exchange.request
        self._rates.take(source_of(exchange.peer))
        target = request_target(request)
        if target.host is not None and not is_served(target.host, self.names()):
            raise MalformedRequest(
                "this server has no such name; its names are in its certificate",
                code="request.wrong_host",
            )
        route = parse_path(target.path)
        if route is None:
            raise MalformedRequest("there is nothing here", code="request.not_found")
        exchange.operation = route.operation
        named_label = label_named(self.active_policy.policy, route.label)
        if named_label is None:
            raise MalformedRequest("there is no such label", code="request.not_found")
        exchange.label_name, exchange.label = named_label
        if exchange.label.max_per_s is not None:
            self._label_rates.take(exchange.label_name, exchange.label.max_per_s)
        if request.method not in _METHODS[route.operation]:
            raise MalformedRequest(
                f"{route.operation} takes {_METHODS[route.operation][0]}", code="request.method"
            )
        return await self._operate(exchange, route, exchange.label)

    async def _operate(self, exchange: Exchange, route: Route, label: Label) -> web.Response:
        match route.operation:
            case "cacerts":
                return self._cacerts(exchange, label)
            case "csrattrs":
                return await self._csrattrs(exchange, label)
            case "simpleenroll" | "simplereenroll" | "serverkeygen" as operation:
                return await self._enroll(exchange, label, operation)
            case "rotation-ack":
                return await self._rotation_ack(exchange, label)
            case "renewal-info":
                info = await self.renewal_info.answer(route.certificate_id or "")
                return responses.renewal_info(info, exchange.correlation_id)
            case "renewed":
                return await self._renewed(exchange, label, route.certificate_id or "")
            case _:
                raise MalformedRequest(
                    f"{route.operation} is not offered here", code="request.not_implemented"
                )

    def _cacerts(self, exchange: Exchange, label: Label) -> web.Response:
        der = self.state.cacerts(*label.issuers)
        if der is None:
            raise IssuerUnavailable("the CA certificates are not here yet", code="cacerts.unknown")
        if exchange.request.method == "GET":
            self.adoption.note(exchange.connection, label)
        body = encode_response(der, exchange.written_form(label))
        return responses.pkcs7(body, responses.CACERTS, exchange.correlation_id)

    async def _csrattrs(self, exchange: Exchange, label: Label) -> web.Response:
        if label.csrattrs == "none":
            return responses.empty(exchange.correlation_id)
        demands = await self.enroller.demands(exchange, label)
        if demands.empty:
            return responses.empty(exchange.correlation_id)
        form: CSRAttrsForm = "legacy" if label.csrattrs == "classic" else label.csrattrs
        body = encode_response(encode_csrattrs(demands, form), exchange.written_form(label))
        return responses.csrattrs(body, exchange.correlation_id)

    async def _enroll(self, exchange: Exchange, label: Label, operation: Operation) -> web.Response:
        if operation not in label.operations:
            raise MalformedRequest(
                f"{operation} is not offered here", code="request.not_implemented"
            )
        self._require_clock()
        self._require_issuers(label)
        self._check_trail()
        if self._in_flight >= self.settings.limits.max_in_flight:
            raise BusUnavailable("too many enrollments at once", code="frontend.busy")
        self._in_flight += 1
        try:
            if operation == "serverkeygen":
                response = await self.enroller.generate(exchange, label)
            else:
                response = await self.enroller.enroll(exchange, label)
        finally:
            self._in_flight -= 1
        if response is None:
            wait = exchange.retry_after_s or label.retry_after_s
            response = responses.pending(wait, exchange.correlation_id)
        self._record(exchange, response.status)
        return response

    def _check_trail(self) -> None:
        """Begin nothing whose outcome could not be recorded.

        Raises:
            AuditUnavailable: the trail has no room.
        """
        if not self.trail.ready:
            raise AuditUnavailable("audit records cannot be kept now", code="audit.spool_full")

    def _require_issuers(self, label: Label) -> None:
        """Refuse what no signer would ever fetch from the stream.

        Raises:
            IssuerUnavailable: no signer has published the CA certificates of one of the issuers.
        """
        for issuer in label.issuers:
            if not self.state.has({issuer}):
                raise IssuerUnavailable(
                    f"no signer of {issuer} has published its CA certificates",
                    code="issuer.unserved",
                )

    def _require_clock(self) -> None:
        """Refuse to authenticate by a clock that is wrong, or was never compared.

        Raises:
            ClockWrong: a good certificate or token could look expired, and an expired one good.
        """
        if not self.state.clock_check.known:
            raise ClockWrong("the clock was not compared with that of NATS yet")
        self.state.clock_check.require()

    def _by_a_right_clock(self, refusal: NotAuthenticated) -> ESTSuiteError:
        """Return the refusal, unless the clock was set while the request was on its way."""
        try:
            self.state.clock_check.require()
        except ClockWrong as exc:
            return exc
        return refusal

    async def _rotation_ack(self, exchange: Exchange, label: Label) -> web.Response:
        """Relay proof that a service uses its new certificate.

        A request without body is proof by itself: its connection is authenticated by the new
        certificate, so the handshake showed that the client has the key.
        """
        self._require_clock()
        self._check_trail()
        credentials = Credentials.of(exchange.request, exchange.connection, exchange.peer)
        who = exchange.who = await self.authenticator.own_certificate(credentials, label)
        body = await read_body(
            exchange.request, _JWS_LIMIT, timeout_s=self.settings.limits.body_timeout_s
        )
        if body:
            check_type(exchange.request, "application/jose")
        try:
            jws = body.decode("ascii").strip() if body else None
        except UnicodeDecodeError as exc:
            raise MalformedRequest("the body is not a JWS", code="ack.malformed") from exc
        assert who.peer is not None  # noqa: S101 - authenticated by certificate
        exchange.request_id = ids.uuid7()
        ack = RotationAck(
            request_id=exchange.request_id,
            correlation_id=exchange.correlation_id,
            traceparent=exchange.traceparent,
            label=exchange.label_name,
            jws=jws,
            peer=who.peer.der,
            peer_address=exchange.peer,
        )
        answered = decode(
            RotationAckAnswered,
            await self.bus.request(
                ack_topic(self.settings.group),
                encode(ack),
                answered_by=("renewal",),
                timeout_s=_ACK_TIMEOUT_S,
            ),
        )
        if not answered.accepted:
            raise rejection(
                answered.kind or "",
                answered.reason or "not accepted",
                answered.code or "ack.refused",
            )
        self._record(exchange, 204)
        return responses.empty(exchange.correlation_id)

    async def _renewed(self, exchange: Exchange, label: Label, certificate_id: str) -> web.Response:
        """Give the client what replaces its certificate, where ca-signer renewed it by itself."""
        self._require_clock()
        self._require_issuers(label)
        self._check_trail()
        response = await self.renewed.answer(exchange, label, certificate_id)
        self._record(exchange, response.status)
        return response

    def _record(self, exchange: Exchange, status: int) -> None:
        """Put success on record, unless ca-signer's record of the request says it."""
        if log.isEnabledFor(logging.DEBUG):
            log.debug(
                "request answered",
                extra=fields(
                    correlation_id=exchange.correlation_id,
                    operation=exchange.operation,
                    label=exchange.label_name,
                    status=status,
                ),
            )
        if exchange.issued:
            return
        self.trail.add(
            traceparent=exchange.traceparent,
            action=f"est.{exchange.operation}",
            phase="outcome",
            outcome="success",
            details=without_none(
                status=status, linked=exchange.linked, fetched_serial=exchange.fetched_serial
            ),
            **exchange.parts(),
        )

    def _failed(self, exchange: Exchange, error: ESTSuiteError) -> web.Response:
        metrics.REFUSED.labels(error.code).inc()
        log.info(
            "request refused",
            extra=fields(
                correlation_id=exchange.correlation_id,
                operation=exchange.operation,
                label=exchange.label_name,
                code=error.code,
                reason=error.reason,
            ),
        )
        status = responses.status_of(error)
        self.trail.refused(
            exchange.peer,
            error.code,
            reason=error.reason[:500],
            action=f"est.{exchange.operation}",
            details={"status": status},
            **exchange.parts(),
        )
        methods = _METHODS.get(exchange.operation, ())
        return responses.failure(
            error,
            exchange.correlation_id,
            retry_after_s=_retry_after_s(error, exchange.label),
            allow=", ".join(methods) if error.code == "request.method" else None,
            challenges=self._challenges(exchange, error, status),
        )

    def _challenges(self, exchange: Exchange, error: ESTSuiteError, status: int) -> list[str]:
        if status == _UNAUTHORIZED:
            challenges = self.authenticator.challenges(exchange.label)
            if error.code.startswith("auth.token_"):
                wrong = ', error="invalid_token"'
                challenges = [c + wrong if c.startswith("Bearer ") else c for c in challenges]
            return challenges
        who = exchange.who
        if status == _FORBIDDEN and who is not None and who.principal.method == "token":
            return ['Bearer realm="est", error="insufficient_scope"']
        return []


def _retry_after_s(error: ESTSuiteError, label: Label | None) -> int | None:
    if isinstance(error, TooOften):
        return error.retry_after_s
    if isinstance(error, Unavailable):
        return label.retry_after_s if label else _RETRY_S
    return None
