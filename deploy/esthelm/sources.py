"""Kustomize's documents by part of the chart: the base, each component, what overlays add.

A part is the difference between two renderings, so a file that is added to a component is in the
chart without a change here.
"""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from estdeploy import manifests

from estcore.errors import ConfigurationError

ROOT = Path(__file__).resolve().parents[2]
KUSTOMIZE = ROOT / "deploy" / "k8s"
COMPONENTS = ("check-store", "estctl", "monitoring", "pod-tokens", "witnessed")
OVERLAYS = ("dev", "prod", "all-in-one")
NAMESPACE = "estsuite"
_HASHED = re.compile(r"^(?P<name>.+)-[24-9bcdfghkmt]{10}$")

Document = dict[str, Any]
Key = tuple[str, str]
Documents = dict[Key, Document]


@dataclass(frozen=True)
class Sources:
    """What Kustomize renders, by kind and name; ConfigMaps under their names without a hash."""

    parts: Mapping[str, Documents]
    overlays: Mapping[str, Documents]
    issuer: Documents
    issuer_monitoring: Documents


def by_key(documents: list[Document]) -> Documents:
    """Return the documents by kind and name.

    Raises:
        ConfigurationError: two have the same.
    """
    found: Documents = {}
    for document in documents:
        key = (document["kind"], plain_name(document))
        if key in found:
            raise ConfigurationError(f"{key[0]} {key[1]} is rendered twice")
        found[key] = document
    return found


def plain_name(document: Document) -> str:
    """Return the name, without the hash that Kustomize gives a ConfigMap."""
    name: str = document["metadata"]["name"]
    hashed = _HASHED.match(name) if document["kind"] == "ConfigMap" else None
    return hashed["name"] if hashed else name


def read() -> Sources:
    """Render everything that the chart is made from.

    Raises:
        ConfigurationError: Kustomize refuses, or a component changes a document otherwise than by
            appending to a list.
    """
    base = by_key(manifests.render(KUSTOMIZE / "base"))
    overlays = {name: by_key(manifests.render(KUSTOMIZE / "overlays" / name)) for name in OVERLAYS}
    parts = {"base": base}
    for component in COMPONENTS:
        parts[component] = _changed(base, with_components(component))
    known = {key for part in parts.values() for key in part}
    parts["siem"] = _without(overlays["prod"], known)
    parts["servers"] = _without(overlays["all-in-one"], known)
    issuer = by_key(manifests.render(KUSTOMIZE / "overlays" / "est-issuer"))
    return Sources(parts, overlays, issuer, _without(issuer_with_monitoring(), set(issuer)))


def issuer_with_monitoring() -> Documents:
    """Return est-issuer with its PodMonitor, as an overlay of an operator would have them."""
    return _rendered({"components": ["components/est-issuer", "components/est-issuer-monitoring"]})


def with_components(*names: str) -> Documents:
    """Return the base with these components, as an overlay of an operator would have them."""
    components = [f"components/{name}" for name in names]
    return _rendered({"resources": ["base"], "components": components}, namespace=NAMESPACE)


def _rendered(named: Mapping[str, list[str]], **fields: str) -> Documents:
    with tempfile.TemporaryDirectory() as folder:
        # Kustomize refuses absolute paths, and resolves symbolic links before it compares.
        here = os.path.relpath(KUSTOMIZE, Path(folder).resolve())
        overlay = {
            "apiVersion": "kustomize.config.k8s.io/v1beta1",
            "kind": "Kustomization",
            "labels": [
                {"pairs": {"app.kubernetes.io/part-of": NAMESPACE}, "includeTemplates": True}
            ],
            **fields,
            **{what: [f"{here}/{path}" for path in paths] for what, paths in named.items()},
        }
        Path(folder, "kustomization.yaml").write_text(yaml.safe_dump(overlay), encoding="utf-8")
        return by_key(manifests.render(Path(folder)))


def appended(old: Any, new: Any, place: tuple[str | int, ...] = ()) -> Iterator[tuple[Any, Any]]:
    """Yield place and item of each list item that ``new`` appends to ``old``.

    Raises:
        ConfigurationError: something else is different.
    """
    if isinstance(old, dict) and isinstance(new, dict) and old.keys() == new.keys():
        for key in old:
            yield from appended(old[key], new[key], (*place, key))
    elif isinstance(old, list) and isinstance(new, list) and len(new) >= len(old):
        for number, item in enumerate(old):
            yield from appended(item, new[number], (*place, number))
        for item in new[len(old) :]:
            yield place, item
    elif old != new:
        raise ConfigurationError(f"a component changes {place}, and the chart can only append")


def _changed(base: Documents, with_component: Documents) -> Documents:
    return {key: found for key, found in with_component.items() if base.get(key) != found}


def _without(documents: Documents, known: set[Key]) -> Documents:
    return {key: found for key, found in documents.items() if key not in known}
