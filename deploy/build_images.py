"""Build every image of the suite, then look into each: labels, user, bill of materials, size.

    make images                                  # all, tagged estsuite/<name>:<version>
    make images IMAGES="audit estctl"            # some
    make images BASE=python:3.13.14-slim-bookworm REGISTRY=registry.example/ PLATFORM=linux/arm64

Needs the command ``docker`` (20.10 or newer) and a daemon. One line for each image; the exit code
is 1 when there is any finding.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
from estdeploy.services import IMAGES, USER_ID

from estcore.errors import ConfigurationError
from estcore.runtime import command_line
from estcore.runtime.command_line import CONTEXT
from estcore.runtime.terminal import write_line

ROOT = Path(__file__).resolve().parents[1]
LIMIT_MB = 150
"""What an image may add to its base, in megabytes (10^6 octets)."""
SBOM = "/opt/estsuite/share/sbom.cdx.json"


@dataclass(frozen=True)
class Options:
    """How images are built."""

    registry: str
    base: str | None
    platform: str | None
    index: str | None
    network: str | None

    def command(self, name: str, tag: str, revision: str) -> list[str]:
        """Return the arguments of ``docker build`` for an image."""
        image = IMAGES[name]
        arguments = {
            **image.arguments,
            "TITLE": f"estsuite {name}",
            "VERSION": version(),
            "REVISION": revision,
            "LICENSES": image.licences,
        }
        named = {"BASE": self.base, "INDEX": self.index}
        arguments |= {key: value for key, value in named.items() if value}
        flags = {"--platform": self.platform, "--network": self.network}
        return [
            *("build", "--tag", tag, "--target", image.target),
            *(part for flag, value in flags.items() if value for part in (flag, value)),
            *(p for key, value in arguments.items() for p in ("--build-arg", f"{key}={value}")),
            str(ROOT),
        ]


def version() -> str:
    """Return the version of the suite."""
    with (ROOT / "pyproject.toml").open("rb") as file:
        found: str = tomllib.load(file)["project"]["version"]
    return found


def base_image() -> str:
    """Return the base image that the Dockerfile names."""
    text = (ROOT / "Dockerfile").read_text(encoding="utf-8")
    found = re.search(r"^ARG BASE=(\S+)$", text, re.MULTILINE)
    if found is None:
        raise ConfigurationError("the Dockerfile has no ARG BASE")
    return found[1]


def findings(image: dict[str, Any], base: dict[str, Any], name: str) -> Iterator[str]:
    """Yield what is wrong with an image, by ``docker image inspect`` of it and of its base."""
    config = image["Config"]
    labels = config.get("Labels") or {}
    wanted = {
        "org.opencontainers.image.title": f"estsuite {name}",
        "org.opencontainers.image.version": version(),
        "org.opencontainers.image.licenses": IMAGES[name].licences,
        "estsuite.sbom": SBOM,
    }
    for key, value in wanted.items():
        if labels.get(key) != value:
            yield f"label {key} is {labels.get(key)}"
    if not labels.get("org.opencontainers.image.revision"):
        yield "no label says the revision"
    if config.get("User") != f"{USER_ID}:{USER_ID}":
        yield f"runs as {config.get('User') or 'root'}"
    if config.get("Entrypoint") != ["/opt/estsuite/bin/entrypoint"]:
        yield f"starts {config.get('Entrypoint')}"
    if ("Healthcheck" in config) != (IMAGES[name].target == "service"):
        yield "services, and only they, have a health check"
    added = megabytes(image) - megabytes(base)
    if added > LIMIT_MB:
        yield f"{added} MB above the base are more than {LIMIT_MB}"


def megabytes(image: dict[str, Any]) -> int:
    """Return the size of an image, rounded."""
    return round(image["Size"] / 1_000_000)


def sbom_findings(document: dict[str, Any], name: str) -> Iterator[str]:
    """Yield what is wrong with a bill of materials."""
    described = document.get("metadata", {}).get("component", {}).get("name")
    if described != IMAGES[name].package:
        yield f"the bill of materials is of {described}"
    if not document.get("components"):
        yield "the bill of materials lists nothing"


def _docker(*arguments: str, show: bool = False) -> str:
    docker = shutil.which("docker")
    if docker is None:
        raise ConfigurationError("docker is not installed")
    done = subprocess.run(
        [docker, *arguments],
        stdout=None if show else subprocess.PIPE,
        stderr=None if show else subprocess.STDOUT,
        text=True,
        check=False,
        env={"DOCKER_BUILDKIT": "0", **os.environ} if not _buildx(docker) else None,
    )
    if done.returncode != 0:
        lines = (done.stdout or "").strip().splitlines()[-15:]
        raise ConfigurationError(f"docker {arguments[0]}:\n" + "\n".join(lines))
    return done.stdout or ""


def _buildx(docker: str) -> bool:
    """Whether BuildKit can be used by this command; from 23.0 on it needs the plug-in buildx."""
    done = subprocess.run([docker, "buildx", "version"], capture_output=True, check=False)
    return done.returncode == 0


def _inspect(tag: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(_docker("image", "inspect", tag))[0]
    return found


def _sbom(tag: str) -> dict[str, Any]:
    program = f"import sys; sys.stdout.write(open('{SBOM}').read())"
    printed = _docker(
        *("run", "--rm", "--network", "none", "--read-only", "--entrypoint"),
        *("/opt/estsuite/bin/python", tag, "-c", program),
    )
    found: dict[str, Any] = json.loads(printed)
    return found


def _revision() -> str:
    done = subprocess.run(
        ["git", "-C", ROOT, "rev-parse", "HEAD"],  # noqa: S607 - of the person who builds
        capture_output=True,
        text=True,
        check=False,
    )
    return done.stdout.strip() or "unknown"


@click.command("images", help="Build every image, then look into it.", context_settings=CONTEXT)
@click.argument("names", nargs=-1, type=click.Choice(sorted(IMAGES)))
@click.option("--registry", default="", help="What goes before estsuite/<name>.")
@click.option("--base", help="Base image instead of that of the Dockerfile.")
@click.option("--platform", help="Platform of the images, such as linux/arm64.")
@click.option("--index", help="Package index for uv and the build backend.")
@click.option("--network", help="Network of the build, such as host.")
def _images(names: tuple[str, ...], **named: Any) -> int:
    options = Options(**named)
    revision, bad = _revision(), False
    for name in names or IMAGES:
        tag = f"{options.registry}estsuite/{name}:{version()}"
        _docker(*options.command(name, tag, revision))
        image, base = _inspect(tag), _inspect(options.base or base_image())
        found = [*findings(image, base, name), *sbom_findings(_sbom(tag), name)]
        size, added = megabytes(image), megabytes(image) - megabytes(base)
        write_line(f"{tag}: {size} MB, {added} MB above the base" + ": NOT GOOD" * bool(found))
        for finding in found:
            write_line(f"  {finding}")
        bad |= bool(found)
    return 1 if bad else 0


def main(arguments: Sequence[str] | None = None) -> int:
    """Carry out the command line; returns the exit code."""
    return command_line.run(_images, "images", arguments)


if __name__ == "__main__":
    sys.exit(main())
