"""What every row and every stage cost: measured times and memory, counted tokens and FLOPs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common.files import read_json
from report import fields
from report.case_table import table_title
from report.experiment import Experiment, searched
from report.grid import Cell, Grid, Row

STAGES = {
    "data": "Data",
    "base": "Base models",
    "experts": "Experts",
    "teachers": "DAM's teachers",
    "merges": "Merges",
    "search": "Tuning and search",
    "evaluation": "Evaluation",
    "ablation": "Ablation's merges",
}


@dataclass(frozen=True)
class Cost:
    """The cost of one step.

    Attributes:
        stage: One of STAGES.
        case: The case study, or ``ablation``.
        id: Model, row or run.
        split: For an evaluation, the split of the items; else empty.
        wall_s: Wall time in seconds.
        cpu_s: CPU time in seconds, user and system.
        peak_rss_mb: Peak resident memory in MB (10^6 bytes) of the process.
        counted: Amounts by name.
    """

    stage: str
    case: str
    id: str
    split: str
    wall_s: float
    cpu_s: float
    peak_rss_mb: float
    counted: Mapping[str, float]


def _cost(path: Path, stage: str, case: str, id: str, split: str = "") -> Iterator[Cost]:
    if path.exists():
        content: dict[str, Any] = read_json(path)
        measured = (float(content[name]) for name in ("wall_s", "cpu_s", "peak_rss_mb"))
        yield Cost(stage, case, id, split, *measured, content.get("counted", {}))


def costs(experiment: Experiment) -> list[Cost]:
    """Read the cost of every step that has one, in the order of the work.

    Args:
        experiment: The experiment.

    Returns:
        Costs of data, models, teachers, merges, evaluations and the ablation's runs.
    """
    found: list[Cost] = []
    results, methods = experiment.results, experiment.config["methods"]
    for case in experiment.cases:
        folder = results / case.id
        found += _cost(folder / "data" / "cost.json", "data", case.id, "data")
        found += _cost(folder / "teachers" / "cost.json", "teachers", case.id, "teachers")
        for model in case.all_models:
            if model.kind == "merge":
                stage = "search" if searched(methods[model.id]) else "merges"
                made = folder / "merges"
            else:
                stage = "base" if model.kind == "base" else "experts"
                made = folder / "models"
            found += _cost(made / model.id / "cost.json", stage, case.id, model.id)
            for split in ("dev", "test"):
                path = folder / "scores" / split / f"{model.id}.cost.json"
                found += _cost(path, "evaluation", case.id, model.id, split)
    for entry in experiment.ablation.objectives if experiment.ablation else ():
        for run in entry.runs:
            folder = results / "ablation" / run.id
            made = [folder / "model" / "cost.json", folder / "cost.json"]
            path = next((path for path in made if path.exists()), made[0])
            found += _cost(path, "ablation", "ablation", run.id)
            found += _cost(folder / "scores.cost.json", "evaluation", "ablation", run.id, "test")
    return sorted(found, key=lambda cost: list(STAGES).index(cost.stage))


def cost_csv(found: list[Cost]) -> str:
    """Write one row per step, with every amount that any step counted as a column."""
    names = sorted({name for cost in found for name in cost.counted})
    about = ["stage", "case", "id", "split", "wall_s", "cpu_s", "peak_rss_mb"]
    rows = [[*about, *(f"counted {name}" for name in names)]]
    for cost in found:
        amounts = [f"{cost.counted[name]:.0f}" if name in cost.counted else "" for name in names]
        measured = [f"{cost.wall_s:.3f}", f"{cost.cpu_s:.3f}", f"{cost.peak_rss_mb:.0f}"]
        rows.append([cost.stage, cost.case, cost.id, cost.split, *measured, *amounts])
    return fields.text(rows)


def stages_grid(found: list[Cost]) -> Grid:
    """Lay out where the time went, stage by stage."""
    rows = []
    for stage, label in STAGES.items():
        steps = [cost for cost in found if cost.stage == stage]
        if steps:
            rows.append(_sum_row(label, steps))
    if found:
        rows.append(_sum_row("All", found, "sum"))
    caption = (
        "Measured seconds, summed over the steps of a stage. Steps run side by side, so that "
        "the wall times add up to more than the clock showed; start-up of Python and Snakemake "
        "is not in them. Evaluation includes the ablation's runs."
    )
    header = ("Stage", "Steps", "CPU s", "Wall s", "Peak MB")
    return Grid("stages", "Where the time went", caption, header, tuple(rows))


def _sum_row(label: str, steps: list[Cost], group: str = "") -> Row:
    sums = (
        str(len(steps)),
        f"{sum(cost.cpu_s for cost in steps):.1f}",
        f"{sum(cost.wall_s for cost in steps):.1f}",
        f"{max(cost.peak_rss_mb for cost in steps):.0f}",
    )
    return Row((Cell(label), *map(Cell, sums)), group)


def _amount(value: float | None) -> str:
    if not value:
        return "–"
    for size, sign in ((1e12, " T"), (1e9, " G"), (1e6, " M"), (1e3, " k")):
        if value >= size:
            return f"{value / size:.3g}{sign}"
    return f"{value:.0f}"


def rows_grid(experiment: Experiment, found: list[Cost]) -> Grid:
    """Lay out what each model of the cases cost to make and to evaluate."""
    shown = ("forward_tokens", "backward_tokens", "flops", "evaluations", "dev_tokens")
    rows = []
    for case in experiment.cases:
        for model in case.all_models:
            steps = [cost for cost in found if (cost.case, cost.id) == (case.id, model.id)]
            making = [cost for cost in steps if cost.stage != "evaluation"]
            tests = [cost for cost in steps if cost.split == "test"]
            if not steps:
                continue
            counted = {name: sum(cost.counted.get(name, 0) for cost in making) for name in shown}
            cells = [
                *(table_title(case.table), model.label),
                *(f"{sum(cost.cpu_s for cost in part):.1f}" for part in (making, tests)),
                f"{max(cost.peak_rss_mb for cost in steps):.0f}",
                *(_amount(counted[name]) for name in shown),
            ]
            rows.append(Row(tuple(map(Cell, cells)), case.id))
    caption = (
        "Cost of making each model (training, merging, and its own search or tuning on dev "
        "items) and of its evaluation on test items. CPU seconds and peak memory are measured "
        "and vary; tokens, FLOPs and evaluations are counted; a dash: not counted or none. "
        "DAM's rows share the teachers' signal, whose cost stands in its own stage. "
        "cost.csv has every step."
    )
    header = (
        *("Table", "Model", "Making, CPU s", "Test, CPU s", "Peak MB"),
        *("Forward tokens", "Backward tokens", "FLOPs", "Dev evaluations", "Dev tokens"),
    )
    return Grid("costs", "Cost", caption, header, tuple(rows), texts=2)
