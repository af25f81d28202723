"""Sinks over HTTPS and NATS: nothing lost, poison found, other records and sinks untouched."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any, cast

import pytest

from audit import sink_commands
from audit.sink_settings import (
    ElasticsearchSink,
    NATSSink,
    OTLPSink,
    SinkSettings,
    SplunkSink,
    WebhookSink,
)
from audit.transports.webhook import signature
from estcore.errors import Conflict, Unavailable
from estcore.messages.audit import AuditRecord
from estcore.messages.commands import CommandAnswered
from estcore.messages.permissions import Permissions
from estcore.runtime.settings import BusSettings
from estdev.nats import EmbeddedNATS
from estdev.ports import free_port
from estsuite_testing.audit_stack import AuditWorld, answering
from estsuite_testing.grpc_collector import GRPCCollector
from estsuite_testing.http_receiver import TOKEN, HTTPReceiver
from estsuite_testing.operators import TestOperator, operator, policy_with_operators
from estsuite_testing.platform import Platform
from estsuite_testing.siem import SIEM
from estsuite_testing.signer_stack import signer_stack

pytestmark = pytest.mark.integration
Build = Callable[..., AuditRecord]
KINDS = ["splunk", "splunk-ack", "elasticsearch", "otlp", "webhook"]


@pytest.fixture
async def receiver(tmp_path: Path) -> AsyncIterator[HTTPReceiver]:
    found = HTTPReceiver(SIEM(tmp_path))
    await found.start()
    yield found
    await found.stop()


@pytest.fixture
def token(tmp_path: Path) -> Path:
    file = tmp_path / "token"
    file.write_text(TOKEN)
    file.chmod(0o600)
    return file


def sink_of(kind: str, receiver: HTTPReceiver, token: Path, **changes: Any) -> SinkSettings:
    common: dict[str, Any] = {
        "name": kind,
        "ca_file": receiver.certificates.ca_file,
        "batch": 16,
        "timeout_s": 5,
        "backoff_max_s": 0.2,
        **changes,
    }
    match kind:
        case "splunk" | "splunk-ack":
            return SplunkSink(
                kind="splunk",
                url=receiver.url(),
                token_file=token,
                acknowledge=kind == "splunk-ack",
                acknowledge_timeout_s=1,
                **common,
            )
        case "elasticsearch":
            return ElasticsearchSink(
                kind="elasticsearch", url=receiver.url(), api_key_file=token, **common
            )
        case "otlp":
            return OTLPSink(kind="otlp", url=receiver.url("/v1/logs"), token_file=token, **common)
        case _:
            return WebhookSink(
                kind="webhook",
                url=receiver.url("/hook"),
                token_file=token,
                hmac_key_file=token,
                **common,
            )


async def until(check: Callable[[], bool], what: Callable[[], object] = str) -> None:
    try:
        async with asyncio.timeout(20):
            while not check():
                await asyncio.sleep(0.02)
    except TimeoutError:
        raise AssertionError(what()) from None


def first_seen(receiver: HTTPReceiver) -> list[str]:
    """Record ids in the order in which each came first, checkpoints left out."""
    found = list(dict.fromkeys(receiver.order))
    return [key for key in found if not key.startswith("checkpoint-")]


@pytest.mark.parametrize("kind", KINDS)
async def test_everything_arrives_in_order_through_faults_of_the_receiver(
    world: AuditWorld, record: Build, receiver: HTTPReceiver, token: Path, kind: str
) -> None:
    receiver.faults = [503, 0, 429, 401, 500]
    receiver.unacknowledged = 1 if kind == "splunk-ack" else 0
    sent = [record(n) for n in range(60)]
    sinks = (sink_of(kind, receiver, token),)
    async with world.service(sinks=sinks), world.publisher() as publisher:
        await publisher.send(*sent)
        wanted = [r.record_id for r in sent]
        await until(lambda: set(wanted) <= set(receiver.order), lambda: receiver.order)
        own = first_seen(receiver)
        assert [key for key in own if key in set(wanted)] == wanted
        await until(lambda: any(key.startswith("checkpoint-") for key in receiver.order))
        assert await world.value("select count(*) from sink_dead_letter") == 0
    headers = [h for h, _ in receiver.requests]
    assert all(TOKEN in h.get("Authorization", "") for h in headers)


@pytest.mark.logs_errors("record not delivered whole")
@pytest.mark.parametrize("kind", KINDS)
async def test_a_record_that_is_refused_for_good_is_a_dead_letter_and_alone(
    world: AuditWorld, record: Build, receiver: HTTPReceiver, token: Path, kind: str
) -> None:
    sent = [record(n) for n in range(40)]
    poison = {sent[7].record_id, sent[8].record_id, sent[33].record_id}
    receiver.refused = set(poison)
    receiver.busy = {sent[20].record_id}
    sinks = (sink_of(kind, receiver, token),)
    async with world.service(sinks=sinks), world.publisher() as publisher:
        await publisher.send(*sent)
        wanted = [r.record_id for r in sent if r.record_id not in poison]
        await until(lambda: set(wanted) <= set(receiver.order), lambda: receiver.order)
        # Elasticsearch takes the others of a bulk request when one item has to come later.
        later = {sent[20].record_id} if kind == "elasticsearch" else set()
        ordered = [key for key in wanted if key not in later]
        assert [key for key in first_seen(receiver) if key in set(ordered)] == ordered
        await world.wait("select count(*) from sink_dead_letter", 3)
        reason = await world.value("select reason from sink_dead_letter limit 1")
        assert reason.startswith("refused by the receiver")


@pytest.mark.logs_errors("record not delivered whole")
async def test_operators_see_test_and_repair_a_sink(
    world: AuditWorld,
    record: Build,
    receiver: HTTPReceiver,
    token: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    sent = [record(n) for n in range(20)]
    receiver.refused = {sent[3].record_id, sent[4].record_id}
    sinks = (sink_of("elasticsearch", receiver, token),)
    settings = world.settings(sinks=sinks)
    async with world.service(sinks=sinks), world.publisher() as publisher:
        await publisher.send(*sent)
        await world.wait("select count(*) from sink_dead_letter", 2)
        await world.wait("select next_index >= 21 from sink_cursor", True)
        await sink_commands.status(settings, as_json=True)
        (row,) = json.loads(capsys.readouterr().out)
        assert (row["sink"], row["dead_letters"]) == ("elasticsearch", 2)
        await sink_commands.test(settings, name="elasticsearch", send=True)
        assert "took the entry" in capsys.readouterr().out
        shown = [d["event"]["action"] for d in receiver.documents.values()]
        assert "audit.sink_test" in shown

        receiver.refused.discard(sent[3].record_id)
        await sink_commands.dead_letters(settings, name="elasticsearch", deliver=True)
        assert "1 of 2 delivered" in capsys.readouterr().out
        assert sent[3].record_id in receiver.documents
        await sink_commands.dead_letters(settings, name="elasticsearch", deliver=False)
        assert "failed to parse" in capsys.readouterr().out
        for action in ("audit.sink_test", "audit.dead_letters_delivered"):
            await world.wait(f"select count(*) from record where action = '{action}'", 1)
        await receiver.stop()
        with pytest.raises(Unavailable, match="elasticsearch: "):
            await sink_commands.test(settings, name="elasticsearch", send=True)
        with pytest.raises(Conflict, match="no sink"):
            await sink_commands.test(settings, name="none", send=False)


@pytest.mark.logs_errors("record not delivered whole")
async def test_operators_look_after_sinks_over_the_bus(
    platform: Platform,
    world: AuditWorld,
    record: Build,
    receiver: HTTPReceiver,
    token: Path,
    tmp_path: Path,
) -> None:
    sent = [record(n) for n in range(20)]
    receiver.refused = {sent[3].record_id, sent[4].record_id}
    sinks = (sink_of("elasticsearch", receiver, token),)
    policy = policy_with_operators(tmp_path)
    async with (
        world.service(sinks=sinks),
        world.publisher() as publisher,
        signer_stack(platform, tmp_path, policy_file=policy) as signer,
        answering(world, signer.operations.audit_listener.run, sinks=sinks) as asked,
    ):
        auditor = await operator(signer, "CN=auditor")
        siem = await operator(signer, "CN=siem")
        await publisher.send(*sent)
        await world.wait("select count(*) from sink_dead_letter", 2)
        await world.wait("select next_index >= 21 from sink_cursor", True)

        async def ask(who: TestOperator, verb: str, **arguments: Any) -> CommandAnswered:
            command = who.command(verb, arguments, service="audit")
            answer: CommandAnswered = await asked(who.sign(command), verb)
            return answer

        async def result(verb: str, **arguments: Any) -> dict[str, Any]:
            answer = await ask(siem, verb, sink="elasticsearch", **arguments)
            assert answer.outcome == "done", answer
            assert answer.result is not None
            return answer.result

        for who in (auditor, siem):
            answer = await ask(who, "sink-status")
            assert answer.result is not None
            (row,) = cast("list[dict[str, Any]]", answer.result["sinks"])
            assert (row["sink"], row["dead_letters"]) == ("elasticsearch", 2)
        assert (await result("sink-test"))["answer"] == "reached"
        assert (await result("sink-test", send=True))["answer"] == "took the entry"
        listed = await result("sink-dead-letters")
        assert [("failed to parse" in r["reason"]) for r in listed["records"]] == [True, True]
        assert (await result("sink-dead-letters", after=listed["after"]))["records"] == []

        receiver.refused.discard(sent[3].record_id)
        delivered = await result("sink-deliver")
        assert (delivered["delivered"], len(delivered["refused"])) == (1, 1)
        assert sent[3].record_id in receiver.documents
        again = await result("sink-deliver", after=delivered["after"])
        assert (again["delivered"], again["after"]) == (0, None)

        receiver.documents.clear()
        for _ in range(2):  # a command is sent again when its answer is lost
            assert (await result("sink-replay", start=1))["next"] == 1
        await until(lambda: sent[0].record_id in receiver.documents)

        for verb in ("sink-test", "sink-replay", "sink-deliver"):
            more = {"start": 0} if verb == "sink-replay" else {}
            refused = await ask(auditor, verb, sink="elasticsearch", **more)
            assert (refused.outcome, refused.code) == ("refused", "command.role")
        unknown = await ask(siem, "sink-test", sink="none")
        assert (unknown.outcome, unknown.code) == ("refused", "command.unknown")
        far = await ask(siem, "sink-replay", sink="elasticsearch", start=10**9)
        assert (far.outcome, far.code) == ("refused", "sink.cursor")
        await receiver.stop()
        down = await ask(siem, "sink-deliver", sink="elasticsearch")
        assert (down.outcome, down.code) == ("unavailable", "sink.unavailable")
        rows = await signer.rows("select announcement from command where verb = 'sink-replay'")
        on_record = [json.loads(row["announcement"]) for row in rows]
        assert {r["actor"]["rule"] for r in on_record if r["outcome"] == "success"} == {"siem"}
        assert on_record[0]["details"]["sink"] == "elasticsearch"


async def test_a_dead_receiver_stalls_no_other_sink(
    world: AuditWorld, record: Build, receiver: HTTPReceiver, token: Path
) -> None:
    dead = sink_of("webhook", receiver, token, name="dead", server_name="else.test")
    sinks = (dead, sink_of("elasticsearch", receiver, token))
    async with world.service(sinks=sinks), world.publisher() as publisher:
        sent = [record(n) for n in range(10)]
        await publisher.send(*sent)
        await until(lambda: {r.record_id for r in sent} <= set(receiver.order))
        await world.wait("select count(*) from record where action = 'audit.sink_fault'", 1)
        assert await world.value("select next_index from sink_cursor where sink = 'dead'") == 0


async def test_a_webhook_is_signed_and_says_what_it_is(
    world: AuditWorld, record: Build, receiver: HTTPReceiver, token: Path
) -> None:
    sinks = (sink_of("webhook", receiver, token),)
    async with world.service(sinks=sinks), world.publisher() as publisher:
        await publisher.send(record(1))
        await until(lambda: bool(receiver.requests))
    headers, body = receiver.requests[0]
    assert headers["Content-Type"] == "application/cloudevents-batch+json"
    seconds = int(headers["X-Estsuite-Signature"].split(",")[0].removeprefix("t="))
    assert headers["X-Estsuite-Signature"] == signature(TOKEN.encode(), seconds, body)
    assert json.loads(body)[0]["specversion"] == "1.0"


@pytest.mark.logs_errors("record not delivered whole")
async def test_a_collector_takes_log_records_over_gRPC(
    world: AuditWorld, record: Build, receiver: HTTPReceiver, token: Path
) -> None:
    """With TLS, a bearer token, a fault, and a record that it rejects."""
    sent = [record(n) for n in range(40)]
    receiver.refused = {sent[5].record_id}
    collector = GRPCCollector(receiver)
    await collector.start()
    sink = OTLPSink(
        kind="otlp",
        name="grpc",
        protocol="grpc",
        url=f"https://127.0.0.1:{collector.port}",
        ca_file=receiver.certificates.ca_file,
        token_file=token,
        batch=16,
        timeout_s=5,
        backoff_max_s=0.2,
    )
    try:
        async with world.service(sinks=(sink,)), world.publisher() as publisher:
            await publisher.send(*sent)
            wanted = {r.record_id for r in sent} - receiver.refused
            await until(lambda: wanted <= set(receiver.order), lambda: receiver.order)
            await world.wait("select count(*) from sink_dead_letter", 1)
    finally:
        await collector.stop()
    assert set(collector.tokens) == {f"Bearer {TOKEN}"}


async def test_a_stream_of_another_NATS_stores_each_once(
    world: AuditWorld, record: Build, tmp_path: Path
) -> None:
    rights = Permissions("streams", publish=("siem.audit.>",), subscribe=("_INBOX_estaudit.>",))
    manager = Permissions("streams", publish=(">",), subscribe=(">",))
    nats = EmbeddedNATS(tmp_path / "third", free_port(), {"third": rights, "manager": manager})
    await nats.start()
    try:
        manage = await _manager(nats)
        await manage.jetstream().add_stream(name="SIEM", subjects=["siem.audit.>"])
        bus = BusSettings(url=nats.url, nkey_seed_file=nats.seed_file("third"))
        sink = NATSSink(kind="nats", name="third", bus=bus, topic="siem.audit", timeout_s=5)
        async with world.service(sinks=(sink,)), world.publisher() as publisher:
            await publisher.send(*(record(n) for n in range(30)))
            await world.wait("select next_index >= 31 from sink_cursor", True)
            info = await manage.jetstream().stream_info("SIEM")
            assert info.state.messages >= 31
        await manage.close()
    finally:
        await nats.stop()


async def _manager(nats: EmbeddedNATS) -> Any:
    import nats as client

    seed = nats.seed_file("manager").read_text().strip()
    return await client.connect(nats.url, nkeys_seed_str=seed)
