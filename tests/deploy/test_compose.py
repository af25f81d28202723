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
from estdeploy.services import SERVICES, flat

from estdev.layout import Layout, Ports
from estdev.postgres import Role
from estsetup.compose import prepare

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
    kept: list[str] = []
    prepare(folder, kept=kept.append)
    for path in sorted(prepared.rglob("*")):
        inside = path.relative_to(prepared)
        if inside.parts[0] not in {"keys", "secrets"} or path.is_dir():
            continue
        assert stat.S_IMODE(path.stat().st_mode) == 0o600, inside
        assert (folder / inside).read_bytes() == path.read_bytes()
    assert (folder / "ca" / "root.pem").read_bytes() == (prepared / "ca" / "root.pem").read_bytes()
    assert kept == []
    by_default = (folder / "config" / "ca-signer.yaml").read_text()
    assert "/run/secrets/issuing.key" in by_default
    assert str(folder) not in by_default


def test_what_a_person_changed_is_kept_and_the_rest_follows(prepared: Path, tmp_path: Path) -> None:
    folder = tmp_path / "again"
    shutil.copytree(prepared, folder)
    settings = folder / "config" / "audit.yaml"
    settings.write_text(settings.read_text() + "# with a SIEM\n")
    policy = folder / "config" / "policy.yaml"
    policy.write_text("default_label: mine\nlabels: {mine: {issuer: issuing, profiles: [ra]}}\n")
    (folder / "keys" / "nats-audit.seed").unlink()
    kept: list[str] = []
    prepare(folder, kept=kept.append)
    assert kept == ["audit.yaml"]
    assert settings.read_text().endswith("# with a SIEM\n")
    assert policy.read_text().startswith("default_label: mine\n")
    groups = yaml.safe_load((folder / "config" / "ca-signer.yaml").read_text())["groups"]
    assert groups["default"]["labels"] == ["mine"]
    # A new seed: what is derived from it, and the copy that the container sees, are new too.
    seed = (folder / "keys" / "nats-audit.seed").read_bytes()
    assert (folder / "secrets" / "audit" / "nats-audit.seed").read_bytes() == seed
    assert seed != (prepared / "keys" / "nats-audit.seed").read_bytes()
    for name in ("senders.json", "nats.conf"):
        assert (folder / "config" / name).read_text() != (prepared / "config" / name).read_text()


def test_each_container_finds_what_its_settings_name(
    root: Path, prepared: Path, compose: dict[str, Any]
) -> None:
    for name, service in compose["services"].items():
        mounts = dict(v.split(":")[1::-1] for v in service.get("volumes", []))
        for source in mounts.values():
            place = prepared / source.removeprefix(LOCAL)
            assert (place if source.startswith(LOCAL) else root / source).exists(), source
        settings_name = "operator" if name == "estctl" else name
        if name not in {*SERVICES, "estctl"}:
            continue
        text = (prepared / "config" / f"{settings_name}.yaml").read_text()
        for key, real in flat(yaml.safe_load(text)).items():
            if not key.endswith(("_file", "_folder")):
                continue
            if "/keys/" in str(real):
                held = prepared / mounts["/run/secrets"].removeprefix(LOCAL)
                assert (held / Path(real).name).is_file(), (name, key)
            elif "/config/" in str(real):
                assert mounts["/etc/estsuite"] == f"{LOCAL}config"
                assert Path(real).is_file(), (name, key)
            else:
                assert "/var/lib/estsuite" in mounts, (name, key)


def test_no_container_sees_the_root_key(prepared: Path, compose: dict[str, Any]) -> None:
    mounted = [
        volume.split(":")[0].removeprefix(LOCAL)
        for name, service in compose["services"].items()
        for volume in service.get("volumes", [])
        if name != "setup"
    ]
    root_key = (prepared / "ca" / "root.key").read_bytes()
    for folder in {m for m in mounted if not m.startswith((".", "data"))}:
        for path in (prepared / folder).rglob("*"):
            assert path.is_dir() or path.read_bytes() != root_key, path


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


def _secrets(container: str) -> dict[str, Any]:
    return {"volumes": [f"{LOCAL}secrets/{container}:/run/secrets:ro"]}


BREAKS = [
    ("a published database", "postgres", {"ports": ["5432:5432"]}, "publishes"),
    ("a writable root", "nats", {"read_only": False}, "read_only"),
    ("capabilities", "renewal", {"cap_drop": []}, "cap_drop"),
    ("the tag latest", "audit", {"image": "estsuite/audit:latest"}, "image"),
    ("a password in the environment", "postgres", {"environment": {"PGPASSWORD": "x"}}, "secret"),
    ("no order", "audit", {"depends_on": {}}, "does not wait for migrate-audit"),
    ("another package", "migrate-audit", {"build": {"context": "."}}, "image audit is built by"),
    ("secrets of another", "audit", _secrets("renewal"), "mounts the secrets of renewal"),
    ("an owner's password", "audit", _secrets("migrate-audit"), "sees audit_owner"),
    ("a key at a migration", "migrate-ca-signer", _secrets("ca-signer"), "sees issuing.key"),
    ("a passphrase", "renewal", _secrets("ca-signer"), "sees ca.passphrase"),
    ("a key at another verb", "ca-signer", {"command": ["check-store"]}, "sees ca.passphrase"),
    ("a key at another job", "operator", {"command": ["operator", "x"]}, "sees ca.passphrase"),
    (
        "a runtime password at a migration",
        "migrate-audit",
        _secrets("audit"),
        "sees audit.password, which a migration does not read",
    ),
    ("writable secrets", "audit", {"volumes": [f"{LOCAL}secrets/audit:/run/secrets"]}, "read-only"),
    ("a folder of keys", "audit", {"volumes": [f"{LOCAL}secrets:/s:ro"]}, "where keys are"),
    ("every key", "audit", {"volumes": [f"{LOCAL}keys:/s:ro"]}, "where keys are"),
    ("the CA's folder", "audit", {"volumes": [f"{LOCAL}ca/root.key:/k:ro"]}, "where keys are"),
    ("the whole folder", "audit", {"volumes": [f"{LOCAL}:/all:ro"]}, "where keys are"),
    ("secrets by name", "audit", {"secrets": ["x"]}, "secrets come from a folder"),
    ("a setup with a network", "setup", {"network_mode": "bridge"}, "setup: network_mode"),
    ("a setup that sees more", "setup", {"volumes": ["/:/host"]}, "setup: volumes"),
    ("a setup that may more", "setup", {"cap_add": ["SYS_ADMIN"]}, "setup: cap_add"),
    ("a start before setup", "nats", {"depends_on": {}}, "does not wait for setup"),
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
            *compose_rules.compose_secrets_are_their_own(compose),
            *compose_rules.compose_keys_are_for_signing(compose),
            *compose_rules.compose_builds_known_images(compose),
        ]

    assert findings() == []
    compose["services"][name].update(change)
    assert any(finding in found for found in findings()), findings()
