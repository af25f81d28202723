"""Faults under load: kills at every step, NATS and PostgreSQL restarted, two of everything.

The promise in each: every client ends with exactly one certificate, ledger, events and audit
agree (``audit verify --cross``), one serial number per enrollment.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from estcore.errors import ConfigurationError
from estdev.ports import free_port
from estsuite_testing.e2e_stack import Stack, StubbornClient, start_stack, stop_stack

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.slow,
    pytest.mark.timeout(240),
    pytest.mark.asyncio(loop_scope="module"),
]

STEPS = (
    "signer.4.decided",
    "signer.5.recorded",
    "signer.6.audited",
    "signer.8.signed",
    "signer.9.stored",
    "signer.10.announced",
    "signer.11.acked",
)
FAST = {"ca-signer": {"lease_s": 2, "sweep_every_s": 0.5}}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def stack(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Stack]:
    """A suite whose intents are resumed after two seconds; each test leaves it whole."""
    started = await start_stack(tmp_path_factory.mktemp("faults"), overrides=FAST)
    try:
        yield started
    finally:
        await stop_stack(started)


async def enroll_many(
    stack: Stack, count: int, *, prefix: str, ports: list[int] | None = None
) -> dict[str, str]:
    """Enroll ``count`` names at once; returns name to serial number."""
    client = StubbornClient(stack, ports or stack.ports)

    async def one(number: int) -> tuple[str, str]:
        name = f"dev-{prefix}-{number}"
        await asyncio.sleep(number * 0.01)
        _, certificate = await client.enroll(name)
        return name, f"{certificate.serial_number:x}".zfill(36)

    return dict(await asyncio.gather(*(one(n) for n in range(count))))


async def agree(stack: Stack, expected: dict[str, str]) -> None:
    """Ledger, renewal and audit agree with one another and with what the clients hold."""
    report = await stack.verify_cross()
    assert "\nverified: " in report
    ledger = await stack.ledger()
    issued = {r["serial"]: r for r in ledger if r["state"] == "issued"}
    assert set(expected.values()) <= set(issued), report
    per_enrollment = Counter(r["enrollment_id"] for r in issued.values())
    assert set(per_enrollment.values()) == {1}
    serials = Counter(r["serial"] for r in ledger)
    assert set(serials.values()) == {1}
    assert len(set(expected.values())) == len(expected)


async def keep_alive(stack: Stack, stop: asyncio.Event, service: str = "ca-signer") -> int:
    """Start a fresh process whenever one has died, as a platform would; returns how often."""
    restarts = 0
    while not stop.is_set():
        for instance, running in list(stack.suite.services.items()):
            if running.service == service and running.process.returncode is not None:
                await stack.suite.stop_service(instance)
                await stack.suite.start_service(service, instance, wait=False)
                restarts += 1
        await asyncio.sleep(0.1)
    return restarts


async def restarted(
    stack: Stack, doomed: asyncio.subprocess.Process, service: str = "ca-signer"
) -> None:
    """Wait until another process has taken the place of the dead one."""
    for _ in range(200):
        found = stack.suite.services.get(service)  # absent while it is being replaced
        if found is not None and found.process is not doomed:
            return
        await asyncio.sleep(0.1)


async def test_N8_kill_the_signer_at_every_step_under_load(stack: Stack) -> None:
    expected: dict[str, str] = {}
    for step in STEPS:
        await stack.suite.stop_service("ca-signer")
        await stack.suite.start_service(
            "ca-signer",
            "ca-signer",
            wait=False,
            environment={"ESTSUITE_FAULT": f"{step}:exit:1"},
        )
        stop = asyncio.Event()
        async with asyncio.TaskGroup() as group:
            watch = group.create_task(keep_alive(stack, stop))
            doomed = stack.suite.services["ca-signer"].process
            expected |= await enroll_many(
                stack, 200 // len(STEPS) + 1, prefix=step[7:].replace(".", "-")
            )
            async with asyncio.timeout(20):
                assert await doomed.wait() == 137, f"the signer did not die at {step}"
                await restarted(stack, doomed)
            stop.set()
        assert watch.result() == 1
    assert len(expected) >= 200
    await agree(stack, expected)


async def test_kill_audit_before_and_after_its_commit_under_load(stack: Stack) -> None:
    """No client waits for it, nothing is lost, nothing is recorded twice."""
    expected: dict[str, str] = {}
    for step in ("audit.append", "audit.committed"):
        await stack.suite.stop_service("audit")
        # Records of the restart itself may bring it to the fault before it is seen ready.
        with contextlib.suppress(ConfigurationError):
            await stack.suite.start_service(
                "audit", "audit", wait=True, environment={"ESTSUITE_FAULT": f"{step}:exit:2"}
            )
        stop = asyncio.Event()
        async with asyncio.TaskGroup() as group:
            watch = group.create_task(keep_alive(stack, stop, "audit"))
            doomed = stack.suite.services["audit"].process
            expected |= await enroll_many(stack, 60, prefix=step.replace(".", "-"))
            async with asyncio.timeout(20):
                assert await doomed.wait() == 137, f"audit did not die at {step}"
                await restarted(stack, doomed, "audit")
            stop.set()
        assert watch.result() == 1
    await agree(stack, expected)


async def test_nats_restarted_under_load(stack: Stack) -> None:
    async with asyncio.TaskGroup() as group:
        load = group.create_task(enroll_many(stack, 120, prefix="nats"))
        await asyncio.sleep(1)
        for kill in (False, True):
            await stack.layout.nats.stop(kill=kill)
            await asyncio.sleep(1)
            await stack.layout.nats.start()
            await asyncio.sleep(1)
    await agree(stack, load.result())


async def test_postgres_restarted_under_load(stack: Stack) -> None:
    async with asyncio.TaskGroup() as group:
        load = group.create_task(enroll_many(stack, 120, prefix="pg"))
        await asyncio.sleep(1)
        await stack.layout.postgres.stop(immediate=True)
        await asyncio.sleep(1)
        await stack.layout.postgres.start()
    await agree(stack, load.result())


async def test_two_front_ends_and_two_signers_give_one_certificate(stack: Stack) -> None:
    first = stack.layout.ports.est
    await stack.suite.start_service("ca-signer", "ca-signer-2", wait=True)
    stack.layout.ports.est = free_port()
    await stack.suite.start_service("est-frontend", "est-frontend-2", wait=True)
    ports = [first, stack.layout.ports.est]
    async with asyncio.TaskGroup() as group:
        load = group.create_task(enroll_many(stack, 120, prefix="two", ports=ports))
        await asyncio.sleep(1)
        await stack.suite.stop_service("est-frontend", kill=True)
        await asyncio.sleep(1)
        stack.layout.ports.est = first
        await stack.suite.start_service("est-frontend", "est-frontend", wait=True)
    await agree(stack, load.result())
    for instance in ("ca-signer-2", "est-frontend-2"):
        await stack.suite.stop_service(instance)
