"""The generated part of docs/scaling.md (pure)."""

from __future__ import annotations

from collections.abc import Iterator

from estbench.report import table
from estbench.results import Results
from loadmodel.costs import BUSY, Costs
from loadmodel.fleet import CERTIFICATES_PER_SERVICE, MIXED, MIXES, PROFILES, renewals_per_s
from loadmodel.footprint import Footprint
from loadmodel.limits import certificates_at, limits, walls
from loadmodel.needs import GIB, LEAST, Need, need
from loadmodel.simulation import LARGE, SIZES, Everything, Scenario

_DIFFERS = 0.02


def page(results: Results, footprint: Footprint, simulated: Everything) -> str:
    """Return the generated part of the page."""
    costs = Costs.of(results, footprint)
    needs = [_need(n, simulated, costs) for n in SIZES]
    sections = [
        _short(needs[-1], costs, footprint),
        _sizes(needs),
        _disk(needs),
        _walls(costs),
        _limits(costs, footprint),
        _days(simulated),
        _bunches(simulated),
        _site(simulated),
        _outage(simulated),
        _incidents(simulated),
        _basis(results, footprint, costs, simulated),
    ]
    return "\n".join(line for section in sections for line in section)


def _need(certificates: int, simulated: Everything, costs: Costs) -> Need:
    day = next(d for d in simulated.days if d.certificates == certificates and d.mix == "mixed")
    return need(
        certificates,
        mean_per_s=renewals_per_s(certificates, MIXED),
        peak_per_s=day.peak_minute_per_s,
        costs=costs,
    )


def _short(large: Need, costs: Costs, footprint: Footprint) -> Iterator[str]:
    replicas = ", ".join(f"{n} {service}" for service, n in large.replicas.items())
    audit = large.audit_a_year / large.disk_a_year
    hours = LARGE / costs.most_per_s("audit") / 3600
    users = next(one for one in limits(costs, footprint) if one.unit == "services")
    yield "## In short\n"
    yield f"{large.certificates // CERTIFICATES_PER_SERVICE:,} services with {large.certificates:,} certificates, mixed lifetimes:\n"
    yield f"- {large.mean_per_s:.1f} rotations a second, {large.peak_per_s:.1f} in the busiest minute: {replicas};"
    yield f"  3 NATS servers of {large.nats_cores} cores, PostgreSQL with {large.postgres_cores} cores and {large.live_octets / 1e9:,.0f} GB of memory for what is live."
    yield f"- {large.disk_a_year / 1e12:.1f} TB of disk a year, {audit:.0%} of it the audit log."
    yield f"- Front ends are busy with {large.cacerts_per_s:,.0f} questions a second for CA certificates, not with enrollments."
    yield f"- Agents that listen to NATS are the first wall: {_size(users.reached)} services with a user each, and"
    yield f"  {large.nats_connections / 1e9:,.0f} GB of memory if all {large.certificates:,} connect."
    yield f"- To renew everything at once takes the one audit writer {hours:.1f} hours at least, however many signers there are."
    yield ""


def _sizes(needs: list[Need]) -> Iterator[str]:
    mix = ", ".join(f"{name} ({share:.0%})" for name, share in MIXED.items())
    yield "## What a fleet needs\n"
    yield f"Certificates that live {mix}, {CERTIFICATES_PER_SERVICE} a service, each with an agent."
    yield f"Servers are at most {BUSY:.0%} busy in the busiest minute, and as many as `deploy/k8s` starts at"
    yield "the least.\n"
    rows = [
        ["services", *(f"{n.certificates // CERTIFICATES_PER_SERVICE:,}" for n in needs)],
        ["certificates", *(f"{n.certificates:,}" for n in needs)],
        ["rotations a second, mean", *(f"{n.mean_per_s:.2f}" for n in needs)],
        ["rotations a second, busiest minute", *(f"{n.peak_per_s:.2f}" for n in needs)],
        ["questions for CA certificates a second", *(f"{n.cacerts_per_s:,.0f}" for n in needs)],
        *(
            [f"{service}, processes of one core", *(str(n.replicas[service]) for n in needs)]
            for service in LEAST
        ),
        ["the audit writer is busy", *(f"{n.writer_share:.1%}" for n in needs)],
        ["NATS servers, cores each", *(f"3 × {n.nats_cores}" for n in needs)],
        [
            "NATS memory for connections of agents, all three servers, GB",
            *(f"{n.nats_connections / 1e9:,.1f}" for n in needs),
        ],
        ["stream replicas", *("3" for _ in needs)],
        [
            "NATS disk per server, streams full, GiB",
            *(f"{n.nats_disk / GIB:.0f}" for n in needs),
        ],
        [
            "NATS traffic in the busiest minute, MB/s",
            *(f"{n.nats_octets_per_s / 1e6:.2f}" for n in needs),
        ],
        ["`PKI_EVENTS` reaches back", *(_duration(n.events_s) for n in needs)],
        ["PostgreSQL cores", *(str(n.postgres_cores) for n in needs)],
        [
            "rows and indexes of live certificates, GB",
            *(f"{n.live_octets / 1e9:,.1f}" for n in needs),
        ],
        ["PostgreSQL connections", *(str(n.postgres_connections) for n in needs)],
        ["WAL in the busiest minute, MB/s", *(f"{n.wal_per_s / 1e6:.2f}" for n in needs)],
        ["disk a year, GB", *(f"{n.disk_a_year / 1e9:,.0f}" for n in needs)],
    ]
    yield from table(["", *("" for _ in needs)], rows)
    rates = ", ".join(
        f"{renewals_per_s(LARGE, mix):.1f} ({name})"
        for name, mix in MIXES.items()
        if name != "mixed"
    )
    yield f"{LARGE:,} certificates of one lifetime are as many rotations a second: {rates}."
    yield ""


def _disk(needs: list[Need]) -> Iterator[str]:
    yield "## Disk a year\n"
    yield "Nothing of it is ever deleted by the suite.\n"
    rows = [
        ["rotations a year", *(f"{n.rotations_a_year / 1e6:,.1f} million" for n in needs)],
        ["ledger and directory, GB", *(f"{n.ledger_a_year / 1e9:,.1f}" for n in needs)],
        ["renewal, GB", *(f"{n.renewal_a_year / 1e9:,.1f}" for n in needs)],
        ["audit log, GB", *(f"{n.audit_a_year / 1e9:,.1f}" for n in needs)],
    ]
    yield from table(["certificates", *(f"{n.certificates:,}" for n in needs)], rows)


def _walls(costs: Costs) -> Iterator[str]:
    yield "## Of which there is one\n"
    yield "Front ends, signers and renewal are added as needed. These parts are not, the first wall"
    yield "first; fleets are those that reach the rate, in batches as measured, day by day. Batches fill"
    yield "under load: full ones are calculated by what `enroll.py` measures at c = 64 against c = 16.\n"
    rows = []
    for wall in walls(costs):
        of_24_h = wall.per_s / renewals_per_s(LARGE, MIXES["24 h"]) * LARGE
        rows.append([
            wall.what, wall.follows_from, f"{wall.per_s:,.0f}", f"{wall.most_per_s:,.0f}",
            _size(certificates_at(wall.per_s)),
            _size(of_24_h), _duration(LARGE / wall.most_per_s), wall.then,
        ])  # fmt: skip
    header = ["part", "follows from", "rotations a second, batches as measured", "full batches",
              "mixed fleet", "fleet of 24 h",
              f"{LARGE:,} at once take", "then"]  # fmt: skip
    yield from table(header, rows)


def _limits(costs: Costs, footprint: Footprint) -> Iterator[str]:
    yield "## Limits and the fleets that reach them\n"
    yield "Of settings, streams and code as they are by default; certificates are those of the mixed"
    yield "fleet.\n"
    rows = [
        [
            f"{_size(limit.reached)} {limit.unit}",
            limit.what,
            limit.setting,
            limit.then,
            limit.remedy,
        ]
        for limit in limits(costs, footprint)
    ]
    yield from table(["reached at", "what", "limit", "then", "remedy"], rows)


def _days(simulated: Everything) -> Iterator[str]:
    yield "## A day\n"
    yield "Simulated: every certificate of a fleet that was enrolled evenly over time, renewed when"
    yield "`due_at` says so.\n"
    rows = [
        [
            f"{d.certificates:,}", d.mix, f"{d.renewals:,}", f"{d.mean_per_s:.2f}",
            f"{renewals_per_s(d.certificates, MIXES[d.mix]):.2f}", f"{d.p99_minute_per_s:.2f}",
            f"{d.peak_minute_per_s:.2f}", str(d.peak_second),
        ]
        for d in simulated.days
    ]  # fmt: skip
    header = ["certificates", "lifetimes", "renewals", "per s, mean", "by arithmetic",
              "p99 of a minute", "busiest minute", "busiest second"]  # fmt: skip
    yield from table(header, rows)
    yield f"![Renewals of {LARGE:,} certificates in a day](scaling/day.svg)\n"


def _bunches(simulated: Everything) -> Iterator[str]:
    yield "## A fleet enrolled within an hour\n"
    yield "Simulated: the busiest two-hundredth of a cycle, as a multiple of the mean rate, in the"
    yield "first renewal and in later ones. The spread is drawn anew each time, so bunches widen with"
    yield "the square root of the generation.\n"
    generations = list(simulated.bunches[0].peaks)
    rows = [
        [
            b.profile,
            f"{b.spread:.0%}",
            _duration(PROFILES[b.profile].lifetime.total_seconds() * b.spread),
            *(f"{b.peaks[g]:.1f}" for g in generations),
        ]
        for b in simulated.bunches
    ]
    header = ["lifetime", "spread", "as time", *(f"renewal {g}" for g in generations)]
    yield from table(header, rows)


def _site(simulated: Everything) -> Iterator[str]:
    yield "## A site restarts\n"
    yield f"Simulated: {simulated.site[0].outcome.agents:,} agents begin within ten seconds.\n"
    header = ["agents", "front ends", "signed a second", "half have it", "99 of 100", "all",
              "connections", "closed at once", "429", "503 full", "202",
              "copies signed"]  # fmt: skip
    rows = [
        [
            s.name, str(s.frontends), f"{s.signed_per_s:.0f}",
            *(f"{x:.0f} s" for x in (s.outcome.half_s, s.outcome.most_s, s.outcome.all_s)),
            *(f"{n:,}" for n in (
                s.outcome.connections, s.outcome.refused, s.outcome.limited, s.outcome.full,
                s.outcome.pending, s.outcome.copies_signed,
            )),
        ]
        for s in simulated.site
    ]  # fmt: skip
    yield from table(header, rows)


def _outage(simulated: Everything) -> Iterator[str]:
    yield "## An hour without a signer\n"
    yield "Simulated: renewals go on becoming due, their agents ask again and again. Front ends: three."
    yield "Busy is what connections ask of all three, in cores, in the busiest minute.\n"
    header = ["agents", "waiting at most", "connections a second at most", "busy cores",
              "503 full", "202", "copies signed", "late copies", "caught up after"]  # fmt: skip
    rows = [
        [
            s.name, f"{max(s.outcome.waiting_per_minute):,}",
            f"{max(s.outcome.connections_per_minute) / 60:,.0f}",
            f"{max(s.outcome.connections_per_minute) / 60 * simulated.connection_ms / 1000:.1f}",
            *(f"{n:,}" for n in (
                s.outcome.full, s.outcome.pending, s.outcome.copies_signed, s.outcome.late_copies,
            )),
            _duration(caught_up_s(s)),
        ]
        for s in simulated.outage
    ]  # fmt: skip
    yield from table(header, rows)
    faster = renewals_per_s(LARGE, MIXES["24 h"]) / renewals_per_s(LARGE, MIXED)
    worst = simulated.outage[0].outcome
    polls = max(worst.connections_per_minute) / 60 * faster
    yield f"A fleet of {LARGE:,} that live 24 h, in proportion: {_size(max(worst.waiting_per_minute) * faster)} agents wait, with"
    yield f"{_size(polls)} connections a second, for which front ends need {polls * simulated.connection_ms / 1000:.0f} cores.\n"
    yield "![Agents that wait in the outage, and what they ask](scaling/outage.svg)\n"


def caught_up_s(scenario: Scenario) -> float:
    """Return the seconds from the end of the outage until hardly anybody waits."""
    waiting = scenario.outcome.waiting_per_minute
    down_until = 70  # minutes, as the scenario has it
    few = max(waiting) // 100
    for minute in range(down_until, len(waiting)):
        if waiting[minute] <= few:
            return (minute + 1 - down_until) * 60.0
    return (len(waiting) - down_until) * 60.0


def _incidents(simulated: Everything) -> Iterator[str]:
    yield "## A root is lost\n"
    yield f"Simulated: all {LARGE:,} certificates are due at once, 5% critical, 15% high, 70% normal, 10%"
    yield "low. What limits the rate works at 70%. In the first row renewal announces as fast as it can; with a"
    yield "pace (`scheduler.max_unanswered`) no faster than is signed. Polls are in proportion to those of the outage.\n"
    worst = simulated.outage[0].outcome
    each = max(worst.connections_per_minute) / 60 / max(worst.waiting_per_minute)
    rows = [
        [
            i.name, f"{i.signed_per_s:,}", f"{i.claim_size:,}", _duration(i.announced_s),
            *(_duration(i.done_s[p]) for p in ("critical", "high", "normal", "low")),
            f"{i.peak_waiting:,}", _size(i.peak_waiting * each),
        ]
        for i in simulated.incidents
    ]  # fmt: skip
    header = ["", "signed a second", "`claim_size`", "all announced", "critical done", "high", "normal", "low",
              "agents waiting at most", "their polls a second"]  # fmt: skip
    yield from table(header, rows)
    yield "![Certificates not renewed yet, by priority](scaling/incident.svg)\n"


def _basis(
    results: Results, footprint: Footprint, costs: Costs, simulated: Everything
) -> Iterator[str]:
    rotation = footprint.rotation
    yield "## What it follows from\n"
    yield f"**Measured**, {footprint.date}, revision {footprint.revision}: {rotation.certificates} agents on a"
    yield f"suite with PostgreSQL {footprint.postgresql} and nats-server {footprint.nats_server}, one whole rotation each; octets of a"
    yield f"row from tables of {footprint.filled_rows:,} rows. CPU time from the same agents, and from `enroll.py`"
    yield f"({results.machine['date']}, {results.machine['processors']}, {results.verify_per_s:,.0f} P-256 verifications a second).\n"
    rows = [
        *([f"CPU-ms of {part}, a rotation", f"{ms:.2f}"] for part, ms in costs.cpu_ms.items()),
        [
            "CPU-ms of est-frontend, a new connection with an enrollment, c = 64",
            f"{costs.connection_ms:.2f}",
        ],
        ["CPU-ms of ca-signer, a re-enrollment in full batches", f"{costs.signature_ms:.2f}"],
        ["audit records of a rotation", f"{rotation.audit_records:.1f}"],
        ["their octets", f"{rotation.audit_octets:,.0f}"],
        ["messages in `AUDIT_ISSUE`", f"{rotation.streams['AUDIT_ISSUE']:.1f}"],
        ["messages in `PKI_EVENTS`", f"{rotation.streams['PKI_EVENTS']:.1f}"],
        ["octets kept in `PKI_EVENTS`", f"{costs.event_octets:,.0f}"],
        ["octets nats-server reads / writes", f"{costs.nats_in:,.0f} / {costs.nats_out:,.0f}"],
        ["octets of WAL", f"{costs.wal_octets:,.0f}"],
        ["octets for ever, ledger and directory", f"{costs.ledger_octets:,.0f}"],
        ["octets for ever, renewal", f"{costs.renewal_octets:,.0f}"],
        ["octets for ever, audit log", f"{costs.audit_octets:,.0f}"],
        ["octets of a slot", f"{costs.slot_octets:,.0f}"],
    ]
    yield from table(["measured", ""], rows)
    memory = ", ".join(f"{part} {mb:.0f}" for part, mb in costs.pss_mb.items())
    yield f"Memory of a process (PSS, MB) after the load of `enroll.py`: {memory}.\n"
    policy = [
        [f"{p.rules:,}", f"{p.octets / 1e6:.2f}", f"{p.read_s:.2f}", f"{p.owner_ms:.2f}"]
        for p in footprint.policy
    ]
    header = ["rules, one a service", "file, MB", "s to read", "ms to find those of an owner"]
    yield from table(header, policy)
    agents = [
        [f"{a.services:,}", f"{a.configuration_octets / 1e6:.2f}", f"{a.start_cpu_s:.2f}",
         f"{a.memory_mb:.0f}", f"{a.connection_kb:.0f}"]
        for a in footprint.agents
    ]  # fmt: skip
    agents.append(["median", "", "", "", f"{footprint.connection_kb:.0f}"])
    header = ["services with a NATS user", "configuration, MB", "CPU-s of nats-server to start",
              "its memory, MB", "kB a connection"]  # fmt: skip
    yield from table(header, agents)
    yield from _freshness(costs, simulated)


def _freshness(costs: Costs, simulated: Everything) -> Iterator[str]:
    then_and_now = (
        (simulated.connection_ms, costs.connection_ms),
        (simulated.signer_per_s, costs.signed_per_s),
    )
    if all(abs(now - then) <= _DIFFERS * then for then, now in then_and_now):
        yield "The simulations ran with these costs."
    else:
        yield f"The simulations ran with {simulated.connection_ms:.2f} CPU-ms a connection and"
        yield f"{simulated.signer_per_s:.0f} signatures a second and signer: run `make scaling` again."
    yield ""


def _size(number: float) -> str:
    """Return a number with two significant digits: the models are no better."""
    if number < 100:
        return f"{number:.0f}"
    digits = len(f"{number:.0f}") - 2
    return f"{round(number / 10**digits) * 10**digits:,}"


def _duration(seconds: float) -> str:
    for length, name in ((86_400, "days"), (3600, "h"), (60, "min")):
        if seconds >= 2 * length:
            return f"{seconds / length:.1f} {name}"
    return f"{seconds:.0f} s"
