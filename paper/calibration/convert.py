"""A data set's rows to calibration rows: columns, template, seeded choice, length."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from common.errors import UserError, nearest
from common.readers import read_table

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_ENDINGS = (".parquet", ".json", ".jsonl", ".csv", ".tsv")
# As arXiv:2410.08371 prints it; it shows no variant with an input next to the instruction.
_ALPACA = (
    "Below is an instruction that describes a task. Write a response that appropriately completes "
    "the request.\n\n### Instruction:\n{instruction}\n\n### Response:\n"
)
TEMPLATES = {"alpaca": _ALPACA, "plain": "{instruction}"}


@dataclass(frozen=True)
class Layout:
    """Which columns of a data set are the prompt and the answer, and how they are joined.

    Attributes:
        prompt: Columns of the prompt, in order; none for plain text. An empty one is skipped.
        answer: Columns of the answer, in order.
        joiner: Text between two columns.
        template: A key of TEMPLATES: the instruction's way into the prompt.
        eos: Whether an end-of-sequence token follows the answer.
    """

    prompt: tuple[str, ...]
    answer: tuple[str, ...]
    joiner: str = "\n\n"
    template: str = "alpaca"
    eos: bool = True

    def __post_init__(self) -> None:
        if self.template not in TEMPLATES:
            raise UserError(f"no template {self.template!r}{nearest(self.template, TEMPLATES)}")
        if not self.answer:
            raise UserError("no column is named for the answer; name at least one")


def read_rows(folder: Path) -> Iterator[tuple[Path, int, Mapping[str, Any]]]:
    """Yield a data set's rows, each with its file and its number in it from 1, in path order.

    Raises:
        UserError: There is no such file, or one does not hold rows of columns.
    """
    paths = sorted(
        path
        for path in folder.rglob("*")
        if path.suffix in _ENDINGS
        and path.name != "manifest.json"
        and not any(part.startswith(".") for part in path.relative_to(folder).parts)
    )
    if not paths:
        raise UserError(f"{folder} has no {', '.join(_ENDINGS)} file; fetch the data set first")
    for path in paths:
        rows = read_table(path)
        if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
            raise UserError(f"{path} does not hold a list of rows with named columns")
        for number, row in enumerate(rows, 1):
            yield path, number, row


def _joined(row: Mapping[str, Any], columns: Sequence[str], joiner: str, where: str) -> str:
    for column in columns:
        if column not in row:
            raise UserError(
                f"{where}: no column {column!r}{nearest(column, row)}; name the columns under "
                "calibration in the configuration"
            )
        if not isinstance(row[column] or "", str):
            raise UserError(f"{where}: column {column!r} is not text; name another")
    return joiner.join(row[column] for column in columns if row[column])


def _cut(
    prompt: str, answer: str, tokenizer: PreTrainedTokenizerBase, most: int, eos: bool
) -> tuple[str, bool] | None:
    """Return an answer cut to a sample's most tokens, and whether it is complete.

    Returns None where the prompt alone is too long.
    """
    special = (tokenizer.bos_token_id is not None) + eos
    encoded = tokenizer(prompt + answer, add_special_tokens=False, return_offsets_mapping=True)
    if len(encoded["input_ids"]) + special <= most:
        return answer, True
    # Without the end-of-sequence token there is room for one more.
    kept = most - special + eos
    end = encoded["offset_mapping"][kept - 1][1]
    # Text cut at a token's end may give more tokens when it is encoded again.
    while end > len(prompt):
        text = answer[: end - len(prompt)]
        if len(tokenizer(prompt + text, add_special_tokens=False)["input_ids"]) <= kept:
            return text, False
        end -= 1
    return None


def convert(
    folder: Path,
    layout: Layout,
    *,
    rows: int,
    seed: int,
    task: str,
    tokenizer: PreTrainedTokenizerBase | None = None,
    max_length: int | None = None,
) -> tuple[list[dict[str, Any]], dict[str, int]]:
    """Choose rows of a data set and write them as calibration rows.

    Rows are visited in a random order that depends on the seed alone; those without a prompt's
    columns, without an answer, or whose prompt alone exceeds the length are passed over.

    Args:
        folder: The fetched data set.
        layout: Its columns and template.
        rows: How many to choose; seed: of the choice; task: name written into each row.
        tokenizer: Counts tokens; the base's. None where no length is asked for.
        max_length: Most tokens of a sample; a longer one is cut at its end, as the authors'
            trainer does, and loses its end-of-sequence token.

    Returns:
        The rows, each with ``task``, ``prompt``, ``answer`` and ``eos``; and how many rows there
        were, were empty, too long, cut, and chosen.

    Raises:
        UserError: A column is missing, or fewer rows can be used than were asked for.
    """
    everything = [
        (
            _joined(row, layout.prompt, layout.joiner, f"{path}, row {number}"),
            _joined(row, layout.answer, layout.joiner, f"{path}, row {number}"),
        )
        for path, number, row in read_rows(folder)
    ]
    # Texts first: a wrong column is an error even where few rows are chosen.
    order = list(range(len(everything)))
    random.Random(seed).shuffle(order)
    chosen: list[dict[str, Any]] = []
    counts = dict.fromkeys(("rows", "empty", "too_long", "cut"), 0) | {"rows": len(everything)}
    for index in order:
        if len(chosen) == rows:
            break
        instruction, answer = everything[index]
        if not answer.strip() or (layout.prompt and not instruction.strip()):
            counts["empty"] += 1
            continue
        template = TEMPLATES[layout.template] if layout.prompt else ""
        prompt, eos = template.replace("{instruction}", instruction), layout.eos
        if tokenizer is not None and max_length is not None:
            short = _cut(prompt, answer, tokenizer, max_length, eos)
            if short is None:  # without an answer the sample would teach nothing
                counts["too_long"] += 1
                continue
            answer, uncut = short
            eos = eos and uncut
            counts["cut"] += not uncut
        chosen.append({"task": task, "prompt": prompt, "answer": answer, "eos": eos})
    if len(chosen) < rows:
        raise UserError(
            f"{folder} gives {len(chosen)} usable rows of {len(everything)} and {rows} were asked "
            "for; lower rows under calibration in the configuration"
        )
    return chosen, counts | {"chosen": len(chosen)}
