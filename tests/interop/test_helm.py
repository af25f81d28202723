"""The Helm chart, by the real helm: the same objects as Kustomize, and every value does its work.

The expectations of values are written here by hand, so that they do not come from the generator.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import check
import pytest
import yaml
from estdeploy import manifests
from esthelm import sources
from esthelm.sources import Documents

from estsuite_testing.helm import CHART, Helm, changes, leaves, nested

pytestmark = pytest.mark.slow
ISSUER = CHART / "charts" / "est-issuer"
SCHEMA = json.loads((CHART / "values.schema.json").read_text(encoding="utf-8"))
COMPONENTS = {
    "checkStore.enabled": "check-store",
    "estctl.enabled": "estctl",
    "monitoring.enabled": "monitoring",
    "podTokens.enabled": "pod-tokens",
}
ALL = {
    "checkStore.enabled": True,
    "estctl.enabled": True,
    "podTokens.enabled": True,
    "servers.enabled": True,
    "network.siemAddresses": ["192.0.2.0/24"],
}
"""Values with which every document of the suite is rendered but those of monitoring, the longest."""
SERVICES = ("est-frontend", "ca-signer", "renewal", "audit")
POD = "spec.template.spec"
JOB = "spec.jobTemplate.spec.template.spec"
HOST = f"{POD}.topologySpreadConstraints.1"
Expected = Mapping[str, Any] | Callable[[Mapping[str, Any]], Mapping[str, Any]]
Case = tuple[Any, Expected]


class KeyedHelm(Helm):
    """Renders documents of one namespace, by kind and name."""

    def keyed(self, values: Mapping[str, Any] | None = None, **options: Any) -> Documents:
        return sources.by_key(self.render(values, **options))


@pytest.fixture(scope="session")
def helm(tmp_path_factory: pytest.TempPathFactory) -> KeyedHelm:
    return KeyedHelm(tmp_path_factory.mktemp("helm"))


@pytest.fixture(scope="session")
def everything(helm: KeyedHelm) -> dict[str, Any]:
    """What a rendering has with all components."""
    return leaves(helm.keyed(nested(ALL)))


@pytest.fixture(scope="session")
def kustomize() -> sources.Sources:
    return sources.read()


def comparable(documents: Documents) -> Documents:
    """Leave out what is different on purpose (ADR 0076): namespace, and ConfigMaps that are kept."""
    found = {}
    for key, document in documents.items():
        metadata = dict(document["metadata"])
        if key[0] == "ConfigMap":
            metadata.pop("annotations", None)
        if key != ("Namespace", "estsuite"):
            found[key] = document | {"metadata": metadata}
    return found


def test_lint_finds_nothing(helm: KeyedHelm) -> None:
    for chart in (CHART, ISSUER):
        done = helm.lint(chart)
        assert done.returncode == 0, done.stdout + done.stderr
        assert "0 chart(s) failed" in done.stderr + done.stdout


def test_the_defaults_give_what_the_base_gives(helm: KeyedHelm, kustomize: sources.Sources) -> None:
    assert comparable(helm.keyed()) == comparable(dict(kustomize.parts["base"]))


@pytest.mark.parametrize("overlay", sources.OVERLAYS)
def test_its_values_give_what_an_overlay_gives(
    helm: KeyedHelm, kustomize: sources.Sources, overlay: str
) -> None:
    rendered = helm.keyed(files=[CHART / f"values-{overlay}.yaml"])
    assert comparable(rendered) == comparable(dict(kustomize.overlays[overlay]))


@pytest.mark.parametrize(("value", "component"), COMPONENTS.items())
def test_a_component_gives_what_kustomize_gives(
    helm: KeyedHelm, value: str, component: str
) -> None:
    rendered = comparable(helm.keyed(nested({value: True})))
    assert rendered == comparable(sources.with_components(component))


def test_the_issuer_alone_gives_what_its_overlay_gives(
    helm: KeyedHelm, kustomize: sources.Sources
) -> None:
    rendered = helm.keyed(chart=ISSUER, namespace="default")
    assert comparable(rendered) == comparable(dict(kustomize.issuer))


def test_the_issuer_beside_the_suite_is_the_same_and_its_kinds_come_with_it_only(
    helm: KeyedHelm, kustomize: sources.Sources
) -> None:
    documents = helm.render(nested({"estIssuer.enabled": True}))
    beside = [d for d in documents if d["metadata"].get("namespace") != "estsuite"]
    assert comparable(sources.by_key(beside)) == comparable(dict(kustomize.issuer))
    assert "CustomResourceDefinition" not in {d["kind"] for d in helm.render()}


@pytest.mark.parametrize("overlay", ["", *sources.OVERLAYS])
def test_what_is_rendered_passes_the_strict_schema_and_our_rules(
    helm: KeyedHelm, overlay: str
) -> None:
    files = [CHART / f"values-{overlay}.yaml"] if overlay else []
    space = manifests.render(check.KUSTOMIZE / "base")[0]
    assert space["kind"] == "Namespace"
    documents = [space, *helm.render(files=files)]
    assert manifests.schema_findings(documents) == []
    assert [finding for rule in check.RULES for finding in rule(documents)] == []


@pytest.mark.parametrize("namespace", ["pki", "123"])
def test_nothing_names_the_namespace_but_the_release(helm: KeyedHelm, namespace: str) -> None:
    documents = helm.keyed(nested(ALL), namespace=namespace)
    for key, document in documents.items():
        assert document["metadata"].get("namespace", namespace) == namespace, key
    data = documents["ConfigMap", "endpoints"]["data"]
    assert data["nats-url"] == f"tls://nats.{namespace}.svc:4222"
    assert data["postgres-address"] == f"postgres.{namespace}.svc:5432"


def test_a_changed_policy_is_a_rollout_and_the_old_one_is_kept_for_a_rollback(
    helm: KeyedHelm,
) -> None:
    def name(documents: Documents) -> str:
        volumes = documents["Deployment", "ca-signer"]["spec"]["template"]["spec"]["volumes"]
        found: str = next(v for v in volumes if v["name"] == "config")["configMap"]["name"]
        return found

    before, after = helm.keyed(), helm.keyed(nested({"files.policy": "labels: {}\n"}))
    assert name(before) != name(after)
    for documents in (before, after):
        config = documents["ConfigMap", "ca-signer-config"]["metadata"]
        assert config["name"] == name(documents)
        assert config["annotations"] == {"helm.sh/resource-policy": "keep"}


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
    "settings": (
        {"lease": {"duration_s": 20}},
        {"ConfigMap/est-issuer-config data.est-issuer.yaml#.lease.duration_s": 20},
    ),
    "file": ("only: 1\n", whole_file("est-issuer.yaml", "est-issuer-config")),
}
ISSUER_CASES["resources"] = ISSUER_CASES.pop(".resources")


def is_one_value(name: str, schema: Mapping[str, Any]) -> bool:
    """What has no parts of its own; resources; the settings of a service."""
    parts = schema.get("properties", {})
    return not parts or name == "resources" or "stop_timeout_s" in parts


def values_of(
    schema: Mapping[str, Any], above: str = ""
) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yield every value of a schema, without the other chart's."""
    for name, part in schema["properties"].items():
        if above + name in {"global", "enabled", "estIssuer"}:
            continue
        if is_one_value(name, part):
            yield above + name, part
        else:
            yield from values_of(part, f"{above}{name}.")


def mappings_of(schema: Mapping[str, Any], above: str = "") -> Iterator[str]:
    """Yield the path of every mapping whose members are known."""
    yield above
    for name, part in schema["properties"].items():
        if part.get("properties"):
            yield from mappings_of(part, f"{above}/{name}")


VALUES = dict(values_of(SCHEMA))
ISSUER_VALUES = dict(values_of(SCHEMA["properties"]["estIssuer"]))


def test_every_value_has_a_description() -> None:
    def undescribed(schema: Mapping[str, Any], above: str) -> Iterator[str]:
        for name, part in schema["properties"].items():
            if not part.get("description"):
                yield above + name
            if not is_one_value(name, part):
                yield from undescribed(part, f"{above}{name}.")

    assert list(undescribed(SCHEMA, "")) == []
    assert len(VALUES) > 80


@pytest.mark.parametrize("value", VALUES)
def test_a_value_changes_what_it_describes(
    helm: KeyedHelm, everything: dict[str, Any], value: str
) -> None:
    probe, expected = CASES[value]
    values, before = ALL, everything
    if value in NEEDS:
        values = ALL | NEEDS[value]
        before = leaves(helm.keyed(nested(values)))
    after = leaves(helm.keyed(nested(values | {value: probe})))
    assert changes(before, after) == (expected(before) if callable(expected) else expected)


@pytest.mark.parametrize("value", ISSUER_VALUES)
def test_a_value_of_the_issuer_changes_what_it_describes(helm: KeyedHelm, value: str) -> None:
    probe, expected = ISSUER_CASES[value]
    before = helm.keyed(chart=ISSUER, namespace="default")
    after = helm.keyed(nested({value: probe}), chart=ISSUER, namespace="default")
    if value == "namespace":
        after["Namespace", "est-issuer"] = after.pop(("Namespace", "issuers"))
    old = leaves(before)
    assert changes(old, leaves(after)) == (expected(old) if callable(expected) else expected)


def wrong(schema: Mapping[str, Any]) -> Any:
    """A value of another kind, or of the right kind and not allowed."""
    if "pattern" in schema or "enum" in schema:
        return " not allowed "
    return {"integer": 0, "string": 7, "boolean": "yes", "array": ["not allowed "]}.get(
        schema["type"], ["a list"]
    )


def test_every_wrong_value_is_refused_with_a_line_that_names_it(helm: KeyedHelm) -> None:
    values = {name: wrong(schema) for name, schema in VALUES.items()}
    lines = helm.refusal(nested(values))
    for name, given in values.items():
        path = "/" + name.replace(".", "/") + ("/0" if given == ["not allowed "] else "")
        assert any(line.startswith(f"- at '{path}': ") for line in lines), name


def test_every_wrong_value_of_the_issuer_is_refused(helm: KeyedHelm) -> None:
    values = {name: wrong(schema) for name, schema in ISSUER_VALUES.items()}
    for chart, above in ((CHART, "/estIssuer/"), (ISSUER, "/")):
        tree = (
            nested(values) if chart == ISSUER else {"estIssuer": {"enabled": True} | nested(values)}
        )
        lines = helm.refusal(tree, chart=chart)
        for name, given in values.items():
            path = above + name.replace(".", "/") + ("/0" if given == ["not allowed "] else "")
            assert any(line.startswith(f"- at '{path}': ") for line in lines), name


def test_an_unknown_value_is_refused_in_every_mapping(helm: KeyedHelm) -> None:
    paths = [path for path in mappings_of(SCHEMA) if not path.startswith("/global")]
    assert "/secrets" in paths
    assert "/settings/audit" in paths
    values = {f"{path.strip('/').replace('/', '.')}.typo".strip("."): 1 for path in paths}
    lines = helm.refusal(nested(values))
    for path in paths:
        assert f"- at '{path}': additional properties 'typo' not allowed" in lines, path


@pytest.mark.parametrize(
    ("values", "line"),
    [
        ({"settings.audit": {"checkpoint": {"orign": "a"}}}, "'orign' not allowed"),
        ({"settings.audit": {"sinks": [{"name": "a", "hots": "b"}]}}, "/settings/audit/sinks/0"),
        ({"settings.caSigner": {"batch_size": 0}}, "- at '/settings/caSigner/batch_size': "),
        ({"endpoints.natsUrl": "nats://a.test:4222"}, "- at '/endpoints/natsUrl': "),
        ({"images.audit.tag": ""}, "image estsuite/audit has neither tag nor digest"),
        (
            {"secrets.caSignerKey": "ca-signer-passphrase"},
            "are the same Secret, ca-signer-passphrase",
        ),
        ({"estFrontend.autoscaling.minReplicas": 13}, "minReplicas 13 is more than maxReplicas 12"),
        (
            {"files.audit": "- a list\n", "settings.audit": {"stop_timeout_s": 9}},
            "not a YAML mapping",
        ),
        (
            {"estIssuer.enabled": True, "estIssuer.namespace": "estsuite"},
            "estIssuer.namespace is estsuite, where the Secrets of the suite are",
        ),
    ],
)
def test_what_would_break_the_suite_is_refused(
    helm: KeyedHelm, values: dict[str, Any], line: str
) -> None:
    assert any(line in found for found in helm.refusal(nested(values)))


def test_settings_are_merged_and_the_service_reads_them(helm: KeyedHelm) -> None:
    sink = {
        "name": "siem",
        "host": "siem.test",
        "port": 6514,
        "ca_file": "/etc/estsuite-trust/siem-ca.pem",
    }
    documents = helm.keyed(nested({"settings.audit": {"sinks": [sink], "stop_timeout_s": 20}}))
    settings = yaml.safe_load(documents["ConfigMap", "audit-config"]["data"]["audit.yaml"])
    assert settings["sinks"] == [sink]
    assert settings["admin"] == {"host": "0.0.0.0", "port": 9100}  # noqa: S104 - of the file
    loaded = next(r for r in check.RULES if r.__name__ == "settings_can_be_loaded")
    assert loaded(list(documents.values())) == []


def test_the_issuer_alone_needs_no_second_namespace(helm: KeyedHelm) -> None:
    documents = helm.keyed(chart=ISSUER, namespace="est-issuer")
    assert not [key for key in documents if key[0] == "Namespace"]


def test_the_page_of_the_chart_names_every_value() -> None:
    page = Path(CHART / "README.md").read_text(encoding="utf-8")
    names = [*VALUES, *(f"estIssuer.{name}" for name in ISSUER_VALUES)]
    assert [name for name in names if f"| `{name}` |" not in page] == []
