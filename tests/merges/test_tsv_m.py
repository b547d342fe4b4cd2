"""TSV-Merge against numpy's singular value decomposition."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from merges.engine.run import merge_tensors

NAME = "model.layers.0.self_attn.q_proj.weight"


def models(seed: int, count: int, shape: tuple[int, int]) -> tuple[np.ndarray, list[np.ndarray]]:
    rng = np.random.default_rng(seed)
    base = rng.normal(size=shape)
    return base, [base + 0.3 * rng.normal(size=shape) for _ in range(count)]


def merged(base: np.ndarray, experts: list[np.ndarray], **parameters: object) -> np.ndarray:
    tensors = {f"e{i}": {NAME: torch.tensor(x)} for i, x in enumerate(experts)}
    return merge_tensors("tsv_m", {NAME: torch.tensor(base)}, tensors, parameters)[NAME].numpy()


def orthonormal(matrix: np.ndarray) -> np.ndarray:
    left, values, right = np.linalg.svd(matrix, full_matrices=False)
    there = values > 1e-9
    return left[:, there] @ right[there]


def oracle(base: np.ndarray, experts: list[np.ndarray], kept: int, **p: object) -> np.ndarray:
    weights = p.get("weights") or [1.0] * len(experts)
    lefts, values, rights = [], [], []
    for weight, expert in zip(weights, experts, strict=True):
        left, value, right = np.linalg.svd(weight * (expert - base), full_matrices=False)
        lefts.append(left[:, :kept])
        values.append(value[:kept])
        rights.append(right[:kept].T)
    left = orthonormal(np.concatenate(lefts, axis=1))
    right = orthonormal(np.concatenate(rights, axis=1))
    return base + p.get("scale", 1.0) * left * np.concatenate(values) @ right.T


@pytest.mark.parametrize("form", ["gram", "exact"])
@pytest.mark.parametrize("shape", [(40, 25), (25, 40), (24, 24)])
@pytest.mark.parametrize("count", [2, 3, 8])
def test_formula(form: str, shape: tuple[int, int], count: int) -> None:
    base, experts = models(count, count, shape)
    expected = oracle(base, experts, min(shape) // count, scale=0.7)
    np.testing.assert_allclose(merged(base, experts, scale=0.7, svd=form), expected, atol=1e-9)


def test_weights_and_lossless_variant() -> None:
    base, experts = models(3, 3, (30, 18))
    weights = [1.0, -0.5, 2.0]
    given = merged(base, experts, weights=dict(zip(("e0", "e1", "e2"), weights, strict=True)))
    np.testing.assert_allclose(given, oracle(base, experts, 6, weights=weights), atol=1e-9)
    # More directions of the tasks than the matrix has.
    np.testing.assert_allclose(
        merged(base, experts, rank_share=1.0), oracle(base, experts, 18), atol=1e-9
    )
    np.testing.assert_allclose(
        merged(base, experts, rank_share=0.5), oracle(base, experts, 9), atol=1e-9
    )


@pytest.mark.parametrize("form", ["gram", "exact"])
def test_one_expert_is_itself(form: str) -> None:
    base, experts = models(5, 1, (17, 31))
    np.testing.assert_allclose(merged(base, experts, svd=form), experts[0], atol=1e-9)


@pytest.mark.parametrize("form", ["gram", "exact"])
@pytest.mark.parametrize("count", [2, 4])
def test_equal_experts_are_the_best_approximation_of_their_rank(form: str, count: int) -> None:
    base, experts = models(7, 1, (40, 24))
    left, values, right = np.linalg.svd(experts[0] - base, full_matrices=False)
    kept = 24 // count
    expected = base + left[:, :kept] * values[:kept] @ right[:kept]
    np.testing.assert_allclose(merged(base, experts * count, svd=form), expected, atol=1e-9)


def test_experts_without_interference_add_up() -> None:
    """Blocks of the matrix that share neither rows nor columns, each of low rank."""
    rng = np.random.default_rng(9)
    base = rng.normal(size=(30, 24))
    deltas = [np.zeros((30, 24)) for _ in range(3)]
    for i, delta in enumerate(deltas):
        block = rng.normal(size=(10, 2)) @ rng.normal(size=(2, 8))
        delta[10 * i : 10 * i + 10, 8 * i : 8 * i + 8] = block
    given = merged(base, [base + delta for delta in deltas])
    np.testing.assert_allclose(given, base + sum(deltas), atol=1e-9)


def test_an_expert_equal_to_the_base_changes_the_rank_only() -> None:
    base, experts = models(2, 2, (28, 20))
    given = merged(base, [*experts, base])
    np.testing.assert_allclose(given, oracle(base, experts, 20 // 3), atol=1e-9)


def test_more_experts_than_directions() -> None:
    base, experts = models(1, 5, (3, 12))
    np.testing.assert_allclose(merged(base, experts), oracle(base, experts, 1), atol=1e-9)
