"""Pages of the boards for Prometheus alone: its console templates, without scripts.

Prometheus serves them under ``/consoles/`` with ``--web.console.templates``. They have the values
of this moment; every value links to its graph.
"""

from __future__ import annotations

import html
import re
from collections.abc import Sequence
from urllib.parse import quote

from estmonitoring.boards import RATE, Board, Panel, Query

_WINDOW = "5m"
_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 72rem; padding: 0 1rem; }
body { color: #1c2128; }
a { color: #0550ae; text-decoration: none; }
a:hover { text-decoration: underline; }
nav a { margin-right: 1rem; }
h2 { border-bottom: 1px solid #d0d7de; margin-top: 2rem; }
section { display: grid; grid-template-columns: repeat(auto-fill, minmax(20rem, 1fr)); }
section { gap: 1.4rem; align-items: start; }
table { border-collapse: collapse; width: 100%; }
caption { text-align: left; font-weight: 600; padding-bottom: .2rem; }
td { border-top: 1px solid #eaeef2; padding: .15rem .3rem; }
td:last-child { text-align: right; font-variant-numeric: tabular-nums; }
.none { color: #6e7781; }
small { color: #57606a; display: block; font-weight: 400; }
"""
_VALUES = {
    "short": "{{ .Value | humanize }}",
    "reqps": "{{ .Value | humanize }}/s",
    "ops": "{{ .Value | humanize }}/s",
    "s": "{{ .Value | humanizeDuration }}",
    "percentunit": "{{ .Value | humanizePercentage }}",
    "bytes": "{{ .Value | humanize1024 }}B",
    "d": '{{ printf "%.1f" .Value }} days',
    "dateTimeFromNow": "{{ .Value | humanizeTimestamp }}",
    "bool_yes_no": "{{ if eq .Value 1.0 }}yes{{ else }}no{{ end }}",
}
_LABEL = re.compile(r"\{\{(\w+)\}\}")


def rendered(board: Board, boards: Sequence[Board]) -> str:
    """Return the console template of a board, with links to the others."""
    links = "".join(f'<a href="{b.name}.html">{html.escape(b.title)}</a>' for b in boards)
    parts = [
        "<!DOCTYPE html>\n<!-- Made from deploy/estmonitoring; do not edit. -->",
        f'<html lang="en"><head><meta charset="utf-8"><title>{html.escape(board.title)}</title>',
        f"<style>{_STYLE}</style></head><body>",
        f"<nav>{links}</nav><h1>{html.escape(board.title)}</h1><p>{html.escape(board.about)}</p>",
    ]
    for row in board.rows:
        tables = "\n".join(_table(panel) for panel in row.panels)
        parts.append(f"<h2>{html.escape(row.title)}</h2>\n<section>\n{tables}\n</section>")
    return "\n".join([*parts, "</body></html>\n"])


def expression(query: Query) -> str:
    """Return a query as Prometheus itself takes it."""
    return query.expression.replace(RATE, _WINDOW)


def _table(panel: Panel) -> str:
    about = f"<small>{html.escape(panel.about)}</small>" if panel.about else ""
    rows = "\n".join(_rows(panel, query) for query in panel.queries)
    return f"<table><caption>{html.escape(panel.title)}{about}</caption>\n{rows}\n</table>"


def _rows(panel: Panel, query: Query) -> str:
    asked = expression(query)
    literal = '"' + asked.replace("\\", "\\\\").replace('"', '\\"') + '"'
    legend = _LABEL.sub(r"{{ .Labels.\1 }}", html.escape(query.legend))
    graph = f"../graph?g0.expr={quote(asked)}&amp;g0.tab=0"
    nothing = html.escape(" ".join(_LABEL.sub("", query.legend).split())) or "nothing recorded"
    return (
        f'{{{{ with query {literal} }}}}{{{{ range . | sortByLabel "instance" }}}}'
        f'<tr><td><a href="{graph}">{legend}</a></td><td>{_VALUES[panel.unit]}</td></tr>'
        f'{{{{ end }}}}{{{{ else }}}}<tr><td class="none">{nothing}</td><td class="none">none</td>'
        "</tr>{{ end }}"
    )
