"""Notices of PostgreSQL: signers look at generations and campaigns when these changed."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import pytest_asyncio
from typing_extensions import override

from ca_signer import connections
from ca_signer.revocation.bulk import BulkRevocationJob
from estcore.runtime.notices import LOOK_EVERY_S, Notice, Notices
from estsuite_testing.operators import operator, policy_with_operators
from estsuite_testing.platform import Platform
from estsuite_testing.signer_stack import SignerStack, signer_stack

pytestmark = [pytest.mark.integration, pytest.mark.asyncio(loop_scope="module")]
TABLES = ("bulk_revocation", "campaign", "generation", "rollover")
# A job that was not notified would look later than this.
NOTICED_S = LOOK_EVERY_S - 5


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def signer(
    platform: Platform, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[SignerStack]:
    folder: Path = tmp_path_factory.mktemp("signer")
    async with signer_stack(
        platform, folder, policy_file=policy_with_operators(folder), running=False
    ) as stack:
        yield stack


@asynccontextmanager
async def listening(platform: Platform, *tables: str) -> AsyncIterator[dict[str, Notice]]:
    """The notices of some tables, once a connection listens."""
    notices = Notices(platform.database("ca-signer"), "test", connections.SCHEMA)
    found = {table: notices.of(table) for table in tables}
    stop = asyncio.Event()
    task = asyncio.ensure_future(notices.run(stop))
    try:
        await until_listening(found)
        yield found
    finally:
        stop.set()
        await task
    assert not any(notice.listening for notice in found.values())


async def until_listening(notices: dict[str, Notice]) -> None:
    """Wait until a connection listens; the notice about that is taken."""
    async with asyncio.timeout(30):
        for notice in notices.values():
            while not notice.listening:
                await notice.wait(asyncio.Event(), again_s=0.05)
            await taken(notice)


async def taken(notice: Notice) -> None:
    """Forget what was noticed so far."""
    stopped = asyncio.Event()
    stopped.set()
    assert await notice.wait(stopped) is True


async def noticed(notice: Notice) -> None:
    async with asyncio.timeout(NOTICED_S):
        assert await notice.wait(asyncio.Event()) is False


@pytest.mark.parametrize("table", TABLES)
async def test_a_change_of_a_table_is_noticed(
    signer: SignerStack, platform: Platform, table: str
) -> None:
    async with listening(platform, table) as notices:
        await signer.value(f"update {table} set state = state")
        await noticed(notices[table])


async def test_the_pace_of_a_campaign_is_no_news(signer: SignerStack, platform: Platform) -> None:
    async with listening(platform, "campaign", "bulk_revocation") as notices:
        campaign = asyncio.ensure_future(notices["campaign"].wait(asyncio.Event()))
        await signer.value("update campaign set paced_at = paced_at, checked_at = checked_at")
        await signer.value("update bulk_revocation set state = state")
        await noticed(notices["bulk_revocation"])
        assert not campaign.done()
        campaign.cancel()


async def test_jobs_look_when_the_connection_is_lost_and_notice_again_after_it(
    signer: SignerStack, platform: Platform
) -> None:
    async with listening(platform, "campaign") as notices:
        connection = await platform.postgres.superuser()
        try:
            assert await connection.fetchval(
                "select count(pg_terminate_backend(pid)) from pg_stat_activity "
                "where application_name = 'test-notices' and datname = current_database()"
            )
        finally:
            await connection.close()
        await noticed(notices["campaign"])
        await until_listening(notices)
        await signer.value("update campaign set state = state")
        await noticed(notices["campaign"])


class Watched(BulkRevocationJob):
    """The job, which says how often it looked."""

    looks = 0

    @override
    async def step(self) -> bool:
        try:
            return await super().step()
        finally:
            self.looks += 1


async def test_a_proposal_made_at_one_signer_is_worked_on_by_another_at_once(
    signer: SignerStack, platform: Platform
) -> None:
    boss = await operator(signer, "CN=boss")
    async with listening(platform, "bulk_revocation") as notices:
        stop = asyncio.Event()
        job = Watched(signer.database, changed=lambda: None, notice=notices["bulk_revocation"])
        running = asyncio.ensure_future(job.run(stop))
        async with asyncio.timeout(30):
            while job.looks == 0:
                await asyncio.sleep(0.05)
        arguments = {"reason": "superseded", "per_minute": 60, "service": "unknown"}
        answer = await boss.give(signer, "bulk-revocation-propose", arguments)
        assert answer.result, answer
        async with asyncio.timeout(NOTICED_S):
            while await signer.value("select true from bulk_revocation where state = 'selecting'"):
                await asyncio.sleep(0.05)
        stop.set()
        await running


async def test_a_notice_before_the_look_is_not_lost_and_several_are_one() -> None:
    notice, stop = Notice(), asyncio.Event()
    notice.listening = True
    notice.set()
    notice.set()
    await noticed(notice)
    waiting = asyncio.ensure_future(notice.wait(stop))
    await asyncio.sleep(0)
    assert not waiting.done()
    stop.set()
    assert await waiting is True


async def test_one_table_has_one_notice(platform: Platform) -> None:
    notices = Notices(platform.database("ca-signer"), "test", connections.SCHEMA)
    notices.of("campaign")
    with pytest.raises(ValueError, match="campaign"):
        notices.of("rollover", "campaign")
