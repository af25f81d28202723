"""An upgrade from an earlier revision under load, with migrations first, and the way back.

    CLUSTER_BEFORE       a revision of this repository; the clone must have it
    CLUSTER_BEFORE_TAG   the tag of its images on the nodes or in the registry, default ``before``

Once by Kustomize, with the manifests and the ``est-setup`` of that revision, and once by Helm, where the
chart is that of now with images and settings of before. By the commands of deploy/README.md.
"""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import pytest
import pytest_asyncio

from estsuite_testing.cluster.helm_release import RELEASE, HelmRelease
from estsuite_testing.cluster.installation import SERVERS, SERVICES, Installation, until
from estsuite_testing.cluster.load import Client, Load
from estsuite_testing.cluster.operators import client_of
from estsuite_testing.cluster.records import assert_records_agree

BEFORE = os.environ.get("CLUSTER_BEFORE", "")
pytestmark = [
    pytest.mark.asyncio(loop_scope="session"),
    pytest.mark.timeout(900),
    pytest.mark.skipif(not BEFORE, reason="CLUSTER_BEFORE names no revision to upgrade from"),
]
TAG_BEFORE, TAG = os.environ.get("CLUSTER_BEFORE_TAG", "before"), "0.1.0"
SIDE_BY_SIDE = ("ca-signer", "est-frontend", "renewal")
"""Services whose pods of both versions work at the same time; of audit one writes at a time."""
HOLD_S = 20
TWO = [f"--set={name}.replicas=2" for name in ("estFrontend", "caSigner", "renewal", "audit")]
EXPECTED = {"200", "202", "503", "ClientConnectorError"}
"""See test_helm_release for the last: a Service learns of a pod's end later than that pod's preStop."""


class Way(Protocol):
    """One way to install and to upgrade."""

    async def install_before(self) -> None:
        """Install the version before."""

    async def stage(self) -> None:
        """Apply everything of the new version but the pods of services."""

    async def roll(self) -> None:
        """Begin to roll the services to the new version."""

    async def back(self) -> None:
        """Begin to roll the services back."""


@dataclass
class Kustomize:
    """Manifests of before, then those of now."""

    cluster: Installation
    before: Path

    async def install_before(self) -> None:
        cluster = self.cluster
        cluster.replicas = 2
        cluster.overlay = self.before / "deploy" / "k8s" / "overlays" / "all-in-one"
        cluster.setup, cluster.tag = self.before, TAG_BEFORE
        await cluster.install()
        cluster.overlay = cluster.root / "deploy" / "k8s" / "overlays" / "all-in-one"
        cluster.setup = cluster.tag = None

    async def stage(self) -> None:
        await self.cluster.apply("-l", "app.kubernetes.io/component!=service")

    async def roll(self) -> None:
        await self.cluster.apply()

    async def back(self) -> None:
        names = [f"deployment/{name}" for name in SERVICES]
        await self.cluster.kubectl("rollout", "undo", *names)


@dataclass
class Chart:
    """The chart of now, first with images and settings of before."""

    cluster: Installation
    before: Path

    async def install_before(self) -> None:
        config = self.before / "deploy" / "k8s" / "base" / "config"
        files = {
            "estFrontend": "est-frontend",
            "caSigner": "ca-signer",
            "renewal": "renewal",
            "audit": "audit",
            "policy": "policy",
            "profiles": "profiles",
        }
        given = [
            *TWO,
            *(f"--set-file=files.{key}={config / name}.yaml" for key, name in files.items()),
        ]
        self.cluster.setup = self.before
        await self._release.first_installation(*given, tag=TAG_BEFORE)
        self.cluster.setup = None

    @property
    def _release(self) -> HelmRelease:
        return HelmRelease(self.cluster)

    async def stage(self) -> None:
        await self._release.install("upgrade", *TWO, "--set=pauseRollouts=true", tag=TAG)

    async def roll(self) -> None:
        await self._release.install("upgrade", *TWO, tag=TAG)

    async def back(self) -> None:
        await self._release.run("rollback", RELEASE, "1")


@pytest.fixture(scope="module")
def before(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The sources of the revision before."""
    folder = tmp_path_factory.mktemp("before")
    archive = ("git", "-C", str(root), "archive", BEFORE, "deploy", "libs", "services")
    packed = subprocess.run(archive, capture_output=True, check=True).stdout
    subprocess.run(("tar", "-x", "-C", str(folder)), input=packed, check=True)
    return folder


@pytest_asyncio.fixture(scope="module", loop_scope="session", params=[Kustomize, Chart])
async def way(
    request: pytest.FixtureRequest, cluster: Installation, before: Path
) -> AsyncIterator[Way]:
    """The version before, with two of each service."""
    await cluster.remove()
    cluster.forget()
    found: Way = request.param(cluster, before)
    await found.install_before()
    yield found
    await cluster.remove()
    cluster.forget()


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def client(way: Way, cluster: Installation) -> Client:
    return await client_of(cluster)


@pytest_asyncio.fixture(loop_scope="session")
async def load(cluster: Installation, client: Client) -> AsyncIterator[Load]:
    """Four enrollments a second while a test runs; each ends with a certificate."""
    load = Load(client, per_second=4)
    async with load:
        yield load
    sys.stdout.write(load.report() + "\n")
    assert len(load.serials) == len({*load.serials}) == load.begun > 0
    assert {*load.answers} <= EXPECTED
    cluster.received(load.serials)


def heads(sources: Path) -> dict[str, str]:
    """Return the newest revision of each schema in a tree of sources."""
    return {
        schema: max(p.name[:4] for p in folder.glob("0*.py"))
        for schema, folder in _histories(sources)
    }


def _histories(sources: Path) -> Iterator[tuple[str, Path]]:
    for service in ("ca-signer", "renewal", "audit"):
        name = service.replace("-", "_")
        yield name, sources / "services" / service / "src" / name / "migrations" / "versions"


async def schemas(cluster: Installation) -> dict[str, str]:
    """Return the revision of each schema in the database."""
    read = " union all ".join(
        f"select '{name}', version_num from {name}.alembic_version"
        for name, _ in _histories(cluster.root)
    )
    printed = await cluster.psql(read, "-F", " ")
    return dict(line.split() for line in printed.splitlines())


async def until_rolled(cluster: Installation, tag: str) -> None:
    await cluster.ready()
    assert await cluster.versions() == {name: [tag] * 2 for name in SERVICES}


async def test_the_version_before_issues(
    cluster: Installation, way: Way, before: Path, load: Load
) -> None:
    assert await schemas(cluster) == heads(before)
    assert await cluster.versions() == {name: [TAG_BEFORE] * 2 for name in SERVICES}
    await asyncio.sleep(5)


async def test_permissions_and_schemas_become_new_under_the_version_before(
    cluster: Installation, way: Way, before: Path, load: Load
) -> None:
    """Keys and permissions, NATS with them, everything but services, and the migration."""
    await cluster.apply_keys()
    await way.stage()
    await cluster.kubectl("rollout", "restart", "statefulset/nats")
    await cluster.ready(*SERVERS)
    await cluster.migrate("migrate-2")
    assert await schemas(cluster) == heads(cluster.root) != heads(before)

    # The chart pauses the rollouts, so their status says nothing.
    async def ready() -> bool:
        return await cluster.versions() == {name: [TAG_BEFORE] * 2 for name in SERVICES}

    await until(ready, 120, "two pods of the version before of each service")
    await asyncio.sleep(HOLD_S)


async def test_pods_of_both_versions_work_side_by_side(
    cluster: Installation, way: Way, load: Load
) -> None:
    # A new pod counts after this time, so that pods of before stay beside it.
    await each_step_takes(cluster, HOLD_S)
    await way.roll()

    async def both() -> bool:
        found = await cluster.versions(*SIDE_BY_SIDE)
        return all({*tags} == {TAG_BEFORE, TAG} for tags in found.values())

    await until(both, 120, "ready pods of both versions of each service")
    await asyncio.sleep(HOLD_S / 2)
    assert await both()
    await until_rolled(cluster, TAG)
    await each_step_takes(cluster, 0)


async def each_step_takes(cluster: Installation, seconds: int) -> None:
    patch = json.dumps({"spec": {"minReadySeconds": seconds}})
    for name in SERVICES:
        await cluster.kubectl("patch", "deployment", name, "-p", patch)


async def test_the_way_back_works_on_the_new_schemas(
    cluster: Installation, way: Way, load: Load
) -> None:
    await way.back()
    await until_rolled(cluster, TAG_BEFORE)
    assert await schemas(cluster) == heads(cluster.root)
    await asyncio.sleep(HOLD_S)


async def test_forward_again(cluster: Installation, way: Way, load: Load) -> None:
    await way.roll()
    await until_rolled(cluster, TAG)
    await asyncio.sleep(5)


async def test_every_certificate_of_both_versions_is_on_record(
    cluster: Installation, way: Way, client: Client, tmp_path: Path
) -> None:
    assert not any((await cluster.restarts()).values())
    await assert_records_agree(cluster, tmp_path)
