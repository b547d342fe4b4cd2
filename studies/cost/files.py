"""The study of quality against price as files: table, figure, manifest."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from common.files import write_bytes, write_text
from common.manifest import NAME, write_manifest
from report import drawing, palette, render
from report.averages import spread, spread_of
from report.experiment import Model
from report.intervals import mean
from studies.cost.table import FOLDER, Look, grouped, load_looks, study_csv, study_grid

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_MARKS = "os^Dv<>Pp*"


def _curve(axes: Axes, groups: Sequence[Sequence[Look]], axis: str, paint: str) -> None:
    """Draw a search's best model after each number of evaluations, as mean and band."""
    x = [mean([getattr(look, axis) for look in group]) for group in groups]
    total = [spread_of([look.test.value for look in group]) for group in groups]
    low = [entry.mean - (entry.deviation or 0) for entry in total]
    high = [entry.mean + (entry.deviation or 0) for entry in total]
    axes.fill_between(x, low, high, color=paint, alpha=0.18, linewidth=0)
    label = groups[0][0].label
    axes.plot(x, [entry.mean for entry in total], color=paint, marker="o", ms=3.5, label=label)
    dev = [spread([look.dev for look in group]) for group in groups]
    chosen = [entry.mean for entry in dev if entry is not None]
    if len(chosen) == len(x):
        axes.plot(x, chosen, color=paint, ls=":", lw=1.2)


def _point(axes: Axes, group: Sequence[Look], axis: str, mark: str, paint: Any) -> None:
    total = spread_of([look.test.value for look in group])
    x = mean([getattr(look, axis) for look in group])
    axes.errorbar(
        *(x, total.mean),
        yerr=total.deviation or 0.0,
        fmt=mark,
        markersize=6,
        color=paint,
        markeredgecolor=palette.DARK_EDGE,
        markeredgewidth=0.6,
        ecolor=palette.LINE,
        capsize=2.5,
        label=group[0].label,
    )


def study_figure(looks: Sequence[Look], config: Mapping[str, Any]) -> Figure:
    """Draw each case's test average over evaluations and over FLOPs.

    Searches are lines with a band of one sample standard deviation over the seeds, dotted for the
    dev average that chose; other rows are points with the same.
    """
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    cases = list(dict.fromkeys(look.case for look in looks))
    rows = list(dict.fromkeys(look.row for look in looks))
    figure = Figure(figsize=(10, 0.9 + 3.6 * len(cases)), layout="constrained")
    panels = figure.subplots(len(cases), 2, squeeze=False, sharey="row")
    groups = grouped(looks)
    for case, pair in zip(cases, panels, strict=True):
        for axes, axis in zip(pair, ("evaluations", "flops"), strict=True):
            searches = iter(palette.SEARCHES * len(rows))
            for place, row in enumerate(rows):
                own = [group for key, group in groups.items() if key[:2] == (case, row)]
                if "evolve" in config["methods"][row]:
                    paint = next(searches)  # before the scores exist, so that it never changes
                    if own:
                        _curve(axes, own, axis, paint)
                elif own and (axis == "flops" or own[0][0].evaluations):
                    model = Model(row, "", "merge", method=config["methods"][row]["method"])
                    mark = _MARKS[place % len(_MARKS)]
                    _point(axes, own[0], axis, mark, palette.colour(model, config))
            axes.set_xscale("log")
            axes.grid(color=palette.FINE_GRID, linewidth=0.5)
        pair[0].set_title(config["cases"][case]["title"], loc="left")
        pair[0].set_ylabel("test average (the axis does not begin at 0)")
        pair[0].set_xlabel("dev evaluations (rows that chose nothing are on the right only)")
        pair[1].set_xlabel("FLOPs, a row's teachers included")
        ticks = sorted({look.evaluations for look in looks if look.case == case} - {0})
        pair[0].set_xticks(ticks, [str(tick) for tick in ticks])
        pair[0].minorticks_off()
    shown: dict[str, Any] = {}
    for axes in panels.flat:
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
            shown.setdefault(label, handle)
    shown["dotted: best dev average"] = Line2D([], [], color=palette.LINE, linestyle=":")
    figure.legend(shown.values(), shown.keys(), loc="outside lower center", ncols=4, frameon=False)
    return figure


def write(config: Mapping[str, Any], results: Path, out: Path) -> list[Path]:
    """Write the study's table (CSV, Markdown), its figure (PNG, PDF) and, last, its manifest.

    Args as `studies.dam.files.write`.
    """
    import matplotlib

    looks = load_looks(config, results)
    (out / NAME).unlink(missing_ok=True)
    texts = {"csv": study_csv(looks), "md": render.markdown(study_grid(looks, config))}
    for form, text in texts.items():
        write_text(out / f"cost.{form}", text)
    with matplotlib.rc_context({**matplotlib.rcParamsDefault, **drawing.STYLE, "backend": "agg"}):
        figure = study_figure(looks, config)
        for form in ("png", "pdf"):
            write_bytes(out / f"cost.{form}", drawing.rendered(figure, form))
    written = [out / f"cost.{form}" for form in (*texts, "png", "pdf")]
    scored = sorted((results / FOLDER).glob("*/*/seed*/test/after*.json"))
    scored = [path for path in scored if path.stem.removeprefix("after").isdigit()]
    write_manifest(
        out / NAME,
        kind="cost study",
        parameters={"experiment": config["name"], **config["studies"]["cost"]},
        inputs={str(path.relative_to(results)): path for path in scored},
        outputs={path.name: path for path in written},
        code=("studies/cost/files.py",),
    )
    return written
