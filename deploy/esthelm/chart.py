"""The files of the chart estsuite and of the chart est-issuer in it."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from copy import deepcopy
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

import yaml
from estdeploy.services import ISSUER, SERVICES

from esthelm import issuer, pages, suite, suite_files
from esthelm.settings_schema import partial_schema
from esthelm.sources import NAMESPACE, Document, Documents, Key, Sources, appended
from esthelm.templates import Block, Guarded, Inline, Writer
from esthelm.texts import MADE, static
from esthelm.values import Schema, Value, changed, defaults, found

VERSION = "0.1.0"
_ISSUER = PurePosixPath("charts/est-issuer")
_PARTS = {
    "check-store": "$.Values.checkStore.enabled",
    "estctl": "$.Values.estctl.enabled",
    "monitoring": "$.Values.monitoring.enabled",
    "pod-tokens": "$.Values.podTokens.enabled",
    "servers": "$.Values.servers.enabled",
    "siem": "$.Values.network.siemAddresses",
    "witnessed": "$.Values.witnessed.enabled",
}
Files = dict[PurePosixPath, str]


@dataclass(frozen=True)
class Chart:
    """A chart before it is written: its values, their defaults, its documents."""

    name: str
    values: list[Value]
    tree: dict[str, Any]
    documents: Documents

    @property
    def schema(self) -> Schema:
        """The schema of its values, in draft 7, which every Helm 3 reads."""
        return _schema(self)


def suite_chart(sources: Sources) -> Chart:
    """Return the chart of the suite."""
    documents = suite_files.everything(sources)
    values = suite.values(sources)
    return Chart("estsuite", values, defaults(values, documents), documents)


def issuer_chart(sources: Sources) -> Chart:
    """Return the chart of est-issuer."""
    values = issuer.values(sources.issuer)
    documents = {**sources.issuer, **sources.issuer_monitoring}
    return Chart("est-issuer", values, defaults(values, sources.issuer), documents)


def files(sources: Sources) -> Files:
    """Return every file of both charts, by its path in the folder of the chart."""
    whole, part = suite_chart(sources), issuer_chart(sources)
    found = {PurePosixPath(path): text for path, text in _suite_files(sources, whole, part)}
    found |= {_ISSUER / path: text for path, text in _issuer_files(part)}
    return found


def overlay_values(sources: Sources, chart: Chart) -> dict[str, dict[str, Any]]:
    """Return the values with which the chart renders each overlay of Kustomize."""
    return {
        name: changed(chart.values, chart.tree, documents)
        for name, documents in sources.overlays.items()
    }


def _suite_files(sources: Sources, chart: Chart, part: Chart) -> Iterator[tuple[str, str]]:
    tree = deepcopy(chart.tree) | {"estIssuer": {"enabled": False}}
    schema = deepcopy(chart.schema)
    _with_issuer(schema, part)
    descriptions = {value.name: value.description for value in chart.values} | {
        "estIssuer.enabled": pages.ISSUER_ENABLED
    }
    yield "Chart.yaml", pages.chart_yaml(chart.name, VERSION, with_issuer=True)
    yield "values.yaml", pages.values_yaml(tree, descriptions)
    yield "values.schema.json", f"{json.dumps(schema, indent=1)}\n"
    yield "README.md", pages.suite_readme(chart, part)
    for name, values in overlay_values(sources, chart).items():
        yield f"values-{name}.yaml", pages.overlay_yaml(name, values)
    documents = _written(chart, sources)
    texts = {key: _text(key, document) for key, document in documents.items()}
    yield "templates/_helpers.tpl", _helpers(sources, chart.documents)
    yield "templates/NOTES.txt", static("notes.txt")
    yield "templates/checks.yaml", static("checks.tpl")
    for name, keys in _base_files(sources).items():
        yield f"templates/{name}.yaml", _joined(texts[key] for key in keys)
    for name, condition in _PARTS.items():
        own = [key for key in sources.parts[name] if key not in sources.parts["base"]]
        yield f"templates/{name}.yaml", _joined((texts[key] for key in own), condition)
    yield from _configuration(chart.documents)


def _with_issuer(schema: Schema, part: Chart) -> None:
    own = part.schema
    own.pop("$schema")
    own.pop("title")
    schema["definitions"] |= own.pop("definitions")
    own["description"] = "Values of the chart est-issuer, by which cert-manager gets certificates."
    # Helm gives a chart that is off no defaults; one that is on has its own schema beside this one.
    _nothing_is_required(own)
    own["required"] = ["enabled"]
    schema["properties"]["estIssuer"] = own
    schema["required"].append("estIssuer")


def _nothing_is_required(schema: Schema) -> None:
    schema.pop("required", None)
    for inside in schema.get("properties", {}).values():
        _nothing_is_required(inside)


def _issuer_files(chart: Chart) -> Iterator[tuple[str, str]]:
    descriptions = {value.name: value.description for value in chart.values}
    yield "Chart.yaml", pages.chart_yaml(chart.name, VERSION, with_issuer=False)
    yield "values.yaml", pages.values_yaml(chart.tree, descriptions)
    yield "values.schema.json", f"{json.dumps(chart.schema, indent=1)}\n"
    yield "README.md", pages.issuer_readme(chart)
    documents = deepcopy(chart.documents)
    for value in chart.values:
        value.write(documents)
    config = documents["ConfigMap", "est-issuer-config"]
    _config_map(config, "est-issuer", "est-issuer-config")
    _replace_names(documents, "est-issuer")
    crds = [key for key in documents if key[0] == "CustomResourceDefinition"]
    for key in crds:
        text = yaml.safe_dump(documents[key], sort_keys=False, width=100, allow_unicode=True)
        yield f"crds/{key[1]}.yaml", text
    space = ("Namespace", "est-issuer")
    text = _joined([Writer().text(documents[space])], "ne $.Release.Namespace $.Values.namespace")
    yield "templates/namespace.yaml", text
    monitor = issuer.POD_MONITOR
    own = {space, monitor, *crds}
    rest = [Writer().text(d) for k, d in documents.items() if k not in own]
    yield "templates/est-issuer.yaml", _joined(rest)
    text = _joined([Writer().text(documents[monitor])], "$.Values.monitoring.enabled")
    yield "templates/monitoring.yaml", text
    yield "templates/NOTES.txt", static("issuer-notes.txt")
    settings = (
        '{{- $own := dict "namespace" .Values.namespace -}}\n'
        "{{- $settings := mustMergeOverwrite (deepCopy .Values.settings) $own -}}\n"
        f'{{{{- if and (not .Values.settings) (eq .Values.namespace "{issuer.NAMESPACE_NAME}") }}}}'
        "{{ $settings = dict }}{{ end -}}\n"
    )
    call = _call("est-issuer", issuer.FILE, "$.Values.file", "$settings")
    data = _define("est-issuer", "est-issuer-config", f"{settings}{{{{- {call} | toJson -}}}}")
    yield "templates/_helpers.tpl", _prefixed("est-issuer") + data
    yield from _configuration(chart.documents)


def _configuration(documents: Documents) -> Iterator[tuple[str, str]]:
    """Yield the files of all ConfigMaps, each once."""
    seen: dict[str, str] = {}
    for key, document in documents.items():
        if key[0] == "ConfigMap" and key[1] != "endpoints":
            seen |= document["data"]
    for file, text in seen.items():
        yield f"config/{file}", text


def _base_files(sources: Sources) -> dict[str, list[Key]]:
    """Return file to documents of the base: one for each service, by the names of documents."""
    found: dict[str, list[Key]] = {}
    for kind, name in sources.parts["base"]:
        if kind == "Namespace":
            continue
        file = {"NetworkPolicy": "network", "ConfigMap": "config"}.get(kind, name)
        found.setdefault(file, []).append((kind, name))
    return found


def _written(chart: Chart, sources: Sources) -> Documents:
    documents = deepcopy(chart.documents)
    for value in chart.values:
        value.write(documents)
    _append_pod_tokens(documents, sources)
    for (kind, name), document in documents.items():
        if kind == "ConfigMap":
            _config_map(document, chart.name, name)
        if document["metadata"].get("namespace") == NAMESPACE:
            document["metadata"]["namespace"] = Inline("quote $.Release.Namespace")
    _replace_names(documents, chart.name)
    return documents


def _append_pod_tokens(documents: Documents, sources: Sources) -> None:
    """Put the items that a component appends to lists of the base under its condition."""
    for part, with_component in sources.parts.items():
        for key in with_component.keys() & sources.parts["base"].keys():
            if part == "base":
                continue
            for place, item in appended(sources.parts["base"][key], with_component[key]):
                found(documents, *key, place).append(Guarded(_PARTS[part], item))


def _config_map(document: Document, prefix: str, name: str) -> None:
    metadata = document["metadata"]
    metadata["name"] = _config_name(prefix, name)
    metadata["annotations"] = {"helm.sh/resource-policy": "keep"}
    document["data"] = Block(f'include "{prefix}.data.{name}" $ | fromJson | toYaml')


def _config_name(prefix: str, name: str) -> Inline:
    return Inline(f'include "{prefix}.name" (dict "root" $ "name" "{name}")')


def _replace_names(documents: Documents, prefix: str) -> None:
    """Put the computed names of ConfigMaps where pods name them."""
    names = {name for kind, name in documents if kind == "ConfigMap"}

    def visit(node: Any) -> None:
        if isinstance(node, list):
            for item in node:
                visit(item)
        elif isinstance(node, Guarded):
            visit(node.value)
        elif isinstance(node, dict):
            for key, item in node.items():
                if key in {"configMap", "configMapKeyRef"} and isinstance(item.get("name"), str):
                    plain = item["name"].rpartition("-")[0]
                    if plain in names:
                        item["name"] = _config_name(prefix, plain)
                visit(key if isinstance(key, Guarded) else item)

    for document in documents.values():
        visit(document)


def _text(key: Key, document: Document) -> str:
    text = Writer().text(document)
    if key[0] == "HorizontalPodAutoscaler":
        return f"{{{{- if $.Values.estFrontend.autoscaling.enabled }}}}\n{text}{{{{- end }}}}\n"
    return text


def _joined(texts: Iterator[str] | list[str], condition: str | None = None) -> str:
    body = "".join(f"---\n{text}" for text in texts)
    if condition is None:
        return f"{MADE}{body}"
    return f"{MADE}{{{{- if {condition} }}}}\n{body}{{{{- end }}}}\n"


def _helpers(sources: Sources, documents: Documents) -> str:
    ours = sources.parts["base"]["ConfigMap", "endpoints"]["data"]
    here = sources.overlays["all-in-one"]["ConfigMap", "endpoints"]["data"]
    endpoints = static("endpoints.tpl")
    for name, text in (
        ("NATS_URL", ours["nats-url"]),
        ("POSTGRES_ADDRESS", ours["postgres-address"]),
        ("NATS_HERE", here["nats-url"].replace(f".{NAMESPACE}.", ".%s.")),
        ("POSTGRES_HERE", here["postgres-address"].replace(f".{NAMESPACE}.", ".%s.")),
    ):
        endpoints = endpoints.replace(f'"{name}"', json.dumps(text))
    value_of = {file: suite_files.camel(name) for name, file in suite_files.FILES.items()}
    text = _prefixed("estsuite") + static("addresses.tpl") + endpoints
    for (kind, name), document in documents.items():
        if kind != "ConfigMap" or name == "endpoints":
            continue
        calls = []
        for file in document["data"]:
            value = value_of.get(file)
            given = f"$.Values.files.{value}" if value else '""'
            settings = "dict"
            if value and value not in {"policy", "profiles"}:
                settings = f"$.Values.settings.{value}"
            calls.append(_call("estsuite", file, given, settings).removeprefix("dict "))
        text += _define("estsuite", name, f"{{{{- dict {' '.join(calls)} | toJson -}}}}")
    return text


def _call(prefix: str, file: str, given: str, settings: str) -> str:
    arguments = f'"root" $ "file" "{file}" "given" {given} "settings" {settings}'
    return f'dict "{file}" (include "{prefix}.text" (dict {arguments}))'


def _define(prefix: str, name: str, body: str) -> str:
    return f'\n{{{{- define "{prefix}.data.{name}" -}}}}\n{body}\n{{{{- end -}}}}\n'


def _prefixed(prefix: str) -> str:
    return MADE + static("helpers.tpl").replace("PREFIX", prefix)


def _schema(chart: Chart) -> Schema:
    definitions: dict[str, Schema] = {}
    root = _mapping("")
    for value in chart.values:
        own = value.schema
        if "settings" in own:
            own = _settings_schema(own["settings"], definitions)
        *parents, last = value.name.split(".")
        inside = root
        for parent in parents:
            if parent not in inside["properties"]:
                inside["properties"][parent] = _mapping(pages.DESCRIPTIONS.get(parent, ""))
                inside["required"].append(parent)
            inside = inside["properties"][parent]
        described = {"description": value.description}
        inside["properties"][last] = described | {
            key: item for key, item in own.items() if key != "description"
        }
        inside["required"].append(last)
    root["properties"]["global"] = {
        "type": "object",
        "description": "Not used; Helm passes it to every chart.",
    }
    if chart.name == "est-issuer":
        root["properties"]["enabled"] = {"type": "boolean", "description": pages.ISSUER_ENABLED}
    root.pop("description", None)
    head: Schema = {"$schema": "http://json-schema.org/draft-07/schema#"}
    head["title"] = f"Values of {chart.name}"
    return head | root | {"definitions": definitions}


def _mapping(description: str) -> Schema:
    found: Schema = {"type": "object", "additionalProperties": False}
    if description:
        found["description"] = description
    return found | {"required": [], "properties": {}}


def _settings_schema(name: str, definitions: dict[str, Schema]) -> Schema:
    services: Mapping[str, Any] = SERVICES | {"est-issuer": ISSUER}
    if name not in services:  # the operator's, which estctl reads
        return {"type": "object"}
    own, found = partial_schema(services[name].settings, suite_files.camel(name).title())
    definitions |= found
    return own
