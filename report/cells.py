"""What the page shows of a cell when a reader asks: the data of `report explain`, compact."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from report.experiment import Experiment
from report.origin import Run, Step, Steps, command, tables

TASKS = "TASKS"  # in a command, which the page's script replaces by a cell's own
_DIGITS = 16  # of a hash that is shown


def _folder(experiment: Experiment) -> Path:
    """Name the results folder as the workflow does, so that a copy elsewhere gives equal bytes."""
    return Path("results", experiment.name)


def _step(step: Step) -> dict[str, Any]:
    about = step.about
    return {
        "kind": about["kind"],
        "sha256": step.sha256,
        "seed": about["seed"],
        "recipe": step.recipe,
        "inputs": [
            [name, own[: own.find(":") + 1 + _DIGITS], place] for name, own, place in step.inputs
        ],
        "code": about.get("code", ""),
        "commit": step.commit,
        "command": step.command,
    }


def _run(experiment: Experiment, steps: Steps, run: Run, found: dict[str, Any]) -> None:
    """Add a row's scores in one world, its files and its chain of inputs to what was found."""
    world = run.data.partition("/")[0]
    tasks = run.model.tasks
    entry: dict[str, Any] = {
        "tasks": {name: [s.value, s.stderr, s.items] for name, s in tasks.items()},
        "world": world,
        "model": run.folder,
        "status": run.model.status,
    }
    if scored := steps.step(run.scores, world):
        about = scored.about
        entry["sha256"] = [about["outputs"].get(name, "") for name in ("scores", "items")]
        entry["commit"] = scored.commit
        made = {"versions": about["versions"], "numerics": about.get("numerics", {})}
        if made not in found["circumstances"]:
            found["circumstances"].append(made)
        entry["made"] = found["circumstances"].index(made)
        entry["again"] = command(_folder(experiment), run, [TASKS], about)
    chain = steps.chain(run.folder, world)
    entry["chain"] = [step.path for step in chain]
    found["steps"] |= {step.path: _step(step) for step in chain if step.path not in found["steps"]}
    found["runs"][run.scores] = entry


def cells(experiment: Experiment, steps: Steps, results: str) -> dict[str, Any]:
    """Collect the origin of every number in the tables of scores.

    Args:
        experiment: The experiment.
        steps: What is recorded of its steps; it collects what is damaged.
        results: The results folder as links of the page name it.

    Returns:
        By table its columns (groups of tasks) and rows (score files by seed); by score file its
        scores, hashes and chain of steps; by path each step.
    """
    found: dict[str, Any] = {
        "results": results,
        "folder": str(_folder(experiment)),
        "tables": {},
        "circumstances": [],
        "runs": {},
        "steps": {},
    }
    for table in tables(experiment).values():
        lines = {}
        for line in table.lines.values():
            lines[line.id] = [line.label, [[run.seed, run.scores] for run in line.runs]]
            for run in line.runs:
                if run.scores not in found["runs"]:
                    _run(experiment, steps, run, found)
        found["tables"][table.name] = {
            "errors": table.errors,
            "columns": table.columns,
            "seeds": table.seeds,
            "lines": lines,
        }
    return found
