"""The suite on the cluster that KUBECONFIG names: ``make cluster-test``.

    KUBECONFIG          the cluster; the namespace ``estsuite`` in it is removed and made anew
    CLUSTER_OVERLAY     Kustomize folder to install, default deploy/k8s/overlays/all-in-one
    CLUSTER_REGISTRY    what goes before estsuite/<name>, with its slash
    CLUSTER_EST         host:port of the Service, default a NodePort on the first node
    CLUSTER_SECOND_TAG  a tag to which test_helm_release upgrades; CLUSTER_POST_RENDERER for its helm
    CLUSTER_BEFORE      a revision from which test_upgrade upgrades
    CLUSTER_NETWORK_POLICIES   an engine enforces them: test_network_policies runs, too
    CLUSTER_KEEP        a folder: keys are there, the namespace stays, and a second run goes on with both,
                        for single tests

The tests of a module need those before them, and run in the order of the file.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from estsuite_testing.cluster.installation import Installation, missing

collect_ignore = [] if os.environ.get("CLUSTER_NETWORK_POLICIES") else ["test_network_policies.py"]


@pytest.fixture(scope="session")
def root() -> Path:
    return Path(__file__).resolve().parents[2]


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def cluster(
    root: Path, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Installation]:
    if reason := missing():
        pytest.exit(f"make cluster-test: {reason}", returncode=2)
    kept = os.environ.get("CLUSTER_KEEP")
    folder = Path(kept) if kept else tmp_path_factory.mktemp("cluster")
    installation = Installation(root, folder)
    if not installation.keys.exists():
        await installation.remove()
    try:
        yield installation
    finally:
        if not kept:
            await installation.remove()
