"""The study's figures."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from report import palette
from studies.scale.law import Law
from studies.scale.load import Merge, Study
from studies.scale.skills import MULTITASK
from studies.scale.tables import mean_by_seed, points_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_MARKS = "osD^v"


def _colours(study: Study) -> dict[str, str]:
    colours = (*palette.SERIES, *palette.SEARCHES, palette.EDGE)
    distinct = list(dict.fromkeys(colours))
    return {
        name: distinct[place % len(distinct)] for place, name in enumerate(study.config["methods"])
    }


def _panels(study: Study, rows: int) -> tuple[Figure, np.ndarray]:
    from matplotlib.figure import Figure

    columns = len(study.sizes)
    figure = Figure(figsize=(2.3 * columns + 0.6, 2.2 * rows + 0.7), layout="constrained")
    return figure, figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)


def _grid(axes: Axes) -> None:
    axes.grid(axis="y", color=palette.GRID, linewidth=0.5)
    axes.set_axisbelow(True)


def by_count(study: Study, of: str, label: str, reference: bool) -> Figure:
    """Draw a value over the number of experts: a panel for each base and size, a line a method.

    Args:
        study: The study.
        of: ``held_in``, ``held_out`` ...
        label: Of the value.
        reference: Whether a dashed line shows the multitask model.
    """
    qualities = list(study.config["qualities"])
    figure, panels = _panels(study, len(qualities))
    colours = _colours(study)
    value: Callable[[Merge], float | None] = lambda merge: getattr(merge, of)  # noqa: E731
    for row, quality in enumerate(qualities):
        for column, (size, parameters) in enumerate(study.sizes.items()):
            axes = panels[row, column]
            own = [m for m in study.merges if (m.quality, m.size) == (quality, size)]
            for place, (method, about) in enumerate(study.config["methods"].items()):
                drawn = {
                    k: mean_by_seed((m for m in own if (m.method, m.count) == (method, k)), value)
                    for k in study.config["counts"]
                }
                drawn = {k: values for k, values in drawn.items() if values}
                # Side by side, for methods often agree.
                x = [k + 0.12 * (place - 2) for k in drawn]
                style = {"color": colours[method], "marker": _MARKS[place % len(_MARKS)]}
                axes.plot(
                    x,
                    [np.mean(v) for v in drawn.values()],
                    ms=3,
                    lw=1,
                    label=about["label"],
                    **style,
                )
            if reference:
                cells = [c for c in study.cells if (c.quality, c.size) == (quality, size)]
                if cells:
                    level = float(np.mean([c.reference(MULTITASK).held_out for c in cells]))
                    axes.axhline(level, color=palette.LINE, lw=0.8, ls="--", label="Multitask")
            axes.set_title(f"{size} ({parameters / 1e6:.2f} M), {quality} base", loc="left")
            axes.set_xticks(study.config["counts"])
            _grid(axes)
            if row == len(qualities) - 1:
                axes.set_xlabel("number of experts")
            if column == 0:
                axes.set_ylabel(label)
    handles, labels = panels[0, 0].get_legend_handles_labels()
    across = 6 if len(study.sizes) > 2 else 2  # as the width allows
    figure.legend(handles, labels, loc="outside lower center", ncols=across, frameon=False)
    return figure


def law(study: Study, method: str, fits: dict[str, Law]) -> Figure:
    """Draw losses over the number of experts with the fitted law, a panel for each base."""
    from matplotlib.figure import Figure

    qualities = list(fits)
    figure = Figure(figsize=(3.4 * len(qualities) + 0.4, 3.2), layout="constrained")
    panels = figure.subplots(1, len(qualities), sharey=True, squeeze=False)[0]
    for axes, quality in zip(panels, qualities, strict=True):
        points = points_of(study, quality, method)
        for place, (size, parameters) in enumerate(study.sizes.items()):
            colour = palette.SERIES[place % len(palette.SERIES)]
            own = [point for point in points if point.size == size]
            axes.scatter([p.count for p in own], [p.loss for p in own], s=10, color=colour)
            k = np.linspace(1, max(study.config["counts"]), 60)
            losses = fits[quality](np.full_like(k, parameters), k)
            axes.plot(k, losses, color=colour, lw=1, label=f"{size} ({parameters / 1e6:.2f} M)")
        axes.set_title(f"{quality} base", loc="left")
        axes.set_xlabel("number of experts")
        _grid(axes)
    panels[0].set_ylabel("cross-entropy, nats a token")
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=4, frameon=False)
    return figure
