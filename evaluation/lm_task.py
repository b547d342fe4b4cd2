"""lm-eval's task over local rows: the order of items, the draw of shots, caps by item."""

from __future__ import annotations

import contextlib
import functools
import io
import random
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import lm_eval.utils
from lm_eval.api.instance import Instance
from lm_eval.api.samplers import ContextSampler
from lm_eval.api.task import ConfigurableTask

from common.errors import UserError
from common.files import read_json, read_jsonl
from common.manifest import NAME, check_recorded
from evaluation.rows import ANY_COLUMNS, row_fault
from evaluation.suites import Task, items_file, pool_file

FEWSHOT_SEED = 1234  # lm-eval's own, for tasks that do not shuffle their items
Row = dict[str, Any]

# lm-eval compiles a template anew for every document, at about 3 ms each.
lm_eval.utils.env.from_string = functools.lru_cache(lm_eval.utils.env.from_string)


class _Rows(list):
    """Items as lm-eval reads them, without the datasets library's files."""

    @property
    def features(self) -> Row:
        return self[0]


class Shots(ContextSampler):
    """Draws solved examples with the generator that shuffled the items, as published.

    Args:
        pool: The rows to draw from.
        generator: The generator, as the shuffle left it.
        stratify: A column whose values each give their share of the draw; None draws plainly.

    Attributes:
        item: The item for which is drawn. A pool of other rows never holds it; one that stands
            in for rows that cannot be had may.
    """

    item: Row | None = None

    def __init__(
        self, pool: Sequence[Row], generator: random.Random, stratify: str | None = None
    ) -> None:
        super().__init__(pool)
        self.rnd = generator
        self._stratify = stratify
        self._strata = self._divide(pool)

    def _divide(self, rows: Sequence[Row]) -> dict[Any, list[Row]]:
        strata = defaultdict(list)
        for row in rows:
            strata[row[self._stratify] if self._stratify else None].append(row)
        return strata

    def _draw(self, n: int, strata: Mapping[Any, list[Row]]) -> list[Row]:
        if self._stratify is None:
            return self.rnd.sample(strata[None], n)
        size = sum(len(rows) for rows in strata.values())
        counts = {stratum: int(len(rows) / size * n) for stratum, rows in strata.items()}
        for _ in range(n - sum(counts.values())):
            counts[min(counts, key=counts.__getitem__)] += 1
        drawn = [
            row
            for stratum, count in counts.items()
            for row in self.rnd.sample(strata[stratum], count)
        ]
        self.rnd.shuffle(drawn)
        return drawn

    def sample(self, n: int, *_: Any, **__: Any) -> list[Row]:
        """Draw `n` rows; see `ContextSampler.sample`."""
        drawn = self._draw(n, self._strata)
        if self.item in drawn:
            drawn = self._draw(n, self._divide([row for row in self.df if row != self.item]))
        return drawn


class LocalTask(ConfigurableTask):
    """A task over rows in memory, which builds its requests once, for all models.

    Args:
        definition: As `load_definition` gives it, its functions bound.
        rows: The items.
        pool: Rows to draw solved examples from; may be empty where there are no shots.
        limit: How many items to keep, after the shuffle; None keeps all.
    """

    _instances: list[Instance] | None = None

    def __init__(
        self,
        definition: Mapping[str, Any],
        rows: Sequence[Row],
        pool: Sequence[Row],
        limit: int | None = None,
    ) -> None:
        about = definition.get("metadata", {})
        items = list(rows)
        generator = None
        if about.get("shuffle_seed") is not None:
            generator = random.Random(about["shuffle_seed"])
            generator.shuffle(items)
        splits = {"items": _Rows(items[:limit]), "fewshot": _Rows(pool)}
        config = dict(definition) | {
            "custom_dataset": lambda **_: splits,
            "test_split": "items",
            "fewshot_split": "fewshot" if pool else None,
            # The scores are computed from the stored items; lm-eval only has to ask the model.
            "metric_list": [{"metric": "none", "aggregation": "mean", "higher_is_better": True}],
            "process_results": lambda doc, results: {},
            "metadata": {"version": about.get("version")},
        }
        self._cap = about.get("cap")
        self._may_lack_gold = about.get("may_lack_gold", False)
        # By the row's identity: rows live as long as the task, and are not hashable.
        self._golds: dict[int, Any] = {}
        self._choices: dict[int, Any] = {}
        super().__init__(config=config)
        if pool and generator is not None:
            self.sampler = Shots(pool, generator, about.get("stratify"))
        else:
            self.set_fewshot_seed(FEWSHOT_SEED)

    def build_all_requests(self, **settings: Any) -> None:
        """Build the requests at the first call and forget their answers at every other."""
        if self._instances is None:
            # lm-eval draws a progress bar here for work of milliseconds.
            with contextlib.redirect_stderr(io.StringIO()):
                super().build_all_requests(**settings)
        for instance in self._instances or ():
            instance.resps = []
            instance.filtered_resps = {}

    def samples(self) -> Iterator[tuple[Any, list[Any]]]:
        """Yield each item's row and the model's answers to its requests, in the items' order."""
        self.apply_filters()
        by_item = defaultdict(list)
        for instance in self.instances:
            by_item[instance.doc_id].append(instance)
        for _, instances in sorted(by_item.items()):
            instances.sort(key=lambda instance: instance.idx)
            for kind in instances[0].filtered_resps:
                yield instances[0].doc, [one.filtered_resps[kind] for one in instances]

    def gold(self, doc: Row) -> Any:
        """Return an item's target; a template that says it is filled in once."""
        return self._known(self._golds, doc, self.doc_to_target)

    def choices(self, doc: Row) -> list[str]:
        """Return an item's choices, likewise."""
        return self._known(self._choices, doc, self.doc_to_choice)

    @staticmethod
    def _known(known: dict[int, Any], doc: Row, make: Callable[[Row], Any]) -> Any:
        if id(doc) not in known:
            known[id(doc)] = make(doc)
        return known[id(doc)]

    def contents(self) -> list[tuple[str, str, str]]:
        """Return each item's id, prompt without shots, and right answer as it follows there."""

        def answer(doc: Row) -> str:
            target = self.doc_to_target(doc)
            if isinstance(target, int) and self.config.doc_to_choice is not None:
                target = self.doc_to_choice(doc)[target]
            return f"{self.config.target_delimiter}{target}"

        docs = self.dataset[self.config.test_split]
        return [(str(doc["id"]), str(self.doc_to_text(doc)), answer(doc)) for doc in docs]

    def check_golds(self) -> None:
        """Refuse items whose right choice does not exist: any model would be wrong on them.

        Raises:
            ValueError: An item has none; the message names it.
        """
        if self.config.output_type != "multiple_choice":
            return
        for doc in self.dataset[self.config.test_split]:
            gold, count = self.gold(doc), len(self.choices(doc))
            whole = isinstance(gold, int) and not isinstance(gold, bool) and gold >= 0
            if not whole or (gold >= count and not self._may_lack_gold):
                raise ValueError(f"item {doc['id']}: {gold!r} numbers none of its {count} choices")

    def fewshot_context(self, doc: Row, *arguments: Any, **settings: Any) -> Any:
        """Build an item's context; see `ConfigurableTask.fewshot_context`."""
        self.sampler.item = doc
        return super().fewshot_context(doc, *arguments, **settings)

    def construct_requests(self, doc: Row, ctx: str, **settings: Any) -> Any:
        """Build an item's requests, with its own cap on the answer's length."""
        requests = super().construct_requests(doc, ctx, **settings)
        if self._cap is not None and isinstance(requests, Instance):
            generation = requests.arguments[1]
            generation["max_gen_toks"] = self._cap(doc)
        return requests


def _read(data: Path, path: Path, task: Task, columns: Sequence[str], what: str) -> list[Row]:
    check_recorded(path)
    rows = read_jsonl(path) if path.is_file() else []
    if not rows:
        problem = "is empty" if path.is_file() else "does not exist"
        raise UserError(
            f"task {task.name} has no {what} in {path}, which {problem}; {task.remedy(data)}, "
            "or leave the task out (name the others: --suites SUITE/TASK,...)"
        )
    for number, row in enumerate(rows, 1):
        fault = row_fault(row, task.kind, columns)
        if fault:
            raise UserError(f"{path}, line {number}: {fault}; {task.remedy(data)}")
    return rows


def read_items(data: Path, split: str, task: Task, columns: Sequence[str] = ()) -> list[Row]:
    """Read a task's items.

    Args:
        data: Folder made by `python -m bottle data` or `python -m evaluation data`.
        split: dev or test.
        task: The task.
        columns: What every row must have; empty takes what a task of its kind needs.

    Raises:
        UserError: The file is missing, empty, or a row lacks a column.
    """
    return _read(data, items_file(data, split, task), task, columns, "items")


def read_stand_ins(data: Path, split: str, task: Task) -> dict[str, str]:
    """Read which of a task's rows only stand in for the benchmark's own: by role, the reason."""
    path = items_file(data, split, task).with_name(NAME)
    about = read_json(path).get("extra", {}).get("tasks", {}) if path.is_file() else {}
    return about.get(task.id, {}).get("stand_in", {}) if isinstance(about, dict) else {}


def read_pool(data: Path, split: str, task: Task, shots: int) -> list[Row]:
    """Read the rows from which a task's shots are drawn; none where it has no shots."""
    if not shots:
        return []
    path = pool_file(data, split, task)
    pool = _read(data, path, task, ANY_COLUMNS, "examples for its shots")
    if len(pool) < shots:
        raise UserError(f"{path}: {len(pool)} rows for {shots} shots; {task.remedy(data)}")
    return pool
