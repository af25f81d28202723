"""Conformance reports: a table for the terminal, Markdown and JUnit XML.

Every text passes the ``Redactor`` first: a server may repeat what it was sent.
"""

from __future__ import annotations

import base64
import json
import shutil
import textwrap
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote
from xml.etree import ElementTree

import yaml

from estsuite_testing.conformance_check import FAIL, NOT_JUDGED, PASS, Verdict

LIST = Path(__file__).parents[3] / "docs" / "conformance.yaml"
LEVELS = {
    "M": "must of an RFC",
    "S": "should of an RFC",
    "O": "may of an RFC",
    "I": "needed by clients",
    "X": "rule of our own",
}
_STATES = (PASS, FAIL, NOT_JUDGED)
_WIDEST = 120


@dataclass(frozen=True)
class Row:
    """One item with its verdict; ``sentence`` is what was asked for, or what was seen instead."""

    item: str
    level: str
    asked: str
    state: str
    sentence: str


class Redactor:
    """Removes the password, in the forms in which it is sent or repeated."""

    def __init__(self, user: str, password: str) -> None:
        forms = {password, quote(password, safe=""), json.dumps(password)[1:-1]}
        for text in (f"{user}:{password}", password):
            encoded = base64.b64encode(text.encode()).decode()
            forms |= {encoded, encoded.rstrip("=")}
        self._forms = sorted((f for f in forms if password and f), key=len, reverse=True)

    def __call__(self, text: str) -> str:
        """Return the text without the password."""
        for form in self._forms:
            text = text.replace(form, "[password]")
        return text


@dataclass(frozen=True)
class ConformanceReport:
    """The rows of one run against one server."""

    server: str
    rows: tuple[Row, ...]

    @classmethod
    def of(
        cls, server: str, verdicts: Mapping[str, Verdict], redact: Redactor
    ) -> ConformanceReport:
        """Join the verdicts with the list of items, in its order."""
        items = yaml.safe_load(LIST.read_text(encoding="utf-8"))["items"]
        rows = []
        for item, (level, _, asked, _) in items.items():
            if item in verdicts:
                verdict = verdicts[item]
                sentence = " ".join(redact(verdict.sentence).split()) or asked
                printable = "".join(c if c.isprintable() else "?" for c in sentence)
                rows.append(Row(item, level, asked, verdict.state, printable))
        return cls(redact(server), tuple(rows))

    @property
    def musts_met(self) -> bool:
        """No must of an RFC failed, and at least one was seen."""
        musts = [row.state for row in self.rows if row.level == "M"]
        return FAIL not in musts and PASS in musts

    @property
    def complete(self) -> bool:
        """Every item passed."""
        return bool(self.rows) and all(row.state == PASS for row in self.rows)

    def table(self, width: int | None = None) -> str:
        """Return the report for a terminal."""
        columns = min(width or shutil.get_terminal_size((100, 24)).columns, _WIDEST)
        head = f"{'item':<6}{'level':<7}{'verdict':<12}"
        lines = [f"EST conformance of {self.server}", "", f"{head}what was asked for, or seen"]
        for row in self.rows:
            first = f"{row.item:<6}{row.level:<7}{row.state:<12}"
            lines += textwrap.wrap(
                row.sentence,
                max(columns, len(head) + 30),
                initial_indent=first,
                subsequent_indent=" " * len(first),
            )
        lines += ["", f"{'level':<25}" + "".join(f"{state:>12}" for state in _STATES)]
        for level, meaning in LEVELS.items():
            counts = "".join(f"{self._count(level, state):>12}" for state in _STATES)
            lines.append(f"{level}  {meaning:<22}{counts}")
        return "\n".join([*lines, "", self._conclusion(), ""])

    def markdown(self) -> str:
        """Return the report as a page."""
        lines = [f"# EST conformance of {self.server}", "", self._conclusion(), ""]
        lines += [f"| level | {' | '.join(_STATES)} |", "|---|---|---|---|"]
        for level, meaning in LEVELS.items():
            counts = " | ".join(str(self._count(level, state)) for state in _STATES)
            lines.append(f"| {level}, {meaning} | {counts} |")
        lines += ["", "| item | level | verdict | asked for | seen |", "|---|---|---|---|---|"]
        for row in self.rows:
            seen = "" if row.state == PASS else row.sentence
            cells = (row.item, row.level, row.state, row.asked, seen)
            lines.append(f"| {' | '.join(_cell(cell) for cell in cells)} |")
        return "\n".join([*lines, ""])

    def junit(self) -> str:
        """Return the report as JUnit XML: only a failed must is a failure, the rest is skipped."""
        failed = sum(row.level == "M" and row.state == FAIL for row in self.rows)
        skipped = sum(row.state != PASS for row in self.rows) - failed
        suite = ElementTree.Element(
            "testsuite",
            name=f"EST conformance of {self.server}",
            tests=str(len(self.rows)),
            failures=str(failed),
            errors="0",
            skipped=str(skipped),
        )
        for row in self.rows:
            name = f"{row.item} ({row.level}) {row.asked}"
            case = ElementTree.SubElement(
                suite, "testcase", classname=f"est.{row.item[0]}", name=name
            )
            if row.state != PASS:
                kind = "failure" if (row.level, row.state) == ("M", FAIL) else "skipped"
                ElementTree.SubElement(case, kind, message=f"{row.state}: {row.sentence}")
        ElementTree.indent(suite)
        return ElementTree.tostring(suite, encoding="unicode", xml_declaration=True) + "\n"

    def _count(self, level: str, state: str) -> int:
        return sum((row.level, row.state) == (level, state) for row in self.rows)

    def _conclusion(self) -> str:
        failed, open_ = self._count("M", FAIL), self._count("M", NOT_JUDGED)
        if failed:
            return f"The server does not conform. Musts of an RFC that failed: {failed}."
        if not self.musts_met:
            return "No verdict: no must was seen to be met."
        rest = f" Not judged: {open_}." if open_ else ""
        return f"No must of an RFC failed.{rest}"


def _cell(text: str) -> str:
    return text.replace("\\", "\\\\").replace("|", "\\|").replace("<", "&lt;")
