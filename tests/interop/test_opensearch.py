"""est-audit and a real OpenSearch: mapping, duplicates, refused documents, faults, kill -9."""

from __future__ import annotations

import asyncio
import copy
import datetime as dt
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from audit import sink_commands
from audit.sink_settings import ElasticsearchSink
from estcore.messages.audit import AuditRecord, Origin, Target
from estsuite_testing.audit_stack import AuditWorld, empty_world, make_record
from estsuite_testing.foreign.opensearch import PIPELINE, OpenSearch, configuration
from estsuite_testing.platform import Platform

pytestmark = [pytest.mark.integration, pytest.mark.slow]
ALL: dict[str, Any] = {"match_all": {}}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def opensearch(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[OpenSearch]:
    server = OpenSearch(tmp_path_factory.mktemp("siem") / "opensearch")
    try:
        await server.start()
        await server.configure()
        yield server
    finally:
        await server.stop()


@pytest.fixture
async def world(platform: Platform, tmp_path: Path) -> AuditWorld:
    return await empty_world(platform, tmp_path)


def index_of(name: str) -> str:
    """A data stream that the template applies to."""
    return f"logs-estsuite.audit-{name}"


def sink_to(server: OpenSearch, index: str) -> ElasticsearchSink:
    return ElasticsearchSink(
        kind="elasticsearch",
        name="opensearch",
        url=server.url,
        index=index,
        ca_file=server.certificates.ca_file,
        batch=20,
        timeout_s=5,
        backoff_max_s=0.3,
    )


async def documents(
    server: OpenSearch, index: str, sent: list[AuditRecord]
) -> dict[str, dict[str, Any]]:
    """Wait until every record is found, and return all documents by id."""
    wanted = {one.record_id for one in sent}
    found: dict[str, dict[str, Any]] = {}
    async with asyncio.timeout(60):
        while not wanted <= found.keys():
            await asyncio.sleep(0.2)
            try:
                hits = await server.search(index, ALL)
            except (OSError, RuntimeError):  # the stream begins with the first record
                continue
            found = {hit["_id"]: hit["_source"] for hit in hits}
            assert len(found) == len(hits)
    return found


async def test_records_are_found_by_fields_of_the_template_and_once(
    world: AuditWorld, opensearch: OpenSearch
) -> None:
    index = index_of("typed")
    target = Target(
        tenant="clinic",
        serial="01a2",
        subject='CN="ä] \\ x',
        san=("dns:a", "dns:b"),
        not_after=dt.datetime(2027, 1, 2, tzinfo=dt.UTC),
    )
    peers = ["192.0.2.77:4711", "[2001:db8::7]:443", "[fe80::1%eth0]:443", "somewhere"]
    sent = [make_record(n, target=target, origin=Origin(peer=peers[n % 4])) for n in range(60)]
    sent.append(make_record(60, target=Target(subject="CN=" + "ä" * 40_000)))
    async with world.service(sinks=(sink_to(opensearch, index),)), world.publisher() as publisher:
        await publisher.send(*sent)
        found = await documents(opensearch, index, sent)

        async def ids(query: dict[str, Any]) -> set[str]:
            return {hit["_id"] for hit in await opensearch.search(index, query)}

        assert await ids({"term": {"source.ip": "192.0.2.0/24"}}) == {
            one.record_id for one in sent[:60:4]
        }
        assert await ids({"term": {"source.ip": "2001:db8::7"}}) == {
            one.record_id for one in sent[1:60:4]
        }
        assert await ids({"term": {"source.address": "fe80::1%eth0"}}) == await ids(
            {"term": {"source.ip": "fe80::1"}}
        )
        assert len(await ids({"term": {"source.address": "somewhere"}})) == 15
        after = {"gte": "2027-01-01", "lt": "2027-02-01"}
        for query in (
            {"range": {"x509.not_after": after}},
            {"term": {"x509.serial_number": "01A2"}},
            {"term": {"x509.subject.distinguished_name": 'CN="ä] \\ x'}},
            {"term": {"x509.alternative_names": "dns:b"}},
            {"term": {"organization.id": "clinic"}},
        ):
            assert await ids(query) == {one.record_id for one in sent[:60]}, query
        assert await ids({"range": {"@timestamp": {"lte": sent[9].occurred_at.isoformat()}}}) == {
            one.record_id for one in sent[:10]
        }
        document = found[sent[0].record_id]
        ingested = dt.datetime.fromisoformat(document["event"]["ingested"])
        assert ingested >= dt.datetime.fromisoformat(document["event"]["created"])
        assert await world.value("select count(*) from sink_dead_letter") == 0

        # The same again, as after a lost answer: nothing is stored twice.
        before = len(await opensearch.search(index, ALL))
        settings = world.settings(sinks=(sink_to(opensearch, index),))
        await sink_commands.replay(settings, name="opensearch", start=0)
        more = [make_record(100)]
        await publisher.send(*more)
        found = await documents(opensearch, index, more)
        assert {one.record_id for one in sent} <= found.keys()
        assert before < len(found) < before + 30


@pytest.mark.logs_errors("record not delivered whole")
async def test_a_document_that_the_mapping_refuses_is_a_dead_letter_and_alone(
    world: AuditWorld, opensearch: OpenSearch
) -> None:
    """The mapping is an operator's own: tenants are numbers there."""
    index = index_of("numbers")
    template = copy.deepcopy(configuration("index-template.json"))
    template |= {"index_patterns": [index], "priority": 300}
    properties = template["template"]["mappings"]["properties"]
    properties["organization"]["properties"]["id"] = {"type": "long"}
    await opensearch.call("PUT", "/_index_template/numbers", template)
    sent = [make_record(n, target=Target(tenant="17")) for n in range(30)]
    poison = make_record(7, target=Target(tenant="clinic"))
    sent[7] = poison
    stored = [one for one in sent if one is not poison]
    sinks = (sink_to(opensearch, index),)
    async with world.service(sinks=sinks), world.publisher() as publisher:
        await publisher.send(*sent)
        found = await documents(opensearch, index, stored)
        assert poison.record_id not in found
        await world.wait("select count(*) from sink_dead_letter", 1)
        reason = await world.value("select reason from sink_dead_letter")
        assert "organization.id" in reason
        assert "clinic" in reason

        # The operator corrects the mapping; a data stream takes it with its next index.
        properties["organization"]["properties"]["id"] = {"type": "keyword"}
        await opensearch.call("PUT", "/_index_template/numbers", template)
        await opensearch.call("POST", f"/{index}/_rollover")
        settings = world.settings(sinks=sinks)
        await sink_commands.dead_letters(settings, name="opensearch", deliver=True)
        assert poison.record_id in await documents(opensearch, index, sent)
        assert await world.value("select count(*) from sink_dead_letter") == 0


async def test_what_an_operator_has_to_correct_makes_the_log_wait(
    world: AuditWorld, opensearch: OpenSearch
) -> None:
    """A block for writing and a pipeline that is not there are no faults of the records."""
    index = index_of("blocked")
    first, second, third = ([make_record(n + k) for k in range(5)] for n in (0, 10, 20))
    sinks = (sink_to(opensearch, index),)
    async with world.service(sinks=sinks), world.publisher() as publisher:
        await publisher.send(*first)
        await documents(opensearch, index, first)

        await opensearch.call("PUT", f"/{index}/_settings", {"index.blocks.write": True})
        await publisher.send(*second)
        await world.wait("select count(*) > 0 from record where action = 'audit.sink_fault'", True)
        await opensearch.call("PUT", f"/{index}/_settings", {"index.blocks.write": False})
        await documents(opensearch, index, second)

        await opensearch.call("DELETE", f"/_ingest/pipeline/{PIPELINE}")
        await publisher.send(*third)
        await world.wait("select count(*) > 1 from record where action = 'audit.sink_fault'", True)
        await opensearch.configure()
        await documents(opensearch, index, third)
        assert await world.value("select count(*) from sink_dead_letter") == 0


async def test_killed_while_it_receives_it_loses_nothing_and_has_nothing_twice(
    world: AuditWorld, opensearch: OpenSearch
) -> None:
    index = index_of("killed")
    sent = [make_record(n) for n in range(600)]
    async with world.service(sinks=(sink_to(opensearch, index),)), world.publisher() as publisher:
        await publisher.send(*sent[:40])
        await documents(opensearch, index, sent[:40])
        await publisher.send(*sent[40:340])
        await opensearch.stop(kill=True)
        await publisher.send(*sent[340:])
        await opensearch.start()
        await documents(opensearch, index, sent)
        assert await world.value("select count(*) from sink_dead_letter") == 0
