"""A podCertificate volume: the kubelet makes key and request, est-issuer answers, the pod has both.

Runs with kubelets of Kubernetes 1.36 that have the feature gate PodCertificateRequest.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio
from cryptography import x509
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from estsuite_testing.e2e_stack import same_key
from estsuite_testing.issuer_world import GROUP, IssuerWorld, Object

pytestmark = [pytest.mark.asyncio(loop_scope="session"), pytest.mark.timeout(300)]
IMAGE = "estsuite/est-issuer:0.1.0"


@pytest_asyncio.fixture(scope="module", loop_scope="session", autouse=True)
async def issuer(world: IssuerWorld) -> AsyncIterator[None]:
    await world.bind_cluster("est-issuer-pod-certificates")
    await world.bind("est-issuer-pod-tokens")
    await world.start_issuer("issuer-volumes", pod_certificate_requests=True)
    token = {"podToken": {"audience": "est"}}
    await world.apply(world.issuer("volumes", label="pods", credentials=token))
    await world.until_ready("estissuer", "volumes", status="True")
    yield
    await world.stop_service_of("issuer-volumes")


def pod(world: IssuerWorld, name: str, **certificate: Any) -> list[Object]:
    """A pod with its service account, and a volume with its certificate."""
    metadata = {"name": name, "namespace": world.namespace}
    source = {
        "signerName": f"estissuers.{GROUP}/{world.namespace}.volumes",
        "keyType": "ECDSAP256",
        "credentialBundlePath": "bundle.pem",
        **certificate,
    }
    container = {
        "name": "service",
        "image": IMAGE,
        "imagePullPolicy": "Never",
        "command": ["python", "-c", "import time; time.sleep(3600)"],
        "volumeMounts": [{"name": "est", "mountPath": "/run/est"}],
    }
    spec = {
        "serviceAccountName": name,
        "terminationGracePeriodSeconds": 0,
        "containers": [container],
        "volumes": [{"name": "est", "projected": {"sources": [{"podCertificate": source}]}}],
    }
    return [
        {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": metadata},
        {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec},
    ]


async def test_a_pod_starts_with_its_certificate(world: IssuerWorld) -> None:
    await world.apply(*pod(world, "billing"))
    await world.until("pod", "billing", lambda f: f["status"].get("phase") == "Running")
    bundle = await world.kubectl(
        *("exec", "billing", "-n", world.namespace, "--", "cat", "/run/est/bundle.pem")
    )
    key = load_pem_private_key(bundle.encode(), None)
    leaf, *between = x509.load_pem_x509_certificates(bundle.encode())
    assert same_key(leaf, key)
    leaf.verify_directly_issued_by(between[0])
    assert leaf.subject.rfc4514_string() == "CN=billing.est-issuer-test"
    listed = await world.kubectl(
        "get", "podcertificaterequests", "-n", world.namespace, "-o", "json"
    )
    (made,) = [i for i in json.loads(listed)["items"] if i["spec"]["podName"] == "billing"]
    assert made["metadata"]["ownerReferences"][0]["kind"] == "Pod"


async def test_a_pod_that_is_refused_says_why(world: IssuerWorld) -> None:
    await world.apply(*pod(world, "curved", keyType="ECDSAP384"))
    note = await world.event("curved", "Denied")
    assert "UnsupportedKeyType" in note
    found = await world.get("pod", "curved")
    assert found["status"]["phase"] == "Pending"
    await world.kubectl("delete", "pod", "curved", "-n", world.namespace, "--wait=false")
