"""The tables for a terminal, and the paths of the other results."""

from __future__ import annotations

from pathlib import Path

from report import render
from report.ablation_table import ablation_grid
from report.case_table import case_grid, more_grid, untuned
from report.cost import costs, stages_grid
from report.experiment import Experiment
from report.grid import Grid

_PLACES = {
    "report.html": "everything on one page",
    "tables": "tables as .csv, .md and .tex",
    "figures": "figures as .png and .pdf",
    "cost.csv": "measured time and memory of every step",
}


def _section(title: str, grid: Grid) -> str:
    return f"\n{title}\n\n{render.plain(grid)}"


def show(experiment: Experiment, out: Path) -> str:
    """Lay out the tables and the time per stage for a terminal.

    Args:
        experiment: The experiment.
        out: Folder that holds the report; the files in it are named at the end.
    """
    parts = []
    for case in experiment.cases:
        grid = case_grid(case, experiment.seed)
        parts.append(_section(f"{grid.title}. {case.title}", grid))
    if experiment.ablation:
        grid = ablation_grid(experiment.ablation)
        title = "Table 3. DAM's training objective: mean ± standard deviation over seeds"
        parts.append(_section(title, grid))
    # After the paper's tables, which a reader looks for first.
    for case in experiment.cases:
        if case.more:
            grid = more_grid(case, experiment.seed)
            parts.append(_section(f"{grid.title}{untuned(case)}. {case.title}", grid))
    parts.append(
        "\n* highest among the merges (Table 3: of all)"
        f"{', or not separated from it' if experiment.cases[0].several else ''}.\nScores are of "
        f"test items; ± after Avg is the standard error over {experiment.cases[0].errors}.\n"
    )
    if found := costs(experiment):
        parts.append(_section("Where the time went", stages_grid(found)))
    places = [(out / name, what) for name, what in _PLACES.items() if (out / name).exists()]
    width = max((len(str(place)) for place, _ in places), default=0)
    parts += ["\n", *(f"{place!s:{width}}  {what}\n" for place, what in places)]
    return "".join(parts)
