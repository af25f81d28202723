"""What builds, holds and pushes images: docker, with either of its builders, or podman.

Called by: deploy/build_images.py
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from estcore.errors import ConfigurationError

DOCKER, PODMAN = "docker", "podman"
_DIGEST = re.compile(r"\bsha256:[0-9a-f]{64}\b")
_LOOPBACK = re.compile(r"(localhost|127\.[0-9.]+)(:[0-9]+)?/")
_LAST_LINES = 15


class Builder(Protocol):
    """A command with a store of images."""

    def build(self, flags: Sequence[str], context: Path, *, network: str | None) -> None:
        """Build an image with the flags that every builder knows, and keep it in the store."""
        ...

    def inspect(self, image: str) -> dict[str, Any] | None:
        """Return what ``docker image inspect`` says of an image; None: it is not in the store."""
        ...

    def pull(self, image: str, platform: str) -> None:
        """Bring an image into the store."""
        ...

    def output(self, image: str, program: str, platform: str) -> str:
        """Run a program of Python in an image, without a network; returns what it prints."""
        ...

    def push(self, image: str) -> str:
        """Push an image to its registry; returns its digest there."""
        ...

    def push_index(self, image: str, parts: Sequence[str]) -> str:
        """Join pushed images of several platforms under one name; returns the digest."""
        ...


def builder(name: str) -> Builder:
    """Return a builder.

    Raises:
        ConfigurationError: its command is not installed.
    """
    command = shutil.which(name)
    if command is None:
        raise ConfigurationError(f"{name} is not installed")
    return Podman(command) if name == PODMAN else Docker(command)


class Docker:
    """``docker``, 20.10 or newer: with buildx where it is installed, else its own builder."""

    def __init__(self, command: str) -> None:
        self._command = command
        found = subprocess.run([command, "buildx", "version"], capture_output=True, check=False)
        self._buildx = found.returncode == 0 and os.environ.get("DOCKER_BUILDKIT") != "0"

    def build(self, flags: Sequence[str], context: Path, *, network: str | None) -> None:
        """Build an image with BuildKit if it can be used, and load it into the daemon."""
        networks = ("--network", network) if network else ()
        if self._buildx:
            if network == "host":
                networks = (*networks, "--allow", "network.host")
            # Without provenance a tag names an image and no index, which `docker manifest` joins.
            command: tuple[str, ...] = ("buildx", "build", "--load", "--provenance=false")
        else:
            command = ("build",)
        self._run(*command, *networks, *flags, str(context))

    def inspect(self, image: str) -> dict[str, Any] | None:
        """Return what the daemon says of an image."""
        return _inspected(self._command, image)

    def pull(self, image: str, platform: str) -> None:
        """Bring an image to the daemon."""
        self._run("pull", "--quiet", "--platform", platform, image)

    def output(self, image: str, program: str, platform: str) -> str:
        """Run a program of Python in an image."""
        return self._run("run", *_confined(image, program, platform))

    def push(self, image: str) -> str:
        """Push an image; the last line has its digest."""
        return _digest(self._run("push", image), image)

    def push_index(self, image: str, parts: Sequence[str]) -> str:
        """Join images; what an earlier run left of the index is replaced."""
        subprocess.run([self._command, "manifest", "rm", image], capture_output=True, check=False)
        # The daemon needs no TLS to a registry of this machine, but this command asks by itself.
        plain = ("--insecure",) if _LOOPBACK.match(image) else ()
        self._run("manifest", "create", *plain, image, *parts)
        return _digest(self._run("manifest", "push", *plain, "--purge", image), image)

    def _run(self, *arguments: str) -> str:
        # From 23.0 on BuildKit needs the plug-in buildx; without it the builder must be named.
        environment = {} if self._buildx else {"DOCKER_BUILDKIT": "0"}
        return _run(self._command, *arguments, environment={**environment, **os.environ})


class Podman:
    """``podman``, which needs no daemon and, as a user, no root."""

    def __init__(self, command: str) -> None:
        self._command = command

    def build(self, flags: Sequence[str], context: Path, *, network: str | None) -> None:
        """Build an image in the form of Docker: that of OCI has no health check."""
        networks = ("--network", network) if network else ()
        _run(self._command, "build", "--format", "docker", *networks, *flags, str(context))

    def inspect(self, image: str) -> dict[str, Any] | None:
        """Return what podman says of an image; it has the health check beside ``Config``."""
        found = _inspected(self._command, image)
        if found is not None and found.get("Healthcheck"):
            found["Config"]["Healthcheck"] = found["Healthcheck"]
        return found

    def pull(self, image: str, platform: str) -> None:
        """Bring an image to the store of this user."""
        _run(self._command, "pull", "--quiet", "--platform", platform, image)

    def output(self, image: str, program: str, platform: str) -> str:
        """Run a program of Python in an image."""
        return _run(self._command, "run", "--pull=never", *_confined(image, program, platform))

    def push(self, image: str) -> str:
        """Push an image in the form in which it was built."""
        return self._digest("push", "--format", "v2s2", image)

    def push_index(self, image: str, parts: Sequence[str]) -> str:
        """Join images; what an earlier run left of the index is replaced."""
        subprocess.run([self._command, "manifest", "rm", image], capture_output=True, check=False)
        _run(self._command, "manifest", "create", image, *(f"docker://{part}" for part in parts))
        return self._digest(
            *("manifest", "push", "--all", "--format", "v2s2"), image, f"docker://{image}"
        )

    def _digest(self, *arguments: str) -> str:
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "digest"
            verbs = 2 if arguments[0] == "manifest" else 1
            _run(
                *(self._command, *arguments[:verbs], "--digestfile", str(file)),
                *arguments[verbs:],
            )
            return _digest(file.read_text(encoding="utf-8"), arguments[-1])


def _confined(image: str, program: str, platform: str) -> tuple[str, ...]:
    return (
        *("--rm", "--network", "none", "--read-only", "--platform", platform),
        *("--entrypoint", "/opt/estsuite/bin/python", image, "-c", program),
    )


def _inspected(command: str, image: str) -> dict[str, Any] | None:
    done = subprocess.run(
        [command, "image", "inspect", image], capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        return None
    found: dict[str, Any] = json.loads(done.stdout)[0]
    return found


def _digest(text: str, image: str) -> str:
    found = _DIGEST.findall(text)
    if not found:
        raise ConfigurationError(f"{image} was pushed, but its registry gave no digest")
    return str(found[-1])


def _run(command: str, *arguments: str, environment: Mapping[str, str] | None = None) -> str:
    done = subprocess.run(
        [command, *arguments],
        capture_output=True,
        text=True,
        check=False,
        env=environment,
    )
    if done.returncode != 0:
        lines = f"{done.stdout}\n{done.stderr}".strip().splitlines()[-_LAST_LINES:]
        name = Path(command).name
        raise ConfigurationError(f"{name} {arguments[0]}:\n" + "\n".join(lines))
    return done.stdout
