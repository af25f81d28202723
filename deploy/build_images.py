"""Build every image of the suite, then look into each: labels, user, bill of materials, size.

    make images                                  # all, tagged estsuite/<name>:<version>
    make images IMAGES="audit estctl"            # some
    make images BUILDER=podman                   # without a daemon, and as a user without root
    make images REGISTRY=registry.example/ PUSH=1 PLATFORM=linux/amd64,linux/arm64

Needs the command ``docker`` (20.10 or newer) and a daemon, or ``podman``. One line for each image;
the exit code is 1 when there is any finding. What has a finding is not pushed.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
from estdeploy import image_builders
from estdeploy.image_builders import DOCKER, PODMAN, Builder
from estdeploy.services import IMAGES, USER_ID

from estcore.errors import ConfigurationError
from estcore.runtime import command_line
from estcore.runtime.command_line import CONTEXT
from estcore.runtime.terminal import write_line

ROOT = Path(__file__).resolve().parents[1]
LIMIT_MB = 120
"""What an image may add to its base, in megabytes (10^6 octets)."""
SBOM = "/opt/estsuite/share/sbom.cdx.json"


@dataclass(frozen=True)
class Options:
    """How images are built, and where they go."""

    builder: str = DOCKER
    registry: str = ""
    push: bool = False
    base: str | None = None
    platform: str | None = None
    index: str | None = None
    network: str | None = None

    def __post_init__(self) -> None:
        if self.push and not self.registry:
            raise ConfigurationError("PUSH needs REGISTRY, such as registry.example/")
        if len(self.platforms) > 1 and not self.push:
            raise ConfigurationError("several platforms are joined in a registry: give PUSH=1")

    @property
    def platforms(self) -> list[str | None]:
        """Each platform to build for; None is that of the builder."""
        return [*(self.platform or "").split(",")] if self.platform else [None]

    def tag(self, name: str, platform: str | None = None) -> str:
        """Return the name of an image; of one of several platforms with its own suffix."""
        own = f"-{platform.partition('/')[2].replace('/', '-')}" if platform else ""
        return f"{self.registry}estsuite/{name}:{version()}{own}"

    def flags(self, name: str, tag: str, platform: str | None, revision: str) -> list[str]:
        """Return the flags for an image that every builder knows."""
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
        return [
            *("--tag", tag, "--target", image.target),
            *(("--platform", platform) if platform else ()),
            *(p for key, value in arguments.items() for p in ("--build-arg", f"{key}={value}")),
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


def _revision() -> str:
    done = subprocess.run(
        ["git", "-C", ROOT, "rev-parse", "HEAD"],  # noqa: S607 - of the person who builds
        capture_output=True,
        text=True,
        check=False,
    )
    return done.stdout.strip() or "unknown"


def build(builder: Builder, options: Options, name: str, revision: str) -> bool:
    """Build an image for each platform, look into it, and push it; returns whether all is well."""
    platforms, pushed = options.platforms, []
    for platform in platforms:
        tag = options.tag(name, platform if len(platforms) > 1 else None)
        flags = options.flags(name, tag, platform, revision)
        base = options.base or base_image()
        if platform:  # Docker's legacy builder takes a base image that it has, of whatever platform
            _base(builder, base, platform)
        builder.build(flags, ROOT, network=options.network)
        if not _look(builder, name, tag, base):
            return False
        if options.push:
            pushed.append(tag)
            write_line(f"{tag}@{builder.push(tag)}")
    if len(pushed) > 1:
        tag = options.tag(name)
        write_line(f"{tag}@{builder.push_index(tag, pushed)}")
    return True


def _look(builder: Builder, name: str, tag: str, base_name: str) -> bool:
    image = builder.inspect(tag)
    if image is None:
        raise ConfigurationError(f"{tag} was built, but is not in the store")
    platform = f"{image['Os']}/{image['Architecture']}"
    base = _base(builder, base_name, platform)
    program = f"import sys; sys.stdout.write(open('{SBOM}').read())"
    document = json.loads(builder.output(tag, program, platform))
    found = [*findings(image, base, name), *sbom_findings(document, name)]
    size, added = megabytes(image), megabytes(image) - megabytes(base)
    more = ": NOT GOOD" * bool(found)
    write_line(f"{tag}: {platform}, {size} MB, {added} MB above the base{more}")
    for finding in found:
        write_line(f"  {finding}")
    return not found


def _base(builder: Builder, name: str, platform: str) -> dict[str, Any]:
    """Return what is known of the base image for a platform; pulled if it is not in the store."""
    base = builder.inspect(name)
    if base is None or f"{base['Os']}/{base['Architecture']}" != "/".join(platform.split("/")[:2]):
        builder.pull(name, platform)
        base = builder.inspect(name)
    if base is None:
        raise ConfigurationError(f"{name} was pulled, but is not in the store")
    return base


@click.command("images", help="Build every image, then look into it.", context_settings=CONTEXT)
@click.argument("names", nargs=-1, type=click.Choice(sorted(IMAGES)))
@click.option("--builder", type=click.Choice([DOCKER, PODMAN]), default=DOCKER, help="What builds.")
@click.option("--registry", default="", help="What goes before estsuite/<name>.")
@click.option("--push", is_flag=True, help="Push each image to the registry.")
@click.option("--base", help="Base image instead of that of the Dockerfile.")
@click.option("--platform", help="linux/arm64, or several separated by commas.")
@click.option("--index", help="Package index for uv and the build backend.")
@click.option("--network", help="Network of the build, such as host.")
def _images(names: tuple[str, ...], **named: Any) -> int:
    options = Options(**named)
    builder, revision = image_builders.builder(options.builder), _revision()
    results = [build(builder, options, name, revision) for name in names or IMAGES]
    return 0 if all(results) else 1


def main(arguments: Sequence[str] | None = None) -> int:
    """Carry out the command line; returns the exit code."""
    return command_line.run(_images, "images", arguments)


if __name__ == "__main__":
    sys.exit(main())
