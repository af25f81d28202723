"""One request from its path to its answer."""

from __future__ import annotations

import asyncio
import datetime as dt
import logging

from aiohttp import web
from aiohttp.web_exceptions import HTTPRequestEntityTooLarge

from est_frontend import answers, metrics
from est_frontend.authenticate import Authenticated, Authenticator
from est_frontend.exchange import Exchange
from est_frontend.gateway import Gateway
from est_frontend.settings import FrontendSettings
from est_frontend.state import State
from est_frontend.tls import EngineConnection
from est_frontend.trail import Trail
from estcore import ids
from estcore.clock import Clock, monotonic_s
from estcore.errors import (
    AuditUnavailable,
    BusUnavailable,
    ESTSuiteError,
    IssuerUnavailable,
    MalformedRequest,
    Unavailable,
    rejection,
)
from estcore.est.certs_only import certs_only
from estcore.est.paths import Route, parse_path
from estcore.est.transfer import decode_request, encode_response
from estcore.messages.enrollment import EnrollmentAnswered, EnrollmentRequested
from estcore.messages.envelope import decode, encode
from estcore.messages.state import RotationAck, RotationAckAnswered
from estcore.messages.topics import ack_topic
from estcore.pki.csr import MAX_CSR_BYTES, parse_csr
from estcore.pki.profile import Priority
from estcore.policy.decide import check_names, check_same_identity, grant, label_named
from estcore.policy.document import PolicyDocument, Rule
from estcore.policy.labels import Label
from estcore.policy.identity import enrollment_id
from estcore.runtime.bus import Bus
from estcore.runtime.logs import fields
from estcore.runtime.tracing import Tracing

log = logging.getLogger(__name__)

_METHODS = {
    "cacerts": ("GET", "HEAD"),
    "csrattrs": ("GET", "HEAD"),
    "simpleenroll": ("POST",),
    "simplereenroll": ("POST",),
    "serverkeygen": ("POST",),
    "fullcmc": ("POST",),
    "rotation-ack": ("POST",),
}
_JWS_LIMIT = 4096
_ACK_TIMEOUT_S = 4


class Handler:
    """Answers every request of this process."""

    def __init__(  # noqa: PLR0913 - the parts of the front end, joined in main
        self,
        settings: FrontendSettings,
        *,
        policy: PolicyDocument,
        state: State,
        authenticator: Authenticator,
        gateway: Gateway,
        trail: Trail,
        bus: Bus,
        tracing: Tracing,
        clock: Clock,
    ) -> None:
        self._settings = settings
        self._policy = policy
        self._state = state
        self._authenticator = authenticator
        self._gateway = gateway
        self._trail = trail
        self._bus = bus
        self._tracing = tracing
        self._clock = clock
        self._in_flight = 0

    async def __call__(self, request: web.BaseRequest) -> web.StreamResponse:
        """Answer one request; every error becomes one line of text and an audit record."""
        started = monotonic_s()
        transport = request.transport
        if transport is None:
            raise ConnectionResetError
        connection: EngineConnection = transport.get_extra_info("ssl_object")
        exchange = Exchange(request, ids.uuid7(), connection)
        with self._tracing.root("est request", path=request.path[:200]) as traceparent:
            exchange.traceparent = traceparent
            try:
                response = await self._route(exchange)
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
        metrics.SECONDS.labels(exchange.operation).observe(monotonic_s() - started)
        return response

    async def _route(self, exchange: Exchange) -> web.Response:
        request = exchange.request
        route = parse_path(request.raw_path.partition("?")[0])
        if route is None:
            raise MalformedRequest("there is nothing here", code="request.not_found")
        exchange.operation = route.operation
        found = label_named(self._policy, route.label)
        if found is None:
            raise MalformedRequest("there is no such label", code="request.not_found")
        exchange.label_name, exchange.label = found
        if request.method not in _METHODS[route.operation]:
            raise MalformedRequest(
                f"{route.operation} takes {_METHODS[route.operation][0]}", code="request.method"
            )
        return await self._operate(exchange, route, exchange.label)

    async def _operate(self, exchange: Exchange, route: Route, label: Label) -> web.Response:
        match route.operation:
            case "cacerts":
                return self._cacerts(exchange, label)
            case "simpleenroll" | "simplereenroll":
                return await self._enroll(exchange, label)
            case "rotation-ack":
                return await self._rotation_ack(exchange, label)
            case _:
                raise MalformedRequest(
                    f"{route.operation} is not offered here", code="request.not_implemented"
                )

    def _cacerts(self, exchange: Exchange, label: Label) -> web.Response:
        der = self._state.cacerts(label.issuer)
        if der is None:
            raise IssuerUnavailable("the CA certificates are not here yet", code="cacerts.unknown")
        body = encode_response(der, label.response_base64)
        return answers.pkcs7(body, answers.CACERTS, exchange.correlation_id)

    async def _enroll(self, exchange: Exchange, label: Label) -> web.Response:
        if not self._trail.ready:
            raise AuditUnavailable("audit records cannot be kept now", code="audit.spool_full")
        if self._in_flight >= self._settings.limits.max_in_flight:
            raise BusUnavailable("too many enrollments at once", code="frontend.busy")
        self._in_flight += 1
        try:
            priority = await self._check(exchange, label)
            answer = await self._submit(exchange, label, priority)
        finally:
            self._in_flight -= 1
        return self._answered(exchange, label, answer)

    async def _check(self, exchange: Exchange, label: Label) -> Priority:
        """Authenticate, read the CSR and refuse early what the signer would refuse."""
        reenroll = exchange.operation == "simplereenroll"
        if reenroll:
            who = self._authenticator.certificate(exchange.connection, label)
        else:
            authorization = exchange.request.headers.get("Authorization")
            who = self._authenticator.any_of(exchange.connection, label, authorization)
        exchange.who = who
        _check_type(exchange.request, "application/pkcs10")
        body = await self._body(exchange.request, self._settings.limits.max_body_bytes)
        exchange.csr = csr = parse_csr(decode_request(body, max_der_bytes=MAX_CSR_BYTES))
        if reenroll:
            assert who.peer is not None  # noqa: S101 - authenticated by certificate
            check_same_identity(csr, who.peer.certificate)
            return label.priority
        given = grant(self._policy, self._rule(who), exchange.label_name)
        check_names(csr, given.rule.names)
        return given.priority

    def _rule(self, who: Authenticated) -> Rule | None:
        if who.peer is None:
            return self._policy.rule_for_secret(who.principal.name)
        return self._policy.rule_for_certificate(who.peer.issuer_id, who.peer.subject_canonical)

    async def _body(self, request: web.BaseRequest, limit: int) -> bytes:
        if (request.content_length or 0) > limit:
            raise MalformedRequest(f"the body has more than {limit} bytes", code="body.too_large")
        try:
            async with asyncio.timeout(self._settings.limits.body_timeout_s):
                return await request.read()
        except TimeoutError:
            raise MalformedRequest(
                "the body did not come in time", code="request.timeout"
            ) from None
        except HTTPRequestEntityTooLarge:
            raise MalformedRequest(
                f"the body has more than {limit} bytes", code="body.too_large"
            ) from None

    async def _submit(
        self, exchange: Exchange, label: Label, priority: Priority
    ) -> EnrollmentAnswered | None:
        who, csr = exchange.who, exchange.csr
        assert who is not None  # noqa: S101 - set by _check
        assert csr is not None  # noqa: S101 - set by _check
        key = enrollment_id(
            csr,
            operation=exchange.operation,
            tenant="",
            label=exchange.label_name,
            principal=who.principal.key,
            predecessor=who.peer.fingerprint if who.peer else b"",
        )
        reenroll = exchange.operation == "simplereenroll"
        exchange.request_id = ids.uuid7()
        message = EnrollmentRequested(
            id=exchange.request_id,
            source=f"est-frontend/{self._settings.instance}",
            time=self._clock.now(),
            correlation_id=exchange.correlation_id,
            traceparent=exchange.traceparent,
            operation="simplereenroll" if reenroll else "simpleenroll",
            label=exchange.label_name,
            group=self._settings.group,
            instance=self._settings.instance,
            issuer=label.issuer,
            priority=priority,
            principal=who.principal,
            csr=csr.der,
            origin=exchange.source(),
            expires_at=self._expiry(label),
        )
        return await self._gateway.submit(key, message)

    def _expiry(self, label: Label) -> dt.datetime | None:
        # Where the client is told 503, nobody comes back for a late certificate.
        if label.when_slow == "pending":
            return None
        return self._clock.now() + dt.timedelta(seconds=self._settings.answer_timeout_s)

    def _answered(
        self, exchange: Exchange, label: Label, answer: EnrollmentAnswered | None
    ) -> web.Response:
        if answer is not None and answer.outcome == "rejected":
            raise rejection(
                answer.kind or "", answer.reason or "refused", answer.code or "request.rejected"
            )
        if answer is not None and answer.certificate is not None:
            self._record(exchange, 200)
            body = encode_response(certs_only([answer.certificate]), label.response_base64)
            return answers.pkcs7(body, answers.CERTS_ONLY, exchange.correlation_id)
        if label.when_slow == "unavailable":
            raise IssuerUnavailable("no answer in time", code="issuer.slow")
        self._record(exchange, 202)
        wait = label.retry_after_s
        if answer is not None and answer.retry_after_s is not None:
            wait = answer.retry_after_s
        return answers.pending(wait, exchange.correlation_id)

    async def _rotation_ack(self, exchange: Exchange, label: Label) -> web.Response:
        """Relay proof that a service uses its new certificate."""
        who = exchange.who = self._authenticator.certificate(exchange.connection, label)
        _check_type(exchange.request, "application/jose")
        body = await self._body(exchange.request, _JWS_LIMIT)
        try:
            jws = body.decode("ascii").strip()
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
            await self._bus.request(
                ack_topic(self._settings.group), encode(ack), timeout_s=_ACK_TIMEOUT_S
            ),
        )
        if not answered.accepted:
            raise rejection(
                answered.kind or "",
                answered.reason or "not accepted",
                answered.code or "ack.refused",
            )
        self._record(exchange, 204)
        return answers.empty(exchange.correlation_id)

    def _record(self, exchange: Exchange, status: int) -> None:
        log.info(
            "request answered",
            extra=fields(
                correlation_id=exchange.correlation_id,
                operation=exchange.operation,
                label=exchange.label_name,
                status=status,
            ),
        )
        self._trail.add(
            traceparent=exchange.traceparent,
            action=f"est.{exchange.operation}",
            phase="outcome",
            outcome="success",
            details={"status": status},
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
        status = answers.status_of(error)
        self._trail.refused(
            exchange.peer,
            error.code,
            reason=error.reason[:500],
            action=f"est.{exchange.operation}",
            details={"status": status},
            **exchange.parts(),
        )
        label = exchange.label
        retry = label.retry_after_s if label else 5
        methods = _METHODS.get(exchange.operation, ())
        return answers.failure(
            error,
            exchange.correlation_id,
            retry_after_s=retry if isinstance(error, Unavailable) else None,
            allow=", ".join(methods) if error.code == "request.method" else None,
        )


def _check_type(request: web.BaseRequest, expected: str) -> None:
    given = request.headers.get("Content-Type", "").partition(";")[0].strip().lower()
    if given != expected:
        raise MalformedRequest(f"send Content-Type: {expected}", code="request.media_type")
