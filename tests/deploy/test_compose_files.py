"""The further files of deploy/compose: what ``setup`` makes for each, and what the rules find in them."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from cryptography import x509
from cryptography.x509.oid import ExtendedKeyUsageOID
from estdeploy import compose_files, compose_rules
from estdeploy.services import SERVICES

from estcore.errors import ConfigurationError
from estsetup.cli import main
from estsetup.compose import prepare
from estsetup.extensions import Extensions

NAMES = ("ha", "keycloak", "monitoring", "siem")
LOCAL = "./deploy/compose/local/"


@pytest.fixture
def folder(prepared: Path, tmp_path: Path) -> Path:
    """What a plain ``docker compose up`` made."""
    return Path(shutil.copytree(prepared, tmp_path / "local"))


def extended(root: Path, name: str) -> dict[str, Any]:
    base = compose_rules.load(root / "docker-compose.yml")
    return compose_files.extended(base, root / "deploy" / "compose" / f"{name}.yml")


def with_file(root: Path, name: str) -> Extensions:
    realm = root / "deploy" / "keycloak" / "estsuite-realm.json"
    return replace(Extensions(), realm=realm, **{name: True})  # type: ignore[arg-type]


def settings_of(folder: Path, name: str) -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load((folder / "config" / f"{name}.yaml").read_text())
    return found


def test_there_is_a_file_for_each_extension(root: Path) -> None:
    found = compose_files.files(root / "deploy" / "compose")
    assert [path.stem for path in found] == [*NAMES]


@pytest.mark.parametrize("name", NAMES)
def test_every_mounted_folder_is_made_and_every_setting_is_accepted(
    root: Path, folder: Path, name: str
) -> None:
    prepare(folder, extensions=with_file(root, name))
    for service in extended(root, name)["services"].values():
        for volume in service.get("volumes", []):
            source = volume.split(":")[0]
            place = folder / source.removeprefix(LOCAL)
            assert (place if source.startswith(LOCAL) else root / source).exists(), source
    for service in SERVICES.values():
        service.settings(**settings_of(folder, service.name))


def test_without_the_files_everything_is_as_before(prepared: Path, folder: Path) -> None:
    prepare(folder)
    before = {p.name: p.read_bytes() for p in (folder / "config").iterdir()}
    prepare(folder, extensions=Extensions(siem=True, monitoring=True))
    assert "siem-client.key" in {p.name for p in (folder / "secrets" / "audit").iterdir()}
    prepare(folder)
    after = {p.name: p.read_bytes() for p in (folder / "config").iterdir()}
    assert after.keys() - before.keys() == {"targets.json"}
    assert before.items() <= after.items()
    assert "siem-client.key" not in {p.name for p in (folder / "secrets" / "audit").iterdir()}


def test_the_sink_and_the_receiver_trust_one_authority(folder: Path) -> None:
    prepare(folder, extensions=Extensions(siem=True))
    (sink,) = settings_of(folder, "audit")["sinks"]
    assert (sink["kind"], sink["host"], sink["port"]) == ("syslog", "rsyslog", 6514)
    for key, name in (("ca_file", "servers-ca.pem"), ("key_file", "siem-client.key")):
        assert sink[key] == f"/run/secrets/{name}"
        assert (folder / "secrets" / "audit" / name).is_file()
    theirs = folder / "secrets" / "rsyslog"
    assert {p.name for p in theirs.iterdir()} == {"ca.pem", "server.pem", "server.key"}
    assert (theirs / "ca.pem").read_bytes() == (folder / "keys" / "servers-ca.pem").read_bytes()
    client = x509.load_pem_x509_certificate((folder / "keys" / "siem-client.crt").read_bytes())
    usages = client.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    assert ExtendedKeyUsageOID.CLIENT_AUTH in usages


def test_the_policy_accepts_tokens_until_a_person_changes_it(root: Path, folder: Path) -> None:
    policy = folder / "config" / "policy.yaml"
    plain = policy.read_text()
    prepare(folder, extensions=with_file(root, "keycloak"))
    document = yaml.safe_load(policy.read_text())
    assert document["labels"]["tokens"]["authentication"] == ["token"]
    groups = settings_of(folder, "ca-signer")["groups"]
    assert "tokens" in groups["default"]["labels"]
    (issuer,) = settings_of(folder, "est-frontend")["token_issuers"]
    assert issuer["id"] == document["rules"][0]["principal"]["token"]["issuer"]
    prepare(folder)
    assert policy.read_text() == plain
    policy.write_text(plain + "# mine\n")
    prepare(folder, extensions=with_file(root, "keycloak"))
    assert policy.read_text() == plain + "# mine\n"


def test_keycloak_and_its_client_have_the_same_secret(root: Path, folder: Path) -> None:
    prepare(folder, extensions=with_file(root, "keycloak"))
    secrets = folder / "secrets"
    realm = json.loads((secrets / "keycloak" / "est-realm.json").read_text())
    known = {c["clientId"]: c.get("secret") for c in realm["clients"]}
    assert known["clinic-web"] == (secrets / "keycloak-enroll" / "clinic-web.secret").read_text()
    assert [name for name, secret in known.items() if secret] == ["clinic-web"]


def test_a_cluster_of_nats_has_routes_by_certificate(folder: Path) -> None:
    prepare(folder, extensions=Extensions(ha=True))
    names = set()
    for host in ("nats", "nats-2", "nats-3"):
        server = json.loads((folder / "config" / f"{host}.conf").read_text())
        names.add(server["server_name"])
        assert server["cluster"]["tls"]["verify"] is True
        assert len(server["cluster"]["routes"]) == 3
    assert names == {"nats", "nats-2", "nats-3"}
    assert settings_of(folder, "ca-signer")["bus"]["replicas"] == 3
    assert settings_of(folder, "operator")["bus"]["url"].count(",") == 2


@pytest.mark.parametrize("first", [False, True])
def test_streams_stay_with_the_servers_that_made_them(folder: Path, first: bool) -> None:
    prepare(folder, extensions=Extensions(ha=first))
    (folder / "data" / "nats" / "jetstream").mkdir()
    prepare(folder, extensions=Extensions(ha=first))
    with pytest.raises(ConfigurationError, match="go on with the same files"):
        prepare(folder, extensions=Extensions(ha=not first))


@pytest.mark.parametrize("first", [False, True])
def test_another_number_of_servers_begins_with_new_streams(
    folder: Path, first: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    prepare(folder, extensions=Extensions(ha=first))
    (folder / "data" / "nats" / "jetstream").mkdir()
    (folder / "data" / "nats" / "jetstream" / "message").write_text("x")
    assert main(["new-streams", "--folder", str(folder)]) == 0
    (aside,) = (folder / "data").glob("nats-before-*")
    assert str(aside) in capsys.readouterr().out
    assert (aside / "nats" / "jetstream" / "message").read_text() == "x"
    prepare(folder, extensions=Extensions(ha=not first))
    assert (folder / "data" / "nats").is_dir()
    assert main(["new-streams", "--folder", str(folder)]) == 0
    assert capsys.readouterr().out.startswith("no streams in ")


@pytest.mark.parametrize("first", [False, True])
def test_files_may_change_before_the_servers_have_started(folder: Path, first: bool) -> None:
    prepare(folder, extensions=Extensions(ha=first))
    prepare(folder, extensions=Extensions(ha=not first))
    (folder / "data" / "nats" / "jetstream").mkdir()
    prepare(folder, extensions=Extensions(ha=not first))


@pytest.mark.parametrize(
    ("name", "service", "change", "finding"),
    [
        ("siem", "rsyslog", {"user": "0:0"}, "rsyslog: user"),
        ("siem", "rsyslog", {"ports": ["6514:6514"]}, "rsyslog: publishes"),
        (
            "siem",
            "rsyslog",
            {"volumes": [f"{LOCAL}secrets/audit:/etc/estsuite/siem:ro"]},
            "mounts the secrets of audit",
        ),
        ("monitoring", "prometheus", {"ports": ["9090:9090"]}, "prometheus: publishes"),
        ("monitoring", "prometheus", {"image": "prom/prometheus:latest"}, "prometheus: image"),
        ("ha", "audit-2", {"volumes": [f"{LOCAL}secrets/ca-signer:/run/secrets:ro"]}, "sees"),
        ("ha", "ca-signer-2", {"command": ["check-store"]}, "ca-signer-2: sees issuing.key"),
        ("ha", "proxy", {"read_only": False}, "proxy: read_only"),
    ],
)
def test_a_rule_finds(
    root: Path, name: str, service: str, change: dict[str, Any], finding: str
) -> None:
    compose, held = extended(root, name), with_file(root, name).held()
    assert compose_rules.findings(compose, held) == []
    compose["services"][service].update(change)
    found = compose_rules.findings(compose, held)
    assert any(finding in one for one in found), found


def test_only_the_proxy_publishes_est_with_two_front_ends(root: Path) -> None:
    services = extended(root, "ha")["services"]
    assert [n for n, s in services.items() if s.get("ports")] == ["proxy"]
