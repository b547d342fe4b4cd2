"""One model's score file: read, compared with what it was computed from, and with other rows'."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from common.errors import UserError
from common.manifest import beside, has_fingerprint
from report.averages import Score
from report.experiment import Model, is_generated
from report.reading import MANIFEST, SCORES, Reader, read

NOT_RUN = "not run"
STALE = "changed since it was evaluated"
# What must be the same for all rows of a column, with the words for it.
_ALIKE = {"items": "{} items", "metric": "the metric {}", "inputs": "other items (sha256 {:.8})"}


@dataclass(frozen=True)
class Outcome:
    """What there is of a model's scores.

    Attributes:
        status: ``ok``, or why there are none.
        tasks: Scores by task; empty unless the status is ``ok``.
        seed: Of the evaluation, None where it is not known.
        lacking: By task, why a cell of the tables has no score although the file is there.
        evaluated: How the scores were made: ``lm_eval``, and by task what `_ALIKE` names.
    """

    status: str
    tasks: dict[str, Score] = field(default_factory=dict)
    seed: int | None = None
    lacking: dict[str, str] = field(default_factory=dict)
    evaluated: dict[str, Any] = field(default_factory=dict)


def _cell(entry: Mapping[str, Any]) -> Score:
    """Read a task's entry of a score file.

    Raises:
        ValueError: It is no score; says why.
    """
    if entry.get("value") is None and "undefined" in entry:
        raise ValueError(f"has no score ({entry['undefined']})")
    try:
        values = (float(entry[name]) for name in ("value", "stderr"))
        value, stderr = values
        items, chance = int(entry["items"]), float(entry.get("chance", 0.0))
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise ValueError(f"is not a score ({error!r})") from None
    lowest = -1.0 if entry.get("metric") == "mcc" else 0.0
    if not lowest <= value <= 1:  # NaN neither
        raise ValueError(f"has the score {value:g}, which is not between {lowest:g} and 1")
    if not 0 <= stderr <= 1:  # no mean of values from -1 to 1 has a larger one
        raise ValueError(f"has the standard error {stderr:g}, which is not between 0 and 1")
    if items < 1:
        raise ValueError("has no items")
    return Score(value, stderr, items, chance)


def cells(content: Mapping[str, Any]) -> tuple[dict[str, Score], dict[str, str]]:
    """Read a score file's tasks: scores by task, and what is wrong with the others."""
    tasks, wrong = {}, {}
    for name, entry in content["tasks"].items():
        try:
            found = _cell(entry)
            shared = 0.0 if is_generated(name) else found.stderr**2
            tasks[name] = dataclasses.replace(found, shared=shared)
        except ValueError as error:
            wrong[name] = str(error)
    return tasks, wrong


def read_scores(path: Path) -> tuple[dict[str, Score], int | None]:
    """Read scores by full task name and the seed from a score file of `python -m evaluation`.

    Raises:
        UserError: The file is not a score file, or one of its scores is none.
    """
    content = read(path, SCORES, "score file", recorded=True)
    tasks, wrong = cells(content)
    for name, why in wrong.items():
        raise UserError(f"{path}: task {name} {why}; drop it, or evaluate the model again")
    return tasks, content.get("seed")


def _other_inputs(
    reader: Reader,
    made: tuple[Path, Mapping[str, str]],
    content: Mapping[str, Any],
    inputs: Mapping[str, str],
    data: Path,
) -> str | None:
    """Say which input of a score is not the one that there is now; None where all agree.

    What has no manifest, such as scores that were dropped in, cannot be compared.

    Args:
        reader: Recalls the hashes of items.
        made: The model's folder, and what its manifest says of its files.
        content: The score file.
        inputs: What its manifest says that it was made from; empty where it has none.
        data: The folder of the items.
    """
    folder, outputs = made
    for evaluated in {content.get("weights"), inputs.get("weights")} - {None, ""}:
        if has_fingerprint(evaluated, outputs, folder) is False:
            return STALE
    for task in content["tasks"]:
        recorded = reader.recorded_items(data, content.get("split", "test"), task)
        if recorded and inputs.get(task, recorded) != recorded:
            return f"evaluated on other items of {task} than its data folder holds now"
    return None


@dataclass(frozen=True)
class Wanted:
    """Which scores a row of a table may have.

    Attributes:
        names: Of the rows, among which a file of another one is noticed.
        tasks: Of the columns.
        seed: Of the world; None for any.
    """

    names: frozenset[str]
    tasks: Sequence[str]
    seed: int | None = None


def _of_others(content: Mapping[str, Any], id: str, wanted: Wanted) -> str | None:
    """Say whose scores a file holds instead of a row's; None where it may be the row's."""
    split, name, seed = (content.get(key) for key in ("split", "model", "seed"))
    if split not in (None, "test"):
        return f"failed: scores of the split {split!r}, not test"
    if name != id and name in wanted.names:
        return f"failed: scores of the model {name!r}"
    if wanted.seed is not None and seed is not None and seed != wanted.seed:
        return f"of another world (seed {seed}, not {wanted.seed})"
    return None


def outcome(
    reader: Reader,
    id: str,
    scores: Path,
    made: tuple[Path, Mapping[str, Any]],
    smoke: Mapping[str, Any],
    data: Path,
    wanted: Wanted,
) -> Outcome:
    """Return what there is of a model's scores; a row that has failed or changed has none.

    Long because each way in which scores may not be the row's has its own line.

    Args:
        reader: Collects what is wrong with files.
        id: The row's name.
        scores: The file of its scores.
        made: The model's folder, which may be missing where only scores were kept, and its
            manifest.
        smoke: What the smoke check found of the model.
        data: The folder of the items that it answers.
        wanted: What the table shows.
    """
    folder, manifest = made
    for failed in (folder.with_name(f"{folder.name}.failed"), scores.with_suffix(".failed")):
        if failed.exists():
            reason = failed.read_text(encoding="utf-8", errors="replace").strip()
            return Outcome(f"failed: {reason.removeprefix('error: ') or 'no reason given'}")
    if not scores.exists():
        return Outcome(NOT_RUN)
    try:
        content = read(scores, SCORES, "score file", recorded=True)
    except UserError as error:
        reader.fault(str(error))
        return Outcome(reader.short(f"failed: {error}"))
    for task, entry in content["tasks"].items():
        # One model's answers, however odd, must not cost all others their tables.
        if "undefined" in entry and entry.get("value") is None:
            return Outcome(f"failed: {task} has no score: {entry['undefined']}")
    about = reader.optional(beside(scores), MANIFEST, "manifest")
    inputs, seed = about.get("inputs", {}), content.get("seed")
    if why := _of_others(content, id, wanted):
        reader.fault(f"{scores}: {why.removeprefix('failed: ')}; evaluate the model again")
        return Outcome(why, seed=seed)
    if why := _other_inputs(reader, (folder, manifest.get("outputs", {})), content, inputs, data):
        return Outcome(why)
    if bad := smoke.get("not_finite", 0):
        return Outcome(
            f"failed: logits are NaN or infinite at {bad} positions of the smoke text", seed=seed
        )
    tasks, wrong = cells(content)
    lacking = {task: f"{task} {why} in {scores}" for task, why in wrong.items()}
    for line in lacking.values():
        reader.fault(f"{line}; evaluate the model again")
    lacking = {task: reader.short(line) for task, line in lacking.items()}
    absent = [task for task in wanted.tasks if task not in content["tasks"]]
    lacking |= {task: reader.short(f"no score of {task} in {scores}") for task in absent}
    how = {
        task: {key: content["tasks"][task].get(key) for key in ("items", "metric")}
        | {"inputs": inputs.get(task)}
        for task in tasks
    }
    evaluated = {"lm_eval": content.get("lm_eval"), "tasks": how}
    return Outcome("ok", tasks, seed, lacking, evaluated)


def _usual(values: Sequence[Any]) -> Any:
    """Return the value that most have, of equally many the first; None where none is known."""
    known = Counter(value for value in values if value is not None)
    return known.most_common(1)[0][0] if known else None


def alike(reader: Reader, models: Sequence[Model], paths: Mapping[str, Path]) -> list[Model]:
    """Take out of a column the scores that were not measured as the other rows' were.

    Args:
        reader: Collects the differences.
        models: A case's rows in one world.
        paths: Of their score files, by row, for the message.
    """
    asked = [model.evaluated.get("tasks", {}) for model in models]
    names = dict.fromkeys(task for about in asked for task in about)
    usual = {
        task: {key: _usual([about[task].get(key) for about in asked if task in about])
               for key in _ALIKE}
        for task in names
    }  # fmt: skip
    found = []
    for model, about in zip(models, asked, strict=True):
        lacking = {}
        for task, values in about.items():
            for key, words in _ALIKE.items():
                own, most = values.get(key), usual[task][key]
                if own is not None and own != most and task in model.tasks:
                    lacking[task] = (
                        f"{task} has {words.format(own)} in {paths[model.id]}, most other "
                        f"rows {words.format(most).removeprefix('other ')}"
                    )
        for line in lacking.values():
            reader.fault(f"{line}; evaluate the model again")
        kept = {task: score for task, score in model.tasks.items() if task not in lacking}
        both = {**model.lacking, **{task: reader.short(line) for task, line in lacking.items()}}
        found.append(dataclasses.replace(model, tasks=kept, lacking=both) if lacking else model)
    return found
