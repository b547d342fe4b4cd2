"""DARE-linear against its formula in float64 numpy, and its relation to other methods."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from common.errors import UserError
from merges.arithmetic.masks import keep_mask
from merges.engine.run import merge_tensors

NAME = "model.layers.0.mlp.up_proj.weight"
NAMES = ("a", "b", "c")


def models(seed: int, shape: tuple[int, ...], count: int = 3) -> tuple[np.ndarray, list]:
    rng = np.random.default_rng(seed)
    base = rng.normal(size=shape)
    return base, [base + 0.3 * rng.normal(size=shape) for _ in range(count)]


def merged(
    base: np.ndarray, experts: list, seed: int = 0, method: str = "dare_linear", **p: object
) -> np.ndarray:
    tensors = {n: {NAME: torch.tensor(x)} for n, x in zip(NAMES, experts, strict=False)}
    return merge_tensors(method, {NAME: torch.tensor(base)}, tensors, p, seed=seed)[NAME].numpy()


def oracle(
    base: np.ndarray,
    experts: list,
    seed: int,
    density: float = 0.5,
    scale: float = 1.0,
    weights: list[float] | None = None,
    rescale: str = "density",
    normalize: bool = False,
) -> np.ndarray:
    weights = weights or [1.0] * len(experts)
    total = np.zeros_like(base)
    for name, expert, weight in zip(NAMES, experts, weights, strict=False):
        delta = expert - base
        mask = keep_mask((seed, name, NAME), 0, base.size, density).numpy().reshape(base.shape)
        factor = 1 / density
        if rescale == "l1":
            factor = np.abs(delta).sum() / np.abs(delta[mask]).sum()
        total += weight * delta * mask * factor
    return base + scale * total / (sum(weights) if normalize else 1)


@pytest.mark.parametrize("shape", [(7, 12), (5,), (3, 4, 2), (90_000,), (70, 1100)])
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"density": 0.1, "scale": -0.4},
        {"density": 0.9, "rescale": "l1", "weights": [0.5, -1.0, 2.0]},
        {"density": 0.3, "weights": [1.0, 2.0, 0.5], "normalize": True},
        {"density": 1.0, "rescale": "l1"},
    ],
)
def test_equals_the_formula(shape: tuple[int, ...], settings: dict) -> None:
    base, experts = models(1, shape)
    if settings.get("rescale") == "l1" and shape == (5,):
        settings = {**settings, "density": 1.0}  # nothing may be kept of so few
    expected = oracle(base, experts, 5, **settings)
    found = merged(base, experts, 5, **settings)
    np.testing.assert_allclose(found, expected, rtol=1e-12, atol=1e-14)


def test_density_one_is_task_arithmetic() -> None:
    base, experts = models(2, (6, 9))
    settings = {"scale": 0.7, "weights": [1.0, -0.5, 2.0]}
    expected = merged(base, experts, method="task_arithmetic", **settings)
    np.testing.assert_allclose(merged(base, experts, density=1.0, **settings), expected, rtol=1e-13)


def test_scale_zero_gives_the_base_and_a_single_expert_of_density_one_itself() -> None:
    base, experts = models(3, (6, 9))
    np.testing.assert_array_equal(merged(base, experts, scale=0.0), base)
    np.testing.assert_allclose(merged(base, experts[:1], density=1.0), experts[0], rtol=1e-13)


def test_order_of_experts_changes_no_bit() -> None:
    base, experts = models(4, (6, 9))
    one = {n: {NAME: torch.tensor(x)} for n, x in zip(NAMES, experts, strict=True)}
    other = {n: one[n] for n in ("c", "a", "b")}
    weights = {"a": 0.1, "b": 0.2, "c": 0.7}
    results = [
        merge_tensors("dare_linear", {NAME: torch.tensor(base)}, given, {"weights": weights})[NAME]
        for given in (one, other)
    ]
    assert torch.equal(*results)


def test_masks_are_those_of_dare_ties() -> None:
    base, experts = models(5, (40, 40), 1)
    expected = merged(base, experts, 9, method="dare_ties", density=0.3)
    np.testing.assert_array_equal(merged(base, experts, 9, density=0.3), expected)


def test_is_unbiased_over_seeds() -> None:
    base, experts = models(6, (20, 20), 2)
    mean = sum(merged(base, experts, seed, density=0.25) for seed in range(400)) / 400
    deltas = [expert - base for expert in experts]
    # A kept entry is 4 d with probability 1/4: variance 3 d^2; six standard errors of the mean.
    error = 6 * np.sqrt(3 * sum(delta**2 for delta in deltas) / 400)
    assert (np.abs(mean - base - sum(deltas)) <= error).all()


@pytest.mark.parametrize("rescale", ["density", "l1"])
def test_experts_equal_to_the_base_give_it(rescale: str) -> None:
    base, _ = models(7, (6, 9))
    np.testing.assert_array_equal(merged(base, [base, base], rescale=rescale), base)


def test_weights_that_sum_to_zero_cannot_be_normalised() -> None:
    base, experts = models(8, (3, 4))
    with pytest.raises(UserError, match="sum to 0"):
        merged(base, experts, weights=[1.0, 1.0, -2.0], normalize=True)
