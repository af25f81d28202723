"""PodCertificateRequests on a real API server: the EST server decides by the token of the pod.

Runs where the API server serves them (feature gate PodCertificateRequest, certificates.k8s.io/v1beta1).
The pods need not run: they are bound to a node, and their requests are made here, as the kubelet makes
them. With a kubelet that makes them itself see ``test_in_pods``.
"""

from __future__ import annotations

import base64
import datetime as dt
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding

from estsuite_testing.e2e_stack import same_key
from estsuite_testing.issuer_world import GROUP, IssuerWorld, Object, Process

pytestmark = [pytest.mark.asyncio(loop_scope="session"), pytest.mark.timeout(300)]
SIGNER = f"estissuers.{GROUP}/est-issuer-test"
POD_TOKEN = {"podToken": {"audience": "est"}}


@pytest_asyncio.fixture(scope="module", loop_scope="session", autouse=True)
async def issuer(world: IssuerWorld) -> AsyncIterator[Process]:
    """One controller, an issuer for pods, and two pods of one service account."""
    await world.bind_cluster("est-issuer-pod-certificates")
    await world.bind("est-issuer-pod-tokens")
    started = await world.start_issuer("issuer-pods", pod_certificate_requests=True)
    await world.apply(
        {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": named(world, "orders")},
        world.issuer("pods", label="pods", credentials=POD_TOKEN),
        world.issuer("shared", label="pods"),
        world.issuer("long", label="long-pods", credentials=POD_TOKEN),
        world.issuer("dated", label="dated-pods", credentials=POD_TOKEN),
    )
    for name in ("pods", "shared", "long", "dated"):
        await world.until_ready("estissuer", name, status="True")
    await world.apply(*[await pod(world, name) for name in ("orders-0", "orders-1")])
    yield started
    await world.stop_service_of("issuer-pods")


def named(world: IssuerWorld, name: str) -> dict[str, str]:
    return {"name": name, "namespace": world.namespace}


async def a_node(world: IssuerWorld) -> Object:
    nodes = json.loads(await world.kubectl("get", "nodes", "-o", "json"))["items"]
    return dict(nodes[0])


async def pod(world: IssuerWorld, name: str) -> Object:
    """A pod that is bound to a node and whose image is never there."""
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": named(world, name),
        "spec": {
            "nodeName": (await a_node(world))["metadata"]["name"],
            "serviceAccountName": "orders",
            "terminationGracePeriodSeconds": 0,
            "containers": [
                {"name": "none", "image": "none.test/none:1", "imagePullPolicy": "Never"}
            ],
        },
    }


def empty_csr(key: ec.EllipticCurvePrivateKey) -> bytes:
    builder = x509.CertificateSigningRequestBuilder(x509.Name([]))
    return builder.sign(key, SHA256()).public_bytes(Encoding.DER)


async def request(
    world: IssuerWorld,
    name: str,
    *,
    signer: str = "pods",
    curve: ec.EllipticCurve | None = None,
    **spec: Any,
) -> ec.EllipticCurvePrivateKey:
    """Create a request of the pod orders-0, as its kubelet does; return the key."""
    key = ec.generate_private_key(curve or ec.SECP256R1())
    found = await world.get("pod", "orders-0")
    account = await world.get("serviceaccount", "orders")
    node = await a_node(world)
    body = {
        "apiVersion": "certificates.k8s.io/v1beta1",
        "kind": "PodCertificateRequest",
        "metadata": named(world, name),
        "spec": {
            "signerName": signer if "/" in signer else f"{SIGNER}.{signer}",
            "podName": "orders-0",
            "podUID": found["metadata"]["uid"],
            "serviceAccountName": "orders",
            "serviceAccountUID": account["metadata"]["uid"],
            "nodeName": node["metadata"]["name"],
            "nodeUID": node["metadata"]["uid"],
            "stubPKCS10Request": base64.b64encode(empty_csr(key)).decode(),
            **spec,
        },
    }
    await world.kubectl("create", "-f", "-", given=body)
    return key


async def outcome(world: IssuerWorld, name: str) -> tuple[Object, Object]:
    """Return the only condition of a request, and its status."""
    found = await world.until(
        "podcertificaterequest", name, lambda f: (f.get("status") or {}).get("conditions")
    )
    (only,) = found["status"]["conditions"]
    return only, found["status"]


async def test_a_pod_gets_the_names_of_its_service_account(world: IssuerWorld) -> None:
    key = await request(world, "issued")
    condition, status = await outcome(world, "issued")
    assert (condition["type"], condition["status"]) == ("Issued", "True")
    leaf, *between = x509.load_pem_x509_certificates(status["certificateChain"].encode())
    assert same_key(leaf, key)
    leaf.verify_directly_issued_by(between[0])
    assert leaf.subject.rfc4514_string() == "CN=orders.est-issuer-test"
    names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.UniformResourceIdentifier) == [
        "spiffe://devices.test/ns/est-issuer-test/sa/orders"
    ]
    begin, refresh, end = (
        dt.datetime.fromisoformat(status[n]) for n in ("notBefore", "beginRefreshAt", "notAfter")
    )
    assert (begin, end) == (leaf.not_valid_before_utc, leaf.not_valid_after_utc)
    assert abs((refresh - begin) - (end - begin) * 2 / 3) < dt.timedelta(seconds=1)


async def test_the_EST_server_has_the_pod_on_record(world: IssuerWorld) -> None:
    await request(world, "on-record")
    await outcome(world, "on-record")
    made = await world.authenticated("orders.est-issuer-test")
    assert made[-1] == (
        "simpleenroll",
        "token:cluster/system:serviceaccount:est-issuer-test:orders",
    )


async def test_with_a_credential_of_its_own_an_issuer_gives_all_pods_its_names(
    world: IssuerWorld,
) -> None:
    await request(world, "shared", signer="shared")
    condition, status = await outcome(world, "shared")
    assert condition["type"] == "Issued", condition
    leaf = x509.load_pem_x509_certificates(status["certificateChain"].encode())[0]
    assert leaf.subject.rfc4514_string() == "CN=load.test"


async def test_a_key_that_the_profile_does_not_take_is_denied(world: IssuerWorld) -> None:
    await request(world, "curve", curve=ec.SECP384R1())
    condition, _ = await outcome(world, "curve")
    assert (condition["type"], condition["reason"]) == ("Denied", "UnsupportedKeyType")
    assert "[profile.key_algorithm]" in condition["message"]


async def test_annotations_of_the_pod_are_denied(world: IssuerWorld) -> None:
    await request(world, "annotated", unverifiedUserAnnotations={"devices.test/name": "bank"})
    condition, _ = await outcome(world, "annotated")
    assert condition["type"] == "Denied"
    assert condition["reason"] == "InvalidUnverifiedUserAnnotations"


@pytest.mark.parametrize(
    ("name", "spec", "text"),
    [
        ("other-pod", {"podName": "orders-1"}, "Pod est-issuer-test/orders-1 is not the one"),
        ("no-pod", {"podName": "none"}, "there is no Pod est-issuer-test/none"),
        ("other-account", {"serviceAccountName": "default"}, "ServiceAccount est-issuer-test/default is not the one"),
        ("other-node", {"nodeUID": "1-2-3"}, "is not the one of the request"),
        ("no-node", {"nodeName": "none"}, "there is no Node none"),
    ],
)  # fmt: skip
async def test_what_is_not_so_in_the_cluster_is_denied(
    world: IssuerWorld, name: str, spec: Object, text: str
) -> None:
    """NodeRestriction checks what kubelets write; these requests an administrator made."""
    before = await world.issued()
    await request(world, name, **spec)
    condition, _ = await outcome(world, name)
    assert (condition["type"], condition["reason"]) == ("Denied", "InvalidRequest")
    assert text in condition["message"]
    assert await world.issued() == before


async def test_an_issuer_answers_pods_of_its_own_namespace(world: IssuerWorld) -> None:
    await request(world, "abroad", signer=f"estissuers.{GROUP}/kube-system.pods")
    condition, _ = await outcome(world, "abroad")
    assert condition["type"] == "Denied"
    assert "answers pods of its own namespace" in condition["message"]


async def test_an_issuer_of_the_cluster_gives_no_pod_its_own_credential(
    world: IssuerWorld,
) -> None:
    await world.basic_secret("cluster-est", namespace="est-issuer")
    basic = {"basic": {"secretRef": {"name": "cluster-est"}}}
    for name, credentials in (("pods-basic", basic), ("pods-token", POD_TOKEN)):
        kind = "ESTClusterIssuer"
        await world.apply(world.issuer(name, kind=kind, label="pods", credentials=credentials))
    try:
        for name in ("pods-basic", "pods-token"):
            await world.until_ready("estclusterissuer", name, status="True")
            await request(world, name, signer=f"estclusterissuers.{GROUP}/{name}")
        condition, _ = await outcome(world, "pods-basic")
        assert "with credentials.podToken only" in condition["message"]
        condition, _ = await outcome(world, "pods-token")
        assert condition["type"] == "Issued", condition
    finally:
        for name in ("pods-basic", "pods-token"):
            await world.delete("estclusterissuer", name)


@pytest.mark.parametrize(
    ("signer", "text"), [("long", "raise maxExpirationSeconds"), ("dated", "set backdate: none")]
)
async def test_what_the_api_server_would_not_take_fails_with_the_remedy(
    world: IssuerWorld, signer: str, text: str
) -> None:
    await request(world, signer, signer=signer)
    condition, status = await outcome(world, signer)
    assert (condition["type"], condition["reason"]) == ("Failed", "UnfitCertificate")
    assert text in condition["message"]
    assert "certificateChain" not in status


async def test_without_the_right_to_tokens_it_waits_and_an_event_says_so(
    world: IssuerWorld,
) -> None:
    await world.delete("rolebinding", "est-issuer-pod-tokens")
    try:
        await request(world, "no-right")
        note = await world.event("no-right", "Pending")
        assert "bind the ClusterRole est-issuer-pod-tokens to it there" in note
        found = await world.get("podcertificaterequest", "no-right")
        assert not (found.get("status") or {}).get("conditions")
    finally:
        await world.bind("est-issuer-pod-tokens")
    condition, _ = await outcome(world, "no-right")
    assert condition["type"] == "Issued"
    assert "the EST server issued" in await world.event("no-right", "Issued")


async def test_an_issuer_for_pods_answers_no_other_requests(world: IssuerWorld) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    builder = x509.CertificateSigningRequestBuilder(x509.Name([]))
    csr = builder.sign(key, SHA256()).public_bytes(Encoding.PEM)
    await world.apply(world.request("not-a-pod", csr, issuer="pods"))
    await world.decide("not-a-pod")
    ready = await world.until_ready("certificaterequest", "not-a-pod", reason="Failed")
    assert "it answers PodCertificateRequests only" in ready["message"]
