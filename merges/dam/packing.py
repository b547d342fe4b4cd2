"""Samples of different lengths in one row without padding."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor


@dataclass(frozen=True)
class Packing:
    """Where each sample is in a packed row.

    Attributes:
        lengths: Tokens of each sample, in the row's order.
        device: Where the row is.
    """

    lengths: Sequence[int]
    device: torch.device | str = "cpu"

    @property
    def tokens(self) -> int:
        """Length of the packed row."""
        return sum(self.lengths)

    @property
    def shape(self) -> tuple[int, int]:
        """Number of samples and length of the longest."""
        return len(self.lengths), max(self.lengths)

    @cached_property
    def positions(self) -> Tensor:
        """Position of each token in its own sample, (1, tokens)."""
        each = [torch.arange(length) for length in self.lengths]
        return torch.cat(each)[None].to(self.device)

    @cached_property
    def _ends(self) -> Tensor:
        return torch.tensor(self.lengths).cumsum(0)

    @cached_property
    def to_padded(self) -> Tensor:
        """Row index for each cell of the (samples, longest) rectangle, flattened.

        A cell beyond its sample's end repeats the last token; no query sees it, for it is in
        the future of all, and what it computes itself is dropped.
        """
        lengths = torch.tensor(self.lengths)[:, None]
        cells = torch.arange(max(self.lengths))[None]
        starts = self._ends[:, None] - lengths
        return (starts + torch.minimum(cells, lengths - 1)).view(-1).to(self.device)

    @cached_property
    def to_packed(self) -> Tensor:
        """Index in the flattened (samples, longest) rectangle for each token of the row."""
        lengths = torch.tensor(self.lengths)
        sample = torch.repeat_interleave(torch.arange(len(lengths)), lengths)
        return sample.to(self.device) * max(self.lengths) + self.positions[0]

    @cached_property
    def _visible(self) -> dict[tuple, Tensor]:
        return {}

    def visible(self, length: int, sliding_window: int | None, dtype: torch.dtype) -> Tensor:
        """Return what causal attention adds to a sample's scores, (length, length).

        Args:
            length: Tokens of the sample.
            sliding_window: Number of last positions, its own included, that a token sees; None
                for all.
            dtype: The scores' type.

        Returns:
            0 where the column is visible from the row, -infinity elsewhere.
        """
        key = length, sliding_window, dtype
        if key not in self._visible:
            hidden = torch.ones(length, length, dtype=torch.bool, device=self.device).triu(1)
            if sliding_window is not None:
                hidden |= torch.ones_like(hidden).tril(-sliding_window)
            mask = torch.zeros(length, length, dtype=dtype, device=self.device)
            self._visible[key] = mask.masked_fill_(hidden, float("-inf"))
        return self._visible[key]
