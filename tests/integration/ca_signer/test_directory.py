"""Searching the ledger: every way, in pages, each answered by an index."""

from __future__ import annotations

import asyncio
import datetime as dt
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from prometheus_client import REGISTRY
from sqlalchemy import text
from sqlalchemy.ext.asyncio import create_async_engine

from ca_signer.ledger import certificate_index, certificate_search
from ca_signer.ledger.certificate_search import Query, statement
from ca_signer.ledger.inventory_metrics import InventoryMetrics
from estcore import ids
from estcore.messages.enrollment import Principal
from estcore.runtime import statements
from estcore.runtime.migrations import migrations_url
from estsuite_testing.e2e_stack import make_csr
from estsuite_testing.many_certificates import write_certificates
from estsuite_testing.operators import TestOperator, operator, policy_with_operators
from estsuite_testing.platform import Platform
from estsuite_testing.signer_stack import SignerStack, signer_stack

pytestmark = [pytest.mark.integration, pytest.mark.asyncio(loop_scope="module")]
MANY = 30_000
TEAMED = {
    "name": "teamed",
    "principal": {"secret": "teamed"},
    "owner": {"tenant": "test", "service": "teamed", "team": "cardiology", "cluster": "east"},
    "labels": ["services"],
    "profiles": ["service-mtls"],
    "names": {"common_names": ["dev-*"], "dns": ["dev-*.ward.example"]},
}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def signer(
    platform: Platform, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[SignerStack]:
    folder: Path = tmp_path_factory.mktemp("signer")
    async with signer_stack(
        platform, folder, policy_file=policy_with_operators(folder, TEAMED)
    ) as stack:
        await stack.secrets.create("teamed", lifetime=dt.timedelta(days=1), one_time=False)
        async with stack.database.connection() as connection:
            written = await write_certificates(connection, 0, MANY)
            for start in range(0, MANY, 5000):
                await certificate_index.enter(connection, written[start : start + 5000])
        yield stack


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def auditor(signer: SignerStack) -> TestOperator:
    return await operator(signer, "CN=auditor")


async def listed(signer: SignerStack, auditor: TestOperator, **wanted: Any) -> list[dict[str, Any]]:
    """All pages of a search."""
    found: list[dict[str, Any]] = []
    following: Any = None
    while True:
        asked = {**wanted, **({"after": following} if following else {})}
        answer = await auditor.give(signer, "certificate-list", asked)
        assert answer.result is not None, answer
        found += answer.result["certificates"]  # type: ignore[arg-type]
        following = answer.result["next"]
        if following is None:
            return found


async def enrolled(signer: SignerStack, name: str) -> None:
    principal = Principal(method="secret", name="teamed")
    answer = await signer.ask(signer.message(make_csr(name)[1], principal=principal))
    assert answer.outcome == "issued", answer
    async with asyncio.timeout(10):
        sql = "select true from certificate_name where name = $1"
        while not await signer.value(sql, name):
            await asyncio.sleep(0.05)


async def test_a_certificate_is_found_by_each_of_its_facts(
    signer: SignerStack, auditor: TestOperator
) -> None:
    name = f"dev-{ids.uuid7()}"
    await enrolled(signer, name)
    (one,) = await listed(signer, auditor, name=name)
    assert one["subject"] == f"CN={name}"
    (by_serial,) = await listed(signer, auditor, serial=one["serial"])
    assert by_serial == one
    facts = {"tenant": "test", "service": "teamed", "team": "cardiology", "cluster": "east"}
    for wanted in (
        {"name": name.upper()},
        {"name": name[:20] + "*", "service": "teamed"},
        {"name": "*" + name[-20:]},
        facts,
        {"issuer": "issuing", "profile": "service-mtls", "state": "good", **facts},
        {"expires_before": one["not_after"].replace("+00:00", "Z"), "team": "cardiology"},
        {"expires_after": one["not_after"], "team": "cardiology"},
    ):
        found = await listed(signer, auditor, **wanted)
        assert (one in found) is ("expires_before" not in wanted), wanted
    assert await listed(signer, auditor, name=name, state="revoked") == []


async def test_pages_hold_everything_once_and_in_order(
    signer: SignerStack, auditor: TestOperator
) -> None:
    by_owner = await listed(signer, auditor, tenant="t7", service="s7", limit=7)
    assert len(by_owner) == len({r["serial"] for r in by_owner}) == MANY // 500
    issued = [r["issued_at"] for r in by_owner]
    assert issued == sorted(issued, reverse=True)
    by_name = await listed(signer, auditor, name="*.ward-3.clinic.example", limit=11)
    assert len(by_name) == len({r["serial"] for r in by_name}) == MANY // 200
    now = dt.datetime.now(dt.UTC)
    soon = {"expires_after": now.isoformat(), "state": "good", "team": "team-3"}
    soon["expires_before"] = (now + dt.timedelta(days=50)).isoformat()
    by_expiry = await listed(signer, auditor, **soon, limit=9)
    ends = [r["not_after"] for r in by_expiry]
    assert ends == sorted(ends)
    sql = (
        "select count(*) from certificate where team = 'team-3' and revoked_at is null "
        "and not_after between $1 and $2"
    )
    assert len(ends) == await signer.value(sql, now, now + dt.timedelta(days=50)) > 0


async def test_states_differ_and_follow_a_revocation(
    signer: SignerStack, auditor: TestOperator
) -> None:
    name = f"dev-{ids.uuid7()}"
    await enrolled(signer, name)
    revoker = await operator(signer, "CN=revoker")
    (one,) = await listed(signer, auditor, name=name, state="good")
    steps: tuple[tuple[str, dict[str, Any], set[str]], ...] = (
        ("certificate-hold", {}, {"held", "revoked"}),
        ("certificate-unhold", {}, {"good"}),
        ("certificate-revoke", {"reason": "superseded"}, {"revoked"}),
    )
    for verb, more, states in steps:
        answer = await revoker.give(signer, verb, {"serial": one["serial"], **more})
        assert answer.outcome == "done", answer
        found = {
            state
            for state in ("good", "expired", "revoked", "held")
            if await listed(signer, auditor, name=name, state=state)
        }
        assert found == states
    held = await signer.value("select count(*) from issuance where revocation_reason = $1",
                              "certificateHold")  # fmt: skip
    assert len(await listed(signer, auditor, state="held", limit=500)) == held > 0


async def test_marking_twice_enters_once(signer: SignerStack) -> None:
    rows = await signer.rows("select issuance_id from certificate limit 5")
    before = await signer.value("select count(*) from certificate")
    await signer.ledger.mark_announced([str(r["issuance_id"]) for r in rows])
    assert await signer.value("select count(*) from certificate") == before


@pytest.mark.parametrize("name", ["*", "a*", "*a*", "w*b", "ab*", "**web"])
async def test_a_pattern_no_index_answers_is_refused(
    signer: SignerStack, auditor: TestOperator, name: str
) -> None:
    answer = await auditor.give(signer, "certificate-list", {"name": name})
    assert (answer.outcome, answer.code) == ("refused", "command.arguments")


@pytest.mark.parametrize("after", ["x", "W10=", "WyJuYW1lIiwgMSwgImEiXQ==", "eyJhIjogMX0="])
async def test_a_cursor_of_something_else_is_refused(
    signer: SignerStack, auditor: TestOperator, after: str
) -> None:
    answer = await auditor.give(signer, "certificate-list", {"after": after})
    assert (answer.outcome, answer.code) == ("refused", "command.arguments")


async def test_a_search_that_takes_too_long_says_how_to_narrow_it(
    signer: SignerStack, auditor: TestOperator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(certificate_search, "TIMEOUT_MS", 1)
    wanted = {"team": "team-1", "cluster": "cluster-7", "state": "held", "name": "*clinic.example"}
    answer = await auditor.give(signer, "certificate-list", wanted)
    assert (answer.outcome, answer.code) == ("refused", "command.search_too_wide")


SEARCHES = {
    "newest": Query(),
    "exact name": Query(name="host-77.ward-5.clinic.example"),
    "beginning of a name": Query(name="host-77*"),
    "end of a name": Query(name="*.ward-3.clinic.example"),
    "owner": Query(tenant="t7", service="s7"),
    "serial": Query(serial_number=b"\x01" * 18),
    "profile": Query(profile="device"),
    "team": Query(team="team-3"),
    "cluster": Query(cluster="cluster-3", state="good"),
    "revoked": Query(state="revoked"),
    "expiring": Query(
        expires_after=dt.datetime.now(dt.UTC),
        expires_before=dt.datetime.now(dt.UTC) + dt.timedelta(days=2),
        state="good",
    ),
}


@pytest.mark.parametrize("what", SEARCHES)
async def test_every_search_is_answered_by_an_index(signer: SignerStack, what: str) -> None:
    sql, values = statements.compiled(statement(SEARCHES[what])[0])
    async with signer.database.connection() as connection:
        # As the benchmark's million rows would: with statistics.
        for table in ("issuance", "certificate", "certificate_name"):
            assert await connection.fetchval(f"select count(*) from {table}") >= MANY
        plan = await connection.fetchval("explain (format json, costs false) " + sql, *values)
    scans = [n for n in nodes(json.loads(plan)[0]["Plan"]) if "Scan" in n["Node Type"]]
    assert scans
    assert [n["Relation Name"] for n in scans if n["Node Type"] == "Seq Scan"] == []


def nodes(plan: dict[str, Any]) -> list[dict[str, Any]]:
    return [plan, *(n for child in plan.get("Plans", []) for n in nodes(child))]


@pytest_asyncio.fixture(scope="module", loop_scope="module", autouse=True)
async def analyzed(signer: SignerStack, platform: Platform) -> None:
    engine = create_async_engine(
        migrations_url(platform.database("ca-signer")), isolation_level="AUTOCOMMIT"
    )
    async with engine.connect() as connection:
        await connection.execute(text("analyze"))
    await engine.dispose()


async def test_gauges_count_states_and_what_nothing_has_succeeded(signer: SignerStack) -> None:
    def value(gauge: str, **labels: str) -> float:
        named = {"issuer": "issuing", "profile": "workload", **labels}
        return REGISTRY.get_sample_value(gauge, named) or 0

    gauges = InventoryMetrics(signer.database, every_s=300)
    await gauges.count()
    states = [value("ca_signer_certificates", state=s) for s in ("good", "expired", "revoked")]
    sql = "select count(*) from certificate where profile = 'workload'"
    assert sum(states) == await signer.value(sql)
    assert all(states)
    before = value("ca_signer_certificates_expiring", within="7d")
    assert 0 < value("ca_signer_certificates_expiring", within="1d") < before
    assert before < value("ca_signer_certificates_expiring", within="30d")
    # One of them gets a successor in its slot.
    written = await signer.rows(
        "update issuance set slot_id = (select slot_id from certificate where profile = 'workload' "
        "and revoked_at is null and not_after between now() + interval '2 days' and now() + "
        "interval '6 days' order by no limit 1) where issuance_id = $1 returning issuance_id",
        await _unannounced(signer),
    )
    await signer.ledger.mark_announced([str(written[0]["issuance_id"])])
    await gauges.count()
    assert value("ca_signer_certificates_expiring", within="7d") == before - 1


async def _unannounced(signer: SignerStack) -> str:
    async with signer.database.connection() as connection:
        (issuance_id,) = await write_certificates(connection, 49_040, 49_041)
    return issuance_id
