"""The plots of docs/benchmarks.md as SVG: cost, latency, growth."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from estbench.report import KINDS, SUITE, enrollment, loads, servers
from estbench.results import Results, Summary, summary

_PARTS = ("#4c72b0", "#dd8452", "#55a868", "#c44e52", "#8172b3", "#937860", "#64b5cd", "#8c8c8c")
_PEERS = ("#7f7f7f", "#a6a6a6", "#cccccc")
_STYLE: dict[Any, object] = {
    "svg.hashsalt": "estbench",
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
}


def write(results: Results, folder: Path) -> None:
    """Write every plot for which there are results; equal results make equal files."""
    with mpl.rc_context(_STYLE):
        _save(_cost(results), folder / "cost.svg")
        _save(_latency(results), folder / "latency.svg")
        (folder / "growth.svg").unlink(missing_ok=True)
        if results.growth:
            _save(_growth(results), folder / "growth.svg")


def _save(figure: Figure, path: Path) -> None:
    figure.savefig(path, format="svg", metadata={"Date": None})


def _labels(axes: Axes, results: Results) -> None:
    texts = [f"{KINDS[kind]}\nc = {c}" for kind, c in loads(results)]
    axes.set_xticks(range(len(texts)), texts)


def _cost(results: Results) -> Figure:
    """Bars by load: the suite stacked by service, each peer beside it."""
    figure = Figure(figsize=(9, 4.2), layout="constrained")
    axes = figure.subplots()
    names = servers(results)
    width = 0.8 / len(names)
    for place, (kind, c) in enumerate(loads(results)):
        for n, name in enumerate(names):
            found = enrollment(results, name, kind, c)
            if found is None:
                continue
            left = place - 0.4 + (n + 0.5) * width
            if name == SUITE:
                _stack(axes, left, width, found, legend=place == 0)
            else:
                label = name if place == 0 else None
                axes.bar(left, found.cpu_ms, width * 0.92, color=_PEERS[n - 1], label=label)
    _labels(axes, results)
    axes.set_ylabel("CPU-ms per enrollment, median")
    axes.legend(frameon=False, ncols=2)
    return figure


def _stack(axes: Axes, left: float, width: float, found: Summary, *, legend: bool) -> None:
    bottom = 0.0
    for color, (part, ms) in zip(_PARTS, found.parts.items(), strict=False):
        label = part if legend else None
        axes.bar(left, ms, width * 0.92, bottom=bottom, color=color, label=label)
        bottom += ms


def _latency(results: Results) -> Figure:
    """From p50 to p99 by load, on a logarithmic scale."""
    figure = Figure(figsize=(9, 4.2), layout="constrained")
    axes = figure.subplots()
    names = servers(results)
    colors = (_PARTS[0], _PARTS[1], _PARTS[2], _PEERS[0])
    for n, name in enumerate(names):
        for place, (kind, c) in enumerate(loads(results)):
            found = enrollment(results, name, kind, c)
            if found is None:
                continue
            at = place - 0.3 + 0.6 * n / max(len(names) - 1, 1)
            axes.vlines(at, found.p50_ms, found.p99_ms, color=colors[n], linewidth=3)
            axes.plot(at, found.p50_ms, "o", color=colors[n], label=name if place == 0 else None)
            axes.plot(at, found.p99_ms, "_", color=colors[n], markersize=9)
    _labels(axes, results)
    axes.set_yscale("log")
    axes.set_ylabel("ms, p50 (dot) to p99 (dash)")
    axes.legend(frameon=False)
    return figure


def _growth(results: Results) -> Figure:
    """The suite stacked by service, for each number of rows, later and right after a checkpoint."""
    figure = Figure(figsize=(6, 4.2), layout="constrained")
    axes = figure.subplots()
    texts: list[str] = []
    for after_checkpoint in (False, True):
        for rows in sorted({m.rows for m in results.growth}):
            found = summary(results.growth, rows=rows, after_checkpoint=after_checkpoint)
            if found is None:
                continue
            _stack(axes, len(texts), 0.7, found, legend=not texts)
            texts.append(f"{rows:,} rows" + ("\nafter a checkpoint" if after_checkpoint else ""))
    axes.set_xticks(range(len(texts)), texts)
    axes.set_ylabel("CPU-ms per enrollment, median")
    axes.legend(frameon=False, ncols=2, loc="upper left")
    axes.margins(y=0.35)
    return figure
