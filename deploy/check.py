"""Check what is deployed: docker-compose.yml, the Dockerfile, every Kustomize overlay.

    .venv/bin/python deploy/check.py

One line per check; the exit code is 1 when there is any finding. Nothing is run in containers
or in a cluster here: this validates (deploy/README.md explains the difference).
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from estdeploy import (
    compose_files,
    compose_rules,
    example_rules,
    image_rules,
    manifests,
    pod_rules,
    pod_settings,
    service_rules,
)
from estsupply import images, lock_rules

from estcore.errors import ConfigurationError
from estsetup.extensions import Extensions

ROOT = Path(__file__).resolve().parents[1]
COMPOSE = ROOT / "docker-compose.yml"
EXTENSIONS = ROOT / "deploy" / "compose"
KUSTOMIZE = ROOT / "deploy" / "k8s"
IMAGES_LOCK = ROOT / "deploy" / "images.lock"
PRODUCTION = "overlays/prod"
TRYING = "overlays/all-in-one"
FOLDERS = (
    "base",
    "overlays/dev",
    PRODUCTION,
    TRYING,
    "overlays/est-issuer",
    "overlays/est-witness",
)
RULES: tuple[Callable[[list[manifests.Document]], list[str]], ...] = (
    pod_rules.namespace_is_restricted,
    pod_rules.pods_are_restricted,
    pod_rules.containers_are_restricted,
    pod_rules.images_are_pinned,
    pod_rules.resources_are_said,
    pod_rules.no_secret_in_plain_sight,
    pod_rules.volumes_are_bounded,
    pod_rules.migration_secrets_stay_with_migrations,
    pod_rules.nothing_is_a_job,
    pod_rules.ca_keys_are_for_signing,
    pod_rules.secrets_of_the_suite_are_read_by_no_account,
    service_rules.probes_ask_the_admin_port,
    service_rules.replicas_survive_disruption,
    service_rules.replicas_are_spread,
    service_rules.shutdown_has_time,
    service_rules.selectors_find_their_pods,
    service_rules.network_is_closed,
    pod_settings.settings_can_be_loaded,
)
Result = tuple[str, list[str]]


def main() -> int:
    """Run every check; returns the exit code."""
    failed = False
    for title, findings in (*_images(), *_compose(), *_kubernetes()):
        failed |= bool(findings)
        sys.stdout.write(f"{title}\n" if not findings else f"{title}: NOT GOOD\n")
        sys.stdout.writelines(f"  {finding}\n" for finding in findings)
    return 1 if failed else 0


def _images() -> Iterator[Result]:
    text = (ROOT / "Dockerfile").read_text(encoding="utf-8")
    yield "Dockerfile: read by our rules", compose_rules.dockerfile_findings(text)
    compose = compose_rules.load(COMPOSE)
    try:
        lock = images.read_lock(IMAGES_LOCK.read_text(encoding="utf-8"))
        servers = [
            *image_rules.in_compose(compose),
            *_further_images(compose),
            *image_rules.servers_in_manifests(manifests.render(KUSTOMIZE / TRYING)),
        ]
        named = [
            *image_rules.in_dockerfile(text),
            *servers,
            *image_rules.in_manifests(manifests.render(KUSTOMIZE / PRODUCTION)),
        ]
        packages = lock_rules.read(ROOT / "uv.lock")
        findings = [
            *images.findings(named, lock),
            *image_rules.servers_are_those_tested(servers, packages),
        ]
    except ConfigurationError as exc:
        yield "images.lock", [exc.reason]
        return
    unknown = sum(digest == images.UNKNOWN for digest in lock.values())
    yield f"images.lock: {len(lock)} images, the digests of {unknown} are unknown", findings


def _further_images(compose: dict[str, Any]) -> Iterator[tuple[str, str]]:
    for file in compose_files.files(EXTENSIONS):
        added = compose_files.extended(compose, file)
        for where, image in image_rules.in_compose(added):
            yield where.replace("docker-compose.yml", file.name), image
    text = (ROOT / "deploy" / "siem" / "rsyslog.Dockerfile").read_text(encoding="utf-8")
    yield from image_rules.in_dockerfile(text)


def _compose() -> Iterator[Result]:
    document = compose_rules.load(COMPOSE)
    yield (
        f"docker-compose.yml: {len(document['services'])} services read by our rules",
        compose_rules.findings(document),
    )
    for file in compose_files.files(EXTENSIONS):
        added = compose_files.extended(document, file)
        used: dict[str, Any] = {file.stem: True}
        held = replace(Extensions(), **used).held()
        yield (
            f"with {file.name}: {len(added['services'])} services read by our rules",
            compose_rules.findings(added, held),
        )
    command = compose_rules.tool(install=bool(os.environ.get("CI")))
    if command is None:
        yield compose_rules.SKIPPED, []
        return
    title = f"{' '.join(Path(part).name for part in command)} config: done"
    yield title, compose_rules.tool_findings(command, COMPOSE)


def _kubernetes() -> Iterator[Result]:
    for folder in FOLDERS:
        try:
            documents = manifests.render(KUSTOMIZE / folder)
        except ConfigurationError as exc:
            yield f"k8s {folder}", [exc.reason]
            continue
        findings = manifests.schema_findings(documents)
        yield f"k8s {folder}: {len(documents)} documents, strict schema", findings
        if not findings:
            broken = [finding for rule in RULES for finding in rule(documents)]
            yield f"k8s {folder}: {len(RULES)} rules of our own", broken
    for folder in example_rules.EXCEPTIONS:
        try:
            documents = manifests.render(KUSTOMIZE / folder)
        except ConfigurationError as exc:
            yield f"k8s {folder}", [exc.reason]
            continue
        strict = manifests.schema_findings(documents)
        yield f"k8s {folder}: {len(documents)} documents, strict schema", strict
        if not strict:
            broken = example_rules.findings(folder, documents)
            yield f"k8s {folder}: {len(example_rules.RULES)} rules for agents in pods", broken


if __name__ == "__main__":
    sys.exit(main())
