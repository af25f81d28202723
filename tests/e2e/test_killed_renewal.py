"""est-renewal killed at every step while services rotate: no certificate is lost, none comes twice.

Agents are killed at every step in ``tests/integration/estclient/test_agent_host.py``, signers in
``test_faults.py``.
"""

from __future__ import annotations

import asyncio
from collections import Counter, defaultdict
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import asyncpg
import pytest
import pytest_asyncio

from estsuite_testing.agent_process import AgentProcess, start_for_agents, until
from estsuite_testing.e2e_stack import Stack, stop_stack

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.slow,
    pytest.mark.timeout(240),
    pytest.mark.asyncio(loop_scope="module"),
]
STEPS = (
    "renewal.projected",
    "renewal.projection_published",
    "renewal.claimed",
    "renewal.dispatch_published",
    "renewal.proven",
    "renewal.steps_published",
    "renewal.checked",
)
NAMES = tuple(f"service-{n}" for n in range(6))
OWNER = {"tenant": "demo", "service": "web"}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def stack(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Stack]:
    """A suite whose certificates of three minutes are due after eight seconds."""
    started = await start_for_agents(
        tmp_path_factory.mktemp("killed"),
        NAMES,
        owner=OWNER,
        lifetime="180s",
        renewal={"reaction_time": "172s", "overlap": "2s"},
        overrides={"renewal": {"rotation": {"client_reload": "1s"}}},
    )
    try:
        yield started
    finally:
        await stop_stack(started)


async def replace_by_doomed(stack: Stack) -> list[asyncio.subprocess.Process]:
    """Let processes do the work of which each dies at another step."""
    await stack.suite.stop_service("renewal")
    for step in STEPS:
        fault = {"ESTSUITE_FAULT": f"{step}:exit:1"}
        await stack.suite.start_service("renewal", instance(step), wait=False, environment=fault)
    return [stack.suite.services[instance(step)].process for step in STEPS]


def instance(step: str) -> str:
    return step.translate(str.maketrans("._", "--"))


async def test_renewal_killed_at_every_step_loses_no_certificate_and_repeats_none(
    stack: Stack, tmp_path: Path
) -> None:
    nats = stack.layout.nats
    bus = {"url": nats.url, "nkey_seed_file": str(nats.seed_file("agent-web"))}
    agent = AgentProcess(stack, tmp_path, bus=bus, owner=OWNER, renew_at=0.9)
    for name in NAMES:
        agent.define(name, name, await agent.secret(name))
    async with agent:
        await until(lambda: all(agent.facts(name).get("state") == "valid" for name in NAMES))
        doomed = await replace_by_doomed(stack)
        async with asyncio.timeout(90):
            codes = await asyncio.gather(*(process.wait() for process in doomed))
        assert dict(zip(STEPS, codes, strict=True)) == dict.fromkeys(STEPS, 137)
        for step in STEPS:
            await stack.suite.stop_service(instance(step))
        before = {name: agent.certificate(name).serial_number for name in NAMES}
        await stack.suite.start_service("renewal", "renewal", wait=True)
        await until(lambda: all(agent.certificate(n).serial_number != before[n] for n in NAMES), 90)
    assert "\nverified: " in await stack.verify_cross()
    await agree(stack)


async def certificates_after_overlap(stack: Stack) -> list[asyncpg.Record]:
    """What renewal knows of each certificate, once none waits for the end of its overlap.

    A certificate is ``superseded`` from the proof of its successor to the end of the overlap; one
    that a second successor displaced stays so, and this times out.
    """
    database = await stack.layout.postgres.superuser()
    try:
        async with asyncio.timeout(30):
            while True:
                rows = await database.fetch(
                    "select slot_id::text, generation, predecessor_fingerprint, state "
                    "from renewal.certificate where slot_id in "
                    "(select slot_id from renewal.renewal_slot where tenant = $1 and service = $2)",
                    *OWNER.values(),
                )
                if all(row["state"] != "superseded" for row in rows):
                    return rows
                await asyncio.sleep(0.2)
    finally:
        await database.close()


async def agree(stack: Stack) -> None:
    """Every slot has one certificate for each generation, and was dispatched once for each."""
    rows = await certificates_after_overlap(stack)
    generations = defaultdict(list)
    for row in rows:
        generations[row["slot_id"]].append(row["generation"])
    assert len(generations) == len(NAMES)
    for slot_id, found in generations.items():
        # Each certificate is a generation of its own, and there is none without a certificate.
        assert sorted(found) == list(range(1, len(found) + 1)), (slot_id, rows)
    predecessors = Counter(row["predecessor_fingerprint"] for row in rows)
    assert predecessors.pop(None) == len(NAMES)
    assert set(predecessors.values()) == {1}
    assert {row["state"] for row in rows} <= {"active", "next", "deprecated", "retired"}
    records = [
        r for r in await stack.records() if r.get("target", {}).get("slot_id") in generations
    ]
    assert not {"rotation.stalled", "rotation.expired"} & {r["action"] for r in records}
    fences: dict[Any, set[Any]] = defaultdict(set)
    for record in records:
        if record["action"] == "rotation.due":
            details = record["details"]
            key = record["target"]["slot_id"], details["generation"]
            fences[key].add(details["fence"])
    assert {len(found) for found in fences.values()} == {1}
