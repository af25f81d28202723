"""Fixtures: what ``prepare`` makes with real paths, and what kustomize renders."""

from __future__ import annotations

import shutil
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
from estdeploy import manifests

from estsetup.compose import prepare
from estsetup.service_settings import Places
from estsuite_testing.build_context import build_context

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture(scope="session")
def root() -> Path:
    return ROOT


@pytest.fixture(scope="session")
def context(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The build context of the images: only what .dockerignore lets through.

    In a folder of its own every time: uv keeps wheels that it built of a folder, also when the
    sources have changed.
    """
    folder = tmp_path_factory.mktemp("context")
    for path in build_context(ROOT, (ROOT / ".dockerignore").read_text(encoding="utf-8")):
        target = folder / path
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / path, target)
    return folder


@pytest.fixture(scope="session")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that ``prepare`` fills, with settings that name its real paths."""
    folder = tmp_path_factory.mktemp("compose") / "local"
    places = Places(
        config=folder / "config",
        secrets=folder / "keys",
        data=folder / "data" / "est-frontend",
    )
    prepare(folder, places)
    return folder


@pytest.fixture(scope="session")
def rendered() -> dict[str, list[dict[str, Any]]]:
    return {
        name: manifests.render(ROOT / "deploy" / "k8s" / name)
        for name in ("base", "overlays/dev", "overlays/prod", "overlays/all-in-one")
    }


@pytest.fixture
def base(rendered: dict[str, list[dict[str, Any]]]) -> list[dict[str, Any]]:
    """The base's documents, to break one thing in."""
    return deepcopy(rendered["base"])


@pytest.fixture
def prod(rendered: dict[str, list[dict[str, Any]]]) -> list[dict[str, Any]]:
    return deepcopy(rendered["overlays/prod"])


@pytest.fixture
def dev(rendered: dict[str, list[dict[str, Any]]]) -> list[dict[str, Any]]:
    return deepcopy(rendered["overlays/dev"])
