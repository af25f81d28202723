"""Leader election by a Lease (coordination.k8s.io/v1): one replica works, the others stand by.

EST has no way to say "the same request as before", and only some servers recognise one. So
requests are sent by one replica at a time.

- Whether a lease is still held is measured with this machine's own clock, from the moment its
  renewal was seen: clocks of replicas need not agree.
- A leader that could not renew for two thirds of the duration stops its work before the lease ends.
- A replica that stops gives the lease back, so that the next one need not wait.
"""

from __future__ import annotations

import asyncio
import datetime as dt
import logging
from collections.abc import Awaitable, Callable
from typing import Any

from est_issuer.api import KubernetesAPI
from est_issuer.errors import APIRefused, APIUnavailable, ObjectChanged, ObjectMissing
from est_issuer.kinds import LEASES, Key
from est_issuer.metrics import LEADER
from estcore.clock import Clock, monotonic_s
from estcore.runtime.logs import Repetition, fields
from estcore.runtime.service import sleep_or_stop

log = logging.getLogger(__name__)
_unreachable = Repetition(log, "the lease cannot be read or written")
_TRIES = 5
"""Renewals within one duration."""

Work = Callable[[asyncio.Event], Awaitable[None]]


class Election:
    """One candidate."""

    def __init__(
        self, api: KubernetesAPI, key: Key, identity: str, duration_s: int, clock: Clock
    ) -> None:
        self._api, self._key, self._identity = api, key, identity
        self._duration_s, self._clock = duration_s, clock
        self._seen: tuple[object, float] = (None, -1e9)
        """What the lease said last, and when that was first seen."""

    async def run(self, stop: asyncio.Event, work: Work) -> None:
        """Work whenever this replica is the leader, until ``stop``.

        ``work`` gets an event that is set when it has to end; it is cancelled a moment later.
        """
        every_s = self._duration_s / _TRIES
        while not stop.is_set():
            if await self._acquired():
                await self._lead(stop, work, every_s)
            await sleep_or_stop(stop, every_s)

    async def _lead(self, stop: asyncio.Event, work: Work, every_s: float) -> None:
        log.info("this replica is the leader", extra=fields(lease=str(self._key)))
        LEADER.set(1)
        ending = asyncio.Event()
        task = asyncio.ensure_future(work(ending))
        try:
            renewed = monotonic_s()
            while not stop.is_set() and not task.done():
                await asyncio.wait([task], timeout=every_s if not stop.is_set() else 0)
                if await self._acquired():
                    renewed = monotonic_s()
                elif monotonic_s() - renewed > self._duration_s * 2 / 3:
                    log.error("the lease was lost", extra=fields(lease=str(self._key)))
                    task.cancel()
                    break
        finally:
            LEADER.set(0)
            ending.set()
            # In hand is at most one request to the EST server; it is finished within its timeout.
            await asyncio.wait([task], timeout=None if stop.is_set() else 1)
            task.cancel()
            await self._release()
        if not task.cancelled() and task.done():
            task.result()

    async def _acquired(self) -> bool:
        """Take or renew the lease; returns whether this replica holds it."""
        try:
            lease = await self._api.get(LEASES, self._key)
        except ObjectMissing:
            return await self._write(None)
        except (APIRefused, APIUnavailable) as exc:
            _unreachable.warn(reason=exc.reason, code=exc.code)
            return False
        spec = lease.get("spec") or {}
        state = (spec.get("holderIdentity"), spec.get("renewTime"))
        if state != self._seen[0]:
            self._seen = (state, monotonic_s())
        holder = spec.get("holderIdentity") or ""
        held_s = monotonic_s() - self._seen[1]
        if holder not in {"", self._identity} and held_s < self._duration_s:
            return False
        return await self._write(lease)

    async def _write(self, lease: dict[str, Any] | None) -> bool:
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
            lease = await self._api.get(LEASES, self._key)
        except (APIRefused, APIUnavailable):
            return
        spec = lease.get("spec") or {}
        if spec.get("holderIdentity") == self._identity:
            await self._stored(lease, {**spec, "holderIdentity": ""})

    async def _stored(self, lease: dict[str, Any] | None, spec: dict[str, Any]) -> bool:
        metadata = {"name": self._key.name, "namespace": self._key.namespace}
        body = {"apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "metadata": metadata}
        try:
            if lease is None:
                await self._api.create(LEASES, self._key.namespace, {**body, "spec": spec})
            else:
                await self._api.replace(LEASES, self._key, {**lease, "spec": spec})
        except ObjectChanged:
            return False  # a different replica was faster
        except (APIRefused, APIUnavailable) as exc:
            _unreachable.warn(reason=exc.reason, code=exc.code)
            return False
        return True


def _micro_time(moment: dt.datetime) -> str:
    """Return a moment as MicroTime of the Kubernetes API."""
    return moment.astimezone(dt.UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
