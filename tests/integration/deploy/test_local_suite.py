"""What ``estsuite up`` keeps of a folder between two starts, and what it takes from the environment."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from estclient.cli import main
from estdev.layout import Layout, Ports
from estdev.local import LocalSuite


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    ports = Ports.free()
    ports.choose()
    found = Layout(tmp_path / "suite", ports)
    found.prepare()
    return found


def test_users_stay_when_the_settings_are_written_again(layout: Layout, tmp_path: Path) -> None:
    """The settings name a file of users from the first start on, which only its editor writes."""
    secret = tmp_path / "password"
    secret.write_text("correct horse battery\n")
    secret.chmod(0o600)
    file = ["--users-file", str(layout.users_file)]
    assert main(["password", "--user", "alice", "--password-file", str(secret), *file]) == 0
    layout.prepare()
    settings = yaml.safe_load(layout.write_settings("est-frontend", "est-frontend", 1).read_text())
    assert settings["users_file"] == str(layout.users_file)
    assert list(yaml.safe_load(layout.users_file.read_text())["users"]) == ["alice"]
    assert layout.users_file.stat().st_mode & 0o777 == 0o600


def test_variables_of_settings_reach_the_services_and_no_others_do(
    layout: Layout, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = {
        "EST_FRONTEND__ANSWER_TIMEOUT_S": "2",
        "CA_SIGNER__RELOAD_EVERY_S": "1",
        "EST_RENEWAL__ADMIN__PORT": "1",
        "EST_AUDIT__ADMIN__PORT": "1",
    }
    others = {"PGPASSWORD": "x", "EST_FRONTEND_CONFIG": "x", "EST_FRONTEND": "x", "SECRET": "x"}
    for name, value in (settings | others).items():
        monkeypatch.setenv(name, value)
    environment = LocalSuite(layout)._environment()
    assert {name: environment.get(name) for name in settings} == settings
    assert not environment.keys() & others.keys()
