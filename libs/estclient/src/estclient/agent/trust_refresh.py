"""Keeps the CA certificates of an agent's credential fresh, so that a new root is there in time.

``/cacerts`` is asked at intervals, with the credential, which is how the operator of a rollover
knows that this service has the new trust. What comes is taken up only as far as the trust of
before certifies it (``estclient.est.trust_anchors``).

``trust_file`` has the trust anchors for the *server*; roots that lead on from one in that file
count as well, and are kept, since what links them leaves ``/cacerts`` when the old root does.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Callable

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from estclient.agent.bundle import Bundle
from estclient.agent.credential_store import CredentialStore
from estclient.agent.generation_files import read_certificates
from estclient.agent.settings import AgentSettings
from estclient.errors import ESTClientError
from estclient.est.client import ESTClient
from estclient.est.trust_anchors import UNREADABLE, Certificates, take_up, trusted_roots
from estcore.clock import Clock, monotonic_s
from estcore.errors import ConfigurationError, in_words
from estcore.runtime.logs import fields

log = logging.getLogger(__name__)


class TrustKeeper:
    """The trust of one agent."""

    def __init__(self, settings: AgentSettings, store: CredentialStore, clock: Clock) -> None:
        self._file = settings.server.trust_file
        self._every_s = settings.cacerts_every_s
        self._store = store
        self._clock = clock
        self._due_at = self._later()

    @property
    def seconds_left(self) -> float:
        """How long until the next fetch."""
        return max(self._due_at - monotonic_s(), 0)

    def for_server(self) -> bytes:
        """Return the trust anchors for the server, PEM.

        Raises:
            ConfigurationError: the trust file cannot be read.
        """
        certificates = dict.fromkeys((*self._configured(), *self._store.server_roots()))
        return b"".join(c.public_bytes(Encoding.PEM) for c in certificates)

    async def first(self, client: ESTClient) -> Certificates:
        """Return what a server shows to a client that has no credential yet.

        The download is authenticated by the trust file, so it replaces what was kept.
        """
        received = await client.cacerts()
        self._keep_server_roots(received)
        return tuple(received)

    async def renewed(self, client: ESTClient, current: Bundle) -> Certificates:
        """Return the CA certificates for a renewed credential; those of before if none come."""
        try:
            return await self._fetch(client, current)
        except ESTClientError as exc:
            log.warning("keeping the previous CA certificates", extra=fields(error=exc.reason))
            return current.authorities

    async def refreshed(self, bundle: Bundle, client: Callable[[], ESTClient]) -> Bundle:
        """Return the bundle with the CA certificates of now, where it is time to look."""
        if self.seconds_left > 0:
            return bundle
        self._due_at = self._later()
        try:
            authorities = await self._fetch(client(), bundle)
            if set(authorities) == set(bundle.authorities):
                return bundle
            changed = self._store.replace_authorities(bundle, authorities, now=self._clock.now())
        except ESTClientError as exc:
            log.warning("keeping the previous CA certificates", extra=fields(error=exc.reason))
            return bundle
        log.info("CA certificates changed", extra=fields(certificates=len(authorities)))
        return changed

    async def _fetch(self, client: ESTClient, current: Bundle) -> Certificates:
        received = await client.cacerts()
        adopted = take_up(current.authorities, received, now=self._clock.now())
        if len(adopted) < len(set(received)):
            untrusted = len(set(received)) - len(adopted)
            log.warning("CA certificates not trusted", extra=fields(certificates=untrusted))
        self._keep_server_roots(received)
        return adopted

    def _keep_server_roots(self, received: list[x509.Certificate]) -> None:
        configured, stored = self._configured(), self._store.server_roots()
        roots = trusted_roots((*configured, *stored), received, now=self._clock.now())
        new = [root for root in roots if root not in configured and root not in stored]
        if new:
            self._store.keep_server_roots((*stored, *new))

    def _configured(self) -> Certificates:
        try:
            return tuple(read_certificates(self._file.read_bytes()))
        except OSError as exc:
            raise ConfigurationError(f"cannot read certificates: {in_words(exc)}") from exc
        except UNREADABLE as exc:
            raise ConfigurationError(f"cannot read certificates from {self._file}: {exc}") from exc

    def _later(self) -> float:
        # Spread, so that a fleet started together does not ask together.
        return monotonic_s() + self._every_s * random.uniform(0.5, 1)  # noqa: S311 - spreading
