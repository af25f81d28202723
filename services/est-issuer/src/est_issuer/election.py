"""Leader election by a Lease (coordination.k8s.io/v1): one replica works, the others stand by.

EST has no way to say "the same request as before", and only some servers recognise one. So
requests are sent by one replica at a time.

- Whether a lease is still held is measured with this machine's own clock, from the moment its
  renewal was seen: clocks of replicas need not agree.
- A leader that could not renew for half of the duration stops its work, before the lease ends.
- A replica that stops gives the lease back, so that the next one need not wait.
"""

from __future__ import annotations

import asyncio
import datetime as dt
import logging
import uuid
from collections.abc import Awaitable, Callable
from typing import Any, Literal

from est_issuer.api import KubernetesAPI
from est_issuer.errors import APIRefused, APIUnavailable, ObjectChanged, ObjectMissing
from est_issuer.kinds import LEASES, Key
from est_issuer.metrics import LEADER
from estcore.clock import Clock, monotonic_s
from estcore.runtime.logs import Repetition, fields
from estcore.runtime.service import sleep_or_stop

log = logging.getLogger(__name__)
_unreachable = Repetition(log, "the lease cannot be read or written")
_TRIES = 6
"""Renewals within one duration."""

State = Literal["held", "lost", "unknown"]
Work = Callable[[asyncio.Event], Awaitable[None]]


class Election:
    """One candidate."""

    def __init__(
        self, api: KubernetesAPI, key: Key, name: str, duration_s: int, clock: Clock
    ) -> None:
        self._api, self._key = api, key
        # A process that replaces one of the same name waits for its lease to end.
        self._identity = f"{name}_{uuid.uuid4()}"
        self._duration_s, self._clock = duration_s, clock
        self._every_s = duration_s / _TRIES
        self._seen: tuple[object, float] = (None, -1e9)
        """What the lease said last, and when that was first seen."""

    async def run(self, stop: asyncio.Event, work: Work) -> None:
        """Work whenever this replica is the leader, until ``stop``.

        ``work`` gets an event that is set when it has to end; after a lost lease it is cancelled.
        """
        while not stop.is_set():
            if await self._state() == "held":
                await self._lead(stop, work)
            await sleep_or_stop(stop, self._every_s)

    async def _lead(self, stop: asyncio.Event, work: Work) -> None:
        log.info("this replica is the leader", extra=fields(lease=str(self._key)))
        LEADER.set(1)
        ending = asyncio.Event()
        task = asyncio.ensure_future(work(ending))
        stopped = asyncio.ensure_future(stop.wait())
        try:
            renewed, first = monotonic_s(), asyncio.FIRST_COMPLETED
            while not task.done():
                await asyncio.wait([task, stopped], timeout=self._every_s, return_when=first)
                if stop.is_set():
                    break
                begun, state = monotonic_s(), await self._state()
                renewed = begun if state == "held" else renewed
                if state == "lost" or monotonic_s() - renewed > self._duration_s / 2:
                    log.error("the lease was lost", extra=fields(lease=str(self._key)))
                    task.cancel()
                    break
        finally:
            LEADER.set(0)
            stopped.cancel()
            ending.set()
            # In hand are requests to EST servers, each of which ends within its timeout.
            await asyncio.wait([task], timeout=None if stop.is_set() else 1)
            task.cancel()
            await self._release()
        if not task.cancelled() and task.done():
            task.result()

    async def _state(self) -> State:
        """Take or renew the lease; a call that hangs ends before the lease does."""
        try:
            async with asyncio.timeout(self._every_s):
                return await self._taken()
        except TimeoutError:
            _unreachable.warn(reason="no answer in time", code="kubernetes.unavailable")
        except (APIRefused, APIUnavailable) as exc:
            _unreachable.warn(reason=exc.reason, code=exc.code)
        return "unknown"

    async def _taken(self) -> State:
        try:
            lease = await self._api.get(LEASES, self._key)
        except ObjectMissing:
            return await self._write(None)
        spec = lease.get("spec") or {}
        state = (spec.get("holderIdentity"), spec.get("renewTime"))
        if state != self._seen[0]:
            self._seen = (state, monotonic_s())
        holder = spec.get("holderIdentity") or ""
        held_s = monotonic_s() - self._seen[1]
        if holder not in {"", self._identity} and held_s < self._duration_s:
            return "lost"
        return await self._write(lease)

    async def _write(self, lease: dict[str, Any] | None) -> State:
        before = (lease or {}).get("spec") or {}
        now = _micro_time(self._clock.now())
        again = before.get("holderIdentity") == self._identity
        spec = {
            "holderIdentity": self._identity,
            "leaseDurationSeconds": self._duration_s,
            "acquireTime": before.get("acquireTime") if again else now,
            "renewTime": now,
            "leaseTransitions": int(before.get("leaseTransitions") or 0) + (not again),
        }
        return await self._stored(lease, spec)

    async def _release(self) -> None:
        """Give the lease back, if it is this replica's."""
        try:
            async with asyncio.timeout(self._every_s):
                lease = await self._api.get(LEASES, self._key)
                spec = lease.get("spec") or {}
                if spec.get("holderIdentity") == self._identity:
                    await self._stored(lease, {**spec, "holderIdentity": ""})
        except (TimeoutError, APIRefused, APIUnavailable):
            return  # it ends by itself

    async def _stored(self, lease: dict[str, Any] | None, spec: dict[str, Any]) -> State:
        metadata = {"name": self._key.name, "namespace": self._key.namespace}
        body = {"apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "metadata": metadata}
        try:
            if lease is None:
                await self._api.create(LEASES, self._key.namespace, {**body, "spec": spec})
            else:
                await self._api.replace(LEASES, self._key, {**lease, "spec": spec})
        except ObjectChanged:
            return "unknown"  # a different replica was faster, as the next reading shows
        return "held"


def _micro_time(moment: dt.datetime) -> str:
    """Return a moment as MicroTime of the Kubernetes API."""
    return moment.astimezone(dt.UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
