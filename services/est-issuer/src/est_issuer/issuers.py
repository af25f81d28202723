"""Controller of ESTIssuer and ESTClusterIssuer: fetch ``/cacerts``, report the condition Ready.

An issuer is Ready after its CA certificates were fetched over TLS that the given anchors
authenticate (RFC 7030 section 4.1.1). Whether the credential is accepted is known at the first
enrollment only: EST has no operation that shows it.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from cryptography import x509

from est_issuer.api import KubernetesAPI, Object, key_of
from est_issuer.conditions import (
    READY,
    condition,
    conditions_of,
    find,
    rfc3339,
    with_condition,
)
from est_issuer.credentials import Connection, References
from est_issuer.errors import IssuerUnusable, ObjectMissing
from est_issuer.events import NORMAL, WARNING, EventRecorder, Kind
from est_issuer.issuer_spec import IssuerSpec, read_spec
from est_issuer.kinds import ISSUER_KINDS
from est_issuer.metrics import ISSUERS_READY
from est_issuer.requests import IssuerReference
from est_issuer.settings import IssuerSettings
from estclient.errors import AnswerInvalid, ESTClientError, ServerAway, ServerRefused
from estclient.est.trust_anchors import is_root, is_valid
from estcore.clock import Clock, monotonic_s
from estcore.errors import ConfigurationError
from estcore.pki.names import display_name
from estcore.runtime.logs import fields

log = logging.getLogger(__name__)
_FIRST_PAUSE_S = 2.0
UNCHECKED = "Unchecked"
"""Of an issuer that is about to be checked: nothing to report yet."""
_REASONS: tuple[tuple[type[Exception], str], ...] = (
    (ServerAway, "ServerUnavailable"),
    (ServerRefused, "ServerRefused"),
    (AnswerInvalid, "AnswerInvalid"),
)


@dataclass(frozen=True)
class UsableIssuer:
    """An issuer that is Ready: its spec, how to reach its server, and the CA certificates."""

    spec: IssuerSpec
    connection: Connection
    authorities: tuple[x509.Certificate, ...]


@dataclass
class _Checked:
    """What the last check of an issuer found."""

    uid: str
    generation: int
    ready: bool
    authorities: tuple[x509.Certificate, ...] = ()
    failures: int = 0
    next_s: float = 0


class IssuerController:
    """Checks issuers, and hands out those that are Ready."""

    def __init__(
        self,
        api: KubernetesAPI,
        settings: IssuerSettings,
        clock: Clock,
        on_ready: Callable[[IssuerReference], None],
        events: EventRecorder,
    ) -> None:
        self._api, self._settings, self._clock = api, settings, clock
        self._on_ready, self._events = on_ready, events
        self._checked: dict[IssuerReference, _Checked] = {}

    async def reconcile(self, reference: IssuerReference) -> float | None:
        """Check an issuer if it changed or is due; returns seconds until it is due again.

        Raises:
            APIRefused, APIUnavailable: the Kubernetes API.
        """
        try:
            found = await self._api.get(reference.resource, reference.key)
        except ObjectMissing:
            self._checked.pop(reference, None)
            _forget(reference)
            return None
        metadata = found["metadata"]
        before = self._checked.get(reference)
        if before is not None and (before.uid, before.generation) == (
            metadata["uid"],
            metadata["generation"],
        ):
            left = before.next_s - monotonic_s()
            if left > 0:
                return left
        checked = await self._check(reference, found, before)
        self._checked[reference] = checked
        ISSUERS_READY.labels(reference.resource.kind, str(reference.key)).set(checked.ready)
        if checked.ready:
            self._on_ready(reference)
        return max(checked.next_s - monotonic_s(), 0)

    async def usable(self, reference: IssuerReference) -> UsableIssuer:
        """Return an issuer that is Ready, its Secrets read now.

        Raises:
            IssuerUnusable: there is no such issuer, it is not Ready, or a Secret is missing.
            APIRefused, APIUnavailable: the Kubernetes API.
        """
        kind = reference.resource.kind
        try:
            found = await self._api.get(reference.resource, reference.key)
        except ObjectMissing as exc:
            raise IssuerUnusable("NotFound", f"there is no {kind} {reference.key}") from exc
        checked = self._checked.get(reference)
        metadata = found["metadata"]
        current = checked is not None and (checked.uid, checked.generation) == (
            metadata["uid"],
            metadata["generation"],
        )
        if checked is None or not current:
            raise IssuerUnusable(UNCHECKED, f"{kind} {reference.key} was not checked yet")
        if not checked.ready:
            why = find(conditions_of(found), READY).get("message") or "its condition Ready"
            raise IssuerUnusable("NotReady", f"{kind} {reference.key} is not ready: {why}")
        spec = read_spec(found)
        connection = await self.references(reference).connection(spec)
        return UsableIssuer(spec, connection, checked.authorities)

    def references(self, reference: IssuerReference) -> References:
        """Return a reader of the Secrets and ConfigMaps that an issuer may refer to."""
        return References(self._api, reference.key.namespace or self._settings.namespace)

    async def _check(
        self, reference: IssuerReference, found: Object, before: _Checked | None
    ) -> _Checked:
        metadata = found["metadata"]
        checked = _Checked(metadata["uid"], metadata["generation"], ready=False)
        try:
            spec = read_spec(found)
            connection = await self.references(reference).connection(spec)
            self._check_certificate(spec, connection)
            client = connection.client(self._settings.request_timeout_s)
            received = await client.cacerts()
            checked.authorities = self._trusted(received, connection)
            await self._report(found, True, "Verified", _summary(checked.authorities), checked)
            checked.ready = True
            checked.next_s = monotonic_s() + self._settings.check_every_s
            return checked
        except IssuerUnusable as exc:
            reason, message = exc.condition, exc.reason
        except (ESTClientError, ConfigurationError) as exc:
            reason = next((name for kind, name in _REASONS if isinstance(exc, kind)), "Failed")
            message = f"/cacerts: {exc.reason}"
        checked.failures = before.failures + 1 if before is not None and not before.ready else 1
        checked.authorities = ()
        pause = min(_FIRST_PAUSE_S * 2 ** min(checked.failures - 1, 30), 60.0)
        checked.next_s = monotonic_s() + pause * random.uniform(0.5, 1)  # noqa: S311 - spread
        await self._report(found, False, reason, message, checked)
        return checked

    def _check_certificate(self, spec: IssuerSpec, connection: Connection) -> None:
        """Check that a client certificate is valid now.

        Raises:
            IssuerUnusable: it is not.
        """
        wanted, present = spec.credentials.client_certificate, connection.certificate
        if wanted is None or present is None:
            return
        certificate = x509.load_pem_x509_certificates(present.chain)[0]
        if not is_valid(certificate, self._clock.now()):
            end = rfc3339(certificate.not_valid_after_utc)
            name = wanted.secret_ref.name
            raise IssuerUnusable(
                "InvalidCredentials",
                f"Secret {name}: its certificate is not valid now, it ends {end}",
            )

    def _trusted(
        self, received: list[x509.Certificate], connection: Connection
    ) -> tuple[x509.Certificate, ...]:
        """Return the CA certificates, of the answer and of the anchors, that are valid now.

        Raises:
            AnswerInvalid: no CA certificate in the answer is valid now.
        """
        now = self._clock.now()
        valid = [c for c in received if is_valid(c, now)]
        if not valid:
            raise AnswerInvalid("no CA certificate in it is valid now")
        # A server may leave the root out: the anchors have it then.
        anchors = x509.load_pem_x509_certificates(connection.trust)
        return tuple(dict.fromkeys([*valid, *(c for c in anchors if is_valid(c, now))]))

    async def _report(
        self, found: Object, ready: bool, reason: str, message: str, checked: _Checked
    ) -> None:
        """Write the condition Ready, where it differs from that of the object."""
        conditions = conditions_of(found)
        before = find(conditions, READY)
        new = condition(READY, ready, reason, message)
        new["observedGeneration"] = checked.generation
        if all(before.get(name) == value for name, value in new.items()):
            return
        log.info(
            "issuer checked",
            extra=fields(
                kind=found.get("kind", ""),
                issuer=str(key_of(found)),
                ready=ready,
                reason=reason,
                details=new["message"],
            ),
        )
        status: dict[str, Any] = {
            "conditions": with_condition(conditions, new, now=self._clock.now())
        }
        if ready:
            status["certificates"] = [
                {
                    "subject": display_name(c.subject)[:256],
                    "notAfter": rfc3339(c.not_valid_after_utc),
                }
                for c in checked.authorities[:16]
            ]
        resource = ISSUER_KINDS[found["kind"]]
        await self._api.patch_status(resource, found, status)
        kind: Kind = NORMAL if ready else WARNING
        await self._events.record(resource, found, kind, reason, new["message"])


def _forget(reference: IssuerReference) -> None:
    labels = (reference.resource.kind, str(reference.key))
    if labels in ISSUERS_READY._metrics:  # noqa: SLF001 - remove() of an unknown one raises
        ISSUERS_READY.remove(*labels)


def _summary(authorities: tuple[x509.Certificate, ...]) -> str:
    roots = [c for c in authorities if is_root(c)] or list(authorities)
    names = ", ".join(dict.fromkeys(display_name(c.subject) for c in roots))
    until = min(c.not_valid_after_utc for c in authorities)
    return f"/cacerts was verified: {names}; the first certificate ends {rfc3339(until)}"
