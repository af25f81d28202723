"""The work of the leader: follow every kind of object, and process what changes.

Each kind has a queue and workers. An object whose processing fails comes again, later each time;
the API is read again then, so nothing depends on an event that was missed.
"""

from __future__ import annotations

import asyncio
import logging
from collections import defaultdict
from collections.abc import Awaitable, Callable, Hashable
from typing import Generic, TypeVar

from est_issuer.api import Event, KubernetesAPI
from est_issuer.certificate_requests import RequestController, Source
from est_issuer.errors import APIRefused, APIUnavailable, ObjectChanged
from est_issuer.events import EventRecorder
from est_issuer.issuers import IssuerController
from est_issuer.kinds import CLUSTER_ISSUERS, ISSUERS, Key, Resource
from est_issuer.pod_source import PodRequests
from est_issuer.present_certificate import PresentCertificates
from est_issuer.requests import IssuerReference
from est_issuer.settings import IssuerSettings
from est_issuer.sources import CertManagerRequests, SigningRequests
from est_issuer.work_queue import WorkQueue
from estcore.clock import Clock
from estcore.runtime.logs import Repetition, fields
from estcore.runtime.service import sleep_or_stop

log = logging.getLogger(__name__)
_unreadable = Repetition(log, "objects cannot be read")
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.5, 60.0
_AGAIN_S = 2.0
K = TypeVar("K", bound=Hashable)


class _Processor(Generic[K]):
    """A queue and what processes its keys."""

    def __init__(self, name: str, reconcile: Callable[[K], Awaitable[float | None]]) -> None:
        self.queue: WorkQueue[K] = WorkQueue()
        self._name, self._reconcile = name, reconcile
        self._failures: defaultdict[K, int] = defaultdict(int)

    async def run(self, stop: asyncio.Event) -> None:
        """Process keys until ``stop``; what is in hand is finished."""
        stopped = asyncio.ensure_future(stop.wait())
        try:
            while not stop.is_set():
                following = asyncio.ensure_future(self.queue.get())
                await asyncio.wait([following, stopped], return_when=asyncio.FIRST_COMPLETED)
                if not following.done():
                    following.cancel()
                    return
                await self._process(following.result())
        finally:
            stopped.cancel()

    async def _process(self, key: K) -> None:
        try:
            after_s = await self._reconcile(key)
            self._failures.pop(key, None)
        except ObjectChanged:
            after_s = 0.0  # read it again
        except (APIRefused, APIUnavailable) as exc:
            after_s = self._pause_s(key)
            log.warning(
                "object will be processed later",
                extra=fields(kind=self._name, key=str(key), reason=exc.reason, code=exc.code),
            )
        except Exception:
            # Bulkhead: an object that cannot be processed comes again and does not stop others.
            log.exception("object failed", extra=fields(kind=self._name, key=str(key)))
            after_s = self._pause_s(key)
        finally:
            self.queue.done(key)
        if after_s is not None:
            self.queue.add(key, after_s)

    def _pause_s(self, key: K) -> float:
        self._failures[key] += 1
        pause: float = _FIRST_PAUSE_S * 2 ** min(self._failures[key] - 1, 30)
        return min(pause, _LONGEST_PAUSE_S)


class Controller:
    """Issuers and requests, processed by this replica until it stops or is the leader no more."""

    def __init__(self, api: KubernetesAPI, settings: IssuerSettings, clock: Clock) -> None:
        self._api, self._settings = api, settings
        events = EventRecorder(api, settings.instance, clock)
        self._issuers = IssuerController(api, settings, clock, self._issuer_is_ready, events)
        sources: list[Source] = [CertManagerRequests(PresentCertificates(api), clock)]
        sources += [SigningRequests(api, clock)] if settings.signing_requests else []
        sources += [PodRequests(api, clock)] if settings.pod_certificate_requests else []
        self._requests: list[tuple[RequestController, _Processor[Key]]] = []
        self._checks = _Processor("issuer", self._issuers.reconcile)
        self._followed: list[tuple[Resource, Callable[[Event], None]]] = [
            (ISSUERS, lambda e: self._checks.queue.add(IssuerReference(ISSUERS, e.key))),
            (
                CLUSTER_ISSUERS,
                lambda e: self._checks.queue.add(IssuerReference(CLUSTER_ISSUERS, e.key)),
            ),
        ]
        for source in sources:
            requests = RequestController(api, source, self._issuers, settings, clock, events)
            processor = _Processor(source.resource.kind, requests.reconcile)
            self._requests.append((requests, processor))
            self._followed.append((source.resource, self._adder(source, processor)))

    async def run(self, stop: asyncio.Event) -> None:
        """Follow and process until ``stop``."""
        async with asyncio.TaskGroup() as group:
            followers = [
                group.create_task(self._follow(resource, receive, stop))
                for resource, receive in self._followed
            ]
            group.create_task(self._checks.run(stop))
            group.create_task(self._checks.run(stop))
            for _, processor in self._requests:
                for _ in range(self._settings.workers):
                    group.create_task(processor.run(stop))
            await stop.wait()
            for task in followers:
                task.cancel()

    def _adder(self, source: Source, processor: _Processor[Key]) -> Callable[[Event], None]:
        def receive(event: Event) -> None:
            # Most are for others' issuers, or have an outcome: they are not read one by one.
            wanted = source.issuer(event.object) and source.step(event.object) != "ignore"
            if event.deleted or wanted:
                processor.queue.add(event.key)

        return receive

    async def _follow(
        self, resource: Resource, receive: Callable[[Event], None], stop: asyncio.Event
    ) -> None:
        while not stop.is_set():
            try:
                async for event in self._api.follow(resource):
                    receive(event)
            except (APIRefused, APIUnavailable) as exc:
                _unreadable.warn(kind=resource.kind, reason=exc.reason, code=exc.code)
            await sleep_or_stop(stop, _AGAIN_S)

    def _issuer_is_ready(self, reference: IssuerReference) -> None:
        for requests, processor in self._requests:
            for key in requests.waiting_for(reference):
                processor.queue.add(key)
