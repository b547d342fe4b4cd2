"""Dev items of published benchmarks, for searches: training rows that the test never shows."""

from __future__ import annotations

import random
import unicodedata
from collections.abc import Mapping, Sequence
from typing import Any

from common.errors import UserError
from common.files import sha256_json
from evaluation.data.converters import Rows
from evaluation.suites import Task


def content_hash(row: Mapping[str, Any]) -> str:
    """Hash what a row says, whatever its id, spaces, case and character forms."""

    def plain(value: Any) -> Any:
        if isinstance(value, str):
            return " ".join(unicodedata.normalize("NFKC", value).casefold().split())
        if isinstance(value, Mapping):
            return {key: plain(part) for key, part in value.items()}
        return [plain(part) for part in value] if isinstance(value, list | tuple) else value

    return sha256_json({key: plain(value) for key, value in row.items() if key != "id"})


def drawn(task: Task, items: Sequence[dict[str, Any]], pool: Sequence[dict[str, Any]]) -> Rows:
    """List the rows that an evaluation of a task draws as solved examples, some more than once.

    Items and pool must be in their files' order.
    """
    if not task.shots:
        return []
    from evaluation.definitions import load_definition
    from evaluation.lm_task import Shots

    definition = load_definition(task)
    about = definition["metadata"]
    items, generator = list(items), random.Random(about["shuffle_seed"])
    generator.shuffle(items)
    shots = Shots(pool, generator, about.get("stratify"))
    found: Rows = []
    for item in items:
        shots.item = item
        found += shots.sample(definition["num_fewshot"])
    return found


def choose_dev(
    task: Task, items: Sequence[dict[str, Any]], pool: Sequence[dict[str, Any]], count: int
) -> tuple[Rows, Rows]:
    """Choose dev items: by their content no test item, and no example that a test item shows.

    The choice is by the smallest content hashes, so that it depends on no order and no seed.

    Args:
        task: The task.
        items: Its test items.
        pool: The rows of its training split.
        count: How many to choose.

    Returns:
        The dev items, and the rows that remain for dev's own examples.

    Raises:
        UserError: There are not so many.
    """
    taken = {content_hash(row) for row in (*items, *drawn(task, items, pool))}
    # Training splits repeat rows; the first of equal ones counts.
    free: dict[str, dict[str, Any]] = {}
    for row in pool:
        free.setdefault(content_hash(row), row)
    hashes = sorted(free.keys() - taken)
    if len(hashes) < count:
        raise UserError(
            f"{task.name}: {len(hashes)} rows of its training split are neither test items nor "
            f"drawn as examples for them, and {count} dev items are asked for; ask for fewer, or "
            "leave the task out of dev"
        )
    chosen = set(hashes[:count])
    rest = [row for row in pool if content_hash(row) not in chosen]
    return [free[digest] for digest in hashes[:count]], rest
