"""From one NATS server to three of ``ha.yml`` and back: refused by itself, done by two commands."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator

import pytest

from estsuite_testing.compose import CLOSING_S, Compose, cloned, enrolled
from estsuite_testing.e2e_stack import certificate_in, make_csr

ISSUED: set[str] = set()
"""Serial numbers of what clients have."""
pytestmark = pytest.mark.timeout(900)


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Compose]:
    with cloned(tmp_path_factory.mktemp("clone")) as compose:
        compose.up()
        compose.make_secret()
        yield compose


@pytest.fixture(scope="module")
def ha(plain: Compose) -> Iterator[Compose]:
    compose = Compose(plain.folder, "ha")
    compose.secret = plain.secret
    try:
        yield compose
    finally:
        compose("down", "--volumes", "--timeout", "20", check=False)


def test_other_files_are_refused_and_those_of_before_go_on(plain: Compose, ha: Compose) -> None:
    enroll(plain)
    refused = ha("up", "-d", check=False)
    assert refused.returncode != 0
    line = ha("logs", "--no-log-prefix", "setup").stdout.splitlines()[-1]
    assert "were made by one NATS server: go on with the same files" in line
    plain.up()
    enroll(plain)
    verify(plain)


def test_one_server_becomes_three(plain: Compose, ha: Compose) -> None:
    change(plain, ha)
    verify(ha)


def test_a_second_up_of_three_servers_changes_nothing(ha: Compose) -> None:
    before = json.loads(ha("ps", "--format", "json", "nats-2").stdout)["ID"]
    ha.up()
    assert json.loads(ha("ps", "--format", "json", "nats-2").stdout)["ID"] == before
    ha("down", "--timeout", "20")
    ha.up()
    enroll(ha)
    verify(ha)


def test_three_servers_become_one(plain: Compose, ha: Compose) -> None:
    change(ha, plain)
    verify(plain)


def change(before: Compose, after: Compose) -> None:
    """As deploy/README.md says it, with a refusal just before: it waits in a stream only."""
    enroll(before)
    asyncio.run(refused_once(before))
    before("stop", "--timeout", "30", "est-frontend", *before.seconds("est-frontend"))
    before.until(lambda: "refused-first.clinic.example" in exported(before), seconds=60)
    before("down", "--timeout", "30")
    after("run", "--rm", "-T", "setup", "new-streams", "--folder", "/compose/local")
    after.up()
    enroll(after)


def enroll(compose: Compose) -> None:
    """Enroll a client, whose certificate must be on record ever after."""
    _, csr = make_csr("web.clinic.example")

    async def run() -> int:
        client, status = compose.client(compose.secret), 0
        for _ in range(60):
            status, _, body = await client.enroll_once(csr)
            if status == 200:
                await asyncio.sleep(CLOSING_S)
                return certificate_in(body).serial_number
            assert status in {202, 401, 503}, body
            await asyncio.sleep(1)
        raise AssertionError(status)

    ISSUED.add(f"{asyncio.run(run()):x}")


async def refused_once(compose: Compose) -> None:
    _, csr = make_csr("refused-first.clinic.example")
    status, _, _ = await compose.client(compose.secret).enroll_once(csr)
    assert status == 403
    await asyncio.sleep(CLOSING_S)


def exported(compose: Compose) -> str:
    return compose(
        *("exec", "-T", "audit", "est-audit", "export", "--sealed"),
        *("--config", "/etc/estsuite/audit.yaml", "--out", "-"),
    ).stdout


def verify(compose: Compose) -> None:
    """Everything that clients have is in the ledger and in the log, and slots renew it."""
    assert enrolled(compose.client(compose.secret)) == 200
    compose.until(lambda: not [s for s in ISSUED if s not in exported(compose)], seconds=60)
    ledger = compose(
        *("exec", "-T", "ca-signer", "ca-signer", "export"),
        *("--config", "/etc/estsuite/ca-signer.yaml", "--out", "-"),
    ).stdout
    assert not [serial for serial in ISSUED if serial not in ledger]
    assert "CN=web.clinic.example" in json.dumps(compose.operator("cert", "list"))
