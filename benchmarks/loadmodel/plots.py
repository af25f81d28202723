"""The plots of docs/scaling.md as SVG: a day, an outage, a lost root."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure

from loadmodel.incident import Incident
from loadmodel.simulation import LARGE, Everything

_COLORS = ("#c44e52", "#dd8452", "#4c72b0", "#7f7f7f")
_STYLE: dict[Any, object] = {
    "svg.hashsalt": "loadmodel",
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
}
_QUARTER_S = 15 * 60


def write(simulated: Everything, folder: Path) -> None:
    """Write every plot; equal outcomes make equal files."""
    with mpl.rc_context(_STYLE):
        _save(_day(simulated), folder / "day.svg")
        _save(_outage(simulated), folder / "outage.svg")
        _save(_incident(simulated), folder / "incident.svg")


def _save(figure: Figure, path: Path) -> None:
    figure.savefig(path, format="svg", metadata={"Date": None})


def _day(simulated: Everything) -> Figure:
    """Renewals a second, quarter by quarter of an hour."""
    figure = Figure(figsize=(9, 3.2), layout="constrained")
    axes = figure.subplots()
    day = next(d for d in simulated.days if d.certificates == LARGE and d.mix == "mixed")
    rates = [n / _QUARTER_S for n in day.per_quarter_hour]
    axes.step([n / 4 for n in range(len(rates))], rates, where="post", color=_COLORS[2])
    axes.axhline(day.peak_minute_per_s, color=_COLORS[0], linestyle=":", label="busiest minute")
    axes.axhline(day.mean_per_s, color=_COLORS[3], linestyle="--", label="mean")
    axes.set(
        xlabel="hour",
        ylabel="renewals a second",
        xlim=(0, 24),
        ylim=(0, 1.15 * day.peak_minute_per_s),
    )
    axes.legend(frameon=False, loc="lower right")
    return figure


def _outage(simulated: Everything) -> Figure:
    """Agents that wait, and their connections, with and without a longer Retry-After."""
    figure = Figure(figsize=(9, 3.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    for color, scenario in zip((_COLORS[0], _COLORS[2]), simulated.outage, strict=True):
        label = f"Retry-After {scenario.retry_after_s:.0f} s"
        outcome = scenario.outcome
        left.plot(outcome.waiting_per_minute, color=color, label=label)
        # The last minute is one that ends early.
        rates = [n / 60 for n in outcome.connections_per_minute[:-1]]
        right.plot(rates, color=color, label=label)
    left.set(xlabel="minute", ylabel="agents that wait", ylim=(0, None))
    right.set(xlabel="minute", ylabel="connections a second", ylim=(0, None))
    left.legend(frameon=False)
    return figure


def _incident(simulated: Everything) -> Figure:
    """Certificates left by priority, with the fewest signers and with the most."""
    figure = Figure(figsize=(9, 3.2), layout="constrained")
    slow, fast = simulated.incidents[0], simulated.incidents[-1]
    for axes, incident in zip(figure.subplots(1, 2, sharey=True), (slow, fast), strict=True):
        _left(axes, incident)
    return figure


def _left(axes: Any, incident: Incident) -> None:
    for color, (priority, left) in zip(_COLORS, incident.left_per_minute.items(), strict=True):
        hours = [(minute + 1) / 60 for minute in range(len(left))]
        axes.plot(hours, [n / 1e6 for n in left], color=color, label=priority)
    axes.set(xlabel="hour", ylabel="certificates left, million", ylim=(0, None))
    axes.set_title(f"{incident.signed_per_s:,} signed a second", fontsize=9)
    axes.legend(frameon=False)
