"""The report of drills in a cluster: what the JSON file holds, and Markdown of it (pure)."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict

from estsuite_testing.drills.report import table


class Result(BaseModel):
    """One drill; times are seconds from the end of the fault."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    what: str
    """What was done, in words."""
    lasted_s: float
    within_s: float
    """In which it has to be over."""
    certificates: int
    """That clients asked for and have."""
    answers: dict[str, int]
    """What clients were answered: the status, or the name of the error."""
    longest_s: float
    """The longest way to a certificate, with its repetitions."""
    not_ready: list[str]
    """Services and servers of which a pod was missing or not ready at some time."""
    ready_s: float
    """Every pod is there and ready."""
    enrolled_s: float
    """A client that began at the end of the fault has its certificate."""
    recorded_s: float
    """The issuance of this certificate is in the audit log."""
    lost: dict[str, list[str]]
    """Serial numbers that clients have and that are missing, by where they are missing."""

    @property
    def recovered_s(self) -> float:
        """The last of the three times."""
        return max(self.ready_s, self.enrolled_s, self.recorded_s)

    @property
    def passed(self) -> bool:
        """Whether nothing is lost, and everything was well in time."""
        return not any(self.lost.values()) and self.recovered_s <= self.within_s


class Report(BaseModel):
    """A run of drills in one cluster."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    conditions: dict[str, str]
    results: list[Result]


def page(report: Report) -> str:
    """Return the report as Markdown, from its second level of headings on."""
    results = report.results
    facts = report.conditions | {
        "drills": f"{sum(r.passed for r in results)} of {len(results)} passed",
        "certificates": f"{sum(r.certificates for r in results):,}",
        "lost": str(sum(len(serials) for r in results for serials in r.lost.values())),
    }
    lines = ["## Conditions\n", *table(["", ""], ([k, v] for k, v in facts.items()))]
    lines += ["## Faults, losses and recovery\n"]
    header = ["drill", "what was done", "lasted s", "lost: certificates, slots, records"]
    header += ["ready s", "certificate s", "on record s", "recovered"]
    lines += table(header, map(_recovery, results))
    lines += ["## What clients and operators saw\n"]
    header = ["drill", "certificates", "answers", "longest s", "pods missing or not ready"]
    lines += table(header, map(_seen, results))
    return "\n".join(lines)


def summary(result: Result) -> str:
    """Return one line about a drill."""
    verdict = "passed" if result.passed else "FAILED"
    lost = sum(map(len, result.lost.values()))
    return (
        f"{verdict}  {result.name}: {_answers(result)}; lost {lost}, "
        f"recovered in {result.recovered_s:.1f} of {result.within_s:.0f} s"
    )


def _recovery(result: Result) -> list[str]:
    times = (result.ready_s, result.enrolled_s, result.recorded_s)
    return [
        result.name,
        result.what,
        f"{result.lasted_s:.0f}",
        ", ".join(str(len(result.lost[kind])) for kind in ("ledger", "slots", "log")),
        *(f"{seconds:.1f}" for seconds in times),
        f"in {result.recovered_s:.1f} of {result.within_s:.0f} s",
    ]


def _seen(result: Result) -> list[str]:
    return [
        result.name,
        str(result.certificates),
        _answers(result),
        f"{result.longest_s:.1f}",
        ", ".join(result.not_ready) or "–",
    ]


def _answers(result: Result) -> str:
    ordered = sorted(result.answers.items(), key=lambda item: (-item[1], item[0]))
    return ", ".join(f"{count} × {name}" for name, count in ordered)
