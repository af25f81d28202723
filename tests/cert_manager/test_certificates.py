"""cert-manager's own controllers and approver with est-issuer: a Certificate becomes a Secret.

The controllers are linked from cert-manager's Go module; its webhook does not run.
"""

from __future__ import annotations

import base64
import json
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio
from cryptography import x509
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from estsuite_testing.e2e_stack import same_key
from estsuite_testing.issuer_world import GROUP, IssuerWorld, Object, condition

pytestmark = [pytest.mark.asyncio(loop_scope="session"), pytest.mark.timeout(600)]


@pytest_asyncio.fixture(scope="module", loop_scope="session", autouse=True)
async def controllers(world: IssuerWorld) -> AsyncIterator[None]:
    """cert-manager, est-issuer, and two issuers: one that enrolls and one that re-enrolls."""
    await world.bind("est-issuer-reenroll")
    started = [await world.start_cert_manager(), await world.start_issuer("issuer-cm")]
    await world.apply(
        world.issuer("enroll"),
        world.issuer("reenroll", renewal="Reenroll"),
        world.issuer("short", label="short", renewal="Reenroll"),
    )
    for name in ("enroll", "reenroll", "short"):
        await world.until_ready("estissuer", name, status="True")
    # It is due after 40 seconds, while the other tests run.
    await world.apply(certificate(world, "short", issuer="short"))
    yield
    for process in started:
        await process.stop()


def certificate(world: IssuerWorld, name: str, *, issuer: str, rotation: str = "Always") -> Object:
    host = f"{name}.devices.test"
    return {
        "apiVersion": "cert-manager.io/v1",
        "kind": "Certificate",
        "metadata": {"name": name, "namespace": world.namespace},
        "spec": {
            "secretName": f"{name}-tls",
            "commonName": host,
            "dnsNames": [host],
            "usages": ["digital signature", "server auth", "client auth"],
            "privateKey": {"algorithm": "ECDSA", "size": 256, "rotationPolicy": rotation},
            "issuerRef": {"group": GROUP, "kind": "ESTIssuer", "name": issuer},
        },
    }


async def stored(world: IssuerWorld, name: str) -> dict[str, bytes]:
    data = (await world.get("secret", f"{name}-tls"))["data"]
    return {key: base64.b64decode(value) for key, value in data.items()}


async def renew(world: IssuerWorld, name: str) -> None:
    """Ask for a renewal as ``cmctl renew`` does."""
    found = await world.get("certificate", name)
    new = {
        "type": "Issuing",
        "status": "True",
        "reason": "ManuallyTriggered",
        "message": "by a test",
        "lastTransitionTime": "2026-01-01T00:00:00Z",
    }
    status = {"conditions": [*found["status"]["conditions"], new]}
    await world.kubectl(
        *("patch", "certificate", name, "-n", world.namespace, "--type=merge"),
        *("--subresource=status", "-p", json.dumps({"status": status})),
    )


async def revision(world: IssuerWorld, name: str, number: int) -> None:
    """Wait until the Certificate has a revision and is ready."""

    def there(found: Object) -> bool:
        ready = condition(found, "Ready").get("status") == "True"
        return ready and found["status"].get("revision") == number

    await world.until("certificate", name, there)


async def test_a_certificate_becomes_a_secret(world: IssuerWorld) -> None:
    await world.apply(certificate(world, "web", issuer="enroll"))
    await revision(world, "web", 1)
    secret = await stored(world, "web")
    leaf, *between = x509.load_pem_x509_certificates(secret["tls.crt"])
    (root,) = x509.load_pem_x509_certificates(secret["ca.crt"])
    assert same_key(leaf, load_pem_private_key(secret["tls.key"], None))
    leaf.verify_directly_issued_by(between[0])
    between[-1].verify_directly_issued_by(root)
    names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == ["web.devices.test"]


@pytest.mark.parametrize(("name", "issuer", "rotation"), [
    ("by-secret", "enroll", "Always"),
    ("new-key", "reenroll", "Always"),
    ("same-key", "reenroll", "Never"),
])  # fmt: skip
async def test_it_is_renewed(world: IssuerWorld, name: str, issuer: str, rotation: str) -> None:
    """RFC 7030 section 4.2.2: where the issuer says so, the present certificate authenticates."""
    await world.apply(certificate(world, name, issuer=issuer, rotation=rotation))
    await revision(world, name, 1)
    before = await stored(world, name)
    await renew(world, name)
    await revision(world, name, 2)
    after = await stored(world, name)
    assert after["tls.crt"] != before["tls.crt"]
    assert (after["tls.key"] == before["tls.key"]) == (rotation == "Never")
    by_secret = ("simpleenroll", "secret:load")
    by_certificate = ("simplereenroll", f"certificate:issuing/CN={name}.devices.test")
    second = by_certificate if issuer == "reenroll" else by_secret
    assert await world.authenticated(f"{name}.devices.test") == [by_secret, second]


async def test_what_the_policy_denies_is_in_the_status_of_the_certificate(
    world: IssuerWorld,
) -> None:
    denied = certificate(world, "denied-by-policy", issuer="enroll")
    denied["spec"] |= {"commonName": "www.bank.test", "dnsNames": ["www.bank.test"]}
    await world.apply(denied)

    def failed(found: Object) -> bool:
        issuing = condition(found, "Issuing")
        return issuing.get("status") == "False" and issuing.get("reason") == "Failed"

    found = await world.until("certificate", "denied-by-policy", failed)
    assert "the server answers 403" in condition(found, "Issuing")["message"]
    assert found["status"]["failedIssuanceAttempts"] == 1
    there = await world.tried("get", "secret", "denied-by-policy-tls", "-n", world.namespace)
    assert b"NotFound" in there.stderr


async def test_a_ca_certificate_is_an_invalid_request(world: IssuerWorld) -> None:
    ca = certificate(world, "ca", issuer="enroll")
    ca["spec"] |= {"isCA": True, "usages": ["cert sign"]}
    await world.apply(ca)

    def refused(found: Object) -> bool:
        return condition(found, "Issuing").get("reason") == "InvalidRequest"

    found = await world.until("certificate", "ca", refused)
    assert "an EST server issues no CA certificates" in condition(found, "Issuing")["message"]


async def test_without_the_right_to_reenroll_the_request_says_so(world: IssuerWorld) -> None:
    await world.apply(certificate(world, "no-right", issuer="reenroll"))
    await revision(world, "no-right", 1)
    await world.delete("rolebinding", "est-issuer-reenroll")
    try:
        await renew(world, "no-right")
        ready = await world.until_ready("certificaterequest", "no-right-2", reason="Pending")
        assert "bind the ClusterRole est-issuer-reenroll" in ready["message"]
    finally:
        await world.bind("est-issuer-reenroll")
    await world.until_ready("certificaterequest", "no-right-2", status="True")


async def test_it_is_renewed_when_two_thirds_of_its_lifetime_are_over(world: IssuerWorld) -> None:
    def renewed(found: Object) -> bool:
        ready = condition(found, "Ready").get("status") == "True"
        return ready and int(found["status"].get("revision", 0)) > 1

    await world.until("certificate", "short", renewed, within_s=90)
    first, second, *_ = await world.authenticated("short.devices.test")
    assert first == ("simpleenroll", "secret:load")
    assert second == ("simplereenroll", "certificate:issuing/CN=short.devices.test")
