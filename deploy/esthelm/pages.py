"""Files of a chart that people read: Chart.yaml, values.yaml, README.md."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import yaml

from esthelm.values import look_up

if TYPE_CHECKING:
    from esthelm.chart import Chart

MADE = "# Made by deploy/render_helm.py from deploy/k8s; do not edit.\n"
ISSUER_ENABLED = "Install est-issuer, the issuer for cert-manager, in a namespace of its own."
DESCRIPTIONS = {
    "endpoints": "Where NATS and PostgreSQL are.",
    "images": "Repository, tag and digest of each image.",
    "estFrontend": "est-frontend: replicas, resources, Service.",
    "autoscaling": "The HorizontalPodAutoscaler of est-frontend.",
    "service": "The Service est-frontend.",
    "caSigner": "ca-signer: replicas and resources.",
    "renewal": "renewal: replicas and resources.",
    "audit": "audit: replicas and resources.",
    "migrate": "The migration, a suspended CronJob.",
    "checkStore": "The nightly check of stored certificates.",
    "estctl": "A pod for operators' commands.",
    "monitoring": "Objects of the Prometheus operator.",
    "podTokens": "Service account tokens of pods as credentials.",
    "witnessed": "A witness of the audit log.",
    "servers": "NATS and PostgreSQL of this chart.",
    "nats": "NATS.",
    "postgres": "PostgreSQL.",
    "storage": "Its volume.",
    "network": "Peers of the network policies.",
    "secrets": "Names of existing Secrets; deploy/README.md lists their keys.",
    "configMaps": "Names of existing ConfigMaps.",
    "settings": "Settings that are merged into the settings files.",
    "files": "Whole settings files.",
    "image": "The image of est-issuer.",
}
_COLUMNS = 100


def chart_yaml(name: str, version: str, *, with_issuer: bool) -> str:
    """Return Chart.yaml."""
    what = {
        "estsuite": "A certificate authority for microservices and devices: EST (RFC 7030)",
        "est-issuer": "An issuer for cert-manager that enrolls at an EST server (RFC 7030)",
    }
    chart: dict[str, Any] = {
        "apiVersion": "v2",
        "name": name,
        "description": what[name],
        "type": "application",
        "version": version,
        "appVersion": version,
        "kubeVersion": ">=1.30.0-0",
    }
    if with_issuer:
        chart["dependencies"] = [
            {
                "name": "est-issuer",
                "version": version,
                "alias": "estIssuer",
                "condition": "estIssuer.enabled",
            }
        ]
    return MADE + yaml.safe_dump(chart, sort_keys=False, width=_COLUMNS)


def values_yaml(tree: Mapping[str, Any], descriptions: Mapping[str, str]) -> str:
    """Return the defaults, each below its description."""
    return MADE + "".join(f"{line}\n" for line in _lines(tree, descriptions, "", 0))


def _lines(
    tree: Mapping[str, Any], descriptions: Mapping[str, str], above: str, depth: int
) -> Iterator[str]:
    margin = "  " * depth
    for key, item in tree.items():
        name = f"{above}{key}"
        if name not in descriptions and isinstance(item, dict):
            if depth == 0:
                yield ""
            yield f"{margin}{key}:"
            yield from _lines(item, descriptions, f"{name}.", depth + 1)
            continue
        text = textwrap.wrap(descriptions[name], _COLUMNS - len(margin) - 2)
        yield from (f"{margin}# {line}" for line in text)
        dumped = yaml.safe_dump({key: item}, sort_keys=False, width=10**6, allow_unicode=True)
        yield from (f"{margin}{line}" for line in dumped.splitlines())


def overlay_yaml(name: str, values: Mapping[str, Any]) -> str:
    """Return the values with which the chart renders an overlay."""
    what = f"# The values of deploy/k8s/overlays/{name}: helm install … --values\n"
    return MADE + what + _Plain.dump(values)


class _Plain(yaml.SafeDumper):
    """Writes texts of several lines as blocks."""

    @classmethod
    def dump(cls, values: Any) -> str:
        return yaml.dump(values, Dumper=cls, sort_keys=False, width=10**6, allow_unicode=True)


def _text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    style = "|" if "\n" in text else None
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)


_Plain.add_representer(str, _text)


def suite_readme(chart: Chart, part: Chart) -> str:
    """Return the page of the chart's values."""
    rows = [*_rows(chart, ""), f"| `estIssuer.enabled` | `false` | {ISSUER_ENABLED} |"]
    rows += _rows(part, "estIssuer.")
    return (
        "# Chart estsuite\n\n"
        "<!-- Made by deploy/render_helm.py; do not edit. -->\n"
        "The manifests of `deploy/k8s` as a Helm chart: how to install it is in "
        "[deploy](../../README.md#helm). The defaults render `deploy/k8s/base`; `values-dev.yaml`, "
        "`values-prod.yaml` and `values-all-in-one.yaml` render the overlays of these names.\n\n"
        + _table(rows)
    )


def issuer_readme(chart: Chart) -> str:
    """Return the page of the values of est-issuer."""
    return (
        "# Chart est-issuer\n\n"
        "<!-- Made by deploy/render_helm.py; do not edit. -->\n"
        "The [issuer for cert-manager](../../../../../docs/onboarding/cert-manager.md), alone: "
        "`deploy/k8s/overlays/est-issuer` as a Helm chart.\n\n" + _table(_rows(chart, ""))
    )


def _table(rows: list[str]) -> str:
    return "\n".join(["| Value | Default | Meaning |", "|---|---|---|", *rows, ""])


def _rows(chart: Chart, above: str) -> list[str]:
    rows = []
    for value in chart.values:
        default = json.dumps(look_up(chart.tree, value.name))
        rows.append(f"| `{above}{value.name}` | `{default}` | {value.description} |")
    return rows
