"""est-issuer on the cluster that KUBECONFIG names: ``make issuer-test``.

The cluster gets the definitions of cert-manager, and the namespaces ``est-issuer`` and ``est-issuer-test``, which
are removed before and afterwards. Needs Go, and its module proxy for cert-manager.

    KUBECONFIG          the cluster
    CLUSTER_HOST        an address of this machine that pods reach; with it, est-issuer also runs in pods
                        of its image, which is on the nodes

``test_pod_requests`` runs where the API server serves PodCertificateRequests, ``test_pod_volumes`` where
the kubelets make them and the image is on the nodes.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import pytest_asyncio

from estcore.clock import SystemClock
from estsuite_testing.e2e_stack import start_stack, stop_stack
from estsuite_testing.issuer_world import (
    IssuerWorld,
    cluster_tokens,
    kubelets_make_pod_requests,
    missing,
    serves_pod_requests,
)
from estsuite_testing.token_issuer import TestIssuer, serving

HERE = Path(__file__).parent
NAMESPACE = "est-issuer-test"
collect_ignore = [] if os.environ.get("CLUSTER_HOST") else ["test_in_pods.py"]
if not serves_pod_requests():
    collect_ignore += ["test_pod_requests.py"]
if not (os.environ.get("CLUSTER_HOST") and kubelets_make_pod_requests()):
    collect_ignore += ["test_pod_volumes.py"]


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def world(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[IssuerWorld]:
    if reason := missing():
        pytest.exit(f"make issuer-test: {reason}", returncode=2)
    folder = tmp_path_factory.mktemp("issuer")
    async with (
        serving(folder, clock=SystemClock()) as tokens,
        suite_and_cluster(folder, tokens) as found,
    ):
        yield found


@asynccontextmanager
async def suite_and_cluster(folder: Path, tokens: TestIssuer) -> AsyncIterator[IssuerWorld]:
    token_issuer = tokens.settings().model_dump(mode="json", exclude_defaults=True)
    issuers = [token_issuer, cluster_tokens(folder)]
    stack = await start_stack(
        folder,
        policy=HERE / "policy.yaml",
        profiles=HERE / "profiles.yaml",
        overrides={"est-frontend": {"token_issuers": issuers}},
    )
    world = IssuerWorld(HERE.parents[1], folder, stack, NAMESPACE, tokens)
    try:
        await _remove(world)
        await world.install()
        await world.bind("est-issuer-secrets")
        await world.basic_secret()
        yield world
    finally:
        await world.stop()
        await _remove(world)
        await stop_stack(stack)


async def _remove(world: IssuerWorld) -> None:
    for namespace in (NAMESPACE, "est-issuer"):
        await world.kubectl("delete", "namespace", namespace, "--ignore-not-found")
