"""Grafana dashboards of the boards, with Grafana's own SDK."""

from __future__ import annotations

from grafana_foundation_sdk.builders import common, dashboard, prometheus, stat, timeseries
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models.common import (
    BigValueColorMode,
    LegendDisplayMode,
    LegendPlacement,
    StackingMode,
    TooltipDisplayMode,
    VisibilityMode,
)
from grafana_foundation_sdk.models.dashboard import DashboardCursorSync, DataSourceRef

from estmonitoring.boards import Board, Panel

_SOURCE = DataSourceRef(type_val="prometheus", uid="${datasource}")
_WIDTH, _HALF, _QUARTER = 24, 12, 6
_GRAPH_HEIGHT, _STAT_HEIGHT = 8, 5


def rendered(board: Board) -> str:
    """Return the JSON that Grafana imports."""
    builder = (
        dashboard.Dashboard(board.title)
        .uid(f"estsuite-{board.name}")
        .description(board.about)
        .tags(["estsuite"])
        .editable()
        .refresh("1m")
        .time("now-6h", "now")
        .timezone("browser")
        .tooltip(DashboardCursorSync.CROSSHAIR)
        .link(
            dashboard.DashboardLink("Other dashboards of the suite")
            .type("dashboards")  # type: ignore[arg-type] # the SDK's enumeration has no values
            .tags(["estsuite"])
            .as_dropdown(True)
        )
        .with_variable(
            dashboard.DatasourceVariable("datasource").label("Prometheus").type("prometheus")
        )
    )
    for row in board.rows:
        builder.with_row(dashboard.Row(row.title))
        for panel in row.panels:
            builder.with_panel(_stat(panel) if panel.stat else _graph(panel))
    return JSONEncoder(sort_keys=True, indent=1).encode(builder.build()) + "\n"


def _queries(panel: Panel) -> list[prometheus.Dataquery]:
    return [
        prometheus.Dataquery()
        .expr(query.expression)
        .legend_format(query.legend)
        .ref_id(chr(ord("A") + place))
        for place, query in enumerate(panel.queries)
    ]


def _graph(panel: Panel) -> timeseries.Panel:
    found = (
        timeseries.Panel()
        .title(panel.title)
        .datasource(_SOURCE)
        .unit(panel.unit)
        .min(0)
        .height(_GRAPH_HEIGHT)
        .span(_WIDTH if panel.wide else _HALF)
        .fill_opacity(30 if panel.stacked else 8)
        .show_points(VisibilityMode.NEVER)
        .legend(
            common.VizLegendOptions()
            .display_mode(LegendDisplayMode.LIST)
            .placement(LegendPlacement.BOTTOM)
            .show_legend(True)
        )
        .tooltip(common.VizTooltipOptions().mode(TooltipDisplayMode.MULTI))
    )
    if panel.about:
        found.description(panel.about)
    if panel.stacked:
        found.stacking(common.StackingConfig().mode(StackingMode.NORMAL).group("A"))
    for query in _queries(panel):
        found.with_target(query)
    return found


def _stat(panel: Panel) -> stat.Panel:
    found = (
        stat.Panel()
        .title(panel.title)
        .datasource(_SOURCE)
        .unit(panel.unit)
        .height(_STAT_HEIGHT)
        .span(_QUARTER)
        .color_mode(BigValueColorMode.VALUE)
        .no_value("none")
    )
    if panel.about:
        found.description(panel.about)
    for query in _queries(panel):
        found.with_target(query.instant())
    return found
