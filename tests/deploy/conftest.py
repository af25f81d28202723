"""Fixtures: what ``prepare`` makes with real paths, and what kustomize renders."""

from __future__ import annotations

import sys
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "deploy"))

from estdeploy import manifests  # noqa: E402 - the folder above is not installed
from estdeploy.compose_files import prepare  # noqa: E402
from estdeploy.services import Places  # noqa: E402


@pytest.fixture(scope="session")
def root() -> Path:
    return ROOT


@pytest.fixture(scope="session")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that ``prepare`` fills, with settings that name its real paths."""
    folder = tmp_path_factory.mktemp("compose") / "local"
    places = Places(
        config=folder / "config",
        secrets=folder / "secrets",
        data=folder / "data" / "est-frontend",
    )
    prepare(folder, places)
    return folder


@pytest.fixture(scope="session")
def _rendered() -> dict[str, list[dict[str, Any]]]:
    return {
        name: manifests.render(ROOT / "deploy" / "k8s" / name)
        for name in ("base", "overlays/dev", "overlays/prod")
    }


@pytest.fixture
def base(_rendered: dict[str, list[dict[str, Any]]]) -> list[dict[str, Any]]:
    """The base's documents, to break one thing in."""
    return deepcopy(_rendered["base"])


@pytest.fixture
def prod(_rendered: dict[str, list[dict[str, Any]]]) -> list[dict[str, Any]]:
    return deepcopy(_rendered["overlays/prod"])


@pytest.fixture
def dev(_rendered: dict[str, list[dict[str, Any]]]) -> list[dict[str, Any]]:
    return deepcopy(_rendered["overlays/dev"])
