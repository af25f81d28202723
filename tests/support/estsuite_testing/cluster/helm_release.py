"""The release of the chart on a cluster, by the commands of deploy/README.md."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
from typing import Any

from estsuite_testing.cluster.installation import NAMESPACE, SERVERS, SERVICES, Installation
from estsuite_testing.helm import CHART, command

RELEASE = "estsuite"
_VERSIONED = ("estFrontend", "caSigner", "renewal", "audit", "checkStore", "estctl")
_IMAGES = {
    "estFrontend": "est-frontend",
    "caSigner": "ca-signer",
    "renewal": "renewal",
    "audit": "audit",
    "checkStore": "ca-signer-check-store",
    "estctl": "estctl",
    "nats": "nats-server",
}
"""Images of the suite, by their names among the values."""


class HelmRelease:
    """Runs helm for the release in the namespace of an installation.

    CLUSTER_REGISTRY goes before the images of the suite; CLUSTER_POST_RENDERER is a program through
    which helm sends what it rendered, for a cluster that needs a patch.
    """

    def __init__(self, cluster: Installation) -> None:
        self.cluster = cluster
        self._command = command()
        self._registry = os.environ.get("CLUSTER_REGISTRY", "")

    async def run(self, *arguments: str, check: bool = True) -> subprocess.CompletedProcess[bytes]:
        """Run helm in the namespace.

        Raises:
            AssertionError: it failed, with what it printed.
        """
        process = await asyncio.create_subprocess_exec(
            self._command,
            *arguments,
            *("--namespace", NAMESPACE),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        out, err = await process.communicate()
        done = subprocess.CompletedProcess(arguments, process.returncode or 0, out, err)
        if check:
            assert done.returncode == 0, f"helm {' '.join(arguments)}:\n{err.decode()}"
        return done

    async def install(self, verb: str = "install", *values: str, tag: str | None = None) -> None:
        """Install or upgrade the chart for trying, with further arguments of helm."""
        arguments = [verb, RELEASE, str(CHART)]
        arguments += ["--values", str(CHART / "values-all-in-one.yaml"), *values]
        if self._registry:
            arguments += [
                f"--set=images.{name}.repository={self._registry}estsuite/{image}"
                for name, image in _IMAGES.items()
            ]
        if tag is not None:
            arguments += [f"--set=images.{name}.tag={tag}" for name in _VERSIONED]
        if renderer := os.environ.get("CLUSTER_POST_RENDERER"):
            arguments += ["--post-renderer", renderer]
        await self.run(*arguments)

    async def revisions(self) -> list[dict[str, Any]]:
        """Return the history of the release, oldest first."""
        found: list[dict[str, Any]] = json.loads(
            (await self.run("history", RELEASE, "-o", "json")).stdout
        )
        return found

    async def images(self) -> set[str]:
        """Return the tags of the pods of the services."""
        pods = [pod for name in SERVICES for pod in await self.cluster.pods(name)]
        return {c["image"].rpartition(":")[2] for pod in pods for c in pod["spec"]["containers"]}

    async def first_installation(self, *values: str, tag: str | None = None) -> None:
        """Install on an empty namespace and migrate."""
        await self.cluster.apply_keys()
        await self.install("install", *values, tag=tag)
        await self.cluster.ready(*SERVERS)
        await self.cluster.migrate("migrate-1")
        await self.cluster.ready()
