"""``deploy/compose/monitoring.yml``: Prometheus scrapes the services, and a collector has their traces."""

from __future__ import annotations

import json
import urllib.request
from collections import defaultdict
from collections.abc import Iterator
from typing import Any

import pytest
import yaml

from estsuite_testing.compose import Compose, cloned, enrolled

SERVICES = {"est-frontend", "ca-signer", "renewal", "audit"}
pytestmark = pytest.mark.timeout(600)


@pytest.fixture(scope="module")
def compose(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Compose]:
    with cloned(tmp_path_factory.mktemp("clone"), "monitoring") as compose:
        compose.up()
        yield compose


def asked(path: str) -> Any:
    """Ask Prometheus on the port that Compose publishes."""
    with urllib.request.urlopen(f"http://127.0.0.1:9090{path}", timeout=10) as answer:
        return answer.read().decode()


def data(path: str) -> Any:
    return json.loads(asked(f"/api/v1/{path}"))["data"]


def test_every_service_is_scraped(compose: Compose) -> None:
    def up() -> set[str]:
        targets = data("targets?state=active")["activeTargets"]
        return {t["labels"]["instance"].split(":")[0] for t in targets if t["health"] == "up"}

    compose.until(lambda: up() == SERVICES, seconds=60)
    printed = compose("ps", "--format", "json", "prometheus").stdout
    assert [json.loads(line)["Health"] for line in printed.splitlines()] == ["healthy"]


def test_every_rule_is_loaded(compose: Compose) -> None:
    wanted = set()
    for file in sorted((compose.folder / "deploy" / "monitoring" / "rules").glob("*.yaml")):
        for group in yaml.safe_load(file.read_text())["groups"]:
            wanted |= {rule.get("alert") or rule["record"] for rule in group["rules"]}
    loaded = [rule for group in data("rules")["groups"] for rule in group["rules"]]
    assert {rule["name"] for rule in loaded} == wanted
    compose.until(
        lambda: all(
            rule["health"] == "ok" for group in data("rules")["groups"] for rule in group["rules"]
        ),
        seconds=90,
    )


def test_a_dashboard_is_readable_in_prometheus(compose: Compose) -> None:
    assert enrolled(compose.client(compose.make_secret())) == 200
    assert "<h1>EST enrollment</h1>" in asked("/consoles/enrollment.html")


def test_the_collector_has_a_trace_through_the_services(compose: Compose) -> None:
    file = "/traces/traces.jsonl"
    assert enrolled(compose.client(compose.secret or compose.make_secret())) == 200

    def services() -> list[set[str]]:
        found: dict[str, set[str]] = defaultdict(set)
        # The image of the collector has no program that prints a file; another container does.
        printed = compose(
            *("run", "--rm", "-T", "--no-deps", "--entrypoint", "python"),
            *("-v", f"{compose.local}/data/otel-collector:/traces:ro", "estctl"),
            *("-c", f"print(open({file!r}).read())"),
        ).stdout
        for line in filter(None, printed.splitlines()):
            for resource in json.loads(line)["resourceSpans"]:
                members = {a["key"]: a["value"] for a in resource["resource"]["attributes"]}
                for scope in resource["scopeSpans"]:
                    for span in scope["spans"]:
                        found[span["traceId"]].add(members["service.name"]["stringValue"])
        return list(found.values())

    wanted = {"est-frontend", "ca-signer", "audit"}
    compose.until(lambda: any(wanted <= trace for trace in services()), seconds=60)
