"""Thresholds against a full sort: sizes, ties, zeros, and samples that mislead."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from unittest import mock

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from merges.arithmetic import selection
from merges.arithmetic.selection import Threshold, kept, thresholds
from merges.engine import pieces as pieces_module
from merges.engine.pieces import Part, Piece, Pieces
from merges.engine.registry import Unit
from merges.engine.requests import TensorContext


class Counted(Pieces):
    """Pieces that count how often they are gone through, and may be sampled as a test wants."""

    passes = 0
    sampled: Sequence[Piece] | None = None

    def __iter__(self) -> Iterator[Piece]:
        self.passes += 1
        return super().__iter__()

    def sample(self) -> Iterator[Piece]:
        return super().sample() if self.sampled is None else iter(self.sampled)


def pieces_of(
    *parameters: Sequence[np.ndarray],
    unit: Unit = "values",
    dtype: torch.dtype = torch.float32,
) -> Counted:
    """Wrap parameters, each given as its series."""
    parts = []
    for number, series in enumerate(parameters):
        names = tuple(f"e{n}" for n in range(len(series)))
        context = TensorContext(f"p{number}", names, 0, series[0].shape)
        flat = [torch.from_numpy(np.ascontiguousarray(one)).flatten() for one in series]
        parts.append(Part(context, None, [lambda a, b, v=v: v[a:b] for v in flat]))
    return Counted(parts, unit, dtype)


def series_of(piece: Piece) -> list[torch.Tensor]:
    return piece.experts


def apply(pieces: Pieces, found: Sequence[Threshold]) -> list[np.ndarray]:
    kept_values: list[list[np.ndarray]] = [[] for _ in found]
    for piece in pieces:
        for number, threshold in enumerate(found):
            part = threshold.keep(piece.experts[number], piece.context.place)
            assert part.shape == piece.experts[number].shape
            kept_values[number].append(part.numpy().ravel())
    return [np.concatenate(parts) for parts in kept_values]


def oracle(values: np.ndarray, k: int) -> np.ndarray:
    """Keep the k largest magnitudes by a full sort, of equal ones the first."""
    order = np.argsort(-np.abs(values), kind="stable")[:k]
    result = np.zeros_like(values)
    result[order] = values[order]
    return result


def check(pieces: Counted, series: Sequence[np.ndarray], counts: Sequence[int]) -> int:
    """Compare with the oracle; return how many passes the search took."""
    pieces.passes = 0
    found = thresholds(pieces, series_of, counts)
    passes = pieces.passes
    for values, k, result in zip(series, counts, apply(pieces, found), strict=True):
        np.testing.assert_array_equal(result, oracle(values, k))
    return passes


KINDS = {
    "distinct": lambda rng, n: rng.normal(size=n),
    "ties": lambda rng, n: rng.integers(-3, 4, n) / 8.0,
    "zeros": lambda rng, n: rng.normal(size=n) * (rng.random(n) < 0.1),
    "bfloat16": lambda rng, n: rng.integers(-60, 61, n) * 2.0 ** rng.integers(-9, -7, n),
    "alike": lambda rng, n: np.full(n, -0.25),
    "nothing": lambda rng, n: np.zeros(n),
    "sorted": lambda rng, n: np.sort(rng.normal(size=n)),
    "falling": lambda rng, n: -np.sort(-np.abs(rng.normal(size=n))),
}


@settings(max_examples=150, deadline=None, derandomize=True)
@given(
    st.sampled_from(list(KINDS)),
    st.sampled_from([np.float32, np.float64]),
    st.integers(0, 2**32 - 1),
    st.lists(st.integers(1, 900), min_size=1, max_size=4),
    st.lists(st.floats(0, 1), min_size=1, max_size=3),
)
def test_equals_a_full_sort(
    kind: str, dtype: type, seed: int, sizes: list[int], shares: list[float]
) -> None:
    """With small pieces and a small bound, so that short series are sampled in several runs."""
    rng = np.random.default_rng(seed)
    total = sum(sizes)
    series = [KINDS[kind](rng, total).astype(dtype) for _ in shares]
    edges = np.cumsum(sizes)[:-1]
    parameters = zip(*(np.split(one, edges) for one in series), strict=True)
    work = torch.float64 if dtype is np.float64 else torch.float32
    with (
        mock.patch.object(selection, "_FEW", 200),
        mock.patch.object(pieces_module, "CPU_SIZE", 96),
    ):
        pieces = pieces_of(*parameters, dtype=work)
        counts = [round(share * total) for share in shares]
        assert check(pieces, series, counts) <= 3


@pytest.mark.parametrize("size", [1, 2, 300, (1 << 18) - 1, 1 << 18, (1 << 18) + 1, 500_001])
@pytest.mark.parametrize("kind", ["distinct", "bfloat16"])
def test_sizes_around_the_bound_from_which_a_sample_is_drawn(size: int, kind: str) -> None:
    values = KINDS[kind](np.random.default_rng(size), size).astype(np.float32)
    counts = sorted({1, min(2, size), kept(0.2, size), max(1, size - 1), size})
    assert check(pieces_of([values] * len(counts)), [values] * len(counts), counts) <= 1


def test_none_and_all_need_no_pass() -> None:
    values = np.array([1.0, -2.0, 0.0, 2.0], np.float32)
    assert check(pieces_of([values, values]), [values, values], [0, 4]) == 0


def test_equal_magnitudes_at_the_threshold_are_kept_from_the_first_place() -> None:
    first, second = np.array([3.0, -2.0, 2.0], np.float32), np.array([-2.0, 5.0, 2.0], np.float32)
    found = thresholds(pieces_of([first], [second]), series_of, [4])
    # 5, 3 and of the four that are 2 the first two, in places 1 and 2.
    [result] = apply(pieces_of([first], [second]), found)
    assert result.tolist() == [3.0, -2.0, 2.0, 0.0, 5.0, 0.0]
    assert found == [Threshold(2.0, 3)]


def test_rows_are_kept_in_their_shape() -> None:
    values = np.random.default_rng(0).integers(-9, 10, (40, 25)).astype(np.float32)
    pieces = pieces_of([values], unit="rows")
    assert check(pieces, [values.ravel()], [333]) == 1


@pytest.mark.parametrize("scale_of", ["columns", "rows", "pieces"])
def test_structured_parameters_take_one_pass(scale_of: str) -> None:
    """Channels and layers have magnitudes of their own, which a sample in one place would miss."""
    rng = np.random.default_rng(5)
    values = rng.normal(size=(256, 4096)).astype(np.float32)
    if scale_of == "columns":
        values[:, :1024] *= 3
    elif scale_of == "rows":
        values *= rng.lognormal(0, 0.3, (256, 1)).astype(np.float32)
    else:
        values *= np.linspace(0.2, 3, 256, dtype=np.float32)[:, None]
    counts = [kept(density, values.size) for density in (0.05, 0.2, 0.5, 0.9)]
    assert check(pieces_of([values] * 4), [values.ravel()] * 4, counts) == 1


@pytest.mark.parametrize("lie", [0.0, 1e-3, 1.0, 50.0, 1e6])
@pytest.mark.parametrize("kind", ["distinct", "bfloat16", "zeros"])
@pytest.mark.parametrize("density", [0.001, 0.3, 0.999])
def test_a_sample_that_misleads_costs_passes_but_not_exactness(
    lie: float, kind: str, density: float
) -> None:
    rng = np.random.default_rng(1)
    values = KINDS[kind](rng, 300_000).astype(np.float32)
    pieces = pieces_of([values])
    lies = torch.from_numpy(lie * values[:5000])
    pieces.sampled = [Piece(None, [lies], next(iter(pieces)).context)]
    assert check(pieces, [values], [kept(density, values.size)]) <= 3


def recorded(pieces: Pieces, k: int) -> list[tuple[int, int]]:
    """Return how many values were inside the bracket of each pass, and how many gathered."""
    seen = []

    class Recorded(selection._Search):
        def finish(self) -> selection.Threshold | None:
            seen.append((sum(self._counts), sum(map(len, self._values))))
            return super().finish()

    with mock.patch.object(selection, "_Search", Recorded):
        thresholds(pieces, series_of, [k])
    return seen


@pytest.mark.parametrize("value", [0.0, 0.125])
def test_a_frozen_parameter_is_counted_and_not_gathered(value: float) -> None:
    values = np.full(400_000, value, np.float32)
    values[::1000] = 1.0
    assert recorded(pieces_of([values]), 80_000) == [(399_600, 0)]


def test_the_extreme_magnitudes_of_the_type_survive() -> None:
    tiny, huge = 1e-45, 3.4e38  # the smallest subnormal and near the largest number
    values = np.array([tiny, -huge, 0.0, tiny, huge, 1.0], np.float32)
    for k in range(7):
        check(pieces_of([values]), [values], [k])


@pytest.mark.parametrize(
    ("density", "count", "expected"),
    [(0.2, 10, 2), (0.25, 10, 2), (0.29, 10, 2), (1e-9, 10, 1), (1.0, 7, 7), (0.5, 1, 1)],
)
def test_kept_rounds_down_and_keeps_one(density: float, count: int, expected: int) -> None:
    assert kept(density, count) == expected


def test_the_bracket_is_narrow() -> None:
    """What is gathered is a small part, which is what makes selection faster than sorting."""
    values = np.random.default_rng(2).normal(size=1 << 20).astype(np.float32)
    [(inside, gathered)] = recorded(pieces_of([values]), kept(0.2, values.size))
    assert inside == gathered
    # Four standard errors of a share of 0.2 in a 64th, to either side.
    expected = 2 * 4 * 0.4 * math.sqrt(values.size * 64)
    assert 0.5 * expected < inside < 2 * expected
