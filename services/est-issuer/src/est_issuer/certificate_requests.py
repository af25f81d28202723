"""Controller of certificate requests: approved ones are sent to the EST server of their issuer.

The same for CertificateRequests of cert-manager, and for CertificateSigningRequests and
PodCertificateRequests of Kubernetes; a ``Source`` knows how each is read and answered.

1. Read the request; it has no outcome yet, and an approver approved it where its kind has any.
2. Refuse what no EST server grants.
3. Find its issuer, which must be Ready, and read credentials and trust anchors.
4. Send it once. A temporary fault or 202 leaves it pending, and it is sent again when that is due;
   changes of the object in between send nothing.
5. Write the outcome. A certificate that could not be written is kept and written later, so that
   it is not requested twice.
"""

from __future__ import annotations

import logging
from collections import defaultdict
from dataclasses import dataclass
from typing import Protocol

from est_issuer.answers import Issued, Later, Outcome, Refused, outcome_of_error
from est_issuer.api import KubernetesAPI, Object
from est_issuer.conditions import conditions_of
from est_issuer.credentials import Certificate
from est_issuer.enrollment import enroll
from est_issuer.errors import APIRefused, InvalidRequest, IssuerUnusable, ObjectMissing
from est_issuer.events import NORMAL, WARNING, EventRecorder, Kind
from est_issuer.issuers import UNCHECKED, IssuerController, UsableIssuer
from est_issuer.kinds import Key, Resource
from est_issuer.metrics import REQUESTS, WAITING
from est_issuer.requests import IssuerReference, Request, Step
from est_issuer.settings import IssuerSettings
from estclient.errors import ESTClientError, ServerAway, ServerRefused
from estcore.clock import Clock, monotonic_s
from estcore.ids import serial_hex
from estcore.runtime.logs import fields

log = logging.getLogger(__name__)
_INVALID = 422
_ENDINGS: dict[str, tuple[Kind, str]] = {
    "issued": (NORMAL, "Issued"),
    "refused": (WARNING, "Failed"),
    "denied": (WARNING, "Denied"),
    "invalid": (WARNING, "InvalidRequest"),
}
"""Type and reason of the event about each outcome."""
_AWAY = {ServerAway.default_code, ServerRefused.default_code}
_WITHOUT_ISSUER_S = 30.0
"""Pause while an issuer is not there or not ready; its change ends it."""


class Source(Protocol):
    """One kind of certificate requests."""

    resource: Resource

    def issuer(self, found: Object) -> IssuerReference | None:
        """Return the issuer that is asked; None where it is none of ours."""
        ...

    def step(self, found: Object) -> Step:
        """Return what is to be done."""
        ...

    def read(self, found: Object) -> Request:
        """Return what is asked for.

        Raises:
            InvalidRequest: it can never be granted.
        """
        ...

    async def require_right(self, found: Object, issuer: IssuerReference) -> None:
        """Check that the requester may use the issuer, where its namespace does not say so.

        Raises:
            InvalidRequest: the requester may not.
            APIRefused, APIUnavailable: the Kubernetes API did not say.
        """
        ...

    def denied(self, found: Object) -> Object | None:
        """Return the status of a request that an approver denied."""
        ...

    def invalid(self, found: Object, error: InvalidRequest) -> Object:
        """Return the status of a request that can never be granted."""
        ...

    def pending(self, found: Object, message: str) -> Object | None:
        """Return the status of a request that waits; None where the kind has none."""
        ...

    def answered(self, found: Object, outcome: Issued | Refused) -> Object:
        """Return the status with the outcome."""
        ...

    async def authenticated(self, found: Object, usable: UsableIssuer) -> UsableIssuer:
        """Return the issuer with the credential by which this request is sent.

        Raises:
            InvalidRequest: the issuer does not serve such requests.
            IssuerUnusable: the credential cannot be had yet.
        """
        ...

    def require_fit(self, found: Object, outcome: Issued) -> None:
        """Check what the kind demands of a certificate beside names and usages.

        Raises:
            UnfitCertificate: the API server would not take it.
        """
        ...

    async def present(self, found: Object, request: Request) -> Certificate | None:
        """Return the certificate that the request renews, if it is known and may be used.

        Raises:
            IssuerUnusable: it may not be read.
        """
        ...


@dataclass
class _Attempts:
    """What is known about a request in process, beside its object."""

    uid: str
    failed: int = 0
    next_s: float = 0
    outcome: Issued | Refused | None = None
    reported: str = ""
    """The last reason to wait that an event has."""


class RequestController:
    """Processes requests of one kind."""

    def __init__(
        self,
        api: KubernetesAPI,
        source: Source,
        issuers: IssuerController,
        settings: IssuerSettings,
        clock: Clock,
        events: EventRecorder,
    ) -> None:
        self._api, self._source, self._issuers = api, source, issuers
        self._settings, self._clock, self._events = settings, clock, events
        self._attempts: dict[Key, _Attempts] = {}
        self._waiting: defaultdict[IssuerReference, set[Key]] = defaultdict(set)

    def waiting_for(self, issuer: IssuerReference) -> set[Key]:
        """Return the requests that wait for an issuer, which is Ready now; they are due."""
        keys = self._waiting.pop(issuer, set())
        for key in keys & self._attempts.keys():
            self._attempts[key].next_s = 0
        return keys

    async def reconcile(self, key: Key) -> float | None:
        """Process one request; returns after how many seconds it is due again.

        Raises:
            ObjectChanged, APIRefused, APIUnavailable: the Kubernetes API; to be tried again.
        """
        try:
            found = await self._api.get(self._source.resource, key)
        except ObjectMissing:
            self._forget(key)
            return None
        issuer, step = self._source.issuer(found), self._source.step(found)
        if issuer is None or step == "ignore":
            self._forget(key)
            return None
        if step == "deny":
            await self._end(found, self._source.denied(found), "denied", "")
            return None
        try:
            request = self._source.read(found)
            await self._source.require_right(found, issuer)
            return await self._process(key, found, issuer, request)
        except InvalidRequest as exc:
            status = self._source.invalid(found, exc)
            await self._end(found, status, "invalid", exc.code, reason=exc.reason)
            return None

    async def _process(
        self, key: Key, found: Object, issuer: IssuerReference, request: Request
    ) -> float | None:
        uid = found["metadata"]["uid"]
        attempts = self._attempts.get(key)
        if attempts is None or attempts.uid != uid:
            attempts = self._attempts[key] = _Attempts(uid)
            WAITING.set(len(self._attempts))
        left_s = attempts.next_s - monotonic_s()
        if attempts.outcome is None and left_s > 0:
            return left_s
        if attempts.outcome is None:
            outcome = await self._send(key, found, issuer, request, attempts)
            if isinstance(outcome, Later):
                attempts.next_s = monotonic_s() + outcome.after_s
                REQUESTS.labels("later", outcome.code).inc()
                await self._wait(found, outcome, attempts)
                return outcome.after_s
            attempts.outcome = outcome
        try:
            await self._answer(found, attempts.outcome)
        except APIRefused as exc:
            if exc.status != _INVALID or isinstance(attempts.outcome, Refused):
                raise
            # It would refuse the same certificate again, and each new one of this server.
            attempts.outcome = Refused(exc.reason, exc.code)
            await self._answer(found, attempts.outcome)
        return None

    async def _send(
        self,
        key: Key,
        found: Object,
        issuer: IssuerReference,
        request: Request,
        attempts: _Attempts,
    ) -> Outcome:
        try:
            usable = await self._issuers.usable(issuer)
            usable = await self._source.authenticated(found, usable)
            present = None
            if usable.spec.renewal == "Reenroll":
                present = await self._source.present(found, request)
            outcome = await enroll(
                usable,
                request,
                present,
                timeout_s=self._settings.request_timeout_s,
                clock=self._clock,
            )
            self._source.require_fit(found, outcome)
            return outcome
        except IssuerUnusable as exc:
            self._waiting[issuer].add(key)
            text = "" if exc.condition == UNCHECKED else exc.reason
            return Later(text, min(_WITHOUT_ISSUER_S, self._settings.longest_pause_s), exc.code)
        except ESTClientError as exc:
            longest_s = self._settings.longest_pause_s
            failure = outcome_of_error(exc, attempts.failed, longest_s=longest_s)
            attempts.failed += 1
            return failure

    async def _wait(self, found: Object, later: Later, attempts: _Attempts) -> None:
        if not later.message:
            return
        if attempts.reported != later.message:
            attempts.reported = later.message
            reason = "Retrying" if later.code in _AWAY else "Pending"
            await self._event(found, NORMAL, reason, later.message)
        log.info(
            "request is pending",
            extra=self._fields(found, code=later.code, reason=later.message, after_s=later.after_s),
        )
        status = self._source.pending(found, later.message)
        if status is not None and status["conditions"] != conditions_of(found):
            await self._api.patch_status(self._source.resource, found, status)

    async def _answer(self, found: Object, outcome: Issued | Refused) -> None:
        status = self._source.answered(found, outcome)
        if isinstance(outcome, Refused):
            await self._end(found, status, "refused", outcome.code, reason=outcome.message)
            return
        serial = serial_hex(outcome.certificate.serial_number)
        await self._end(found, status, "issued", "", reason=outcome.message, serial=serial)

    async def _end(
        self, found: Object, status: Object | None, outcome: str, code: str, **values: str
    ) -> None:
        if status is not None:
            await self._api.patch_status(self._source.resource, found, status)
        REQUESTS.labels(outcome, code).inc()
        extra = self._fields(found, outcome=outcome, code=code, **values)
        log.info("request answered", extra=extra)
        self._forget(_key(found))
        kind, reason = _ENDINGS[outcome]
        note = values.get("reason") or "an approver denied the request"
        await self._event(found, kind, reason, note)

    async def _event(self, found: Object, kind: Kind, reason: str, note: str) -> None:
        await self._events.record(self._source.resource, found, kind, reason, note)

    def _fields(self, found: Object, **values: object) -> dict[str, dict[str, object]]:
        issuer = self._source.issuer(found)
        return fields(
            kind=self._source.resource.kind,
            request=str(_key(found)),
            issuer=str(issuer.key) if issuer else "",
            **values,
        )

    def _forget(self, key: Key) -> None:
        self._attempts.pop(key, None)
        for issuer, keys in list(self._waiting.items()):
            keys.discard(key)
            if not keys:
                del self._waiting[issuer]
        WAITING.set(len(self._attempts))


def _key(found: Object) -> Key:
    return Key(found["metadata"].get("namespace", ""), found["metadata"]["name"])
