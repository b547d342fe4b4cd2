"""How alike models of one base are: measures that are taken before a merge, pair by pair."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Literal

import numpy as np

# By measure, what it is; those after `rank` read texts, the others weights alone.
MEASURES = {
    "cosine": "cosine of the task vectors",
    "conflict": "share of the values that both changed in which their signs differ",
    "drift": "mean length of the task vectors in the base's",
    "unevenness": "length of the longer task vector in the shorter one's",
    "kinship": "model kinship: Pearson correlation of the task vectors",
    "rank": "mean effective rank of a linear layer's change, as a share of its full rank",
    "cka": "linear CKA of the final hidden states",
    "midpoint": "loss of the model half-way, less the mean of the two models' (nats a token)",
}
WITH_TEXTS = ("cka", "midpoint")
Metric = Literal["cosine", "pearson"]


def effective_rank(matrix: np.ndarray) -> float:
    """Return exp(H(p)) / min(rows, columns), p_i = s_i / sum s, of singular values s; 0 for none.

    Args:
        matrix: Float64 [rows, columns].

    Source: Roy and Vetterli 2007, The effective rank: a measure of effective dimensionality.
    """
    wide = matrix if matrix.shape[0] <= matrix.shape[1] else matrix.T
    values = np.sqrt(np.maximum(np.linalg.eigvalsh(wide @ wide.T), 0.0))
    # The square root of a product's rounding is no singular value.
    values = values[values > 1e-7 * values.max(initial=0.0)]
    if not len(values):
        return 0.0
    shares = values / values.sum()
    return float(np.exp(-(shares * np.log(shares)).sum()) / len(wide))


def kinship(
    products: np.ndarray,
    sums: np.ndarray,
    count: int,
    metric: Metric = "cosine",
    absolute: bool = False,
) -> np.ndarray:
    """Compute how alike task vectors are.

    cosine: d_i.d_j / (|d_i| |d_j|); pearson: the same of d_i minus its mean value.

    Args:
        products: Inner products d_i.d_j, float64 [N, N].
        sums: Sum of the values of each d_i, float64 [N].
        count: Number of values of each d_i.
        metric: ``cosine`` or ``pearson``.
        absolute: Whether the sign is dropped, as in the authors' code.

    Returns:
        Float64 [N, N], symmetric, with 1 on the diagonal; rows of a task vector without a direction
        (zero, or for ``pearson`` constant) are NaN.

    Source:
        Hu et al., Exploring Model Kinship for Merging Large Language Models, 2024,
        arXiv:2410.12613, section 3.
    """
    if metric == "pearson":
        products = products - np.outer(sums, sums) / count
    squares = np.diagonal(products)
    # What is left of a constant vector is rounding of its products.
    lengths = np.sqrt(np.where(squares > 1e-14 * np.square(sums) / count, squares, np.nan))
    found = np.clip(products / np.outer(lengths, lengths), -1.0, 1.0)
    return np.abs(found) if absolute else found


def linear_cka(one: np.ndarray, two: np.ndarray) -> float:
    """Return |Y^T X|^2 / (|X^T X| |Y^T Y|) of centred features (Frobenius norms).

    Args:
        one: X, float64 [texts or tokens, features].
        two: Y, of the same rows.

    Returns:
        0 to 1; NaN where the features of one do not vary.

    Source: Kornblith et al. 2019, arXiv:1905.00414, section 3.
    """
    one, two = one - one.mean(axis=0), two - two.mean(axis=0)
    whole = np.linalg.norm(one.T @ one) * np.linalg.norm(two.T @ two)
    return float(np.linalg.norm(two.T @ one) ** 2 / whole) if whole > 0 else float("nan")


class Likeness:
    """Sums over the values of N models' task vectors, from which all measures of weights follow.

    Args:
        models: N.
    """

    def __init__(self, models: int) -> None:
        self._products = np.zeros((models, models))
        self._both, self._against = np.zeros((models, models)), np.zeros((models, models))
        self._sums, self._ranks = np.zeros(models), np.zeros(models)
        self._base, self._values, self._matrices = 0.0, 0, 0

    def add(self, base: np.ndarray, deltas: np.ndarray) -> None:
        """Add values.

        Args:
            base: Of the base, float64 [values].
            deltas: What each model has more, float64 [N, values].
        """
        self._products += deltas @ deltas.T
        self._sums += deltas.sum(axis=1)
        self._base += float(base @ base)
        self._values += len(base)
        up, down = ((deltas > 0).astype(np.float32), (deltas < 0).astype(np.float32))
        same, against = up @ up.T + down @ down.T, up @ down.T
        self._against += against + against.T
        self._both += same + against + against.T

    def add_layer(self, deltas: np.ndarray) -> None:
        """Add the changes of a linear layer's matrix, float64 [N, rows, columns], to the ranks."""
        self._ranks += [effective_rank(delta) for delta in deltas]
        self._matrices += 1

    def pairs(self) -> dict[str, np.ndarray]:
        """Return each measure of weights of every two models, float64 [N, N].

        NaN where one of the two has not moved, or no value was changed by both. The diagonal means
        nothing.
        """
        squares = np.diagonal(self._products)
        lengths = np.sqrt(np.where(squares > 0, squares, np.nan))
        given = (self._products, self._sums, self._values)
        drifts = lengths / np.sqrt(self._base) if self._base > 0 else lengths * np.nan
        ranks = self._ranks / self._matrices if self._matrices else self._ranks * np.nan
        with np.errstate(divide="ignore", invalid="ignore"):
            return {
                "cosine": kinship(*given, "cosine"),
                "conflict": self._against / np.where(self._both > 0, self._both, np.nan),
                "drift": np.add.outer(drifts, drifts) / 2,
                "unevenness": np.maximum.outer(lengths, lengths)
                / np.minimum.outer(lengths, lengths),
                "kinship": kinship(*given, "pearson"),
                "rank": np.add.outer(ranks, ranks) / 2,
            }


def over_pairs(values: np.ndarray, members: Sequence[int]) -> float:
    """Return the mean over every two of some models, from values [N, N]."""
    pairs: Iterable[tuple[int, int]] = (
        (one, two) for place, one in enumerate(members) for two in members[place + 1 :]
    )
    return float(np.mean([values[pair] for pair in pairs]))
