"""``make images`` with each builder that is installed, into a registry and back: ``make images-test``.

    BASE        base image, where that of the Dockerfile cannot be pulled
    NETWORK     network of the builds, such as host
    PLATFORM    platforms that this machine can run, such as linux/amd64,linux/arm64

Needs docker-registry (Debian's package) and docker, podman or both. Podman is the one of the user
who runs the tests: as a user it needs no root.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from estdev.ports import free_port

ROOT = Path(__file__).resolve().parents[2]
NAME = "nats-server"
"""The smallest image."""
BUILDERS = {
    "legacy builder of docker": ("docker", {"DOCKER_BUILDKIT": "0"}),
    "BuildKit": ("docker", {"DOCKER_BUILDKIT": "1"}),
    "podman": ("podman", {}),
}
_INDEX = "application/vnd.docker.distribution.manifest.list.v2+json"
_MANIFESTS = (
    f"{_INDEX}, application/vnd.docker.distribution.manifest.v2+json, "
    "application/vnd.oci.image.manifest.v1+json"
)
pytestmark = pytest.mark.timeout(1800)


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A registry of this machine alone: docker and BuildKit use loopback without TLS."""
    program = shutil.which("docker-registry")
    if program is None:
        pytest.skip("docker-registry is not installed")
    folder, port = tmp_path_factory.mktemp("registry"), free_port()
    settings = {
        "version": "0.1",
        "storage": {"filesystem": {"rootdirectory": str(folder / "images")}},
        "http": {"addr": f"127.0.0.1:{port}"},
        "log": {"level": "warn"},
    }
    (folder / "config.yml").write_text(json.dumps(settings))
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(
            [program, "serve", folder / "config.yml"], stdout=log, stderr=subprocess.STDOUT
        )
    try:
        for _ in range(100):
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/v2/", timeout=1).close()
                break
            except OSError:
                time.sleep(0.1)
        yield f"127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(10)


@pytest.fixture
def environment(registry: str, tmp_path: Path) -> dict[str, str]:
    """Podman needs a setting for a registry of this machine without TLS."""
    file = tmp_path / "registries.conf"
    base = os.environ.get("BASE", "").partition("/")[0]
    plain = {registry, base} if base.startswith(("localhost:", "127.")) else {registry}
    file.write_text(
        'unqualified-search-registries = ["docker.io"]\n'
        + "".join(f'[[registry]]\nlocation = "{host}"\ninsecure = true\n' for host in plain)
    )
    return {**os.environ, "CONTAINERS_REGISTRIES_CONF": str(file)}


def made(environment: dict[str, str], *more: str) -> subprocess.CompletedProcess[str]:
    words = [sys.executable, "deploy/build_images.py", NAME, *more]
    for name in ("base", "network", "platform"):
        if value := os.environ.get(name.upper()):
            words += [f"--{name}", value]
    return subprocess.run(
        words, cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )


@pytest.mark.parametrize("how", BUILDERS)
def test_an_image_is_built_pushed_and_pulled(
    registry: str, environment: dict[str, str], how: str
) -> None:
    command, variables = BUILDERS[how]
    asked = shutil.which(command) and subprocess.run(
        [command, "info"], capture_output=True, check=False
    )
    if not asked or asked.returncode != 0:
        pytest.skip(f"{command} is not installed, or has no daemon")
    environment |= variables
    prefix = f"{registry}/{how.replace(' ', '-').lower()}/"
    done = made(environment, "--builder", command, "--registry", prefix, "--push")
    assert done.returncode == 0, done.stdout + done.stderr
    print(f"\n{how}:\n{done.stdout}")
    pushed = re.findall(r"^(\S+)@(sha256:[0-9a-f]{64})$", done.stdout, re.MULTILINE)
    assert pushed
    for tag, digest in pushed:
        assert digest == digest_of(tag)
        # What the registry has is what runs.
        subprocess.run(
            [command, "image", "rm", "--force", tag],
            env=environment,
            capture_output=True,
            check=False,
        )
        answer = subprocess.run(
            [command, "run", "--rm", "--network", "none", "--read-only", f"{tag}@{digest}", "-v"],
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert answer.stdout.startswith("nats-server: v"), answer.stderr


def test_what_cannot_be_pushed_is_one_line() -> None:
    done = made({**os.environ}, "--push")
    assert done.returncode == 2
    assert done.stderr.splitlines() == [
        "images: PUSH needs REGISTRY, such as registry.example/ [configuration.invalid]"
    ]


def digest_of(tag: str) -> str:
    """The digest that the registry itself gives."""
    host, _, rest = tag.partition("/")
    repository, _, version = rest.rpartition(":")
    request = urllib.request.Request(
        f"http://{host}/v2/{repository}/manifests/{version}",
        method="HEAD",
        headers={"Accept": _MANIFESTS},
    )
    with urllib.request.urlopen(request, timeout=10) as answer:  # noqa: S310 - http
        return str(answer.headers["Docker-Content-Digest"])
