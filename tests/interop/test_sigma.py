"""Sigma rules: checked by pySigma, converted to queries, and run in a real OpenSearch."""

from __future__ import annotations

import datetime as dt
import itertools
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from sigma.backends.elasticsearch.elasticsearch_esql import ESQLBackend
from sigma.backends.opensearch import OpensearchLuceneBackend
from sigma.collection import SigmaCollection
from sigma.correlations import SigmaCorrelationRule
from sigma.rule import SigmaRule

from audit.formats.entry import Entry
from audit.sink_settings import ElasticsearchSink
from audit.transports.elasticsearch import ElasticsearchTransport
from estcore.clock import SystemClock
from estcore.messages.audit import AuditRecord, Origin
from estcore.tlog import canonical
from estsuite_testing.audit_stack import START, make_record
from estsuite_testing.foreign.opensearch import OpenSearch

pytestmark = [pytest.mark.integration, pytest.mark.slow]
RULES = Path(__file__).parents[2] / "deploy" / "siem" / "sigma"
FILES = sorted(RULES.glob("*.yml"))
INDEX = "logs-estsuite.audit-sigma"
Row = tuple[str, str, str | None]


def collection(file: Path) -> SigmaCollection:
    return SigmaCollection.from_yaml(file.read_text(encoding="utf-8"))


@dataclass
class Case:
    """Records that a rule finds and records beside them that it does not: action, phase, code."""

    finds: list[Row]
    ignores: list[Row] = field(default_factory=list)


CASES = {
    "refused_log_ins": Case(
        [("est.simpleenroll", "denied", "auth.secret"), ("est.refusals", "denied", "auth.backoff")],
        [
            ("est.simpleenroll", "denied", "auth.required"),
            ("est.simpleenroll", "denied", "auth.digest_nonce"),
            ("est.simpleenroll", "denied", "request.method"),
            ("est.cacerts", "outcome", None),
        ],
    ),
    "refused_by_policy": Case(
        [
            ("est.simpleenroll", "denied", "policy.no_rule"),
            ("certificate.issue", "denied", "profile.san"),
        ],
        [
            ("certificate.issue", "intent", None),
            ("certificate.issue", "outcome", None),
            ("certificate.issue", "denied", "key.weak"),
        ],
    ),
    "revocation_by_operator": Case(
        [
            ("operator.certificate-revoke", "outcome", None),
            ("operator.certificate-hold", "outcome", None),
            ("operator.bulk-revocation-confirm", "outcome", None),
        ],
        [
            ("operator.certificate-revoke", "denied", "operator.role"),
            ("operator.bulk-revocation-propose", "outcome", None),
            ("operator.certificate-unhold", "outcome", None),
        ],
    ),
    "ca_rollover": Case(
        [(f"operator.rollover-{step}", "outcome", None) for step in ("plan", "sign", "retire")],
        [("operator.campaign-confirm", "outcome", None)],
    ),
    "audit_log_integrity": Case(
        [
            ("audit.conflict", "error", "record.conflict"),
            ("audit.window_differs", "error", "window.differs"),
            ("audit.verify", "error", None),
            ("audit.witness_fault", "error", "witness.refused"),
        ],
        [
            ("audit.witness_fault", "error", "witness.unavailable"),
            ("audit.witness_recovered", "outcome", None),
            ("audit.sink_fault", "error", "sink.unavailable"),
        ],
    ),
    "audit_purge": Case(
        [
            ("operator.audit-purge-propose", "outcome", None),
            ("operator.audit-purge-confirm", "outcome", None),
            ("audit.purge", "outcome", None),
        ],
        [("audit.archive", "outcome", None), ("audit.hold", "outcome", None)],
    ),
}


class Records:
    """Makes records; each is later than the one before."""

    def __init__(self) -> None:
        self._numbers = itertools.count()
        self.all: list[AuditRecord] = []

    def add(self, row: Row, peer: str | None = None, at: dt.datetime | None = None) -> str:
        action, phase, code = row
        number = next(self._numbers)
        changes: dict[str, Any] = {} if at is None else {"occurred_at": at}
        record = make_record(
            number,
            action=action,
            phase=phase,
            reason_code=code,
            outcome="failure" if phase in {"denied", "error"} else "success",
            origin=None if peer is None else Origin(peer=f"{peer}:{1024 + number}"),
            **changes,
        )
        self.all.append(record)
        return record.record_id


@dataclass
class Stored:
    """What is in OpenSearch: by the name of a rule, the ids that it has to find."""

    server: OpenSearch
    wanted: dict[str, set[str]]


def made() -> tuple[Records, dict[str, set[str]]]:
    records, wanted = Records(), {}
    for name, case in CASES.items():
        wanted[name] = {records.add(row) for row in case.finds}
        for row in case.ignores:
            records.add(row)
    refused = CASES["refused_log_ins"].finds[0]
    more = [(refused, "192.0.2.1", START)] * 12  # the one that is found
    more += [(refused, "192.0.2.2", START)] * 9  # too few
    more += [(refused, "2001:db8::4", START + dt.timedelta(hours=n)) for n in range(12)]  # slow
    wanted["refused_log_ins"] |= {
        records.add(row, f"[{peer}]" if ":" in peer else peer, at) for row, peer, at in more
    }
    for _ in range(20):
        records.add(("est.simpleenroll", "denied", "auth.required"), "192.0.2.3")
    return records, wanted


async def deliver(server: OpenSearch, records: list[AuditRecord]) -> None:
    """Store records as the sink does."""
    sink = ElasticsearchSink(
        kind="elasticsearch",
        name="opensearch",
        url=server.url,
        index=INDEX,
        ca_file=server.certificates.ca_file,
    )
    transport = ElasticsearchTransport(sink, SystemClock())
    await transport.open()
    prepared = []
    for number, record in enumerate(records):
        leaf = {
            "log_index": number,
            "recorded_at": record.occurred_at.isoformat(),
            "record": record.model_dump(mode="json", exclude_none=True),
        }
        prepared.append(transport.prepare(Entry.of_record(number, canonical.render(leaf))))
    try:
        assert (await transport.deliver(prepared)).refused == {}
    finally:
        await transport.close()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def stored(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Stored]:
    server = OpenSearch(tmp_path_factory.mktemp("sigma") / "opensearch")
    try:
        await server.start()
        await server.configure()
        records, wanted = made()
        await deliver(server, records.all)
        await server.call("POST", f"/{INDEX}/_refresh")
        yield Stored(server, wanted)
    finally:
        await server.stop()


def query_of(rule: SigmaRule) -> dict[str, Any]:
    [query] = OpensearchLuceneBackend().convert_rule(rule)
    return {"query_string": {"query": query, "analyze_wildcard": True}}


def correlations() -> Iterator[tuple[SigmaCollection, SigmaCorrelationRule]]:
    for file in FILES:
        found = collection(file)
        for rule in found.rules:
            if isinstance(rule, SigmaCorrelationRule):
                yield found, rule


def test_rules_have_an_id_and_a_title_of_their_own() -> None:
    rules = [rule for file in FILES for rule in collection(file).rules]
    assert len({rule.id for rule in rules} - {None}) == len(rules)
    assert len({rule.title for rule in rules}) == len(rules)
    assert all(rule.level is not None and rule.falsepositives for rule in rules)


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
async def test_the_converted_query_finds_its_records_and_no_others(
    stored: Stored, file: Path
) -> None:
    [rule] = [one for one in collection(file).rules if isinstance(one, SigmaRule)]
    hits = await stored.server.search(INDEX, query_of(rule))
    assert {hit["_id"] for hit in hits} == stored.wanted[file.stem]


async def test_a_correlation_finds_the_address_with_many_refusals(stored: Stored) -> None:
    """Lucene has no correlations, so the aggregation is built here from the rule's parts."""
    [(rules, correlation)] = correlations()
    [base] = [one for one in rules.rules if isinstance(one, SigmaRule)]
    assert correlation.group_by is not None
    [address] = correlation.group_by
    assert correlation.condition is not None
    window = {
        "date_histogram": {
            "field": "@timestamp",
            "fixed_interval": correlation.timespan.spec,
            "min_doc_count": correlation.condition.count,
        }
    }
    body = {
        "size": 0,
        "query": query_of(base),
        "aggs": {"of": {"terms": {"field": address}, "aggs": {"in": window}}},
    }
    answer = await stored.server.call("POST", f"/{INDEX}/_search", body)
    buckets = answer["aggregations"]["of"]["buckets"]
    assert len(buckets) == 3
    assert [one["key"] for one in buckets if one["in"]["buckets"]] == ["192.0.2.1"]


def test_the_correlation_converts_where_a_language_has_them() -> None:
    [(rules, _)] = correlations()
    queries = ESQLBackend().convert(rules)
    assert any("count" in query and ">= 10" in query and "by" in query for query in queries)
