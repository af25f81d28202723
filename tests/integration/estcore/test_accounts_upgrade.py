"""An installation from before the accounts keeps its streams: one folder is renamed."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest
from typing_extensions import override

from estcore.messages import permissions, topics
from estcore.messages.permissions import STREAMS_ACCOUNT, Permissions
from estcore.runtime.bus import Bus, Outgoing
from estcore.runtime.consume import PullConsumer
from estcore.runtime.settings import BusSettings
from estcore.runtime.topology import declare
from estdev import nats
from estdev.nats import EmbeddedNATS
from estdev.ports import free_port

pytestmark = [pytest.mark.integration]

USERS = {
    "migrate": permissions.provisioner(),
    "est-frontend": permissions.frontend("default"),
    "ca-signer": permissions.signer(),
    "administrator": Permissions(account=STREAMS_ACCOUNT, publish=(">",), subscribe=(">",)),
}
TOPIC = "est.request.default.issuing.normal"


class NATSBefore(EmbeddedNATS):
    """A server with every user in one account, as before."""

    @override
    def _write_config(self) -> None:
        super()._write_config()
        config = json.loads(self.config_file.read_text())
        accounts = config.pop("accounts")
        users = [user for account in accounts.values() for user in account["users"]]
        config["authorization"] = {"users": users}
        self.config_file.write_text(json.dumps(config))


async def bus(server: EmbeddedNATS, user: str) -> Bus:
    seed_file = server.seed_file(user)
    settings = BusSettings(
        url=server.url, nkey_seed_file=seed_file, senders_file=server.senders_file
    )
    seed = seed_file.read_text().strip() if user in {"migrate", "administrator"} else None
    return await Bus.connect(settings, user, "test", seed=seed)


async def use(server: EmbeddedNATS, first: int, taken: list[bytes]) -> dict[str, int]:
    """Declare, publish ten requests, acknowledge five; return what the streams hold."""
    migrate = await bus(server, "migrate")
    await declare(migrate, topics.STREAMS, topics.signer_consumers("issuing"), replicas=1)
    front, signer = await bus(server, "est-frontend"), await bus(server, "ca-signer")
    administrator = await bus(server, "administrator")
    try:
        numbers = range(first, first + 10)
        await front.publish_confirmed([Outgoing(TOPIC, b"%d" % n, f"n-{n}") for n in numbers])
        await signer.publish_confirmed([Outgoing("pki.state.secrets.00", b"%d" % first)])
        consumer = PullConsumer(signer, topics.EST_REQUESTS, "signer-issuing-normal", credit=5)
        await consumer.start()
        async with asyncio.timeout(15):
            found: list[bytes] = []
            while len(found) < 5:
                await consumer.wait(0.5)
                for delivery in consumer.take(5 - len(found)):
                    found.append(delivery.data)
                    await delivery.ack()
        taken += found
        await signer.client.flush()
        await asyncio.sleep(0.3)
        info = await administrator.client.jetstream().streams_info()
        return {str(s.config.name): s.state.messages for s in info}
    finally:
        for one in (migrate, front, signer, administrator):
            await one.close()


async def test_streams_and_consumers_go_on_in_their_account(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    port, taken = free_port(), list[bytes]()
    before = NATSBefore(tmp_path, port, USERS)
    await before.start()
    held = await use(before, 0, taken)
    await before.stop()
    assert held["EST_REQUESTS"] == 5
    after = EmbeddedNATS(tmp_path, port, USERS)
    await after.start()
    try:
        held = await use(after, 10, taken)
    finally:
        await after.stop()
    assert held["EST_REQUESTS"] == 10
    assert held["PKI_STATE"] == 1
    assert taken == [b"%d" % n for n in range(10)]
    # And back, as the runbook says.
    streams = after.store / "jetstream" / STREAMS_ACCOUNT
    streams.rename(streams.with_name("$G"))
    monkeypatch.setattr(nats, "move_streams", lambda _: None)
    await before.start()
    try:
        held = await use(before, 20, taken)
    finally:
        await before.stop()
    assert held["EST_REQUESTS"] == 15
    assert taken == [b"%d" % n for n in range(15)]


def test_a_folder_that_is_there_is_not_replaced(tmp_path: Path) -> None:
    for account in ("$G", STREAMS_ACCOUNT):
        (tmp_path / "jetstream" / account / "streams" / account).mkdir(parents=True)
    nats.move_streams(tmp_path)
    assert (tmp_path / "jetstream" / "$G" / "streams").is_dir()
    assert (tmp_path / "jetstream" / STREAMS_ACCOUNT / "streams" / STREAMS_ACCOUNT).is_dir()
