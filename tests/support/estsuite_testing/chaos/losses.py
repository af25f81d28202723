"""Losses of a suite that is well again: compare clients, ledger, slots, audit log and receivers."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from estsuite_testing.chaos.checker import (
    check_ledger,
    check_operations,
    check_receiver,
    check_siem,
    check_slots,
)
from estsuite_testing.chaos.history import History
from estsuite_testing.chaos.receivers import Receiver
from estsuite_testing.chaos.world import INSTANCES, World, lines
from estsuite_testing.e2e_stack import Stack

_RECORDED_S = 150.0
_UNREAD_S = 60.0
_DELIVERED_S = 60.0


@dataclass
class Losses:
    """What must not be, one sentence each, by what is lost."""

    issued: int = 0
    """Certificates of the whole ledger, for comparison."""
    certificates: list[str] = field(default_factory=list)
    slots: list[str] = field(default_factory=list)
    records: list[str] = field(default_factory=list)

    @property
    def sentences(self) -> list[str]:
        """All of them."""
        return [*self.certificates, *self.slots, *self.records]


async def find_losses(
    world: World, history: History, *, delivered_s: float = _DELIVERED_S
) -> Losses:
    """Wait until everything is recorded and delivered, in bounded time; return what is missing.

    Every receiver has ``delivered_s`` for what is in the log.

    Raises:
        ConfigurationError: a command of a service failed.
    """
    stack, losses = world.stack(), Losses()
    try:
        await stack.until_recorded(_RECORDED_S)
    except TimeoutError:
        losses.records.append(f"events or records are under way after {_RECORDED_S:.0f} s")
    ledger = await stack.ledger()
    renewal = lines(await stack.export("renewal"))
    losses.issued = sum(row["state"] == "issued" for row in ledger)
    losses.certificates += check_operations(history.operations, ledger)
    losses.certificates += check_ledger(ledger)
    losses.slots += check_slots(ledger, renewal)
    gone = _ended(history.events)
    for finding in await stack.findings():
        # What a killed process had not published is lost, and on record.
        of_gone = any(instance in finding.sentence for instance in gone)
        at_end = finding.code == "sequence.gap" and " missing at the end of " in finding.sentence
        if not (at_end and of_gone):
            losses.records.append(f"audit verify --cross: {finding}")
    records = await stack.records()
    deadline = time.monotonic() + delivered_s
    assert world.suite.siem is not None
    while missing := check_siem(records, world.suite.siem.messages()):
        if time.monotonic() > deadline:
            losses.records += missing[:20]
            break
        await asyncio.sleep(1)
    leaves = await _leaves(stack)
    for receiver in world.receivers:
        losses.records += await _check_receiver(world, stack, receiver, leaves, delivered_s)
    return losses


async def _check_receiver(
    world: World,
    stack: Stack,
    receiver: Receiver,
    leaves: list[dict[str, Any]],
    delivered_s: float,
) -> list[str]:
    """Look for every record at a receiver; while one is missing, deliver the sink's dead letters."""
    config = str(world.layout.config_file("audit"))
    deliver = ("sinks", "dead-letters", "--sink", receiver.kind, "--deliver", "--config", config)
    deadline = time.monotonic() + delivered_s
    while True:
        found = check_receiver(receiver.kind, leaves, list(receiver.taken), receiver.turned_away)
        if not found or time.monotonic() > deadline:
            return [*found, *receiver.faulty]
        await world.suite.command("audit", *deliver)
        await asyncio.sleep(1)
        leaves = await _leaves(stack)


async def _leaves(stack: Stack) -> list[dict[str, Any]]:
    return [json.loads(leaf) for leaf in await stack.leaves()]


def _ended(events: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the instances whose last records nothing could send again, as findings name them.

    They were killed; or stopped, and all streams were lost before audit had read them.
    """
    lost_s = [float(e["at_s"]) for e in events if e.get("fault") == "streams_lost"]
    found = []
    for event in events:
        at_s, what = float(event["at_s"]), str(event.get("what"))
        if event.get("fault") == "service_killed":
            found += what.removeprefix("kill -9 ").split(", ")
        elif event.get("fault") == "service_stopped" and any(
            at_s <= loss_s < at_s + _UNREAD_S for loss_s in lost_s
        ):
            found.append(what.removeprefix("SIGTERM "))
        elif event.get("fault") == "signer_dies":
            found += INSTANCES["ca-signer"]
    return [f"/{instance}/" for instance in found]
