"""Thresholds by magnitude over parameters in pieces: exact, and by selection, not by sorting."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from merges.arithmetic import patterns
from merges.arithmetic.task_vectors import deltas_of

if TYPE_CHECKING:
    import torch

    from merges.engine.pieces import Piece, Pieces
    from merges.engine.requests import Values

_FEW = 1 << 18  # so many values are gathered whole; a sample would not pay
_MARGIN = 4.0  # standard errors of the sample's share above the threshold: one search in 16,000
# needs another pass, and what is gathered grows with it
_ONE_RUN = 0.02  # standard error assumed where the sample is a single run of neighbours
_END = 1 << 62  # behind every place


@dataclass(frozen=True)
class Threshold:
    """Which values are the k largest by magnitude.

    Attributes:
        value: The k-th largest magnitude.
        cut: Of the values with exactly this magnitude, those at a place below it belong to the k.
    """

    value: float
    cut: int

    def keep(self, values: Values, place: int) -> Values:
        """Zero all but the k largest.

        Args:
            values: A piece of the values, floating, of any shape.
            place: Place of its first value; see `merges.engine.requests.TensorContext.place`.

        Returns:
            A new tensor of the same shape; an array is overwritten.
        """
        with_ties = self.cut - place
        if isinstance(values, np.ndarray):
            from merges.arithmetic import kernels

            return kernels.trim(values, *self.limits(place))
        import torch
        from torch.nn.functional import hardshrink

        if with_ties <= 0:
            return hardshrink(values, self.value)
        limit = torch.tensor(self.value, dtype=values.dtype)
        below = float(limit.nextafter(torch.zeros_like(limit)))
        if with_ties >= values.numel():
            return hardshrink(values, below)
        flat = values.flatten()
        first, rest = flat[:with_ties], flat[with_ties:]
        both = torch.cat([hardshrink(first, below), hardshrink(rest, self.value)])
        return both.reshape(values.shape)

    def limits(self, place: int) -> tuple[float, float, int]:
        """Return what `merges.arithmetic.kernels.trim` wants for values from a place on."""
        below = float(np.nextafter(np.float32(self.value), np.float32(0)))
        return below, self.value, self.cut - place


def _on_cpu(values: Any) -> np.ndarray:
    return values if isinstance(values, np.ndarray) else values.cpu().numpy()


def _magnitudes(values: Any) -> np.ndarray:
    return _on_cpu(abs(values.reshape(-1)))


def _count(truths: Any) -> int:
    return int(np.count_nonzero(truths) if isinstance(truths, np.ndarray) else truths.sum())


def kept(density: float, count: int) -> int:
    """Return k = floor(density * count), at least one, as mergekit has it."""
    return max(1, math.floor(density * count))


def _standard_error(runs: Sequence[np.ndarray], value: float, share: float) -> float:
    """Estimate the error of the share of a sample's magnitudes that is above a value.

    The sample is runs of neighbours, one per piece, and neighbours are alike: the runs' shares
    say how much. Differences of successive ones leave out what changes slowly over the parameters.
    """
    independent = math.sqrt(share * (1 - share) / sum(map(len, runs)))
    if len(runs) == 1:
        return max(independent, _ONE_RUN)
    shares = np.array([np.count_nonzero(run >= value) / len(run) for run in runs])
    return max(independent, math.sqrt(np.mean(np.diff(shares) ** 2) / 2 / len(runs)))


def _largest(values: np.ndarray, rank: int) -> float:
    """Return the rank-th largest of magnitudes [n]."""
    if values.dtype == np.float32:
        from merges.arithmetic import kernels

        return kernels.ranked(values, rank)
    return float(np.partition(values, len(values) - rank)[len(values) - rank])


class _Search:
    """The search for one threshold: the k-th largest magnitude is between `low` and `high`."""

    def __init__(self, k: int, runs: Sequence[np.ndarray], total: int) -> None:
        self._k = k
        self._missed = False
        self._sample = np.concatenate(runs) if runs else np.empty(0)
        size = len(self._sample)
        self._part = size / total
        self._margin, middle = 1.0, size * (1 - k / total)
        if size:
            value = self._ranked(min(int(middle), size - 1))
            self._margin += _MARGIN * size * _standard_error(runs, value, k / total)
        self._move(middle - self._margin, middle + self._margin)
        self.split: tuple[int, int] | None = None

    def _move(self, first: float, last: float) -> None:
        """Set the bounds to the sample's values at two ranks; outside the sample they are open."""
        self._first, self._last = first, last
        self.low = self._ranked(int(first)) if first >= 0 else -1.0
        inside = last < len(self._sample) - 1
        self.high = self._ranked(math.ceil(last)) if inside else math.inf
        self._above = 0
        self._places: list[int] = []
        self._counts: list[int] = []
        self._values: list[np.ndarray] = []

    def _ranked(self, place: int) -> float:
        """Return what is at a place of the sample, the smallest first."""
        return _largest(self._sample, len(self._sample) - place)

    def add(self, array: np.ndarray | torch.Tensor, place: int) -> None:
        """Count what is above the bounds of magnitudes [n], and gather what is between.

        Args:
            array: The magnitudes; a tensor where they are on a GPU.
            place: Place of the first.
        """
        above = _count(array > self.high)
        if self.alike:
            self.note(place, above, _count(array == self.low))
        else:
            values = _on_cpu(array[(array >= self.low) & (array <= self.high)])
            self.note(place, above, len(values), values)

    @property
    def alike(self) -> bool:
        """Whether the bounds are equal, as in a frozen parameter: then a number will do."""
        return self.low == self.high

    def note(self, place: int, above: int, inside: int, values: np.ndarray | None = None) -> None:
        """Note what a piece has above the bounds and between them.

        Args:
            place: Place of its first value.
            above: Number of magnitudes above.
            inside: Number of those between.
            values: These, in their order; not needed where the bounds are equal.
        """
        self._above += above
        self._places.append(place)
        self._counts.append(inside)
        if values is not None and not self.alike:
            self._values.append(values)

    def finish(self) -> Threshold | None:
        """Return the threshold, or move the bounds to where it must be."""
        rank, inside = self._k - self._above, sum(self._counts)
        if rank < 1 or rank > inside:
            far = (1 - rank if rank < 1 else rank - inside) * self._part
            step = math.inf if self._missed else 2 * far + self._margin
            self._missed = True
            if rank < 1:
                self._move(self._last, self._last + step)
            else:
                self._move(self._first - step, self._first)
            return None
        value, ties, missing = self.low, self._counts, rank
        if self.low < self.high:
            values = np.concatenate(self._values)
            value = _largest(values, rank)
            ties = [int(np.count_nonzero(found == value)) for found in self._values]
            missing = rank - int(np.count_nonzero(values > value))
        self._values = []
        if value == 0:  # a zero is the same kept or not
            return Threshold(0.0, 0)
        if missing == sum(ties):
            return Threshold(value, _END)
        upto = np.cumsum(ties)
        number = int(np.searchsorted(upto, missing))
        self.split = (self._places[number], missing - int(upto[number] - ties[number]))
        return Threshold(value, 0)


def _sample(
    pieces: Pieces,
    values_of: Callable[[Piece], Sequence[torch.Tensor]],
    runs: Sequence[list[np.ndarray]],
) -> None:
    """Append to each series' runs the magnitudes of a sample of its values."""
    if values_of is deltas_of and pieces.bfloat16:
        for piece in pieces.stored(sample=True):
            for run, expert in zip(runs, piece.experts, strict=True):
                found = patterns.between(expert, piece.base, -1.0, math.inf, pieces.step)
                run += [values for _, _, values in found or pieces.refuse()]
        return
    for piece in pieces.sample():
        for run, values in zip(runs, values_of(piece), strict=True):
            run.append(_magnitudes(values))


def _look_through(
    pieces: Pieces,
    values_of: Callable[[Piece], Sequence[torch.Tensor]],
    searches: Mapping[int, _Search],
) -> None:
    """Show every piece to searches, by the number of their series."""
    if values_of is deltas_of and pieces.bfloat16:
        for piece in pieces.stored():
            for number, search in searches.items():
                bounds = search.low, search.high, pieces.step  # a step begins where `pieces.at` can
                found = patterns.between(piece.experts[number], piece.base, *bounds)
                for part, counted in enumerate(found or pieces.refuse()):
                    search.note(piece.context.place + part * pieces.step, *counted)
        return
    for piece in pieces:
        series = values_of(piece)
        for number, search in searches.items():
            values = series[number]
            on_gpu = getattr(values, "is_cuda", False)
            array = abs(values.reshape(-1)) if on_gpu else _magnitudes(values)
            search.add(array, piece.context.place)


def thresholds(
    pieces: Pieces,
    values_of: Callable[[Piece], Sequence[torch.Tensor]],
    counts: Sequence[int],
) -> list[Threshold]:
    """Find, for several series of values at once, the threshold of the k largest magnitudes.

    A sample brackets the threshold, one pass counts the magnitudes above the bracket and gathers
    those within, and a selection among the latter finds it. The result is always exact: if the
    threshold is outside the bracket, one or two more passes find it. Of equal magnitudes at the
    threshold those that come first (row-major, for a whole model in the order of the parameters'
    names) belong to the k. Memory is that of the gathered values: a few per cent of a series in
    float32, unless much of it has few magnitudes.

    Args:
        pieces: The parameters.
        values_of: Computes the series of a piece, of any shape, the same way at every call. For
            several thresholds of one series it returns it as often.
        counts: k of each series, from 0 to the number of values.
    """
    total = pieces.count
    found = {
        number: Threshold(math.inf if k == 0 else 0.0, 0)
        for number, k in enumerate(counts)
        if k in (0, total)
    }
    pending = [number for number in range(len(counts)) if number not in found]
    runs: list[list[np.ndarray]] = [[] for _ in counts]
    if pending and total > _FEW:
        _sample(pieces, values_of, runs)
    searches = {number: _Search(counts[number], runs[number], total) for number in pending}
    del runs  # a sample of every series
    while pending := [number for number in searches if number not in found]:
        _look_through(pieces, values_of, {number: searches[number] for number in pending})
        for number in pending:
            if (threshold := searches[number].finish()) is not None:
                found[number] = threshold
    for number, search in searches.items():
        if search.split is not None:
            (place, missing), value = search.split, found[number].value
            magnitude = _magnitudes(values_of(pieces.at(place))[number])
            tie = int(np.flatnonzero(magnitude == value)[missing - 1])
            found[number] = Threshold(value, place + tie + 1)
    return [found[number] for number in range(len(counts))]
