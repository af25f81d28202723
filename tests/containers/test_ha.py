"""``deploy/compose/ha.yml``: any one container of each kind is killed, and no enrollment is lost."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator

import pytest

from estsuite_testing.cluster.load import Load
from estsuite_testing.compose import CLOSING_S, Compose, cloned, enrolled

PER_SECOND = 3
BEFORE_S, AFTER_S = 5, 12
pytestmark = pytest.mark.timeout(900)


@pytest.fixture(scope="module")
def compose(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Compose]:
    with cloned(tmp_path_factory.mktemp("clone"), "ha") as compose:
        compose.up()
        assert enrolled(compose.client(compose.make_secret())) == 200
        yield compose


def test_streams_have_three_replicas(compose: Compose) -> None:
    program = (
        "import json, urllib.request as r; "
        "print(r.urlopen('http://127.0.0.1:8222/jsz?accounts=1&streams=1&config=1').read().decode())"
    )
    found = json.loads(compose("exec", "-T", "nats", "python3", "-c", program).stdout)
    streams = [s for a in found["account_details"] for s in a.get("stream_detail", [])]
    assert streams
    for stream in streams:
        assert stream["config"]["num_replicas"] == 3, stream["name"]
        assert len(stream["cluster"]["replicas"]) == 2, stream["name"]


@pytest.mark.parametrize(
    "name", ["est-frontend", "ca-signer", "renewal", "audit", "nats", "nats-2"]
)
def test_a_container_is_killed_while_clients_enroll(compose: Compose, name: str) -> None:
    async def run() -> Load:
        async with Load(compose.client(compose.secret), per_second=PER_SECOND) as load:
            await asyncio.sleep(BEFORE_S)
            await asyncio.to_thread(compose, "kill", name)
            await asyncio.sleep(AFTER_S)
        await asyncio.sleep(CLOSING_S)
        return load

    try:
        load = asyncio.run(run())
    finally:
        compose("start", name)
    print(f"\n{name} killed: {load.report()}")
    assert len(load.serials) == load.begun >= PER_SECOND * (BEFORE_S + AFTER_S) // 2
    assert len({*load.serials}) == load.begun
    compose.until(lambda: _healthy(compose, name))
    ISSUED.update(load.serials)


ISSUED: set[int] = set()
"""What clients have."""


def test_every_certificate_is_in_the_ledger_and_in_the_log(compose: Compose) -> None:
    assert ISSUED

    def missing() -> set[str]:
        exported = compose(
            *("exec", "-T", "audit", "est-audit", "export", "--sealed"),
            *("--config", "/etc/estsuite/audit.yaml", "--out", "-"),
        ).stdout
        return {f"{serial:x}" for serial in ISSUED if f"{serial:x}" not in exported}

    compose.until(lambda: not missing(), seconds=60)
    ledger = compose(
        *("exec", "-T", "ca-signer", "ca-signer", "export"),
        *("--config", "/etc/estsuite/ca-signer.yaml", "--out", "-"),
    ).stdout
    assert not [serial for serial in ISSUED if f"{serial:x}" not in ledger]


def _healthy(compose: Compose, name: str) -> bool:
    printed = compose("ps", "--format", "json", name).stdout
    return [json.loads(line)["Health"] for line in printed.splitlines()] == ["healthy"]
