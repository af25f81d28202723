"""Composition of a front end: build its parts, start them in order, stop them in reverse.

``est-frontend`` and ``est-frontend-srp``, another distribution, differ in their listener only: both
call ``check``, ``migrate`` and ``serve``.
"""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass
from typing import Any

from est_frontend import metrics
from est_frontend.audit_trail.trail import SERVICE, AuditTrail
from est_frontend.auth.assembly import Authentication, digest_key, token_sources
from est_frontend.auth.password_file import PasswordFile
from est_frontend.dispatch import Dispatcher
from est_frontend.enrollment.enroller import Enroller
from est_frontend.enrollment.pending_requests import PendingRequests
from est_frontend.enrollment.renewed_certificate import RenewedCertificateAnswers
from est_frontend.enrollment.server_keygen import KeyGenerator, load_secrets
from est_frontend.enrollment.signer_gateway import SignerGateway
from est_frontend.listener import Listener, TLSListener
from est_frontend.renewal_info.answer import RenewalInfoAnswers
from est_frontend.renewal_info.follower import RenewalInfoFollower
from est_frontend.renewal_info.store import RenewalInfoStore
from est_frontend.revocation.http_server import CRLServer
from est_frontend.revocation.ocsp_relay import OCSPRelay
from est_frontend.settings import FrontendSettings
from est_frontend.signer_state.cache import SignerState
from est_frontend.trust_adoption import TrustAdoptionReporter
from est_frontend.web.server import LimitedServer, request_factory
from estcore.clock import SystemClock
from estcore.messages.topics import audit_refusal_topic, ocsp_topic, request_topic
from estcore.pki.profile import Priority
from estcore.policy.document import load_policy
from estcore.runtime.admin import AdminServer
from estcore.runtime.boot import Boot
from estcore.runtime.bus import Bus, senders_of
from estcore.runtime.certificate_expiry import CertificateExpiry
from estcore.runtime.logs import fields
from estcore.runtime.message_keys import message_keys
from estcore.runtime.reload import Reloader
from estcore.runtime.service import run_jobs, stop_on_signals
from estcore.runtime.stream_probe import StreamProbe
from estcore.runtime.tracing import Tracing

log = logging.getLogger(__name__)

CLOCK = SystemClock()


@dataclass(frozen=True)
class App:
    """The parts of a front end that run, before anything listens."""

    settings: FrontendSettings
    listener: Listener
    authentication: Authentication
    state: SignerState
    bus: Bus
    streams: StreamProbe
    trail: AuditTrail
    gateway: SignerGateway
    adoption: TrustAdoptionReporter
    renewal_info: RenewalInfoFollower
    dispatcher: Dispatcher
    tracing: Tracing

    def ready_checks(self) -> dict[str, Any]:
        """Return what has to hold for ``/readyz``, by name.

        All front ends lose the bus together. One that reached it stays ready without it, so that
        clients get ``/cacerts``, and 503 with Retry-After instead of a refused connection.
        """
        return {
            "bus": lambda: (
                self.bus.violation is None and (self.streams.reached or self.bus.connected)
            ),
            "streams": lambda: self.streams.reached,
            "clock": lambda: self.state.clock_check.known and self.state.clock_check.right,
            "cacerts": lambda: self.state.has(
                {
                    issuer
                    for label in self.authentication.active_policy.policy.labels.values()
                    for issuer in label.issuers
                }
            ),
            "enrollment secrets": lambda: (
                self.state.has_secrets
                or not any(
                    label.offers("secret")
                    for label in self.authentication.active_policy.policy.labels.values()
                )
            ),
            "token keys": lambda: all(
                source.ready for _, source in self.authentication.token_sources.values()
            ),
            "audit trail": lambda: self.trail.ready,
        }

    async def connect(self, stop: asyncio.Event) -> None:
        """Connect to the bus, then follow the signer's state; /cacerts is served before."""
        connecting = asyncio.ensure_future(_connect(self.bus, self.settings))
        stopped = asyncio.ensure_future(stop.wait())
        await asyncio.wait({connecting, stopped}, return_when=asyncio.FIRST_COMPLETED)
        stopped.cancel()
        if not connecting.done():
            connecting.cancel()
            return
        await connecting
        await self.gateway.start()
        await self.state.follow(self.bus)
        await self.state.run(stop)

    def reloader(self) -> Reloader:
        """Return the job that reloads changed files; every change is audited."""

        async def report(action: str, details: dict[str, str]) -> None:
            self.trail.event(action, **details)

        return Reloader(
            [
                *self.authentication.watched(self.settings),
                *self.listener.watched,
                message_keys(self.bus, self.settings.bus),
            ],
            report,
            metrics.RELOADS,
            every_s=self.settings.reload_every_s,
        )


def build_app(settings: FrontendSettings, listener: Listener) -> App:
    """Read what the settings name and join the parts; nothing runs yet.

    Raises:
        ConfigurationError: a file cannot be read or is inconsistent.
    """
    authentication = Authentication.load(settings, CLOCK)
    tracing = Tracing(settings.telemetry, SERVICE, settings.instance)
    state = SignerState(
        settings.state_folder,
        authentication.peers.set_anchors,
        CLOCK,
        senders_of(settings.bus),
    )
    state.load()
    bus = Bus.unconnected(SERVICE)
    boot = Boot.begin(settings.state_folder)
    trail = AuditTrail(
        bus, settings.trail, CLOCK, group=settings.group, instance=settings.instance, boot=boot
    )
    gateway = SignerGateway(
        bus=bus,
        pending=PendingRequests(CLOCK),
        group=settings.group,
        instance=settings.instance,
        answer_timeout_s=settings.answer_timeout_s,
    )
    authenticator = authentication.authenticator(settings, state, CLOCK, lambda: listener.names)
    key_generator = KeyGenerator(
        secrets=load_secrets(settings.keygen_secrets_file),
        certificate_file=settings.listen.certificate_file,
        key_file=settings.listen.key_file,
        most=settings.limits.max_key_generations,
    )
    enroller = Enroller(
        settings=settings,
        active_policy=authentication.active_policy,
        state=state,
        authenticator=authenticator,
        gateway=gateway,
        key_generator=key_generator,
        clock=CLOCK,
    )
    adoption = TrustAdoptionReporter(bus, state, authentication.peers)
    store = RenewalInfoStore(settings.state_folder / "renewal-info.sqlite")
    follower = RenewalInfoFollower(bus, store, settings.renewal_info, CLOCK)
    dispatcher = Dispatcher(
        settings=settings,
        active_policy=authentication.active_policy,
        state=state,
        authenticator=authenticator,
        enroller=enroller,
        adoption=adoption,
        renewal_info=RenewalInfoAnswers(
            follower,
            settings.renewal_info,
            CLOCK,
            lambda: state.clock_check.known and state.clock_check.right,
        ),
        renewed=RenewedCertificateAnswers(
            settings=settings, state=state, authenticator=authenticator, bus=bus
        ),
        trail=trail,
        bus=bus,
        tracing=tracing,
        names=lambda: listener.names,
    )
    return App(
        settings=settings,
        listener=listener,
        authentication=authentication,
        state=state,
        bus=bus,
        streams=StreamProbe(bus, SERVICE, settings.group, state.clock_check),
        trail=trail,
        gateway=gateway,
        adoption=adoption,
        renewal_info=follower,
        dispatcher=dispatcher,
        tracing=tracing,
    )


def check(settings: FrontendSettings) -> None:
    """Read what the settings name, as ``run`` would."""
    load_policy(settings.policy_file)
    TLSListener(settings.listen)
    PasswordFile.load(settings.users_file)
    load_secrets(settings.keygen_secrets_file)
    digest_key(settings)
    token_sources(settings)


async def migrate(settings: FrontendSettings) -> None:
    """There is no database and no stream of our own; say so."""
    log.info("nothing to migrate", extra=fields(instance=settings.instance))


async def serve(settings: FrontendSettings, listener: Listener) -> None:
    """Serve connections of the listener until SIGTERM."""
    stop = stop_on_signals()
    app = build_app(settings, listener)
    await app.trail.open()
    admin = AdminServer(settings.admin, app.ready_checks())
    await admin.start()
    crls = _crl_server(settings, app.state, app.bus)
    if crls is not None:
        await crls.start()
    server = _http_server(app)
    listening = await listener.open(server, app.trail)
    app.trail.event("service.start", policy_version=app.authentication.active_policy.policy.version)

    async def listen(stopping: asyncio.Event) -> None:
        await stopping.wait()
        admin.stopping = True
        listening.close()
        await server.shutdown(settings.stop_timeout_s / 2)

    try:
        await run_jobs(
            [
                app.connect,
                app.streams.run,
                CertificateExpiry(settings).run,
                listen,
                app.trail.run,
                app.adoption.run,
                app.renewal_info.run,
                app.reloader().run,
                *listener.jobs,
                *(source.run for _, source in app.authentication.token_sources.values()),
            ],
            stop=stop,
            stop_timeout_s=settings.stop_timeout_s,
        )
        app.trail.event("service.stop")
    finally:
        await app.trail.close()
        await app.bus.close()
        await admin.stop()
        if crls is not None:
            await crls.stop()
        await asyncio.to_thread(app.tracing.close)


def _http_server(app: App) -> LimitedServer:
    settings = app.settings
    return LimitedServer(
        app.dispatcher,
        max_connections=settings.listen.max_connections,
        head_timeout_s=settings.limits.head_timeout_s,
        request_factory=request_factory(settings.limits.max_body_bytes),
        access_log=None,
        keepalive_timeout=settings.listen.idle_timeout_s,
        max_line_size=settings.limits.max_header_bytes,
        max_field_size=settings.limits.max_header_bytes,
        max_headers=64,
        lingering_time=2,
        auto_decompress=False,
    )


async def _connect(bus: Bus, settings: FrontendSettings) -> None:
    labels = load_policy(settings.policy_file).labels.values()
    issuers = {issuer for label in labels for issuer in label.issuers}
    rights = [
        audit_refusal_topic(SERVICE, settings.group),
        *(request_topic(settings.group, i, Priority.NORMAL) for i in sorted(issuers)),
    ]
    if settings.crl_listen is not None and settings.crl_listen.ocsp:
        rights += [ocsp_topic(i) for i in sorted(issuers)]
    await bus.open(settings.bus, SERVICE, settings.instance, rights=rights)


def _crl_server(settings: FrontendSettings, state: SignerState, bus: Bus) -> CRLServer | None:
    listen = settings.crl_listen
    if listen is None:
        return None
    relay = OCSPRelay(bus, state, CLOCK, listen) if listen.ocsp else None
    return CRLServer(listen, state, CLOCK, ocsp=relay)
