"""A small fleet of real agents on a whole suite: what its enrollments and rotations leave behind.

Agents enroll with a secret, re-enroll when renewal says so and prove the use of what they got;
certificates live a few minutes, so that every slot goes through one whole rotation and not
through a second one while it is counted.
"""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import asyncpg
import nats
import yaml
from typing_extensions import override

from ca_signer.ledger import inventory_metrics
from estbench import machine, programs, rows
from estbench.counters import REPORTED_S
from estbench.load import cpu_by_part
from estbench.suite import Suite
from estclient.agent.agent import Agent
from estclient.agent.settings import AgentSettings
from estcore.clock import monotonic_s
from estcore.messages.envelope import decode
from estcore.messages.events import RotationEvent
from estcore.messages.topics import STREAMS
from estcore.runtime.bus import Bus, Incoming
from estcore.runtime.settings import BusSettings
from loadmodel import agent_users, policy_cost
from loadmodel.footprint import CLAIM, SCHEMAS, Footprint, Stage
from renewal import slot_metrics
from renewal.dispatch import claims
from renewal.settings import LeaseSettings, SchedulerSettings

FILLED_ROWS = 100_000
_PER_S = 20
_IDLE_S = 30
_OVERLAP_S = 15
_LIFETIME_S = 300
_LABEL = "fleet"
_SECRET = "fleet"  # noqa: S105 - the id of an enrollment secret
_PROFILE = {
    "name": "fleet",
    "lifetime": f"{_LIFETIME_S}s",
    "backdate": "none",
    "key_algorithms": ["ec-p256"],
    "subject_attributes": ["CN"],
    "san_kinds": ["dns"],
    "extended_key_usage": ["server_auth", "client_auth"],
    "renewal": {"reaction_time": "60s", "overlap": f"{_OVERLAP_S}s"},
}
_RULE = {
    "name": "fleet",
    "principal": {"secret": _SECRET},
    "owner": {"tenant": "demo", "service": "web"},
    "labels": [_LABEL],
    "profiles": ["fleet"],
    "names": {"common_names": ["node-*.clinic.example"], "dns": ["node-*.clinic.example"]},
}
_SIZES = """
select n.nspname || '.' || regexp_replace(c.relname, '_(\\d{6}|\\d{4}_\\d{2})$', '') as name,
       sum(pg_total_relation_size(c.oid))::float8 as octets,
       sum(coalesce(s.n_tup_ins, 0))::float8 as rows
from pg_class c join pg_namespace n on n.oid = c.relnamespace
left join pg_stat_user_tables s on s.relid = c.oid
where c.relkind = 'r' and n.nspname = any($1) group by 1
"""


class FleetSuite(Suite):
    """The suite of the benchmarks with one more rule, label and profile."""

    @override
    async def start(self) -> None:
        """Start everything and enroll the client that large tables are copied from."""
        self.layout.prepare()
        policy = yaml.safe_load((programs.BENCHMARKS / "policy.yaml").read_text(encoding="utf-8"))
        policy["labels"][_LABEL] = {
            "issuer": "issuing",
            "profiles": ["fleet"],
            "authentication": ["certificate", "secret"],
        }
        policy["rules"].append(_RULE)
        profiles_file = self.layout.config / "profiles.yaml"
        profiles = yaml.safe_load(profiles_file.read_text(encoding="utf-8"))
        profiles["profiles"].append(_PROFILE)
        for file, content in (
            (self.layout.config / "policy.yaml", policy),
            (profiles_file, profiles),
        ):
            file.write_text(yaml.safe_dump(content), encoding="utf-8")
        await self.suite.start()
        await self._enroll_client()

    async def secret(self) -> str:
        """Return the secret that the fleet enrolls with."""
        config = str(self.layout.config_file("ca-signer"))
        made = await self.suite.command(
            "ca-signer", "secret", "create", "--id", _SECRET, "--config", config
        )
        await asyncio.sleep(1)  # front ends receive the new verifier
        return made.strip()


@dataclass(frozen=True)
class Counters:
    """What tables, streams and processes had so far."""

    tables: dict[str, float]
    rows: dict[str, float]
    messages: dict[str, float]
    octets: dict[str, float]
    wal: float
    records: float
    record_octets: float
    read: float
    written: float

    def per_certificate(self, before: Counters, certificates: int) -> Stage:
        """Return what was added since, per certificate."""

        def added(now: dict[str, float], then: dict[str, float]) -> dict[str, float]:
            found = {k: round((v - then.get(k, 0.0)) / certificates, 2) for k, v in now.items()}
            return {k: v for k, v in sorted(found.items()) if v}

        def one(now: float, then: float) -> float:
            return round((now - then) / certificates, 2)

        return Stage(
            certificates=certificates,
            tables=added(self.tables, before.tables),
            rows=added(self.rows, before.rows),
            streams=added(self.messages, before.messages),
            stream_octets=added(self.octets, before.octets),
            wal_octets=one(self.wal, before.wal),
            audit_records=one(self.records, before.records),
            audit_octets=one(self.record_octets, before.record_octets),
            nats_octets_in=one(self.read, before.read),
            nats_octets_out=one(self.written, before.written),
        )


class Fleet:
    """Agents of one owner in this process, on one connection for events."""

    def __init__(self, suite: FleetSuite, size: int, folder: Path) -> None:
        self._suite, self._size, self._folder = suite, size, folder
        self._agents: dict[str, Agent] = {}
        """By fingerprint of each certificate they had."""
        self.proven = 0
        self.failures: list[str] = []
        self._begun, self._stop = asyncio.Event(), asyncio.Event()

    async def run(
        self, enrolled: Callable[[], Any], rotating: Callable[[], Any], rotated: Callable[[], Any]
    ) -> None:
        """Enroll and rotate.

        Calls back when all have a certificate, at the first announcement and at the end of the
        last overlap, and when all are retired.

        Raises:
            RuntimeError: an agent did not get that far.
        """
        file = self._folder / "secret"
        self._folder.mkdir()
        file.touch(mode=0o600)
        file.write_text(await self._suite.secret())
        settings = BusSettings(
            url=self._suite.layout.nats.url,
            nkey_seed_file=self._suite.layout.nats.seed_file("agent-web"),
        )
        bus = await Bus.connect(settings, "fleet-listener", "fleet", signs=False)
        await bus.subscribe("pki.rotation.*.demo.web", self._event, of_anyone=True)
        async with asyncio.TaskGroup() as group:
            for n in range(self._size):
                group.create_task(self._agent(n, file).work(self._stop))
                await asyncio.sleep(1 / _PER_S)
            began_s = monotonic_s()
            await self._until(lambda: len(self._agents) >= self._size, 60)
            await asyncio.sleep(REPORTED_S)
            await enrolled()
            await self._begun.wait()
            await rotating()
            await self._until(lambda: self.proven >= self._size, _LIFETIME_S)
            await asyncio.sleep(_OVERLAP_S + 5)
            await rotating()
            # The last one to enroll has expired, and is retired within seconds.
            await asyncio.sleep(max(0, _LIFETIME_S + 5 - (monotonic_s() - began_s)))
            await asyncio.sleep(REPORTED_S)
            await rotated()
            self._stop.set()
        await bus.close()

    def _agent(self, n: int, secret_file: Path) -> Agent:
        name = f"node-{n:06}.clinic.example"
        settings = AgentSettings.model_validate(
            {
                "name": f"node-{n}",
                "server": {
                    "urls": (f"https://localhost:{self._suite.layout.ports.est}",),
                    "trust_file": self._suite.layout.root_file,
                    "label": _LABEL,
                },
                "store": self._folder / name,
                "owner": {"tenant": "demo", "service": "web"},
                "bootstrap": {
                    "subject": f"CN={name}",
                    "san": (f"dns:{name}",),
                    "user": _SECRET,
                    "secret_file": secret_file,
                },
            }
        )
        agents: list[Agent] = []

        async def step(step: str, details: dict[str, Any]) -> None:
            if step == "stored":
                self._agents[details["fingerprint_sha256"]] = agents[0]
            elif step == "proven":
                self.proven += 1
            elif step == "failed":
                self.failures.append(str(details["error"]))

        agents.append(Agent(settings, on_step=step))
        return agents[0]

    async def _event(self, message: Incoming) -> None:
        event = decode(RotationEvent, message.payload)
        self._begun.set()
        for certificate in (event.old, event.new):
            agent = self._agents.get(certificate.fingerprint_sha256) if certificate else None
            if agent is not None:
                await agent.receive(event)

    async def _until(self, reached: Callable[[], bool], seconds: float) -> None:
        until = monotonic_s() + seconds
        while not reached():
            if monotonic_s() > until:
                raise RuntimeError(f"{self.proven} proven; failures: {self.failures[:3]}")
            await asyncio.sleep(0.5)


async def measure(folder: Path, size: int, progress: Callable[[str], object]) -> Footprint:
    """Start a suite, let a fleet of ``size`` enroll and rotate, fill large tables, read all."""
    suite = FleetSuite(folder / "suite")
    stages: list[Counters] = []
    try:
        await suite.start()
        connection = await suite.database()

        async def count(what: str) -> None:
            stages.append(await _counters(suite, connection))
            progress(what)

        spent: list[tuple[float, dict[str, float]]] = []

        async def look() -> None:
            spent.append((monotonic_s(), cpu_by_part(suite.processes())))

        await asyncio.sleep(REPORTED_S)
        await look()
        await asyncio.sleep(_IDLE_S)
        await look()
        await count("the suite is up")
        fleet = Fleet(suite, size, folder / "fleet")
        await fleet.run(
            lambda: count(f"{size} agents have enrolled"),
            look,
            lambda: count(f"{fleet.proven} certificates are rotated and retired"),
        )
        await connection.execute("checkpoint")
        before = await _sizes(connection)
        await rows.fill(connection, FILLED_ROWS, progress)
        after = await _sizes(connection)
        counting_ms = {
            "renewal, slots": await _timed(connection, "renewal", slot_metrics.COUNT),
            "ca-signer, states": await _timed(connection, "ca_signer", inventory_metrics.STATES),
            "ca-signer, expiring": await _timed(
                connection, "ca_signer", inventory_metrics.EXPIRING
            ),
        }
        await suite.suite.stop_service("renewal")
        counting_ms[CLAIM] = await _claim_ms(connection)
        described = machine.describe()
        enrollment = stages[1].per_certificate(stages[0], size)
        rotation = stages[2].per_certificate(stages[1], size)
        filled = {
            table: round((after[table][0] - before[table][0]) / FILLED_ROWS, 1)
            for table in sorted({*(copied.table for copied in rows.COPIES), rows.NAMES_TABLE})
        }
    finally:
        await suite.stop()
        shutil.rmtree(folder / "fleet", ignore_errors=True)
    return Footprint(
        date=described["date"],
        revision=described["revision"],
        postgresql=described["postgresql"],
        nats_server=described["nats_server"],
        enrollment=enrollment,
        rotation=rotation,
        filled=filled,
        filled_rows=FILLED_ROWS,
        rotation_cpu_ms=_cpu_ms(spent, size),
        counting_ms=counting_ms,
        policy=[policy_cost.measure(rules) for rules in policy_cost.SIZES],
        agents=[await agent_users.measure(folder / f"nats-{n}", n) for n in agent_users.SIZES],
    )


def _cpu_ms(spent: list[tuple[float, dict[str, float]]], certificates: int) -> dict[str, float]:
    """Return CPU-ms per certificate of the second pair of looks, less the idle first pair."""
    (a, idle_from), (b, idle_to), (c, begun), (d, ended) = spent
    return {
        part: round(
            ((ended[part] - begun[part]) - (idle_to[part] - idle_from[part]) * (d - c) / (b - a))
            * 1000
            / certificates,
            3,
        )
        for part in ended
    }


async def _claim_ms(connection: asyncpg.Connection) -> float:
    """Return the milliseconds of a claim while every slot is due, the best of eight."""
    await connection.execute("set search_path to renewal")
    await connection.execute(
        "update renewal_slot set state = 'idle', next_attempt_at = now() - interval '1 minute', "
        "not_after = now() + random() * interval '10 days'"
    )
    await connection.execute("vacuum analyze renewal_slot")
    priority = await connection.fetchval("select max(priority) from renewal_slot")
    took = []
    for _ in range(8):
        attempt = connection.transaction()
        await attempt.start()
        began = monotonic_s()
        due = await claims.count_due(cast("Any", connection))  # of no pool, else the same
        claimed = await claims.claim(
            cast("Any", connection),
            priority=priority,
            due=due[priority],
            limit=SchedulerSettings().claim_size,
            owner="measured",
            traceparent=None,
            leases=LeaseSettings(),
        )
        took.append((monotonic_s() - began) * 1000)
        await attempt.rollback()
        assert len(claimed) == SchedulerSettings().claim_size
    return round(min(took), 2)


async def _timed(connection: asyncpg.Connection, schema: str, sql: str) -> float:
    """Return the milliseconds of a statement, the better of two."""
    await connection.execute(f"set search_path to {schema}")
    took = []
    for _ in range(2):
        began = monotonic_s()
        await connection.fetch(sql)
        took.append((monotonic_s() - began) * 1000)
    return round(min(took), 2)


async def _counters(suite: FleetSuite, connection: asyncpg.Connection) -> Counters:
    sizes = await _sizes(connection)
    messages, octets = await _streams(suite)
    row = await connection.fetchrow(
        "select count(*)::float8 as records, coalesce(sum(octet_length(packed_leaf)), 0)::float8 as octets, "
        "(select wal_bytes from pg_stat_wal)::float8 as wal from audit.record"
    )
    assert row is not None
    read, written = _io(suite.layout.nats.pid)
    return Counters(
        tables={name: size for name, (size, _) in sizes.items()},
        rows={name: inserted for name, (_, inserted) in sizes.items()},
        messages=messages,
        octets=octets,
        wal=row["wal"],
        records=row["records"],
        record_octets=row["octets"],
        read=read,
        written=written,
    )


async def _sizes(connection: asyncpg.Connection) -> dict[str, tuple[float, float]]:
    found = await connection.fetch(_SIZES, list(SCHEMAS))
    return {row["name"]: (row["octets"], row["rows"]) for row in found}


async def _streams(suite: FleetSuite) -> tuple[dict[str, float], dict[str, float]]:
    client = await nats.connect(
        suite.layout.nats.url,
        nkeys_seed=str(suite.layout.nats.seed_file("migrate")),
        inbox_prefix=b"_INBOX_migrate",
        connect_timeout=5,
    )
    messages, octets = dict[str, float](), dict[str, float]()
    try:
        for stream in STREAMS:
            state = (await client.jsm().stream_info(stream.name)).state
            messages[stream.name], octets[stream.name] = state.last_seq, state.bytes
    finally:
        await client.close()
    return messages, octets


def _io(pid: int) -> tuple[float, float]:
    """Return the octets a process has read and written, sockets and files alike."""
    lines = Path(f"/proc/{pid}/io").read_text(encoding="ascii").splitlines()
    found = dict(line.split(": ") for line in lines)
    return float(found["rchar"]), float(found["wchar"])
