"""The network policies, on a cluster with an engine for them: what is not listed has no connection.

Runs where CLUSTER_NETWORK_POLICIES says that there is one. By Services, as the suite connects, and by the
addresses of pods.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from estsuite_testing.cluster.installation import NAMESPACE, Installation, is_ready, until
from estsuite_testing.cluster.load import Client

pytestmark = [pytest.mark.asyncio(loop_scope="session"), pytest.mark.timeout(600)]
OUTSIDE = "est-policy-test"
NATS, POSTGRES, EST = (
    f"{name}.{NAMESPACE}.svc:{port}"
    for name, port in (("nats", 4222), ("postgres", 5432), ("est-frontend", 8443))
)
PROBE = (
    "import socket, sys; h, p = sys.argv[1].rsplit(':', 1);"
    "s = socket.create_connection((h, int(p)), timeout=4); print('open')"
)


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def installed(cluster: Installation) -> AsyncIterator[Installation]:
    """The suite, and a pod of a different namespace with the image of estctl."""
    await cluster.install()
    space = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": OUTSIDE}}
    estctl = await cluster.get("statefulset", "estctl")
    (container,) = estctl["spec"]["template"]["spec"]["containers"]
    pod = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "outside", "namespace": OUTSIDE},
        "spec": {
            "terminationGracePeriodSeconds": 0,
            "containers": [
                {
                    "name": "outside",
                    "image": container["image"],
                    "imagePullPolicy": "IfNotPresent",
                    "command": ["sleep", "3600"],
                }
            ],
        },
    }
    for found in (space, pod):
        place = ("-n", OUTSIDE) if found is pod else ()
        await cluster.kubectl("apply", *place, "-f", "-", given=json.dumps(found).encode())

    async def ready() -> bool:
        return is_ready(await cluster.get("pod", "outside", "-n", OUTSIDE))

    await until(ready, 60, "the pod outside")
    yield cluster
    await cluster.kubectl("delete", "namespace", OUTSIDE, timeout_s=120)


async def connects(cluster: Installation, where: str, target: str) -> bool:
    """Whether a pod gets a connection, to a Service, or to the pod of a service by its address.

    ``outside`` is the pod of the different namespace.
    """
    place = ("-n", OUTSIDE) if where == "outside" else ()
    pod = where if where == "outside" else f"deployment/{where}"
    host, _, port = target.partition(":")
    if "." not in host:
        (first, *_) = await cluster.pods(host)
        target = f"{first['status']['podIP']}:{port}"
    done = await cluster.kubectl(
        *("exec", *place, pod, "--", "python", "-c", PROBE, target), check=False
    )
    return done.stdout == b"open\n"


@pytest.mark.parametrize(
    ("where", "target", "allowed"),
    [
        ("est-frontend", NATS, True),
        ("ca-signer", NATS, True),
        ("ca-signer", POSTGRES, True),
        ("outside", EST, True),
        ("outside", NATS, True),  # agents of the cluster have NKeys of their own
        ("est-frontend", POSTGRES, False),
        ("ca-signer", EST, False),
        ("renewal", EST, False),
        ("audit", EST, False),
        ("outside", "nats:8222", False),
        ("ca-signer", "audit:9100", False),
        ("outside", POSTGRES, False),
        ("ca-signer", "kubernetes.default.svc:443", False),
    ],
)
async def test_a_pod_has_the_connections_that_are_listed_and_no_others(
    installed: Installation, where: str, target: str, allowed: bool
) -> None:
    assert await connects(installed, where, target) is allowed


async def test_clients_still_reach_EST_from_outside_the_cluster(installed: Installation) -> None:
    assert await (await Client.of(installed)).cacerts() == 200
