"""Values of components, and of the network policies."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from esthelm.sources import Documents, Sources
from esthelm.templates import Block, Guarded, Piped, member
from esthelm.values import (
    ABSENT,
    BOOLEAN,
    CIDRS,
    CONTAINER,
    JOB,
    LABELS,
    NAMESPACE,
    PORT,
    SIZE,
    Place,
    Value,
    at,
    found,
    resources,
)

_PEERS: Place = ("spec", "egress", 0, "to")
_COMPONENTS = {
    "check-store": ("checkStore", "Lint the ledger every night."),
    "estctl": ("estctl", "A pod estctl-0 in which operators give commands."),
    "monitoring": ("monitoring", "PodMonitor and alert rules of the Prometheus operator."),
    "pod-tokens": (
        "podTokens",
        "Let est-frontend fetch the keys of service account tokens; settings.estFrontend needs "
        "token_issuers.",
    ),
    "witnessed": (
        "witnessed",
        "Let audit reach a witness in the namespace est-witness; settings.audit needs witnesses.",
    ),
    "servers": (
        "servers",
        "A NATS and a PostgreSQL of one replica each, for trying; neither survives its node.",
    ),
}


def components(sources: Sources) -> Iterator[Value]:
    """Yield the values of components: whether each is on, and its own."""
    nightly = ("CronJob", "check-store")
    for part, (name, description) in _COMPONENTS.items():
        own = set(sources.parts[part]) - set(sources.parts["base"])
        yield Value(
            f"{name}.enabled",
            description,
            BOOLEAN,
            lambda d, own=own: own <= d.keys(),  # type: ignore[misc]
            default=False,
        )
        if part == "check-store":
            yield at(
                f"{name}.schedule",
                "When check-store runs, in UTC, as cron says it.",
                {"type": "string", "pattern": r"^(\S+ ){4}\S+$"},
                (*nightly, ("spec", "schedule")),
            )
            yield resources(name, part, (*nightly, (*JOB, "containers", 0, "resources")))
        elif part == "estctl":
            yield resources(name, part, ("StatefulSet", part, (*CONTAINER, "resources")))
        elif part == "monitoring":
            yield Value(
                f"{name}.labels",
                "Further labels of PodMonitor and PrometheusRule, for the selectors of Prometheus.",
                LABELS,
                write=_monitoring_labels,
                default={},
            )
        elif part == "pod-tokens":
            yield _addresses(
                f"{name}.apiServerAddresses",
                "Addresses (CIDR) of the API server, which publishes the keys of tokens.",
                "api-server",
            )
        elif part == "servers":
            for server in ("nats", "postgres"):
                yield from _server(server)


def _server(server: str) -> Iterator[Value]:
    where = ("StatefulSet", server)
    claim: Place = ("spec", "volumeClaimTemplates", 0, "spec")
    yield resources(f"servers.{server}", server, (*where, (*CONTAINER, "resources")))
    yield at(
        f"servers.{server}.storage.size",
        f"Size of the volume of {server}; fixed once it is installed.",
        SIZE,
        (*where, (*claim, "resources", "requests", "storage")),
    )

    def write(documents: Documents) -> None:
        spec = documents[where]["spec"]["volumeClaimTemplates"][0]["spec"]
        member(
            spec,
            Piped(
                f"$.Values.servers.{server}.storage.storageClass",
                "storageClassName",
                "{{ toJson . }}",
            ),
        )

    yield Value(
        f"servers.{server}.storage.storageClass",
        f"StorageClass of the volume of {server}; empty: the cluster's default.",
        {"type": "string", "pattern": "^([a-z0-9]([-a-z0-9.]*[a-z0-9])?)?$"},
        write=write,
        default="",
    )


def network() -> Iterator[Value]:
    """Yield the peers of network policies."""
    for server, policies in (("nats", ("nats", "estctl")), ("postgres", ("postgres",))):
        place = (*_PEERS, 0, "namespaceSelector", "matchLabels", "kubernetes.io/metadata.name")
        yield at(
            f"network.{server}Namespace",
            f"Namespace of {server}, where it runs in the cluster.",
            NAMESPACE,
            *(("NetworkPolicy", policy, place) for policy in policies),
        )

        def write(
            documents: Documents, server: str = server, policies: tuple[str, ...] = policies
        ) -> None:
            outside = f"$.Values.network.{server}Addresses"
            for policy in policies:
                rule = documents["NetworkPolicy", policy]["spec"]["egress"][0]
                inside = rule.pop("to")
                peers = Block(f'include "estsuite.addresses" {outside}')
                member(rule, Guarded(outside, peers, "to"))
                member(rule, Guarded(f"not {outside}", inside, "to"))

        yield Value(
            f"network.{server}Addresses",
            f"Addresses (CIDR) of {server} outside the cluster, in place of its namespace.",
            CIDRS,
            write=write,
            default=[],
        )
    monitoring: Place = (
        *("spec", "ingress", 0, "from", 0, "namespaceSelector", "matchLabels"),
        "kubernetes.io/metadata.name",
    )
    yield at(
        "network.monitoringNamespace",
        "Namespace of Prometheus, which may read metrics.",
        NAMESPACE,
        ("NetworkPolicy", "metrics", monitoring),
    )
    yield _addresses(
        "network.siemAddresses",
        "Addresses (CIDR) of the SIEM to which audit may connect; empty: none.",
        "siem",
        default=[],
    )
    yield at(
        "network.siemPort",
        "Port of the SIEM.",
        PORT,
        ("NetworkPolicy", "siem", ("spec", "egress", 0, "ports", 0, "port")),
    )


def _addresses(name: str, description: str, policy: str, default: Any = ABSENT) -> Value:
    """Return a value with the only peers of a NetworkPolicy."""

    def read(documents: Documents) -> Any:
        peers = found(documents, "NetworkPolicy", policy, _PEERS)
        return ABSENT if peers is ABSENT else [peer["ipBlock"]["cidr"] for peer in peers]

    def write(documents: Documents) -> None:
        documents["NetworkPolicy", policy]["spec"]["egress"][0]["to"] = Block(
            f'include "estsuite.addresses" $.Values.{name}'
        )

    return Value(name, description, CIDRS, read, write, default)


def _monitoring_labels(documents: Documents) -> None:
    for key in (("PodMonitor", "estsuite"), ("PrometheusRule", "estsuite")):
        metadata = documents[key]["metadata"]
        fixed = json.dumps(metadata["labels"])
        expression = f"mustMerge (fromJson `{fixed}`) $.Values.monitoring.labels | toYaml"
        metadata["labels"] = Block(expression)
