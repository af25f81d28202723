"""Many slots that are due at once after an outage: renewal's own scheduler on a simulated clock.

Scheduler, claims, projection and database are renewal's, on real PostgreSQL and NATS. Simulated
are the time that PostgreSQL's statements see, the agents and the signers: an agent that receives
its event asks a second or more later, signers sign so many a second by the shares of ca-signer,
and the new certificate is projected in the same second. Some agents never answer. Of the fleet,
one in a hundred has ten minutes left when renewal starts again; the others have hours to weeks.
"""

from __future__ import annotations

import asyncio
import base64
import datetime as dt
import random
import tempfile
import time
from collections import Counter, deque
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import asdict, dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any

import asyncpg
from nats.aio.msg import Msg

from estcore.clock import SystemClock
from estcore.ids import new_serial_number, serial_hex, uuid7
from estcore.messages.envelope import decode
from estcore.messages.events import CertificateIssued, RotationEvent
from estcore.pki.profile import PRIORITIES
from estcore.runtime.bus import Bus
from estcore.runtime.database import Connection, Database
from estcore.runtime.tracing import Tracing
from estsuite_testing.platform import Platform, running_platform
from estsuite_testing.renewal_bench import prepare, settings_for
from loadmodel.incident import allot
from renewal.dispatch.scheduler import Scheduler
from renewal.events.projection import project
from renewal.publishing.messages import MessageBuilder
from renewal.publishing.publisher import RotationPublisher
from renewal.publishing.renewal_info import RenewalInfoPublisher
from renewal.settings import RenewalSettings
from renewalbench.results import OutageRun
from renewalbench.simulated_clock import SEARCH_PATH, SimulatedClock

TENANT, SERVICE = "demo", "web"
_FILL = """
with named as (
    select n, md5('outage' || n)::uuid as slot_id, encode(sha256(('o' || n)::bytea), 'hex') as print,
        interval '1 day' * (array[1, 7, 7, 7, 30, 30, 30, 30, 30, 30, 30, 30, 90, 90, 90, 90, 90,
            90, 90, 90])[1 + n % 20] as lifetime,
        (array[0, 1, 1, 1, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 3, 3])[1 + n / 20 % 20]
            as priority, random() as late
    from generate_series(1, $1::bigint) n
), made as (
    select *, now() - late * $2::interval as due_at,
        case when n % 101 = 0 then now() + interval '10 minutes'
            else now() - late * $2::interval + lifetime / 3 end as not_after
    from named
), slot as (
    insert into renewal.renewal_slot (slot_id, tenant, service, profile, label, issuer_id, mode,
        priority, reaction_time_s, overlap_s, spread, rules_at, active_id, generation, not_before,
        not_after, due_at, next_attempt_at, check_at, state)
    select slot_id, 'demo', 'web', 'service-mtls', 'devices', 'issuing', 'agent', priority, 60,
        3600, 0.05, due_at - lifetime, print, 1, not_after - lifetime, not_after, due_at, due_at,
        not_after, 'idle' from made
)
insert into renewal.certificate (issuance_id, slot_id, serial, fingerprint_sha256, spki_sha256,
    not_before, not_after, issued_at, certificate, generation, role, state, correlation_id)
select print, slot_id, lpad(to_hex(n), 36, '0'), print, print, not_after - lifetime, not_after,
    not_after - lifetime, decode(repeat(md5(n::text), 40), 'hex'), 1, 'active', 'active',
    'outage-' || n from made
"""
_PUBLISHED = """
update renewal.certificate set announced = reached, info_pending = false
where slot_id = any($1::uuid[])
"""
_LEFT = """
select count(*) filter (where generation = 1 and next_id is null and not_after > now()) as waiting,
    count(*) filter (where state = 'expired' or next_id is null and not_after <= now()) as expired
from renewal.renewal_slot where not slot_id = any($1::uuid[])
"""
_LOOKS_PER_S = 5
"""Full claims follow each other at once; so many fit into a second of a busy process."""


@dataclass
class Outage:
    """What is due, who answers, and how fast it is signed."""

    slots: int
    signed_per_s: int
    silent_share: float = 0.05
    outage: dt.timedelta = dt.timedelta(hours=6)
    most_s: int = 7200
    replicas: int = 1


@dataclass
class Simulated:
    """What came of it; seconds are of the simulated clock."""

    slots: int
    signed_per_s: int
    silent: int
    expired: int = 0
    """Of those whose agents answer."""
    announced_s: dict[str, int] = field(default_factory=dict)
    """By priority: when the last one was announced for the first time."""
    done_s: dict[str, int] = field(default_factory=dict)
    """By priority: when the last one had its certificate."""
    peak_announced_per_s: int = 0
    peak_waiting: int = 0
    """Agents that have their event and no certificate."""
    announced: int = 0
    twice: int = 0
    """Events that came twice for one dispatch of a slot."""
    again: int = 0
    """Slots whose agents answer, and that were dispatched more than once for their generation."""
    took_s: float = 0.0
    """Of real time."""


class Simulation:
    """The world around one scheduler."""

    def __init__(
        self,
        given: Outage,
        settings: RenewalSettings,
        database: Database,
        admin: asyncpg.Connection,
        clock: SimulatedClock,
    ) -> None:
        self._given, self._settings, self._database = given, settings, database
        self._admin, self._clock = admin, clock
        self._silent: set[str] = set()
        self._received: deque[RotationEvent] = deque()
        self._asking: list[tuple[int, RotationEvent]] = []
        self._waiting: list[deque[RotationEvent]] = [deque() for _ in PRIORITIES]
        self._renewed: set[str] = set()
        self._fences: Counter[tuple[str, int]] = Counter()
        self._dispatched: Counter[str] = Counter()
        self._chance = random.Random(7)

    async def receive(self, message: Msg) -> None:
        """Take an event as an agent does."""
        event = decode(RotationEvent, message.data)
        if event.step == "due":
            self._received.append(event)

    async def run(
        self, schedulers: Sequence[Scheduler], progress: Callable[[str], object]
    ) -> Simulated:
        """Fill the tables, and let seconds pass until every agent that answers has renewed.

        Raises:
            RuntimeError: some have not, in ``most_s``.
        """
        given, began = self._given, time.monotonic()
        await self._fill()
        found = Simulated(given.slots, given.signed_per_s, len(self._silent))
        silent = list(self._silent)
        for second in range(1, given.most_s):
            now = await self._clock.forward(1)
            announced = sum(await asyncio.gather(*map(self._look, schedulers)))
            await self._events(announced, found, second)
            await self._sign(now, found, second)
            found.peak_announced_per_s = max(found.peak_announced_per_s, announced)
            if second % 30 == 0 or not any(self._waiting):
                left = await self._admin.fetchrow(_LEFT.replace("now()", "renewal.now()"), silent)
                assert left is not None
                if second % 30 == 0:
                    progress(
                        f"{second} s: {len(self._renewed):,} renewed, {left['waiting']:,} left"
                    )
                if not left["waiting"]:
                    found.expired = left["expired"]
                    found.twice = sum(count > 1 for count in self._fences.values())
                    found.again = sum(
                        count > 1
                        for slot, count in self._dispatched.items()
                        if slot not in self._silent
                    )
                    found.took_s = round(time.monotonic() - began, 1)
                    return found
        raise RuntimeError(f"{len(self._renewed)} renewed in {given.most_s} s")

    async def _fill(self) -> None:
        await self._admin.execute(_FILL, self._given.slots, self._given.outage)
        await self._admin.execute("vacuum analyze renewal.renewal_slot, renewal.certificate")
        rows = await self._admin.fetch("select slot_id from renewal.renewal_slot order by slot_id")
        ids = [str(row["slot_id"]) for row in rows]
        self._silent = set(self._chance.sample(ids, int(len(ids) * self._given.silent_share)))

    async def _look(self, scheduler: Scheduler) -> int:
        """Do what the scheduler's two loops do in a second; returns how many were announced."""
        announced = 0
        for _ in range(_LOOKS_PER_S):
            claimed = await scheduler.dispatch_due()
            announced += claimed
            if claimed < self._settings.scheduler.claim_size:
                break
        await scheduler.keep_up()
        return announced

    async def _events(self, announced: int, found: Simulated, second: int) -> None:
        """Let the agents have what was published."""
        async with asyncio.timeout(30):
            while len(self._received) < announced:
                await asyncio.sleep(0.002)
        for _ in range(len(self._received)):
            event = self._received.popleft()
            found.announced += 1
            self._fences[event.slot_id, event.fence] += 1
            self._dispatched[event.slot_id] += 1
            found.announced_s[event.priority] = (
                second if event.attempt == 1 else found.announced_s.get(event.priority, 0)
            )
            if event.slot_id not in self._silent and event.slot_id not in self._renewed:
                self._asking.append((second + self._chance.randint(1, 3), event))

    async def _sign(self, now: dt.datetime, found: Simulated, second: int) -> None:
        """Sign as many as fit into a second, and project them."""
        for at, event in self._asking:
            if at <= second:
                self._waiting[PRIORITIES.index(event.priority)].append(event)
        self._asking = [(at, event) for at, event in self._asking if at > second]
        waiting = [len(w) for w in self._waiting]
        found.peak_waiting = max(found.peak_waiting, sum(waiting) + len(self._asking))
        signed: list[RotationEvent] = []
        for queue, places in zip(
            self._waiting, allot(self._given.signed_per_s, waiting), strict=True
        ):
            signed += [queue.popleft() for _ in range(places)]
        fresh = {event.slot_id: event for event in signed if event.slot_id not in self._renewed}
        for event in fresh.values():
            found.done_s[event.priority] = second
        self._renewed |= set(fresh)
        await self._project([successor(event, now) for event in fresh.values()])

    async def _project(self, issued: Sequence[CertificateIssued]) -> None:
        if not issued:
            return
        rotation = self._settings.rotation

        async def work(connection: Connection) -> None:
            await project(connection, issued, [], rotation=rotation)

        await self._database.run(work)
        # What another replica would have published.
        await self._admin.execute(_PUBLISHED, [event.slot_id for event in issued])


def successor(event: RotationEvent, now: dt.datetime) -> CertificateIssued:
    """Return the certificate that an agent gets that received this event."""
    assert event.old is not None
    serial = serial_hex(new_serial_number())
    lifetime = event.old.not_after - event.old.not_before
    return CertificateIssued(
        id=uuid7(),
        source="ca-signer/simulated",
        time=now,
        correlation_id=uuid7(),
        tenant=event.tenant,
        service=event.service,
        slot_id=event.slot_id,
        issuer_id=event.issuer_id,
        profile=event.profile,
        priority=event.priority,
        label=event.label,
        subject="CN=simulated",
        serial=serial,
        not_before=now,
        not_after=now + lifetime,
        issued_at=now,
        spki_sha256=sha256(serial.encode()).hexdigest(),
        fingerprint_sha256=sha256(b"c" + serial.encode()).hexdigest(),
        certificate=base64.b64encode(random.randbytes(600)),
        predecessor_serial=event.old.serial,
        predecessor_fingerprint=event.old.fingerprint_sha256,
        reaction_time_s=60,
        overlap_s=3600,
        spread=0.05,
    )


async def simulate(
    given: Outage,
    platform: Platform,
    settings: RenewalSettings,
    progress: Callable[[str], object] = print,
    **changes: Any,
) -> Simulated:
    """Simulate on a platform whose streams and schema of renewal are there, the tables empty."""
    settings = settings.model_copy(
        update={"scheduler": settings.scheduler.model_copy(update=changes)}
    )
    admin = await platform.postgres.superuser()
    clock = SimulatedClock(admin)
    await clock.create()
    async with AsyncExitStack() as after:
        after.push_async_callback(admin.close)
        after.push_async_callback(clock.remove)

        async def connected(user: str, **options: Any) -> Bus:
            bus = await Bus.connect(platform.bus(user), user, "simulated", **options)
            after.push_async_callback(bus.close)
            return bus

        async def replica(number: int) -> tuple[Database, Scheduler]:
            database = await Database.connect(settings.database, "renewal", SEARCH_PATH)
            after.push_async_callback(database.close)
            bus, wall = await connected("renewal"), SystemClock()
            info = RenewalInfoPublisher(database, bus, wall, settings.renewal_info)
            builder = MessageBuilder(f"simulated-{number}", wall, uuid7())
            publisher = RotationPublisher(database, bus, builder, settings.rotation, info)
            tracing = Tracing(settings.telemetry, "est-renewal", "simulated")
            return database, Scheduler(settings, database, bus, publisher, tracing)

        replicas = [await replica(number) for number in range(given.replicas)]
        simulation = Simulation(given, settings, replicas[0][0], admin, clock)
        agents = await connected("agent", signs=False)
        await agents.client.subscribe(f"pki.rotation.due.{TENANT}.{SERVICE}", cb=simulation.receive)
        return await simulation.run([scheduler for _, scheduler in replicas], progress)
    raise AssertionError("unreachable")


def run(given: Outage, most: int, progress: Callable[[str], object]) -> OutageRun:
    """Simulate on servers of its own."""
    with (
        tempfile.TemporaryDirectory(prefix="renewal-figures-", dir="/var/tmp") as folder,
        running_platform(Path(folder)) as platform,
    ):
        settings = settings_for(platform)

        async def prepared() -> Simulated:
            await prepare(platform, settings)
            return await simulate(given, platform, settings, progress, max_unanswered=most)

        found = asyncio.run(prepared())
    return OutageRun(max_unanswered=most, **asdict(found))
