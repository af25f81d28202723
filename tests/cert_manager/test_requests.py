"""est-issuer on a real API server, with a real EST server: issuers, and requests of both kinds.

No controller of cert-manager runs: a test approves or denies, and nothing else is there.
"""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio
from cryptography import x509

from estsuite_testing.chains import make_request
from estsuite_testing.e2e_stack import same_key, write_key
from estsuite_testing.issuer_world import (
    GROUP,
    IssuerWorld,
    Object,
    Process,
    certificates_in,
    condition,
)

pytestmark = [pytest.mark.asyncio(loop_scope="session"), pytest.mark.timeout(300)]


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def issuer(world: IssuerWorld) -> AsyncIterator[Process]:
    """One controller, and the issuer ``est`` of the namespace, Ready."""
    await world.bind_cluster("est-issuer-signing-requests")
    started = await world.start_issuer(telemetry={"log_level": "DEBUG"})
    await world.apply(world.issuer("est"))
    await world.until_ready("estissuer", "est", status="True")
    yield started
    await started.stop()


@pytest.fixture(autouse=True)
def _running(issuer: Process) -> None:
    """Every test here needs the controller."""


async def requested(
    world: IssuerWorld,
    name: str,
    *,
    issuer: str = "est",
    decision: str = "Approved",
    **spec: Any,
) -> x509.CertificateSigningRequest:
    """Create a request for ``<name>.devices.test`` and decide it."""
    _, csr = make_request(f"{name}.devices.test")
    await world.apply(world.request(name, csr, issuer=issuer, **spec))
    if decision:
        await world.decide(name, decision)
    return x509.load_pem_x509_csr(csr)


async def test_an_issuer_is_ready_when_cacerts_was_verified(world: IssuerWorld) -> None:
    found = await world.get("estissuer", "est")
    ready = condition(found, "Ready")
    assert ready["reason"] == "Verified"
    assert ready["observedGeneration"] == found["metadata"]["generation"]
    assert "CN=Clinic Dev" in ready["message"]
    assert len(found["status"]["certificates"]) >= 2
    table = await world.kubectl("get", "estissuer", "est", "-n", world.namespace)
    assert table.split()[:6] == ["NAME", "READY", "REASON", "SERVER", "LABEL", "AGE"]
    assert "True" in table


@pytest.mark.parametrize(
    ("name", "spec", "reason", "text"),
    [
        ("no-secret", {"credentials": {"basic": {"secretRef": {"name": "none"}}}}, "SecretNotFound", "there is no Secret est-issuer-test/none"),
        ("no-key", {"credentials": {"token": {"secretRef": {"name": "est"}}}}, "KeyNotFound", "Secret est-issuer-test/est has no key token"),
        ("no-map", {"trust": {"configMapRef": {"name": "none"}}}, "ConfigMapNotFound", "there is no ConfigMap est-issuer-test/none"),
        ("no-pem", {"trust": {"caBundle": base64.b64encode(b"hello").decode()}}, "InvalidTrust", "spec.trust.caBundle: no certificates in PEM"),
        ("no-server", {"url": "https://127.0.0.1:1"}, "ServerUnavailable", "/cacerts: https://127.0.0.1:1"),
        ("no-label", {"label": "unknown"}, "ServerRefused", "/cacerts: the server answers 404"),
    ],
)  # fmt: skip
async def test_an_issuer_that_cannot_be_used_says_why(
    world: IssuerWorld, name: str, spec: Object, reason: str, text: str
) -> None:
    await world.apply(world.issuer(name, **spec))
    ready = await world.until_ready("estissuer", name, status="False", reason=reason)
    assert text in ready["message"]


async def test_anchors_of_a_different_ca_do_not_verify_the_server(world: IssuerWorld) -> None:
    stranger = await world.foreign_root()
    await world.apply(world.issuer("stranger", trust={"caBundle": stranger}))
    ready = await world.until_ready("estissuer", "stranger", reason="ServerUnavailable")
    assert "certificate verify failed" in ready["message"]


async def test_the_api_refuses_two_credentials(world: IssuerWorld) -> None:
    two = {
        "basic": {"secretRef": {"name": "est"}},
        "token": {"secretRef": {"name": "est"}},
    }
    refused = await world.tried("apply", "-f", "-", given=world.issuer("two", credentials=two))
    assert refused.returncode != 0
    assert b"exactly one of basic, token, clientCertificate and podToken" in refused.stderr


async def test_without_a_right_the_issuer_names_it_and_is_ready_once_it_is_given(
    world: IssuerWorld,
) -> None:
    other = "est-issuer-other"
    space = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": other}}
    await world.apply(space)
    try:
        await world.basic_secret(namespace=other)
        moved = world.issuer("est")
        moved["metadata"]["namespace"] = other
        await world.apply(moved)
        ready = await world.until_ready("estissuer", "est", namespace=other, reason="Forbidden")
        assert (
            f"bind the ClusterRole est-issuer-secrets to it in namespace {other}"
            in ready["message"]
        )
        await world.bind("est-issuer-secrets", other)
        await world.until_ready("estissuer", "est", namespace=other, status="True")
    finally:
        await world.kubectl("delete", "namespace", other, "--wait=false")


async def test_an_approved_request_gets_its_certificate(world: IssuerWorld) -> None:
    before = await world.issued()
    csr = await requested(world, "approved", duration="720h0m0s")
    ready = await world.until_ready("certificaterequest", "approved", status="True")
    assert ready["reason"] == "Issued"
    assert ready["message"] == "the EST server issued the certificate"
    status = (await world.get("certificaterequest", "approved"))["status"]
    leaf, *between = certificates_in(status["certificate"])
    (root,) = certificates_in(status["ca"])
    assert same_key(leaf, csr)
    leaf.verify_directly_issued_by(between[0])
    between[-1].verify_directly_issued_by(root)
    assert root not in between
    assert await world.issued() == before + 1


async def test_a_request_without_a_decision_is_not_sent(world: IssuerWorld) -> None:
    before = await world.issued()
    await requested(world, "undecided", decision="")
    await requested(world, "after-undecided")
    await world.until_ready("certificaterequest", "after-undecided", status="True")
    assert "status" not in await world.get("certificaterequest", "undecided")
    assert await world.issued() == before + 1


async def test_a_denied_request_is_never_sent(world: IssuerWorld) -> None:
    before = await world.issued()
    await requested(world, "denied", decision="Denied")
    ready = await world.until_ready("certificaterequest", "denied", reason="Denied")
    assert ready["status"] == "False"
    assert "decided by a test" in ready["message"]
    assert (await world.get("certificaterequest", "denied"))["status"]["failureTime"]
    assert await world.issued() == before


async def test_a_ca_certificate_is_refused_without_asking_the_server(world: IssuerWorld) -> None:
    await requested(world, "is-ca", isCA=True)
    await world.until_ready("certificaterequest", "is-ca", reason="Failed")
    found = await world.get("certificaterequest", "is-ca")
    invalid = condition(found, "InvalidRequest")
    assert invalid["status"] == "True"
    assert "isCA: an EST server issues no CA certificates" in invalid["message"]


async def test_what_the_policy_refuses_fails_with_the_servers_reason(world: IssuerWorld) -> None:
    _, csr = make_request("www.bank.test")
    await world.apply(world.request("refused", csr, issuer="est"))
    await world.decide("refused")
    ready = await world.until_ready("certificaterequest", "refused", reason="Failed")
    assert "the server answers 403" in ready["message"]
    assert "[policy." in ready["message"]
    assert (await world.get("certificaterequest", "refused"))["status"]["failureTime"]


async def test_a_wrong_secret_fails_and_is_in_no_log(world: IssuerWorld, issuer: Process) -> None:
    await world.secret("wrong", username="load", password="not-the-secret-Xk42")
    basic = {"basic": {"secretRef": {"name": "wrong"}}}
    await world.apply(world.issuer("wrong", credentials=basic))
    await world.until_ready("estissuer", "wrong", status="True")
    await requested(world, "wrong-secret", issuer="wrong")
    ready = await world.until_ready("certificaterequest", "wrong-secret", reason="Failed")
    assert "the server answers 401" in ready["message"]
    assert "Xk42" not in json.dumps(ready)
    # At level DEBUG: the Kubernetes client would write the bodies of Secrets there.
    everything = issuer.path.read_text()
    for secret in ("not-the-secret-Xk42", world.stack.secret):
        assert secret not in everything
        assert base64.b64encode(secret.encode()).decode() not in everything


async def test_usages_that_the_server_does_not_grant_are_named(world: IssuerWorld) -> None:
    await world.apply(world.issuer("clients", label="clients"))
    await requested(world, "usages", issuer="clients", usages=["server auth", "client auth"])
    ready = await world.until_ready("certificaterequest", "usages", reason="Failed")
    assert "the EST server issued without the usages server auth" in ready["message"]
    await requested(world, "duration", issuer="clients", usages=["client auth"], duration="24h")
    ready = await world.until_ready("certificaterequest", "duration", status="True")
    assert ready["message"].endswith("which the server decides, and not after 1d")


async def test_events_tell_what_became_of_a_request(world: IssuerWorld) -> None:
    """``kubectl describe`` shows them, for an issuer too."""
    await requested(world, "event-issued")
    assert "the EST server issued" in await world.event("event-issued", "Issued")
    await requested(world, "event-denied", decision="Denied")
    assert "an approver denied" in await world.event("event-denied", "Denied")
    _, csr = make_request("www.bank.test")
    await world.apply(world.request("event-failed", csr, issuer="est"))
    await world.decide("event-failed")
    assert "the server answers 403" in await world.event("event-failed", "Failed")
    await world.stack.suite.stop_service("est-frontend")
    try:
        await requested(world, "event-retrying")
        assert "[client.server_away]" in await world.event("event-retrying", "Retrying")
    finally:
        await world.stack.suite.start_service("est-frontend", "est-frontend", wait=True)
    assert "/cacerts was verified" in await world.event("est", "Verified")
    shown = await world.kubectl(
        "describe", "certificaterequest", "event-failed", "-n", world.namespace
    )
    assert "the server answers 403" in shown.partition("Events:")[2]


async def test_a_request_waits_for_its_issuer(world: IssuerWorld) -> None:
    await requested(world, "early", issuer="later")
    ready = await world.until_ready("certificaterequest", "early", reason="Pending")
    assert ready["message"] == "there is no ESTIssuer est-issuer-test/later"
    await world.apply(world.issuer("later"))
    await world.until_ready("certificaterequest", "early", status="True")


async def test_an_issuer_of_the_cluster_has_its_secrets_with_the_controller(
    world: IssuerWorld,
) -> None:
    await world.basic_secret("cluster-est", namespace="est-issuer")
    basic = {"basic": {"secretRef": {"name": "cluster-est"}}}
    await world.apply(world.issuer("everywhere", kind="ESTClusterIssuer", credentials=basic))
    try:
        _, csr = make_request("cluster.devices.test")
        body = world.request("cluster", csr, issuer="everywhere", kind="ESTClusterIssuer")
        await world.apply(body)
        await world.decide("cluster")
        await world.until_ready("certificaterequest", "cluster", status="True")
    finally:
        await world.delete("estclusterissuer", "everywhere")


async def test_a_client_certificate_is_a_credential(world: IssuerWorld) -> None:
    key, csr = make_request("ra.devices.test")
    await world.apply(world.request("ra", csr, issuer="est"))
    await world.decide("ra")
    await world.until_ready("certificaterequest", "ra", status="True")
    chain = (await world.get("certificaterequest", "ra"))["status"]["certificate"]
    pem = write_key(world.folder / "ra.key", key).read_text()
    await world.secret("ra", **{"tls.crt": base64.b64decode(chain).decode(), "tls.key": pem})
    by_certificate = {"clientCertificate": {"secretRef": {"name": "ra"}}}
    await world.apply(world.issuer("ra", credentials=by_certificate))
    await requested(world, "by-certificate", issuer="ra")
    await world.until_ready("certificaterequest", "by-certificate", status="True")


async def test_a_bearer_token_is_a_credential(world: IssuerWorld) -> None:
    await world.secret("token", token=world.tokens.token() + "\n")
    by_token = {"token": {"secretRef": {"name": "token"}}}
    await world.apply(world.issuer("token", credentials=by_token))
    await requested(world, "by-token", issuer="token")
    await world.until_ready("certificaterequest", "by-token", status="True")


async def test_while_the_signer_is_down_requests_are_pending_and_then_issued_once(
    world: IssuerWorld,
) -> None:
    """RFC 7030 section 4.2.3: 202 with Retry-After; the same request is sent again."""
    before = await world.issued()
    await world.stack.suite.stop_service("ca-signer")
    try:
        await requested(world, "slow")
        ready = await world.until_ready("certificaterequest", "slow", reason="Pending")
        assert "(202)" in ready["message"]
    finally:
        await world.stack.suite.start_service("ca-signer", "ca-signer", wait=True)
    await world.until_ready("certificaterequest", "slow", status="True")
    assert await world.issued() == before + 1


async def test_while_no_server_answers_requests_are_pending_and_then_issued(
    world: IssuerWorld,
) -> None:
    await world.stack.suite.stop_service("est-frontend")
    try:
        await requested(world, "offline")
        ready = await world.until_ready("certificaterequest", "offline", reason="Pending")
        assert "[client.server_away]" in ready["message"]
    finally:
        await world.stack.suite.start_service("est-frontend", "est-frontend", wait=True)
    await world.until_ready("certificaterequest", "offline", status="True")
    assert "failureTime" not in (await world.get("certificaterequest", "offline"))["status"]


async def test_a_second_replica_stands_by_until_the_leader_is_killed(
    world: IssuerWorld, issuer: Process
) -> None:
    before = await world.issued()
    second = await world.start_issuer("issuer-2")
    await requested(world, "before-kill")
    await world.until_ready("certificaterequest", "before-kill", status="True")
    assert "request answered" in {line["message"] for line in issuer.lines()}
    assert "request answered" not in {line["message"] for line in second.lines()}
    await world.stop_service_of("issuer-1", kill=True)
    await requested(world, "after-kill")
    await world.until_ready("certificaterequest", "after-kill", status="True")
    await world.start_issuer("issuer-1")
    assert await world.issued() == before + 2


def signing_request(world: IssuerWorld, name: str) -> Object:
    _, csr = make_request("native.devices.test")
    return {
        "apiVersion": "certificates.k8s.io/v1",
        "kind": "CertificateSigningRequest",
        "metadata": {"name": name},
        "spec": {
            "request": base64.b64encode(csr).decode(),
            "signerName": f"estissuers.{GROUP}/{world.namespace}.est",
            "usages": ["digital signature", "client auth"],
        },
    }


def right(kind: str, name: str, user: str, rule: Object, **metadata: str) -> list[Object]:
    """A Role or ClusterRole with one rule, bound to a user."""
    group = "rbac.authorization.k8s.io"
    common = {"apiVersion": f"{group}/v1", "metadata": {"name": name, **metadata}}
    subjects = [{"kind": "User", "name": user, "apiGroup": group}]
    reference = {"apiGroup": group, "kind": kind, "name": name}
    bound = {"kind": f"{kind}Binding", "roleRef": reference, "subjects": subjects}
    return [{**common, "kind": kind, "rules": [rule]}, {**common, **bound}]


def has_outcome(found: Object) -> bool:
    status = found["status"]
    failed = any(c["type"] == "Failed" for c in status.get("conditions", ()))
    return bool(failed or status.get("certificate"))


async def test_a_signing_request_needs_the_right_to_use_an_issuer_of_a_namespace(
    world: IssuerWorld,
) -> None:
    """A user whose requests an approver approves, but who may not use the issuer."""
    name, user = "est-issuer-test-stranger", "stranger"
    csrs = {"apiGroups": ["certificates.k8s.io"], "resources": ["certificatesigningrequests"]}
    signers = {"apiGroups": [GROUP], "resources": ["signers"], "resourceNames": ["est"]}
    making = right("ClusterRole", name, user, {**csrs, "verbs": ["create"]})
    using = right(
        "Role", name, user, {**signers, "verbs": ["reference"]}, namespace=world.namespace
    )
    await world.apply(*making)
    before = await world.issued()

    async def outcome() -> Object:
        body = signing_request(world, name)
        await world.kubectl("create", "-f", "-", "--as", user, given=body)
        try:
            await world.kubectl("certificate", "approve", name)
            found = await world.until("csr", name, has_outcome)
            return dict(found["status"])
        finally:
            await world.kubectl("delete", "csr", name)

    try:
        refused = await outcome()
        (failed,) = [c for c in refused["conditions"] if c["type"] == "Failed"]
        assert f"{user} may not use the issuer {world.namespace}/est" in failed["message"]
        assert (await world.issued(), refused.get("certificate")) == (before, None)
        await world.apply(*using)
        assert (await outcome()).get("certificate")
    finally:
        await world.kubectl("delete", f"clusterrole/{name}", f"clusterrolebinding/{name}")


async def test_a_signing_request_of_kubernetes_gets_its_certificate(world: IssuerWorld) -> None:
    name = "est-issuer-test-native"
    await world.kubectl("delete", "csr", name, "--ignore-not-found")
    await world.apply(signing_request(world, name))
    try:
        await asyncio.sleep(0.5)
        assert "certificate" not in (await world.get("csr", name))["status"]
        await world.kubectl("certificate", "approve", name)
        found = await world.until("csr", name, lambda f: f["status"].get("certificate"))
        leaf = certificates_in(found["status"]["certificate"])[0]
        assert leaf.subject.rfc4514_string() == "CN=native.devices.test"
    finally:
        await world.kubectl("delete", "csr", name)
