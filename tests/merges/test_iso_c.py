"""Iso-C against numpy's singular value decomposition."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from merges.engine.run import merge_tensors

NAME = "model.layers.0.self_attn.q_proj.weight"


def merged(base: np.ndarray, experts: list[np.ndarray], **parameters: object) -> np.ndarray:
    tensors = {f"e{i}": {NAME: torch.tensor(x)} for i, x in enumerate(experts)}
    return merge_tensors("iso_c", {NAME: torch.tensor(base)}, tensors, parameters)[NAME].numpy()


@pytest.mark.parametrize("form", ["gram", "exact"])
@pytest.mark.parametrize("shape", [(40, 25), (25, 40), (24, 24), (2000, 10)])
@pytest.mark.parametrize("count", [1, 3, 8])
def test_formula(form: str, shape: tuple[int, int], count: int) -> None:
    rng = np.random.default_rng(count)
    base = rng.normal(size=shape)
    experts = [base + 0.3 * rng.normal(size=shape) for _ in range(count)]
    total = sum(x - base for x in experts)
    left, values, right = np.linalg.svd(total, full_matrices=False)
    step = values.mean() * left @ right
    np.testing.assert_allclose(
        merged(base, experts, scale=1.3, svd=form), base + 1.3 * step, atol=1e-8
    )
    np.testing.assert_allclose(
        merged(base, experts, combine="mean", svd=form), base + step / count, atol=1e-8
    )


@pytest.mark.parametrize("form", ["gram", "exact"])
def test_an_even_spectrum_stays(form: str) -> None:
    rng = np.random.default_rng(2)
    base = rng.normal(size=(12, 12))
    rotation, _ = np.linalg.qr(rng.normal(size=(12, 12)))
    experts = [base + 0.5 * rotation, base + 1.5 * rotation]
    np.testing.assert_allclose(merged(base, experts, svd=form), base + 2 * rotation, atol=1e-9)


@pytest.mark.parametrize("form", ["gram", "exact"])
def test_counted_by_hand(form: str) -> None:
    """Singular values 6, 2 and none: the mean of all three goes to the first two."""
    base = np.ones((4, 3))
    first, second = np.zeros((4, 3)), np.zeros((4, 3))
    first[0, 1], second[2, 0] = 6.0, -2.0
    expected = base.copy()
    expected[0, 1] += 8 / 3
    expected[2, 0] -= 8 / 3
    given = merged(base, [base + first, base + second], svd=form)
    np.testing.assert_allclose(given, expected, atol=1e-12)


def test_larger_task_vectors_scale_the_result() -> None:
    rng = np.random.default_rng(4)
    base = np.zeros((9, 14))
    experts = [rng.normal(size=(9, 14)) for _ in range(3)]
    tripled = merged(base, [3 * x for x in experts])
    np.testing.assert_allclose(tripled, 3 * merged(base, experts), atol=1e-9)
