"""The scaling law of merging: cross-entropy as a function of model size and number of experts."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

_NAMES = ("floor", "size", "size_power", "tail", "tail_power", "offset")
POWERS = (0.05, 3.0)  # of N: outside, a term is a constant or gone within these sizes
OFFSETS = (-0.5, 8.0)  # of k, which begins at 1


@dataclass(frozen=True)
class Law:
    """L(N, k) = floor + size (N/N_0)^-size_power + tail (N/N_0)^-tail_power / (k + offset).

    Attributes:
        values: By name.
        unit: N_0, the geometric mean of the sizes that were fitted.
        error: Root mean square error of the fit, nats.
        explained: Share of the variance of the fitted losses that it explains.
        points: Number of losses that were fitted.
    """

    values: dict[str, float]
    unit: float
    error: float
    explained: float
    points: int

    def __call__(self, parameters: np.ndarray, counts: np.ndarray) -> np.ndarray:
        """Return the losses, nats a token, of models of so many parameters and experts."""
        return _loss([self.values[name] for name in _NAMES], parameters / self.unit, counts)


def _loss(values: Sequence[float], sizes: np.ndarray, counts: np.ndarray) -> np.ndarray:
    floor, size, size_power, tail, tail_power, offset = values
    found: np.ndarray = (
        floor + size * sizes**-size_power + tail * sizes**-tail_power / (counts + offset)
    )
    return found


def fit(parameters: Sequence[float], counts: Sequence[float], losses: Sequence[float]) -> Law:
    """Fit the law by least squares, from several starts.

    Args:
        parameters: N of each model, of at least two sizes.
        counts: k of each, of at least two numbers.
        losses: Cross-entropy of each, nats a token.

    Returns:
        The best fit; no term is negative.

    Source: Wang et al. 2025, Model merging scaling laws in large language models, arXiv:2509.24244:
    a floor that falls with size and a tail in the number of experts. Powers of N in both terms, and
    the offset of k, are free here.
    """
    from scipy.optimize import least_squares

    sizes, k = np.asarray(parameters, float), np.asarray(counts, float)
    y = np.asarray(losses, float)
    unit = float(np.exp(np.log(np.unique(sizes)).mean()))
    scaled = sizes / unit
    low = [0.0, 0.0, POWERS[0], 0.0, POWERS[0], OFFSETS[0]]
    high = [float(y.min()), np.inf, POWERS[1], np.inf, POWERS[1], OFFSETS[1]]
    best = None
    # The sum of squares has several valleys, by how much of it each term takes.
    for share, power, offset in itertools.product((0.1, 0.6), (0.2, 1.0), (0.0, 1.0)):
        start = [share * y.min(), (1 - share) * y.min(), power, np.ptp(y) + 1e-3, power, offset]
        found = least_squares(
            lambda values: _loss(values, scaled, k) - y, start, bounds=(low, high), x_scale="jac"
        )
        if best is None or found.cost < best.cost:
            best = found
    assert best is not None
    squares = 2 * float(best.cost)
    spread = float(((y - y.mean()) ** 2).sum())
    return Law(
        dict(zip(_NAMES, map(float, best.x), strict=True)),
        unit,
        float(np.sqrt(squares / len(y))),
        1 - squares / spread if spread else float("nan"),
        len(y),
    )


@dataclass(frozen=True)
class Point:
    """A mean loss over the sets of experts of a seed.

    Attributes:
        seed: The world's seed.
        size: Name of the size.
        parameters: Number of parameters.
        count: Number of experts; 1 for the experts themselves.
        loss: Nats a token.
    """

    seed: int
    size: str
    parameters: int
    count: int
    loss: float


@dataclass(frozen=True)
class Prediction:
    """What a fit says of models that it did not see.

    Attributes:
        what: ``size``, ``count`` or ``both``: what of them it did not see.
        error: Mean absolute relative error.
        nearest: The same of the nearest loss that it saw: that of the nearest size and number.
        points: Number of losses.
    """

    what: str
    error: float
    nearest: float
    points: int


def predictions(points: Sequence[Point], size: str, count: int) -> tuple[Law, list[Prediction]]:
    """Fit without a size and a number of experts, and compare with the losses there.

    Args:
        points: All losses.
        size: The size that the fit does not see.
        count: The number of experts that it does not see.

    Returns:
        The fit, and the errors for models of this size, of this number of experts, and of both.
    """
    seen = [point for point in points if point.size != size and point.count != count]
    law = fit(*_columns(seen))
    found = []
    kinds = {"size": (True, False), "count": (False, True), "both": (True, True)}
    for what, kind in kinds.items():
        asked = [p for p in points if (p.size == size, p.count == count) == kind]
        if not asked:
            continue
        parameters, counts, losses = (np.array(column) for column in _columns(asked))
        near = np.array([_nearest(point, seen) for point in asked])
        found.append(
            Prediction(
                what,
                float(np.mean(np.abs(law(parameters, counts) / losses - 1))),
                float(np.mean(np.abs(near / losses - 1))),
                len(asked),
            )
        )
    return law, found


def _columns(points: Sequence[Point]) -> tuple[list[float], list[float], list[float]]:
    return (
        [float(point.parameters) for point in points],
        [float(point.count) for point in points],
        [point.loss for point in points],
    )


def _nearest(point: Point, seen: Sequence[Point]) -> float:
    """Return the mean loss, over seeds, of the nearest size at the nearest number of experts."""
    by_size = min(abs(np.log(p.parameters / point.parameters)) for p in seen)
    near = [p for p in seen if abs(np.log(p.parameters / point.parameters)) == by_size]
    by_count = min(abs(p.count - point.count) for p in near)
    return float(np.mean([p.loss for p in near if abs(p.count - point.count) == by_count]))
