"""How long steps on published checkpoints take, estimated from counted FLOPs and bytes."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from common.errors import UserError
from evaluation.data.sources import load_sources
from merges.engine import registry
from paper.hub.lock import Locked
from paper.hub.table import Reference
from workflow.config.cases import Case, Expert
from workflow.config.experiment import Experiment
from workflow.config.hub import without_variant
from workflow.config.methods import Row

# Passes of all weights through memory in a step of DAM for each expert, as its docs count them:
# the merged weight is built forwards and backwards, and its gradient reduced to coefficients.
_PASSES = 3
_HIDDEN = 4096  # width of 7B and 8B models, of which the teachers' states are made


@functools.cache
def assumptions() -> dict[str, Any]:
    """Read the assumptions, paper/assumptions.yaml."""
    path = Path(__file__).with_name("assumptions.yaml")
    return yaml.safe_load(path.read_text(encoding="utf-8"))


def references_of_case(config: Experiment, name: str) -> list[Reference]:
    """List what a case fetches, each once: parents, their data sets, published merges."""
    table, case, ids = config.hub.references, config.cases[name], []
    for parent in case.parents.values():
        ids.append(parent.hub)
        if isinstance(parent, Expert) and parent.calibration:
            ids.append(parent.calibration.hub)
    ids += [config.methods[row].hub for row in config.rows_of(name)]
    return [table[id] for id in dict.fromkeys(ids) if id is not None]


def fetched_cases(config: Experiment) -> list[str]:
    """Name the cases of published checkpoints."""
    return [name for name, case in config.cases.items() if case.fetched]


def references_of(config: Experiment) -> list[Reference]:
    """List what a configuration fetches, each once, in the order of its cases."""
    found = [ref for name in fetched_cases(config) for ref in references_of_case(config, name)]
    return list(dict.fromkeys(found))


def size_of(reference: Reference, config: Experiment, known: Locked | None) -> float | None:
    """Return a reference's size in GB: recorded, else the table's, else estimated for a model.

    Args:
        reference: The row of the table.
        config: The resolved configuration.
        known: The lock's entry, None before its first download.

    Returns:
        The size; None for a data set of unknown size.
    """
    if known:
        return sum(size for _, size in known.files.values()) / 1e9
    if reference.gb is not None or reference.kind == "dataset":
        return reference.gb
    for name in fetched_cases(config):
        case = config.cases[name]
        rows = [config.methods[row] for row in config.rows_of(name)]
        names = [parent.hub for parent in case.parents.values()] + [row.hub for row in rows]
        if reference.id in names:
            return case.gigabytes
    return None


def learning_runs(config: Experiment, case: str) -> list[dict[str, Any]]:
    """Resolve the parameters of each fixed row of a case that learns from calibration data."""
    rows = [config.methods[row] for row in config.rows_of(case)]
    fixed = [row for row in rows if row.learns and not row.search]
    return [registry.validate(row.merge_method, row.set) for row in fixed]


def ablation_runs(config: Experiment) -> list[dict[str, Any]]:
    """Resolve the parameters of each run of the ablation."""
    if (ablation := config.ablation) is None:
        return []
    row = config.methods[ablation.row]
    settings = [ablation.settings(row.set, objective) for objective in ablation.objectives]
    return [registry.validate(row.merge_method, each) for each in settings for _ in ablation.seeds]


def states_gigabytes(config: Experiment, case: str) -> float:
    """Estimate the size of the teachers' hidden states of a case, 2 bytes a value, in GB."""
    experts, tokens = len(config.cases[case].experts), assumptions()["calibration_tokens"]
    return config.calibration.rows * experts * tokens * 2 * _HIDDEN / 1e9


def teacher_hours(config: Experiment, case: str) -> float:
    """Estimate the GPU hours in which a case's experts read their calibration data.

    A forward pass takes 2 FLOPs for each parameter and token.
    """
    entry, gpu = config.cases[case], assumptions()["gpu"]
    tokens = assumptions()["calibration_tokens"] * len(entry.experts)
    flops = 2 * entry.parameters * tokens * config.calibration.rows
    return flops / gpu["flops"] / 3600


def training_hours(config: Experiment, case: str, runs: Sequence[Mapping[str, Any]]) -> float:
    """Estimate the GPU hours of runs that learn from a case's calibration data.

    A step's products are forward and backward of the merged model, 6 FLOPs for each parameter and
    token; in addition every expert's weights pass through memory three times.

    Args:
        config: The resolved configuration.
        case: The case's name.
        runs: The resolved parameters of each run.
    """
    entry, gpu = config.cases[case], assumptions()["gpu"]
    parameters, experts = entry.parameters, len(entry.experts)
    tokens = assumptions()["calibration_tokens"] * experts
    weights = entry.gigabytes * 1e9
    seconds = 0.0
    for run in runs:
        rows = run.get("samples", 1729) * (run.get("epochs") or 1)
        batch = run.get("batch_size", 1)
        step = 6 * parameters * tokens * batch / gpu["flops"]
        step += _PASSES * experts * weights / gpu["bandwidth"]
        seconds += step * rows / batch
    return seconds / 3600


def _asking(entry: Case, tasks: Sequence[str], most: int | None) -> float:
    """Estimate the seconds in which a model of a case answers some tasks, at most so many items."""
    about, sources, seconds = assumptions(), load_sources(), 0.0
    parameters = entry.parameters
    weights = entry.gigabytes * 1e9
    for task in tasks:
        plain = without_variant(task)
        assumed = about["tasks"].get(plain)
        if assumed is None:
            raise UserError(f"{task}: paper/assumptions.yaml has no tokens for it; add a line")
        files = sources[plain].files if plain in sources else {}
        items = assumed.get("items") or (files["items"].rows if "items" in files else None) or 1000
        items = items if most is None else min(items, most)
        seconds += 2 * parameters * assumed["prompt"] * items / about["gpu"]["flops"]
        passes = assumed["generated"] * items / about["concurrent"]
        seconds += weights * passes / about["gpu"]["bandwidth"]
    return seconds


def evaluation_hours(config: Experiment, case: str) -> float:
    """Estimate the GPU hours of evaluating one model on a case's tasks.

    Prompts are bound by arithmetic, generation by the weights' way through memory.

    Raises:
        UserError: Nothing is assumed of a task.
    """
    entry, limit = config.cases[case], config.evaluation.limit
    return (assumptions()["start_s"] + _asking(entry, entry.tasks, limit)) / 3600


def search_hours(config: Experiment, case: str, row: Row) -> float:
    """Estimate the hours of a searched row: each candidate is merged and asked the dev items."""
    entry = config.cases[case]
    candidates = row.evaluations(len(row.experts_of(entry.experts)))
    each = _asking(entry, entry.searched_tasks, config.evaluation.dev_items) / 3600
    if row.learns:
        each += training_hours(config, case, [registry.validate(row.merge_method, row.set)])
    else:
        each += merge_hours(config, case)
    return candidates * each


def merge_hours(config: Experiment, case: str) -> float:
    """Estimate the hours of one merge that streams the models of a case through the CPU."""
    entry, about = config.cases[case], assumptions()
    models = 1 + len(entry.experts)
    moved = (models + 1) * entry.gigabytes * 1e9
    arithmetic = models * entry.parameters * about["value_ns"] * 1e-9
    return (moved / about["disk_bandwidth"] + arithmetic) / 3600
