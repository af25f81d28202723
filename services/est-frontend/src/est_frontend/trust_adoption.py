"""Reports to ca-signer which clients have fetched the CA certificates of a rollover.

A client is known when it fetches ``/cacerts`` over a connection with a certificate of the label.
Each is reported once, many in one message, outside the request path. A report that was not
confirmed is repeated; what exceeds the buffer is reported at the client's next fetch.
"""

from __future__ import annotations

import asyncio
import logging
from collections import OrderedDict
from uuid import UUID

from est_frontend import metrics
from est_frontend.auth.client_certificates import PeerValidator
from est_frontend.signer_state.cache import SignerState
from est_frontend.tls.connection import ClientConnection
from estcore.errors import BusUnavailable, MalformedRequest, NotAuthenticated
from estcore.messages.envelope import decode, encode
from estcore.messages.state import MOST_FETCHED, TrustFetchCounted, TrustFetched
from estcore.messages.topics import FETCHED_TOPIC
from estcore.policy.labels import Label
from estcore.runtime.bus import Bus
from estcore.runtime.logs import fields
from estcore.runtime.service import sleep_or_stop

log = logging.getLogger(__name__)

_EVERY_S = 2.0
_WAITING = 50_000
_REMEMBERED = 200_000

Fetch = tuple[UUID, str]
"""Rollover and SHA-256 of the client's certificate."""


class TrustAdoptionReporter:
    """Collects and reports what one process has seen."""

    def __init__(
        self, bus: Bus, state: SignerState, peers: PeerValidator, *, every_s: float = _EVERY_S
    ) -> None:
        self._bus = bus
        self._state = state
        self._peers = peers
        self._every_s = every_s
        self._waiting: dict[Fetch, None] = {}
        self._reported: OrderedDict[Fetch, None] = OrderedDict()

    def note(self, connection: ClientConnection, label: Label) -> None:
        """Remember who got the CA certificates of a label, where a rollover wants to know."""
        rollovers = {i: r for i in label.issuers if (r := self._state.rollover(i)) is not None}
        if not rollovers or len(self._waiting) >= _WAITING:
            return
        try:
            peer = self._peers.identify(connection, label)
        except NotAuthenticated:
            return
        if peer is None or peer.third_party:
            return
        rollover = rollovers.get(peer.issuer_id)
        if rollover is None:
            return
        fetch = (rollover, peer.fingerprint.hex())
        if fetch not in self._reported:
            self._waiting[fetch] = None

    async def run(self, stop: asyncio.Event) -> None:
        """Report until ``stop``."""
        while not await sleep_or_stop(stop, self._every_s):
            await self.flush()

    async def flush(self) -> None:
        """Report everything that is due, as far as the bus allows."""
        while self._waiting:
            rollover = next(iter(self._waiting))[0]
            piece = [f for f in self._waiting if f[0] == rollover][:MOST_FETCHED]
            message = TrustFetched(rollover=rollover, fingerprints=tuple(f[1] for f in piece))
            try:
                answer = await self._bus.request(
                    FETCHED_TOPIC, encode(message), answered_by=("ca-signer",)
                )
                decode(TrustFetchCounted, answer)
            except (BusUnavailable, MalformedRequest) as exc:
                log.warning(
                    "CA certificate downloads not reported",
                    extra=fields(code=exc.code, waiting=len(piece)),
                )
                return
            for fetch in piece:
                del self._waiting[fetch]
                self._reported[fetch] = None
            while len(self._reported) > _REMEMBERED:
                self._reported.popitem(last=False)
            metrics.TRUST_FETCHES.inc(len(piece))
