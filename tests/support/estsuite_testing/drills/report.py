"""The report of drills: what the JSON file holds, and Markdown of it (pure)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from pydantic import BaseModel, ConfigDict

_MOST_ANSWERS = 5


class Recovery(BaseModel):
    """Seconds from the end of the fault; ``None``: not in the time that was waited."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    ready_s: float | None
    """Every process is there and ready."""
    enrolled_s: float | None
    """A client that began at the end of the fault has its certificate."""
    delivered_s: float | None
    """The issuance of this certificate is in the audit log and at the SIEM."""

    @property
    def seconds(self) -> float | None:
        """The last of the three."""
        times = (self.ready_s, self.enrolled_s, self.delivered_s)
        known = [time for time in times if time is not None]
        return max(known) if len(known) == len(times) else None


class Result(BaseModel):
    """One drill."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    what: str
    """What was done, in words."""
    runbook: str
    lasted_s: float
    within_s: float
    operations: int
    answers: dict[str, int]
    """What clients were answered: status and code, or the name of the error."""
    longest_s: float
    """The longest operation of a client, with its repetitions."""
    cacerts: int
    """How often a front end that ran was asked for the CA certificates."""
    cacerts_failed: int
    readiness: dict[str, list[str]]
    """Checks that failed, by service."""
    symptoms: list[str]
    """Texts under "Seen" of the runbook that were seen."""
    unseen: list[str]
    recovery: Recovery
    lost_certificates: list[str]
    lost_slots: list[str]
    lost_records: list[str]
    wrong: list[str]
    """What else must not be: a process that ended by itself, a fault that could not be done."""

    @property
    def lost(self) -> list[str]:
        """Everything that is lost, one sentence each."""
        return [*self.lost_certificates, *self.lost_slots, *self.lost_records]

    @property
    def recovered(self) -> bool:
        """Whether everything was well in time."""
        seconds = self.recovery.seconds
        return seconds is not None and seconds <= self.within_s

    @property
    def passed(self) -> bool:
        """Whether nothing is lost or wrong, and the suite recovered in its time."""
        return self.recovered and not self.lost and not self.wrong and not self.cacerts_failed


class Report(BaseModel):
    """A run of drills."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    machine: dict[str, str]
    load_average: float
    results: list[Result]
    not_done: list[str] = []
    """Drills that were not begun, since the suite did not become well before them."""
    certificates: int = 0
    """Certificates in the ledger at the end."""

    @property
    def passed(self) -> bool:
        """Whether every drill was done and passed."""
        return bool(self.results) and not self.not_done and all(r.passed for r in self.results)


def page(report: Report, *, runbooks: str = "") -> str:
    """Return the report as Markdown, from its second level of headings on.

    ``runbooks`` is the folder of the runbooks as links reach it; without it, pages are only named.
    """
    return "\n".join(
        [
            *_conditions(report),
            *_summary(report),
            *_clients(report),
            *_operators(report, runbooks),
            *_failures(report),
        ]
    )


def summary(result: Result) -> str:
    """Return one line about a drill."""
    verdict = "passed" if result.passed else "FAILED"
    lost = f"lost {len(result.lost)}"
    return f"{verdict}  {result.name}: {result.what}; {lost}, recovered {_recovered(result)}"


def _conditions(report: Report) -> Iterator[str]:
    results = report.results
    yield "## Conditions\n"
    facts = {name.replace("_", "-"): value for name, value in report.machine.items()}
    facts["load average before"] = f"{report.load_average:.1f}"
    facts["drills"] = f"{sum(r.passed for r in results)} of {len(results)} passed"
    facts["operations of clients"] = f"{sum(r.operations for r in results):,}"
    facts["certificates"] = f"{report.certificates:,}"
    facts["lost"] = str(sum(len(r.lost) for r in results))
    yield from table(["", ""], ([name, value] for name, value in facts.items()))


def _summary(report: Report) -> Iterator[str]:
    yield "## Faults, losses and recovery\n"
    yield "Seconds from the end of the fault: every process ready; a new certificate; its record at"
    yield "the SIEM. *Recovered* is the last of them, beside the time that the drill allows.\n"
    header = ["drill", "what was done", "lasted s", "lost: certificates, slots, records",
              "ready s", "certificate s", "at the SIEM s", "recovered"]  # fmt: skip
    rows = []
    for result in report.results:
        times = result.recovery
        lost = (result.lost_certificates, result.lost_slots, result.lost_records)
        rows.append(
            [
                result.name,
                result.what,
                f"{result.lasted_s:.0f}",
                ", ".join(str(len(kind)) for kind in lost),
                _seconds(times.ready_s),
                _seconds(times.enrolled_s),
                _seconds(times.delivered_s),
                _recovered(result),
            ]
        )
    yield from table(header, rows)


def _clients(report: Report) -> Iterator[str]:
    yield "## What clients saw\n"
    yield "Answers by status and code, from the beginning of the fault until the suite was well; an error of the connection by its name. Clients"
    yield "repeat the same request until they have a certificate; *longest* is from their first attempt. `/cacerts` was asked at each front end that ran.\n"
    header = ["drill", "operations", "answers", "longest s", "`/cacerts` asked, failed"]
    rows = [
        [
            result.name,
            str(result.operations),
            _counts(result.answers),
            f"{result.longest_s:.1f}",
            f"{result.cacerts}, {result.cacerts_failed}",
        ]
        for result in report.results
    ]
    yield from table(header, rows)


def _operators(report: Report, runbooks: str) -> Iterator[str]:
    yield "## What an operator saw\n"
    yield "Failing checks of `/readyz` by service, from the beginning of the fault until the suite was well; and of the texts under *Seen* of the"
    yield "runbook those that were seen. Times are short here: what a page names may need a longer outage, or all processes of a service.\n"
    header = ["drill", "not ready", "runbook", "of it seen", "not seen"]
    rows = [
        [
            result.name,
            _checks(result.readiness),
            _link(result.runbook, runbooks) or "–",
            _quoted(result.symptoms),
            _quoted(result.unseen),
        ]
        for result in report.results
    ]
    yield from table(header, rows)


def _failures(report: Report) -> Iterator[str]:
    failed = [result for result in report.results if not result.passed]
    if not failed and not report.not_done:
        return
    yield "## What failed\n"
    for result in failed:
        if not result.recovered:
            yield f"- {result.name}: recovered {_recovered(result)}"
        if result.cacerts_failed:
            yield f"- {result.name}: `/cacerts` was not served {result.cacerts_failed} times"
        yield from (f"- {result.name}: lost: {sentence}" for sentence in result.lost)
        yield from (f"- {result.name}: {sentence}" for sentence in result.wrong)
    yield from (f"- {name}: not done" for name in report.not_done)
    yield ""


def _recovered(result: Result) -> str:
    seconds = result.recovery.seconds
    if seconds is None:
        return f"never (of {result.within_s:.0f})"
    return f"in {seconds:.1f} of {result.within_s:.0f} s"


def _seconds(value: float | None) -> str:
    return "never" if value is None else f"{value:.1f}"


def _counts(answers: dict[str, int]) -> str:
    ordered = sorted(answers.items(), key=lambda item: (-item[1], item[0]))
    shown = [f"{count} × {name}" for name, count in ordered[:_MOST_ANSWERS]]
    rest = sum(count for _, count in ordered[_MOST_ANSWERS:])
    return ", ".join([*shown, *([f"{rest} others"] if rest else [])]) or "none"


def _link(heading: str, runbooks: str) -> str:
    if not heading or not runbooks:
        return heading
    file = "".join(c for c in heading.lower() if c.isalnum() or c in " -").replace(" ", "-")
    return f"[{heading}]({runbooks}/{file}.md)"


def _checks(readiness: dict[str, list[str]]) -> str:
    by_service = [
        f"{service}: {', '.join(check or 'no answer' for check in checks)}"
        for service, checks in sorted(readiness.items())
    ]
    return "; ".join(by_service) or "–"


def _quoted(texts: Sequence[str]) -> str:
    return ", ".join(f"`{text}`" for text in texts) or "–"


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> Iterator[str]:
    """Yield the lines of a table, with an empty one after it."""
    yield _row(header)
    yield _row(["---"] * len(header))
    yield from map(_row, rows)
    yield ""


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cell.replace('|', '/') for cell in cells)} |"
