"""The study's tables: merges by size and number of experts, the law, and what predicts a merge."""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from checkpoints.likeness import MEASURES
from report import fields
from report.averages import spread
from report.findings import comparisons_grid, findings_grid
from report.grid import MISSING, Cell, Grid, Row, number, signed
from report.verdicts import Judgement
from studies.scale import lens
from studies.scale.law import OFFSETS, POWERS, Law, Point, Prediction
from studies.scale.load import Merge, Study, skill_score
from studies.scale.predictors import COUNT, Correlation, Worth
from studies.scale.skills import BASE, HELD_OUT, MULTITASK, SKILLS

AVERAGE = "average"  # the method whose losses the law is fitted to, unless there is none
OWN_MEASURES = {
    **MEASURES,
    COUNT: "number of experts",
    lens.NAME: "score of mergelens, a heuristic that its authors never validated",
}


def mean_by_seed(merges: Iterable[Merge], of: Callable[[Merge], float | None]) -> list[float]:
    """Return a value's mean in each world, in the order of seeds."""
    by_seed: dict[int, list[float]] = defaultdict(list)
    for merge in merges:
        if (value := of(merge)) is not None:
            by_seed[merge.seed].append(value)
    return [float(np.mean(by_seed[seed])) for seed in sorted(by_seed)]


def _cell(values: Sequence[float]) -> Cell:
    found = spread(values)
    if found is None:
        return Cell(MISSING)
    return Cell(number(found.mean), "" if found.deviation is None else number(found.deviation))


def _chosen(study: Study, **wanted: Any) -> list[Merge]:
    return [
        merge
        for merge in study.merges
        if all(getattr(merge, name) == value for name, value in wanted.items())
    ]


def merges_grid(study: Study, of: str, title: str, caption: str) -> Grid:
    """Lay out a value by quality, method and size, a column for each number of experts.

    Args:
        study: The study.
        of: ``held_in``, ``gain``, ``held_out`` or ``loss``.
        title: Title of the table.
        caption: What it shows.
    """
    counts, rows = study.config["counts"], []
    for quality in study.config["qualities"]:
        for size in study.sizes:
            for method, about in study.config["methods"].items():
                own = _chosen(study, quality=quality, size=size, method=method)
                if own:
                    cells = [Cell(quality), Cell(size), Cell(about["label"])]
                    cells += [
                        _cell(
                            mean_by_seed((m for m in own if m.count == k), lambda m: getattr(m, of))
                        )
                        for k in counts
                    ]
                    rows.append(Row(tuple(cells), f"{quality} {size}"))
    header = ("Base", "Size", "Method", *(f"{count} experts" for count in counts))
    return Grid(f"scale_{of}", title, caption, header, tuple(rows), texts=3)


def _score_of(task: str) -> Callable[[Merge], float]:
    return lambda merge: merge.tasks[task]


def tasks_grid(study: Study) -> Grid:
    """Lay out the held-out tasks one by one, of merges of the most experts on the best base."""
    quality, count = list(study.config["qualities"])[-1], max(study.config["counts"])
    rows = []
    for size in study.sizes:
        cells = [c for c in study.cells if (c.quality, c.size) == (quality, size)]
        shown = {"Base": [c.reference(BASE) for c in cells]}
        for method, about in study.config["methods"].items():
            own = _chosen(study, quality=quality, size=size, method=method, count=count)
            shown[about["label"]] = own
        shown["Multitask"] = [c.reference(MULTITASK) for c in cells]
        for label, merges in shown.items():
            made = [_cell(mean_by_seed(merges, _score_of(task))) for task in HELD_OUT]
            rows.append(Row((Cell(size), Cell(label), *made), size))
    caption = (
        f"Share of exact answers of merges of {count} experts from the {quality} base, of that "
        "base, and of the multitask model. Mean over worlds, ± sample standard deviation. "
        "mgsm and sql_ko need two skills together."
    )
    header = ("Size", "Model", *HELD_OUT)
    return Grid("scale_tasks", "Held-out tasks one by one", caption, header, tuple(rows), texts=2)


def models_grid(study: Study) -> Grid:
    """Lay out what bases, experts and multitask models score."""
    # Of the experts' column, each model on its own skill alone.
    rows = []
    for quality in study.config["qualities"]:
        for size, parameters in study.sizes.items():
            cells = [c for c in study.cells if (c.quality, c.size) == (quality, size)]
            if not cells:
                continue
            made = [Cell(quality), Cell(size), Cell(f"{parameters:,}")]
            for role in (BASE, "", MULTITASK):
                made.append(
                    _cell(
                        [
                            float(np.mean([skill_score(c.models[role or s], s) for s in SKILLS]))
                            for c in cells
                        ]
                    )
                )
            made += [
                _cell([c.reference(role).held_out for c in cells]) for role in (BASE, MULTITASK)
            ]
            learned = [len(cell.learned) for cell in cells]
            made.append(Cell(f"{np.mean(learned):.1f} of {len(SKILLS)}"))
            rows.append(Row(tuple(made), quality))
    caption = (
        "Share of exact answers, the mean over the eight skills, of the base, of each expert on "
        "its own skill, and of one model trained on all; then on the held-out tasks. ±: sample "
        "standard deviation over worlds. Learned: skills whose expert beats its base by two "
        "standard errors; the others are left out of relative scores."
    )
    named = ("Base", "Size", "Parameters", "Base's", "Experts'", "Multitask's")
    header = (*named, "Held-out, base", "Held-out, multitask", "Learned")
    return Grid("scale_models", "Models", caption, header, tuple(rows), texts=3)


def claims_grids(judged: Sequence[Judgement]) -> list[Grid]:
    """Lay out the claims, and every comparison."""
    first = findings_grid(judged)
    caption = (
        "A claim holds if all its tests do, fails if one does, and is open where an interval "
        "contains 0. [95 % interval]: of a t distribution over worlds; a single world has none. "
        "Worlds: in how many the effect has the sign of the mean."
    )
    second = comparisons_grid(judged)
    return [
        dataclasses.replace(first, name="scale_claims", title="Claims", caption=caption),
        dataclasses.replace(second, name="scale_comparisons", title="All comparisons"),
    ]


def points_of(study: Study, quality: str, method: str) -> list[Point]:
    """Return the mean loss of each world, size and number of experts; 1 for the experts alone."""
    found = []
    for cell in study.cells:
        if cell.quality != quality:
            continue
        tasks = [task for skill in SKILLS.values() for task in skill.tasks]
        losses = {1: [float(np.mean([cell.models[s][t]["loss"] for t in tasks])) for s in SKILLS]}
        for merge in cell.merges:
            if merge.method == method:
                losses.setdefault(merge.count, []).append(merge.loss)
        found += [
            Point(cell.seed, cell.size, cell.parameters, count, float(np.mean(own)))
            for count, own in losses.items()
        ]
    return found


def law_grid(
    found: Sequence[tuple[str, str, Law, Law | None, Sequence[Prediction]]], study: Study
) -> Grid:
    """Lay out the fits, and what fits that lacked a size and a number say of these.

    Args:
        found: By quality and method's label: the fit to all losses, that without the unseen ones
            (None where too few sizes have been run), and its predictions.
        study: The study.
    """
    rows = []
    # The formula is written as the module `law` has it.
    for quality, label, law, _, predicted in found:
        v = law.values
        formula = (
            f"{v['floor']:.3f} + {v['size']:.3f} n^-{v['size_power']:.2f} + "
            f"{v['tail']:.3f} n^-{v['tail_power']:.2f} / (k {v['offset']:+.2f})"
        )
        cells = [Cell(quality), Cell(label), Cell(formula), Cell(f"{law.error:.4f}")]
        cells.append(Cell(number(law.explained)))
        by_what = {one.what: one for one in predicted}
        for what in ("size", "count", "both"):
            one = by_what.get(what)
            text = MISSING if one is None else f"{one.error:.1%} ({one.nearest:.1%})"
            cells.append(Cell(text))
        rows.append(Row(tuple(cells), quality))
    unseen = study.config["unseen"]
    caption = (
        "Cross-entropy over the tasks of all eight skills, nats a token, of merges of k experts "
        "with N parameters; n = N / N_0, N_0 the geometric mean of the sizes, k = 1 the experts "
        "themselves. Error: root mean square over worlds, sizes and numbers. Predicted: mean "
        f"relative error of a fit that saw neither {unseen['size']} nor k = {unseen['count']}, on "
        "that size, on that k, and on both; in brackets that of the nearest loss that it saw. The "
        f"form is that of arXiv:2509.24244. Powers are sought from {POWERS[0]:g} to {POWERS[1]:g}, "
        f"what is added to k from {OFFSETS[0]:g} to {OFFSETS[1]:g}: a number at an end says no "
        "more than that the best one is there or beyond."
    )
    named = ("Base", "Method", "L(N, k)", "Error", "R²")
    header = (*named, "Predicted: size", "Predicted: k", "Predicted: both")
    return Grid("scale_law", "The scaling law of merging", caption, header, tuple(rows), texts=3)


def _correlation(found: Correlation | None) -> Cell:
    if found is None:
        return Cell(MISSING)
    return Cell(f"{signed(found.rho)} [{signed(found.low)}, {signed(found.high)}]")


def predictors_grid(found: Sequence[Worth], default: Mapping[str, float], worlds: int) -> Grid:
    """Lay out what each measure is worth.

    Args:
        found: The measures, best first.
        default: By measure, its rank correlation over the worlds of the experiment's own run.
        worlds: How many these are.
    """
    rows = []
    for worth in found:  # sorted: the best first
        cells = [
            Cell(worth.name),
            Cell(OWN_MEASURES.get(worth.name, "")),
            Cell("higher" if worth.higher else "lower"),
            _correlation(worth.left_out),
            _correlation(worth.equal),
            Cell(signed(worth.pooled)),
            Cell(signed(default[worth.name]) if worth.name in default else MISSING),
            Cell("yes" if worth.earned else "no"),
        ]
        rows.append(Row(tuple(cells)))
    caption = (
        "Spearman's rank correlation of a measure, the mean over every two of a set's experts, "
        "with the outcome of merging them: held-in score relative to the experts, the mean over "
        "methods. Better: which values come with better merges. Left out: the correlation among "
        "the sets of one base, the mean over the bases of a world and then over worlds, with the "
        "sign that the measure has in the other worlds [95 %: t interval over worlds]. Equal k: "
        "the same among sets of equally many experts. Pooled: over all sets of all bases, with "
        f"its own sign. Default run: over the {worlds} worlds of this experiment's own merges, "
        "one set of experts each, with its own sign. Earned: both intervals are above 0."
    )
    notes = [
        "The loss half-way is that of the average of two experts on dev items: of sets of two it "
        "is nearly the outcome itself."
    ]
    if not any(worth.name == lens.NAME for worth in found):
        notes.append("mergelens was not installed, so that its score is not among the measures.")
    named = ("Measure", "What it is", "Better", "Left out [95 %]", "Equal k [95 %]", "Pooled")
    header = (*named, "Default run", "Earned")
    return Grid(
        "scale_predictors", "What predicts a merge", caption, header, tuple(rows), tuple(notes), 3
    )


def csv(study: Study) -> str:
    """Write all merges for programs."""
    header = ["seed", "size", "parameters", "base", "method", "experts", "members"]
    rows: list[list[Any]] = [[*header, "held_in", "gain", "held_out", "loss", *HELD_OUT]]
    references = [
        (cell.reference(role), role) for cell in study.cells for role in (BASE, MULTITASK)
    ]
    for merge, role in [*((m, "") for m in study.merges), *references]:
        own = [merge.seed, merge.size, merge.parameters, merge.quality, merge.method or role]
        own += [0 if role else merge.count, "" if role else " ".join(merge.members)]
        values = (merge.held_in, merge.gain, merge.held_out, merge.loss, *merge.tasks.values())
        rows.append([*own, *map(fields.decimals, values)])
    return fields.text(rows)
