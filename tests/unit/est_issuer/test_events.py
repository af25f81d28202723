"""Events about issuers and requests: in which namespace they are, and what fits into one."""

from __future__ import annotations

from typing import Any

from est_issuer.events import event
from est_issuer.kinds import CERTIFICATE_REQUESTS, CLUSTER_ISSUERS, SIGNING_REQUESTS, Resource
from estsuite_testing.chains import NOON


def about(
    resource: Resource, namespace: str = "", name: str = "web", note: str = "done"
) -> dict[str, Any]:
    metadata = {"name": name, "uid": "1", **({"namespace": namespace} if namespace else {})}
    found = {"metadata": metadata}
    return event(resource, found, "Normal", "Issued", note, instance="pod-1", now=NOON)


def test_an_event_is_in_the_namespace_of_its_object() -> None:
    made = about(CERTIFICATE_REQUESTS, "shop")
    assert made["metadata"]["namespace"] == made["regarding"]["namespace"] == "shop"
    assert made["regarding"]["apiVersion"] == "cert-manager.io/v1"
    assert made["eventTime"] == "2026-06-01T12:00:00.000000Z"


def test_an_event_about_an_object_of_the_cluster_is_in_default() -> None:
    for resource in (CLUSTER_ISSUERS, SIGNING_REQUESTS):
        made = about(resource)
        assert made["metadata"]["namespace"] == "default"
        assert "namespace" not in made["regarding"]


def test_names_differ_and_texts_are_cut() -> None:
    first, second = (about(CERTIFICATE_REQUESTS, "shop", "a" * 253, "x\n" * 2000) for _ in range(2))
    assert first["metadata"]["name"] != second["metadata"]["name"]
    assert len(first["metadata"]["name"]) <= 253
    assert len(first["note"]) == 1024
    assert "\n" not in first["note"]
