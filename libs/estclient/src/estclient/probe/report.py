"""Results of a round: one for each step, as lines for people and as JSON."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

from estclient.errors import ESTClientError

Result = Literal["ok", "failed", "skipped", "not run"]
"""``skipped`` does not apply here; ``not run`` needs a step that failed."""
_NAME, _RESULT = 18, 8


class StepFailed(ESTClientError):
    """A step of a round found something wrong."""

    default_code = "probe.failed"


@dataclass(frozen=True)
class StepResult:
    """What came out of one step."""

    step: str
    result: Result
    seconds: float = 0.0
    code: str | None = None
    text: str = ""

    def line(self) -> str:
        """Return the step as a line of the table."""
        code = f" [{self.code}]" if self.code else ""
        row = f"{self.step:<{_NAME}} {self.result:<{_RESULT}} {self.seconds:7.2f} s  {self.text}"
        return f"{row}{code}".rstrip()


@dataclass(frozen=True)
class Round:
    """All steps of one round."""

    steps: tuple[StepResult, ...]
    serial: str | None = None
    correlation_id: str | None = None

    @property
    def complete(self) -> bool:
        """Whether no step failed."""
        return all(step.result in {"ok", "skipped"} for step in self.steps)

    def lines(self) -> Iterable[str]:
        """Return one line for each step."""
        return [step.line() for step in self.steps]

    def document(self) -> dict[str, Any]:
        """Return the round as JSON has it."""
        return {
            "complete": self.complete,
            "serial": self.serial,
            "correlation_id": self.correlation_id,
            "steps": [
                {
                    "step": s.step,
                    "result": s.result,
                    "seconds": round(s.seconds, 3),
                    "code": s.code,
                    "text": s.text,
                }
                for s in self.steps
            ],
        }
