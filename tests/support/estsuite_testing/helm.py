"""The real helm, built from its Go module, and charts rendered by it."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import kubernetes_validate  # type: ignore[import-untyped]  # it has no stubs
import yaml
from esthelm.sources import Document, Documents

from estsuite_testing.build_cache import built, run_build
from estsuite_testing.foreign.sources import CLIENTS
from estsuite_testing.foreign.toolchains import of_group, with_path

CHART = Path(__file__).parents[3] / "deploy" / "helm" / "estsuite"
_MODULE = CLIENTS / "helm"
_RECIPE = [_MODULE / name for name in ("go.mod", "go.sum")]
_KUBERNETES = f"--kube-version={kubernetes_validate.latest_version()}"


def command() -> Path:
    """Return the program; the first call builds it, which takes three minutes of CPU."""

    def build(folder: Path) -> None:
        go = of_group("go")
        module = folder.parent / "module"
        shutil.copytree(_MODULE, module)
        env = with_path(go.parent) | {"GOTOOLCHAIN": "local"}
        target = ["-o", str(folder / "helm"), "helm.sh/helm/v3/cmd/helm"]
        run_build([str(go), "build", "-trimpath", "-ldflags=-s -w", *target], cwd=module, env=env)

    return built("helm", _RECIPE, build) / "helm"


class Helm:
    """Runs helm in a home of its own, without a cluster."""

    def __init__(self, home: Path) -> None:
        self._command = command()
        self._home = home

    def run(self, *arguments: str, values: str = "") -> subprocess.CompletedProcess[str]:
        """Run a command; the values are what it reads as ``--values -``."""
        return subprocess.run(
            [str(self._command), *arguments],
            env={"HOME": str(self._home), "PATH": "/usr/bin:/bin"},
            input=values, capture_output=True, text=True, check=False, timeout=60,
        )  # fmt: skip

    def lint(self, chart: Path) -> subprocess.CompletedProcess[str]:
        """Lint a chart strictly."""
        return self.run("lint", "--strict", _KUBERNETES, str(chart))

    def render(
        self,
        values: Mapping[str, Any] | None = None,
        *,
        chart: Path = CHART,
        namespace: str = "estsuite",
        files: Sequence[Path] = (),
    ) -> list[Document]:
        """Return the documents, CustomResourceDefinitions with them.

        Fails the test when helm refuses the values, or warns.
        """
        done = self._template(values or {}, chart, namespace, files)
        assert (done.returncode, done.stderr) == (0, "")
        return [d for d in yaml.load_all(done.stdout, yaml.CSafeLoader) if d]

    def refusal(
        self, values: Mapping[str, Any], *, chart: Path = CHART, namespace: str = "estsuite"
    ) -> list[str]:
        """Return the lines with which helm refuses the values."""
        done = self._template(values, chart, namespace, ())
        assert done.returncode == 1, done.stdout[:2000]
        return [line.strip() for line in done.stderr.splitlines()]

    def _template(
        self, values: Mapping[str, Any], chart: Path, namespace: str, files: Sequence[Path]
    ) -> subprocess.CompletedProcess[str]:
        return self.run(
            "template", "estsuite", str(chart), "--include-crds", _KUBERNETES,
            f"--namespace={namespace}", *(f"--values={file}" for file in files), "--values=-",
            values=yaml.safe_dump(dict(values)),
        )  # fmt: skip


def nested(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return values with dotted names as a tree."""
    tree: dict[str, Any] = {}
    for name, value in values.items():
        *parents, last = name.split(".")
        inside = tree
        for parent in parents:
            inside = inside.setdefault(parent, {})
        inside[last] = value
    return tree


def leaves(documents: Documents) -> dict[str, Any]:
    """Return ``Kind/name path`` to value; files in ConfigMaps are looked into.

    ConfigMaps have their names without a hash, also where pods name them.
    """
    names = {d["metadata"]["name"]: key[1] for key, d in documents.items() if key[0] == "ConfigMap"}
    found: dict[str, Any] = {}
    for (kind, name), document in documents.items():
        for path, value in _paths(document):
            found[f"{kind}/{name} {path}"] = (
                names.get(value, value) if isinstance(value, str) else value
            )
    return found


def changes(before: Mapping[str, Any], after: Mapping[str, Any]) -> dict[str, Any]:
    """Return the leaves that are different, with their new value; None where one is gone."""
    return {
        place: after.get(place)
        for place in before.keys() | after.keys()
        if before.get(place) != after.get(place)
    }


def _paths(node: Any, above: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(node, str) and above.startswith("data.") and above.endswith(".yaml"):
        yield from _paths(yaml.load(node, yaml.CSafeLoader), f"{above}#")
    elif isinstance(node, dict) and node:
        for key, item in node.items():
            yield from _paths(item, f"{above}.{key}" if above else key)
    elif isinstance(node, list) and node:
        for number, item in enumerate(node):
            yield from _paths(item, f"{above}.{number}")
    else:
        yield above, node
