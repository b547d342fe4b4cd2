"""Explains one number of a table: from the value to the training of the base."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Sequence

from common import machine
from common.errors import UserError
from common.files import read_json
from common.hashes import named
from report.averages import Score
from report.experiment import Experiment
from report.grid import number
from report.origin import UNKNOWN, Run, Step, Steps, Table, command, one_of, tables

_WIDTH = 120


def _score(score: Score) -> str:
    return f"{number(score.value)} ±{number(score.stderr)}, {score.items} items"


def _wrapped(title: str, text: str) -> str:
    start = f"  {title:<10}"
    return textwrap.fill(
        text,
        _WIDTH,
        initial_indent=start,
        subsequent_indent=" " * len(start),
        break_on_hyphens=False,
        break_long_words=False,
    )


def _runs_of(experiment: Experiment) -> str:
    """Name the commits of the runs that filled the folder, for steps that do not name their own."""
    path = experiment.results / machine.NAME
    runs = read_json(path) if path.is_file() else []
    return ", ".join(f"{run['commit']} ({run['date']})" for run in runs if run.get("commit"))


def _step(experiment: Experiment, step: Step) -> Iterator[str]:
    about = step.about
    yield f"  {about['kind']}: {experiment.results / step.path}"
    yield _wrapped("  manifest ", f"sha256 {step.sha256}")
    if step.recipe:
        yield _wrapped("  recipe", "; ".join(step.recipe))
    yield _wrapped("  seed", str(about["seed"]))
    for name, own, place in step.inputs:
        where = experiment.results / place if place else "no such file or folder here now"
        yield f"    from      {name}: {where}, {named(own)}"
    yield _wrapped("  code", f"{about.get('code', UNKNOWN)}; commit {step.commit}")
    yield f"    command   {step.command}"


def _circumstances(experiment: Experiment, step: Step) -> Iterator[str]:
    about = step.about
    versions = "; ".join(f"{name} {version}" for name, version in about["versions"].items())
    yield _wrapped("versions", versions)
    numerics = about.get("numerics", {})
    shown = ", ".join(f"{name} {value}" for name, value in sorted(numerics.items()))
    yield _wrapped("processor", shown or UNKNOWN)
    also = _runs_of(experiment) if step.commit == UNKNOWN else ""
    yield _wrapped("commit", step.commit + (f"; runs of this folder: {also}" if also else ""))


def _run(experiment: Experiment, steps: Steps, run: Run, tasks: Sequence[str]) -> Iterator[str]:
    """Explain a row's scores in one world, or one run of the ablation."""
    results, world = experiment.results, run.data.partition("/")[0]
    for task in tasks:
        if score := run.model.tasks.get(task):
            yield f"  {task}: {_score(score)}"
    if run.model.status != "ok":
        yield f"  {run.model.status}"
    scored = steps.step(run.scores, world)
    if scored is None:
        yield f"  scores    {results / run.scores}; without a manifest, no more is recorded"
        return
    outputs = scored.about["outputs"]
    yield f"  scores    {results / run.scores}, sha256 {outputs.get('scores', UNKNOWN)}"
    yield f"  items     {results / run.items}, sha256 {outputs.get('items', UNKNOWN)}"
    for name, own, place in scored.inputs:
        if name in tasks:
            where = results / place if place else "not in the data folder now"
            yield f"  questions {where}, {named(own)}"
    yield from _circumstances(experiment, scored)
    yield f"  again     {command(results, run, tasks, scored.about)}"
    yield ""
    yield "  Made from, each step after what it needed:"
    for step in steps.chain(run.folder, world):
        yield from _step(experiment, step)


def _chosen(table: Table, runs: Sequence[Run], title: str, seed: int | None) -> list[Run]:
    seed = table.seeds.get(title, seed)
    chosen = [run for run in runs if seed is None or run.seed in (seed, None)]
    if not chosen:
        seeds = ", ".join(str(run.seed) for run in runs)
        raise UserError(f"--seed {seed}: no such world of this row; give one of {seeds}")
    return chosen


def explain(experiment: Experiment, name: str, row: str, column: str, seed: int | None) -> str:
    """Explain a cell in words for a terminal.

    Args:
        experiment: The experiment.
        name: The table's name, such as `table1`.
        row: The row's label, or its name in the configuration.
        column: The column's title.
        seed: Of the world that is explained; None explains all.

    Returns:
        The value and its parts; for each world the files, the recipe, the chain of inputs and the
        command that makes the cell again.

    Raises:
        UserError: There is no such cell; the nearest name is given.
    """
    table: Table = one_of("table", name, tables(experiment))
    by_id = {line.id: line for line in table.lines.values()}
    line = by_id[row] if row in by_id else one_of(f"row of {table.name}", row, table.lines)
    titles = {title: title for title in table.columns}
    title = one_of(f"column of {table.name}", column, titles)
    chosen = _chosen(table, line.runs, title, seed)
    tasks = list(dict.fromkeys(task for group in table.columns[title] for task in group))
    score = line.scores.get(title)
    shown = _score(score) if score else "no score"
    lines = [f"{table.name}, {line.label}, {title}: {shown}", f"± is the {table.errors}."]
    if len(line.runs) > 1 and title not in table.seeds:
        lines.append(f"It is the mean over {len(line.runs)} seeds.")
    steps = Steps(experiment.results)
    for run in chosen:
        lines += ["", f"Seed {run.seed}" if run.seed is not None else "The one world"]
        lines += _run(experiment, steps, run, tasks)
    return "\n".join(lines) + "\n"
