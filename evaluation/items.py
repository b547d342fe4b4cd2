"""Items' records: made from a model's answers, summed up as scores, kept in files."""

from __future__ import annotations

import gzip
import json
import math
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from common.errors import UserError
from common.files import MALFORMED, encoded, write_bytes
from evaluation import metrics
from evaluation.suites import Task

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from evaluation.lm_task import LocalTask

Item = dict[str, Any]
Definition = Mapping[str, Any]


@dataclass(frozen=True)
class Context:
    """What a suite's functions may need besides the item.

    Attributes:
        task: The task.
        tokenizer: The model's.
        data: The data folder, with `databases/`.
        engine: sqlite or postgres, for tasks that run SQL.
        postgres: Folder of a PostgreSQL server that was started by hand; None starts one.
        resources: Shared by all tasks of a harness, for what is costly to make; what has a
            `close()` is closed with the harness.
    """

    task: Task
    tokenizer: PreTrainedTokenizerBase
    data: Path
    engine: str = "sqlite"
    postgres: Path | None = None
    resources: dict[str, Any] = field(default_factory=dict)


def _compare(doc: Item, results: Sequence[str], context: Context) -> Item:
    """Score a text against the item's target."""

    def words(text: str) -> list[int]:
        return context.tokenizer.encode(text.strip(), add_special_tokens=False)

    metric, answer, target = context.task.metric, results[0], doc["target"]
    if metric == "rouge2":
        return {metric: metrics.rouge2(words(answer), words(target))}
    return {metric: getattr(metrics, metric)(answer, target)}


def _execute(doc: Item, results: Sequence[str], context: Context) -> Item:
    """Run a query and compare its result with the gold query's."""
    from evaluation.sql.bottle import Judge

    if "judge" not in context.resources:
        context.resources["judge"] = Judge(context.data / "databases")
    verdict = context.resources["judge"].judge(results[0], doc["query"], doc["database"])
    about = {key: doc[key] for key in ("category", "database") if key in doc}
    return about | {context.task.metric: float(verdict.correct), "outcome": verdict.outcome}


# How the kinds of the bottle's tasks are scored; other suites bring their own `process_results`.
PROCESSORS = {"multiple_choice": lambda doc, results: {}, "generation": _compare, "sql": _execute}


def _finite(value: float) -> float | None:
    """Return a number, None for NaN and infinity, which JSON does not know."""
    return float(value) if math.isfinite(value) else None


def _mean(pairs: Sequence[tuple[float | None, int]]) -> dict[str, Any]:
    """Average scores with their numbers of items."""
    known = [(value, count) for value, count in pairs if value is not None]
    if len(known) < len(pairs):
        why = f"not a number for {len(pairs) - len(known)} of {len(pairs)} tasks"
        return {"mean": None, "weighted_mean": None, "tasks": len(pairs), "undefined": why}
    items = sum(count for _, count in known)
    return {
        "mean": math.fsum(value for value, _ in known) / len(known),
        "weighted_mean": math.fsum(value * count for value, count in known) / items,
        "tasks": len(pairs),
    }


class Scorer:
    """Turns the answers to a task's items into records and scores.

    Args:
        task: The task.
        definition: Its definition, as `load_definition` gives it, its functions bound.
    """

    def __init__(self, task: Task, definition: Definition) -> None:
        self._task = task
        self._metrics = {
            entry["metric"]: entry.get("aggregation", "mean") for entry in definition["metric_list"]
        }
        self._process = definition["process_results"]
        self._group_by = definition.get("metadata", {}).get("group_by")

    def record(self, lm_task: LocalTask, doc: Item, results: Sequence[Any]) -> Item:
        """Make an item's record from its row and the model's answers to its requests.

        Returns:
            task, id, score (its own value of the metric that tables show), answer, gold, values
            (of the metrics that its suite computes itself; None for what is not a number) and
            whatever else the suite adds; for multiple choice also the choices' loglikelihoods,
            lengths (characters) and bytes.
        """
        found = self._process(doc, results)
        values = {name: _finite(found.pop(name)) for name in self._metrics if name in found}
        item = {"task": self._task.name, "id": doc["id"], "score": 0.0}
        if self._task.kind == "multiple_choice":
            loglikelihoods = [value for value, _ in results]
            choices = lm_task.choices(doc)
            item |= {
                "answer": loglikelihoods.index(max(loglikelihoods)),
                "gold": lm_task.gold(doc),
                "loglikelihoods": loglikelihoods,
                "lengths": [len(choice) for choice in choices],
                "bytes": [len(choice.encode()) for choice in choices],
            }
            own = metrics.choice_values(*(item[key] for key in metrics.CHOICE_KEYS))
            # A balanced accuracy or an F1 is a task's: its items are right or wrong.
            item["score"] = values.get(self._task.metric, own.get(self._task.metric, own["acc"]))
        else:
            item |= {"answer": results[0], "gold": lm_task.gold(doc)}
            item["score"] = values[self._task.metric]
        if values:
            item["values"] = values
        return item | found

    def summarise(self, items: Sequence[Item]) -> dict[str, Any]:
        """Compute a task's entry in scores.json from its records.

        Returns:
            metric, value, stderr, items and chance (the mean of the items' own `chance` where
            the suite adds it to their records); metrics: value and stderr of each, and
            `undefined` where they are None; shots, fidelity, prompt and scale where the task has
            them; groups: value, stderr and items of each group, where the definition has a key to
            group items by.
        """
        task = self._task
        summaries = {
            name: metrics.aggregate(items, name, how) for name, how in self._metrics.items()
        }
        about: dict[str, Any] = {
            "shots": task.shots,
            "fidelity": task.fidelity,
            "prompt": task.prompt,
            "scale": None if task.scale == 1 else task.scale,
        }
        # Such as SQL-Eval's categories, of which its publication has a score each.
        groups: dict[str, list[Item]] = {}
        for item in items if self._group_by else ():
            groups.setdefault(str(item[self._group_by]), []).append(item)
        how = self._metrics[task.metric]
        about["groups"] = {
            group: metrics.aggregate(part, task.metric, how) | {"items": len(part)}
            for group, part in sorted(groups.items())
        }
        own = [item["chance"] for item in items if "chance" in item]
        return {
            "metric": task.metric,
            **summaries[task.metric],
            "items": len(items),
            "chance": math.fsum(own) / len(own) if own else task.chance,
            "metrics": summaries,
        } | {key: value for key, value in about.items() if value}


def suite_means(
    tasks: Sequence[Task], entries: Mapping[str, Mapping[str, Any]]
) -> dict[str, dict[str, dict[str, Any]]]:
    """Average the scores of each suite's tasks, given their entries in scores.json by name.

    Returns:
        By suite (with its variant) and metric, over the tasks that have the metric: mean (every
        task counts alike), weighted_mean (every item counts alike), tasks (how many). Where one
        of the scores is not a number, both are None, and `undefined` says of how many. Under the
        name `primary`: of the scores that tables show.
    """
    found: dict[str, dict[str, list[tuple[float | None, int]]]] = {}
    for task in tasks:
        entry = entries[task.name]
        suite = found.setdefault(task.group, {})
        values = {name: metric["value"] for name, metric in entry["metrics"].items()}
        for metric, value in (values | {"primary": entry["value"]}).items():
            suite.setdefault(metric, []).append((value, entry["items"]))
    return {
        suite: {metric: _mean(pairs) for metric, pairs in scores.items()}
        for suite, scores in found.items()
    }


def write_records(path: Path, items: Sequence[Item]) -> None:
    """Write records atomically, one a line, to a file that is called `.jsonl.gz` by habit."""
    lines = "".join(json.dumps(item, ensure_ascii=False, allow_nan=False) + "\n" for item in items)
    # No time stamp: equal records must give equal bytes.
    write_bytes(path, gzip.compress(encoded(lines), compresslevel=6, mtime=0))


def read_records(path: Path) -> list[Item]:
    """Read what `write_records` wrote.

    Raises:
        UserError: The file is missing or damaged.
    """
    try:
        content = path.read_bytes()
        if not content:
            raise EOFError("it is empty")
        text = gzip.decompress(content).decode()
        # Not splitlines: a text may hold line ends that only Unicode knows.
        return [json.loads(line) for line in text.split("\n") if line]
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; evaluate the model first") from None
    except (OSError, EOFError, *MALFORMED, zlib.error) as error:
        raise UserError(f"{path}: damaged ({error}); evaluate the model again") from None
