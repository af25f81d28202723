"""What the dashboards show: boards of rows of panels, independent of the tool that draws them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Unit = Literal[
    "short", "reqps", "ops", "s", "percentunit", "bytes", "d", "dateTimeFromNow", "bool_yes_no"
]
RATE = "$__rate_interval"
"""Grafana's own window of a rate."""
FIRING = 'count by (alertname, severity) (ALERTS{alertstate="firing",alertname=~"EST.*"})'


@dataclass(frozen=True)
class Query:
    """A PromQL expression. ``legend`` names its series, with labels in double braces."""

    expression: str
    legend: str


@dataclass(frozen=True)
class Panel:
    """One graph, or with ``stat`` one number for each series. ``about`` is its help."""

    title: str
    unit: Unit
    queries: tuple[Query, ...]
    about: str = ""
    stat: bool = False
    wide: bool = False
    stacked: bool = False


@dataclass(frozen=True)
class Row:
    """Panels that belong together."""

    title: str
    panels: tuple[Panel, ...]


@dataclass(frozen=True)
class Board:
    """One dashboard. ``name`` is its file name and identifier."""

    name: str
    title: str
    about: str
    rows: tuple[Row, ...]

    @property
    def panels(self) -> list[Panel]:
        """The panels of all rows."""
        return [panel for row in self.rows for panel in row.panels]


def panel(
    title: str, unit: Unit, *queries: tuple[str, str], about: str = "", stat: bool = False,
    wide: bool = False, stacked: bool = False,
) -> Panel:  # fmt: skip
    """Return a panel of pairs of expression and legend."""
    found = tuple(Query(expression, legend) for expression, legend in queries)
    return Panel(title, unit, found, about, stat, wide, stacked)


def rate(metric: str, *by: str) -> str:
    """Return the rate of a counter, summed by labels."""
    return f"sum{_by(by)} (rate({metric}[{RATE}]))"


def quantile(share: float, metric: str, *by: str, matching: str = "") -> str:
    """Return a quantile of a histogram; ``matching`` are matchers of labels."""
    buckets = f"{metric}_bucket{{{matching}}}" if matching else f"{metric}_bucket"
    return f"histogram_quantile({share}, sum{_by(('le', *by))} (rate({buckets}[{RATE}])))"


def quantiles(metric: str, *by: str, matching: str = "") -> tuple[tuple[str, str], ...]:
    """Return median, p95 and p99 of a histogram, with legends."""
    names = " ".join(f"{{{{{label}}}}}" for label in by)
    return tuple(
        (quantile(share, metric, *by, matching=matching), f"{name} {names}".strip())
        for share, name in ((0.5, "median"), (0.95, "p95"), (0.99, "p99"))
    )


def _by(labels: tuple[str, ...]) -> str:
    return f" by ({', '.join(labels)})" if labels else ""
