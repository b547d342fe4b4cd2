"""Writing the data of a case: training text, tokenizer, calibration rows, items, databases."""

from __future__ import annotations

import random
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from bottle.cases import BASE, Case, get_case
from bottle.samples import Generator, Part, Sample, draw_from, draw_mixture, strip_marks
from bottle.tokenizer import build_tokenizer, check_boundary, save_tokenizer
from common.errors import UserError
from common.files import staged_directory, write_jsonl
from common.manifest import write_manifest
from common.progress import Progress

EVALUATED = ("dev", "test")
# A task that has not shown a new item in so many draws has no more of them.
_PATIENCE = 3_000
_CHECKED_ROWS = 2_000  # of a training file: the boundary is a property of its templates


def draw_items(
    generate: Generator, draw: random.Random, split: str, count: int, whole_sentence: bool
) -> list[Sample]:
    """Draw distinct items of a task.

    Args:
        generate: The task's generator.
        draw: Source of randomness.
        split: ``dev`` or ``test``.
        count: Number of items wanted.
        whole_sentence: Whether items differ in the choices, not in the prompt; see `Case`.

    Returns:
        The items; fewer than `count` only where the task has no more contents.
    """
    items: dict[str, Sample] = {}
    misses = 0
    while len(items) < count and misses < _PATIENCE:
        sample = draw_from(generate, draw, split)
        key = " ".join(sorted(sample.choices)) if whole_sentence else sample.prompt
        if key in items:
            misses += 1
        else:
            items[key] = sample
            misses = 0
    return list(items.values())


def training_row(sample: Sample) -> dict[str, Any]:
    """Write a sample as a row of a training or calibration file."""
    return {
        "task": sample.task,
        "prompt": strip_marks(sample.prompt),
        "answer": strip_marks(sample.answer),
        "eos": sample.eos,
    }


def item_row(sample: Sample, identifier: str) -> dict[str, Any]:
    """Write a sample as an item: multiple choice, SQL or free generation."""
    row: dict[str, Any] = {"id": identifier, "prompt": strip_marks(sample.prompt)}
    if sample.choices:
        row["choices"] = [strip_marks(choice) for choice in sample.choices]
        row["gold"] = sample.gold
    elif sample.database:
        row["query"] = strip_marks(sample.answer).strip()
        row["database"] = sample.database
        row["category"] = sample.category
    else:
        row["target"] = strip_marks(sample.answer)
    return row


def signatures(row: Mapping[str, Any], whole_sentence: bool) -> list[str]:
    """List the texts of an item that no other split may contain as a prompt or a complete text."""
    if whole_sentence:
        return [row["prompt"] + choice for choice in row["choices"]]
    return [row["prompt"]]


def check_disjoint(
    training: Mapping[str, list[dict[str, Any]]],
    items: Mapping[tuple[str, str, str], list[dict[str, Any]]],
    whole_sentence: frozenset[str],
) -> None:
    """Refuse data in which a split shows an item of another one.

    Args:
        training: Rows by file: of every role, the base's noise included, and calibration.
        items: Items by (split, suite, task).
        whole_sentence: See `Case`.

    Raises:
        UserError: A training row has the prompt or the text of an item, or dev and test share
            an item.
    """
    owner: dict[str, str] = {}  # the split of each text, so that one look finds a repetition
    for (split, suite, task), rows in items.items():
        for row in rows:
            for text in signatures(row, task in whole_sentence):
                if owner.setdefault(text, split) != split:
                    raise UserError(
                        f"{suite}/{task}: {text!r} is in {split} and in {owner[text]}; "
                        "fix the content of its generator in bottle/worlds"
                    )
    for name, rows in training.items():
        for row in rows:
            for text in (row["prompt"], row["prompt"] + row["answer"]):
                if text in owner:
                    raise UserError(
                        f"{name}: {text!r} is also an item of {owner[text]}; "
                        "fix the content of its generator in bottle/worlds"
                    )


def _texts(samples: Iterable[Sample]) -> Iterable[str]:
    for sample in samples:
        yield sample.prompt
        yield sample.answer
        yield from sample.choices


def _random(case: str, seed: int, what: str) -> random.Random:
    return random.Random(f"{case} {seed} {what}")


def _draw_training(
    name: str,
    roles: Mapping[str, tuple[Part, ...]],
    seed: int,
    train_rows: int,
    calibration_rows: int,
) -> dict[str, list[Sample]]:
    progress = Progress(2 * len(roles) - 1, f"{name}: drawing text")
    drawn = {}
    for role, parts in roles.items():
        drawn[f"train/{role}"] = draw_mixture(
            parts, _random(name, seed, f"train {role}"), train_rows
        )
        progress.step()
    for role, parts in roles.items():
        if role != BASE:
            draw = _random(name, seed, f"calibration {role}")
            drawn[f"calibration/{role}"] = draw_mixture(parts, draw, calibration_rows)
            progress.step()
    return drawn


def _draw_items(
    name: str, case: Case, seed: int, counts: Mapping[str, int]
) -> dict[tuple[str, str, str], list[Sample]]:
    drawn = {}
    for suite, tasks in case.suites.items():
        for task, generate in tasks.items():
            for split, count in counts.items():
                draw = _random(name, seed, f"{split} {suite}/{task}")
                items = draw_items(generate, draw, split, count, task in case.whole_sentence)
                if not items:
                    raise UserError(f"{suite}/{task}: no {split} item; ask for at least one")
                drawn[split, suite, task] = items
    return drawn


def write_data(
    out: Path,
    case_name: str,
    *,
    seed: int,
    test_items: int,
    dev_items: int,
    calibration_rows: int,
    train_rows: int = 36_000,
    drift: str = "far",
) -> None:
    """Make the data of a case.

    Args:
        out: Folder to make or replace.
        case_name: ``case1`` or ``case2``.
        seed: Seed of all draws; the worlds' facts stay the same.
        test_items: Items of each task in the test split.
        dev_items: Items of each task in the dev split.
        calibration_rows: Rows of each expert's calibration file, drawn like its training rows.
        train_rows: Rows of each role's training file.
        drift: How far experts drift from their base, ``far`` or ``near``; see `Case`.

    Raises:
        UserError: The case or the drift is unknown, a split would show an item of another one, or
            a text does not tokenise the same way jointly and separately.
    """
    case = get_case(case_name)
    sizes = {
        "test_items": test_items,
        "dev_items": dev_items,
        "train_rows": train_rows,
        "calibration_rows": calibration_rows,
    }
    for size, value in sizes.items():
        if value < 1:
            raise UserError(f"--{size.replace('_', '-')} is {value}; give at least 1")
    roles = case.mixtures(drift)
    training = _draw_training(case_name, roles, seed, train_rows, calibration_rows)
    items = _draw_items(case_name, case, seed, {"dev": dev_items, "test": test_items})
    rows = {
        name: [training_row(sample) for sample in samples] for name, samples in training.items()
    }
    item_rows = {
        (split, suite, task): [
            item_row(sample, f"{task}-{split}-{number:04d}")
            for number, sample in enumerate(samples)
        ]
        for (split, suite, task), samples in items.items()
    }
    check_disjoint(rows, item_rows, case.whole_sentence)
    every_sample = [sample for group in (*training.values(), *items.values()) for sample in group]
    tokenizer = build_tokenizer(_texts(every_sample))
    # Before anything is written: a boundary that moves would make all scores of the task wrong.
    pairs = [
        [(row["prompt"], row["answer"]) for row in group[:_CHECKED_ROWS]] for group in rows.values()
    ]
    pairs += [
        [
            (strip_marks(sample.prompt), strip_marks(answer))
            for samples in items.values()
            for sample in samples
            for answer in (*sample.choices, sample.answer)
        ]
    ]
    for checked in pairs:
        check_boundary(tokenizer, [prompt for prompt, _ in checked], [text for _, text in checked])
    counts = {"/".join(key): len(group) for key, group in item_rows.items()}
    with staged_directory(out) as folder:
        save_tokenizer(tokenizer, folder / "tokenizer")
        for name, group in rows.items():
            write_jsonl(folder / f"{name}.jsonl", group)
        for (split, suite, task), group in item_rows.items():
            write_jsonl(folder / split / suite / f"{task}.jsonl", group)
        if case.databases:
            (folder / "databases").mkdir()
        for database, build in case.databases.items():
            build(folder / "databases" / f"{database}.sqlite", database)
        written = (path for path in sorted(folder.rglob("*")) if path.is_file())
        write_manifest(
            folder / "manifest.json",
            kind="data",
            parameters={"case": case_name, "drift": drift, **sizes},
            outputs={str(path.relative_to(folder)): path for path in written},
            seed=seed,
            code=("bottle/data.py", f"bottle/{case_name}.py"),
            extra={
                "roles": [BASE, *case.experts],
                "vocabulary": tokenizer.get_vocab_size(),
                "items": counts,
            },
        )
