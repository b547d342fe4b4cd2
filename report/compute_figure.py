"""The figure "quality against compute", its labels placed so that none covers another."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from report import drawing, palette
from report.case_table import table_title
from report.compute import CONFIDENCE, Point, data_of, pareto, points
from report.cost import Cost
from report.experiment import Case, Model

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.transforms import Bbox

_AXES = {
    "flops": "FLOPs of making the merge, its search and its teachers included (logarithmic)",
    "cpu_s": "CPU seconds of the same, measured (logarithmic)",
}
_RAISED = str.maketrans("0123456789-", "⁰¹²³⁴⁵⁶⁷⁸⁹⁻")
_DOT = 4.0  # half a point's width in typographic points, for what labels must not cover


def _decade_below(values: Sequence[float]) -> float:
    """Return where a logarithmic axis shows 0: a decade below all that is positive."""
    positive = [value for value in values if value > 0]
    return 10.0 ** (math.floor(math.log10(min(positive))) - 1) if positive else 1.0


def _front(axes: Axes, costs: Sequence[float], values: Sequence[float]) -> None:
    line = pareto(costs, values)
    x = [costs[place] for place in line] + [axes.get_xlim()[1]]
    y = [values[place] for place in line] + [values[line[-1]]]
    axes.step(x, y, where="post", color=palette.LINE, linewidth=1.0, linestyle="--", zorder=1)


def _places(x: float, y: float, size: Bbox, reach: float) -> Iterator[tuple[float, Bbox]]:
    """Yield boxes for a label with their distance from (x, y) in `reach`, near ones first."""
    from matplotlib.transforms import Bbox

    for radius in (1.6, *range(3, 40)):
        # Right and left first, where a label is read with its point most easily.
        for turn in (0, 8, 1, 15, 7, 9, 2, 14, 6, 10, 3, 13, 5, 11, 4, 12):
            angle = math.pi * turn / 8
            left = x + radius * reach * math.cos(angle) * 1.4
            left -= size.width * (1 - math.cos(angle)) / 2
            middle = y + radius * reach * math.sin(angle)
            yield radius, Bbox.from_bounds(left, middle - size.height / 2, size.width, size.height)


def _sides(box: Bbox) -> tuple[float, float, float, float]:
    return float(box.x0), float(box.y0), float(box.x1), float(box.y1)


def place_labels(
    axes: Axes, costs: Sequence[float], values: Sequence[float], texts: Sequence[str]
) -> list[Bbox]:
    """Write a label near each point so that labels cover neither points nor each other.

    Each takes the first free place on rings of growing radius; a thin line leads to the point
    from a place that is not next to it.

    Args:
        axes: The panel, whose limits and size are final.
        costs: The points' x in data units.
        values: Their y in data units.
        texts: The labels; an empty one is not written.

    Returns:
        The labels' boxes (matplotlib's Bbox in pixels), one a written text.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.transforms import Bbox

    # Without a white ground the Pareto line would strike through the text.
    ground = {"facecolor": "white", "edgecolor": "none", "pad": 0.3}
    assert isinstance(axes.figure.canvas, FigureCanvasAgg)  # `compute_figure` makes it so
    renderer = axes.figure.canvas.get_renderer()
    inside = axes.get_window_extent(renderer)
    to_data = axes.transData.inverted()
    dots = [tuple(axes.transData.transform(point)) for point in zip(costs, values, strict=True)]
    reach = _DOT * axes.figure.dpi / 72
    # Left, bottom, right, top: a hundred labels compare a million pairs, slow as Bbox objects.
    taken = [(x - reach, y - reach, x + reach, y + reach) for x, y in dots]
    boxes = []

    def free(box: Bbox) -> bool:
        left, bottom, right, top = _sides(box)
        within = inside.x0 <= left and right <= inside.x1
        within = within and inside.y0 <= bottom and top <= inside.y1
        return within and not any(
            left <= x1 and x0 <= right and bottom <= y1 and y0 <= top for x0, y0, x1, y1 in taken
        )

    # From the top, so that the labels of a crowd keep the order of their points.
    for place in sorted(range(len(texts)), key=lambda i: (-dots[i][1], dots[i][0])):
        if not texts[place]:
            continue
        x, y = dots[place]
        text = axes.text(0, 0, texts[place], fontsize=6.5, va="center", ha="left", zorder=5)
        text.set_bbox(ground)
        size = text.get_window_extent(renderer)
        fallback = math.inf, Bbox.from_bounds(x + reach, y, size.width, size.height)
        found = (pair for pair in _places(x, y, size, reach) if free(pair[1]))
        radius, best = next(found, fallback)
        at_x, at_y = to_data.transform((best.x0, (best.y0 + best.y1) / 2))
        text.set_position((at_x, at_y))
        if radius > 3:
            end = (min(max(x, best.x0), best.x1), min(max(y, best.y0), best.y1))
            path = to_data.transform([(x, y), end])
            axes.plot(path[:, 0], path[:, 1], color=palette.LEADER, linewidth=0.5, zorder=1)
        taken.append(_sides(best))
        boxes.append(best)
    return boxes


def _panel(
    axes: Axes, found: Sequence[Point], axis: str, colour: Callable[[Model], tuple[float, ...]]
) -> tuple[list[float], list[float]]:
    given = [getattr(point, axis) for point in found]
    none = _decade_below(given)  # a logarithmic axis has no zero
    costs = [max(value, none) for value in given]
    values = [point.score.value for point in found]
    reach = [CONFIDENCE * point.score.stderr for point in found]
    low_ends, high_ends = (
        [value + side * far for value, far in zip(values, reach, strict=True)] for side in (-1, 1)
    )
    axes.vlines(costs, low_ends, high_ends, color=palette.INTERVAL, linewidth=0.8, zorder=2.8)
    for mark, kind in (("o", True), ("s", False)):
        of_kind = [i for i, point in enumerate(found) if point.model.best_of is kind]
        axes.scatter(
            [costs[i] for i in of_kind],
            [values[i] for i in of_kind],
            marker=mark,
            s=25,
            c=[colour(found[i].model) for i in of_kind],
            edgecolors=palette.EDGE,
            linewidths=0.5,
            zorder=3,
        )
    axes.set_xscale("log")
    axes.set_xlim(min(costs) / 2, max(costs) * 8)
    low, high = min(values), max(values)
    axes.set_ylim(low - 0.09 * (high - low) - 0.03, high + 0.09 * (high - low) + 0.03)
    start, end = (math.log10(edge) for edge in axes.get_xlim())
    exponents = range(math.ceil(start), math.floor(end) + 1)
    if min(given) == 0:
        exponents = range(round(math.log10(none)) + 1, math.floor(end) + 1)
    # Unicode's raised digits take a tenth of the time of matplotlib's mathematics.
    ticks = {10.0**power: "10" + str(power).translate(_RAISED) for power in exponents}
    ticks = ({none: "none"} if min(given) == 0 else {}) | ticks
    axes.set_xticks(list(ticks), list(ticks.values()))
    axes.minorticks_off()
    if min(given) == 0:
        axes.axvline(none * 3, color=palette.FRAME, linewidth=0.8, linestyle=":")
    rivals = [i for i, point in enumerate(found) if point.model.best_of]
    if rivals:
        _front(axes, [costs[i] for i in rivals], [values[i] for i in rivals])
    axes.grid(color=palette.FINE_GRID, linewidth=0.5)
    axes.set_axisbelow(True)
    axes.set_xlabel(_AXES[axis])
    axes.set_ylabel(f"test average, {round(100 * math.erf(CONFIDENCE / math.sqrt(2)))} % interval")
    return costs, values


def _finish(
    figure: Figure,
    handles: Sequence[Artist],
    placed: Sequence[tuple[Axes, Sequence[float], Sequence[float]]],
    merges: Sequence[Point],
) -> None:
    """Add the legend, and to every panel (axes, costs, values) the labels of its points."""
    from matplotlib.lines import Line2D

    line = Line2D([], [], color=palette.LINE, linestyle="--", label="Pareto line")
    drawing.legend(figure, [*handles, line])
    high = {
        point.model.id for point in sorted(merges, key=lambda p: -p.score.value)[: drawing.MOST]
    }
    named = [point.model.id in high for point in merges]
    texts = [
        drawing.written(point.model.label) if one else ""
        for point, one in zip(merges, named, strict=True)
    ]
    for axes, costs, values in placed:
        place_labels(axes, costs, values, texts)


def _sheet(panels: int, entries: int, height: float = 5.2) -> tuple[Figure, list[Axes]]:
    """Make a figure of panels one below another, with room for a legend's entries."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    below = drawing.legend_height(entries + 1)
    figure = Figure(figsize=(10, height * panels))
    FigureCanvasAgg(figure)
    space = drawing.margins(figure, 0.65, 0.1, 0.35, below + 0.5, hspace=0.12)
    return figure, list(figure.subplots(panels, 1, squeeze=False, gridspec_kw=space)[:, 0])


def compute_figure(case: Case, found: Sequence[Cost], config: Mapping[str, Any]) -> Figure:
    """Draw a case's merges over their FLOPs and over their CPU seconds, with Pareto lines.

    Squares are rows that take no part in the marks for the best merge, nor in the Pareto line.
    """
    merges = points(case, found)
    colour = functools.partial(palette.colour, config=config)
    handles = palette.handles([point.model for point in merges], config)
    figure, panels = _sheet(len(_AXES), len(handles))
    placed = []
    for axes, axis in zip(panels, _AXES, strict=True):
        if merges:
            placed.append((axes, *_panel(axes, merges, axis, colour)))
        else:
            axes.text(0.5, 0.5, "no merge has both a score and a cost", ha="center")
    panels[0].set_title(
        drawing.written(f"{table_title(case.table)}. Quality against compute. {case.title}", 110),
        loc="left",
    )
    _finish(figure, handles, placed, merges)
    return figure


def data_figure(case: Case, found: Sequence[Cost], config: Mapping[str, Any]) -> Figure:
    """Draw every merge of a case over its CPU seconds, in the colours of `palette.DATA`."""
    from matplotlib.patches import Patch

    handles = [Patch(color=paint, label=label) for label, paint in palette.DATA.values()]
    handles.append(Patch(color=palette.SAMPLE, label="pale: nothing chosen on dev"))
    merges = points(case, found, beyond=True)
    figure, (axes,) = _sheet(1, len(handles), height=9)

    def colour(model: Model) -> tuple[float, ...]:
        return palette.paint(palette.DATA[data_of(model)][1], model, config)

    if not merges:
        axes.text(0.5, 0.5, "no merge has both a score and a cost", ha="center")
        return figure
    costs, values = _panel(axes, merges, "cpu_s", colour)
    axes.set_xlabel("CPU seconds of making the merge, all that it was given included (logarithmic)")
    title = f"{table_title(case.table)}. Quality against data and price. {case.title}"
    axes.set_title(drawing.written(title, 110))
    _finish(figure, handles, [(axes, costs, values)], merges)
    return figure
