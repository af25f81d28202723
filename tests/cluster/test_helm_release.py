"""The Helm chart on a real Kubernetes: installed, upgraded, rolled back and uninstalled under load.

By the commands of deploy/README.md, with ``values-all-in-one.yaml``. The namespace is made anew, so what
``test_cluster`` installed by Kustomize is gone. CLUSTER_SECOND_TAG names a tag of the services' images,
on the nodes or in the registry, to which they are upgraded.
"""

from __future__ import annotations

import os
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio
import yaml

from estsuite_testing.cluster.helm_release import RELEASE, HelmRelease
from estsuite_testing.cluster.installation import SERVICES, Installation, names_of, until
from estsuite_testing.cluster.load import Client, Load
from estsuite_testing.cluster.operators import client_of
from estsuite_testing.e2e_stack import make_csr
from estsuite_testing.helm import CHART

pytestmark = [pytest.mark.asyncio(loop_scope="session"), pytest.mark.timeout(900)]
EXPECTED = {"200", "202", "503", "ClientConnectorError"}
"""With one replica of est-frontend, kube-proxy may be late by more than the five seconds of preStop on a
busy node: such a connection is refused, and the next one is answered."""
NEW_NAME = "new.clinic.example"
FIRST_TAG, SECOND_TAG = "0.1.0", os.environ.get("CLUSTER_SECOND_TAG", "")


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def release(cluster: Installation) -> AsyncIterator[HelmRelease]:
    await cluster.remove()
    found = HelmRelease(cluster)
    await found.first_installation()
    yield found
    await cluster.remove()


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def client(release: HelmRelease) -> Client:
    """An operator makes the secret of the clients."""
    return await client_of(release.cluster)


@pytest_asyncio.fixture(loop_scope="session")
async def load(client: Client) -> AsyncIterator[Load]:
    """Four enrollments a second while a test runs; each ends with a certificate."""
    load = Load(client, per_second=4)
    async with load:
        yield load
    sys.stdout.write(load.report() + "\n")
    assert len(load.serials) == len({*load.serials}) == load.begun > 0
    assert {*load.answers} <= EXPECTED


def policy_with(cluster: Installation, name: str) -> Path:
    """Write the policy of the chart with one more name for web-bootstrap."""
    base = cluster.root / "deploy" / "k8s" / "base" / "config" / "policy.yaml"
    document = yaml.safe_load(base.read_text())
    for kind in ("common_names", "dns"):
        document["rules"][0]["names"][kind].append(name)
    path = cluster.folder / "changed-policy.yaml"
    path.write_text(yaml.safe_dump(document))
    return path


async def status_of(client: Client, name: str) -> int:
    status, _, _ = await client.enroll_once(make_csr(name)[1])
    return status


async def until_answered(client: Client, status: int) -> None:
    """Wait for the answer about the new name: pods of before serve for some seconds more."""

    async def answered() -> bool:
        return await status_of(client, NEW_NAME) == status

    await until(answered, 30, f"{status} for {NEW_NAME}")


async def test_the_chart_is_installed_and_clients_enroll(
    release: HelmRelease, client: Client
) -> None:
    assert [r["status"] for r in await release.revisions()] == ["deployed"]
    assert not any((await release.cluster.restarts()).values())
    assert await status_of(client, "web.clinic.example") == 200
    assert await status_of(client, NEW_NAME) == 403


async def test_an_upgrade_with_a_changed_policy_loses_nothing(
    release: HelmRelease, client: Client, load: Load
) -> None:
    changed = policy_with(release.cluster, NEW_NAME)
    await release.install("upgrade", "--set-file", f"files.policy={changed}")
    await release.cluster.ready(*SERVICES)
    await until_answered(client, 200)
    assert load.begun > 0


async def test_a_rollback_takes_the_policy_back(
    release: HelmRelease, client: Client, load: Load
) -> None:
    """The ConfigMap of before is still there, since the chart keeps those that it replaced."""
    await release.run("rollback", RELEASE, "1")
    await release.cluster.ready(*SERVICES)

    await until_answered(client, 403)
    assert load.begun > 0


if SECOND_TAG:

    async def test_a_new_version_is_migrated_before_it_is_rolled(
        release: HelmRelease, load: Load
    ) -> None:
        before = {name: names_of(await release.cluster.pods(name)) for name in SERVICES}
        await release.install("upgrade", "--set", "pauseRollouts=true", tag=SECOND_TAG)
        await release.cluster.migrate("migrate-2")
        assert {n: names_of(await release.cluster.pods(n)) for n in SERVICES} == before
        assert await release.images() == {FIRST_TAG}
        await release.install("upgrade", tag=SECOND_TAG)
        await release.cluster.ready()
        assert await release.images() == {SECOND_TAG}
        await release.run("rollback", RELEASE, "3")
        await release.cluster.ready()
        assert await release.images() == {FIRST_TAG}
        assert load.begun > 0


async def test_an_upgrade_that_a_service_would_refuse_changes_nothing(
    release: HelmRelease,
) -> None:
    before = await release.revisions()
    refused = await release.run(
        *("upgrade", RELEASE, str(CHART), "--set", "settings.caSigner.unknown=1"),
        check=False,
    )
    assert refused.returncode != 0
    assert await release.revisions() == before


async def test_after_uninstall_nothing_runs_and_data_and_settings_stay(
    release: HelmRelease,
) -> None:
    await release.run("uninstall", RELEASE, "--wait")
    cluster = release.cluster
    for kind in ("deployments", "statefulsets", "cronjobs", "services", "networkpolicies"):
        left = set(names_of((await cluster.get(kind))["items"])) - {"est-from-outside"}
        assert left == set(), kind
    claims = {c["metadata"]["name"] for c in (await cluster.get("pvc"))["items"]}
    assert claims == {"data-nats-0", "data-postgres-0"}
    kept = {m["metadata"]["name"] for m in (await cluster.get("configmaps"))["items"]}
    assert any(name.startswith("ca-signer-config-") for name in kept)
