"""The signer's state at a front end whose disk does not answer: it is used, and kept later."""

from __future__ import annotations

import asyncio
import datetime as dt
import os
from pathlib import Path

import pytest

from est_frontend.auth.client_certificates import PeerValidator
from est_frontend.signer_state.cache import SignerState
from estcore.clock import SystemClock
from estcore.messages import topics
from estcore.messages.envelope import encode
from estcore.messages.state import SECRET_SHARDS, SecretShard
from estcore.runtime.bus import Outgoing
from estsuite_testing.nats_accounts import running_accounts

pytestmark = pytest.mark.integration


async def test_what_arrives_is_used_while_the_disk_hangs(tmp_path: Path) -> None:
    folder = tmp_path / "state"
    folder.mkdir()
    async with running_accounts(tmp_path / "nats") as world:
        signer, front = await world.bus("ca-signer"), await world.bus("est-frontend")
        clock = SystemClock()
        state = SignerState(folder, PeerValidator(clock).set_anchors, clock)

        async def publish(*shards: str) -> None:
            now = dt.datetime.now(dt.UTC)
            messages = [SecretShard(shard=shard, updated_at=now) for shard in shards]
            await signer.publish_confirmed(
                [Outgoing(topics.secrets_topic(m.shard), encode(m)) for m in messages]
            )

        # Opened for writing, a pipe that has no reader blocks the thread that writes.
        hanging = topics.secrets_topic(SECRET_SHARDS[0])
        os.mkfifo(folder / f".{hanging}")
        following: asyncio.Task[None] | None = None
        try:
            await publish(SECRET_SHARDS[0])
            following = asyncio.create_task(state.follow(front))
            async with asyncio.timeout(20):
                await asyncio.shield(following)
                await publish(*SECRET_SHARDS[1:])
                while not state.has_secrets:
                    await asyncio.sleep(0.02)
            assert not (folder / topics.secrets_topic(SECRET_SHARDS[1])).exists()
        finally:
            reader = os.open(folder / f".{hanging}", os.O_RDONLY | os.O_NONBLOCK)
        try:
            async with asyncio.timeout(20):
                # All but the first: what was written into a pipe is no file.
                while len(list(folder.glob("pki.state.secrets.*"))) < len(SECRET_SHARDS) - 1:
                    await asyncio.sleep(0.02)
        finally:
            os.close(reader)
            if following is not None:
                following.cancel()
