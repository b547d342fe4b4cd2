"""Random masks: their probability, and that nothing but stream and position decides them."""

from __future__ import annotations

import math
import threading
from fractions import Fraction

import numpy as np
import pytest
import torch

from merges.arithmetic import masks
from merges.arithmetic.masks import keep_mask, uniform

STREAM = (7, "math", "model.layers.0.mlp.up_proj.weight")
OTHERS = [(8, *STREAM[1:]), (7, "code", STREAM[2]), (7, "math", "model.norm.weight")]


@pytest.mark.parametrize("density", [0.001, 0.1, 0.3, 0.5, 0.75, 0.9, 0.999])
def test_density_is_that_of_a_binomial(density: float) -> None:
    count = 400_000
    kept = int(keep_mask(STREAM, 0, count, density).sum())
    assert abs(kept - count * density) < 5 * math.sqrt(count * density * (1 - density))


def test_neighbours_are_independent() -> None:
    """Bytes of one word of the generator share it; the mask must not show that."""
    mask = keep_mask(STREAM, 0, 400_000, 0.3).double().numpy() - 0.3
    for lag in (1, 2, 3, 4, 7, 8, 16, 64):
        correlation = np.mean(mask[lag:] * mask[:-lag]) / 0.21
        assert abs(correlation) < 5 / math.sqrt(len(mask) - lag)


@pytest.mark.parametrize("other", OTHERS)
@pytest.mark.parametrize("density", [0.3, 0.3 / 256])  # the latter by the additional bits alone
def test_streams_are_independent(other: tuple[int, str, str], density: float) -> None:
    count = 1_000_000
    one, two = (keep_mask(stream, 0, count, density).numpy() for stream in (STREAM, other))
    both = int((one & two).sum())
    expected = count * density**2
    assert abs(both - expected) < 5 * math.sqrt(expected) + 5


@pytest.mark.parametrize("draw", [keep_mask, uniform])
def test_a_position_does_not_know_where_its_piece_begins(draw: object) -> None:
    more = (0.41,) if draw is keep_mask else ()
    whole = draw(STREAM, 0, 5000, *more)
    for start, count in [(0, 1), (1, 7), (3, 64), (8, 8), (4999, 1), (127, 4000), (5, 0), (2, 9)]:
        assert torch.equal(draw(STREAM, start, count, *more), whole[start : start + count])


def test_far_positions_are_reached_without_drawing_what_lies_before() -> None:
    far = 10**15 + 5
    ahead = keep_mask(STREAM, far - 3, 100, 0.5)
    assert torch.equal(keep_mask(STREAM, far, 97, 0.5), ahead[3:])
    assert not torch.equal(keep_mask(STREAM, 0, 97, 0.5), ahead[3:])


def test_kinds_of_draws_and_streams_may_alternate() -> None:
    """A thread's generators are remembered between calls, which must not show."""
    expected = [(keep_mask(s, 0, 999, 0.6), uniform(s, 0, 999)) for s in (STREAM, *OTHERS)]
    for start in (500, 13, 900, 0):
        for stream, (mask, draws) in zip((STREAM, *OTHERS), expected, strict=True):
            assert torch.equal(uniform(stream, start, 99), draws[start : start + 99])
            assert torch.equal(keep_mask(stream, start, 99, 0.6), mask[start : start + 99])


def test_more_streams_than_are_remembered() -> None:
    streams = [(seed, "a", "x") for seed in range(2 * masks._KEPT)]
    first = [keep_mask(stream, 0, 40, 0.5) for stream in streams]
    for stream, mask in zip(streams, first, strict=True):
        assert torch.equal(keep_mask(stream, 8, 32, 0.5), mask[8:])


def test_threads_draw_the_same() -> None:
    expected = keep_mask(STREAM, 0, 200_000, 0.5)
    parts: dict[int, torch.Tensor] = {}

    def draw(number: int) -> None:
        parts[number] = torch.cat(
            [keep_mask(STREAM, start, 1000, 0.5) for start in range(number, 200_000, 50_000)]
        )

    threads = [threading.Thread(target=draw, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for number, part in parts.items():
        pieces = [expected[start : start + 1000] for start in range(number, 200_000, 50_000)]
        assert torch.equal(part, torch.cat(pieces))


def test_how_much_is_drawn_at_once_does_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = keep_mask(STREAM, 3, 1000, 0.4)
    monkeypatch.setattr(masks, "_CHUNK", 64)
    assert torch.equal(keep_mask(STREAM, 3, 1000, 0.4), whole)


@pytest.mark.parametrize("count", [0, 1, 7, 8, 9, 1000, 1003])
@pytest.mark.parametrize("share", [0.0, 0.004, 0.5, 1.0])
def test_rare_places_are_those_that_numpy_finds(count: int, share: float) -> None:
    rare = np.random.default_rng(count).random(count) < share
    found = masks._places(rare)
    np.testing.assert_array_equal(found, np.flatnonzero(rare))
    assert found.dtype == np.int64


def test_density_one_keeps_all() -> None:
    assert keep_mask(STREAM, 0, 1000, 1.0).all()


@pytest.mark.parametrize("density", [1e-4, 1e-6])
def test_a_tiny_density_is_not_rounded_to_zero(density: float) -> None:
    count = round(200 / density) if density > 1e-5 else 8_000_000
    kept = int(keep_mask(STREAM, 0, count, density).sum())
    assert abs(kept - count * density) < 5 * math.sqrt(count * density) + 1


@pytest.mark.parametrize("density", [0.3, 0.5, 1 / 3, 1e-9, 1 - 2**-53, 0.9, 2.0**-60])
def test_the_probability_is_the_density_exactly(
    density: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every byte once, and for the one that leaves it open the two hashes around the limit."""
    whole = math.floor(density * 256)
    rest = Fraction(density) * 256 - whole  # of 2^53 hashes of 53 bits so many must keep it
    limit = math.floor(rest * 2**53)
    monkeypatch.setattr(masks, "_draws", lambda *_: np.arange(256, dtype=np.uint8))

    def kept_with(hashed: int) -> list[bool]:
        monkeypatch.setattr(masks, "_hash", lambda v: np.full_like(v, hashed << 11 | 0x7FF))
        return keep_mask(STREAM, 0, 256, density).tolist()

    open_one = kept_with(limit)
    assert open_one == [byte < whole for byte in range(256)]
    if limit:
        assert kept_with(limit - 1) == [byte <= whole for byte in range(256)]
    probability = Fraction(whole, 256) + Fraction(limit, 2**53 * 256)
    assert abs(probability - Fraction(density)) < Fraction(1, 2**61)


def test_a_case_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    # 0.3 * 256 = 76.8: bytes to 75 are kept, 77 and above not, 76 for 0.8 of the hashes.
    monkeypatch.setattr(masks, "_draws", lambda *_: np.array([75, 76, 76, 77, 0, 255], np.uint8))
    monkeypatch.setattr(
        masks, "_hash", lambda v: np.array([0.79 * 2**64, 0.81 * 2**64], dtype=np.uint64)
    )
    assert keep_mask(STREAM, 0, 6, 0.3).tolist() == [True, True, False, False, True, False]


def test_uniform_draws_fill_the_unit_interval_evenly() -> None:
    draws = uniform(STREAM, 0, 1_000_000)
    assert draws.dtype == torch.float32
    assert float(draws.min()) >= 0
    assert float(draws.max()) < 1
    cells = np.bincount((draws.double().numpy() * 100).astype(int), minlength=100)
    assert len(cells) == 100
    # Chi-square of 99 degrees of freedom: mean 99, standard deviation 14.
    assert np.sum((cells - 10_000) ** 2 / 10_000) < 99 + 5 * 14.1
    assert (draws.double() * 2**24 % 1 == 0).all()


def test_uniform_draws_of_streams_are_independent() -> None:
    count = 400_000
    first = uniform(STREAM, 0, count).double().numpy()
    for other in OTHERS:
        second = uniform(other, 0, count).double().numpy()
        assert abs(np.corrcoef(first, second)[0, 1]) < 5 / math.sqrt(count)
