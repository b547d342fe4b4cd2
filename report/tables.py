"""All tables of an experiment, for programs (CSV) and for people (Markdown, LaTeX)."""

from __future__ import annotations

from pathlib import Path

from common.files import write_text
from common.manifest import NAME, write_manifest
from report import render
from report.ablation_table import ablation_csv, ablation_grid
from report.case_table import case_csv, case_grid, has_groups, more_grid, tasks_csv, tasks_grid
from report.experiment import Experiment
from report.expert_table import experts_csv, experts_grid
from report.grid import Grid
from report.inspection import inspection_grid
from report.load import score_files

_FORMS = {"md": render.markdown, "tex": render.latex}


def grids(experiment: Experiment) -> list[Grid]:
    """Lay out every table of the experiment, in the order in which the report shows them."""
    seed = experiment.seed
    made = [case_grid(case, seed) for case in experiment.cases]
    if experiment.ablation:
        made.append(ablation_grid(experiment.ablation))
    made += [tasks_grid(case, seed) for case in experiment.cases if has_groups(case)]
    made += [more_grid(case, seed) for case in experiment.cases if case.more]
    made += [inspection_grid(case) for case in experiment.cases if case.inspected]
    return [*made, experts_grid(experiment.cases, seed)]


def csv_texts(experiment: Experiment) -> dict[str, str]:
    """Write the tables for programs: the text of every CSV file by its name."""
    texts = {f"{case.table}.csv": case_csv(case) for case in experiment.cases}
    for case in experiment.cases:
        if has_groups(case):
            texts[f"{case.table}_tasks.csv"] = tasks_csv(case)
        if case.more:
            texts[f"{case.table}_more.csv"] = case_csv(case.beyond())
    if experiment.ablation:
        texts["table3.csv"] = ablation_csv(experiment.ablation)
    return texts | {"experts.csv": experts_csv(experiment.cases)}


def write(experiment: Experiment, out: Path) -> list[Path]:
    """Write all tables and, last, their manifest; return the tables' paths."""
    # No manifest while the tables change: it would vouch for files that it does not describe.
    (out / NAME).unlink(missing_ok=True)
    texts = csv_texts(experiment)
    for grid in grids(experiment):
        for form, renderer in _FORMS.items():
            texts[f"{grid.name}.{form}"] = renderer(grid)
    for name, text in texts.items():
        write_text(out / name, text)
    write_manifest(
        out / NAME,
        kind="tables",
        parameters={"experiment": experiment.name},
        inputs=dict(score_files(experiment.config, experiment.results)),
        outputs={name: out / name for name in texts},
        seed=experiment.seed,
        code=("report/tables.py",),
    )
    return [out / name for name in texts]
