"""Drills on pods: one fault at a time, and what clients got of it, what was lost and how long it took.

``make cluster-drills`` does these alone and keeps the report in the folder of CLUSTER_DRILLS.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from estbench.machine import describe
from estsuite_testing.cluster.drill_report import Report, Result, page, summary
from estsuite_testing.cluster.drills import DRILLS, Drill, perform
from estsuite_testing.cluster.installation import Installation
from estsuite_testing.cluster.load import BROKEN, Client
from estsuite_testing.cluster.operators import client_of
from estsuite_testing.cluster.records import assert_records_agree

pytestmark = [pytest.mark.asyncio(loop_scope="session"), pytest.mark.timeout(900)]
ANSWERS = {"200", "202", "503"}


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def installed(cluster: Installation) -> AsyncIterator[Installation]:
    await cluster.remove()
    cluster.forget()
    cluster.replicas = 2
    await cluster.install()
    yield cluster
    await cluster.remove()
    cluster.forget()


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def client(installed: Installation) -> Client:
    return await client_of(installed)


@pytest.fixture(scope="module")
def results() -> list[Result]:
    return []


@pytest.mark.parametrize("drill", DRILLS, ids=lambda drill: drill.name.replace(" ", "-"))
async def test_nothing_is_lost_and_the_suite_recovers(
    installed: Installation, client: Client, results: list[Result], drill: Drill
) -> None:
    result = await perform(drill, installed, client)
    sys.stdout.write(summary(result) + "\n")
    results.append(result)
    assert {*result.answers} <= ANSWERS | BROKEN
    assert result.passed, result


async def test_every_certificate_is_on_record(
    installed: Installation, client: Client, results: list[Result], tmp_path: Path
) -> None:
    await assert_records_agree(installed, tmp_path)
    if folder := os.environ.get("CLUSTER_DRILLS"):
        report = Report(conditions=await conditions(installed), results=results)
        out = Path(folder)
        out.mkdir(parents=True, exist_ok=True)
        (out / "cluster.json").write_text(report.model_dump_json(indent=1) + "\n")
        (out / "cluster.md").write_text(f"# Drills on Kubernetes\n\n{page(report)}")


async def conditions(cluster: Installation) -> dict[str, str]:
    machine = describe()
    version = json.loads((await cluster.kubectl("version", "-o", "json")).stdout)
    (*_, node) = nodes = (await cluster.get("nodes"))["items"]
    info = node["status"]["nodeInfo"]
    return {
        "date": machine["date"],
        "revision": machine["revision"],
        "processors": machine["processors"],
        "control plane": version["serverVersion"]["gitVersion"].removeprefix("v"),
        "nodes": f"{len(nodes)}, kubelet {info['kubeletVersion'].removeprefix('v')}",
        "containers": info["containerRuntimeVersion"].replace("://", " "),
        "pods": "two of each service, a NATS and a PostgreSQL of one each",
    }
