"""Publish the state that front ends need, and follow the ledger's state of issuers.

Every signer publishes at start, after a change of policy, profiles, generations or the key of its
messages, and every five minutes, since the stream may have been lost or restored. Front ends keep
the newest message by the ledger's clock, so a signer that reads late takes nothing back.
"""

from __future__ import annotations

import asyncio
import datetime as dt
import logging

from ca_signer import metrics
from ca_signer.issuers.cacerts import cacerts_of, own_cacerts
from ca_signer.issuers.generations import Generations, read_generations
from ca_signer.publishing.secret_verifiers import SecretPublisher
from ca_signer.revocation.publisher import RevocationPublisher
from ca_signer.settings import SERVICE
from ca_signer.signing.issuers import SigningContext
from estcore.clock import monotonic_s
from estcore.errors import Unavailable
from estcore.messages import topics
from estcore.messages.envelope import encode
from estcore.messages.state import CACertificates, PolicyState, ProfilesState
from estcore.runtime.bus import Bus, Outgoing
from estcore.runtime.database import Database
from estcore.runtime.logs import fields
from estcore.runtime.notices import LOOK_AGAIN_S, Notice

log = logging.getLogger(__name__)

_STATE_EVERY_S = 300


class FrontendStatePublisher:
    """Publishes the state of ``PKI_STATE``; any number may run."""

    def __init__(
        self,
        bus: Bus,
        database: Database,
        decision_context: SigningContext,
        *,
        look_every_s: float = LOOK_AGAIN_S,
        notice: Notice | None = None,
    ) -> None:
        """``notice`` comes when a generation or a rollover changed.

        Without it, or while no connection listens, the ledger is looked at every ``look_every_s``
        seconds, one at most.
        """
        self._bus = bus
        self._database = database
        self._decision_context = decision_context
        self._look_every_s = min(look_every_s, LOOK_AGAIN_S)
        self._notice = notice or Notice()
        self._due = asyncio.Event()

    def changed(self) -> None:
        """Say that policy, profiles or the key of messages are others."""
        self._due.set()
        self._notice.set()

    async def run(self, stop: asyncio.Event) -> None:
        """Follow the ledger and publish until ``stop``."""
        published_at = monotonic_s()
        while not await self._notice.wait(
            stop, work_open=self._due.is_set(), again_s=self._look_every_s
        ):
            late = monotonic_s() - published_at > _STATE_EVERY_S
            try:
                if await self.follow() or self._due.is_set() or late:
                    self._due.clear()
                    await self.publish()
                    published_at = monotonic_s()
            except Unavailable as exc:
                self._due.set()
                log.warning("state not published", extra=fields(code=exc.code))

    async def follow(self) -> bool:
        """Adopt the generations in the ledger; True when they changed.

        Raises:
            LedgerUnavailable: PostgreSQL is unavailable.
        """
        before = self._decision_context.generations
        now = self._decision_context.generations = await read_generations(self._database)
        for generation in now.by_issuer_id.values():
            gauge = metrics.GENERATION.labels(generation.family, generation.issuer_id)
            gauge.set(generation.state == "signing")
        return (before.by_issuer_id, before.watched) != (now.by_issuer_id, now.watched)

    async def publish(self) -> None:
        """Publish CA certificates, profiles, verifiers, revoked serials, the policy's version.

        Raises:
            Unavailable: database or bus unavailable.
        """
        await self.follow()
        decision_context = self._decision_context
        now = decision_context.generations.as_of or decision_context.clock.now()
        policy = PolicyState(version=decision_context.policy.version, updated_at=now)
        profiles = ProfilesState(
            version=decision_context.profiles.version,
            updated_at=now,
            profiles=tuple(decision_context.profiles.profiles.values()),
        )
        await self._bus.publish_confirmed(
            [
                *(
                    Outgoing(topics.cacerts_topic(m.issuer_id), encode(m))
                    for m in _cacerts(decision_context, decision_context.generations, now)
                ),
                Outgoing(topics.POLICY_TOPIC, encode(policy)),
                Outgoing(topics.PROFILES_TOPIC, encode(profiles)),
            ]
        )
        await SecretPublisher(self._database, self._bus, decision_context.clock).publish()
        revocations = RevocationPublisher(self._database, self._bus, SERVICE)
        for issuer_id in decision_context.issuers:
            await revocations.publish(issuer_id)


def _cacerts(
    decision_context: SigningContext, generations: Generations, now: dt.datetime
) -> list[CACertificates]:
    by_family = [
        cacerts_of(family, decision_context.issuers, generations, now)
        for family in decision_context.families
    ]
    by_generation = [
        own_cacerts(issuer, now)
        for issuer in decision_context.issuers.values()
        if issuer.family != issuer.issuer_id
    ]
    return [*(message for message in by_family if message is not None), *by_generation]
