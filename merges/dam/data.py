"""Calibration data: rows of text to tokens, a seeded draw, and the packed batches of a step."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from common.errors import UserError
from common.files import read_jsonl
from common.manifest import check_recorded
from merges.dam.packing import Packing

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

LossTokens = Literal["all", "answer"]
_KEYS = ("prompt", "answer", "eos")


@dataclass(frozen=True)
class Calibration:
    """An expert's calibration data as tokens.

    Attributes:
        expert: The expert's name.
        path: The file that was read.
        ids: Token ids of all rows end to end, (tokens,), int64.
        starts: Where each row begins in `ids`, and at the end the number of tokens.
        answers: For each row, the index in the row of the answer's first token.
        sha256: Hash of ids and rows, by which cached teacher states are recognised.
    """

    expert: str
    path: Path
    ids: Tensor
    starts: Sequence[int]
    answers: Sequence[int]
    sha256: str

    def __len__(self) -> int:
        return len(self.answers)

    def length(self, row: int) -> int:
        """Return a row's number of tokens."""
        return self.starts[row + 1] - self.starts[row]

    def first(self, rows: int) -> Calibration:
        """Return the same with only the first rows."""
        starts = self.starts[: rows + 1]
        return _calibration(
            self.expert, self.path, self.ids[: starts[-1]], starts, self.answers[:rows]
        )

    def loss_span(self, row: int, tokens: LossTokens, last: bool = False) -> tuple[int, int]:
        """Return the positions of a row that count in the loss, as a half-open range.

        Args:
            row: The row's number.
            tokens: ``all`` positions that predict a token of the row, or only those that predict
                the ``answer`` (and its end-of-sequence token).
            last: Whether the last position counts too, which predicts what follows the row: the
                teacher has a prediction there as everywhere, and the authors' code counts it.
        """
        first = max(self.answers[row] - 1, 0) if tokens == "answer" else 0
        return first, self.length(row) - (not last)


def read_calibration(
    expert: str, path: Path, tokenizer: PreTrainedTokenizerBase, context: int
) -> Calibration:
    """Read and tokenise an expert's calibration file.

    A row's text is prompt and answer directly concatenated, after the beginning-of-sequence token
    where the tokenizer has one, and before the end-of-sequence token where the row asks for it.

    Args:
        expert: The expert's name.
        path: JSON lines with ``prompt``, ``answer`` and ``eos``.
        tokenizer: A fast tokenizer of transformers.
        context: Most tokens that the model takes.

    Raises:
        UserError: The file is missing or empty, a row lacks a key, has nothing to predict or is
            longer than the context.
    """
    check_recorded(path)
    rows = read_jsonl(path)
    if not rows:
        raise UserError(
            f"{path}: expert {expert} has an empty calibration file; DAM needs rows of its data"
        )
    for number, row in enumerate(rows, 1):
        missing = [key for key in _KEYS if key not in row]
        if missing:
            raise UserError(
                f"{path}, line {number}: no {missing[0]!r}; "
                'a calibration row is {"prompt": text, "answer": text, "eos": true or false}'
            )
    # The joint text is tokenised once: a token that straddles the boundary belongs to the answer.
    encoded = tokenizer(
        [row["prompt"] + row["answer"] for row in rows],
        add_special_tokens=False,
        return_offsets_mapping=True,
    )
    begin = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
    ids: list[int] = []
    starts, answers = [0], []
    pairs = zip(rows, encoded["input_ids"], encoded["offset_mapping"], strict=True)
    for number, (row, tokens, offsets) in enumerate(pairs, 1):
        boundary = len(row["prompt"])
        before = sum(end <= boundary for _, end in offsets) if boundary else 0
        end = [tokenizer.eos_token_id] if row["eos"] else []
        ids += begin + tokens + end
        length = len(ids) - starts[-1]
        if length < 2:
            raise UserError(f"{path}, line {number}: the row has no token to predict; remove it")
        if length > context:
            raise UserError(
                f"{path}, line {number}: the sample has {length} tokens, more than the model's "
                f"context of {context}; shorten or remove it"
            )
        starts.append(len(ids))
        answers.append(len(begin) + before)
    return _calibration(expert, Path(path), torch.tensor(ids), starts, answers)


def _calibration(
    expert: str, path: Path, ids: Tensor, starts: Sequence[int], answers: Sequence[int]
) -> Calibration:
    digest = hashlib.sha256(ids.numpy().tobytes())
    digest.update(torch.tensor(starts).numpy().tobytes())
    return Calibration(expert, path, ids, starts, answers, digest.hexdigest())


def draw(
    calibrations: Sequence[Calibration], samples: int, epochs: int, seed: int
) -> list[list[int]]:
    """Draw the rows that training sees, and their order, from each expert's data.

    Args:
        calibrations: The experts' data.
        samples: Rows per expert, drawn without replacement.
        epochs: Passes over the drawn rows, each in a new order.
        seed: Seed of draw and order.

    Returns:
        For each expert, `samples` x `epochs` row numbers; those at one place form a training row.

    Raises:
        UserError: An expert has fewer rows than `samples`.
    """
    generator = torch.Generator().manual_seed(seed)
    result = []
    for data in calibrations:
        if len(data) < samples:
            raise UserError(
                f"{data.path}: expert {data.expert} has {len(data)} calibration rows, the training "
                f"was asked for {samples}; give it more rows or lower the parameter samples"
            )
        drawn = torch.randperm(len(data), generator=generator)[:samples]
        passes = [drawn]
        passes += [drawn[torch.randperm(samples, generator=generator)] for _ in range(epochs - 1)]
        result.append(torch.cat(passes).tolist())
    return result


@dataclass(frozen=True)
class Batch:
    """What one forward sees: samples of every dataset, packed.

    Attributes:
        ids: Token ids (tokens,).
        packing: Where each sample is.
        loss: Indices of the loss positions in the packed row (loss tokens,), dataset by dataset.
        segments: For each dataset, where its loss tokens begin and end in `loss`.
        sources: For each dataset, the indices of its loss positions in `Calibration.ids`.
    """

    ids: Tensor
    packing: Packing
    loss: Tensor
    segments: list[tuple[int, int]]
    sources: list[Tensor]


def count_loss_tokens(
    calibrations: Sequence[Calibration],
    rows: Sequence[Sequence[int]],
    tokens: LossTokens,
    last: bool = False,
) -> list[int]:
    """Count each dataset's loss tokens in a step; arguments as for `make_batch`.

    Raises:
        UserError: A dataset has no loss token in this step.
    """
    counts = []
    for data, numbers in zip(calibrations, rows, strict=True):
        spans = [data.loss_span(row, tokens, last) for row in numbers]
        counts.append(sum(max(stop - start, 0) for start, stop in spans))
        if not counts[-1]:
            raise UserError(
                f"{data.path}: the rows {[number + 1 for number in numbers]} of expert "
                f"{data.expert} have no answer token; use tokens=all or rows with answers"
            )
    return counts


def split(
    calibrations: Sequence[Calibration], rows: Sequence[Sequence[int]], limit: int
) -> list[list[list[int]]]:
    """Split a step into parts of at most so many tokens, never within a sample.

    The loss is a sum over samples once each dataset's number of loss tokens is known, so that
    gradients of the parts add up to the step's.

    Args:
        calibrations: The datasets; rows as for `make_batch`.
        limit: Most tokens of a part that has more than one sample; 0 for no limit.

    Returns:
        For each part, for each dataset, the numbers of its rows.
    """
    parts: list[list[list[int]]] = []
    tokens = 0
    for index, (data, numbers) in enumerate(zip(calibrations, rows, strict=True)):
        for row in numbers:
            length = data.length(row)
            if not parts or (limit and tokens + length > limit):
                parts.append([[] for _ in calibrations])
                tokens = 0
            parts[-1][index].append(row)
            tokens += length
    return parts


def make_batch(
    calibrations: Sequence[Calibration],
    rows: Sequence[Sequence[int]],
    tokens: LossTokens,
    last: bool = False,
    device: str = "cpu",
) -> Batch:
    """Pack samples of several datasets into one row.

    Args:
        calibrations: The datasets.
        rows: For each dataset, the numbers of its rows in this batch, perhaps none.
        tokens: Which positions count in the loss; see `Calibration.loss_span`.
        last: Whether each row's last position does.
        device: Where the batch is computed on; `Batch.sources` stay with the data.
    """
    pieces, lengths, loss, segments, sources = [], [], [], [], []
    offset = counted = 0
    for data, numbers in zip(calibrations, rows, strict=True):
        # An empty start, because a part of a step may have no row of a dataset.
        own = [torch.arange(0)]
        for row in numbers:
            start, stop = data.starts[row], data.starts[row + 1]
            first, end = data.loss_span(row, tokens, last)
            end = max(first, end)
            pieces.append(data.ids[start:stop])
            lengths.append(stop - start)
            own.append(torch.arange(start + first, start + end))
            loss.append(torch.arange(offset + first, offset + end))
            offset += stop - start
        sources.append(torch.cat(own))
        segments.append((counted, counted + len(sources[-1])))
        counted = segments[-1][1]
    ids, places = (torch.cat(parts).to(device) for parts in (pieces, loss))
    return Batch(ids, Packing(lengths, device), places, segments, sources)
