"""What ``prepare`` makes is what docker-compose.yml mounts and the services accept."""

from __future__ import annotations

import shutil
import stat
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import yaml
from estdeploy import compose_rules
from estdeploy.compose_files import prepare
from estdeploy.services import SERVICES, flat

from estdev.layout import Layout, Ports
from estdev.postgres import Role

LOCAL = "./deploy/compose/local/"
GIVEN_TO_MIGRATIONS_ONLY = {
    "bus.migration_nkey_seed_file",
    "database.migration_url",
    "database.migration_password_file",
}
ONLY_LOCAL = {"users_file"}
"""An empty file that a person fills while trying; a deployment has one where it has users."""


@pytest.fixture
def compose(root: Path) -> dict[str, Any]:
    return deepcopy(compose_rules.load(root / "docker-compose.yml"))


def test_secrets_are_closed_and_survive_a_second_run(prepared: Path, tmp_path: Path) -> None:
    folder = tmp_path / "again"
    shutil.copytree(prepared, folder)
    prepare(folder)
    for path in sorted((prepared / "secrets").iterdir()):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600, path.name
        assert (folder / "secrets" / path.name).read_bytes() == path.read_bytes()
    assert (folder / "ca" / "root.pem").read_bytes() == (prepared / "ca" / "root.pem").read_bytes()
    by_default = (folder / "config" / "ca-signer.yaml").read_text()
    assert "/run/secrets/issuing.key" in by_default
    assert str(folder) not in by_default


def test_compose_mounts_what_prepare_makes_and_the_settings_name(
    root: Path, prepared: Path, compose: dict[str, Any]
) -> None:
    for secret in compose["secrets"].values():
        assert (prepared / secret["file"].removeprefix(LOCAL)).is_file()
    for name, service in compose["services"].items():
        mounts = dict(v.split(":")[:2] for v in service.get("volumes", []))
        for source in mounts:
            place = prepared / source.removeprefix(LOCAL)
            assert (place if source.startswith(LOCAL) else root / source).exists(), source
        config = name
        if config not in SERVICES:
            continue
        seen = {f"/run/secrets/{s}" for s in service["secrets"]} | {*mounts.values()}
        settings = flat(yaml.safe_load((prepared / "config" / f"{config}.yaml").read_text()))
        for key, real in settings.items():
            if not key.endswith(("_file", "_folder")):
                continue
            inside = str(real).replace(str(prepared / "secrets"), "/run/secrets")
            inside = inside.replace(str(prepared / "config"), "/etc/estsuite")
            inside = inside.replace(str(prepared / "data" / "est-frontend"), "/var/lib/estsuite")
            assert inside in seen or inside.startswith("/var/lib/estsuite/"), (name, key)


def test_no_container_sees_the_root_key(compose: dict[str, Any]) -> None:
    assert "root.key" not in str(compose)
    assert f"{LOCAL}ca" not in str(compose)


@pytest.mark.parametrize("name", SERVICES)
def test_containers_carry_the_settings_of_make_up(
    root: Path, prepared: Path, tmp_path: Path, name: str
) -> None:
    """Compose and the Kustomize base set the same keys as ``estsuite up``, and say what differs."""
    layout = Layout(tmp_path, Ports.free())
    try:
        layout.prepare()
        schema = SERVICES[name].schema
        if schema is not None:
            password = tmp_path / "password"
            layout.roles[name] = Role(schema, schema, f"{schema}_owner", password, password)
        local = flat(yaml.safe_load(layout.write_settings(name, name, 0).read_text()))
    finally:
        shutil.rmtree(layout.postgres.home, ignore_errors=True)
    config = flat(yaml.safe_load((prepared / "config" / f"{name}.yaml").read_text()))
    k8s = root / "deploy" / "k8s"
    audit = k8s / "overlays" / "prod" / "audit.yaml"
    file = audit if name == "audit" else k8s / "base" / "config" / f"{name}.yaml"
    cluster = flat(yaml.safe_load(file.read_text()))
    wanted = {k for k in local if k not in GIVEN_TO_MIGRATIONS_ONLY | ONLY_LOCAL}
    siem = {k for k in wanted if k.startswith("sinks.")}
    listen = {"listen.host"} if name == "est-frontend" else set()
    # Compose's networks are internal to one machine; a cluster's are not.
    plain = {"bus.allow_plaintext", "database.allow_plaintext" if schema else "bus.allow_plaintext"}
    assert {*config} == wanted - siem | listen | plain | ({"sinks"} if siem else set())
    by_environment = {"instance", "bus.url", "database.url"}
    tls = {"bus.ca_file", "database.ca_file"} if "database.url" in wanted else {"bus.ca_file"}
    own_name = {"sinks.server_name"}  # only a local SIEM has another name than its host
    assert {*cluster} == (wanted - by_environment - own_name) | tls | listen | {"admin.host"}


BREAKS = [
    ("a published database", "postgres", {"ports": ["5432:5432"]}, "publishes"),
    ("a writable root", "nats", {"read_only": False}, "read_only"),
    ("capabilities", "renewal", {"cap_drop": []}, "cap_drop"),
    ("the tag latest", "audit", {"image": "estsuite/audit:latest"}, "image"),
    ("a password in the environment", "postgres", {"environment": {"PGPASSWORD": "x"}}, "secret"),
    ("no order", "audit", {"depends_on": {}}, "does not wait for migrate-audit"),
    ("another package", "migrate-audit", {"build": {"context": "."}}, "image audit is built by"),
    ("an owner's password", "audit", {"secrets": ["audit_owner.password"]}, "sees audit_owner"),
    ("a key at a migration", "migrate-ca-signer", {"secrets": ["issuing.key"]}, "sees issuing.key"),
    ("a passphrase", "renewal", {"secrets": ["ca.passphrase"]}, "sees ca.passphrase"),
    ("a key at another verb", "ca-signer", {"command": ["check-store"]}, "sees ca.passphrase"),
    (
        "a runtime password at a migration",
        "migrate-audit",
        {"secrets": ["audit.password"]},
        "sees audit.password, which a migration does not read",
    ),
    ("a folder of keys", "audit", {"volumes": [f"{LOCAL}secrets:/s:ro"]}, "where keys are"),
    ("the CA's folder", "audit", {"volumes": [f"{LOCAL}ca/root.key:/k:ro"]}, "where keys are"),
    ("the whole folder", "audit", {"volumes": [f"{LOCAL}:/all:ro"]}, "where keys are"),
]


@pytest.mark.parametrize(
    ("name", "change", "finding"), [case[1:] for case in BREAKS], ids=[case[0] for case in BREAKS]
)
def test_a_compose_rule_finds(
    compose: dict[str, Any], name: str, change: dict[str, Any], finding: str
) -> None:
    def findings() -> list[str]:
        return [
            *compose_rules.compose_is_closed(compose),
            *compose_rules.compose_waits_in_order(compose),
            *compose_rules.compose_secrets_are_known(compose),
            *compose_rules.compose_keys_are_for_signing(compose),
            *compose_rules.compose_builds_known_images(compose),
        ]

    assert findings() == []
    compose["services"][name].update(change)
    assert any(finding in found for found in findings()), findings()
