"""The tables of docs/benchmarks.md, from the results of a run (pure)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from estbench.results import Measurement, Results, Summary, summary

SUITE = "suite"
KINDS = {"new": "new", "keepalive": "keep-alive"}
_COUNTS = {
    "batch": "requests in a batch of ca-signer, mean",
    "audit_records": "audit records",
    "stream_messages": "messages stored in streams",
    "transactions": "PostgreSQL transactions",
    "rows_inserted": "rows inserted",
    "rows_updated": "rows updated",
    "wal_records": "WAL records",
    "wal_bytes": "WAL octets",
    "wal_full_pages": "full pages in the WAL",
    "wal_fsyncs": "WAL fsyncs",
}
_OPERATIONS = {"enroll": "enrollment", "reenroll": "re-enrollment", "repeat": "repeat"}
_MACHINE = {
    "date": "date",
    "revision": "revision",
    "processors": "processors",
    "kernel": "Linux",
    "interpreter": "interpreter",
    "openssl": "openssl",
    "postgresql": "PostgreSQL",
    "nats_server": "nats-server",
}


def page(results: Results) -> str:
    """Return the generated part of the page."""
    sections = [
        _conditions(results),
        _cost(results),
        _parts(results),
        _latency(results),
        _operations(results),
        _counts(results),
        _at_rest(results),
        _growth(results),
    ]
    return "\n".join(line for section in sections for line in section)


def servers(results: Results) -> list[str]:
    """Return the servers in the order of the run, the suite first."""
    return list(dict.fromkeys(m.server for m in results.measurements if m.round == 0))


def loads(results: Results) -> list[tuple[str, int]]:
    """Return kinds of connections and concurrencies, keep-alive first."""
    return [(kind, c) for kind in ("keepalive", "new") for c in sorted(results.requests)]


def enrollment(results: Results, server: str, connections: str, c: int) -> Summary | None:
    """Return the summary of first enrollments under a load."""
    return summary(
        results.measurements, server=server, operation="enroll", connections=connections, c=c
    )


def ratio(ours: float, theirs: float) -> str:
    """Return how many times as much it is."""
    return f"{ours / theirs:.1f}" if theirs else "–"


def _conditions(results: Results) -> Iterator[str]:
    requests = ", ".join(f"{n} at c = {c}" for c, n in results.requests.items())
    errors = sum(m.errors for m in [*results.measurements, *results.counted, *results.growth])
    short = ", a short run (`--quick`)" if results.quick else ""
    yield "## Conditions\n"
    yield from table(["", ""], [
        *([name, results.machine[key]] for key, name in _MACHINE.items()),
        ["openssl verifies", f"{results.verify_per_s:,.0f} P-256 signatures a second"],
        ["load average before", f"{results.load_average:.1f}"],
        *([name, version] for name, version in results.versions.items()),
        ["TLS", "; ".join(_handshakes(results))],
        ["rounds", f"{results.rounds}, {requests} in each row{short}"],
        ["errors", str(errors)],
    ])  # fmt: skip


def _handshakes(results: Results) -> Iterator[str]:
    """Yield what was negotiated, with the servers that negotiated it."""
    found: dict[str, list[str]] = {}
    for m in results.measurements:
        names = found.setdefault(m.tls, [])
        if m.server not in names:
            names.append(m.server)
    for tls, names in found.items():
        yield f"{', '.join(names)}: {tls}"


def _cost(results: Results) -> Iterator[str]:
    names = servers(results)
    others = [name for name in names if name != SUITE]
    rows = []
    for kind, c in loads(results):
        found = {name: enrollment(results, name, kind, c) for name in names}
        ours = found[SUITE]
        cells = [_cost_cell(found[name]) for name in names]
        ratios = [
            ratio(ours.cpu_ms, s.cpu_ms) if ours and (s := found[name]) else "–" for name in others
        ]
        rows.append([KINDS[kind], str(c), *cells, *ratios])
    yield "## CPU time of an enrollment\n"
    yield "CPU-ms of all processes per enrollment: the median of the rounds, the minimum in"
    yield "brackets. A ratio is that of the medians; below 1.0 the suite needs less.\n"
    yield from table(["connections", "c", *names, *(f"suite / {o}" for o in others)], rows)
    yield "![CPU time of an enrollment by service, beside the peers](benchmarks/cost.svg)\n"


def _cost_cell(found: Summary | None) -> str:
    return f"{found.cpu_ms:.2f} ({found.cpu_ms_min:.2f})" if found else "–"


def _parts(results: Results) -> Iterator[str]:
    rows, names = [], list[str]()
    for kind, c in loads(results):
        found = enrollment(results, SUITE, kind, c)
        if found:
            names = list(found.parts)
            rows.append([KINDS[kind], str(c), *(f"{found.parts[name]:.2f}" for name in names)])
    yield "## By service\n"
    yield "CPU-ms per enrollment of the suite's processes, medians.\n"
    yield from table(["connections", "c", *names], rows)


def _latency(results: Results) -> Iterator[str]:
    names = servers(results)
    rows = []
    for kind, c in loads(results):
        cells = []
        for name in names:
            found = enrollment(results, name, kind, c)
            cells.append(
                f"{found.per_s:.0f}, {found.p50_ms:.1f} / {found.p99_ms:.1f}" if found else "–"
            )
        rows.append([KINDS[kind], str(c), *cells])
    yield "## Rate and latency\n"
    yield "Enrollments a second, then p50 / p99 in ms, medians. Load generator and servers share"
    yield "the processors.\n"
    yield from table(["connections", "c", *names], rows)
    yield "![p50 and p99 of an enrollment](benchmarks/latency.svg)\n"


def _operations(results: Results) -> Iterator[str]:
    rows = []
    for operation, title in _OPERATIONS.items():
        for kind in KINDS:
            found = summary(
                results.measurements, server=SUITE, operation=operation, connections=kind, c=16
            )
            first = enrollment(results, SUITE, kind, 16)
            if not found or not first:
                continue
            rows.append([
                title, KINDS[kind], _cost_cell(found), ratio(found.cpu_ms, first.cpu_ms),
                f"{found.per_s:.0f}", f"{found.p50_ms:.1f} / {found.p99_ms:.1f}",
                *(f"{ms:.2f}" for ms in found.parts.values()),
            ])  # fmt: skip
    if not rows:
        return
    parts = next(m for m in results.measurements if m.server == SUITE).cpu_ms
    yield "## Re-enrollment and repeats\n"
    yield "At c = 16, CPU-ms per request. Re-enrollment on new connections: each client has a"
    yield "certificate of its own and re-enrolls once. On keep-alive: sixteen clients re-enroll again"
    yield "and again. A repeat sends a CSR that was answered before, and gets the stored"
    yield "certificate.\n"
    header = ["", "connections", "CPU-ms", "of first enrollment", "per s", "p50 / p99 ms", *parts]
    yield from table(header, rows)


def _counts(results: Results) -> Iterator[str]:
    if not results.counted:
        return
    header = [_counted_title(m) for m in results.counted]
    rows = [
        [title, *(_number(m.counts[name]) if name in m.counts else "–" for m in results.counted)]
        for name, title in _COUNTS.items()
    ]
    yield "## Counted per enrollment\n"
    yield "At c = 16, in rows of their own, without what idle servers do in the same time.\n"
    yield from table(["", *header], rows)


def _counted_title(m: Measurement) -> str:
    return f"{m.server}, {_OPERATIONS[m.operation]}, {KINDS[m.connections]}"


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.2f}"


def _at_rest(results: Results) -> Iterator[str]:
    rows = []
    for server, parts in results.pss_mb.items():
        idle = results.idle_ms_per_s.get(server, {})
        rows += [[server, part, f"{idle.get(part, 0):.1f}", f"{mb:.0f}"]
                 for part, mb in parts.items()]  # fmt: skip
        if len(parts) > 1:
            both = f"{sum(idle.values()):.1f}", f"{sum(parts.values()):.0f}"
            rows.append([server, "**all**", *(f"**{value}**" for value in both)])
    yield "## Idle CPU time and memory\n"
    yield "CPU-ms a second while nothing is asked, and the proportional set size (PSS) after the"
    yield "load.\n"
    yield from table(["server", "process", "idle ms/s", "PSS MB"], rows)


def _growth(results: Results) -> Iterator[str]:
    if not results.growth:
        return
    rows = []
    for after_checkpoint in (False, True):
        for size in sorted({m.rows for m in results.growth}):
            found = summary(results.growth, rows=size, after_checkpoint=after_checkpoint)
            if found:
                when = "right after a checkpoint" if after_checkpoint else "later"
                rows.append([
                    f"{size:,}", when, _cost_cell(found), f"{found.parts['PostgreSQL']:.2f}",
                    f"{found.per_s:.0f}", f"{found.p50_ms:.1f} / {found.p99_ms:.1f}",
                    _number(found.counts["wal_full_pages"]), _number(found.counts["wal_bytes"]),
                ])  # fmt: skip
    yield "## With large tables\n"
    yield "First enrollments at c = 16, keep-alive, with this many rows in ledger, directory, renewal"
    yield "and the audit service's tables of record ids and certificates.\n"
    header = ["rows", "", "CPU-ms", "of it PostgreSQL", "per s", "p50 / p99 ms",
              "full pages in the WAL", "WAL octets"]  # fmt: skip
    yield from table(header, rows)
    yield "![CPU time of an enrollment by number of rows](benchmarks/growth.svg)\n"


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> Iterator[str]:
    """Yield the lines of a table, with an empty one after it."""
    yield _row(header)
    yield _row(["---"] * len(header))
    yield from map(_row, rows)
    yield ""


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"
