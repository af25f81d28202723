"""Settings: unknown ones stop the start, secrets come from files, one line names the place."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from ca_signer.settings import SignerSettings
from estcore.errors import ConfigurationError
from estcore.pki.profile import load_profiles
from estcore.policy.document import load_policy
from estcore.runtime.service import executable
from estcore.runtime.settings import load_settings, read_secret

BASE: dict[str, Any] = {
    "bus": {"url": "nats://localhost:1", "nkey_seed_file": "/x"},
    "database": {"url": "postgresql://u@localhost/d"},
    "policy_file": "p",
    "profiles_file": "q",
    "issuers": [
        {
            "issuer_id": "i",
            "certificate_file": "a",
            "chain_file": "b",
            "key_file": "c",
            "passphrase_file": "d",
        }
    ],
    "groups": {"default": {"labels": ["l"], "profiles": ["p"]}},
}


def write(path: Path, value: Any) -> Path:
    path.write_text(yaml.safe_dump(value))
    return path


def load(path: Path, **variables: str) -> SignerSettings:
    return load_settings(SignerSettings, "CA_SIGNER", path, variables)


def test_file_and_environment_together(tmp_path: Path) -> None:
    path = write(tmp_path / "s.yaml", BASE)
    settings = load(path, CA_SIGNER__BATCH_SIZE="8", CA_SIGNER__BUS__URL="tls://other:1")
    assert (settings.batch_size, settings.bus.url) == (8, "tls://other:1")


@pytest.mark.parametrize(
    ("change", "variables", "place"),
    [
        ({"surprise": 1}, {}, "surprise"),
        ({"bus": {**BASE["bus"], "tls": False}}, {}, "bus.tls"),
        ({"bus": {**BASE["bus"], "url": "ws://localhost:1"}}, {}, "bus.url"),
        ({"bus": {**BASE["bus"], "url": "nats://a:1,http://b:1"}}, {}, "bus.url"),
        ({"bus": {**BASE["bus"], "url": ""}}, {}, "bus.url"),
        ({"batch_size": 0}, {}, "batch_size"),
        ({"database": {"url": "postgresql://u:secret@localhost/d"}}, {}, "database.url"),
        ({}, {"CA_SIGNER__NO_SUCH": "1"}, "no_such"),
        ({}, {"CA_SIGNER_BATCH": "1"}, "CA_SIGNER_BATCH"),
        ({"software_keys": "maybe"}, {}, "software_keys"),
    ],
)
def test_unknown_or_wrong_settings_stop_the_start(
    tmp_path: Path, change: dict[str, Any], variables: dict[str, str], place: str
) -> None:
    path = write(tmp_path / "s.yaml", BASE | change)
    with pytest.raises(ConfigurationError) as caught:
        load(path, **variables)
    assert place in caught.value.reason
    assert "\n" not in caught.value.reason
    assert "secret@" not in caught.value.reason


def test_a_missing_or_broken_file_is_one_line(tmp_path: Path) -> None:
    broken = tmp_path / "broken.yaml"
    broken.write_text("a: [1")
    for path in (tmp_path / "missing.yaml", broken, write(tmp_path / "list.yaml", [1])):
        with pytest.raises(ConfigurationError) as caught:
            load(path)
        assert "\n" not in caught.value.reason


@pytest.mark.parametrize("place", [("issuers", 0, "key_file"), ("database", "password_file")])
def test_check_config_refuses_an_exposed_secret_with_one_line(
    tmp_path: Path, place: tuple[Any, ...]
) -> None:
    """Every such setting is tried in unit/estcore/test_secret_files.py."""
    secret = tmp_path / "secret"
    secret.write_text("hidden")
    secret.chmod(0o644)
    changed = yaml.safe_load(yaml.safe_dump(BASE))
    section = changed
    for part in place[:-1]:
        section = section[part]
    section[place[-1]] = str(secret)
    path = write(tmp_path / "s.yaml", changed)
    done = subprocess.run(
        [sys.executable, executable("ca-signer"), "check-config", "--config", path],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    for text in (place[-1], str(secret), "0644", f"chmod 600 {secret}"):
        assert text in done.stderr
    assert "hidden" not in done.stderr


def test_secrets_readable_by_everybody_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "secret"
    path.write_text("hidden\n")
    path.chmod(0o644)
    with pytest.raises(ConfigurationError) as caught:
        read_secret(path, "the thing")
    assert "hidden" not in caught.value.reason
    path.chmod(0o600)
    assert read_secret(path, "the thing") == "hidden"
    path.write_text("  ")
    with pytest.raises(ConfigurationError):
        read_secret(path, "the thing")


@pytest.mark.parametrize("command", ["est-frontend", "ca-signer", "est-renewal", "est-audit"])
def test_check_config_exits_2_with_one_line(tmp_path: Path, command: str) -> None:
    path = write(tmp_path / "s.yaml", {"nonsense": True})
    done = subprocess.run(
        [sys.executable, executable(command), "check-config", "--config", path],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert done.stderr.startswith(command)
    assert "Traceback" not in done.stderr


POLICY: dict[str, Any] = {
    "default_label": "a",
    "labels": {"a": {"issuer": "i", "profiles": ["p"]}},
    "rules": [
        {
            "name": "r",
            "principal": {"secret": "s"},
            "owner": {"tenant": "t", "service": "v"},
            "labels": ["a"],
            "profiles": ["p"],
            "names": {},
        }
    ],
}


def test_policy_is_versioned_by_its_bytes(tmp_path: Path) -> None:
    first = load_policy(write(tmp_path / "a.yaml", POLICY))
    second = load_policy(write(tmp_path / "b.yaml", POLICY | {"rules": []}))
    assert first.version != second.version
    assert first.rule_for_secret("s") is not None


@pytest.mark.parametrize(
    "change",
    [
        {"default_label": "b"},
        {"labels": {"cacerts": POLICY["labels"]["a"]}},
        {"labels": {"a/b": POLICY["labels"]["a"]}},
        {"rules": POLICY["rules"] * 2},
        {"rules": [{**POLICY["rules"][0], "labels": ["z"]}]},
        {"rules": [{**POLICY["rules"][0], "profiles": ["z"]}]},
        {"rules": [{**POLICY["rules"][0], "principal": {}}]},
        {"rules": [{**POLICY["rules"][0], "owner": {"tenant": "T", "service": "v"}}]},
        {"rules": [{**POLICY["rules"][0], "nmaes": {}}]},
        {"labels": {"a": {**POLICY["labels"]["a"], "authentication": []}}},
    ],
)
def test_A3_a_wrong_policy_is_refused(tmp_path: Path, change: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError) as caught:
        load_policy(write(tmp_path / "p.yaml", POLICY | change))
    assert "\n" not in caught.value.reason


PROFILE = {"name": "p", "lifetime": "30d", "key_algorithms": ["ec-p256"]}


@pytest.mark.parametrize(
    "change",
    [
        {"lifetime": "30"},
        {"lifetime": "10s"},
        {"key_algorithms": []},
        {"key_algorithms": ["ec-p192"]},
        {"key_usage": ["key_cert_sign"]},
        {"extended_key_usage": ["any"]},
        {"renewal": {"reaction_time": "30d"}},
        {"surprise": 1},
    ],
)
def test_a_wrong_profile_is_refused(tmp_path: Path, change: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError):
        load_profiles(write(tmp_path / "p.yaml", {"profiles": [PROFILE | change]}))


def test_two_profiles_of_one_name_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError):
        load_profiles(write(tmp_path / "p.yaml", {"profiles": [PROFILE, PROFILE]}))
