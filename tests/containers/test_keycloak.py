"""``deploy/compose/keycloak.yml``: a token of Keycloak enrolls."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from estsuite_testing.compose import Compose, cloned

pytestmark = pytest.mark.timeout(600)


@pytest.fixture(scope="module")
def compose(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Compose]:
    with cloned(tmp_path_factory.mktemp("clone"), "keycloak") as compose:
        compose.up()
        yield compose


def test_one_command_enrolls_with_a_token(compose: Compose) -> None:
    compose("restart", "keycloak")  # the realm and its keys are kept
    done = compose("run", "--rm", "-T", "keycloak-enroll")
    assert "clinic-web.clinic.example" in done.stdout + done.stderr
    listed = json.dumps(compose.operator("cert", "list"))
    assert "CN=clinic-web.clinic.example" in listed


def test_a_token_gives_the_name_of_its_client_only(compose: Compose) -> None:
    done = compose("run", "--rm", "-T", "keycloak-enroll", "other.clinic.example", check=False)
    assert done.returncode != 0
    assert "[policy." in done.stderr, done.stderr
