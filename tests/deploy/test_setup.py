"""``est-setup kubernetes`` makes what deploy/k8s mounts, and the same again."""

from __future__ import annotations

import base64
import json
import ssl
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from cryptography import x509
from estdeploy import pod_rules
from estdeploy.manifests import of_kind, pods
from estdeploy.pod_settings import SECRETS

from estcore.errors import ConfigurationError
from estsetup import compose
from estsetup.cli import main
from estsetup.kubernetes import ORIGIN, Installation, documents

Documents = list[dict[str, Any]]


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("kubernetes") / "keys"


@pytest.fixture(scope="module")
def made(keys: Path) -> Documents:
    return documents(keys, Installation())


def by_name(found: Documents, kind: str) -> dict[str, dict[str, Any]]:
    return {d["metadata"]["name"]: d for d in found if d["kind"] == kind}


def test_every_secret_of_the_list_is_made_with_its_keys(made: Documents, keys: Path) -> None:
    secrets = by_name(made, "Secret")
    for name, wanted in SECRETS.items():
        if name not in {"estctl", "est-witness", "est-witness-tls"}:
            assert secrets[name]["data"].keys() == wanted, name
    assert "estctl" not in secrets, "the operator has no certificate yet"
    (keys / "operator.pem").write_text("a certificate")
    again = by_name(documents(keys, Installation()), "Secret")
    (keys / "operator.pem").unlink()
    assert again.pop("estctl")["data"].keys() == SECRETS["estctl"]
    assert again == secrets, "a second run prints the same"


def test_whatever_all_in_one_mounts_is_made_or_rendered(
    made: Documents, rendered: dict[str, Documents]
) -> None:
    manifests = rendered["overlays/all-in-one"]
    secrets = {*by_name(made, "Secret"), "estctl"}
    maps = {*by_name(made, "ConfigMap"), *by_name(manifests, "ConfigMap")}
    for pod in pods(manifests):
        for volume in pod.spec.get("volumes", []):
            if "secret" in volume:
                assert volume["secret"]["secretName"] in secrets, pod.where
            if "configMap" in volume:
                assert volume["configMap"]["name"] in maps, pod.where


def test_the_namespace_and_the_origin_are_those_of_the_base(root: Path, made: Documents) -> None:
    base = root / "deploy" / "k8s" / "base"
    assert made[0] == yaml.safe_load((base / "namespace.yaml").read_text())
    audit = yaml.safe_load((base / "config" / "audit.yaml").read_text())
    assert audit["checkpoint"]["origin"] == ORIGIN


def test_no_secret_is_in_a_config_map(made: Documents, keys: Path) -> None:
    text = json.dumps(of_kind(made, "ConfigMap"))
    assert pod_rules.no_secret_in_plain_sight(of_kind(made, "ConfigMap")) == []
    for path in (keys / "keys").iterdir():
        secret = path.read_text()
        if not path.name.endswith((".crt", "-ca.pem")):
            assert stat.S_IMODE(path.stat().st_mode) == 0o600, path.name
            assert secret not in text
    held = json.dumps(of_kind(made, "Secret"))
    assert base64.b64encode((keys / "ca" / "root.key").read_bytes()).decode() not in held


def test_the_servers_take_their_files(made: Documents, keys: Path, tmp_path: Path) -> None:
    text = by_name(made, "ConfigMap")["nats-config"]["data"]["nats.conf"]
    for name in ("tls.crt", "tls.key"):
        data = by_name(made, "Secret")["nats-tls"]["data"][name]
        (tmp_path / name).write_bytes(base64.b64decode(data))
    config = tmp_path / "nats.conf"
    config.write_text(text.replace("/etc/nats-tls", str(tmp_path)).replace('"/data"', '"js"'))
    server = Path(sys.executable).parent / "nats-server"
    done = subprocess.run([server, "-t", "-c", config], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    ssl.create_default_context(cafile=str(keys / "keys" / "servers-ca.pem")).load_verify_locations(
        cafile=str(keys / "keys" / "nats.crt")
    )
    for name in ("nats", "postgres"):
        certificate = x509.load_pem_x509_certificate((keys / "keys" / f"{name}.crt").read_bytes())
        san = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        hosts = san.get_values_for_type(x509.DNSName)
        assert {f"{name}.estsuite.svc", "localhost"} <= {*hosts}


def test_servers_of_ones_own_are_trusted_by_their_anchors(
    keys: Path, made: Documents, tmp_path: Path
) -> None:
    anchors = {}
    for name in ("nats", "postgres", "siem"):
        anchors[name] = tmp_path / f"{name}.pem"
        anchors[name].write_text(f"anchor of {name}")
    installation = Installation(
        nats_ca=anchors["nats"], postgres_ca=anchors["postgres"], siem_ca=anchors["siem"]
    )
    found = documents(keys, installation)
    trust = by_name(found, "ConfigMap")["estsuite-trust"]["data"]
    assert [trust[f"{name}-ca.pem"] for name in anchors] == [
        p.read_text() for p in anchors.values()
    ]
    assert "nats-config" not in by_name(found, "ConfigMap")
    assert "postgres-passwords" not in by_name(found, "Secret")
    with pytest.raises(ConfigurationError, match="or neither"):
        documents(keys, Installation(nats_ca=anchors["nats"]))


def test_what_is_printed_is_yaml_for_kubectl(
    keys: Path, made: Documents, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["kubernetes", "--folder", str(keys)]) == 0
    assert list(yaml.safe_load_all(capsys.readouterr().out)) == made


def test_a_folder_that_cannot_be_filled_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    assert main(["compose", "--folder", str(tmp_path / "file" / "local")]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_root_gives_secrets_to_containers_and_settings_to_a_person(
    prepared: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: dict[Path, tuple[int, int]] = {}
    monkeypatch.setattr(
        "os.chown",
        lambda path, uid, gid, **_: given.update({Path(path).relative_to(prepared): (uid, gid)}),
    )
    compose._hand_over(prepared, compose.Owners((4711, 4712), (1234, 1235)))
    containers = {path.parts[0] for path, owner in given.items() if owner == (4711, 4712)}
    person = {path.parts[0] for path, owner in given.items() if owner == (1234, 1235) if path.parts}
    assert containers == {"secrets", "operator", "data"}
    assert person >= {"ca", "keys", "config", "operator.csr"}
    assert not containers & person
