"""The section about renewal of docs/benchmarks.md, from the figures kept beside it (pure)."""

from __future__ import annotations

from collections.abc import Iterator

from estbench.report import table
from renewalbench.results import ClaimRound, Claims, Figures, OutageRun, Part, Polls, Rotations

_MB = 1e6
_PRIORITIES = ("critical", "high", "normal", "low")


def page(figures: Figures) -> str:
    """Return the section, with the parts that were measured."""
    lines = ["## Renewal", ""]
    lines += [
        "Measured by `make renewal-figures`, each part in a run of its own. Other work was on"
    ]
    lines += ["the machine: the load average is how many tasks wanted one of its processors.", ""]
    if figures.claims is not None:
        lines += _claims(figures.claims)
    if figures.outage is not None:
        lines += _outage(figures.outage.runs)
    if figures.rotations is not None:
        lines += _rotations(figures.rotations)
    if figures.polls is not None:
        lines += _polls(figures.polls)
    return "\n".join(lines)


def _where(part: Part) -> str:
    facts = part.machine
    return (
        f"{facts['date']}, revision {facts['revision']}, {facts['processors']}, "
        f"PostgreSQL {facts['postgresql']}, load average before {part.load_average:.1f}. {part.note}"
    ).strip()


def _claims(found: Claims) -> Iterator[str]:
    yield f"### Claims from {found.slots:,} slots\n"
    yield f"{_where(found)}\n"
    yield f"A mixed fleet of which {found.due:,} slots are due after an outage. A claim is"
    yield f"the count of what is due where it is not known to be many, up to {found.claim_size} slots by renewal's own statements, and the commit; then renewal"
    yield "reads what the events of these slots need, and marks them. Each round claims everything"
    yield "that is due, right after a checkpoint. The longest *count* is the first after many were claimed:"
    yield "it passes what is not vacuumed yet. *Steady* claims once a second what became due.\n"
    header = [
        *("round", "claims", "slots", "p50 ms", "p99 ms", "most ms", "CPU-ms of PostgreSQL"),
        *("events p50 / p99 ms", "count, most ms", "load average"),
    ]
    rows = [_claim_row(f"outage {n + 1}", one) for n, one in enumerate(found.after_outage)]
    yield from table(header, [*rows, _claim_row("steady", found.steady)])
    total = sum(found.octets.values())
    yield f"On disk {total / 1e9:.1f} GB, {total / found.slots:,.0f} octets a slot with its one certificate:\n"
    yield from table(
        ["table or index", "MB"],
        [[f"`{name}`", f"{size / _MB:,.0f}"] for name, size in found.octets.items() if size > _MB],
    )


def _claim_row(name: str, one: ClaimRound) -> list[str]:
    return [
        *(name, f"{one.claims:,}", f"{one.slots:,}"),
        *(f"{one.p50_ms:.1f}", f"{one.p99_ms:.1f}", f"{one.max_ms:.1f}", f"{one.cpu_ms:.1f}"),
        *(
            f"{one.announce_p50_ms:.1f} / {one.announce_p99_ms:.1f}",
            f"{one.count_max_ms:.1f}",
            f"{one.load_average:.1f}",
        ),
    ]


def _outage(runs: list[OutageRun]) -> Iterator[str]:
    first = runs[0]
    yield f"### {first.slots:,} slots due at once\n"
    yield "Renewal's own scheduler, statements and projection on real PostgreSQL and NATS; simulated are"
    yield f"the clock of the statements, the agents, and signers that sign {first.signed_per_s} a second. One agent in"
    yield "twenty never answers, one certificate in a hundred has ten minutes left. Seconds are of"
    yield "the simulated clock.\n"
    header = [
        *(
            "`max_unanswered`",
            "expired, agent answers",
            "dispatched twice",
            "announced a second, most",
        ),
        *("agents waiting, most", *(f"{p}: last renewed" for p in _PRIORITIES)),
    ]
    yield from table(
        header,
        [
            [
                f"{run.max_unanswered:,}",
                str(run.expired),
                str(run.twice + run.again),
                f"{run.peak_announced_per_s:,}",
                f"{run.peak_waiting:,}",
                *(f"{run.done_s.get(p, 0):,} s" for p in _PRIORITIES),
            ]
            for run in runs
        ],
    )


def _rotations(found: Rotations) -> Iterator[str]:
    yield f"### A TLS server through {found.rotations} rotations\n"
    yield f"{_where(found)}\n"
    yield "The asyncio server of [onboarding](onboarding/python.md#asyncio) with certificates of"
    yield f"{found.lifetime_s} seconds; agent and renewal are killed (SIGKILL) at random moments and started again.\n"
    yield from table(
        ["", ""],
        [
            ["minutes", f"{found.minutes:.0f}"],
            ["handshakes", f"{found.handshakes:,}"],
            ["requests", f"{found.requests:,}"],
            ["failed handshakes and requests", str(found.failed)],
            ["kept connections that the server ended", str(found.connections_ended)],
            ["agent killed / ended by itself", f"{found.agent_kills} / {found.agent_ended}"],
            ["renewal killed", str(found.renewal_kills)],
            ["rotations stalled or expired", str(found.stalled)],
        ],
    )


def _polls(found: Polls) -> Iterator[str]:
    yield f"### {found.agents:,} agents that poll one front end\n"
    yield f"{_where(found)}\n"
    yield "*New* is a TLS connection for each poll, as `estctl agent` makes it, without a client"
    yield "certificate; *kept* has a connection of each agent, all open at the same time.\n"
    yield from table(
        [
            "connections",
            "open at once",
            "polls",
            "a second",
            "CPU-µs a poll",
            "p50 / p99 ms",
            "PSS MB",
        ],
        [
            [
                *(row.connections, f"{row.open_at_once:,}", f"{row.polls:,}", f"{row.per_s:,.0f}"),
                *(f"{row.cpu_us:,.0f}", f"{row.p50_ms:.1f} / {row.p99_ms:.1f}"),
                f"{row.memory_mb:,.0f}",
            ]
            for row in found.rows
        ],
    )
    new = next((row for row in found.rows if row.connections == "new"), None)
    if new is not None:
        # Every six hours at most (docs/adr/0058).
        share = found.agents * new.cpu_us / 1e6 / 21_600
        yield f"Agents ask every six hours: {found.agents:,} of them keep {share:.2%} of a processor busy.\n"
