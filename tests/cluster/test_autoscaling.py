"""Pods come with the load and go with it: the HorizontalPodAutoscaler of est-frontend, and KEDA for ca-signer.

The first needs the metrics of pods (metrics-server), the second KEDA with its definitions; without them the
tests are skipped. The objects are those of ``deploy/k8s``, with smaller numbers, so that they move in minutes.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import pytest_asyncio
import yaml

from estsuite_testing.cluster.installation import NAMESPACE, Installation, Object, until
from estsuite_testing.cluster.load import Client, Load
from estsuite_testing.cluster.operators import client_of
from estsuite_testing.cluster.records import assert_records_agree

pytestmark = [pytest.mark.asyncio(loop_scope="session"), pytest.mark.timeout(1200)]
EXPECTED = {"200", "202", "503", "ClientConnectorError"}
"""See test_helm_release for the last: here pods end all the time."""
PER_SECOND = float(os.environ.get("CLUSTER_LOAD", "20"))
MONITOR = "nats-monitor"
SIGNER_LAG = 10
"""Requests for each ca-signer, in place of a hundred."""


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def installed(cluster: Installation) -> AsyncIterator[Installation]:
    await cluster.remove()
    cluster.forget()
    await cluster.install()
    yield cluster
    await cluster.remove()
    cluster.forget()


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def client(installed: Installation) -> Client:
    return await client_of(installed)


async def serves(cluster: Installation, path: str) -> bool:
    """Whether the API server answers for a path, which a further API server may serve."""
    return (await cluster.kubectl("get", "--raw", path, check=False)).returncode == 0


def autoscaler(cluster: Installation) -> Object:
    """Return the HorizontalPodAutoscaler of est-frontend as it is in the base."""
    text = (cluster.root / "deploy" / "k8s" / "base" / "est-frontend.yaml").read_text()
    (found,) = (d for d in yaml.safe_load_all(text) if d["kind"] == "HorizontalPodAutoscaler")
    hpa: Object = found
    return hpa


async def ready_pods(cluster: Installation, name: str) -> int:
    return len((await cluster.versions(name))[name])


class Numbers:
    """How many pods of a service were ready, and when that changed."""

    def __init__(self, cluster: Installation, name: str) -> None:
        self._cluster, self._name = cluster, name
        self._begun = time.monotonic()
        self.seen: list[tuple[int, int]] = []
        """Seconds, and the number from then on."""

    async def until(self, wanted: int, timeout_s: float, *, more: bool) -> None:
        """Wait for ``wanted`` pods, or more of them, or fewer."""

        async def there() -> bool:
            count = await ready_pods(self._cluster, self._name)
            if not self.seen or self.seen[-1][1] != count:
                self.seen.append((round(time.monotonic() - self._begun), count))
            return count >= wanted if more else count <= wanted

        await until(there, timeout_s, f"{wanted} of {self._name}: {self.seen}")


@asynccontextmanager
async def loaded(cluster: Installation, client: Client, per_second: float) -> AsyncIterator[Load]:
    """Enroll while a block runs; every client has its certificate afterwards."""
    load = Load(client, per_second=per_second)
    async with load:
        yield load
    sys.stdout.write(load.report() + "\n")
    assert len(load.serials) == len({*load.serials}) == load.begun > 0
    assert {*load.answers} <= EXPECTED
    cluster.received(load.serials)


async def test_est_frontend_scales_with_its_load_and_back(
    installed: Installation, client: Client
) -> None:
    cluster = installed
    if not await serves(cluster, f"/apis/metrics.k8s.io/v1beta1/namespaces/{NAMESPACE}/pods"):
        pytest.skip("the cluster has no metrics of pods: no metrics-server")
    hpa = autoscaler(cluster)
    hpa["spec"] |= {"minReplicas": 1, "maxReplicas": 3}
    hpa["spec"]["behavior"]["scaleDown"]["stabilizationWindowSeconds"] = 15
    await cluster.kubectl("apply", "-f", "-", given=json.dumps(hpa).encode())
    numbers = Numbers(cluster, "est-frontend")
    async with loaded(cluster, client, PER_SECOND):
        await numbers.until(2, 300, more=True)
        await asyncio.sleep(10)
    await numbers.until(1, 420, more=False)
    status = (await cluster.get("hpa", "est-frontend"))["status"]
    assert {c["type"]: c["status"] for c in status["conditions"]}["ScalingActive"] == "True"
    sys.stdout.write(f"est-frontend, seconds and pods: {numbers.seen}\n")
    await cluster.kubectl("delete", "hpa", "est-frontend")


@pytest_asyncio.fixture(loop_scope="session")
async def keda(installed: Installation) -> AsyncIterator[Installation]:
    """The component, for the NATS of all-in-one, whose monitoring port KEDA may reach."""
    cluster = installed
    if not await serves(cluster, "/apis/external.metrics.k8s.io/v1beta1"):
        pytest.skip("the cluster has no external metrics: no KEDA")
    labels = {"app.kubernetes.io/name": "nats", "app.kubernetes.io/component": "server"}
    service = {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": MONITOR},
        "spec": {"selector": labels, "ports": [{"port": 8222, "targetPort": "monitor"}]},
    }
    keda_space = {"matchLabels": {"kubernetes.io/metadata.name": "keda"}}
    policy = {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": {"name": MONITOR},
        "spec": {
            "podSelector": {"matchLabels": labels},
            "ingress": [{"from": [{"namespaceSelector": keda_space}], "ports": [{"port": 8222}]}],
        },
    }
    for document in (service, policy):
        await cluster.kubectl("apply", "-f", "-", given=json.dumps(document).encode())
    component = cluster.root / "deploy" / "k8s" / "components" / "keda"
    spec = yaml.safe_load((component / "scaled-objects.yaml").read_text())["spec"]
    where = {
        "natsServerMonitoringEndpoint": f"{MONITOR}.{NAMESPACE}.svc:8222",
        "lagThreshold": str(SIGNER_LAG),
    }
    changed = [
        ("replace", "/minReplicaCount", 1),
        ("replace", "/maxReplicaCount", 3),
        ("replace", "/pollingInterval", 5),
        ("replace", "/fallback/replicas", 1),
        (
            "replace",
            "/advanced/horizontalPodAutoscalerConfig/behavior/scaleDown/stabilizationWindowSeconds",
            15,
        ),
        *(
            ("replace", f"/triggers/{i}/metadata/{key}", value)
            for i in range(len(spec["triggers"]))
            for key, value in where.items()
        ),
    ]
    operations = [{"op": op, "path": f"/spec{path}", "value": value} for op, path, value in changed]
    cluster.components = [component]
    cluster.patches = [{"target": {"kind": "ScaledObject"}, "patch": yaml.safe_dump(operations)}]
    await cluster.apply()
    yield cluster
    await cluster.kubectl("delete", "scaledobject", "ca-signer")
    cluster.components, cluster.patches = [], []


async def test_KEDA_scales_ca_signer_by_what_waits_and_back(
    keda: Installation, client: Client
) -> None:
    """Requests wait since the ledger is locked; signers come, and go when nothing waits."""
    numbers = Numbers(keda, "ca-signer")

    async def active() -> bool:
        found = await keda.get("scaledobject", "ca-signer")
        conditions = found.get("status", {}).get("conditions", [])
        return {c["type"]: c["status"] for c in conditions}.get("Ready") == "True"

    await until(active, 120, "KEDA accepts the ScaledObject")
    await numbers.until(1, 120, more=False)
    async with loaded(keda, client, 4):
        lock = asyncio.create_task(ledger_locked(keda, 60))
        await numbers.until(2, 240, more=True)
        await lock
    await numbers.until(1, 420, more=False)
    sys.stdout.write(f"ca-signer, seconds and pods: {numbers.seen}\n")


async def ledger_locked(cluster: Installation, seconds: int) -> None:
    """Hold a lock that every new issuance waits for."""
    statement = (
        f"begin; lock table ca_signer.issuance in exclusive mode; select pg_sleep({seconds})"
    )
    await cluster.psql(statement)


async def test_every_certificate_is_on_record(
    installed: Installation, client: Client, tmp_path: Path
) -> None:
    """Nothing was lost by pods that came and went."""
    await assert_records_agree(installed, tmp_path)
