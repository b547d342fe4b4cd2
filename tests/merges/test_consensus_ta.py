"""Consensus Task Arithmetic against the masks of the paper, entry by entry."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from merges.engine.run import merge_tensors

NAME = "model.layers.0.mlp.up_proj.weight"
MANY = (300, 257)  # more values than one piece holds


def models(seed: int, count: int, shape: tuple[int, ...]) -> tuple[np.ndarray, list[np.ndarray]]:
    """A base and experts, of which many entries stay as they are."""
    rng = np.random.default_rng(seed)
    base = rng.normal(size=shape)
    steps = [rng.normal(size=shape) * (rng.random(shape) < 0.7) for _ in range(count)]
    return base, [base + 0.1 * step for step in steps]


def merged(
    base: np.ndarray,
    experts: list[np.ndarray],
    dtype: torch.dtype = torch.float64,
    **parameters: object,
) -> np.ndarray:
    return (
        merge_tensors(
            "consensus_ta",
            {NAME: torch.tensor(base).to(dtype)},
            {f"e{i}": {NAME: torch.tensor(x).to(dtype)} for i, x in enumerate(experts)},
            parameters,
        )[NAME]
        .double()
        .numpy()
    )


def ties_sum(deltas: list[np.ndarray], density: float) -> np.ndarray:
    """The disjoint sum of what a full stable sort keeps."""
    trimmed = []
    for delta in deltas:
        flat = delta.ravel()
        order = np.lexsort((np.arange(flat.size), -np.abs(flat)))
        mask = np.zeros(flat.size)
        mask[order[: max(1, math.floor(density * flat.size))]] = 1
        trimmed.append((flat * mask).reshape(delta.shape))
    sign = np.where(sum(trimmed) >= 0, 1.0, -1.0)
    return sum(np.where(t * sign > 0, t, 0.0) for t in trimmed)


def oracle(base: np.ndarray, experts: list[np.ndarray], **p: object) -> np.ndarray:
    deltas = [x - base for x in experts]
    total = ties_sum(deltas, p.get("density", 0.2)) if p.get("merge") == "ties" else sum(deltas)
    factors = p.get("mask_lambda", 0.4)
    factors = factors if isinstance(factors, list) else [factors] * len(experts)
    compare = np.greater_equal if p.get("equal") == "kept" else np.greater
    votes = sum(
        compare(np.abs(d), f * np.abs(total - d)) for d, f in zip(deltas, factors, strict=True)
    )
    return base + p.get("scale", 0.4) * total * (votes >= p.get("min_tasks", 2))


@pytest.mark.parametrize("shape", [(5,), (7, 12), (2, 3, 4), MANY])
@pytest.mark.parametrize("count", [1, 2, 3, 8])
@pytest.mark.parametrize(
    "parameters",
    [
        {},
        {"min_tasks": 1, "mask_lambda": 0.2, "scale": 1.0},
        {"min_tasks": 3, "equal": "kept"},
        {"merge": "ties", "density": 0.3},
    ],
)
def test_formula(count: int, shape: tuple[int, ...], parameters: dict[str, object]) -> None:
    base, experts = models(count, count, shape)
    expected = oracle(base, experts, **parameters)
    np.testing.assert_allclose(merged(base, experts, **parameters), expected, rtol=0, atol=1e-13)


def test_masks_have_a_lambda_each() -> None:
    base, experts = models(5, 3, (40, 40))
    factors = [0.2, 0.5, 0.6]
    given = merged(base, experts, mask_lambda=dict(zip(("e0", "e1", "e2"), factors, strict=True)))
    np.testing.assert_allclose(given, oracle(base, experts, mask_lambda=factors), atol=1e-13)
    assert not np.array_equal(given, merged(base, experts, mask_lambda=0.2))


def test_counted_by_hand() -> None:
    # Columns: one task alone; both, agreeing; equality at lambda = 0.5; nobody moves.
    experts = [np.array([1.0, 1.0, 1.0, 0.0]), np.array([0.0, 1.0, 2.0, 0.0])]
    base = np.zeros(4)
    settings_ = {"mask_lambda": 0.5, "scale": 1.0}
    assert merged(base, experts, **settings_).tolist() == [0, 2, 0, 0]
    assert merged(base, experts, **settings_, equal="kept").tolist() == [0, 2, 3, 0]
    assert merged(base, experts, **settings_, min_tasks=1).tolist() == [1, 2, 3, 0]
    assert merged(base, experts, **settings_, min_tasks=3).tolist() == [0, 0, 0, 0]


def test_trim_of_the_whole_model() -> None:
    rng = np.random.default_rng(1)
    names = ("model.layers.0.mlp.up_proj.weight", "model.layers.1.mlp.up_proj.weight")
    base = {n: torch.tensor(rng.normal(size=(9, 8))) for n in names}
    experts = {
        e: {
            n: base[n] + s * torch.tensor(rng.normal(size=(9, 8)))
            for n, s in zip(names, (1, 3), strict=True)
        }
        for e in "abc"
    }
    settings_ = {"merge": "ties", "scope": "model", "mask_lambda": 0.2}
    result = merge_tensors("consensus_ta", base, experts, settings_)

    def flat(tensors: dict[str, torch.Tensor]) -> np.ndarray:
        return np.concatenate([tensors[n].numpy().ravel() for n in names])

    expected = oracle(flat(base), [flat(experts[e]) for e in "abc"], merge="ties", mask_lambda=0.2)
    np.testing.assert_allclose(flat(result), expected, atol=1e-13)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    st.integers(0, 2**32),
    st.integers(1, 8),
    st.lists(st.integers(1, 6), min_size=1, max_size=3).map(tuple),
    st.sampled_from([torch.float64, torch.float32, torch.bfloat16]),
    st.sampled_from(["sum", "ties"]),
)
def test_properties(
    seed: int, count: int, shape: tuple[int, ...], dtype: torch.dtype, merge: str
) -> None:
    rng = np.random.default_rng(seed)
    base = rng.integers(-8, 9, size=shape) / 4.0
    experts = [base + rng.integers(-3, 4, size=shape) / 16 for _ in range(count)]
    parameters = {"merge": merge, "mask_lambda": 0.5, "min_tasks": 1}
    result = merged(base, experts, dtype, **parameters)
    assert np.isfinite(result).all()
    assert np.array_equal(merged(base, experts, dtype, scale=0.0, merge=merge), base)
    assert np.array_equal(merged(base, experts, dtype, merge=merge, min_tasks=count + 1), base), (
        "no entry can have more votes than there are experts"
    )
    assert np.array_equal(merged(base, [base] * count, dtype, **parameters), base)
    every = merged(base, experts, torch.float64, merge=merge, min_tasks=0, scale=1.0)
    deltas = [x - base for x in experts]
    whole = sum(deltas) if merge == "sum" else ties_sum(deltas, 0.2)
    np.testing.assert_allclose(every, base + whole, atol=1e-13)


def test_order_of_the_experts_does_not_matter() -> None:
    base, experts = models(3, 4, (50, 30))
    tensors = {f"e{i}": {NAME: torch.tensor(x).float()} for i, x in enumerate(experts)}
    root = {NAME: torch.tensor(base).float()}
    one = merge_tensors("consensus_ta", root, tensors, {})[NAME]
    other = merge_tensors("consensus_ta", root, dict(reversed(tensors.items())), {})[NAME]
    assert torch.equal(one, other)
