"""Campaigns: renewals requested at a pace, progress by proof of use, revocation only after it."""

from __future__ import annotations

import asyncio
import datetime as dt
from collections.abc import AsyncIterator, Callable
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
import yaml

from ca_signer import metrics
from ca_signer.campaigns.gauges import CampaignGauges
from ca_signer.campaigns.job import CampaignJob
from ca_signer.campaigns.store import LIFETIME
from ca_signer.revocation.after_rotation import RevokeAfterRotation
from estcore import ids
from estcore.messages import topics
from estcore.messages.commands import CommandAnswered
from estcore.messages.enrollment import Principal
from estcore.messages.envelope import decode
from estcore.messages.events import RenewalRequested
from estcore.pki.profile import Priority
from estcore.policy.operators import CampaignPolicy
from estcore.runtime.bus import Bus
from estcore.runtime.consume import PullConsumer
from estcore.runtime.topology import declare
from estsuite_testing.e2e_stack import make_csr
from estsuite_testing.operators import TestOperator, operator, policy_with_operators
from estsuite_testing.platform import Platform
from estsuite_testing.rotation_events import publish_rotation
from estsuite_testing.signer_stack import PROFILES, SignerStack, signer_stack

pytestmark = [pytest.mark.integration, pytest.mark.asyncio(loop_scope="module")]
OWNERS = tuple(f"owner-{number}" for number in range(16))


def rule(name: str) -> dict[str, Any]:
    return {
        "name": name,
        "principal": {"secret": name},
        "owner": {"tenant": "test", "service": name},
        "labels": ["services"],
        "profiles": ["service-mtls"],
        "names": {"common_names": ["dev-*"]},
    }


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def signer(
    platform: Platform, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[SignerStack]:
    folder: Path = tmp_path_factory.mktemp("signer")
    policy = policy_with_operators(folder, *map(rule, OWNERS))
    profiles = yaml.safe_load(PROFILES.read_text())
    path = folder / "profiles.yaml"
    path.write_text(yaml.safe_dump(profiles))
    async with signer_stack(platform, folder, policy_file=policy, profiles_file=path) as stack:
        for name in OWNERS:
            await stack.secrets.create(name, lifetime=dt.timedelta(days=1), one_time=False)
        stop = asyncio.Event()
        job = RevokeAfterRotation(
            stack.bus, stack.database, stack.publisher, stack.decision_context
        )
        async with asyncio.TaskGroup() as group:
            group.create_task(job.run(stop))
            yield stack
            stop.set()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def boss(signer: SignerStack) -> TestOperator:
    return await operator(signer, "CN=boss")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def renewer(signer: SignerStack) -> TestOperator:
    return await operator(signer, "CN=renewer")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def renewal(platform: Platform) -> AsyncIterator[Bus]:
    bus = await Bus.connect(platform.bus("renewal"), "renewal", "test")
    yield bus
    await bus.close()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def requests(signer: SignerStack, platform: Platform, renewal: Bus) -> Requests:
    migrating = await platform.provisioner()
    await declare(migrating, (), topics.RENEWAL_CONSUMERS, replicas=1)
    await migrating.close()
    consumer = PullConsumer(renewal, topics.PKI_EVENTS, "renewal", credit=500, joined=True)
    await consumer.start()
    return Requests(consumer)


class Requests:
    """What renewal receives on its consumer about campaigns, each event once."""

    def __init__(self, consumer: PullConsumer) -> None:
        self._consumer = consumer
        self._events: dict[str, RenewalRequested] = {}

    async def of(self, campaign: str) -> list[RenewalRequested]:
        await self._consumer.maintain()
        for delivery in self._consumer.take(1000):
            if delivery.topic == topics.RENEWAL_REQUESTED_TOPIC:
                event = decode(RenewalRequested, delivery.payload())
                self._events[event.id] = event
            await delivery.ack()
        return [e for e in self._events.values() if e.campaign_id == campaign]

    async def until(self, campaign: str, count: int) -> list[RenewalRequested]:
        async with asyncio.timeout(15):
            while len(found := await self.of(campaign)) < count:
                await asyncio.sleep(0.05)
        return found


async def enroll(
    signer: SignerStack, owner: str, *, after: bytes | None = None, **changes: Any
) -> bytes:
    """Enroll a service of the owner, or renew the certificate ``after``; returns the DER."""
    name = f"dev-{ids.uuid7()}"
    principal = Principal(method="secret", name=owner)
    if after is not None:
        subject = await signer.value(
            "select subject from issuance where certificate_sha256 = $1", sha256(after).digest()
        )
        name = subject.removeprefix("CN=")
        principal = Principal(
            method="certificate",
            name=f"issuing/CN={name}",
            certificate=after,
            certificate_issuer="issuing",
        )
        changes["operation"] = "simplereenroll"
    message = signer.message(make_csr(name)[1], principal=principal, **changes)
    certificate = (await signer.ask(message)).certificate
    assert certificate is not None
    return certificate


async def fleet(signer: SignerStack, owner: str, count: int) -> list[bytes]:
    return list(await asyncio.gather(*(enroll(signer, owner) for _ in range(count))))


async def step(signer: SignerStack, times: int = 1) -> None:
    """What the job does, by two signers at once, and the outbox of one of them twice."""
    other = CampaignJob(signer.database, changed=lambda: None)
    for _ in range(times):
        # The next check of the members is due.
        await signer.value("update campaign set checked_at = checked_at - interval '1 minute'")
        await asyncio.gather(signer.operations.campaigns.step(), other.step())
        await signer.operations.outbox.flush()
        await signer.operations.outbox.flush()


def result_of(answer: CommandAnswered) -> dict[str, Any]:
    assert answer.result is not None, answer
    return dict(answer.result)


async def show(signer: SignerStack, by: TestOperator, campaign: str) -> dict[str, Any]:
    return result_of(await by.give(signer, "campaign-show", {"id": campaign}))


async def proposed(signer: SignerStack, by: TestOperator, **proposal: Any) -> dict[str, Any]:
    wanted = {"reason": "incident", "per_minute": 12_000, **proposal}
    answer = result_of(await by.give(signer, "campaign-propose", wanted))
    assert (answer["state"], answer["count"]) == ("selecting", None)
    await step(signer)
    return await show(signer, by, answer["id"])


async def confirm(signer: SignerStack, by: TestOperator, campaign: dict[str, Any]) -> None:
    arguments = {"id": campaign["id"], "count": campaign["count"]}
    answer = result_of(await by.give(signer, "campaign-confirm", arguments))
    assert answer["state"] == "running"


async def until(
    signer: SignerStack,
    by: TestOperator,
    campaign: str,
    reached: Callable[[dict[str, Any]], bool],
) -> dict[str, Any]:
    async with asyncio.timeout(30):
        while not reached(shown := await show(signer, by, campaign)):
            await asyncio.sleep(0.05)
            await step(signer)
    return shown


def counted(name: str, count: int) -> Callable[[dict[str, Any]], bool]:
    """Whether so many members have that step behind them."""
    return lambda campaign: campaign["progress"][name] == count


async def revocation(signer: SignerStack, der: bytes) -> tuple[str | None, str | None, int]:
    (row,) = await signer.rows(
        "select revocation_reason, revoked_by, revocation_seq from issuance "
        "where certificate_sha256 = $1",
        sha256(der).digest(),
    )
    return tuple(row)


async def test_a_campaign_requests_every_member_once_and_ends_when_all_are_proven(
    signer: SignerStack, boss: TestOperator, renewal: Bus, requests: Requests
) -> None:
    # 1. Members are fixed when they are selected; nothing is requested yet.
    certificates = await fleet(signer, "owner-0", 5)
    url = "https://ca.test/incidents/17"
    renew_by = dt.datetime.now(dt.UTC).replace(microsecond=0) + dt.timedelta(hours=2)
    campaign = await proposed(
        signer, boss, service="owner-0", explanation_url=url, renew_by=renew_by.isoformat()
    )
    assert (campaign["state"], campaign["count"]) == ("proposed", 5)
    assert campaign["owners"][0]["count"] == len(campaign["some"]) == 5
    await enroll(signer, "owner-0")
    await step(signer, times=2)
    assert (await show(signer, boss, campaign["id"]))["progress"]["requested"] == 0
    # 2. Confirmed with another number: refused. With the right one, twice: once.
    wrong = await boss.give(signer, "campaign-confirm", {"id": campaign["id"], "count": 6})
    assert (wrong.outcome, wrong.code) == ("refused", "campaign.count")
    await confirm(signer, boss, campaign)
    await confirm(signer, boss, campaign)
    # 3. Each is requested once, with reason, URL and the end of the window.
    await until(signer, boss, campaign["id"], counted("requested", 5))
    events = await requests.until(campaign["id"], 5)
    assert {e.fingerprint_sha256 for e in events} == {sha256(c).hexdigest() for c in certificates}
    assert {(e.reason, e.explanation_url, e.renew_by) for e in events} == {
        ("incident", url, renew_by)
    }
    # 4. Renewed counts by the ledger, proven by renewal's report, each delivered twice.
    for number, old in enumerate(certificates):
        new = await enroll(signer, "owner-0", after=old)
        shown = await until(signer, boss, campaign["id"], counted("renewed", number + 1))
        assert shown["progress"]["proven"] == number
        await publish_rotation(renewal, old, new, "activated")
        shown = await until(signer, boss, campaign["id"], counted("proven", number + 1))
        assert shown["state"] == "running" or number == 4
    shown = await until(signer, boss, campaign["id"], lambda c: c["state"] != "running")
    assert (shown["state"], shown["progress"]["revoked"], shown["progress"]["late"]) == (
        "done",
        0,
        0,
    )
    # 5. Each request and the end are on record once.
    await step(signer)
    asked = list(await signer.audited("campaign.requested"))
    of_campaign = [r for r in asked if r.correlation_id == campaign["id"]]
    assert len({r.target.serial for r in of_campaign}) == 5
    ends = [r for r in await signer.audited("campaign.done") if r.correlation_id == campaign["id"]]
    assert {(r.record_id, (r.details or {})["proven"]) for r in ends} == {(ends[0].record_id, 5)}


async def test_an_overlap_has_one_member_its_newest_certificate(
    signer: SignerStack, boss: TestOperator
) -> None:
    old = await enroll(signer, "owner-1")
    new = await enroll(signer, "owner-1", after=old)
    await enroll(signer, "owner-1")
    campaign = await proposed(signer, boss, service="owner-1")
    assert campaign["count"] == 2
    serials = {m["serial"] for m in campaign["some"]}
    shown = "select encode(serial_number, 'hex') from issuance where certificate_sha256 = $1"
    assert await signer.value(shown, sha256(new).digest()) in serials
    # By age: the old one matches, but its slot has a newer one that does not.
    moment = await signer.value(
        "select issued_at from issuance where certificate_sha256 = $1", sha256(new).digest()
    )
    by_age = await proposed(signer, boss, service="owner-1", issued_before=moment.isoformat())
    assert (by_age["state"], by_age["count"]) == ("done", 0)
    await boss.give(signer, "campaign-stop", {"id": campaign["id"]})


async def test_a_selector_that_matches_nothing_ends_at_once(
    signer: SignerStack, boss: TestOperator
) -> None:
    campaign = await proposed(signer, boss, service="nowhere")
    assert (campaign["state"], campaign["count"]) == ("done", 0)
    answer = await boss.give(signer, "campaign-confirm", {"id": campaign["id"], "count": 1})
    assert answer.code == "campaign.state"


async def test_a_member_that_needs_no_request_when_its_turn_comes_is_skipped(
    signer: SignerStack, boss: TestOperator, renewal: Bus, requests: Requests
) -> None:
    renewed, revoked, asked = await fleet(signer, "owner-2", 3)
    campaign = await proposed(signer, boss, service="owner-2")
    new = await enroll(signer, "owner-2", after=renewed)
    which = {"fingerprint": sha256(revoked).hexdigest(), "reason": "superseded"}
    await boss.give(signer, "certificate-revoke", which)
    await confirm(signer, boss, campaign)
    shown = await until(signer, boss, campaign["id"], counted("requested", 1))
    assert (shown["progress"]["skipped"], shown["progress"]["renewed"]) == (2, 1)
    (event,) = await requests.until(campaign["id"], 1)
    assert event.fingerprint_sha256 == sha256(asked).hexdigest()
    # The one that renewed by itself counts until it is proven.
    await publish_rotation(renewal, renewed, new, "activated")
    await until(signer, boss, campaign["id"], counted("proven", 1))
    await boss.give(signer, "campaign-stop", {"id": campaign["id"]})


async def test_replaced_certificates_are_revoked_only_after_proof_and_overlap(
    signer: SignerStack, boss: TestOperator, renewal: Bus
) -> None:
    revoker = await operator(signer, "CN=revoker")
    other = await operator(signer, "CN=boss")  # the same operator with another certificate
    old, untouched = await fleet(signer, "owner-3", 2)
    campaign = await proposed(signer, boss, service="owner-3", revoke="keyCompromise")
    arguments = {"id": campaign["id"], "count": 2}
    # Two operators, both with both roles.
    for by, code in ((boss, "campaign.dual"), (other, "campaign.dual"), (revoker, "command.role")):
        answer = await by.give(signer, "campaign-confirm", arguments)
        assert (answer.outcome, answer.code) == ("refused", code)
    second = await operator(signer, "CN=second")
    await confirm(signer, second, campaign)
    await until(signer, boss, campaign["id"], counted("requested", 2))
    new = await enroll(signer, "owner-3", after=old)
    await publish_rotation(renewal, old, new, "activated")
    await until(signer, boss, campaign["id"], counted("proven", 1))
    await step(signer, times=2)
    assert await revocation(signer, old) == (None, None, 0)
    # Paused: the end of the overlap is kept, nothing is revoked. Resumed: it is.
    await boss.give(signer, "campaign-pause", {"id": campaign["id"]})
    await publish_rotation(renewal, old, new, "deprecated")
    noted = "select count(*) from campaign_member where deprecated_at is not null and slot_id = $1"
    slot = await signer.value(
        "select slot_id from issuance where certificate_sha256 = $1", sha256(old).digest()
    )
    async with asyncio.timeout(10):
        while not await signer.value(noted, slot):
            await asyncio.sleep(0.05)
    await step(signer, times=2)
    assert await revocation(signer, old) == (None, None, 0)
    await boss.give(signer, "campaign-resume", {"id": campaign["id"]})
    shown = await until(signer, boss, campaign["id"], counted("revoked", 1))
    assert shown["state"] == "running"
    assert await revocation(signer, old) == ("keyCompromise", f"campaign:{campaign['id']}", 1)
    assert await revocation(signer, new) == (None, None, 0)
    assert await revocation(signer, untouched) == (None, None, 0)
    await step(signer)
    found = [
        r for r in await signer.audited("certificate.revoked")
        if r.correlation_id == campaign["id"]
    ]  # fmt: skip
    assert {(r.record_id, (r.details or {})["reason"]) for r in found} == {
        (found[0].record_id, "keyCompromise")
    }
    # Stopped: the other one is proven later and stays.
    await boss.give(signer, "campaign-stop", {"id": campaign["id"]})
    newer = await enroll(signer, "owner-3", after=untouched)
    await publish_rotation(renewal, untouched, newer, "deprecated")
    control = await enroll(signer, "owner-3")
    await publish_rotation(renewal, control, await enroll(signer, "owner-3", after=control))
    await step(signer, times=2)
    assert await revocation(signer, untouched) == (None, None, 0)


async def test_nothing_is_revoked_whose_successor_was_revoked(
    signer: SignerStack, boss: TestOperator, renewal: Bus
) -> None:
    old = await enroll(signer, "owner-4")
    campaign = await proposed(signer, boss, service="owner-4", revoke="superseded")
    await confirm(signer, await operator(signer, "CN=second"), campaign)
    new = await enroll(signer, "owner-4", after=old)
    await boss.give(signer, "campaign-pause", {"id": campaign["id"]})
    await publish_rotation(renewal, old, new, "deprecated")
    await until(signer, boss, campaign["id"], counted("proven", 1))
    which = {"fingerprint": sha256(new).hexdigest(), "reason": "keyCompromise"}
    await boss.give(signer, "certificate-revoke", which)
    await boss.give(signer, "campaign-resume", {"id": campaign["id"]})
    shown = await until(signer, boss, campaign["id"], counted("proven", 0))
    assert (shown["state"], shown["progress"]["revoked"]) == ("running", 0)
    assert await revocation(signer, old) == (None, None, 0)
    await boss.give(signer, "campaign-stop", {"id": campaign["id"]})


async def test_with_a_compromised_key_a_certificate_of_the_same_key_is_no_successor(
    signer: SignerStack, boss: TestOperator, renewal: Bus
) -> None:
    old = await enroll(signer, "owner-13")
    campaign = await proposed(signer, boss, service="owner-13", revoke="keyCompromise")
    await confirm(signer, await operator(signer, "CN=second"), campaign)
    await until(signer, boss, campaign["id"], counted("requested", 1))
    same = await enroll(signer, "owner-13", after=old)
    keep_key = (
        "update issuance set spki_sha256 = (select spki_sha256 from issuance "
        "where certificate_sha256 = $1) where certificate_sha256 = $2"
    )
    await signer.value(keep_key, sha256(old).digest(), sha256(same).digest())
    await publish_rotation(renewal, old, same, "activated")
    await publish_rotation(renewal, old, same, "deprecated")
    # Another key: that one counts, and the events before it have been read by then.
    new = await enroll(signer, "owner-13", after=same)
    shown = await until(signer, boss, campaign["id"], counted("renewed", 1))
    assert (shown["progress"]["proven"], shown["progress"]["revoked"]) == (0, 0)
    await publish_rotation(renewal, same, new, "activated")
    await until(signer, boss, campaign["id"], counted("proven", 1))
    assert await revocation(signer, old) == (None, None, 0)
    await publish_rotation(renewal, same, new, "deprecated")
    assert (await until(signer, boss, campaign["id"], counted("revoked", 1)))["state"] == "done"
    assert (await revocation(signer, old))[0] == "keyCompromise"


async def test_where_the_profile_revokes_too_the_campaigns_reason_counts(
    signer: SignerStack, boss: TestOperator, renewal: Bus
) -> None:
    context = signer.decision_context
    before = context.profiles
    plain = before.profiles["service-mtls"]
    rules = plain.renewal.model_copy(update={"revoke_replaced": True})
    changed = {**before.profiles, "service-mtls": plain.model_copy(update={"renewal": rules})}
    old = await enroll(signer, "owner-5")
    campaign = await proposed(signer, boss, service="owner-5", revoke="affiliationChanged")
    await confirm(signer, await operator(signer, "CN=second"), campaign)
    new = await enroll(signer, "owner-5", after=old)
    context.profiles = before.model_copy(update={"profiles": changed})
    try:
        await publish_rotation(renewal, old, new, "deprecated")
        shown = await until(signer, boss, campaign["id"], lambda c: c["state"] == "done")
    finally:
        context.profiles = before
    assert shown["progress"]["revoked"] == 1
    reason, _, times = await revocation(signer, old)
    assert (reason, times) == ("affiliationChanged", 1)


async def test_the_pace_and_the_priorities_are_kept(
    signer: SignerStack, boss: TestOperator, requests: Requests
) -> None:
    await fleet(signer, "owner-6", 3)
    urgent = await enroll(signer, "owner-6")
    await signer.value(
        "update issuance set context = jsonb_set(context::jsonb, '{priority}', $2)::text "
        "where certificate_sha256 = $1",
        sha256(urgent).digest(),
        f'"{Priority.CRITICAL}"',
    )
    campaign = await proposed(signer, boss, service="owner-6", per_minute=60)
    assert campaign["requests_end_at"] is not None
    await confirm(signer, boss, campaign)
    started = asyncio.get_running_loop().time()
    (first,) = await _first(signer, boss, campaign["id"], requests)
    assert asyncio.get_running_loop().time() - started > 0.8
    assert first.fingerprint_sha256 == sha256(urgent).hexdigest()
    paused = await boss.give(signer, "campaign-pause", {"id": campaign["id"]})
    assert result_of(paused)["paused_by"] == "boss"
    asked = len(await requests.of(campaign["id"]))
    await signer.value("update campaign set paced_at = now() - interval '1 hour'")
    await step(signer, times=2)
    assert len(await requests.of(campaign["id"])) == asked
    # The hour of the pause is not made up for: nothing is due at once.
    await boss.give(signer, "campaign-resume", {"id": campaign["id"]})
    await signer.operations.campaigns.step()
    assert (await show(signer, boss, campaign["id"]))["progress"]["requested"] == asked
    await boss.give(signer, "campaign-stop", {"id": campaign["id"]})


async def _first(
    signer: SignerStack, by: TestOperator, campaign: str, requests: Requests
) -> list[RenewalRequested]:
    async with asyncio.timeout(15):
        while not (found := await requests.of(campaign)):
            await asyncio.sleep(0.05)
            await step(signer)
    return found


async def test_requests_wait_while_their_events_cannot_be_published(
    signer: SignerStack, boss: TestOperator
) -> None:
    """Otherwise all that collected is published at once when the bus returns."""
    await fleet(signer, "owner-7", 3)
    campaign = await proposed(signer, boss, service="owner-7", per_minute=60)
    await confirm(signer, boss, campaign)
    # A request that the outbox cannot publish: it is of no certificate.
    await signer.value(
        "insert into campaign_member (campaign_id, issuance_id, slot_id, rank, not_after, "
        "requested_at) values ($1, $2, $2, 0, now() + interval '1 day', now() - interval '1 minute')",
        campaign["id"],
        ids.uuid7(),
    )
    await signer.value(
        "update campaign set paced_at = now() - interval '1 minute' where campaign_id = $1",
        campaign["id"],
    )
    await signer.operations.campaigns.step()
    asked = "select count(requested_at) from campaign_member where campaign_id = $1"
    assert await signer.value(asked, campaign["id"]) == 1
    await signer.value(
        "update campaign_member set announced_at = now() where campaign_id = $1 and rank = 0",
        campaign["id"],
    )
    await signer.value(
        "update campaign set paced_at = now() - interval '2 seconds' where campaign_id = $1",
        campaign["id"],
    )
    await signer.operations.campaigns.step()
    assert await signer.value(asked, campaign["id"]) > 1
    await boss.give(signer, "campaign-stop", {"id": campaign["id"]})


@pytest.mark.parametrize("verb", ["campaign-stop", "campaign-pause"])
async def test_a_request_is_not_published_once_its_campaign_does_not_run(
    signer: SignerStack, boss: TestOperator, verb: str
) -> None:
    await enroll(signer, "owner-14")
    campaign = await proposed(signer, boss, service="owner-14", per_minute=1)
    await confirm(signer, boss, campaign)
    await boss.give(signer, verb, {"id": campaign["id"]})
    await signer.value(
        "update campaign_member set requested_at = now() where campaign_id = $1", campaign["id"]
    )
    await step(signer)
    shown = await show(signer, boss, campaign["id"])
    assert (shown["progress"]["members"] > 0, shown["progress"]["requested"]) == (True, 0)
    await boss.give(signer, "campaign-stop", {"id": campaign["id"]})


async def test_it_starts_at_its_time(signer: SignerStack, boss: TestOperator) -> None:
    await enroll(signer, "owner-8")
    later = dt.datetime.now(dt.UTC) + dt.timedelta(hours=1)
    campaign = await proposed(signer, boss, service="owner-8", starts_at=later.isoformat())
    await confirm(signer, boss, campaign)
    await step(signer, times=2)
    shown = await show(signer, boss, campaign["id"])
    assert (shown["state"], shown["progress"]["requested"]) == ("running", 0)
    assert shown["requests_end_at"] >= later.isoformat()[:19]
    await boss.give(signer, "campaign-stop", {"id": campaign["id"]})


async def test_late_members_are_counted_and_an_expired_one_is_finished(
    signer: SignerStack, boss: TestOperator
) -> None:
    first, second = await fleet(signer, "owner-9", 2)
    soon = dt.datetime.now(dt.UTC) + dt.timedelta(hours=1)
    campaign = await proposed(signer, boss, service="owner-9", renew_by=soon.isoformat())
    await confirm(signer, boss, campaign)
    await until(signer, boss, campaign["id"], counted("requested", 2))
    await signer.value(
        "update campaign set renew_by = now() - interval '1 second' where campaign_id = $1",
        campaign["id"],
    )
    gauges = CampaignGauges(signer.database, every_s=60)
    await gauges.count()
    assert (await show(signer, boss, campaign["id"]))["progress"]["late"] == 2
    assert metrics.CAMPAIGN_MEMBERS.labels("late")._value.get() == 2
    assert metrics.CAMPAIGNS.labels("running")._value.get() >= 1
    expire = "update campaign_member set not_after = now() where issuance_id = any($1::uuid[])"
    name = "select issuance_id from issuance where certificate_sha256 = $1"
    await signer.value(expire, [await signer.value(name, sha256(first).digest())])
    await step(signer)
    shown = await show(signer, boss, campaign["id"])
    assert (shown["state"], shown["progress"]["late"]) == ("running", 1)
    # The other one is revoked by an operator: it is finished as well.
    which = {"fingerprint": sha256(second).hexdigest(), "reason": "superseded"}
    await boss.give(signer, "certificate-hold", {"fingerprint": which["fingerprint"]})
    await step(signer)
    assert (await show(signer, boss, campaign["id"]))["state"] == "running"
    await boss.give(signer, "certificate-revoke", which)
    await until(signer, boss, campaign["id"], lambda c: c["state"] == "done")
    await gauges.count()
    assert metrics.CAMPAIGN_MEMBERS.labels("late")._value.get() == 0


async def test_an_unconfirmed_proposal_expires(signer: SignerStack, boss: TestOperator) -> None:
    await enroll(signer, "owner-10")
    campaign = await proposed(signer, boss, service="owner-10")
    await signer.rows(
        "update campaign set proposed_at = proposed_at - $2::interval where campaign_id = $1",
        campaign["id"],
        LIFETIME,
    )
    late = await boss.give(signer, "campaign-confirm", {"id": campaign["id"], "count": 1})
    assert late.code == "campaign.state"
    await step(signer)
    assert (await show(signer, boss, campaign["id"]))["state"] == "expired"


async def test_the_policy_may_want_two_operators_for_every_campaign(
    signer: SignerStack, boss: TestOperator
) -> None:
    await enroll(signer, "owner-11")
    campaign = await proposed(signer, boss, service="owner-11")
    context = signer.decision_context
    before = context.policy
    context.policy = before.model_copy(update={"campaigns": CampaignPolicy(two_operators="always")})
    try:
        arguments = {"id": campaign["id"], "count": 1}
        refused = await boss.give(signer, "campaign-confirm", arguments)
        assert refused.code == "campaign.dual"
        await confirm(signer, await operator(signer, "CN=renewer"), campaign)
    finally:
        context.policy = before
    await boss.give(signer, "campaign-stop", {"id": campaign["id"]})


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"service": None}, "command.arguments"),
        ({"reason": "lifetime"}, "command.arguments"),
        ({"reason": None}, "command.arguments"),
        ({"per_minute": 0}, "command.arguments"),
        ({"explanation_url": "javascript:alert(1)"}, "command.arguments"),
        ({"explanation_url": "https://ca.test/a b"}, "command.arguments"),
        ({"revoke": "cACompromise"}, "command.arguments"),
        ({"renew_by": "2020-01-01T00:00:00Z"}, "campaign.window"),
        (
            {"starts_at": "2100-01-02T00:00:00Z", "renew_by": "2100-01-01T00:00:00Z"},
            "campaign.window",
        ),
    ],
)
async def test_a_proposal_that_makes_no_sense_is_refused(
    signer: SignerStack, boss: TestOperator, changes: dict[str, Any], code: str
) -> None:
    wanted = {"service": "owner-0", "reason": "operator"} | changes
    given = {name: value for name, value in wanted.items() if value is not None}
    answer = await boss.give(signer, "campaign-propose", given)
    assert (answer.outcome, answer.code) == ("refused", code)


async def test_only_renewers_have_a_say_and_only_revokers_may_have_them_revoked(
    signer: SignerStack, renewer: TestOperator
) -> None:
    wanted = {"service": "owner-12", "reason": "operator"}
    for subject in ("CN=revoker", "CN=auditor"):
        by = await operator(signer, subject)
        assert (await by.give(signer, "campaign-propose", wanted)).code == "command.role"
    refused = await renewer.give(signer, "campaign-propose", {**wanted, "revoke": "superseded"})
    assert refused.code == "command.role"
    assert (await renewer.give(signer, "campaign-propose", wanted)).outcome == "done"
    auditor = await operator(signer, "CN=auditor")
    listed = result_of(await auditor.give(signer, "campaign-list"))
    assert listed["campaigns"][0]["proposed_by"] == "renewer"
    unknown = await auditor.give(signer, "campaign-show", {"id": ids.uuid7()})
    assert unknown.code == "command.unknown"
