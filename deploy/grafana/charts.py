"""How the dashboards look: one function a kind of panel, over grafana-foundation-sdk.

Every panel has a title, a sentence that says what it shows and what to look for, a unit, and names for its series.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

from grafana_foundation_sdk.builders import common, heatmap, stat, statetimeline, table, timeseries
from grafana_foundation_sdk.builders import dashboard as dashboards
from grafana_foundation_sdk.builders import prometheus as queries
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models import common as looks
from grafana_foundation_sdk.models import dashboard as models
from grafana_foundation_sdk.models.heatmap import HeatmapColorMode, HeatmapColorScale
from grafana_foundation_sdk.models.prometheus import PromQueryFormat

SOURCE = models.DataSourceRef(type_val="prometheus", uid="${datasource}")
GREEN, YELLOW, ORANGE, RED, BLUE, GREY = "green", "yellow", "orange", "red", "blue", "text"
Panel = timeseries.Panel | stat.Panel | statetimeline.Panel | heatmap.Panel | table.Panel
P = TypeVar("P", timeseries.Panel, stat.Panel, statetimeline.Panel, heatmap.Panel, table.Panel)
Steps = Sequence[tuple[float | None, str]]
"""Where a colour begins, from below; the first has no beginning."""
Words = dict[str, tuple[str, str]]
"""What a value is called, and its colour."""


@dataclass(frozen=True)
class Query:
    """What a panel asks Prometheus, and the name of each series of the answer."""

    expr: str
    legend: str


def lines(
    title: str,
    says: str,
    unit: str,
    *asked: Query,
    width: int = 12,
    stacked: bool = False,
    bars: bool = False,
    least: float | None = 0,
    most: float | None = None,
    steps: Steps | None = None,
    logarithmic: bool = False,
) -> timeseries.Panel:
    """Return curves over time.

    Args:
        title: of the panel.
        says: its description.
        unit: of Grafana: "s", "bytes", "percentunit".
        asked: the queries.
        width: of 24 columns.
        stacked: areas on top of each other.
        bars: bars instead of curves, for what is counted.
        least: where the axis begins; None where the values say.
        most: where it ends.
        steps: limits, drawn as dashed lines.
        logarithmic: a logarithmic axis.
    """
    panel = timeseries.Panel().unit(unit).fill_opacity(25 if stacked else 60 if bars else 8).line_width(1)
    panel.legend(_legend()).tooltip(_tooltip()).show_points(looks.VisibilityMode.AUTO)
    if bars:
        panel.draw_style(looks.GraphDrawStyle.BARS)
    if stacked:
        panel.stacking(common.StackingConfig().mode(looks.StackingMode.NORMAL).group("A"))
    if least is not None and not logarithmic:
        panel.min(least)
    if most is not None:
        panel.max(most)
    if steps is not None:
        panel.thresholds(_thresholds(steps))
        panel.thresholds_style(common.GraphThresholdsStyleConfig().mode(looks.GraphTresholdsStyleMode.DASHED))
    if logarithmic:
        panel.scale_distribution(common.ScaleDistributionConfig().type(looks.ScaleDistribution.LOG).log(10))
    return _asking(_named(panel, title, says, width, 8), asked)


def figure(
    title: str,
    says: str,
    unit: str,
    *asked: Query,
    width: int = 4,
    steps: Steps = ((None, BLUE),),
    words: Words | None = None,
    decimals: int | None = None,
    background: bool = False,
    names: bool = False,
) -> stat.Panel:
    """Return large figures of now; with ``names`` each series' name stands beside its value."""
    panel = stat.Panel().unit(unit).thresholds(_thresholds(steps)).graph_mode(looks.BigValueGraphMode.NONE)
    mode = looks.BigValueColorMode.BACKGROUND if background else looks.BigValueColorMode.VALUE
    panel.color_mode(mode).reduce_options(common.ReduceDataOptions().calcs(["lastNotNull"]).values(False))
    panel.text_mode(looks.BigValueTextMode.VALUE_AND_NAME if names else looks.BigValueTextMode.VALUE)
    if words is not None:
        panel.mappings(_mappings(words))
    if decimals is not None:
        panel.decimals(decimals)
    return _asking(_named(panel, title, says, width, 4), asked, instant=True)


def timeline(
    title: str,
    says: str,
    *asked: Query,
    unit: str = "none",
    width: int = 24,
    height: int = 7,
    words: Words | None = None,
) -> statetimeline.Panel:
    """Return bands over time, one a series: what state it was in, and when that changed."""
    panel = statetimeline.Panel().unit(unit).merge_values(True).row_height(0.8).fill_opacity(75)
    panel.legend(common.VizLegendOptions().show_legend(False)).show_value(looks.VisibilityMode.AUTO)
    panel.tooltip(_tooltip())
    if words is not None:
        panel.mappings(_mappings(words))
    if words is None:
        # Numbers, of rounds: darker as they grow, and none of them is a warning.
        panel.color_scheme(dashboards.FieldColor().mode(models.FieldColorModeId.CONTINUOUS_BLUES))
    return _asking(_named(panel, title, says, width, height), asked)


def heat(title: str, says: str, unit: str, buckets: str, *, width: int = 12) -> heatmap.Panel:
    """Return a heatmap of a histogram over time.

    Args:
        title: of the panel.
        says: its description.
        unit: of the histogram's limits.
        buckets: a query that keeps the label `le`.
        width: of 24 columns.
    """
    panel = heatmap.Panel().calculate(False).cell_gap(1)
    panel.y_axis(heatmap.YAxisConfig().unit(unit).axis_placement(looks.AxisPlacement.LEFT))
    panel.color(
        heatmap.HeatmapColorOptions()
        .mode(HeatmapColorMode.SCHEME)
        .scheme("Oranges")
        .scale(HeatmapColorScale.EXPONENTIAL)
        .exponent(0.5)
        .steps(64)
    )
    panel.cell_values(heatmap.CellValues().decimals(0)).show_legend().show_tooltip().unit(unit)
    _named(panel, title, says, width, 8)
    panel.with_target(_target(Query(buckets, "{{le}}"), "A").format(PromQueryFormat.HEATMAP).range())
    return panel


def rows(
    title: str, says: str, unit: str, asked: Query, columns: dict[str, str], *, width: int = 12, steps: Steps
) -> table.Panel:
    """Return a table of now, smallest value first: one row a series, one column a label.

    Args:
        title: of the panel.
        says: its description.
        unit: of the values.
        asked: the query.
        columns: headings by label, in order; `Value` is the value.
        width: of 24 columns.
        steps: the value's colours.
    """
    panel = table.Panel().unit(unit).thresholds(_thresholds(steps)).show_header(True)
    panel.sort_by([common.TableSortByFieldState().display_name(columns["Value"])])
    panel.override_by_name(
        columns["Value"],
        [models.DynamicConfigValue("custom.cellOptions", {"type": "color-background", "mode": "basic"})],
    )
    organize = {
        "includeByName": dict.fromkeys(columns, True),
        "indexByName": {name: index for index, name in enumerate(columns)},
        "renameByName": columns,
    }
    panel.with_transformation(models.DataTransformerConfig("organize", options=organize))
    _named(panel, title, says, width, 8)
    panel.with_target(_target(asked, "A").format(PromQueryFormat.TABLE).instant())
    return panel


class Board:
    """A dashboard: variables, and rows of panels.

    Args:
        uid: by which Grafana and links know it.
        title: of the dashboard.
        says: its description.
        tags: to find it by.
        span: of time that it shows at first.
    """

    def __init__(self, uid: str, title: str, says: str, *, tags: Sequence[str], span: str) -> None:
        self._board = (
            dashboards.Dashboard(title)
            .uid(uid)
            .description(says)
            .tags(list(tags))
            .time(f"now-{span}", "now")
            .refresh("30s")
            .timezone("browser")
            .tooltip(models.DashboardCursorSync.CROSSHAIR)
            .readonly()
            .link(
                dashboards.DashboardLink("fedpath")
                .type(models.DashboardLinkType.DASHBOARDS)
                .tags(["fedpath"])
                .as_dropdown(True)
                .keep_time(True)
            )
            .with_variable(dashboards.DatasourceVariable("datasource").label("Prometheus").type("prometheus"))
        )
        self._panels = 0

    def variable(self, name: str, label: str, says: str, query: str) -> None:
        """Let the reader choose values of a label, all of them at first."""
        self._board.with_variable(
            dashboards.QueryVariable(name)
            .label(label)
            .description(says)
            .query(query)
            .datasource(SOURCE)
            .multi(True)
            .include_all(True)
            .all_value(".*")
            .current(models.VariableOption(selected=True, text=["All"], value=["$__all"]))
            .refresh(models.VariableRefresh.ON_TIME_RANGE_CHANGED)
            .sort(models.VariableSort.ALPHABETICAL_CASE_INSENSITIVE_ASC)
        )

    def alerts(self, name: str, expr: str) -> None:
        """Mark on every panel when an alert was firing."""
        annotation = dashboards.AnnotationQuery().name(name).datasource(SOURCE).enable(True).icon_color(RED).expr(expr)
        self._board.annotation(annotation)

    def row(self, title: str, *panels: Panel) -> None:
        """Add panels under a heading."""
        self._board.with_row(dashboards.Row(title).id(self._next()))
        for panel in panels:
            self._board.with_panel(panel.id(self._next()))

    def json(self) -> str:
        """Return the dashboard as Grafana imports it."""
        content = json.loads(JSONEncoder().encode(self._board.build()))
        # The SDK gives every variable the same id, which Grafana does not read.
        for variable in content["templating"]["list"]:
            variable.pop("id", None)
        return json.dumps(content, indent=2, sort_keys=True, ensure_ascii=False) + "\n"

    def _next(self) -> int:
        self._panels += 1
        return self._panels


def _named(panel: P, title: str, says: str, width: int, height: int) -> P:
    return panel.title(title).description(says).datasource(SOURCE).span(width).height(height)


def _asking(panel: P, asked: Sequence[Query], *, instant: bool = False) -> P:
    for place, query in enumerate(asked):
        target = _target(query, chr(ord("A") + place))
        panel.with_target(target.instant() if instant else target.range())
    return panel


def _target(query: Query, ref: str) -> queries.Dataquery:
    return queries.Dataquery().expr(query.expr).legend_format(query.legend).ref_id(ref).datasource(SOURCE)


def _legend() -> common.VizLegendOptions:
    return (
        common.VizLegendOptions()
        .display_mode(looks.LegendDisplayMode.LIST)
        .placement(looks.LegendPlacement.BOTTOM)
        .show_legend(True)
        .calcs([])
    )


def _tooltip() -> common.VizTooltipOptions:
    return common.VizTooltipOptions().mode(looks.TooltipDisplayMode.MULTI).sort(looks.SortOrder.DESCENDING)


def _thresholds(steps: Steps) -> dashboards.ThresholdsConfig:
    return (
        dashboards.ThresholdsConfig()
        .mode(models.ThresholdsMode.ABSOLUTE)
        .steps([models.Threshold(value=value, color=colour) for value, colour in steps])
    )


def _mappings(words: Words) -> list[models.ValueMapping]:
    results = {
        value: models.ValueMappingResult(text=text, color=colour, index=place)
        for place, (value, (text, colour)) in enumerate(words.items())
    }
    return [models.ValueMap(options=results)]
