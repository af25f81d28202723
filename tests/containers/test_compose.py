"""``docker compose up`` after a fresh clone: ``make compose-test``.

    COMPOSE_OVERRIDE    a further compose file, for images of a mirror

Needs a Docker daemon, Compose and the images of ``make images``. The project is ``estsuite-test``,
and its port 8443 must be free.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator

import pytest

from estsuite_testing.compose import Compose, cloned, enrolled

pytestmark = pytest.mark.timeout(600)


@pytest.fixture(scope="module")
def compose(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Compose]:
    with cloned(tmp_path_factory.mktemp("clone")) as compose:
        yield compose


def test_one_command_gives_a_suite_and_an_operator(compose: Compose) -> None:
    compose.up()
    assert enrolled(compose.client(compose.make_secret())) == 200
    listed = compose.operator("cert", "list")
    assert "CN=web.clinic.example" in json.dumps(listed)
    exported = compose(
        *("exec", "-T", "audit", "est-audit", "export", "--sealed"),
        *("--config", "/etc/estsuite/audit.yaml", "--out", "-"),
    )
    assert "web.clinic.example" in exported.stdout


def test_containers_see_their_own_secrets_only(compose: Compose) -> None:
    program = "import os; print(sorted(os.listdir('/run/secrets')))"
    for name in ("est-frontend", "renewal", "audit", "ca-signer"):
        printed = compose("exec", "-T", name, "python", "-c", program).stdout
        assert ("issuing.key" in printed) is (name == "ca-signer")
        assert "root.key" not in printed
        assert "owner" not in printed


def test_a_second_up_keeps_keys_data_and_what_a_person_changed(compose: Compose) -> None:
    settings = compose.local / "config" / "audit.yaml"
    changed = settings.read_text() + "# changed by a person\n"
    settings.write_text(changed)
    root = (compose.local / "config" / "root.pem").read_text()
    certificate = operator_certificate(compose)
    compose("down", "--timeout", "20")
    compose.up()
    assert settings.read_text() == changed
    assert "audit.yaml: kept as it was changed" in compose("logs", "setup").stdout
    assert (compose.local / "config" / "root.pem").read_text() == root
    assert enrolled(compose.client(compose.secret)) == 200
    assert operator_certificate(compose) == certificate


def operator_certificate(compose: Compose) -> str:
    """Read by a container: with rootless Docker the file is not of the user of the tests."""
    words = ("run", "--rm", "-T", "--no-deps", "--entrypoint", "cat", "estctl")
    return compose(*words, "/var/lib/estsuite/operator.pem").stdout


def test_a_policy_is_reloaded_while_the_containers_run(compose: Compose) -> None:
    policy = compose.local / "config" / "policy.yaml"
    new = policy.with_suffix(".new")
    new.write_text(
        policy.read_text().replace(
            "common_names: [web.clinic.example]",
            "common_names: [web.clinic.example, hot.clinic.example]",
        )
    )
    new.replace(policy)  # as an editor does: a mount of the file alone would keep the old one
    end = time.monotonic() + 60
    while (status := enrolled(compose.client(compose.secret), "hot.clinic.example")) != 200:
        assert time.monotonic() < end, status
        time.sleep(2)


def test_services_stop_in_order_and_say_so(compose: Compose) -> None:
    compose("stop", "--timeout", "30")
    for name in ("est-frontend", "ca-signer", "renewal", "audit"):
        log = compose("logs", "--tail", "3", name).stdout
        assert '"message":"service stopped"' in log, log
        assert '"level":"error"' not in log


def test_one_command_removes_everything(compose: Compose) -> None:
    compose("down", "--timeout", "20")
    compose("run", "--rm", "-T", "--entrypoint", "rm", "setup", "-rf", "/compose/local")
    assert not compose.local.exists()
