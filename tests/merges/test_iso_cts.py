"""Iso-CTS against numpy's singular value decomposition."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from merges.engine.run import merge_tensors
from merges.methods.iso_cts import dimensions

NAME = "model.layers.0.self_attn.q_proj.weight"


def models(seed: int, count: int, shape: tuple[int, int]) -> tuple[np.ndarray, list[np.ndarray]]:
    rng = np.random.default_rng(seed)
    base = rng.normal(size=shape)
    return base, [base + 0.3 * rng.normal(size=shape) for _ in range(count)]


def merged(
    base: np.ndarray, experts: list[np.ndarray], method: str = "iso_cts", **parameters: object
) -> np.ndarray:
    tensors = {f"e{i}": {NAME: torch.tensor(x)} for i, x in enumerate(experts)}
    return merge_tensors(method, {NAME: torch.tensor(base)}, tensors, parameters)[NAME].numpy()


def orthonormal(matrix: np.ndarray) -> np.ndarray:
    left, _, right = np.linalg.svd(matrix, full_matrices=False)
    return left @ right


def oracle(
    base: np.ndarray, experts: list[np.ndarray], shared: int, each: int, scale: float = 1.0
) -> np.ndarray:
    deltas = [x - base for x in experts]
    left, value, right = np.linalg.svd(sum(deltas), full_matrices=False)
    space = left[:, :shared]
    lefts, values, rights = [space], [value[:shared]], [right[:shared].T]
    for delta in deltas:
        left, value, right = np.linalg.svd(delta - space @ space.T @ delta, full_matrices=False)
        lefts.append(left[:, :each])
        values.append(value[:each])
        rights.append(right[:each].T)
    even = np.concatenate(values).mean()
    left, right = (orthonormal(np.concatenate(side, axis=1)) for side in (lefts, rights))
    return base + scale * even * left @ right.T


@pytest.mark.parametrize("form", ["gram", "exact"])
@pytest.mark.parametrize(
    ("shape", "count", "common", "shared", "each"),
    [
        ((40, 25), 3, 0.8, 19, 2),  # 25 - 20 = 5, 5 / 3 rounds to 2
        ((25, 40), 2, 0.8, 21, 2),  # 5 / 2 rounds to the even 2
        ((24, 24), 4, 0.5, 12, 3),
        ((30, 26), 8, 0.8, 18, 1),  # 26 - 20 = 6, 6 / 8 rounds to 1
    ],
)
def test_formula(
    form: str, shape: tuple[int, int], count: int, common: float, shared: int, each: int
) -> None:
    base, experts = models(count, count, shape)
    expected = oracle(base, experts, shared, each, scale=1.2)
    given = merged(base, experts, common=common, scale=1.2, svd=form)
    np.testing.assert_allclose(given, expected, atol=1e-7)


@pytest.mark.parametrize("size", [1, 2, 7, 25, 4096])
@pytest.mark.parametrize("experts", [1, 2, 3, 8])
@pytest.mark.parametrize("common", [0.0, 0.3, 0.8, 1.0])
def test_the_directions_add_up(size: int, experts: int, common: float) -> None:
    shared, each = dimensions(size, experts, common)
    assert shared >= 0
    assert each >= 0
    assert shared + each * experts == size
    assert abs(shared - size * common) <= experts / 2 + 1 or each == size // experts


@pytest.mark.parametrize("parameters", [{"common": 1.0}, {}])
def test_with_common_directions_alone_it_is_iso_c(parameters: dict[str, float]) -> None:
    base, experts = models(6, 3 if parameters else 1, (20, 14))
    np.testing.assert_allclose(
        merged(base, experts, **parameters), merged(base, experts, "iso_c"), atol=1e-9
    )


@pytest.mark.parametrize("form", ["gram", "exact"])
def test_counted_by_hand(form: str) -> None:
    """Two common directions (6 and 1), one of the second task (0.5), none left of the first."""
    rng = np.random.default_rng(3)
    left, _ = np.linalg.qr(rng.normal(size=(5, 4)))
    right, _ = np.linalg.qr(rng.normal(size=(4, 4)))
    base = np.zeros((5, 4))
    experts = [left * values @ right.T for values in ([3, 1, 0, 0], [3, 0, 0.5, 0])]
    expected = 7.5 / 4 * left[:, :3] @ right[:, :3].T
    given = merged(base, experts, common=0.5, svd=form)
    np.testing.assert_allclose(given, expected, atol=1e-7)
