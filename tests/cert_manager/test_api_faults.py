"""est-issuer while the Kubernetes API does not answer, and when it forgot what was watched."""

from __future__ import annotations

import asyncio

import pytest

from est_issuer.api import KubernetesAPI
from est_issuer.errors import APIRefused, ObjectChanged, ObjectMissing
from est_issuer.kinds import CERTIFICATE_REQUESTS, SECRETS, Key
from estdev.ports import free_port
from estsuite_testing.chains import make_request
from estsuite_testing.chaos.fault_proxy import FaultProxy
from estsuite_testing.issuer_world import IssuerWorld

pytestmark = [pytest.mark.asyncio(loop_scope="session"), pytest.mark.timeout(300)]


async def test_while_the_api_does_not_answer_the_leader_stops_and_then_goes_on(
    world: IssuerWorld,
) -> None:
    """Connections stay open, and nothing comes: the worst way to be unavailable."""
    host, port = await world.api_server()
    proxy = FaultProxy(free_port(), port, host)
    await proxy.start()
    try:
        config = str(await world.kubeconfig(through=proxy.port))
        started = await world.start_issuer("issuer-cut", kubeconfig_file=config)
        await world.apply(world.issuer("cut"))
        await world.until_ready("estissuer", "cut", status="True")
        before = await world.issued()
        proxy.hold()
        _, csr = make_request("cut.devices.test")
        await world.apply(world.request("cut", csr, issuer="cut"))
        await world.decide("cut")
        async with asyncio.timeout(60):
            while "the lease was lost" not in {line["message"] for line in started.lines()}:
                await asyncio.sleep(0.2)
        assert await world.issued() == before
        proxy.release()
        await world.until_ready("certificaterequest", "cut", status="True")
        assert await world.issued() == before + 1
        await world.stop_service_of("issuer-cut")
    finally:
        await proxy.stop()


async def test_a_version_that_the_api_forgot_is_noticed_and_rights_are_narrow(
    world: IssuerWorld,
) -> None:
    api = await KubernetesAPI.connect(await world.kubeconfig())
    try:
        watch = api._watch(CERTIFICATE_REQUESTS, "1")
        with pytest.raises(APIRefused) as raised:
            await anext(watch)
        assert raised.value.status == 410
        with pytest.raises(ObjectMissing):
            await api.get(CERTIFICATE_REQUESTS, Key(world.namespace, "none"))
        with pytest.raises(APIRefused) as raised:
            await api.get(SECRETS, Key("kube-system", "any"))
        assert raised.value.status == 403
        with pytest.raises(APIRefused):
            await anext(api.follow(SECRETS))
    finally:
        await api.close()


async def test_a_status_of_an_object_that_was_changed_is_not_written(world: IssuerWorld) -> None:
    api = await KubernetesAPI.connect(await world.kubeconfig())
    try:
        _, csr = make_request("changed.devices.test")
        await world.apply(world.request("changed", csr, issuer="none"))
        key = Key(world.namespace, "changed")
        seen = await api.get(CERTIFICATE_REQUESTS, key)
        await world.decide("changed", "Denied")
        with pytest.raises(ObjectChanged):
            await api.patch_status(
                CERTIFICATE_REQUESTS, seen, {"failureTime": "2026-01-01T00:00:00Z"}
            )
        found = await api.get(CERTIFICATE_REQUESTS, key)
        assert "failureTime" not in found["status"]
    finally:
        await api.close()
