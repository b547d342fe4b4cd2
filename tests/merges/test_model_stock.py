"""Model Stock against the paper's equation, and the geometry that it comes from."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch

from common.errors import UserError
from merges.engine.run import merge_tensors


def merged(base: np.ndarray, experts: list[np.ndarray], **p: object) -> np.ndarray:
    wrapped = {f"e{n}": {"w": torch.tensor(x)} for n, x in enumerate(experts)}
    return merge_tensors("model_stock", {"w": torch.tensor(base)}, wrapped, p)["w"].numpy()


def ratio(deltas: list[np.ndarray], average: str, floor: float) -> float:
    cosines = []
    for one, two in itertools.combinations(deltas, 2):
        scale = max(np.linalg.norm(one) * np.linalg.norm(two), floor)
        cosines.append((one * two).sum() / scale)
    cosine = np.mean(cosines)
    if average == "angles":
        cosine = math.cos(np.mean([math.acos(c) for c in cosines]))
    return len(deltas) * cosine / (1 + (len(deltas) - 1) * cosine)


def oracle(
    base: np.ndarray, experts: list[np.ndarray], along: str, average: str, floor: float
) -> np.ndarray:
    deltas, mean = [x - base for x in experts], np.mean(experts, axis=0)
    if along == "tensor" or base.ndim == 1:
        t = ratio(deltas, average, floor)
        return t * mean + (1 - t) * base
    result = np.zeros_like(base)
    for place in np.ndindex(base.shape[:-1]):
        t = ratio([delta[place] for delta in deltas], average, floor)
        result[place] = t * mean[place] + (1 - t) * base[place]
    return result


def models(
    shape: tuple[int, ...], count: int, size: float = 1.0
) -> tuple[np.ndarray, list[np.ndarray]]:
    rng = np.random.default_rng(count)
    base, common = rng.normal(size=shape), rng.normal(size=shape)
    steps = [(n + 1) * (common + 0.8 * rng.normal(size=shape)) for n in range(count)]
    return base, [base + size * step for step in steps]


@pytest.mark.parametrize("shape", [(9,), (300, 401), (4, 5, 6)])
@pytest.mark.parametrize("count", [2, 3, 8])
@pytest.mark.parametrize("along", ["tensor", "rows"])
@pytest.mark.parametrize("average", ["angles", "cosines"])
def test_equals_the_equation(shape: tuple[int, ...], count: int, along: str, average: str) -> None:
    base, experts = models(shape, count)
    expected = oracle(base, experts, along, average, 0.0)
    found = merged(base, experts, along=along, average=average)
    np.testing.assert_allclose(found, expected, rtol=1e-10, atol=1e-11)


def test_two_experts_lead_to_the_foot_of_the_perpendicular() -> None:
    """With task vectors of one length, the paper's figure: w_H is the base's projection of the
    centre, and the centre is as far from each expert in a direction perpendicular to all others.
    """
    rng = np.random.default_rng(0)
    centre, one, two = rng.normal(size=(3, 400))
    one -= (one @ centre) / (centre @ centre) * centre
    two -= (two @ centre) / (centre @ centre) * centre
    two -= (two @ one) / (one @ one) * one
    two *= np.linalg.norm(one) / np.linalg.norm(two)
    # The experts lie around the centre, perpendicular to it and to each other; the base is 0.
    experts = [centre + one, centre + two]
    found = merged(np.zeros(400), experts)
    mean = (experts[0] + experts[1]) / 2
    t = (mean @ centre) / (mean @ mean)  # the point of the line base-mean nearest to the centre
    np.testing.assert_allclose(found, t * mean, rtol=1e-12)


@pytest.mark.parametrize("along", ["tensor", "rows"])
def test_a_floor_counts_for_short_task_vectors_only(along: str) -> None:
    base, experts = models((6, 7), 3, size=1e-5)
    floored = merged(base, experts, along=along, floor=1e-6)
    np.testing.assert_allclose(
        floored - base, oracle(base, experts, along, "angles", 1e-6) - base, rtol=1e-6, atol=1e-15
    )
    assert (
        np.abs(floored - base).max() < 0.1 * np.abs(merged(base, experts, along=along) - base).max()
    )


@pytest.mark.parametrize("along", ["tensor", "rows"])
def test_base_experts_and_perpendicular_ones(along: str) -> None:
    base, experts = models((5, 6), 2)
    assert (merged(base, [base, base, base], along=along) == base).all()
    np.testing.assert_allclose(
        merged(base, [experts[0]] * 3, along=along), experts[0], rtol=1e-13, atol=1e-14
    )
    # A zero task vector is perpendicular, and two opposite ones have no finite ratio.
    assert (merged(base, [experts[0], base], along=along) == base).all()
    zero = np.zeros((5, 6))
    assert (merged(zero, [experts[0], -2 * experts[0]], along=along) == 0).all()


def test_more_than_perpendicular_leads_away() -> None:
    """The cosine -1/2 of two experts gives t = -2."""
    experts = [np.array([1.0, 0.0]), np.array([-0.5, math.sqrt(0.75)])]
    np.testing.assert_allclose(
        merged(np.zeros(2), experts), -(experts[0] + experts[1]), rtol=1e-12, atol=1e-15
    )


@pytest.mark.parametrize("along", ["tensor", "rows"])
def test_order_and_count(along: str) -> None:
    base, experts = models((20, 30), 3)
    names = {"e2": 2, "e0": 0, "e1": 1}
    shuffled = {name: {"w": torch.tensor(experts[n])} for name, n in names.items()}
    other = merge_tensors("model_stock", {"w": torch.tensor(base)}, shuffled, {"along": along})
    assert (other["w"].numpy() == merged(base, experts, along=along)).all()
    with pytest.raises(UserError, match="at least two"):
        merged(base, experts[:1], along=along)
