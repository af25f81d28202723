"""Joins est-frontend by hand and gives it a command line."""

from __future__ import annotations

import asyncio
import logging
import sys
from typing import Any

from aiohttp import HttpVersion11, web
from aiohttp.web_protocol import ERROR

from est_frontend import metrics
from est_frontend.audit_trail.trail import SERVICE, AuditTrail
from est_frontend.auth.active_policy import ActivePolicy
from est_frontend.auth.authenticator import Authenticator
from est_frontend.auth.client_certificates import PeerValidator
from est_frontend.auth.http_digest import DigestVerifier
from est_frontend.auth.password_file import PasswordFile
from est_frontend.auth.tokens.access_token import TokenValidator
from est_frontend.auth.tokens.jwks import KeySource
from est_frontend.dispatch import Dispatcher
from est_frontend.enrollment.enroller import Enroller
from est_frontend.enrollment.pending_requests import PendingRequests
from est_frontend.enrollment.server_keygen import KeyGenerator, load_secrets
from est_frontend.enrollment.signer_gateway import SignerGateway
from est_frontend.listener import Listener, TLSListener
from est_frontend.revocation.http_server import CRLServer
from est_frontend.revocation.ocsp_relay import OCSPRelay
from est_frontend.settings import FrontendSettings, TokenIssuerSettings
from est_frontend.signer_state.cache import SignerState
from est_frontend.trust_adoption import TrustAdoptionReporter
from est_frontend.web.server import LimitedServer
from estcore.clock import SystemClock
from estcore.errors import ConfigurationError
from estcore.messages.topics import audit_refusal_topic, ocsp_topic, request_topic
from estcore.pki.profile import Priority
from estcore.policy.document import load_policy
from estcore.runtime.admin import AdminServer
from estcore.runtime.bus import Bus
from estcore.runtime.console import console_script
from estcore.runtime.logs import fields
from estcore.runtime.reload import Reloader, Watched
from estcore.runtime.service import ServiceCommand, run_jobs, stop_on_signals
from estcore.runtime.tracing import Tracing

log = logging.getLogger(__name__)

CLOCK = SystemClock()
_DIGEST_KEY_OCTETS = 32


def check(settings: FrontendSettings) -> None:
    """Read what the settings name, as ``run`` would."""
    load_policy(settings.policy_file)
    TLSListener(settings.listen)
    PasswordFile.load(settings.users_file)
    load_secrets(settings.keygen_secrets_file)
    _digest_key(settings)
    _token_sources(settings)


async def run(settings: FrontendSettings) -> None:
    """Serve until SIGTERM."""
    await serve(settings, TLSListener(settings.listen))


async def serve(  # noqa: PLR0915 - wiring, told in order
    settings: FrontendSettings, door: Listener
) -> None:
    """Serve what comes in by the door until SIGTERM."""
    stop = stop_on_signals()
    live = ActivePolicy(load_policy(settings.policy_file))
    users = PasswordFile.load(settings.users_file)
    tracing = Tracing(settings.telemetry, SERVICE, settings.instance)
    peers = PeerValidator(CLOCK)
    peers.set_truststores(live.policy.truststores)
    state = SignerState(settings.state_folder, peers.set_anchors, CLOCK)
    state.load()
    bus = _Later(settings)
    trail = AuditTrail(bus.bus, settings.trail, CLOCK, settings.instance)
    await trail.open()
    gateway = SignerGateway(
        bus.bus,
        PendingRequests(CLOCK),
        group=settings.group,
        instance=settings.instance,
        answer_timeout_s=settings.answer_timeout_s,
    )
    sources = _token_sources(settings)
    for _, source in sources.values():
        source.load()
    authenticator = Authenticator(
        peers=peers,
        state=state,
        users=users,
        digest=DigestVerifier(users, CLOCK, realm=settings.digest.realm, key=_digest_key(settings)),
        tokens=TokenValidator(sources, CLOCK),
        live=live,
        clock=CLOCK,
        names=lambda: door.names,
    )
    enroller = Enroller(
        settings,
        live=live,
        state=state,
        authenticator=authenticator,
        gateway=gateway,
        keys=KeyGenerator(
            secrets=load_secrets(settings.keygen_secrets_file),
            certificate_file=settings.listen.certificate_file,
            key_file=settings.listen.key_file,
        ),
        clock=CLOCK,
    )
    fetches = TrustAdoptionReporter(bus.bus, state, peers)
    handler = Dispatcher(
        settings,
        live=live,
        state=state,
        authenticator=authenticator,
        enroller=enroller,
        fetches=fetches,
        trail=trail,
        bus=bus.bus,
        tracing=tracing,
    )

    async def report(action: str, details: dict[str, str]) -> None:
        trail.event(action, **details)

    reloader = Reloader(
        _watched(settings, live, door, users, peers),
        report,
        metrics.RELOADS,
        every_s=settings.reload_every_s,
    )
    admin = AdminServer(
        settings.admin,
        {
            "bus": lambda: bus.bus.ready,
            "cacerts": lambda: state.has(
                {issuer for label in live.policy.labels.values() for issuer in label.issuers}
            ),
            "token keys": lambda: all(source.ready for _, source in sources.values()),
            "audit trail": lambda: trail.ready,
        },
    )
    await admin.start()
    crls = _crl_server(settings, state, bus.bus)
    if crls is not None:
        await crls.start()
    server = LimitedServer(
        handler,
        max_connections=settings.listen.max_connections,
        head_timeout_s=settings.limits.head_timeout_s,
        request_factory=_request_factory(settings.limits.max_body_bytes),
        access_log=None,
        keepalive_timeout=settings.listen.idle_timeout_s,
        max_line_size=settings.limits.max_header_bytes,
        max_field_size=settings.limits.max_header_bytes,
        max_headers=64,
        lingering_time=2,
        auto_decompress=False,
    )
    listening = await door.open(server, trail)
    trail.event("service.start", policy_version=live.policy.version)

    async def connect(stopping: asyncio.Event) -> None:
        # Serving /cacerts does not wait for the bus.
        connecting = asyncio.ensure_future(bus.connect())
        stopped = asyncio.ensure_future(stopping.wait())
        await asyncio.wait({connecting, stopped}, return_when=asyncio.FIRST_COMPLETED)
        stopped.cancel()
        if not connecting.done():
            connecting.cancel()
            return
        await connecting
        await gateway.start()
        await state.follow(bus.bus)
        await state.run(stopping)

    async def listen(stopping: asyncio.Event) -> None:
        await stopping.wait()
        admin.stopping = True
        listening.close()
        await server.shutdown(settings.stop_timeout_s / 2)

    try:
        await run_jobs(
            [
                connect,
                listen,
                trail.run,
                fetches.run,
                reloader.run,
                *door.jobs,
                *(s.run for _, s in sources.values()),
            ],
            stop=stop,
            stop_timeout_s=settings.stop_timeout_s,
        )
        trail.event("service.stop")
    finally:
        await trail.close()
        await bus.bus.close()
        await admin.stop()
        if crls is not None:
            await crls.stop()
        await asyncio.to_thread(tracing.close)


def _crl_server(settings: FrontendSettings, state: SignerState, bus: Bus) -> CRLServer | None:
    listen = settings.crl_listen
    if listen is None:
        return None
    relay = OCSPRelay(bus, state, CLOCK) if listen.ocsp else None
    return CRLServer(listen, state, CLOCK, ocsp=relay)


def _watched(
    settings: FrontendSettings,
    live: ActivePolicy,
    door: Listener,
    users: PasswordFile,
    peers: PeerValidator,
) -> list[Watched]:
    def take_policy() -> None:
        policy = load_policy(settings.policy_file)
        peers.set_truststores(policy.truststores)
        live.policy = policy

    watched = [Watched("policy", (settings.policy_file,), take_policy), *door.watched]
    if settings.users_file is not None:
        file = settings.users_file
        watched.append(Watched("users", (file,), lambda: users.replace(PasswordFile.load(file))))
    return watched


def _token_sources(
    settings: FrontendSettings,
) -> dict[str, tuple[TokenIssuerSettings, KeySource]]:
    found: dict[str, tuple[TokenIssuerSettings, KeySource]] = {}
    for issuer in settings.token_issuers:
        if issuer.issuer in found:
            raise ConfigurationError(f"token issuer {issuer.issuer} stands twice")
        if issuer.id in {known.id for known, _ in found.values()}:
            raise ConfigurationError(f"two token issuers have the id {issuer.id}")
        found[issuer.issuer] = (issuer, KeySource(issuer, settings.state_folder))
    return found


def _digest_key(settings: FrontendSettings) -> bytes | None:
    file = settings.digest.key_file
    if file is None:
        return None
    try:
        key = file.read_bytes()
    except OSError as exc:
        raise ConfigurationError(f"cannot read {file}: {exc.strerror}") from exc
    if len(key) < _DIGEST_KEY_OCTETS:
        raise ConfigurationError(f"{file}: {_DIGEST_KEY_OCTETS} octets or more are needed")
    return key


class _Later:
    """A bus that exists from the start and is connected later."""

    def __init__(self, settings: FrontendSettings) -> None:
        self._settings = settings
        self.bus = Bus.unconnected(SERVICE)

    async def connect(self) -> None:
        settings = self._settings
        labels = load_policy(settings.policy_file).labels.values()
        issuers = {issuer for label in labels for issuer in label.issuers}
        rights = [
            audit_refusal_topic(SERVICE, settings.instance),
            *(request_topic(settings.group, i, Priority.NORMAL) for i in sorted(issuers)),
        ]
        if settings.crl_listen is not None and settings.crl_listen.ocsp:
            rights += [ocsp_topic(i) for i in sorted(issuers)]
        await self.bus.open(settings.bus, SERVICE, settings.instance, rights=rights)


def _request_factory(max_body_bytes: int) -> Any:
    def make(
        message: Any, payload: Any, protocol: Any, writer: Any, task: asyncio.Task[None]
    ) -> web.BaseRequest:
        loop = asyncio.get_running_loop()
        if message is ERROR:
            message = message._replace(version=HttpVersion11)
        return web.BaseRequest(
            message, payload, protocol, writer, task, loop, client_max_size=max_body_bytes
        )

    return make


async def migrate(settings: FrontendSettings) -> None:
    """There is no database and no stream of our own; say so."""
    log.info("nothing to migrate", extra=fields(instance=settings.instance))


@console_script
def main() -> None:
    """Entry point of ``est-frontend``."""
    command = ServiceCommand(
        SERVICE,
        prefix="EST_FRONTEND",
        settings=FrontendSettings,
        run=run,
        migrate=migrate,
        check=check,
    )
    sys.exit(command.main())


if __name__ == "__main__":
    main()
