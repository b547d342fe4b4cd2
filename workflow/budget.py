"""What an experiment on published checkpoints will fetch, store and compute, before it does."""

from __future__ import annotations

import functools
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from common.errors import UserError
from evaluation.data.sources import load_sources
from hub.lock import locked
from hub.table import Reference, read_table
from merges import registry
from workflow import published, resources
from workflow.configuration import rows_of, tasks_of

_BYTES = resources.BYTES
# Passes of all weights through memory in a step of DAM for each expert, as its docs count them:
# the merged weight is built forwards and backwards, and its gradient reduced to coefficients.
_PASSES = 3
_HIDDEN = 4096  # width of 7B and 8B models, of which the teachers' states are made


@functools.cache
def assumptions() -> dict[str, Any]:
    """Read the file of what is assumed."""
    path = Path(__file__).with_name("assumptions.yaml")
    return yaml.safe_load(path.read_text(encoding="utf-8"))


def references_of(config: Mapping[str, Any], root: Path) -> list[Reference]:
    """List what a configuration fetches, each once, in the order of its cases.

    Args:
        config: The resolved configuration.
        root: The project's folder.

    Returns:
        Rows of the table of references.
    """
    table = read_table(published.table_of(config, root))
    names: list[str] = []
    for case in config["cases"].values():
        if not published.is_published(case):
            continue
        for parent in (case["base"], *case["experts"].values()):
            names.append(parent["hub"])
            if "calibration" in parent:
                names.append(parent["calibration"]["hub"])
    names += [row["hub"] for row in config["methods"].values() if "hub" in row]
    return [table[name] for name in dict.fromkeys(names)]


def has_token() -> bool:
    """Tell whether the hub's library will find a token."""
    home = Path(os.environ.get("HF_HOME", "~/.cache/huggingface")).expanduser()
    file = Path(os.environ.get("HF_TOKEN_PATH", home / "token"))
    return bool(os.environ.get("HF_TOKEN")) or file.is_file()


def _size(reference: Reference, config: Mapping[str, Any]) -> float | None:
    """GB of a reference: the table's, or for a model what its case's parameters take."""
    if reference.gb is not None or reference.kind == "dataset":
        return reference.gb
    for name, case in config["cases"].items():
        parents = [case["base"], *case["experts"].values()]
        rows = [config["methods"][row] for row in rows_of(config, name)]
        if any(entry.get("hub") == reference.id for entry in [*parents, *rows]):
            return resources.gigabytes_of(case)
    return None


def _fetching(config: Mapping[str, Any], root: Path) -> tuple[list[str], float, list[str]]:
    lines, total, errors = [], 0.0, []
    lock = published.lock_file(config, root)
    for reference in references_of(config, root):
        known, size = locked(lock, reference), _size(reference, config)
        if known:
            size = sum(size for _, size in known.files.values()) / 1e9
        total += size or 0.0
        revision = known.revision if known else reference.revision
        how = "recorded" if known else "table" if reference.gb else "estimated"
        token = ""
        if reference.gated and "mirror" not in config["hub"]:
            token = ", gated: a token is there" if has_token() else ", gated: NO TOKEN"
            if not has_token():
                errors.append(
                    f"{reference.id} ({reference.repository}) is gated and there is no token: "
                    f"accept its licence on {reference.page}, then HF_TOKEN=... or `hf auth login`"
                )
        lines.append(
            f"  {reference.repository}@{revision[:12] if revision else 'newest'}: "
            f"{f'{size:.1f} GB ({how})' if size else 'size unknown'}, "
            f"licence {reference.licence or 'unknown, see its page'}{token}"
        )
    return lines, total, errors


def _learning(config: Mapping[str, Any], case: str) -> list[dict[str, Any]]:
    """Resolve the parameters of each run of a case that learns from calibration data."""
    runs = []
    for row in rows_of(config, case):
        entry = config["methods"][row]
        if "hub" not in entry and "data" in registry.describe()[entry["method"]].needs:
            runs.append(registry.validate(entry["method"], entry["set"]))
    ablation = config.get("ablation")
    if ablation and ablation["case"] == case:
        row = config["methods"][ablation["row"]]
        resolved = registry.validate(row["method"], {**row["set"], **ablation["set"]})
        runs += [resolved] * (len(ablation["objectives"]) * len(ablation["seeds"]))
    return runs


def learning_hours(config: Mapping[str, Any], case: str) -> dict[str, float]:
    """Estimate the GPU hours of a case's teachers and of all its runs that learn.

    A step's products are forward and backward of the merged model, 6 FLOPs for each parameter and
    token; beside them every expert's weights pass through memory three times.

    Args:
        config: The resolved configuration.
        case: The case's name.

    Returns:
        Hours by stage: teachers, training.
    """
    entry, gpu = config["cases"][case], assumptions()["gpu"]
    parameters, experts = resources.parameters_of(entry), len(entry["experts"])
    tokens = assumptions()["calibration_tokens"] * experts
    weights = parameters * _BYTES[entry["size"]["dtype"]]
    teachers = 2 * parameters * tokens * config["calibration"]["rows"] / gpu["flops"]
    training = 0.0
    for run in _learning(config, case):
        rows = run.get("samples", 1729) * (run.get("epochs") or 1)
        batch = run.get("batch_size", 1)
        step = 6 * parameters * tokens * batch / gpu["flops"]
        step += _PASSES * experts * weights / gpu["bandwidth"]
        training += step * rows / batch
    return {"teachers": teachers / 3600, "training": training / 3600}


def evaluation_hours(config: Mapping[str, Any], case: str) -> float:
    """Estimate the GPU hours of evaluating one model on a case's tasks.

    Args:
        config: The resolved configuration.
        case: The case's name.

    Returns:
        Hours; prompts are bound by arithmetic, generation by the weights' way through memory.
    """
    entry, about = config["cases"][case], assumptions()
    parameters = resources.parameters_of(entry)
    weights = parameters * _BYTES[entry["size"]["dtype"]]
    sources, seconds = load_sources(), float(about["start_s"])
    for task in tasks_of(entry):
        group, _, name = task.partition("/")
        plain = f"{group.split(':')[0]}/{name}"
        assumed = about["tasks"].get(plain)
        if assumed is None:
            raise UserError(f"{task}: workflow/assumptions.yaml has no tokens for it; add a line")
        files = sources[plain].files if plain in sources else {}
        items = assumed.get("items") or (files["items"].rows if "items" in files else None) or 1000
        items = min(items, config["evaluation"].get("limit", items))
        seconds += 2 * parameters * assumed["prompt"] * items / about["gpu"]["flops"]
        passes = assumed["generated"] * items / about["concurrent"]
        seconds += weights * passes / about["gpu"]["bandwidth"]
    return seconds / 3600


def report(config: Mapping[str, Any], root: Path, results: Path) -> tuple[list[str], list[str]]:
    """Tell what an experiment will fetch, store and compute.

    Args:
        config: The resolved configuration.
        root: The project's folder.
        results: The folder of its results; it need not exist.

    Returns:
        Lines for people, and the errors that would stop the run, a line each.
    """
    if not references_of(config, root):
        return [f"{config['name']} fetches nothing: the bottle makes its own models"], []
    fetching, total, errors = _fetching(config, root)
    lines = ["to fetch:", *fetching, f"  in all about {total:.0f} GB", "per case:"]
    stored, hours, gpu = total, 0.0, assumptions()["gpu"]
    for name, case in config["cases"].items():
        if not published.is_published(case):
            continue
        size, experts = resources.gigabytes_of(case), len(case["experts"])
        rows = [row for row in rows_of(config, name) if "hub" not in config["methods"][row]]
        ablation = config.get("ablation")
        runs = 0
        if ablation and ablation["case"] == name:
            runs = len(ablation["objectives"]) * len(ablation["seeds"])
        states = (
            config["calibration"]["rows"]
            * experts
            * assumptions()["calibration_tokens"]
            * 2
            * _HIDDEN
            / 1e9
        )
        merges = (len(rows) + runs) * size
        asked = resources.ask("trained_merge", case, experts=experts)
        models = 1 + experts + len(rows_of(config, name)) + runs
        learning, each = learning_hours(config, name), evaluation_hours(config, name)
        hours += sum(learning.values()) + each * models
        stored += states + merges
        lines += [
            f"  {name}: {experts} experts and a base of {size:.1f} GB, {len(rows)} merges and "
            f"{runs} runs of the ablation: {merges:.0f} GB; teachers' states {states:.0f} GB",
            f"    GPU hours (estimated): teachers {learning['teachers']:.2f}, training "
            f"{learning['training']:.1f}, evaluation {each * models:.1f} ({models} models, "
            f"{60 * each:.0f} min each)",
            f"    GPU memory: {asked['gpu_mem_mb'] / 1000:.0f} GB of {gpu['memory_gb']} GB",
        ]
        if asked["gpu_mem_mb"] / 1000 > gpu["memory_gb"]:
            errors.append(
                f"{name}: training holds {asked['gpu_mem_mb'] / 1000:.0f} GB on a GPU, more than "
                f"the {gpu['memory_gb']} GB assumed; take fewer experts or a larger GPU "
                "(workflow/assumptions.yaml)"
            )
    place = results
    while not place.exists():
        place = place.parent
    free = shutil.disk_usage(place).free / 1e9
    lines += [
        f"disk: about {stored:.0f} GB below {results}, {free:.0f} GB are free",
        f"GPU hours: about {hours:.0f} on one 80 GB GPU (estimated from counted FLOPs and bytes "
        "and workflow/assumptions.yaml; nothing of it was measured)",
    ]
    if stored > free:
        errors.append(
            f"{results} needs about {stored:.0f} GB and {free:.0f} GB are free; free some space, "
            "link the folder to a larger disk, or take rows out of the configuration"
        )
    return lines, errors
