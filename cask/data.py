"""The data of a cask: benchmarks' items, the bottle's, and rows that experts are trained on."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bottle.cases import Case, get_case
from bottle.data import EVALUATED, draw_items, item_row, training_row
from bottle.samples import draw_from
from common.errors import UserError
from common.files import read_jsonl, staged_directory, write_jsonl
from common.manifest import NAME, write_manifest
from common.progress import Progress
from evaluation.data.build import build
from evaluation.data.dev import content_hash
from evaluation.data.sources import select_sources
from evaluation.suites import Task, items_file, pool_file, select

TRAIN = "train"
Row = dict[str, Any]


@dataclass(frozen=True)
class Sizes:
    """How much is drawn.

    Attributes:
        test_items: Items of each of the bottle's tasks in the test split.
        dev_items: Items of each task in the dev split.
        train_rows: Rows that an expert is trained on, from its tasks in equal parts.
        calibration_rows: Rows of an expert's calibration file.
    """

    test_items: int = 200
    dev_items: int = 60
    train_rows: int = 6_000
    calibration_rows: int = 2_000

    def check(self) -> None:
        """Refuse a size below 1.

        Raises:
            UserError: One line with the option.
        """
        for name, value in vars(self).items():
            if value < 1:
                raise UserError(f"--{name.replace('_', '-')} is {value}; give at least 1")


def _world(task: Task) -> Case:
    return get_case(str(task.world))


def _random(seed: int, what: str) -> random.Random:
    return random.Random(f"cask {seed} {what}")


def _write_world_items(folder: Path, task: Task, seed: int, sizes: Sizes) -> None:
    """Write dev and test items of one of the bottle's tasks."""
    case = _world(task)
    generate = case.suites[task.suite][task.id]
    for split, count in zip(EVALUATED, (sizes.dev_items, sizes.test_items), strict=True):
        draw = _random(seed, f"{split} {task.name}")
        found = draw_items(generate, draw, split, count, task.id in case.whole_sentence)
        rows = [item_row(item, f"{task.id}-{split}-{n:04d}") for n, item in enumerate(found)]
        write_jsonl(items_file(folder, split, task), rows)
    for name, make in case.databases.items() if task.kind == "sql" else ():
        (folder / "databases").mkdir(exist_ok=True)
        make(folder / "databases" / f"{name}.sqlite", name)


def _world_rows(task: Task, draw: random.Random, count: int) -> list[Row]:
    generate = _world(task).suites[task.suite][task.id]
    return [training_row(draw_from(generate, draw, TRAIN)) for _ in range(count)]


def _write_training_items(folder: Path, task: Task) -> None:
    """Write a benchmark's training split without the rows that dev or test show."""
    pool = read_jsonl(pool_file(folder, "test", task))
    shown = {
        content_hash(row)
        for split in EVALUATED
        if (path := items_file(folder, split, task)).is_file()
        for row in read_jsonl(path)
    }
    kept = [row for row in pool if content_hash(row) not in shown]
    if not kept:
        raise UserError(f"{task.name}: its training split has no rows that no item repeats")
    write_jsonl(items_file(folder, TRAIN, task), kept)
    write_jsonl(pool_file(folder, TRAIN, task), pool)


def _benchmark_rows(folder: Path, tokenizer: Path, tasks: Sequence[Task]) -> dict[str, list[Row]]:
    """Ask as an evaluation asks, without examples, and answer: rows by task."""
    if not tasks:
        return {}
    from evaluation.harness import Harness

    harness = Harness(folder, [task.name for task in tasks], TRAIN, tokenizer)
    return {
        name: [
            {"task": name, "prompt": prompt, "answer": answer, "eos": True}
            for _, prompt, answer in items
        ]
        for name, items in harness.contents().items()
    }


def _drawn(rows: Sequence[Row], draw: random.Random, count: int) -> list[Row]:
    """Draw rows, each as often as any other or once more."""
    found: list[Row] = []
    while len(found) < count:
        found += draw.sample(rows, min(len(rows), count - len(found)))
    return found


def _experts_rows(
    seed: int, what: str, tasks: Sequence[Task], written: Mapping[str, list[Row]], count: int
) -> list[Row]:
    """Draw an expert's rows from its tasks in equal parts, in random order."""
    draw, rows = _random(seed, what), list[Row]()
    for number, task in enumerate(tasks):
        share = (number + 1) * count // len(tasks) - number * count // len(tasks)
        if task.maker == "bottle":
            rows += _world_rows(task, draw, share)
        else:
            rows += _drawn(written[task.name], draw, share)
    draw.shuffle(rows)
    return rows


def _write_experts_rows(
    folder: Path, taught: Mapping[str, Sequence[Task]], tokenizer: Path, seed: int, sizes: Sizes
) -> None:
    """Write training and calibration rows of every expert."""
    learned = {task.name: task for group in taught.values() for task in group}
    from_benchmarks = [task for task in learned.values() if task.maker != "bottle"]
    for task in from_benchmarks:
        _write_training_items(folder, task)
    written = _benchmark_rows(folder, tokenizer, from_benchmarks)
    progress = Progress(2 * len(taught), "drawing rows")
    for name, group in taught.items():
        for kind, count in ((TRAIN, sizes.train_rows), ("calibration", sizes.calibration_rows)):
            rows = _experts_rows(seed, f"{kind} {name}", group, written, count)
            write_jsonl(folder / kind / f"{name}.jsonl", rows)
            progress.step()


def write_data(
    out: Path,
    tasks: Sequence[str],
    experts: Mapping[str, Sequence[str]],
    tokenizer: Path,
    *,
    seed: int,
    sizes: Sizes,
    source: Path | None = None,
) -> None:
    """Make the data folder of a case.

    Args:
        out: Folder to make or replace.
        tasks: What is evaluated, as suite/task or suite: benchmarks and tasks of the bottle.
        experts: The tasks that each expert is trained on, by its name.
        tokenizer: A folder with the tokenizer of the base.
        seed: Seed of all draws; benchmarks' items are the same for all seeds.
        sizes: How much is drawn.
        source: Local copies of the benchmarks, as for `python -m evaluation data`; None for the
            hub, which is asked only if a benchmark is among the tasks.

    Raises:
        UserError: A task is unknown or has no data here.
    """
    sizes.check()
    taught = {name: select(list(chosen)) for name, chosen in experts.items()}
    every = {task.name: task for group in (select(list(tasks)), *taught.values()) for task in group}
    worlds = [task for task in every.values() if task.maker == "bottle"]
    others = [task for task in every.values() if task.maker != "bottle"]
    with staged_directory(out) as folder:
        # Items first: training rows leave out what they show.
        if others:
            names = [f"{task.suite}/{task.id}" for task in others]
            sources = select_sources(names)
            dev = [found.name for found in sources if found.dev is not None]
            build(sources, source, folder, dev, sizes.dev_items)
        for task in worlds:
            _write_world_items(folder, task, seed, sizes)
        _write_experts_rows(folder, taught, tokenizer, seed, sizes)
        files = (path for path in sorted(folder.rglob("*")) if path.is_file())
        write_manifest(
            folder / NAME,
            kind="data",
            parameters={"tasks": sorted(every), **vars(sizes)},
            inputs={"tokenizer": tokenizer / "tokenizer.json"},
            outputs={str(path.relative_to(folder)): path for path in files},
            seed=seed,
            code=("cask/data.py",),
        )
