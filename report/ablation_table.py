"""Table 3: DAM's training objectives, mean and deviation over seeds."""

from __future__ import annotations

from collections.abc import Sequence

from report import fields
from report.averages import Score, spread
from report.case_table import what_is_shown
from report.experiment import Ablation
from report.footnotes import edits_of
from report.grid import Cell, Grid, Row, number
from report.pairs import LEVEL, over_runs, resolution, separated, weights_of


def _over_seeds(scores: Sequence[Score | None]) -> list[str]:
    """Write mean and deviation over seeds, one run's mean item error, and the items of a run."""
    total = spread([score and score.value for score in scores])
    done = [score for score in scores if score is not None]
    error = sum(score.stderr for score in done) / len(done) if done else None
    return [
        fields.decimals(total and total.mean),
        fields.decimals(total and total.deviation),
        fields.decimals(error),
        str(done[0].items) if done else "",
    ]


def ablation_csv(ablation: Ablation) -> str:
    """Write Table 3 for programs: mean and sample deviation over seeds, each seed's average."""
    case = ablation.case
    counted = fields.counted_names(run for entry in ablation.objectives for run in entry.runs)
    header = ["id", "label", "seeds", "runs"]
    header += ["Avg mean", "Avg sd", "Avg item stderr", "Avg items"]
    header += [f"Avg seed {seed}" for seed in ablation.seeds]
    for column in case.columns:
        header += [f"{column.label} {what}" for what in ("mean", "sd", "item stderr", "items")]
    rows = [[*header, *(f"counted {name} (all seeds)" for name in counted)]]
    seeds = " ".join(map(str, ablation.seeds))
    for entry in ablation.objectives:
        averages = [case.average(run) for run in entry.runs]
        done = sum(score is not None for score in averages)
        row = [entry.id, entry.label, seeds, str(done), *_over_seeds(averages)]
        row += [fields.decimals(score and score.value) for score in averages]
        for column in case.columns:
            row += _over_seeds([run.column(column) for run in entry.runs])
        totals = [sum(run.counted.get(name, 0) for run in entry.runs) for name in counted]
        rows.append(row + [f"{amount:.0f}" for amount in totals])
    return fields.text(rows)


def _best(ablation: Ablation, means: Sequence[float | None]) -> tuple[set[str], list[str]]:
    """Return the objectives that are not separated from the highest mean, and a note on the test.

    Args:
        ablation: The ablation.
        means: One an objective; None for those that take no part.
    """
    rivals = [(m, o) for m, o in zip(means, ablation.objectives, strict=True) if m is not None]
    if not rivals:
        return set(), []
    top, first = max(rivals, key=lambda entry: entry[0])
    case, weights = ablation.case, weights_of(ablation.case.averaged)
    tests = {
        entry.id: over_runs(first.runs, entry.runs, case.average, weights)
        for _, entry in rivals
        if entry is not first
    }
    found = {id: test for id, test in tests.items() if test}
    near = {id for id, p in separated(found).items() if p >= LEVEL}
    equal = {entry.id for mean, entry in rivals if mean >= top - 1e-12}
    least = resolution(found)
    seen = (
        f"The smallest difference from the highest mean that this table separates is about "
        f"{number(least)} (the median over {len(found)} rows)."
    )
    return near | equal, [seen] if least is not None else []


def ablation_grid(ablation: Ablation) -> Grid:
    """Lay out Table 3 for people: mean and standard deviation over seeds, and every seed."""
    case = ablation.case
    table = [[case.average(run) for run in entry.runs] for entry in ablation.objectives]
    totals = [spread([score and score.value for score in scores]) for scores in table]
    # Rows beyond the paper's table are not in the comparison, so they cannot be its best; a mean
    # over fewer seeds does not compare with the others'.
    compared = [
        total if total and total.runs == len(ablation.seeds) and not entry.extra else None
        for entry, total in zip(ablation.objectives, totals, strict=True)
    ]
    best, notes = _best(ablation, [total and total.mean for total in compared])
    rows = []
    for entry, scores, total, rival in zip(
        ablation.objectives, table, totals, compared, strict=True
    ):
        deviation = number(total.deviation) if total and total.deviation is not None else ""
        strong = rival is not None and entry.id in best
        fewer = 0 < (total.runs if total else 0) < len(ablation.seeds)
        count = f" ({total.runs} of {len(ablation.seeds)} seeds)" if total and fewer else ""
        cells = [
            Cell(entry.label + "°" * entry.extra + count),
            Cell(number(total and total.mean), deviation, strong),
        ]
        cells += [Cell(number(score and score.value)) for score in scores]
        rows.append(Row(tuple(cells), "extra" if entry.extra else ""))
        for run in entry.runs:
            if run.status != "ok":
                notes.append(f"{entry.label}, seed {run.seed}: {run.status}.")
            notes += [f"Seed {run.seed}, {edit}" for edit in edits_of(run)]
            notes += [f"{entry.label}, seed {run.seed}: {why}." for why in run.lacking.values()]
    if any(entry.extra for entry in ablation.objectives):
        notes.append("° A row beyond the paper's table; it takes no part in the mark for the best.")
    done = [score.stderr for scores in table for score in scores if score is not None]
    items = number(sum(done) / len(done)) if done else "unknown"
    seeds = ", ".join(map(str, ablation.seeds))
    caption = (
        f"DAM's training objectives compared by the average over {len(case.averaged)} columns. "
        f"{case.title}, in one world. {what_is_shown(case)} Mean ± sample standard "
        f"deviation over the seeds {seeds}, which change DAM's data draw and order while the "
        "experts stay. The standard error over test items of one run's "
        f"average is about {items}; it is not in the deviation, because all runs answer the same "
        "items. Bold: the highest mean, and those that a t test paired over seeds and items does "
        f"not separate from it ({100 * LEVEL:.0f} %, Holm's correction)."
    )
    header = ("Objective", "Mean", *(f"Seed {seed}" for seed in ablation.seeds))
    return Grid("table3", "Table 3", caption, header, tuple(rows), tuple(notes))
