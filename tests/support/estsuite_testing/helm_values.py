"""What each value of the Helm chart changes: probes, and the leaves that are different afterwards.

Written by hand, so that no expectation comes from the generator of the chart. Leaves are named as
``estsuite_testing.helm.leaves`` does it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

SERVICES = ("est-frontend", "ca-signer", "renewal", "audit")
POD = "spec.template.spec"
JOB = "spec.jobTemplate.spec.template.spec"
HOST = f"{POD}.topologySpreadConstraints.1"
Expected = Mapping[str, Any] | Callable[[Mapping[str, Any]], Mapping[str, Any]]
"""The changed leaves with their new values, or a function of the leaves before."""
Case = tuple[Any, Expected]
"""A probe and what it changes."""


def images(value: str, *places: str) -> Iterator[tuple[str, Case]]:
    """Cases of one image; what is before the probe stays."""

    def with_part(pattern: str) -> Expected:
        def expected(before: Mapping[str, Any]) -> Mapping[str, Any]:
            repository, _, rest = before[places[0]].rpartition("/")
            name, _, tag = rest.partition(":")
            tag, _, digest = tag.partition("@")
            full = {
                "repository": f"registry.test/x:{tag}{'@' if digest else ''}{digest}",
                "tag": f"{repository}{'/' if repository else ''}{name}:9.9{'@' if digest else ''}{digest}",
                "digest": f"{repository}{'/' if repository else ''}{name}:{tag}@sha256:{'0' * 64}",
            }
            return dict.fromkeys(places, full[pattern])

        return expected

    yield f"{value}.repository", ("registry.test/x", with_part("repository"))
    yield f"{value}.tag", ("9.9", with_part("tag"))
    yield f"{value}.digest", (f"sha256:{'0' * 64}", with_part("digest"))


def resources(value: str, *places: str) -> Iterator[tuple[str, Case]]:
    changed = {f"{place}.resources.requests.cpu": "77m" for place in places}
    yield f"{value}.resources", ({"requests": {"cpu": "77m"}}, changed)


def mounted(kind: str, name: str) -> Expected:
    """Every volume that had this Secret or ConfigMap has the probe."""
    last = {"secret": ".secret.secretName", "configMap": ".configMap.name"}[kind]

    def expected(before: Mapping[str, Any]) -> Mapping[str, Any]:
        places = [p for p, value in before.items() if p.endswith(last) and value == name]
        assert places
        return dict.fromkeys(places, "other")

    return expected


def whole_file(file: str, *config_maps: str) -> Expected:
    """The file has nothing but the probe."""

    def expected(before: Mapping[str, Any]) -> Mapping[str, Any]:
        starts = tuple(f"ConfigMap/{name} data.{file}#" for name in config_maps)
        gone = {place: None for place in before if place.startswith(starts)}
        assert gone
        return gone | {f"{start}.only": 1 for start in starts}

    return expected


def peers(addresses: str, *places: str) -> Expected:
    """The peers of these policies are one address."""

    def expected(before: Mapping[str, Any]) -> Mapping[str, Any]:
        gone = {p: None for p in before if p.startswith(tuple(f"{x}.to.0." for x in places))}
        return gone | {f"{place}.to.0.ipBlock.cidr": addresses for place in places}

    return expected


def off(*documents: str, also: tuple[str, ...] = ()) -> Expected:
    """These documents, and leaves that begin so, are gone."""

    def expected(before: Mapping[str, Any]) -> Mapping[str, Any]:
        starts = (*(f"{document} " for document in documents), *also)
        for start in starts:
            assert any(place.startswith(start) for place in before), start
        return {place: None for place in before if place.startswith(starts)}

    return expected


def without_servers(before: Mapping[str, Any]) -> Mapping[str, Any]:
    names = ("ServiceAccount", "Service", "StatefulSet")
    gone = off(
        *(f"{kind}/{server}" for kind in names for server in ("nats", "postgres")),
        *(
            f"NetworkPolicy/{n}"
            for n in ("at-nats", "at-postgres", "to-nats-here", "to-postgres-here")
        ),
        "ConfigMap/postgres-roles",
    )
    assert callable(gone)
    return {
        **gone(before),
        "ConfigMap/endpoints data.nats-url": "tls://nats.nats.svc:4222",
        "ConfigMap/endpoints data.postgres-address": "postgres-rw.postgres.svc:5432",
    }


_FRONTEND = f"Deployment/est-frontend {POD}"
_EGRESS = "spec.egress.0"
_SPACE = "namespaceSelector.matchLabels.kubernetes.io/metadata.name"
_MONITORING = f"spec.ingress.0.from.0.{_SPACE}"
_CLAIM = "spec.volumeClaimTemplates.0.spec"
_SCALER = "HorizontalPodAutoscaler/est-frontend"
CASES: dict[str, Case] = {
    "endpoints.natsUrl": (
        "tls://a.test:4222,tls://b.test:4222",
        {"ConfigMap/endpoints data.nats-url": "tls://a.test:4222,tls://b.test:4222"},
    ),
    "endpoints.postgresAddress": (
        "db.test:5433",
        {"ConfigMap/endpoints data.postgres-address": "db.test:5433"},
    ),
    "endpoints.streamReplicas": (1, {"ConfigMap/endpoints data.stream-replicas": "1"}),
    **dict(images("images.estFrontend", f"{_FRONTEND}.containers.0.image")),
    **dict(
        images(
            "images.caSigner",
            f"Deployment/ca-signer {POD}.containers.0.image",
            f"CronJob/migrate {JOB}.initContainers.0.image",
        )
    ),
    **dict(
        images(
            "images.renewal",
            f"Deployment/renewal {POD}.containers.0.image",
            f"CronJob/migrate {JOB}.containers.0.image",
        )
    ),
    **dict(
        images(
            "images.audit",
            f"Deployment/audit {POD}.containers.0.image",
            f"CronJob/migrate {JOB}.containers.1.image",
        )
    ),
    **dict(images("images.checkStore", f"CronJob/check-store {JOB}.containers.0.image")),
    **dict(images("images.estctl", f"StatefulSet/estctl {POD}.containers.0.image")),
    **dict(images("images.nats", f"StatefulSet/nats {POD}.containers.0.image")),
    **dict(images("images.postgres", f"StatefulSet/postgres {POD}.containers.0.image")),
    "imagePullSecrets": (
        ["registry", "mirror"],
        {
            f"{where}.imagePullSecrets.{number}.name": name
            for where in (
                *(f"Deployment/{service} {POD}" for service in SERVICES),
                *(f"StatefulSet/{name} {POD}" for name in ("estctl", "nats", "postgres")),
                *(f"CronJob/{name} {JOB}" for name in ("migrate", "check-store")),
            )
            for number, name in enumerate(["registry", "mirror"])
        },
    ),
    "estFrontend.autoscaling.enabled": (
        False,
        lambda before: {
            **dict.fromkeys(p for p in before if p.startswith(f"{_SCALER} ")),
            "Deployment/est-frontend spec.replicas": 3,
        },
    ),
    "estFrontend.autoscaling.minReplicas": (4, {f"{_SCALER} spec.minReplicas": 4}),
    "estFrontend.autoscaling.maxReplicas": (40, {f"{_SCALER} spec.maxReplicas": 40}),
    "estFrontend.autoscaling.cpuUtilization": (
        55,
        {f"{_SCALER} spec.metrics.0.resource.target.averageUtilization": 55},
    ),
    "estFrontend.replicas": (7, {"Deployment/est-frontend spec.replicas": 7}),
    "estFrontend.dataSize": ("3Gi", {f"{_FRONTEND}.volumes.4.emptyDir.sizeLimit": "3Gi"}),
    "estFrontend.service.type": ("NodePort", {"Service/est-frontend spec.type": "NodePort"}),
    "estFrontend.service.annotations": (
        {"a.test/b": "c"},
        {"Service/est-frontend metadata.annotations.a.test/b": "c"},
    ),
    "estFrontend.service.externalTrafficPolicy": (
        "Local",
        {"Service/est-frontend spec.externalTrafficPolicy": "Local"},
    ),
    **dict(resources("estFrontend", f"{_FRONTEND}.containers.0")),
    **dict(resources("caSigner", f"Deployment/ca-signer {POD}.containers.0")),
    **dict(resources("renewal", f"Deployment/renewal {POD}.containers.0")),
    **dict(resources("audit", f"Deployment/audit {POD}.containers.0")),
    **dict(resources("checkStore", f"CronJob/check-store {JOB}.containers.0")),
    **dict(resources("estctl", f"StatefulSet/estctl {POD}.containers.0")),
    **dict(resources("servers.nats", f"StatefulSet/nats {POD}.containers.0")),
    **dict(resources("servers.postgres", f"StatefulSet/postgres {POD}.containers.0")),
    **dict(
        resources(
            "migrate",
            f"CronJob/migrate {JOB}.initContainers.0",
            f"CronJob/migrate {JOB}.containers.0",
            f"CronJob/migrate {JOB}.containers.1",
        )
    ),
    "caSigner.replicas": (5, {"Deployment/ca-signer spec.replicas": 5}),
    "renewal.replicas": (5, {"Deployment/renewal spec.replicas": 5}),
    "audit.replicas": (5, {"Deployment/audit spec.replicas": 5}),
    "replicasOnTwoNodes": (
        True,
        {
            f"Deployment/{service} {HOST}.{key}": value
            for service in SERVICES
            for key, value in (("whenUnsatisfiable", "DoNotSchedule"), ("minDomains", 2))
        },
    ),
    "pauseRollouts": (True, {f"Deployment/{service} spec.paused": True for service in SERVICES}),
    "checkStore.enabled": (False, off("ServiceAccount/check-store", "CronJob/check-store")),
    "checkStore.schedule": ("1 2 * * 3", {"CronJob/check-store spec.schedule": "1 2 * * 3"}),
    "estctl.enabled": (
        False,
        off(
            "ServiceAccount/estctl",
            "ConfigMap/estctl-config",
            "StatefulSet/estctl",
            "NetworkPolicy/estctl",
        ),
    ),
    "monitoring.enabled": (False, off("PodMonitor/estsuite", "PrometheusRule/estsuite")),
    "monitoring.labels": (
        {"release": "prometheus"},
        {
            f"{kind}/estsuite metadata.labels.release": "prometheus"
            for kind in ("PodMonitor", "PrometheusRule")
        },
    ),
    "podTokens.enabled": (
        False,
        off(
            "ClusterRoleBinding/estsuite-token-keys",
            "NetworkPolicy/api-server",
            also=(f"{_FRONTEND}.volumes.6.", f"{_FRONTEND}.containers.0.volumeMounts.6."),
        ),
    ),
    "podTokens.apiServerAddresses": (
        ["198.51.100.7/32"],
        peers("198.51.100.7/32", f"NetworkPolicy/api-server {_EGRESS}"),
    ),
    "witnessed.enabled": (False, off("NetworkPolicy/witness")),
    "servers.enabled": (False, without_servers),
    **{
        f"servers.{server}.storage.{value}": (
            probe,
            {f"StatefulSet/{server} {_CLAIM}.{key}": probe},
        )
        for server in ("nats", "postgres")
        for value, key, probe in (
            ("size", "resources.requests.storage", "99Gi"),
            ("storageClass", "storageClassName", "fast"),
        )
    },
    "network.natsNamespace": (
        "bus",
        {f"NetworkPolicy/{name} {_EGRESS}.to.0.{_SPACE}": "bus" for name in ("nats", "estctl")},
    ),
    "network.natsAddresses": (
        ["2001:db8::/64"],
        peers("2001:db8::/64", *(f"NetworkPolicy/{name} {_EGRESS}" for name in ("nats", "estctl"))),
    ),
    "network.postgresNamespace": (
        "db",
        {f"NetworkPolicy/postgres {_EGRESS}.to.0.{_SPACE}": "db"},
    ),
    "network.postgresAddresses": (
        ["198.51.100.7/32"],
        peers("198.51.100.7/32", f"NetworkPolicy/postgres {_EGRESS}"),
    ),
    "network.monitoringNamespace": ("prom", {f"NetworkPolicy/metrics {_MONITORING}": "prom"}),
    "network.siemAddresses": ([], off("NetworkPolicy/siem")),
    "network.siemPort": (2514, {f"NetworkPolicy/siem {_EGRESS}.ports.0.port": 2514}),
    "configMaps.trust": ("other", mounted("configMap", "estsuite-trust")),
    "configMaps.nats": ("other", mounted("configMap", "nats-config")),
    **{
        f"secrets.{value}": ("other", mounted("secret", secret))
        for value, secret in {
            "audit": "audit",
            "auditMigrate": "audit-migrate",
            "caSigner": "ca-signer",
            "caSignerIssuing": "ca-signer-issuing",
            "caSignerKey": "ca-signer-key",
            "caSignerMigrate": "ca-signer-migrate",
            "caSignerPassphrase": "ca-signer-passphrase",
            "checkStore": "check-store",
            "estFrontend": "est-frontend",
            "estFrontendTls": "est-frontend-tls",
            "estctl": "estctl",
            "natsTls": "nats-tls",
            "postgresPasswords": "postgres-passwords",
            "postgresTls": "postgres-tls",
            "renewal": "renewal",
            "renewalMigrate": "renewal-migrate",
        }.items()
    },
    **{
        f"settings.{value}": (
            {"bus": {"ca_file": "/other.pem"}},
            {f"ConfigMap/{name}-config data.{file}#.bus.ca_file": "/other.pem"},
        )
        for value, name, file in (
            ("estFrontend", "est-frontend", "est-frontend.yaml"),
            ("caSigner", "ca-signer", "ca-signer.yaml"),
            ("renewal", "renewal", "renewal.yaml"),
            ("audit", "audit", "audit.yaml"),
            ("estctl", "estctl", "operator.yaml"),
        )
    },
    **{
        f"files.{value}": ("only: 1\n", whole_file(file, *names))
        for value, file, names in (
            ("estFrontend", "est-frontend.yaml", ["est-frontend-config"]),
            ("caSigner", "ca-signer.yaml", ["ca-signer-config"]),
            ("renewal", "renewal.yaml", ["renewal-config"]),
            ("audit", "audit.yaml", ["audit-config"]),
            ("estctl", "operator.yaml", ["estctl-config"]),
            ("policy", "policy.yaml", ["est-frontend-config", "ca-signer-config"]),
            ("profiles", "profiles.yaml", ["ca-signer-config"]),
        )
    },
}
NEEDS: dict[str, dict[str, Any]] = {
    "estFrontend.replicas": {"estFrontend.autoscaling.enabled": False},
    "monitoring.enabled": {"monitoring.enabled": True},
    "monitoring.labels": {"monitoring.enabled": True},
}
"""What else must be set for a value to have an effect."""
_ISSUER = f"Deployment/est-issuer {POD}"
ISSUER_CASES: dict[str, Case] = {
    "namespace": (
        "issuers",
        lambda before: {
            **{p: "issuers" for p, v in before.items() if v == "est-issuer" and "namespace" in p},
            "Namespace/est-issuer metadata.name": "issuers",
        },
    ),
    **dict(images("image", f"{_ISSUER}.containers.0.image")),
    "imagePullSecrets": (["registry"], {f"{_ISSUER}.imagePullSecrets.0.name": "registry"}),
    "replicas": (3, {"Deployment/est-issuer spec.replicas": 3}),
    **dict(resources("", f"{_ISSUER}.containers.0")),
    "monitoringNamespace": ("prom", {f"NetworkPolicy/metrics {_MONITORING}": "prom"}),
    "monitoring.enabled": (False, off("PodMonitor/est-issuer")),
    "monitoring.labels": (
        {"release": "prometheus"},
        {"PodMonitor/est-issuer metadata.labels.release": "prometheus"},
    ),
    "settings": (
        {"lease": {"duration_s": 20}},
        {"ConfigMap/est-issuer-config data.est-issuer.yaml#.lease.duration_s": 20},
    ),
    "file": ("only: 1\n", whole_file("est-issuer.yaml", "est-issuer-config")),
}
ISSUER_CASES["resources"] = ISSUER_CASES.pop(".resources")
