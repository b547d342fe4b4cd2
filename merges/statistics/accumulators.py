"""Sums over tokens that a pass collects: Gram matrices, channels, squared gradients."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

_BLOCK = 1024  # rows mirrored at a time


class Gram:
    """The sum of x x^T over tokens, in float32 (float64 for float64 inputs).

    On the CPU only the lower triangle is computed, by BLAS's symmetric update, which takes half of
    a product's operations and adds in place.

    Args:
        width: Length of x.
        like: An input, for type and device.
    """

    def __init__(self, width: int, like: Tensor) -> None:
        from scipy.linalg import blas  # takes a third of a second

        wide = like.dtype == torch.float64
        self._type = torch.float64 if wide else torch.float32
        self._update = blas.dsyrk if wide else blas.ssyrk
        self._on_cpu = like.device.type == "cpu"
        if self._on_cpu:
            self._sum = np.zeros((width, width), np.float64 if wide else np.float32, order="F")
        else:
            self._total = torch.zeros(width, width, dtype=self._type, device=like.device)

    def add(self, x: Tensor) -> None:
        """Add the outer products of rows (tokens, width)."""
        x = x.detach().to(self._type)
        if self._on_cpu:
            rows = x.contiguous().numpy().T
            self._sum = self._update(1.0, rows, beta=1.0, c=self._sum, lower=1, overwrite_c=1)
        else:
            self._total.addmm_(x.T, x)

    def mean(self, tokens: int) -> Tensor:
        """Return the sum divided by a number of tokens, (width, width), in place of the sum."""
        if not self._on_cpu:
            return self._total.div_(tokens).cpu()
        total = self._sum
        total /= tokens
        for start in range(0, len(total), _BLOCK):
            rows = slice(start, start + _BLOCK)
            for other in range(0, start, _BLOCK):
                columns = slice(other, other + _BLOCK)
                total[columns, rows] = total[rows, columns].T
            block = total[rows, rows]
            block[:] = np.tril(block) + np.tril(block, -1).T
        return torch.from_numpy(total.T)  # symmetric, so that its transpose has its values


class Channels:
    """The sums of |x| and of x^2 over tokens, in float64.

    Args:
        width: Length of x.
        like: An input, for its device.
    """

    def __init__(self, width: int, like: Tensor) -> None:
        self._sums = torch.zeros(2, width, dtype=torch.float64, device=like.device)

    def add(self, x: Tensor) -> None:
        """Add rows (tokens, width); torch sums columns of a batch pairwise, in float32."""
        wide = x.detach().to(torch.promote_types(x.dtype, torch.float32))
        self._sums[0] += torch.linalg.vector_norm(wide, 1, dim=0)
        self._sums[1] += torch.linalg.vector_norm(wide, dim=0).double().square_()

    def mean(self, tokens: int) -> tuple[Tensor, Tensor]:
        """Return the means of |x| and of x^2, float32 (width,)."""
        means = (self._sums / tokens).float().cpu()
        return means[0].clone(), means[1].clone()


class PerSequence:
    """The sum over sequences of g^2 or |g|, g being the gradient that a sequence gives a parameter.

    Args:
        shape: The parameter's.
        squared: Whether of squares.
        like: A tensor on the device.
    """

    def __init__(self, shape: torch.Size, squared: bool, like: Tensor) -> None:
        self._total = torch.zeros(shape, dtype=torch.float32, device=like.device)
        self._squared = squared

    def add(self, gradient: Tensor) -> None:
        """Add one sequence's gradient."""
        gradient = gradient.float()
        if self._squared:
            self._total.addcmul_(gradient, gradient)
        else:
            self._total += gradient.abs_()

    def mean(self, sequences: int) -> Tensor:
        """Return the mean over sequences, in place of the sum."""
        return self._total.div_(sequences).cpu()
