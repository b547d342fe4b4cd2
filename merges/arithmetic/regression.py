"""Least squares over linear layers, from their inputs' Gram matrices."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch

from common.errors import UserError
from merges.engine.requests import Readable

_ROWS = 1024  # of a Gram matrix in memory at a time


def mean_of(experts: Sequence[torch.Tensor], factors: Sequence[float]) -> torch.Tensor:
    """Add up experts, read one after the other, with factors that sum to one."""
    total = experts[0].mul_(factors[0])
    for number in range(1, len(factors)):
        total.add_(experts[number], alpha=factors[number])
    return total


class Inputs:
    """The experts' inputs of one linear layer, ready to solve for rows of the merged weight.

    With G_i shrunk to alpha G_i + (1 - alpha) diag(G_i), A = sum_i c_i G_i and the ridge r times
    A's mean diagonal value, A is held as its Cholesky factor in float64, and 1,024 rows of one G_i
    at a time with it.

    Args:
        found: The experts' statistics.
        factors: c_i.
        name: The weight's name.
        width: Number of inputs.
        alpha: Multiplier off the diagonal.
        ridge: r.

    Raises:
        UserError: A is singular, which no ridge above 0 leaves it.
    """

    def __init__(
        self,
        found: Sequence[Readable],
        factors: Sequence[float],
        name: str,
        width: int,
        alpha: float,
        ridge: float,
    ) -> None:
        self._found, self._factors, self._name, self._alpha = found, factors, name, alpha
        total = np.zeros((width, width))
        for factor, own in zip(factors, found, strict=True):
            for start, stop, rows in self._rows(own, width):
                total[start:stop] += factor * rows.numpy()
        diagonal = total.diagonal().copy()
        self._silent = not diagonal.any()  # no input but zero
        if self._silent:
            return
        total *= alpha
        np.fill_diagonal(total, diagonal + ridge * diagonal.mean())
        from scipy.linalg import lapack  # takes a third of a second

        self._factor, failed = lapack.dpotrf(total.T, lower=1, overwrite_a=1, clean=0)
        if failed:
            raise UserError(
                f"tensor {name}: its inputs' Gram matrices are singular; set ridge higher or "
                "alpha below 1, or make statistics of more rows"
            )

    def _rows(self, own: Readable, width: int) -> Iterator[tuple[int, int, torch.Tensor]]:
        for start in range(0, width, _ROWS):
            stop = min(start + _ROWS, width)
            yield (
                start,
                stop,
                own.read(self._name, "gram", start * width, stop * width).view(-1, width),
            )

    def regress(self, centre: torch.Tensor, experts: Sequence[torch.Tensor]) -> torch.Tensor:
        """Find the rows whose outputs are nearest to every expert's, on its own inputs.

        They are M + (sum_i c_i (W_i - M) G_i) (A + r I)^-1, which equals
        (sum_i c_i W_i G_i + r M) (A + r I)^-1: inputs that nobody saw keep the centre M.

        Args:
            centre: M, [rows, width]; overwritten with the result.
            experts: W_i, shaped alike, each read when it is looked at.
        """
        if self._silent:
            return centre
        alpha, width = self._alpha, centre.shape[1]
        right = np.zeros(tuple(centre.shape))
        for number, (factor, own) in enumerate(zip(self._factors, self._found, strict=True)):
            delta = experts[number].sub_(centre).cpu()
            for start, stop, rows in self._rows(own, width):
                part = delta[:, start:stop]
                right += (part @ rows.to(part.dtype)).mul_(factor * alpha).numpy()
                diagonal = rows[torch.arange(stop - start), torch.arange(start, stop)]
                right[:, start:stop] += (part * diagonal).mul_(factor * (1 - alpha)).numpy()
        from scipy.linalg import lapack

        # In place: the transpose of rows is in the order of columns that LAPACK wants.
        solution, _ = lapack.dpotrs(self._factor, right.T, lower=1, overwrite_b=1)
        return centre.add_(torch.from_numpy(solution.T).to(centre))
