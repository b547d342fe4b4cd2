"""Model Breadcrumbs, with and without election, against the formula in float64 numpy."""

from __future__ import annotations

from unittest import mock

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from common.errors import UserError
from merges.arithmetic import selection
from merges.engine import pieces as pieces_module
from merges.engine.run import merge_tensors
from merges.methods.breadcrumbs import ranks

NAME = "model.layers.0.mlp.up_proj.weight"
OTHER = "model.norm.weight"
NAMES = ("a", "b", "c")
BOTH = ("breadcrumbs", "breadcrumbs_ties")


def models(seed: int, shape: tuple[int, ...], count: int = 3) -> tuple[np.ndarray, list]:
    """Differences have few values, so that magnitudes repeat, at the thresholds too."""
    rng = np.random.default_rng(seed)
    base = rng.integers(-64, 65, shape) / 64
    return base, [base + rng.integers(-40, 41, shape) / 64 for _ in range(count)]


def merged(
    method: str, base: np.ndarray, experts: list, dtype: torch.dtype = torch.float64, **p: object
) -> np.ndarray:
    tensors = {n: {NAME: torch.tensor(x).to(dtype)} for n, x in zip(NAMES, experts, strict=False)}
    result = merge_tensors(method, {NAME: torch.tensor(base).to(dtype)}, tensors, p)
    return result[NAME].double().numpy()


def band(values: np.ndarray, density: float, gamma: float) -> np.ndarray:
    """Sort fully; of equal magnitudes the first is the larger."""
    keep = int(density * values.size)
    drop = min(int(gamma * values.size), values.size - keep)
    order = np.argsort(-np.abs(values.ravel()), kind="stable")[drop : drop + keep]
    result = np.zeros(values.size)
    result[order] = values.ravel()[order]
    return result.reshape(values.shape)


def crumbs(delta: np.ndarray, p: dict) -> np.ndarray:
    density, gamma = p.get("density", 0.15), p.get("gamma", 0.006)
    if p.get("scope") == "row":
        rows = delta.reshape(-1, delta.shape[-1])
        kept = np.stack([band(row, density, gamma) for row in rows]).reshape(delta.shape)
    else:
        kept = band(delta, density, gamma)
    if p.get("rescale") == "l1" and np.abs(kept).sum() > 0:
        kept = kept * (np.abs(delta).sum() / np.abs(kept).sum())
    return kept


def mixed(method: str, deltas: list[np.ndarray], p: dict) -> np.ndarray:
    weights = p.get("weights") or [1.0] * len(deltas)
    values = np.stack([w * d for w, d in zip(weights, deltas, strict=True)])
    if method == "breadcrumbs":
        total = values.sum(0) / (sum(weights) if p.get("normalize") else 1)
        return p.get("scale", 0.2) * total
    agree = np.sign(values) == np.where(values.sum(0) >= 0, 1, -1)
    total = (values * agree).sum(0)
    if p.get("merge") == "mean":
        share = (np.array(weights).reshape(-1, *[1] * (values.ndim - 1)) * agree).sum(0)
        total = total / np.where(share == 0, 1, share)
    return p.get("scale", 1.0) * total


SETTINGS = [
    {},
    {"density": 0.5, "gamma": 0.1, "scale": -0.7},
    {"density": 0.9, "gamma": 0.3, "weights": [0.5, 1.0, 2.0]},  # fewer large ones dropped
    {"density": 0.3, "gamma": 0.0, "rescale": "l1"},
    {"density": 0.4, "gamma": 0.05, "rescale": "l1", "scope": "row"},
    {"density": 0.6, "gamma": 0.2, "scope": "row"},
    {"density": 1.0, "gamma": 0.5},
    {"density": 0.2, "gamma": 1.0},
]


@pytest.mark.parametrize("shape", [(7, 12), (10,), (3, 4, 5), (70_001,), (130, 2100)])
@pytest.mark.parametrize("given_settings", SETTINGS)
@pytest.mark.parametrize(
    ("method", "own"),
    [
        ("breadcrumbs", {}),
        ("breadcrumbs", {"normalize": True}),
        ("breadcrumbs_ties", {}),
        ("breadcrumbs_ties", {"merge": "mean"}),
    ],
)
def test_equals_the_formula(
    method: str, own: dict, given_settings: dict, shape: tuple[int, ...]
) -> None:
    base, experts = models(1, shape)
    p = {**given_settings, **own}
    expected = base + mixed(method, [crumbs(expert - base, p) for expert in experts], p)
    found = merged(method, base, experts, **p)
    np.testing.assert_allclose(found, expected, rtol=1e-11, atol=1e-13)


def test_float32_of_several_pieces_that_are_sampled() -> None:
    base, experts = models(2, (300, 1000))
    p = {"density": 0.3, "gamma": 0.01}
    expected = base + mixed("breadcrumbs", [crumbs(x - base, p) for x in experts], p)
    found = merged("breadcrumbs", base, experts, torch.float32, **p)
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-6)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    st.integers(0, 2**32 - 1),
    st.integers(1, 4),
    st.lists(st.integers(1, 30), min_size=1, max_size=3).map(tuple),
    st.floats(0.01, 1),
    st.floats(0, 1),
    st.sampled_from([{}, {"scope": "row"}, {"rescale": "l1"}]),
    st.sampled_from(BOTH),
)
def test_any_shape_share_and_number_of_experts(
    seed: int,
    count: int,
    shape: tuple[int, ...],
    density: float,
    gamma: float,
    own: dict,
    method: str,
) -> None:
    base, experts = models(seed, shape, min(count, 3))
    p = {"density": density, "gamma": gamma, **own}
    expected = base + mixed(method, [crumbs(expert - base, p) for expert in experts], p)
    with (
        mock.patch.object(selection, "_FEW", 100),
        mock.patch.object(pieces_module, "CPU_SIZE", 64),
    ):
        found = merged(method, base, experts, **p)
    np.testing.assert_allclose(found, expected, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("method", BOTH)
@pytest.mark.parametrize("rescale", ["none", "l1"])
def test_scope_model_takes_the_shares_of_all_parameters_together(method: str, rescale: str) -> None:
    rng = np.random.default_rng(3)
    base = {NAME: rng.normal(size=(30, 40)), OTHER: rng.normal(size=50)}
    step = {NAME: 1.0, OTHER: 3.0}  # the second parameter has most of what is large
    experts = [{n: b + step[n] * rng.normal(size=b.shape) for n, b in base.items()} for _ in "ab"]
    p = {"density": 0.2, "gamma": 0.02, "rescale": rescale, "scope": "model"}
    names = sorted(base)
    flat = [
        np.concatenate([(expert[name] - base[name]).ravel() for name in names])
        for expert in experts
    ]
    whole = mixed(method, [crumbs(delta, {**p, "scope": "tensor"}) for delta in flat], p)
    expected = dict(
        zip(names, np.split(whole, np.cumsum([base[n].size for n in names])[:-1]), strict=True)
    )
    result = merge_tensors(
        method,
        {name: torch.tensor(value) for name, value in base.items()},
        {e: {n: torch.tensor(v) for n, v in x.items()} for e, x in zip("ab", experts, strict=True)},
        p,
    )
    for name, value in base.items():
        np.testing.assert_allclose(
            result[name].numpy(), value + expected[name].reshape(value.shape), rtol=1e-11
        )


def test_a_case_counted_by_hand() -> None:
    delta = np.array([9.0, -1.0, 4.0, -4.0, 2.0, 4.0, 0.5, -3.0, 0.0, 1.0])
    # Ten values: the two largest (9 and the first 4) go, the next three stay.
    found = merged("breadcrumbs", np.zeros(10), [delta], density=0.3, gamma=0.2, scale=1.0)
    assert found.tolist() == [0, 0, 0, -4.0, 0, 4.0, 0, -3.0, 0, 0]


@pytest.mark.parametrize(
    ("density", "gamma", "count", "expected"),
    [
        (0.15, 0.006, 1000, (6, 156)),
        (0.29, 0.01, 100, (1, 29)),  # 0.29 * 100 is a bit less than 29 in floating point
        (0.9, 0.3, 10, (1, 10)),
        (0.05, 0.01, 10, (0, 0)),
        (1.0, 1.0, 7, (0, 7)),
    ],
)
def test_ranks(density: float, gamma: float, count: int, expected: tuple[int, int]) -> None:
    assert ranks(density, gamma, count) == expected


@pytest.mark.parametrize("method", BOTH)
def test_algebra(method: str) -> None:
    base, experts = models(4, (20, 30))
    np.testing.assert_array_equal(merged(method, base, experts, scale=0.0), base)
    single = merged(method, base, experts[:1], density=1.0, scale=1.0)
    np.testing.assert_allclose(single, experts[0], rtol=1e-13)
    scaled = merged(method, base / 8, [expert / 8 for expert in experts])
    np.testing.assert_array_equal(scaled, merged(method, base, experts) / 8)
    for p in ({}, {"rescale": "l1"}, {"scope": "row"}):
        np.testing.assert_array_equal(merged(method, base, [base, base], **p), base)


def test_density_one_is_task_arithmetic_or_ties_without_trim() -> None:
    base, experts = models(5, (20, 30))
    p = {"scale": 0.3, "weights": [1.0, 0.5, 2.0]}
    for method, other, same in [
        ("breadcrumbs", "task_arithmetic", {}),
        ("breadcrumbs_ties", "ties", {"density": 1.0, "merge": "sum"}),
    ]:
        expected = merged(other, base, experts, **p, **same)
        found = merged(method, base, experts, density=1.0, gamma=0.4, **p)
        np.testing.assert_allclose(found, expected, rtol=1e-13)


def test_gamma_zero_is_a_trim() -> None:
    base, experts = models(6, (20, 30))
    expected = merged("ties", base, experts, density=0.25, merge="sum")
    found = merged("breadcrumbs_ties", base, experts, density=0.25, gamma=0.0, merge="sum")
    np.testing.assert_allclose(found, expected, rtol=1e-13)


@pytest.mark.parametrize("method", BOTH)
def test_order_of_experts_changes_no_bit(method: str) -> None:
    base, experts = models(7, (20, 30))
    one = {n: {NAME: torch.tensor(x)} for n, x in zip(NAMES, experts, strict=True)}
    other = {n: one[n] for n in ("c", "a", "b")}
    results = [
        merge_tensors(method, {NAME: torch.tensor(base)}, given, {})[NAME] for given in (one, other)
    ]
    assert torch.equal(*results)


def test_weights_that_sum_to_zero_cannot_be_normalised() -> None:
    base, experts = models(8, (3, 4))
    with pytest.raises(UserError, match="sum to 0"):
        merged("breadcrumbs", base, experts, weights=[1.0, 1.0, -2.0], normalize=True)
