"""Figures as PNG and PDF; equal scores and costs give equal bytes."""

from __future__ import annotations

import functools
import textwrap
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from common.calling import say
from common.files import write_bytes
from common.manifest import NAME, write_manifest
from report import compute_figure, cost, drawing, palette
from report.averages import Score, spread
from report.case_table import table_title
from report.experiment import Ablation, Case, Experiment, Model
from report.load import score_files

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_PANELS_ACROSS = 4
_LINE = 36  # characters of a title over a panel of half a figure
_BAR = 0.78  # height of a bar, of its place
_BAR_IN = 0.175  # height of one bar's place in inches: an 8-point label fits
FORMS = ("png", "pdf")


def _of_task(task: str, model: Model) -> Score | None:
    return model.tasks.get(task)


def _bars(
    axes: Axes, models: Sequence[Model], scores: Sequence[Score | None], config: Mapping[str, Any]
) -> None:
    """Draw one horizontal bar per model, the first on top, with its standard error."""
    from matplotlib.collections import LineCollection
    from matplotlib.patches import Rectangle

    known = [(at, score) for at, score in enumerate(scores) if score is not None]
    for place, known_score in known:  # not `barh`, which looks for limits that are set below
        paint = palette.colour(models[place], config)
        hollow = palette.hollow(models[place])
        inside, edge = ("none", 1) if hollow else (paint, 0)
        bar = (0, place - _BAR / 2), known_score.value, _BAR
        axes.add_artist(Rectangle(*bar, facecolor=inside, edgecolor=paint, linewidth=edge))
    ends = [[(s.value - s.stderr, at), (s.value + s.stderr, at)] for at, s in known]
    # A white line below each: else it is lost on DAM's dark bar.
    for width, colour in ((2.9, "white"), (0.9, palette.EDGE)):
        axes.add_collection(
            LineCollection(ends, linewidths=width, colors=colour, zorder=2.5), False
        )
    for at, (model, score) in enumerate(zip(models, scores, strict=True)):
        if score is None:
            why = "no score" if model.status == "ok" else model.status.split(":")[0]
            axes.text(0.015, at, drawing.written(why), va="center", color=palette.NOTE)
    axes.set_ylim(len(models) - 0.4, -0.6)
    axes.set_xlim(0, 1.02)
    axes.set_xticks([0, 0.25, 0.5, 0.75, 1], ["0", "", ".5", "", "1"])
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="x", color=palette.GRID, linewidth=0.5)
    axes.set_axisbelow(True)


def _legend(figure: Figure, models: Sequence[Model], config: Mapping[str, Any]) -> None:
    from matplotlib.lines import Line2D

    lines = [
        Line2D([], [], color=palette.EDGE, linestyle=":", label="base"),
        Line2D([], [], color=palette.EDGE, linestyle="--", label="best expert"),
    ]
    drawing.legend(figure, [*palette.handles(models, config), *lines])


def shown(case: Case, models: Sequence[Model]) -> list[Model]:
    """Order the rows of a figure by their average, the highest first; of many merges, the highest.

    Rows without an average come last, in their order.
    """
    ranked = case.by_average(models)
    merges = [model.id for model in ranked if model.kind == "merge"]
    left_out = set(merges[drawing.MOST :])
    return [model for model in ranked if model.id not in left_out]


def case_figure(case: Case, config: Mapping[str, Any]) -> Figure:
    """Draw every task of a case as a panel of bars, one bar a merge, and the average.

    Dotted lines mark the base, dashed ones the best expert. Long because of the panels' parts.
    """
    from matplotlib.figure import Figure

    merges = [model for model in shown(case, case.models) if model.kind == "merge"]
    parents = [model for model in case.models if model.kind != "merge"]
    missed, held_out = case.not_learned(), case.held_out()
    panels: list[tuple[str, Callable[[Model], Score | None]]] = [("Average", case.average)]
    for task in case.tasks:
        marks = ("†" if task in missed else "") + ("‡" if task in held_out else "")
        title = drawing.written(case.task_label(task), _LINE) + marks
        panels.append((title, functools.partial(_of_task, task)))
    down = -(-len(panels) // _PANELS_ACROSS)
    high = _BAR_IN * max(len(merges), 1)
    below = drawing.legend_height(len(palette.handles(merges, config)) + 2)
    figure = Figure(figsize=(10, down * (high + 0.5) + below + 0.05))
    labels = [drawing.written(model.label) for model in merges]
    left = drawing.width_of(figure, labels) + 0.15
    space = drawing.margins(
        figure, left, 0.1, 0.3, below + 0.25, wspace=0.08, hspace=0.5 / high
    )  # fmt: skip
    grid = figure.subplots(down, _PANELS_ACROSS, squeeze=False, gridspec_kw=space)
    for axes in grid.flat[len(panels) :]:
        axes.remove()
    for place, (axes, (title, score_of)) in enumerate(zip(grid.flat, panels, strict=False)):
        _bars(axes, merges, [score_of(model) for model in merges], config)
        # No bold: a second font in a PDF takes as long as all its bars.
        axes.set_title(title, color=palette.TITLE if place else "black", loc="left", y=1.0, pad=6)
        if place % _PANELS_ACROSS:
            axes.spines["left"].set_color(palette.FRAME)
            axes.yaxis.set_visible(False)
        else:
            axes.set_yticks(range(len(merges)), labels)
        base, *experts = (score_of(model) for model in parents)
        if base is not None:
            axes.axvline(base.value, color=palette.EDGE, linestyle=":", linewidth=1.1)
        values = [score.value for score in experts if score is not None]
        if values:
            axes.axvline(max(values), color=palette.EDGE, linestyle="--", linewidth=0.9)
    _legend(figure, merges, config)
    return figure


def averages_figure(experiment: Experiment) -> Figure:
    """Draw the averages of Tables 1 and 2, base and experts included."""
    from matplotlib.figure import Figure

    cases = [(case, shown(case, case.models)) for case in experiment.cases]
    longest = max(len(models) for _, models in cases)
    across = len(cases)
    figure = Figure(figsize=(5 * across, 0.8 + _BAR_IN * 1.15 * longest))
    # Each panel has its labels at its left.
    room = [
        drawing.width_of(figure, [drawing.written(model.label) for model in models]) + 0.15
        for _, models in cases
    ]
    for place, (case, models) in enumerate(cases):
        left, width = 5 * place + room[place], 5 - room[place] - 0.15
        box = drawing.margins(figure, left, 5 * across - left - width, 0.42, 0.55)
        size = (box["right"] - box["left"], box["top"] - box["bottom"])
        axes = figure.add_axes((box["left"], box["bottom"], *size))
        averages = [case.average(model) for model in models]
        _bars(axes, models, averages, experiment.config)
        for at, score in enumerate(averages):
            if score is not None:
                text = f"{score.value:.3f}".removeprefix("0")
                axes.text(score.value + score.stderr + 0.012, at, text, va="center", fontsize=7)
        axes.set_xlim(0, 1.1)
        axes.set_yticks(range(len(models)), [drawing.written(model.label) for model in models])
        title = textwrap.fill(f"{table_title(case.table)}. {case.title}", _LINE, max_lines=2)
        axes.set_title(title.replace("$", r"\$"), loc="left", y=1.0, pad=6)
        error = "between worlds and items" if case.several else "over items"
        axes.set_xlabel(f"mean over {len(case.averaged)} columns,\nwith standard error {error}")
    return figure


def ablation_figure(ablation: Ablation) -> Figure:
    """Draw Table 3: mean with sample standard deviation over seeds, and every seed as a dot."""
    from matplotlib.figure import Figure

    case = ablation.case
    labels = [drawing.written(entry.label) for entry in ablation.objectives]
    figure = Figure(figsize=(7.5, 1.3 + 0.34 * len(labels)))
    left = drawing.width_of(figure, labels) + 0.15
    axes = figure.subplots(gridspec_kw=drawing.margins(figure, left, 0.1, 0.5, 0.65))
    diamond: dict[str, Any] = {"fmt": "D", "markersize": 5, "color": palette.INK, "capsize": 3}
    for place, entry in enumerate(ablation.objectives):
        averages = [case.average(run) for run in entry.runs]
        values = [score.value for score in averages if score is not None]
        total = spread(values)
        if total is None:
            status, across = entry.runs[0].status.split(":")[0], axes.get_yaxis_transform()
            axes.text(0.01, place, status, va="center", color=palette.NOTE, transform=across)
            continue
        axes.scatter(values, [place + 0.2] * len(values), s=16, color=palette.SEED, zorder=3)
        at = (total.mean, place - 0.08)
        axes.errorbar(*at, xerr=total.deviation, linewidth=1.3, zorder=4, **diamond)
    # Empty ones for the legend: a row's own may be missing.
    axes.scatter([], [], s=16, color=palette.SEED, label="one seed")
    axes.errorbar([], [], xerr=[], label="mean ± standard deviation over seeds", **diamond)
    axes.set_yticks(range(len(labels)), labels)
    axes.set_ylim(len(labels) - 0.5, -0.5)
    axes.margins(x=0.08)
    axes.grid(axis="x", color=palette.GRID, linewidth=0.5)
    axes.grid(axis="y", color=palette.FINE_GRID, linewidth=0.5)
    axes.set_axisbelow(True)
    title = textwrap.fill(
        f"Table 3. DAM's training objective. {case.title}", 2 * _LINE, max_lines=2
    )
    axes.set_title(title.replace("$", r"\$"), loc="left", y=1.0, pad=6, x=-left / 7.5)
    axes.set_xlabel(f"average over {len(case.averaged)} columns (the axis does not begin at 0)")
    figure.legend(loc="lower center", ncols=2, frameon=False)
    return figure


def _pareto(case: Case) -> str:
    """Say what the dashed line is; rows that are no best merge are squares, and not in it."""
    if all(model.best_of for model in case.all_models if model.kind == "merge"):
        return "Dashed: the Pareto line; no cheaper merge is above it."
    return (
        "Dashed: the Pareto line of the round points; no cheaper one of them is above it. Square: "
        "takes no part in the line, nor in the marks for the best merge."
    )


def titles(experiment: Experiment) -> dict[str, str]:
    """Describe each figure in words, by file stem, in the order in which the report shows them."""
    reading = (
        f"Lines on the bars: one standard error over {experiment.cases[0].errors}. "
        "Pale bars: nothing was chosen on dev items; full colour: tuned or searched."
    )
    # Long because of the texts.
    names, found = {"averages": f"Averages of all models. {reading}"}, cost.costs(experiment)
    for case in experiment.cases:
        merges = sum(model.kind == "merge" for model in case.models)
        if merges > drawing.MOST:
            few = f" Of {merges} merges, the {drawing.MOST} with the highest averages are shown."
            names["averages"] += few if few not in names["averages"] else ""
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
            f"Bars: 1.96 standard errors over {case.errors}. {_pareto(case)}"
        )
        if cost.has_statistics(case, found):
            names[f"{case.table}_data"] = (
                f"{case.title}: quality against data and price, of all methods. Each merge pays "
                "for its tuning and for all that it was given: statistics, cached predictions, a "
                f"merged model. {_pareto(case)}"
            )
    if experiment.ablation:
        names["table3"] = (
            "Training objectives of DAM over seeds; seeds change DAM's data draw and order."
        )
    return names


def _texts(experiment: Experiment) -> list[str]:
    """List the texts in figures that come from the configuration."""
    found = [case.title for case in experiment.cases]
    found += [model.label for case in experiment.cases for model in case.all_models]
    found += [case.task_label(task) for case in experiment.cases for task in case.tasks]
    ablation = experiment.ablation
    return found + [entry.label for entry in (ablation.objectives if ablation else ())]


def write(experiment: Experiment, out: Path) -> list[Path]:
    """Write all figures and, last, their manifest; return the figures' paths."""
    import matplotlib

    # No manifest while the figures change: it would vouch for files that it does not describe.
    (out / NAME).unlink(missing_ok=True)
    written = []
    style, unknown = drawing.style(_texts(experiment))
    if unknown:
        say(f"note: no installed font has {unknown}; figures show them as boxes")
    with (
        warnings.catch_warnings(),
        matplotlib.rc_context({**matplotlib.rcParamsDefault, **style, "backend": "agg"}),
    ):
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
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
            for form in FORMS:
                path = out / f"{name}.{form}"
                write_bytes(path, drawing.rendered(figure, form))
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
