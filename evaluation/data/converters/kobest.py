"""Rows of the five KoBEST tasks: the official columns, from JSON lines or from the first tables."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from common.errors import UserError
from common.readers import read_table
from evaluation.data.converters import Converter, per_file

# The column of the tables in which KoBEST first appeared, by official column.
_COLUMNS = {
    "boolq": {"paragraph": "Text", "question": "Question", "label": "Answer"},
    "copa": {
        "premise": "sentence",
        "question": "question",
        "alternative_1": "1",
        "alternative_2": "2",
        "label": "Answer",
    },
    "hellaswag": {
        "context": "context",
        "ending_1": "choice1",
        "ending_2": "choice2",
        "ending_3": "choice3",
        "ending_4": "choice4",
        "label": "label",
    },
    "sentineg": {"sentence": "Text", "label": "Label"},
    "wic": {
        "word": "Target",
        "context_1": "SENTENCE1",
        "context_2": "SENTENCE2",
        "label": "ANSWER",
    },
}
_CLASSES = {"boolq": 2, "copa": 2, "hellaswag": 4, "sentineg": 2, "wic": 2}
_WRITTEN = {"false": 0, "true": 1}


def _label(task: str, written: Any, from_table: bool) -> int | None:
    """Read a label; None where it is not one of the task's."""
    text = str(written).strip().lower()
    if text in _WRITTEN:
        label = _WRITTEN[text]
    elif text.isdigit():
        # The tables number COPA's alternatives from 1, JSON lines from 0.
        label = int(text) - (from_table and task == "copa")
    else:
        return None
    return label if 0 <= label < _CLASSES[task] else None


def _converter(task: str) -> Converter:
    columns = _COLUMNS[task]

    def convert(path: Path) -> Iterator[dict[str, Any]]:
        from_table = path.suffix == ".tsv"
        for number, raw in enumerate(read_table(path)):
            names = columns if from_table else dict.fromkeys(columns)
            missing = [old or new for new, old in names.items() if (old or new) not in raw]
            if missing:
                raise UserError(
                    f"{path}, row {number + 1}: no column {missing[0]!r}; this is not KoBEST's "
                    f"{task}: correct the file"
                )
            row = {new: raw[old or new] for new, old in names.items()}
            label = _label(task, row["label"], from_table)
            if label is None:
                raise UserError(
                    f"{path}, row {number + 1}: {row['label']!r} is not a label of {task}; "
                    "correct the file"
                )
            yield {"id": number} | row | {"label": label}

    return per_file(convert)


CONVERTERS = {task: _converter(task) for task in _COLUMNS}
