"""Refuses a search whose dev items are test items too."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from common.errors import UserError
from evaluation.data.dev import content_hash
from evaluation.harness import Harness
from evaluation.lm_task import items_file
from evaluation.own_data import own_tasks
from evaluation.suites import select


def check_no_overlap(data: Path, suites: Sequence[str], tokenizer: Path) -> None:
    """Compare the dev items with the test items of the same tasks.

    A task without test items in the folder has nothing to overlap with.

    Args:
        data: Folder with the items of both splits.
        suites: The suites that guide the search.
        tokenizer: Folder of the models' tokenizer.

    Raises:
        UserError: An item is in both splits; the message names the first.
    """
    asked = select(suites, own=own_tasks(data))
    tested = [task for task in asked if items_file(data, "test", task).is_file()]
    if not tested:
        return
    names = [task.name for task in tested]
    dev, test = (Harness(data, names, split, tokenizer).contents() for split in ("dev", "test"))
    # Compared as the model sees them: two rows may differ in fields that no prompt shows.
    seen = {
        content_hash({"prompt": prompt, "answer": answer}): (task, id)
        for task, items in test.items()
        for id, prompt, answer in items
    }
    for task, items in dev.items():
        for id, prompt, answer in items:
            if found := seen.get(content_hash({"prompt": prompt, "answer": answer})):
                raise UserError(
                    f"task {task}: dev item {id} is also a test item ({found[1]} of {found[0]}), "
                    f"so a search on dev would see the test; make the data in {data} again, with "
                    "splits apart"
                )
