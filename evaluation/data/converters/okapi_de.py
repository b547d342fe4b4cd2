"""Rows of the German Okapi translations."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from common.errors import UserError
from common.readers import read_table
from evaluation.data.converters import per_file


def _options(row: dict[str, Any], letters: str) -> list[str | None]:
    """List the options by letter; None marks one that is missing or empty."""
    return [row.get(f"option_{letter}") or None for letter in letters]


def _gold(row: dict[str, Any], options: Sequence[str | None], path: Path, number: int) -> int:
    answer = str(row["answer"]).strip().upper()
    gold = "ABCDE".find(answer) if len(answer) == 1 else -1
    if not 0 <= gold < len(options):
        raise UserError(
            f"{path}, row {number + 1}: answer {row['answer']!r} is not the letter of an option; "
            "correct the file"
        )
    return gold


def arc(path: Path) -> Iterator[dict[str, Any]]:
    """Convert ARC; options stay at their letters' places, null where there is none."""
    for number, row in enumerate(read_table(path)):
        options = _options(row, "abcde")
        gold = _gold(row, options, path, number)
        yield {"id": row["id"], "question": row["instruction"], "options": options, "gold": gold}


def hellaswag(path: Path) -> Iterator[dict[str, Any]]:
    """Convert HellaSwag."""
    for number, row in enumerate(read_table(path)):
        texts = {key: row[key] or "" for key in ("activity_label", "ctx_a", "ctx_b")}
        # Rows carry an index of the English original, which is not unique across its sources.
        yield {"id": number} | texts | {"endings": row["endings"], "gold": int(row["label"])}


def mmlu(path: Path) -> Iterator[dict[str, Any]]:
    """Convert MMLU; the subject is the first part of the identifier."""
    for number, row in enumerate(read_table(path)):
        options = _options(row, "abcd")
        yield {
            "id": row["id"],
            "subject": str(row["id"]).split("/")[0],
            "question": row["instruction"],
            "options": [option or "" for option in options],
            "gold": _gold(row, options, path, number),
        }


def truthfulqa(path: Path) -> Iterator[dict[str, Any]]:
    """Convert TruthfulQA with both of its multiple-choice targets."""
    for number, row in enumerate(read_table(path)):
        targets = {}
        for name in ("mc1_targets", "mc2_targets"):
            choices, labels = row[f"{name}_choices"], row[f"{name}_labels"]
            if len(choices) != len(labels) or 1 not in labels:
                raise UserError(
                    f"{path}, row {number + 1}: {name} has {len(choices)} choices and labels "
                    f"{labels}; the file is damaged: get it again"
                )
            targets[name] = {"choices": choices, "labels": labels}
        yield {"id": number, "question": row["question"]} | targets


CONVERTERS = {
    function.__name__: per_file(function) for function in (arc, hellaswag, mmlu, truthfulqa)
}
