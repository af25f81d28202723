"""Upstream issuer: its certificates, its plug-in, its concurrency limit and circuit breaker."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from importlib.metadata import entry_points
from typing import cast

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

from ca_signer.circuit_breaker import Breaker
from ca_signer.issuers.issuer import CACertificate, check_chain, check_is_ca, read_certificates
from ca_signer.upstream import metrics
from ca_signer.upstream.plugin import GROUP, Factory, Retryable, Unknown, Upstream
from ca_signer.upstream.settings import UpstreamIssuerSettings
from estcore.clock import monotonic_s
from estcore.errors import ConfigurationError
from estcore.pki.certificate import IssuerCertificate
from estcore.runtime.logs import fields

log = logging.getLogger(__name__)

_STATES = {"closed": 0, "half_open": 1, "open": 2}


class UpstreamIssuer(CACertificate):
    """One issuer whose key an upstream CA holds."""

    def __init__(
        self,
        certificate: IssuerCertificate,
        chain: list[x509.Certificate],
        plugin: Upstream,
        settings: UpstreamIssuerSettings,
    ) -> None:
        super().__init__(certificate, chain)
        self.plugin = plugin
        self.settings = settings
        self.places = asyncio.Semaphore(settings.concurrency)
        self._breaker = Breaker(
            failures=settings.failures,
            open_s=settings.pause_s,
            longest_s=settings.longest_pause_s,
        )

    @property
    def usable(self) -> bool:
        """Whether asking makes sense now."""
        return self._breaker.due(monotonic_s())

    async def admit(self) -> bool:
        """Whether to ask for a certificate now.

        While the breaker is not closed, one caller at a time tries a question that changes
        nothing: a certificate without a request would be one more that a person must look for.
        """
        if not self._tell(self._breaker.admit(monotonic_s())):
            return False
        return self._breaker.state == "closed" or await self._answers()

    async def _answers(self) -> bool:
        try:
            async with asyncio.timeout(self.settings.timeout_s):
                await self.plugin.authorities()
        except (Retryable, Unknown, TimeoutError) as exc:
            log.warning(
                "upstream CA still unavailable",
                extra=fields(issuer=self.issuer_id, error=type(exc).__name__),
            )
            self.failed()
            return False
        return True

    def succeeded(self) -> None:
        """Record that the upstream CA answered."""
        self._breaker.succeeded()
        self._tell(True)

    def failed(self) -> None:
        """It does not answer, or with nothing one can use."""
        self._breaker.failed(monotonic_s())
        self._tell(False)

    def _tell(self, result: bool) -> bool:
        metrics.BREAKER.labels(self.issuer_id).set(_STATES[self._breaker.state])
        return result

    def take_certificates(self) -> None:
        """Read the certificates again.

        Raises:
            ConfigurationError: not good; those read before stay.
        """
        CACertificate.__init__(self, *_certificates(self.settings))

    async def shows_itself(self) -> bool:
        """Ask the upstream CA whether it is the issuer we think.

        Raises:
            Retryable, Unknown: it does not answer.
        """
        authorities = await self.plugin.authorities()
        return self.certificate.certificate in authorities


def load_upstreams(settings: Sequence[UpstreamIssuerSettings]) -> dict[str, UpstreamIssuer]:
    """Read the issuers' certificates and make their plug-ins; nothing is connected yet.

    Raises:
        ConfigurationError: unreadable, inconsistent, or no such plug-in.
    """
    issuers: dict[str, UpstreamIssuer] = {}
    for issuer_settings in settings:
        if issuer_settings.issuer_id in issuers:
            raise ConfigurationError(f"issuer {issuer_settings.issuer_id} stands twice")
        plugin = _plugin(issuer_settings)
        issuers[issuer_settings.issuer_id] = UpstreamIssuer(
            *_certificates(issuer_settings), plugin, issuer_settings
        )
    return issuers


@asynccontextmanager
async def opened(issuers: Mapping[str, UpstreamIssuer]) -> AsyncIterator[None]:
    """The plug-ins at work for as long as the context lasts."""
    async with AsyncExitStack() as stack:
        for issuer in issuers.values():
            await stack.enter_async_context(issuer.plugin)
        yield


def _plugin(settings: UpstreamIssuerSettings) -> Upstream:
    points = entry_points(group=GROUP, name=settings.plugin)
    if len(points) != 1:
        installed = ", ".join(sorted({p.name for p in entry_points(group=GROUP)})) or "none"
        raise ConfigurationError(
            f"{settings.issuer_id}: {len(points)} plug-ins are named {settings.plugin!r} "
            f"(installed: {installed})",
            code="upstream.plugin",
        )
    (point,) = points
    try:
        factory = cast("Factory", point.load())
    except ImportError as exc:
        raise ConfigurationError(
            f"{settings.issuer_id}: the plug-in {settings.plugin!r} cannot be loaded ({exc.name}); "
            "est and vault need estsuite-signer[upstream]",
            code="upstream.plugin",
        ) from exc
    made = factory(dict(settings.options), timeout_s=settings.timeout_s)
    log.info("plug-in loaded", extra=fields(issuer=settings.issuer_id, plugin=point.value))
    return made


def _certificates(
    settings: UpstreamIssuerSettings,
) -> tuple[IssuerCertificate, list[x509.Certificate]]:
    path = settings.certificate_file
    certificate = read_certificates(path)[0]
    chain = read_certificates(settings.chain_file)
    check_is_ca(certificate, path)
    check_chain(certificate, chain, f"{settings.chain_file}: the chain of {settings.issuer_id}")
    try:
        certificate.extensions.get_extension_for_class(x509.SubjectKeyIdentifier)
        key = certificate.public_key()
    except (x509.ExtensionNotFound, ValueError, UnsupportedAlgorithm) as exc:
        raise ConfigurationError(f"{path} has no subjectKeyIdentifier or no usable key") from exc
    if not isinstance(key, ec.EllipticCurvePublicKey | rsa.RSAPublicKey | ed25519.Ed25519PublicKey):
        raise ConfigurationError(f"{path}: EC, RSA and Ed25519 keys can sign")
    return IssuerCertificate(settings.issuer_id, certificate), chain
