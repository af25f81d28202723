"""PodCertificateRequests as a source: who may ask which issuer, and by which credential.

- An ESTIssuer answers the pods of its namespace.
- With ``credentials.podToken`` the pod's own service account authenticates at the EST server, which
  decides the names by it. With any other credential all pods get what that credential gets; an
  ESTClusterIssuer would give it to every pod of the cluster, so it needs ``podToken``.
"""

from __future__ import annotations

from dataclasses import replace

from typing_extensions import override

from est_issuer import pod_requests
from est_issuer.answers import Issued, Refused
from est_issuer.api import KubernetesAPI, Object
from est_issuer.certificate_requests import Source
from est_issuer.credentials import Certificate
from est_issuer.errors import InvalidRequest
from est_issuer.issuers import UsableIssuer
from est_issuer.kinds import CLUSTER_ISSUERS, POD_REQUESTS
from est_issuer.pod_requests import next_pod_step, read_pod_request
from est_issuer.pods import Pods
from est_issuer.requests import IssuerReference, Request, Step, issuer_of_signer
from estcore.clock import Clock


class PodRequests(Source):
    """PodCertificateRequests (certificates.k8s.io/v1beta1) with a signer name of ours."""

    resource = POD_REQUESTS

    def __init__(self, api: KubernetesAPI, clock: Clock) -> None:
        self._pods, self._clock = Pods(api), clock

    @override
    def issuer(self, found: Object) -> IssuerReference | None:
        return issuer_of_signer(found["spec"].get("signerName", ""))

    @override
    def step(self, found: Object) -> Step:
        return next_pod_step(found)

    @override
    def read(self, found: Object) -> Request:
        return read_pod_request(found)

    @override
    async def require_right(self, found: Object, issuer: IssuerReference) -> None:
        """Check that the issuer is for the pod's namespace, and that the pod is there."""
        namespace = found["metadata"]["namespace"]
        if issuer.key.namespace and issuer.key.namespace != namespace:
            raise InvalidRequest(
                f"the issuer {issuer.key} answers pods of its own namespace, not of {namespace}",
                code="issuer.reference",
            )
        await self._pods.require(found)

    @override
    def denied(self, found: Object) -> Object | None:
        return None

    @override
    def invalid(self, found: Object, error: InvalidRequest) -> Object:
        return pod_requests.denied(error, now=self._clock.now())

    @override
    def pending(self, found: Object, message: str) -> Object | None:
        return None

    @override
    def answered(self, found: Object, outcome: Issued | Refused) -> Object:
        return pod_requests.answered(outcome, now=self._clock.now())

    @override
    async def authenticated(self, found: Object, usable: UsableIssuer) -> UsableIssuer:
        wanted = usable.spec.credentials.pod_token
        if wanted is not None:
            token = await self._pods.token(found, wanted.audience)
            return replace(usable, connection=replace(usable.connection, token=token))
        signer = found["spec"]["signerName"]
        if signer.startswith(f"{CLUSTER_ISSUERS.plural}."):
            raise InvalidRequest(
                "an ESTClusterIssuer answers pods with credentials.podToken only: any other "
                "credential would be that of every pod of the cluster",
                code="issuer.pod_token",
            )
        return usable

    @override
    def require_fit(self, found: Object, outcome: Issued) -> None:
        pod_requests.require_fit(found, outcome.certificate, now=self._clock.now())

    @override
    async def present(self, found: Object, request: Request) -> Certificate | None:
        return None
