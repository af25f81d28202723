"""The Helm chart, by the real helm: the same objects as Kustomize, and every value does its work.

What each value changes is expected in ``estsuite_testing.helm_values``; a value that is not there
fails.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import check
import pytest
import yaml
from estdeploy import manifests
from esthelm import sources
from esthelm.sources import Documents

from estsuite_testing.helm import CHART, Helm, changes, leaves, nested
from estsuite_testing.helm_values import CASES, ISSUER_CASES, NEEDS

pytestmark = pytest.mark.slow
ISSUER = CHART / "charts" / "est-issuer"
SCHEMA = json.loads((CHART / "values.schema.json").read_text(encoding="utf-8"))
COMPONENTS = {
    "checkStore.enabled": "check-store",
    "estctl.enabled": "estctl",
    "monitoring.enabled": "monitoring",
    "witnessed.enabled": "witnessed",
    "podTokens.enabled": "pod-tokens",
}
ALL = {
    "checkStore.enabled": True,
    "estctl.enabled": True,
    "podTokens.enabled": True,
    "witnessed.enabled": True,
    "servers.enabled": True,
    "network.siemAddresses": ["192.0.2.0/24"],
}
"""Values with which every document of the suite is rendered but those of monitoring, the longest."""


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


def test_the_issuer_with_its_PodMonitor_gives_what_kustomize_gives(helm: KeyedHelm) -> None:
    rendered = helm.keyed(nested({"monitoring.enabled": True}), chart=ISSUER, namespace="default")
    assert comparable(rendered) == comparable(sources.issuer_with_monitoring())


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
    everything = {"monitoring.enabled": True}
    before = helm.keyed(nested(everything), chart=ISSUER, namespace="default")
    after = helm.keyed(nested(everything | {value: probe}), chart=ISSUER, namespace="default")
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
