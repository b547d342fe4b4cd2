"""The DAM study's figures: a curve over the number of rows, bars over a choice."""

from __future__ import annotations

import operator
from typing import TYPE_CHECKING

from report import palette
from report.averages import spread_of
from studies.dam.load import Study

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def _series(study: Study) -> list[tuple[str, str, dict[str, dict[int, float]]]]:
    """What is drawn: the average and each column that tables show apart, by setting and seed."""
    measures = [("Average", operator.methodcaller("average", study.averaged))]
    measures += [(c.label, operator.methodcaller("column", c)) for c in study.apart]
    return [
        (
            label,
            palette.SERIES[place % len(palette.SERIES)],
            {
                setting: {seed: measure(run) for seed, run in runs.items()}
                for setting, runs in study.runs.items()
            },
        )
        for place, (label, measure) in enumerate(measures)
    ]


def _finish(study: Study, axes: Axes, title: str) -> None:
    axes.set_title(title, loc="left")
    axes.set_ylabel("test score")
    axes.grid(axis="y", color=palette.GRID, linewidth=0.5)
    axes.set_axisbelow(True)
    axes.set_ylim(bottom=0)
    axes.figure.legend(loc="outside lower center", ncols=4, frameon=False)


def curve(study: Study, name: str) -> Figure:
    """Draw a comparison's scores against the number of rows per expert.

    A line goes through the means over worlds, a dot is a world; settings without a number of rows
    are left out.
    """
    from matplotlib.figure import Figure

    comparison = study.config["comparisons"][name]
    shared = study.config["set"].get("samples")
    rows = {}
    for setting in (comparison["reference"], *comparison["settings"]):
        entry = study.config["settings"][setting]
        samples = entry["set"].get(
            "samples", shared if setting == comparison["reference"] else None
        )
        if samples and setting in study.runs:
            rows[setting] = samples
    rows = dict(sorted(rows.items(), key=lambda item: item[1]))
    figure = Figure(figsize=(6, 3.6), layout="constrained")
    axes = figure.subplots()
    for label, colour, values in _series(study):
        means = [spread_of(list(values[setting].values())).mean for setting in rows]
        axes.plot(list(rows.values()), means, color=colour, marker="o", label=label)
        for setting, samples in rows.items():
            scores = list(values[setting].values())
            axes.scatter([samples] * len(scores), scores, s=9, color=colour, alpha=0.45)
    axes.set_xscale("log")
    axes.set_xticks(list(rows.values()), [f"{samples:,}" for samples in rows.values()])
    axes.minorticks_off()
    axes.set_xlabel("calibration rows per expert")
    _finish(study, axes, comparison["title"])
    return figure


def bars(study: Study, name: str) -> Figure:
    """Draw scores of a comparison's settings: a bar up to the mean over worlds, a dot for each."""
    from matplotlib.figure import Figure

    comparison = study.config["comparisons"][name]
    settings = [comparison["reference"], *comparison["settings"]]
    settings = [setting for setting in settings if setting in study.runs]
    figure = Figure(figsize=(7.5, 3.8), layout="constrained")
    axes = figure.subplots()
    series = _series(study)
    width = 0.8 / len(series)
    for place, (label, colour, values) in enumerate(series):
        places = [x - 0.4 + width * (place + 0.5) for x in range(len(settings))]
        means = [spread_of(list(values[setting].values())).mean for setting in settings]
        axes.bar(places, means, width=width * 0.92, color=colour, alpha=0.55, label=label)
        for x, setting in zip(places, settings, strict=True):
            scores = list(values[setting].values())
            axes.scatter([x] * len(scores), scores, s=9, color=colour, zorder=3)
    labels = [study.config["settings"][setting]["label"] for setting in settings]
    axes.set_xticks(range(len(settings)), [_folded(label) for label in labels], fontsize=7)
    _finish(study, axes, comparison["title"])
    return figure


def _folded(label: str) -> str:
    import textwrap

    return textwrap.fill(label, 16)


FIGURES = {"samples": curve, "bars": bars}
