"""Figures as PNG and PDF; equal scores and costs give equal bytes."""

from __future__ import annotations

import functools
import io
import textwrap
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from common.files import write_bytes
from common.manifest import NAME, write_manifest
from report import compute_figure, cost, palette
from report.averages import Score, spread
from report.case_table import table_title
from report.experiment import Ablation, Case, Experiment, Model
from report.load import score_files

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_PANELS_ACROSS = 4
_LINE = 36  # characters of a title over a panel of half a figure
_BAR_IN = 0.175  # height of one bar's place in inches: an 8-point label fits
STYLE: dict[Any, Any] = {
    "font.family": "DejaVu Sans",
    "font.size": 8,
    "axes.titlesize": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.6,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "pdf.fonttype": 42,
}


def _of_task(task: str, model: Model) -> Score | None:
    return model.tasks.get(task)


def _bars(
    axes: Axes, models: Sequence[Model], scores: Sequence[Score | None], config: Mapping[str, Any]
) -> None:
    """Draw one horizontal bar per model, the first on top, with its standard error."""
    from matplotlib.patheffects import withStroke

    outlined = [withStroke(linewidth=2.4, foreground="white")]  # else lost on DAM's dark bar
    for place, (model, score) in enumerate(zip(models, scores, strict=True)):
        if score is None:
            axes.text(0.015, place, model.status.split(":")[0], va="center", color="#777777")
            continue
        paint = palette.colour(model, config)
        axes.barh(place, score.value, height=0.78, color=paint, linewidth=0)
        ends = (score.value - score.stderr, score.value + score.stderr)
        axes.plot(ends, (place, place), color="#444444", linewidth=0.9, path_effects=outlined)
    axes.set_ylim(len(models) - 0.4, -0.6)
    axes.set_xlim(0, 1.02)
    axes.set_xticks([0, 0.25, 0.5, 0.75, 1], ["0", ".25", ".5", ".75", "1"])
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="x", color="#DDDDDD", linewidth=0.5)
    axes.set_axisbelow(True)


def _legend(figure: Figure, models: Sequence[Model], config: Mapping[str, Any]) -> None:
    from matplotlib.lines import Line2D

    lines = [
        Line2D([], [], color="#444444", linestyle=":", label="base"),
        Line2D([], [], color="#444444", linestyle="--", label="best expert"),
    ]
    handles = [*palette.handles(models, config), *lines]
    figure.legend(handles=handles, loc="outside lower center", ncols=5, frameon=False)


def case_figure(case: Case, config: Mapping[str, Any]) -> Figure:
    """Draw every task of a case as a panel of bars, one bar a merge, and the average.

    Dotted lines mark the base, dashed ones the best expert.
    """
    from matplotlib.figure import Figure

    merges = [model for model in case.models if model.kind == "merge"]
    parents = [model for model in case.models if model.kind != "merge"]
    missed, held_out = case.not_learned(), case.held_out()
    panels: list[tuple[str, Callable[[Model], Score | None]]] = [("Average", case.average)]
    for task in case.tasks:
        marks = ("†" if task in missed else "") + ("‡" if task in held_out else "")
        panels.append((case.task_label(task) + marks, functools.partial(_of_task, task)))
    down = -(-len(panels) // _PANELS_ACROSS)
    figure = Figure(figsize=(10, 0.9 + down * (_BAR_IN * len(merges) + 0.5)), layout="constrained")
    grid = figure.subplots(down, _PANELS_ACROSS, sharey=True, sharex=True, squeeze=False)
    for axes in grid.flat[len(panels) :]:
        axes.remove()
    for place, (axes, (title, score_of)) in enumerate(zip(grid.flat, panels, strict=False)):
        _bars(axes, merges, [score_of(model) for model in merges], config)
        axes.set_title(title, fontweight="bold" if place == 0 else "normal", loc="left")
        axes.tick_params(labelbottom=True)
        if place % _PANELS_ACROSS:
            axes.spines["left"].set_color("#BBBBBB")
        base, *experts = (score_of(model) for model in parents)
        if base is not None:
            axes.axvline(base.value, color="#444444", linestyle=":", linewidth=1.1)
        values = [score.value for score in experts if score is not None]
        if values:
            axes.axvline(max(values), color="#444444", linestyle="--", linewidth=0.9)
    grid[0, 0].set_yticks(range(len(merges)), [model.label for model in merges])
    _legend(figure, merges, config)
    return figure


def averages_figure(experiment: Experiment) -> Figure:
    """Draw the averages of Tables 1 and 2, base and experts included."""
    from matplotlib.figure import Figure

    cases = experiment.cases
    longest = max(len(case.models) for case in cases)
    figure = Figure(
        figsize=(5 * max(len(cases), 2), 0.8 + _BAR_IN * 1.15 * longest), layout="constrained"
    )
    for axes, case in zip(figure.subplots(1, len(cases), squeeze=False)[0], cases, strict=True):
        averages = [case.average(model) for model in case.models]
        _bars(axes, case.models, averages, experiment.config)
        for place, score in enumerate(averages):
            if score is not None:
                text = f"{score.value:.3f}".removeprefix("0")
                axes.text(score.value + score.stderr + 0.012, place, text, va="center", fontsize=7)
        axes.set_xlim(0, 1.1)
        axes.set_yticks(range(len(case.models)), [model.label for model in case.models])
        title = textwrap.fill(f"{table_title(case.table)}. {case.title}", _LINE)
        axes.set_title(title, loc="left")
        error = "between worlds and items" if case.several else "over items"
        axes.set_xlabel(f"mean over {len(case.averaged)} columns,\nwith standard error {error}")
    return figure


def ablation_figure(ablation: Ablation) -> Figure:
    """Draw Table 3: mean with sample standard deviation over seeds, and every seed as a dot."""
    from matplotlib.figure import Figure

    case = ablation.case
    figure = Figure(figsize=(7.5, 1.1 + 0.34 * len(ablation.objectives)), layout="constrained")
    axes = figure.subplots()
    diamond: dict[str, Any] = {"fmt": "D", "markersize": 5, "color": "#222222", "capsize": 3}
    for place, entry in enumerate(ablation.objectives):
        averages = [case.average(run) for run in entry.runs]
        values = [score.value for score in averages if score is not None]
        total = spread(values)
        if total is None:
            status, across = entry.runs[0].status.split(":")[0], axes.get_yaxis_transform()
            axes.text(0.01, place, status, va="center", color="#777777", transform=across)
            continue
        axes.scatter(values, [place + 0.2] * len(values), s=16, color="#56B4E9", zorder=3)
        at = (total.mean, place - 0.08)
        axes.errorbar(*at, xerr=total.deviation, linewidth=1.3, zorder=4, **diamond)
    # Empty ones for the legend: a row's own may be missing.
    axes.scatter([], [], s=16, color="#56B4E9", label="one seed")
    axes.errorbar([], [], xerr=[], label="mean ± standard deviation over seeds", **diamond)
    labels = [entry.label for entry in ablation.objectives]
    axes.set_yticks(range(len(labels)), labels)
    axes.set_ylim(len(labels) - 0.5, -0.5)
    axes.margins(x=0.08)
    axes.grid(axis="x", color="#DDDDDD", linewidth=0.5)
    axes.grid(axis="y", color="#EEEEEE", linewidth=0.5)
    axes.set_axisbelow(True)
    axes.set_title(f"Table 3. DAM's training objective. {case.title}", loc="left")
    axes.set_xlabel(f"average over {len(case.averaged)} columns (the axis does not begin at 0)")
    figure.legend(loc="outside lower center", ncols=2, frameon=False)
    return figure


def rendered(figure: Figure, form: str) -> bytes:
    """Return a figure as a file of a form, png or pdf; equal figures give equal bytes."""
    # Dates and version strings would make equal figures differ.
    metadata = {"png": {"Software": None}, "pdf": {"CreationDate": None, "Producer": None}}
    stream = io.BytesIO()
    figure.savefig(stream, format=form, dpi=200, metadata=metadata[form])
    return stream.getvalue()


def titles(experiment: Experiment) -> dict[str, str]:
    """Describe each figure in words, by file stem, in the order in which the report shows them."""
    reading = (
        f"Lines on the bars: one standard error over {experiment.cases[0].errors}. "
        "Pale bars: nothing was chosen on dev items; full colour: tuned or searched."
    )
    # Long because of the texts.
    names, found = {"averages": f"Averages of all models. {reading}"}, cost.costs(experiment)
    for case in experiment.cases:
        names[f"{case.table}_tasks"] = (
            f"{case.title}: every task and every merge. {reading} "
            "† not learned by its own expert; ‡ in no expert's domain."
        )
        names[f"{case.table}_compute"] = (
            f"{case.title}: quality against compute. Over FLOPs, derived from counted tokens (0 "
            "for a merge that runs no model), and over measured CPU seconds, which vary from run "
            "to run, both of one world. Each row pays for its own search on dev items, and one "
            "that learns from the experts' cached predictions for all of these; training base and "
            "experts is in none. "
            f"Bars: 1.96 standard errors over {case.errors}. Dashed: the Pareto line; no cheaper "
            "merge is above it."
        )
        if cost.has_statistics(case, found):
            names[f"{case.table}_data"] = (
                f"{case.title}: quality against data and price, of all methods. Each merge pays "
                "for its tuning and for all that it was given: statistics, cached predictions, a "
                "merged model. Dashed: the Pareto line."
            )
    if experiment.ablation:
        names["table3"] = (
            "Training objectives of DAM over seeds; seeds change DAM's data draw and order."
        )
    return names


def write(experiment: Experiment, out: Path) -> list[Path]:
    """Write all figures and, last, their manifest; return the figures' paths."""
    import matplotlib

    # No manifest while the figures change: it would vouch for files that it does not describe.
    (out / NAME).unlink(missing_ok=True)
    written = []
    with matplotlib.rc_context({**matplotlib.rcParamsDefault, **STYLE, "backend": "agg"}):
        drawn = {"averages": averages_figure(experiment)}
        costs = cost.costs(experiment)
        for case in experiment.cases:
            drawn[f"{case.table}_tasks"] = case_figure(case, experiment.config)
            drawn[f"{case.table}_compute"] = compute_figure.compute_figure(
                case, costs, experiment.config
            )
            if cost.has_statistics(case, costs):
                drawn[f"{case.table}_data"] = compute_figure.data_figure(
                    case, costs, experiment.config
                )
        if experiment.ablation:
            drawn["table3"] = ablation_figure(experiment.ablation)
        for name, figure in drawn.items():
            for form in ("png", "pdf"):
                path = out / f"{name}.{form}"
                write_bytes(path, rendered(figure, form))
                written.append(path)
    write_manifest(
        out / NAME,
        kind="figures",
        parameters={"experiment": experiment.name, "matplotlib": matplotlib.__version__},
        inputs=dict(score_files(experiment.config, experiment.results)),
        outputs={path.name: path for path in written},
        seed=experiment.seed,
        code=("report/figures.py",),
    )
    return written
