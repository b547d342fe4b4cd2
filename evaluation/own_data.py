"""Items of a user's own tasks: read, checked and put into a data folder."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import statistics
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from common.errors import UserError
from common.files import read_json, read_jsonl, write_bytes, write_jsonl
from common.manifest import NAME, write_manifest
from common.yaml_files import read_yaml
from evaluation.own_tasks import FewShot, OwnTask, parse, read_tasks
from evaluation.rows import AGGREGATIONS, COLUMNS, METRICS, row_fault
from evaluation.suites import Task, items_file, pool_file

FOLDER = "tasks"  # below a data folder: SUITE/TASK/manifest.json of each own task
Row = dict[str, Any]
_UNSUPPORTED = ("include", "group", "process_docs", "filter_list", "custom_dataset")


@dataclass(frozen=True)
class Contents:
    """An own task, read.

    Attributes:
        task: What describes it; its folder is not set yet.
        rows: By role (test, dev, fewshot), the rows under the kind's names of columns.
        files: The user's files, by role.
        modules: Python files that a YAML of lm-eval names.
    """

    task: Task
    rows: dict[str, list[Row]]
    files: dict[str, Path]
    modules: list[Path] = field(default_factory=list)


class _Names(yaml.SafeLoader):
    """Reads a YAML of lm-eval without importing the functions that it names."""


_Names.add_constructor("!function", lambda loader, node: {"function": str(node.value)})


def _functions_in(value: Any) -> set[str]:
    if isinstance(value, Mapping):
        if set(value) == {"function"}:
            return {value["function"].partition(".")[0]}
        return set().union(*map(_functions_in, value.values()))
    return set().union(*map(_functions_in, value)) if isinstance(value, list) else set()


def _existing(name: str | None) -> Path:
    path = Path(name or "")
    if not path.is_file():
        raise UserError(f"no such file {path} (looked for from {Path.cwd()}); correct the path")
    return path


def _definition(path: Path) -> dict[str, Any]:
    found = read_yaml(path, loader=_Names)
    for key in _UNSUPPORTED:
        if key in found:
            raise UserError(f"{path}: {key!r} is not supported; write the task without it")
    return found


def _from_lm_eval(entry: OwnTask, found: Mapping[str, Any], path: Path) -> OwnTask:
    """Complete an entry from its YAML of lm-eval."""
    sources = found.get("dataset_kwargs", {}).get("data_files", {})
    # lm-eval tests on `validation_split` where a task has no `test_split`.
    splits = {
        "items": found.get("test_split") or found.get("validation_split"),
        "dev_items": found.get("validation_split") if found.get("test_split") else None,
    }
    named = {role: sources.get(split) for role, split in splits.items() if split in sources}
    named |= {role: value for role in splits if (value := getattr(entry, role)) is not None}
    if "items" not in named:
        raise UserError(f"{path}: no items; give 'items' in the entry, or data_files in the YAML")
    kinds = {"multiple_choice": "multiple_choice", "generate_until": "generation"}
    kind = kinds.get(found.get("output_type", ""))
    if kind is None:
        raise UserError(f"{path}: output_type must be multiple_choice or generate_until")
    shots, pool = found.get("num_fewshot", 0), sources.get(found.get("fewshot_split"))
    if entry.few_shot:
        pool = entry.few_shot.pool
    if shots and not pool:
        raise UserError(f"{path}: num_fewshot is {shots}; give few_shot.pool in the entry")
    metrics = {about["metric"]: about for about in found.get("metric_list", ())}
    metric = entry.metric or next(iter(metrics), None)
    if metric not in metrics:
        raise UserError(f"{path}: metric_list holds no {metric!r}; name one of {list(metrics)}")
    for name, about in metrics.items():
        if "process_results" not in found and name not in METRICS[kind]:
            valid = ", ".join(METRICS[kind])
            raise UserError(f"{path}: metric {name!r} needs process_results (without: {valid})")
        if about.get("aggregation", "mean") not in AGGREGATIONS:
            raise UserError(f"{path}: aggregation of {name} must be of {', '.join(AGGREGATIONS)}")
    few_shot = FewShot(pool=pool, count=shots) if shots else None
    changes = {"kind": kind, "metric": metric, "few_shot": few_shot} | named
    target = found.get("doc_to_target")
    if kind == "generation" and "process_results" not in found and isinstance(target, str):
        changes["columns"] = {"target": target}
    return entry.model_copy(update=changes)


def _renamed(row: Row, entry: OwnTask) -> Row:
    """Give a row its kind's names of columns, an id and the number of its right choice."""
    renamed = row | {name: row[own] for name, own in entry.columns.items() if own in row}
    text = json.dumps(row, sort_keys=True, ensure_ascii=False)
    renamed["id"] = str(renamed.get("id", hashlib.sha256(text.encode()).hexdigest()[:12]))
    choices, gold = renamed.get("choices"), renamed.get("gold")
    if entry.lm_eval is None and isinstance(gold, str) and isinstance(choices, list):
        renamed["gold"] = choices.index(gold) if gold in choices else gold
    return renamed


def _fault(row: Any, renamed: Row, entry: OwnTask) -> str | None:
    for name in ("target",) if entry.lm_eval else COLUMNS[entry.asked]:
        own = entry.columns.get(name, name)
        if name not in renamed and (own != name or entry.lm_eval is None):
            return f"no {own!r} (its {name}); add it, or name another column under 'columns'"
    if entry.lm_eval is None and (fault := row_fault(renamed, entry.asked)):
        if "gold" in fault:
            fault = f"{renamed['gold']!r} names no choice; give its text, or its number from 0"
        return fault
    return None


def _read(path: Path, entry: OwnTask) -> list[Row]:
    try:
        read_rows = read_jsonl(path)
    except UserError as error:
        wanted = "write one JSON object a line (JSON lines)"
        raise UserError(str(error).replace("make the file again", wanted)) from None
    rows: list[Row] = []
    lines: dict[str, int] = {}  # of the ids, which keep an item once
    for number, row in enumerate(read_rows, 1):
        where = f"{path}, line {number}"
        if not isinstance(row, dict):
            raise UserError(f"{where}: not a JSON object; write one object a line (JSON lines)")
        renamed = _renamed(row, entry)
        if fault := _fault(row, renamed, entry):
            raise UserError(f"{where}: {fault}")
        if renamed["id"] in lines:
            raise UserError(
                f"{where}: the same item (or id) as line {lines[renamed['id']]}; remove one"
            )
        lines[renamed["id"]] = number
        rows.append(renamed)
    if not rows:
        raise UserError(f"{path} holds no items; write one JSON object a line")
    return rows


def _is_dev(row: Row, share: float) -> bool:
    return int(hashlib.sha256(row["id"].encode()).hexdigest()[:8], 16) < share * 2**32


def _read_splits(entry: OwnTask, files: Mapping[str, Path]) -> dict[str, list[Row]]:
    rows = {role: _read(path, entry) for role, path in files.items()}
    if "dev" not in rows:
        share = entry.dev_share
        rows["dev"] = [row for row in rows["test"] if _is_dev(row, share)]
        rows["test"] = [row for row in rows["test"] if not _is_dev(row, share)]
        if not rows["dev"] or not rows["test"]:
            raise UserError(f"{files['test']}: too few rows to divide; give 'dev_items' too")
    if entry.few_shot and len(rows["fewshot"]) < entry.few_shot.count:
        few = f"{len(rows['fewshot'])} rows for {entry.few_shot.count} examples"
        raise UserError(f"{files['fewshot']}: {few}; add some, or ask for fewer")
    return rows


def _chance(entry: OwnTask, rows: list[Row]) -> float:
    if entry.chance is not None:
        return entry.chance
    if entry.kind != "multiple_choice" or entry.lm_eval:
        return 0.0
    return statistics.fmean(1 / len(row["choices"]) for row in rows)


def _named(name: str, entry: OwnTask, chance: float) -> Task:
    suite, _, id = name.partition("/")
    return Task(
        suite,
        id,
        label=entry.label or id,
        metric=entry.metric or METRICS[entry.asked][0],
        kind=entry.asked,
        chance=chance,
        shots=entry.few_shot.count if entry.few_shot else 0,
        maker="own",
        max_tokens=entry.max_tokens,
        delimiter=entry.delimiter,
    )


def read(name: str, entry: OwnTask) -> Contents:
    """Read and check the rows of an own task, SUITE/TASK, from its entry in a configuration.

    Raises:
        UserError: A file is missing or empty, or a row cannot be asked; the message names the
            entry, the file and the line.
    """
    try:
        modules = []
        if entry.lm_eval:
            path = _existing(entry.lm_eval)
            found = _definition(path)
            entry = _from_lm_eval(entry, found, path)
            modules = [path.with_name(f"{module}.py") for module in sorted(_functions_in(found))]
            if lacking := [module for module in modules if not module.is_file()]:
                raise UserError(f"{path} names functions of {lacking[0]}, which does not exist")
        files = {"test": _existing(entry.items)}
        files |= {"dev": _existing(entry.dev_items)} if entry.dev_items else {}
        files |= {"fewshot": _existing(entry.few_shot.pool)} if entry.few_shot else {}
        rows = _read_splits(entry, files)
    except UserError as error:
        raise UserError(f"tasks.{name}: {error}") from None
    task = _named(name, entry, _chance(entry, rows["test"]))
    return Contents(task, rows, files, modules)


def sources(name: str, entry: OwnTask | Mapping[str, Any]) -> list[str]:
    """Name the files that an own task is made from; see `read`."""
    entry = OwnTask.model_validate(entry)
    contents = read(name, entry)
    files = [*contents.files.values(), *contents.modules]
    files += [Path(entry.lm_eval)] if entry.lm_eval else []
    return [str(path) for path in files]


def known(tasks: Mapping[str, Any], with_rows: bool = True) -> dict[str, Task]:
    """Check a configuration's own tasks, with their rows unless only the entries are asked for.

    Args:
        tasks: Entries by name, as read or as models.
        with_rows: Whether their rows are needed.

    Returns:
        The tasks by name.

    Raises:
        UserError: An entry, a file or a row is not usable.
    """
    entries = parse(tasks) if tasks else {}
    return {
        name: read(name, entry).task if with_rows else _named(name, entry, 0.0)
        for name, entry in entries.items()
    }


def _copy_databases(name: str, folder: Path, contents: Contents, data: Path) -> None:
    """Copy the databases that the rows name, under names that no other task has."""
    for row in (row for rows in contents.rows.values() for row in rows):
        source = folder / row["database"]
        if not source.is_file():
            raise UserError(f"tasks.{name}: item {row['id']}: no such database {source}")
        row["database"] = f"{contents.task.lm_eval_name}_{row['database']}".replace("/", "_")
        target = data / "databases" / row["database"]
        if not target.is_file() or target.read_bytes() != source.read_bytes():
            write_bytes(target, source.read_bytes())


def add(name: str, entry: OwnTask, data: Path) -> Contents:
    """Put an own task into a data folder, its manifest last; other tasks in it are left alone.

    Args and Returns: as `read`.
    """
    contents = read(name, entry)
    task, folder = contents.task, data / FOLDER / name
    # First, so that a task that is half replaced is not found.
    if folder.exists():
        shutil.rmtree(folder)
    if entry.databases:
        _copy_databases(name, Path(entry.databases), contents, data)
    written = []
    for split in ("test", "dev"):
        written.append(items_file(data, split, task))
        write_jsonl(written[-1], contents.rows[split])
        pool = pool_file(data, split, task)
        pool.unlink(missing_ok=True)
        if "fewshot" in contents.rows:
            write_jsonl(pool, contents.rows["fewshot"])
            written.append(pool)
    code = {f"{task.id}.yaml": Path(entry.lm_eval)} if entry.lm_eval else {}
    code |= {module.name: module for module in contents.modules}
    for file, source in code.items():
        write_bytes(folder / file, source.read_bytes())
        written.append(folder / file)
    kept = ("label", "metric", "kind", "chance", "shots", "max_tokens", "delimiter")
    write_manifest(
        folder / NAME,
        kind="task",
        parameters=entry.model_dump(exclude_none=True),
        inputs=contents.files | code,
        # Relative to the manifest, so that the data folder may move.
        outputs={os.path.relpath(path, folder): path for path in written},
        code=("evaluation/own_data.py",),
        extra={"task": {key: getattr(task, key) for key in kept}},
    )
    return contents


def add_all(path: Path, data: Path) -> list[str]:
    """Put a file's own tasks, after a look at all, into a data folder; return their names."""
    entries = read_tasks(path)
    try:
        for name, entry in entries.items():
            read(name, entry)
        added = {name: add(name, entry, data) for name, entry in entries.items()}
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    for name, contents in added.items():
        rows = contents.rows
        counts = ", ".join(f"{len(rows[role])} {role}" for role in ("test", "dev"))
        print(f"{name}: {counts} items in {data}", flush=True)
    return list(entries)


def own_tasks(data: Path) -> dict[str, Task]:
    """Find the own tasks that a data folder holds, by name SUITE/TASK."""
    found = {}
    for path in sorted((data / FOLDER).glob(f"*/*/{NAME}")):
        suite, id = path.parts[-3:-1]
        about = read_json(path)["extra"]["task"]
        found[f"{suite}/{id}"] = Task(suite, id, maker="own", folder=path.parent, **about)
    return found
