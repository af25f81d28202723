"""Two nodes: replicas do not share one, and a drain takes a node out of service without an outage.

Skipped on a cluster of one node. The constraint is that of ``overlays/prod``: a second replica rather waits.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio
import yaml

from estsuite_testing.cluster.installation import SERVICES, Installation, is_ready, until
from estsuite_testing.cluster.load import Client, Load
from estsuite_testing.cluster.operators import client_of

pytestmark = [pytest.mark.asyncio(loop_scope="session"), pytest.mark.timeout(900)]
EXPECTED = {"200", "202", "503", "ClientConnectorError"}
"""See test_helm_release for the last."""


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def nodes(cluster: Installation) -> list[str]:
    """The names of the nodes that take pods."""
    items = (await cluster.get("nodes"))["items"]
    found = [n["metadata"]["name"] for n in items if is_ready(n) and not n["spec"].get("taints")]
    if len(found) < 2:
        pytest.skip("the cluster has one node")
    return found


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def installed(cluster: Installation, nodes: list[str]) -> AsyncIterator[Installation]:
    await cluster.remove()
    cluster.forget()
    prod = cluster.root / "deploy" / "k8s" / "overlays" / "prod" / "kustomization.yaml"
    (spread, *_) = yaml.safe_load(prod.read_text())["patches"]
    assert "minDomains" in spread["patch"]
    target = spread["target"] | {"labelSelector": "app.kubernetes.io/component=service"}
    cluster.patches, cluster.replicas = [{**spread, "target": target}], 2
    await cluster.install()
    yield cluster
    for node in nodes:
        await cluster.kubectl("uncordon", node)
    await cluster.remove()
    cluster.forget()


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def client(installed: Installation) -> Client:
    return await client_of(installed)


async def places(cluster: Installation) -> dict[str, list[str]]:
    """Return the nodes of the pods of each service; an empty name for a pod that waits."""
    return {
        name: sorted(pod["spec"].get("nodeName", "") for pod in await cluster.pods(name))
        for name in SERVICES
    }


async def test_the_replicas_of_a_service_are_on_two_nodes(
    installed: Installation, nodes: list[str]
) -> None:
    for name, found in (await places(installed)).items():
        assert len(found) == len({*found}) == 2, name


async def test_a_drained_node_has_no_pod_and_clients_have_certificates(
    installed: Installation, client: Client, nodes: list[str]
) -> None:
    cluster = installed
    # Not the node of NATS, which is one here: its outage is a different test.
    (server,) = await cluster.pods("nats")
    drained = next(node for node in nodes if node != server["spec"]["nodeName"])
    load = Load(client, per_second=4)
    async with load:
        drain = ("drain", drained, "--ignore-daemonsets", "--delete-emptydir-data", "--force")
        await cluster.kubectl(*drain, "--timeout=300s", timeout_s=310)
        left = {name: [n for n in found if n] for name, found in (await places(cluster)).items()}
        assert all(found and drained not in found for found in left.values()), left
        await asyncio.sleep(15)
        # One replica works; the other waits for a second node.
        assert all(len(found) == 1 for found in left.values()), left
        await cluster.kubectl("uncordon", drained)

        async def spread() -> bool:
            return all({*found} == {*nodes[:2]} for found in (await places(cluster)).values())

        await until(spread, 180, "replicas on both nodes again")
        await cluster.ready()
    sys.stdout.write(load.report() + "\n")
    assert len(load.serials) == len({*load.serials}) == load.begun > 0
    assert {*load.answers} <= EXPECTED
    cluster.received(load.serials)
