"""simpleenroll, simplereenroll, serverkeygen: from the body to what the signer is asked."""

from __future__ import annotations

import datetime as dt
from dataclasses import dataclass, field

from aiohttp import web

from est_frontend.auth.active_policy import ActivePolicy
from est_frontend.auth.authenticator import Authenticated, Authenticator, Credentials
from est_frontend.enrollment.certificate_check import check_certificate
from est_frontend.enrollment.server_keygen import KeyGenerator, named_request
from est_frontend.enrollment.signer_gateway import SignerGateway
from est_frontend.rate_limits import Buckets
from est_frontend.settings import FrontendSettings
from est_frontend.signer_state.cache import SignerState
from est_frontend.tls.channel_binding import check_linking
from est_frontend.web import responses
from est_frontend.web.exchange import Exchange
from est_frontend.web.request_body import check_type, read_body
from estcore import ids
from estcore.clock import Clock
from estcore.errors import (
    IssuerUnavailable,
    NotAuthorized,
    RequestRejected,
    rejection,
)
from estcore.est.certs_only import certs_only
from estcore.est.csr_demands import demands_for
from estcore.est.csrattrs import CSRDemands
from estcore.est.serverkeygen import KeygenRequest, encode_capabilities, read_keygen_request
from estcore.est.transfer import decode_request, encode_response
from estcore.messages.enrollment import EnrollmentAnswered, EnrollmentRequested
from estcore.pki.attributes import read_attributes
from estcore.pki.csr import MAX_CSR_BYTES, CertificationRequest, parse_csr
from estcore.pki.profile import Priority
from estcore.policy.decide import Grant, check_names, check_same_identity, find_rule, grant
from estcore.policy.document import Rule
from estcore.policy.identity import enrollment_id
from estcore.policy.labels import Label, Operation
from estcore.runtime.tracing import step


@dataclass(frozen=True)
class Route:
    """Where a request goes."""

    issuer: str
    priority: Priority
    tenant: str | None = None
    """Whose it is, where that is known here: at first enrollments."""


def _route(enrollment_grant: Grant, csr: CertificationRequest) -> Route:
    issuer = enrollment_grant.label.issuer_for(enrollment_grant.profile, csr.key_algorithm)
    return Route(issuer, enrollment_grant.priority, enrollment_grant.rule.owner.tenant)


@dataclass(kw_only=True, eq=False, slots=True)
class Enroller:
    """Authenticates, reads, refuses early, asks the signer, answers."""

    settings: FrontendSettings
    active_policy: ActivePolicy
    state: SignerState
    authenticator: Authenticator
    gateway: SignerGateway
    key_generator: KeyGenerator
    clock: Clock
    _rates: Buckets = field(init=False)

    def __post_init__(self) -> None:
        rates = self.settings.rates
        self._rates = Buckets("identity", rate=rates.identity_per_s, burst=rates.identity_burst)

    async def enroll(self, exchange: Exchange, label: Label) -> web.Response | None:
        """Answer simpleenroll or simplereenroll; None when the client must retry (202 Accepted)."""
        reenroll = exchange.operation == "simplereenroll"
        with step("authenticate"):
            who = await self._authenticate(exchange, label, own=reenroll)
        der = await self._der(exchange, label)
        exchange.csr = csr = parse_csr(der)
        self._link(exchange, label, csr.attributes)
        if reenroll:
            route = self._check_renewal(exchange, label, who, csr)
        else:
            route = _route(self._check_first(exchange, who, csr), csr)
        certificate = await self._certificate(exchange, label, route)
        if certificate is None:
            return None
        body = encode_response(certs_only([certificate]), exchange.written_form(label))
        return responses.pkcs7(body, responses.CERTS_ONLY, exchange.correlation_id)

    async def demands(self, exchange: Exchange, label: Label) -> CSRDemands:
        """Return what a CSR on the label must have, for this client if it says who it is.

        Authentication is optional (RFC 7030 section 4.5.1); bad credentials get the general answer.

        Raises:
            IssuerUnavailable: the label's profiles are not known here yet.
        """
        name, names = label.profiles[0], None
        credentials = Credentials.of(exchange.request, exchange.connection, exchange.peer)
        try:
            exchange.who = await self.authenticator.any_of(credentials, label)
            enrollment_grant = grant(
                self.active_policy.policy,
                self._rule(exchange.who),
                exchange.label_name,
                claims=exchange.who.principal.claims,
            )
            name, names = enrollment_grant.profile, enrollment_grant.rule.names
        except RequestRejected:
            exchange.who = None
        profile = self.state.profile(name)
        if profile is None:
            raise IssuerUnavailable("the profile is not here yet", code="profile.unavailable")
        return demands_for(profile, names, linking_required=label.linking == "require")

    async def generate(self, exchange: Exchange, label: Label) -> web.Response | None:
        """Answer serverkeygen; None when the client should retry (202 Accepted)."""
        who = await self._authenticate(exchange, label, own=False)
        request = read_keygen_request(await self._der(exchange, label))
        self._link_generated(exchange, label, request)
        enrollment_grant = self._grant(exchange, who)
        # Names and open tickets first: a key costs up to seconds, and may be of no use.
        named = named_request(request)
        exchange.subject = named.subject_text
        self._check_names(named, enrollment_grant)
        wait_s = self._open_ticket(exchange, who, named, _route(enrollment_grant, named))
        if wait_s is not None:
            exchange.retry_after_s = wait_s
            return None
        profile = self.state.profile(enrollment_grant.profile)
        key, csr, protecting = await self.key_generator.make(request, profile, who.peer)
        exchange.csr = csr
        if request.protection is not None and not request.protection.symmetric:
            exchange.key_capabilities = encode_capabilities(request.protection.capabilities)
        certificate = await self._certificate(exchange, label, _route(enrollment_grant, csr))
        if certificate is None:
            return None
        body = self.key_generator.answer(
            request, key, protecting, certificate, exchange.written_form(label)
        )
        return responses.generated(body, exchange.correlation_id)

    async def _authenticate(self, exchange: Exchange, label: Label, *, own: bool) -> Authenticated:
        credentials = Credentials.of(exchange.request, exchange.connection, exchange.peer)
        if own:
            who = await self.authenticator.own_certificate(credentials, label)
        else:
            who = await self.authenticator.any_of(credentials, label)
        exchange.who = who
        self._rates.take(who.principal.key)
        return who

    async def _der(self, exchange: Exchange, label: Label) -> bytes:
        check_type(exchange.request, "application/pkcs10")
        limits = self.settings.limits
        body = await read_body(
            exchange.request, limits.max_body_bytes, timeout_s=limits.body_timeout_s
        )
        return decode_request(body, max_der_bytes=MAX_CSR_BYTES, lenient=label.lenient_bodies)

    def _link(self, exchange: Exchange, label: Label, attributes: bytes) -> None:
        if attributes or label.linking == "require":
            linked_attributes = read_attributes(attributes)
            exchange.linked = check_linking(linked_attributes, exchange.connection, label)

    def _link_generated(self, exchange: Exchange, label: Label, request: KeygenRequest) -> None:
        exchange.linked = check_linking(request.attributes, exchange.connection, label)

    def _grant(self, exchange: Exchange, who: Authenticated) -> Grant:
        return grant(
            self.active_policy.policy,
            self._rule(who),
            exchange.label_name,
            operation=exchange.operation,
            claims=who.principal.claims,
        )

    def _check_first(
        self, exchange: Exchange, who: Authenticated, csr: CertificationRequest
    ) -> Grant:
        enrollment_grant = self._grant(exchange, who)
        self._check_names(csr, enrollment_grant)
        return enrollment_grant

    def _check_names(self, csr: CertificationRequest, enrollment_grant: Grant) -> None:
        owner = enrollment_grant.rule.owner
        profile = self.state.profile(enrollment_grant.profile)
        check_names(csr, enrollment_grant.rule.names, profile, (owner.tenant, owner.service))

    def _check_renewal(
        self, exchange: Exchange, label: Label, who: Authenticated, csr: CertificationRequest
    ) -> Route:
        peer = who.peer
        assert peer is not None  # noqa: S101 - authenticated by certificate
        rule = self._rule(who) if csr.subject_canonical != peer.subject_canonical else None
        if rule is not None and rule.registrar:
            # A registration authority renews for others; the signer finds the predecessor.
            renewal_grant = grant(
                self.active_policy.policy, rule, exchange.label_name, operation="simplereenroll"
            )
            self._check_names(csr, renewal_grant)
            return _route(renewal_grant, csr)
        check_same_identity(csr, peer.certificate)
        # Who signed the certificate signs its renewal.
        return Route(peer.issuer_id, label.priority)

    def _rule(self, who: Authenticated) -> Rule | None:
        principal = who.principal
        by_certificate = principal.method == "certificate" and who.peer is not None
        subject = who.peer.certificate.subject if by_certificate and who.peer else None
        return find_rule(
            self.active_policy.policy,
            method=principal.method,
            name=principal.name,
            claims=principal.claims,
            subject=subject,
        )

    async def _certificate(self, exchange: Exchange, label: Label, route: Route) -> bytes | None:
        answer = await self._ask(exchange, label, route)
        if answer is not None and answer.outcome == "rejected":
            raise rejection(
                answer.kind or "", answer.reason or "refused", answer.code or "request.rejected"
            )
        if answer is not None and answer.certificate is not None:
            assert exchange.csr is not None  # noqa: S101 - read before
            check_certificate(
                answer.certificate,
                exchange.csr,
                self.state.cacerts(route.issuer),
                correlation_id=exchange.correlation_id,
            )
            exchange.issued = answer.request_id == exchange.request_id
            return answer.certificate
        if answer is not None and answer.retry_after_s is not None:
            exchange.retry_after_s = answer.retry_after_s
        elif label.when_slow == "unavailable":
            raise IssuerUnavailable("no answer in time", code="issuer.slow")
        return None

    async def _ask(
        self, exchange: Exchange, label: Label, route: Route
    ) -> EnrollmentAnswered | None:
        who, csr = exchange.who, exchange.csr
        assert who is not None  # noqa: S101 - authenticated before
        assert csr is not None  # noqa: S101 - read before
        exchange.request_id = ids.uuid7()
        wait_s = self._open_ticket(exchange, who, csr, route)
        if wait_s is not None:
            return EnrollmentAnswered(
                request_id=exchange.request_id, outcome="pending", retry_after_s=wait_s
            )
        generated = exchange.operation == "serverkeygen"
        key = enrollment_id(
            csr,
            operation=exchange.operation,
            tenant="",
            label=exchange.label_name,
            principal=who.principal.key,
            # A generated key is known to this request alone: its answer is not shared.
            predecessor=exchange.request_id.encode()
            if generated or who.single_use_claims
            else who.peer.fingerprint
            if who.peer
            else b"",
        )
        message = EnrollmentRequested(
            id=exchange.request_id,
            source=f"est-frontend/{self.settings.instance}",
            time=self.clock.now(),
            correlation_id=exchange.correlation_id,
            traceparent=exchange.traceparent,
            operation=_operation(exchange.operation),
            label=exchange.label_name,
            group=self.settings.group,
            instance=self.settings.instance,
            issuer=route.issuer,
            priority=route.priority,
            principal=who.principal,
            csr=csr.der,
            claims=who.single_use_claims,
            linked=exchange.linked,
            key_capabilities=exchange.key_capabilities,
            origin=exchange.source(),
            expires_at=self._expiry(label, generated=generated),
        )
        with step("await the signer"):
            return await self.gateway.submit(key, message)

    def _open_ticket(
        self, exchange: Exchange, who: Authenticated, csr: CertificationRequest, route: Route
    ) -> int | None:
        """Return how long the client has to wait still; None where the signer is to be asked."""
        if route.tenant is None or who.single_use_claims or exchange.operation == "simplereenroll":
            return None
        if not self.gateway.has_pending:
            return None
        ticket = enrollment_id(
            csr,
            operation=exchange.operation,
            tenant=route.tenant,
            label=exchange.label_name,
            principal=who.principal.key,
        )
        return self.gateway.wait_s(ticket)

    def _expiry(self, label: Label, *, generated: bool) -> dt.datetime | None:
        # Where the client got 503, or its key is gone, a late certificate is of no use.
        if label.when_slow == "pending" and not generated:
            return None
        return self.clock.now() + dt.timedelta(seconds=self.settings.answer_timeout_s)


def _operation(name: str) -> Operation:
    match name:
        case "simpleenroll" | "simplereenroll" | "serverkeygen":
            return name
        case _:
            raise NotAuthorized(f"{name} enrolls nothing", code="request.not_implemented")
