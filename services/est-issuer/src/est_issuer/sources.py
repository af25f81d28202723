"""CertificateRequests of cert-manager, and CertificateSigningRequests of Kubernetes.

A CertificateSigningRequest has no condition for a request that waits, and a denied one needs no
answer. One that was refused gets the condition Failed (certificates.k8s.io/v1).
"""

from __future__ import annotations

from typing import Any

from typing_extensions import override

from est_issuer import conditions
from est_issuer.answers import Issued, Refused
from est_issuer.api import KubernetesAPI, Object
from est_issuer.certificate_requests import Source
from est_issuer.conditions import conditions_of
from est_issuer.credentials import Certificate
from est_issuer.errors import InvalidRequest
from est_issuer.issuers import UsableIssuer
from est_issuer.kinds import ACCESS_REVIEWS, CERTIFICATE_REQUESTS, GROUP, SIGNING_REQUESTS
from est_issuer.present_certificate import PresentCertificates
from est_issuer.requests import (
    IssuerReference,
    Request,
    Step,
    issuer_of_request,
    issuer_of_signer,
    next_signing_step,
    next_step,
    read_request,
    read_signing_request,
)
from estcore.clock import Clock
from estcore.display import visible


class CertManagerRequests(Source):
    """CertificateRequests (cert-manager.io/v1)."""

    resource = CERTIFICATE_REQUESTS

    def __init__(self, present: PresentCertificates, clock: Clock) -> None:
        self._present, self._clock = present, clock

    @override
    def issuer(self, found: Object) -> IssuerReference | None:
        return issuer_of_request(found)

    @override
    def step(self, found: Object) -> Step:
        return next_step(found)

    @override
    def read(self, found: Object) -> Request:
        return read_request(found)

    @override
    async def require_right(self, found: Object, issuer: IssuerReference) -> None:
        """Nothing to check: the request is in the namespace of its issuer, or asks one for all."""

    @override
    def denied(self, found: Object) -> Object | None:
        return conditions.denied(conditions_of(found), now=self._clock.now())

    @override
    def invalid(self, found: Object, error: InvalidRequest) -> Object:
        return conditions.invalid(conditions_of(found), error.reason, now=self._clock.now())

    @override
    def pending(self, found: Object, message: str) -> Object | None:
        return conditions.pending(conditions_of(found), message, now=self._clock.now())

    @override
    def answered(self, found: Object, outcome: Issued | Refused) -> Object:
        before, now = conditions_of(found), self._clock.now()
        if isinstance(outcome, Refused):
            return conditions.failed(before, outcome.message, now=now)
        return conditions.issued(
            before, outcome.message, chain=outcome.chain, authority=outcome.authority, now=now
        )

    @override
    async def authenticated(self, found: Object, usable: UsableIssuer) -> UsableIssuer:
        return with_own_credential(usable)

    @override
    def require_fit(self, found: Object, outcome: Issued) -> None:
        """Nothing: the server decides the lifetime."""

    @override
    async def present(self, found: Object, request: Request) -> Certificate | None:
        return await self._present.of(found, request, now=self._clock.now())


class SigningRequests(Source):
    """CertificateSigningRequests (certificates.k8s.io/v1) with a signer name of ours."""

    resource = SIGNING_REQUESTS

    def __init__(self, api: KubernetesAPI, clock: Clock) -> None:
        self._api, self._clock = api, clock

    @override
    def issuer(self, found: Object) -> IssuerReference | None:
        return issuer_of_signer(found["spec"].get("signerName", ""))

    @override
    def step(self, found: Object) -> Step:
        return next_signing_step(found)

    @override
    def read(self, found: Object) -> Request:
        return read_signing_request(found)

    @override
    async def require_right(self, found: Object, issuer: IssuerReference) -> None:
        """Ask for the verb ``reference`` on the signer in the namespace of an ESTIssuer.

        The request belongs to no namespace, so its approver alone would decide which issuers the
        requester may use. cert-manager asks for the same right on its own issuers.
        """
        namespace, name = issuer.key.namespace, issuer.key.name
        if not namespace:
            return
        for signer in (name, "*"):
            body = access_review(found["spec"], namespace, signer)
            answer = await self._api.create(ACCESS_REVIEWS, "", body)
            if (answer.get("status") or {}).get("allowed") is True:
                return
        user = visible(str(found["spec"].get("username")))
        raise InvalidRequest(
            f"{user} may not use the issuer {issuer.key}: it has no right to the verb reference on "
            f"signers of {GROUP} in the namespace {namespace}",
            code="issuer.reference",
        )

    @override
    def denied(self, found: Object) -> Object | None:
        return None

    @override
    def invalid(self, found: Object, error: InvalidRequest) -> Object:
        return self._failed(found, conditions.INVALID, error.reason)

    @override
    def pending(self, found: Object, message: str) -> Object | None:
        return None

    @override
    def answered(self, found: Object, outcome: Issued | Refused) -> Object:
        if isinstance(outcome, Refused):
            return self._failed(found, conditions.FAILED, outcome.message)
        return {"certificate": conditions.base64_text(outcome.chain)}

    @override
    async def authenticated(self, found: Object, usable: UsableIssuer) -> UsableIssuer:
        return with_own_credential(usable)

    @override
    def require_fit(self, found: Object, outcome: Issued) -> None:
        """Nothing: the server decides the lifetime."""

    @override
    async def present(self, found: Object, request: Request) -> Certificate | None:
        return None

    def _failed(self, found: Object, reason: str, message: str) -> dict[str, Any]:
        now = self._clock.now()
        new = conditions.condition(conditions.FAILED, True, reason, message)
        new["lastUpdateTime"] = conditions.rfc3339(now)
        return {"conditions": conditions.with_condition(conditions_of(found), new, now=now)}


def with_own_credential(usable: UsableIssuer) -> UsableIssuer:
    """Return an issuer that has a credential of its own.

    Raises:
        InvalidRequest: it has none: only pods can ask it.
    """
    if usable.spec.credentials.pod_token is not None:
        raise InvalidRequest(
            "the issuer has credentials.podToken: it answers PodCertificateRequests only",
            code="issuer.pod_token",
        )
    return usable


def access_review(spec: Object, namespace: str, signer: str) -> Object:
    """Return the question whether a requester may reference a signer (SubjectAccessReview).

    ``spec`` is that of the request; the API server wrote who made it.
    """
    who = {"user": "username", "uid": "uid", "groups": "groups", "extra": "extra"}
    return {
        "apiVersion": f"{ACCESS_REVIEWS.group}/{ACCESS_REVIEWS.version}",
        "kind": ACCESS_REVIEWS.kind,
        "spec": {
            **{key: spec[field] for key, field in who.items() if spec.get(field)},
            "resourceAttributes": {
                "group": GROUP,
                "version": "*",
                "resource": "signers",
                "verb": "reference",
                "namespace": namespace,
                "name": signer,
            },
        },
    }
