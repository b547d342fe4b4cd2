"""Continuations of one context as a tree, so that what they have in common is computed once."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import torch

from evaluation.backends.base import Pair

# What a pass may take: entries of its attention mask and of its logits, 4 bytes each.
_MASK_ENTRIES = 1 << 26
_LOGITS = 1 << 28


@dataclass
class Batch:
    """Contexts with all their continuations, each context's in one row as a tree.

    Rows end at the same column, so that the columns that are read are neighbours; padding comes
    first.

    Attributes:
        tokens: [rows, length], int32; each row holds every distinct token of a tree.
        depths: [rows, length], int32; a token's position in its own sequence.
        first: [rows, length], int32; a token's number in a walk through the tree.
        last: [rows, length], int32; the highest such number below the token, itself included.
        kept: [read], int64; the columns where some row's prediction is read.
        rows, columns: [scored], int64; where the prediction of each scored token is read, the
            column as an index of `kept`.
        targets: [scored], int64; the scored tokens.
        owners: [scored], int64; the index of the pair that each belongs to.
        count: Tokens that are not padding.
    """

    tokens: torch.Tensor
    depths: torch.Tensor
    first: torch.Tensor
    last: torch.Tensor
    kept: torch.Tensor
    rows: torch.Tensor
    columns: torch.Tensor
    targets: torch.Tensor
    owners: torch.Tensor
    count: int

    def seen(self, device: torch.device, span: int | None = None) -> torch.Tensor:
        """Say which tokens see which others: those on their path to the root.

        Args:
            device: Where to compute.
            span: How many tokens back a token sees, itself included; None for all.

        Returns:
            [rows, length, length], bool: whether the second index's token sees the third's.
        """
        first, last = self.first.to(device), self.last.to(device)
        seen = first[:, None, :] <= first[:, :, None]
        seen &= first[:, :, None] <= last[:, None, :]
        if span is not None:
            depths = self.depths.to(device)
            seen &= depths[:, :, None] - depths[:, None, :] < span
        return seen


class _Tree:
    """Sequences, merged where they begin alike."""

    def __init__(self) -> None:
        self.tokens: list[int] = []
        self.parents: list[int] = []
        self.depths: list[int] = []
        self.scored: list[tuple[int, int, int]] = []  # node, target, owner
        self._children: dict[tuple[int, int], int] = {}

    def add(self, pair: Pair, owner: int) -> None:
        """Insert a sequence, whose last token needs no place because nothing follows it."""
        node = -1
        sequence = [*pair.before, *pair.after]
        for depth, token in enumerate(sequence):
            if depth >= len(pair.before):
                self.scored.append((node, token, owner))
            if depth == len(sequence) - 1:
                break
            child = self._children.get((node, token))
            if child is None:
                child = self._children[node, token] = len(self.tokens)
                self.tokens.append(token)
                self.parents.append(node)
                self.depths.append(depth)
            node = child

    def finish(self) -> None:
        """Drop what only building needs."""
        self._children = {}
        self.reads = len({node for node, _, _ in self.scored})

    def walk(self) -> tuple[list[int], list[int]]:
        """Number the nodes so that everything below a node follows it without a gap."""
        sizes = [1] * len(self.tokens)
        for node in range(len(sizes) - 1, -1, -1):
            if self.parents[node] >= 0:
                sizes[self.parents[node]] += sizes[node]
        first: list[int] = []
        free: list[int] = []
        root = 0
        for node, parent in enumerate(self.parents):
            at = root if parent < 0 else free[parent]
            first.append(at)
            free.append(at + 1)
            if parent < 0:
                root += sizes[node]
            else:
                free[parent] += sizes[node]
        return first, [at + size - 1 for at, size in zip(first, sizes, strict=True)]


def _batch(trees: Sequence[_Tree]) -> Batch:
    length = max(len(tree.tokens) for tree in trees)
    # Padding is numbered below every token and sees only itself: a softmax needs something.
    tokens, depths = torch.zeros(2, len(trees), length, dtype=torch.int32)
    walks = torch.arange(-length, 0, dtype=torch.int32).repeat(2, len(trees), 1)
    scored = []
    for row, tree in enumerate(trees):
        start = length - len(tree.tokens)
        tokens[row, start:] = torch.tensor(tree.tokens, dtype=torch.int32)
        depths[row, start:] = torch.tensor(tree.depths, dtype=torch.int32)
        walks[:, row, start:] = torch.tensor(tree.walk(), dtype=torch.int32)
        scored += [(row, start + node, target, owner) for node, target, owner in tree.scored]
    rows, columns, targets, owners = torch.tensor(scored).T.contiguous()
    kept, columns = columns.unique(return_inverse=True)
    count = sum(len(tree.tokens) for tree in trees)
    return Batch(tokens, depths, walks[0], walks[1], kept, rows, columns, targets, owners, count)


def plan(pairs: Sequence[Pair], batch_size: int, vocabulary: int) -> list[Batch]:
    """Arrange continuations in batches of trees, one for each item, the largest first.

    A batch has at most `batch_size` rows, fewer where its masks or logits (`vocabulary` of them for
    each token) would fill the memory.
    """
    by_item: dict[Hashable, _Tree] = defaultdict(_Tree)
    # Items with equal contexts stay apart: one row of them all would be quadratically long.
    for owner, pair in enumerate(pairs):
        by_item[pair.item].add(pair, owner)
    for tree in by_item.values():
        tree.finish()
    trees = sorted(by_item.values(), key=lambda tree: (-len(tree.tokens), tree.tokens))
    batches, at = [], 0
    while at < len(trees):
        length = len(trees[at].tokens)
        size, reads = 1, trees[at].reads
        while at + size < len(trees) and size < batch_size:
            reads = max(reads, trees[at + size].reads)
            if (size + 1) * max(length**2 / _MASK_ENTRIES, reads * vocabulary / _LOGITS) > 1:
                break
            size += 1
        batches.append(_batch(trees[at : at + size]))
        at += size
    return batches
