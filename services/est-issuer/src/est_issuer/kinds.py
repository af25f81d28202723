"""API groups, kinds and names that the controller reads and writes."""

from __future__ import annotations

from dataclasses import dataclass

from typing_extensions import override

GROUP = "estsuite.internal"
VERSION = "v1alpha1"
CERT_MANAGER = "cert-manager.io"
FIELD_MANAGER = "est-issuer"


@dataclass(frozen=True)
class Resource:
    """One kind of object: its group (empty for the core API), version, plural name and scope."""

    group: str
    version: str
    plural: str
    kind: str
    namespaced: bool = True

    def path(self, name: str | None = None, namespace: str | None = None) -> str:
        """Return the path of a collection, or of one object in it."""
        parts = ["/apis", self.group, self.version] if self.group else ["/api", self.version]
        parts += ["namespaces", namespace] if namespace else []
        return "/".join([*parts, self.plural, *([name] if name else [])])


@dataclass(frozen=True, order=True)
class Key:
    """Namespace (empty for objects of the whole cluster) and name of an object."""

    namespace: str
    name: str

    @override
    def __str__(self) -> str:
        return f"{self.namespace}/{self.name}" if self.namespace else self.name


ISSUERS = Resource(GROUP, VERSION, "estissuers", "ESTIssuer")
CLUSTER_ISSUERS = Resource(
    GROUP, VERSION, "estclusterissuers", "ESTClusterIssuer", namespaced=False
)
CERTIFICATE_REQUESTS = Resource(CERT_MANAGER, "v1", "certificaterequests", "CertificateRequest")
CERTIFICATES = Resource(CERT_MANAGER, "v1", "certificates", "Certificate")
SIGNING_REQUESTS = Resource(
    "certificates.k8s.io",
    "v1",
    "certificatesigningrequests",
    "CertificateSigningRequest",
    namespaced=False,
)
POD_REQUESTS = Resource(
    "certificates.k8s.io", "v1beta1", "podcertificaterequests", "PodCertificateRequest"
)
PODS = Resource("", "v1", "pods", "Pod")
NODES = Resource("", "v1", "nodes", "Node", namespaced=False)
SERVICE_ACCOUNTS = Resource("", "v1", "serviceaccounts", "ServiceAccount")
SECRETS = Resource("", "v1", "secrets", "Secret")
CONFIG_MAPS = Resource("", "v1", "configmaps", "ConfigMap")
EVENTS = Resource("events.k8s.io", "v1", "events", "Event")
LEASES = Resource("coordination.k8s.io", "v1", "leases", "Lease")
ACCESS_REVIEWS = Resource(
    "authorization.k8s.io", "v1", "subjectaccessreviews", "SubjectAccessReview", namespaced=False
)
ISSUER_KINDS = {ISSUERS.kind: ISSUERS, CLUSTER_ISSUERS.kind: CLUSTER_ISSUERS}
