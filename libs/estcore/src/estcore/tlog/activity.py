"""Report of a period: who got what, who approved, what was refused, who read the log (pure).

The report is a function of the records of the period and of the checkpoint that covers them: the
same log gives the same octets, on the service's host and from an export. So a signed manifest of
the report can be checked by anybody who has an export.
"""

from __future__ import annotations

import base64
import csv
import datetime as dt
import hashlib
import html
import io
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from estcore.display import spreadsheet_value, visible
from estcore.errors import AuditChainBroken, MalformedRequest
from estcore.tlog.checkpoint import Checkpoint
from estcore.tlog.cross import is_issued
from estcore.tlog.items import expanded

TITLE = "estsuite audit report v1"
"""First line of a manifest: no origin of a log has spaces, so none can be read as a checkpoint."""
MANIFEST = "manifest.txt"
PAGE = "activity.html"
_SHOWN = 2000
"""Rows of a table of the page; its CSV has all."""
_READS = re.compile(r"operator\.(audit-\w+|[a-z-]+-(list|show|status))|audit\.(?!start|stop)\w+")
_REVOKES = re.compile(r"operator\.certificate-(revoke|hold|unhold)|certificate\.revoked")
_APPROVES = re.compile(r"operator\.request-(approve|reject)")
_COMMANDS = re.compile(r"operator\.")
Fact = Mapping[str, Any]


@dataclass(frozen=True)
class Period:
    """Records that were recorded in [since, until)."""

    since: dt.datetime
    until: dt.datetime

    def __contains__(self, moment: dt.datetime) -> bool:
        return self.since <= moment < self.until


@dataclass
class _Section:
    name: str
    title: str
    about: str
    columns: tuple[str, ...]
    rows: list[list[str]] = field(default_factory=list)


class ActivityReport:
    """Takes the leaves of a period in order, then gives the files."""

    def __init__(self, origin: str, period: Period) -> None:
        self.origin, self.period = origin, period
        self.first: int | None = None
        self.end = 0
        self._approved: dict[tuple[object, object], str] = {}
        self._sections = {section.name: section for section in _sections()}

    def add(self, leaf: Mapping[str, Any]) -> None:
        """Take one leaf; one of a different time is left out."""
        if dt.datetime.fromisoformat(leaf["recorded_at"]) not in self.period:
            return
        if self.first is None:
            self.first = leaf["log_index"]
        self.end = leaf["log_index"] + 1
        for fact in expanded(leaf["record"]):
            self._fact(leaf, fact)

    def files(self) -> dict[str, bytes]:
        """Return the content of each file by its name, without the manifest."""
        files = {f"{s.name}.csv": _csv(s) for s in self._sections.values()}
        return {PAGE: self._page().encode(), **files}

    def manifest(self, files: Mapping[str, bytes], covered: Checkpoint) -> str:
        """Return the text to sign: the period, the tree that covers it, a hash of each file.

        ``covered`` is the oldest checkpoint that covers every record of the period.
        """
        first = self.end if self.first is None else self.first
        lines = [
            TITLE,
            f"log {self.origin}",
            f"since {_iso(self.period.since)}",
            f"until {_iso(self.period.until)}",
            f"records {first} {self.end}",
            f"tree {covered.size} {base64.b64encode(covered.root).decode()}",
            *(
                f"sha256 {hashlib.sha256(octets).hexdigest()} {name}"
                for name, octets in sorted(files.items())
            ),
        ]
        return "".join(f"{line}\n" for line in lines)

    def _fact(self, leaf: Mapping[str, Any], fact: Fact) -> None:
        action, target = str(fact["action"]), _part(fact, "target")
        key = target.get("subject"), target.get("spki_sha256")
        done = fact["phase"] == "outcome" and fact["outcome"] == "success"
        if is_issued(fact):
            self._row("issued", leaf, fact, self._approved.get(key, ""))
        elif fact["phase"] == "denied":
            self._row("refused", leaf, fact)
        elif done and _APPROVES.fullmatch(action):
            if action.endswith("approve"):
                self._approved[key] = _operator(fact)
            self._row("approvals", leaf, fact)
        elif done and _REVOKES.fullmatch(action):
            self._row("revoked", leaf, fact)
        elif _READS.fullmatch(action) and _part(fact, "actor").get("type") == "human":
            self._row("reads", leaf, fact)
        elif done and _COMMANDS.match(action):
            self._row("commands", leaf, fact)

    def _row(self, name: str, leaf: Mapping[str, Any], fact: Fact, approved: str = "") -> None:
        section = self._sections[name]
        values = {"index": str(leaf["log_index"]), "recorded": leaf["recorded_at"]}
        values["approved by"] = approved
        section.rows.append(
            [values[c] if c in values else _COLUMNS[c](fact) for c in section.columns]
        )

    def _page(self) -> str:
        since, until = _iso(self.period.since), _iso(self.period.until)
        counts = "".join(
            f"<tr><td>{html.escape(s.title)}</td><td>{len(s.rows)}</td></tr>"
            for s in self._sections.values()
        )
        first = self.end if self.first is None else self.first
        return (
            f"<!doctype html>\n<html lang=en>\n<meta charset=utf-8>\n<title>Audit report {since}"
            f"</title>\n<style>{_STYLE}</style>\n<h1>Audit report</h1>\n"
            f"<p>Log {_escaped(self.origin)}, records {first} to {self.end}, recorded from {since}"
            f" until before {until}.</p>\n"
            f"<table><tr><th>section</th><th>facts</th></tr>{counts}</table>\n"
            + "".join(_table(section) for section in self._sections.values())
            + f"<p>{MANIFEST} has the hash of this page and of the tables, and is signed.</p>\n"
        )


def read_manifest(text: str) -> Checkpoint:
    """Return the tree that a manifest names, with the origin of the log.

    Raises:
        MalformedRequest: the text is no manifest.
    """
    lines = dict(line.partition(" ")[::2] for line in text.splitlines()[1:])
    try:
        size, root = lines["tree"].split(" ")
        found = Checkpoint(lines["log"], int(size), base64.b64decode(root, validate=True))
    except (KeyError, ValueError) as exc:
        raise MalformedRequest("this is not a manifest", code="report.malformed") from exc
    if not text.startswith(TITLE + "\n"):
        raise MalformedRequest("this is not a manifest", code="report.malformed")
    return found


def check_files(text: str, read: Callable[[str], bytes]) -> list[str]:
    """Check the files that a manifest names; returns their names. ``read`` has their content.

    Raises:
        AuditChainBroken: a file is different.
    """
    names = []
    for line in text.splitlines():
        kind, _, rest = line.partition(" ")
        if kind != "sha256":
            continue
        digest, _, name = rest.partition(" ")
        if hashlib.sha256(read(name)).hexdigest() != digest:
            raise AuditChainBroken(f"{name} is not what was signed", code="report.differs")
        names.append(name)
    return names


def _sections() -> list[_Section]:
    about = ("serial", "owner", "profile", "subject", "names")
    when = ("index", "recorded", "occurred")
    return [
        _Section(
            "issued",
            "Certificates issued",
            "Who got which certificate. An approval is named if it lies in the period.",
            (*when, *about, "valid until", "principal", "rule", "approved by", "correlation id"),
        ),
        _Section(
            "approvals",
            "Approvals and rejections",
            "Decisions of operators about requests.",
            (*when, "operator", "action", "owner", "profile", "subject", "names", "reason"),
        ),
        _Section(
            "refused",
            "Refused",
            "What was denied, to clients and to operators. A flood is one record with a count.",
            (*when, "action", "code", "reason", "principal", "peer", "owner", "subject", "names"),
        ),
        _Section(
            "revoked",
            "Revoked, held and released",
            "Every change of whether a certificate is good.",
            (*when, "action", "operator", "serial", "owner", "subject", "names", "reason"),
        ),
        _Section(
            "commands",
            "Other commands of operators",
            "Campaigns, secrets, rollovers, bulk revocations.",
            (*when, "action", "operator", "arguments"),
        ),
        _Section(
            "reads",
            "Who read the log and the ledger",
            "Searches, proofs, exports and lists, and what was done with the log itself.",
            (*when, "action", "outcome", "operator", "arguments"),
        ),
    ]


def _operator(fact: Fact) -> str:
    actor = _part(fact, "actor")
    return str(actor.get("rule") or actor.get("subject") or "")


def _arguments(fact: Fact) -> str:
    details = _part(fact, "details")
    return " ".join(f"{name}={details[name]}" for name in sorted(details))


def _reason(fact: Fact) -> str:
    return str(fact.get("reason") or _part(fact, "details").get("reason") or "")


def _of_target(name: str) -> Callable[[Fact], str]:
    return lambda fact: str(_part(fact, "target").get(name) or "")


def _of_actor(name: str) -> Callable[[Fact], str]:
    return lambda fact: str(_part(fact, "actor").get(name) or "")


def _owner(fact: Fact) -> str:
    target = _part(fact, "target")
    return "/".join(str(target[name]) for name in ("tenant", "service") if target.get(name))


def _names(fact: Fact) -> str:
    san = _part(fact, "target").get("san")
    return " ".join(map(str, san)) if isinstance(san, list | tuple) else ""


_COLUMNS: dict[str, Callable[[Fact], str]] = {
    "occurred": lambda fact: str(fact["occurred_at"]),
    "action": lambda fact: str(fact["action"]),
    "outcome": lambda fact: str(fact["outcome"]),
    "code": lambda fact: str(fact.get("reason_code") or ""),
    "reason": _reason,
    "correlation id": lambda fact: str(fact["correlation_id"]),
    "serial": _of_target("serial"),
    "profile": _of_target("profile"),
    "subject": _of_target("subject"),
    "valid until": _of_target("not_after"),
    "names": _names,
    "owner": _owner,
    "principal": _of_actor("subject"),
    "rule": _of_actor("rule"),
    "operator": _operator,
    "peer": lambda fact: str(_part(fact, "origin").get("peer") or ""),
    "arguments": _arguments,
}


def _csv(section: _Section) -> bytes:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(section.columns)
    for row in section.rows:
        writer.writerow(spreadsheet_value(visible(value)) for value in row)
    return text.getvalue().encode()


def _table(section: _Section) -> str:
    head = "".join(f"<th>{html.escape(name)}</th>" for name in section.columns)
    rows = "".join(
        "<tr>" + "".join(f"<td>{_escaped(value)}</td>" for value in row) + "</tr>\n"
        for row in section.rows[:_SHOWN]
    )
    left = len(section.rows) - _SHOWN
    more = f"<p>{left} more in {section.name}.csv</p>\n" if left > 0 else ""
    body = f"<table><thead><tr>{head}</tr></thead>\n{rows}</table>\n" if rows else "<p>none</p>\n"
    title = f"<h2>{html.escape(section.title)}</h2>\n<p>{html.escape(section.about)}</p>\n"
    return title + body + more


_STYLE = (
    "body{font:10pt sans-serif;margin:1.5cm}table{border-collapse:collapse;margin:.5em 0}"
    "td,th{border:1px solid #999;padding:2px 5px;text-align:left;vertical-align:top;"
    "overflow-wrap:anywhere}thead{display:table-header-group}tr{break-inside:avoid}"
    "h2{break-after:avoid}@page{size:A4 landscape;margin:1cm}@media print{body{margin:0}}"
)


def _escaped(value: str) -> str:
    return html.escape(visible(value))


def _iso(moment: dt.datetime) -> str:
    return moment.astimezone(dt.UTC).isoformat().replace("+00:00", "Z")


def _part(fact: Fact, name: str) -> Mapping[str, Any]:
    value = fact.get(name)
    return value if isinstance(value, Mapping) else {}
