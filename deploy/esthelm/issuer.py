"""The values of the chart est-issuer, which estsuite contains and which can be installed alone."""

from __future__ import annotations

import json

from esthelm.sources import Documents
from esthelm.templates import Block, Inline
from esthelm.values import (
    BOOLEAN,
    CONTAINER,
    COUNT,
    LABELS,
    NAMESPACE,
    RESOURCES,
    TEXT,
    Value,
    at,
    found,
    image,
    image_pull_secrets,
)

NAMESPACE_NAME = "est-issuer"
_DEPLOYMENT = ("Deployment", "est-issuer")
FILE = "est-issuer.yaml"
POD_MONITOR = ("PodMonitor", "est-issuer")


def values(documents: Documents) -> list[Value]:
    """Return the values of the chart, in the order of values.yaml."""
    text = found(documents, "ConfigMap", "est-issuer-config", ("data", FILE))

    def read(given: Documents) -> object:
        there = found(given, "ConfigMap", "est-issuer-config", ("data", FILE))
        return "" if there == text else there

    monitoring = ("spec", "ingress", 0, "from", 0, "namespaceSelector", "matchLabels")
    return [
        Value(
            "namespace",
            "Namespace of the controller, which may read every Secret in it: not the suite's.",
            NAMESPACE,
            write=_write_namespace,
            default=NAMESPACE_NAME,
        ),
        *image("image", "est-issuer", (*_DEPLOYMENT, (*CONTAINER, "image")), define="est-issuer"),
        image_pull_secrets(", in the namespace of the controller"),
        at(
            "replicas",
            "Replicas of est-issuer; one works, the others wait for its Lease.",
            COUNT,
            (*_DEPLOYMENT, ("spec", "replicas")),
        ),
        at(
            "resources",
            "Requests and limits of est-issuer.",
            RESOURCES,
            (*_DEPLOYMENT, (*CONTAINER, "resources")),
        ),
        at(
            "monitoringNamespace",
            "Namespace of Prometheus, which may read metrics.",
            NAMESPACE,
            ("NetworkPolicy", "metrics", (*monitoring, "kubernetes.io/metadata.name")),
        ),
        Value(
            "monitoring.enabled",
            "PodMonitor of the Prometheus operator.",
            BOOLEAN,
            lambda given: POD_MONITOR in given,
        ),
        Value(
            "monitoring.labels",
            "Further labels of the PodMonitor, for the selectors of Prometheus.",
            LABELS,
            write=_write_labels,
            default={},
        ),
        Value(
            "settings",
            "Settings that are merged into the settings file of est-issuer; lists replace.",
            {"settings": "est-issuer"},
            default={},
        ),
        Value(
            "file",
            f"Text of {FILE} in place of the chart's: --set-file file={FILE}",
            TEXT,
            read,
            default="",
        ),
    ]


def _write_labels(documents: Documents) -> None:
    metadata = documents[POD_MONITOR]["metadata"]
    fixed = json.dumps(metadata["labels"])
    metadata["labels"] = Block(
        f"mustMerge (fromJson `{fixed}`) $.Values.monitoring.labels | toYaml"
    )


def _write_namespace(documents: Documents) -> None:
    node = Inline("toJson $.Values.namespace")
    for (kind, _), document in documents.items():
        metadata = document["metadata"]
        if kind == "Namespace":
            metadata["name"] = node
        if metadata.get("namespace") == NAMESPACE_NAME:
            metadata["namespace"] = node
        for subject in document.get("subjects", []):
            if subject.get("namespace") == NAMESPACE_NAME:
                subject["namespace"] = node
