"""All files of ``deploy/compose`` at once: one enrollment with a token is seen by each of them."""

from __future__ import annotations

import json
import urllib.request
from collections.abc import Iterator
from typing import Any

import pytest

from estsuite_testing.compose import Compose, cloned

SERVICES = ("est-frontend", "ca-signer", "renewal", "audit")
NAME = "clinic-web.clinic.example"
pytestmark = pytest.mark.timeout(900)


@pytest.fixture(scope="module")
def compose(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Compose]:
    files = ("ha", "keycloak", "monitoring", "siem")
    with cloned(tmp_path_factory.mktemp("clone"), *files) as compose:
        compose.up()
        compose("run", "--rm", "-T", "keycloak-enroll")
        yield compose


def test_the_operator_and_the_siem_see_the_certificate_of_a_token(compose: Compose) -> None:
    assert f"CN={NAME}" in json.dumps(compose.operator("cert", "list"))

    def written() -> bool:
        file = "/var/log/estsuite/audit.jsonl"
        return NAME in compose("exec", "-T", "rsyslog", "cat", file, check=False).stdout

    compose.until(written, seconds=60)


def test_prometheus_scrapes_two_of_each_service(compose: Compose) -> None:
    wanted = {f"{name}{suffix}" for name in SERVICES for suffix in ("", "-2")}

    def up() -> set[str]:
        url = "http://127.0.0.1:9090/api/v1/targets?state=active"
        with urllib.request.urlopen(url, timeout=10) as answer:
            targets = json.load(answer)["data"]["activeTargets"]
        return {t["labels"]["instance"].split(":")[0] for t in targets if t["health"] == "up"}

    compose.until(lambda: up() == wanted, seconds=90)


def test_the_trace_of_the_enrollment_goes_through_every_service(compose: Compose) -> None:
    """``service.name`` is the name of the service, whichever container sent the span."""

    def services() -> list[set[str]]:
        found: dict[str, set[str]] = {}
        for span, service in spans(compose):
            found.setdefault(span["traceId"], set()).add(service)
        return list(found.values())

    compose.until(lambda: set(SERVICES) in services(), seconds=60)


def spans(compose: Compose) -> Iterator[tuple[dict[str, Any], str]]:
    """What the collector has written: each span, and its ``service.name``."""
    printed = compose(
        *("run", "--rm", "-T", "--no-deps", "--entrypoint", "python"),
        *("-v", f"{compose.local}/data/otel-collector:/traces:ro", "estctl"),
        *("-c", "print(open('/traces/traces.jsonl').read())"),
    ).stdout
    for line in filter(None, printed.splitlines()):
        for resource in json.loads(line)["resourceSpans"]:
            members = {a["key"]: a["value"] for a in resource["resource"]["attributes"]}
            for scope in resource["scopeSpans"]:
                for span in scope["spans"]:
                    yield span, members["service.name"]["stringValue"]
