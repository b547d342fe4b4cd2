"""Token sequences packed so that a beginning which several of them share is computed once.

The sequences of all items are sorted, which puts those that begin alike side by side. A token with
all that precedes it is a node; equal nodes of a pass are one.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch

_HIDDEN = -1e30  # added to what a token does not see; exp makes 0 of it


@dataclass(frozen=True)
class Look:
    """Queries that see their own sequences, padded to rows of about equal length.

    Attributes:
        queries: [rows, asked], int64; indices of the queries.
        keys: [rows, length], int64; nodes of the row's sequence.
        mask: [rows, 1, asked, length], float32; what is added to the scores.
        places: [nodes], int64; where in `queries`, read row by row, each node of `nodes` is.
        nodes: [nodes], int64; indices of the queries, each once.
    """

    queries: torch.Tensor
    keys: torch.Tensor
    mask: torch.Tensor
    places: torch.Tensor
    nodes: torch.Tensor


@dataclass(frozen=True)
class Pass:
    """What one pass through a model computes.

    Attributes:
        tokens, depths: [nodes], int64; each node's token and its position in its sequences.
        read: [read], int64; the nodes whose predictions are asked for.
        looks: How all nodes see what precedes them.
        last: Likewise of the read nodes alone: in the last layer no other is needed.
        rows: [sequences, length], int64; each sequence's nodes, 0 behind its end.
        lengths: [sequences], int64.
        chosen: Which of the sequences these are, by their indices.
    """

    tokens: torch.Tensor
    depths: torch.Tensor
    read: torch.Tensor
    looks: tuple[Look, ...]
    last: tuple[Look, ...]
    rows: torch.Tensor
    lengths: torch.Tensor
    chosen: np.ndarray


def _looks(rows: np.ndarray, at: np.ndarray, depths: np.ndarray) -> tuple[Look, ...]:
    """Arrange queries, given in the order of their rows, by the number of them in a row.

    Args:
        rows: [sequences, length]; nodes.
        at: [queries]; the row of each query, ascending.
        depths: [queries]; its position there.
    """
    used, first, counts = np.unique(at, return_index=True, return_counts=True)
    found = []
    # Rows that ask about equally much share a rectangle: less than half of it is padding.
    sizes = np.ceil(np.log2(counts))
    for size in np.unique(sizes):
        group = np.flatnonzero(sizes == size)
        asked = np.arange(counts[group].max())
        inside = asked < counts[group, None]
        queries = np.where(inside, first[group, None] + asked, 0)
        deep = np.where(inside, depths[queries], 0)
        keys = rows[used[group], : deep.max() + 1]
        unseen = np.arange(keys.shape[1]) > deep[:, :, None]
        mask = np.where(unseen, np.float32(_HIDDEN), np.float32(0))[:, None]
        arrays = (queries, keys, mask, np.flatnonzero(inside.ravel()), queries[inside])
        found.append(Look(*(torch.from_numpy(array) for array in arrays)))
    return tuple(found)


def _pass(table: np.ndarray, lengths: np.ndarray, chosen: np.ndarray, read: np.ndarray) -> Pass:
    """Pack sorted sequences; `read` says which positions of each are asked for."""
    inside = np.arange(table.shape[1]) < lengths[:, None]
    same = np.zeros(table.shape, dtype=bool)
    same[1:] = np.logical_and.accumulate(table[1:] == table[:-1], axis=1)
    same[1:] &= inside[:-1]
    new = inside & ~same
    at, depths = np.nonzero(new)
    numbers = np.where(new, np.cumsum(new).reshape(new.shape) - 1, 0)
    # What is not new is the node in the row above.
    rows = np.where(inside, np.maximum.accumulate(numbers, axis=0), 0)
    asked = np.unique(rows[read & inside])

    def tensor(array: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(array.astype(np.int64))

    return Pass(
        tensor(table[at, depths]),
        tensor(depths),
        tensor(asked),
        _looks(rows, at, depths),
        _looks(rows, at[asked], depths[asked]),
        tensor(rows),
        tensor(lengths),
        chosen,
    )


def pack(
    sequences: Sequence[Sequence[int]], first: Sequence[int], nodes: int, most: int | None = None
) -> Iterator[Pass]:
    """Divide sequences into passes.

    Args:
        sequences: Tokens, at least one each.
        first: The first position of each whose prediction is asked for; all from there on are.
        nodes: Tokens of a pass, shared ones counted once, where it has more than one sequence.
        most: Sequences of a pass.

    Yields:
        The passes; each sequence is in one.
    """
    order = np.array(sorted(range(len(sequences)), key=lambda n: list(sequences[n])))
    lengths = np.array([len(sequences[n]) for n in order])
    table = np.full((len(order), lengths.max()), -1, dtype=np.int64)
    for row, n in enumerate(order):
        table[row, : lengths[row]] = sequences[n]
    read = np.arange(table.shape[1]) >= np.asarray(first)[order, None]
    shared = np.logical_and.accumulate(table[1:] == table[:-1], axis=1).sum(1)
    more = lengths - np.minimum(np.append(0, shared), lengths)
    at = 0
    while at < len(order):
        # The first sequence of a pass shares nothing.
        total = np.cumsum(more[at:]) + lengths[at] - more[at]
        size = max(1, int(np.searchsorted(total, nodes, side="right")))
        size = size if most is None else min(size, most)
        part = slice(at, at + size)
        longest = lengths[part].max()
        yield _pass(table[part, :longest], lengths[part], order[part], read[part, :longest])
        at += size
