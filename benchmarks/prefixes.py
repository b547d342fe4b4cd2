"""Count in characters what the requests of the published tasks have in common.

Used by `benchmarks/evaluation.py --real DATA`. Characters stand for tokens: how many of them
requests share hardly depends on the tokenizer.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

ITEMS = 200


def distinct(texts: list[str]) -> int:
    """Count the characters that are left when shared beginnings count once.

    Args:
        texts: In any order.

    Returns:
        The number of nodes of the tree that the texts make, without its root.
    """
    texts = sorted(texts)
    return sum(map(len, texts)) - sum(map(_alike, texts, texts[1:]))


def _alike(one: str, other: str) -> int:
    """Count the characters with which both begin."""
    pairs = enumerate(zip(one, other, strict=False))
    return next((at for at, (a, b) in pairs if a != b), min(len(one), len(other)))


def count_common(
    data: Path, tokenizer: Path, items: int = ITEMS
) -> Iterator[tuple[str, int, int, int]]:
    """Count the characters of the published tasks' requests.

    Args:
        data: Folder made by `python -m evaluation data`.
        tokenizer: Folder of any tokenizer; the tasks ask for one.
        items: How many of each task.

    Yields:
        Task; the characters of all requests, each on its own; the same where the requests of an
        item share what they begin with alike; the same where those of all items do.
    """
    from evaluation.harness import Harness
    from evaluation.suites import load_suites

    for suite in load_suites().values():
        for task in suite.tasks.values():
            if not (data / f"test/{suite.name}/{task.id}.jsonl").is_file():
                continue
            harness = Harness(data, [task.name], "test", tokenizer, limit=items)
            lm_task = harness._lm_tasks[task.name]
            lm_task.build_all_requests()
            texts: dict[int, list[str]] = {}
            for request in lm_task.instances:
                context, answer = request.args
                text = context + answer if isinstance(answer, str) else context
                texts.setdefault(request.doc_id, []).append(text)
            every = [text for own in texts.values() for text in own]
            item = sum(map(distinct, texts.values()))
            yield task.name, sum(map(len, every)), item, distinct(every)
            harness.close()
