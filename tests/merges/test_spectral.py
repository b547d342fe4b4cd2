"""Singular vectors by Gram matrices and by LAPACK: how near the truth, and what has no rank."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from merges.arithmetic.spectral import is_matrix, polar, top
from merges.engine.run import merge_tensors

NAME = "model.layers.0.mlp.up_proj.weight"
METHODS = ["tsv_m", "iso_c", "iso_cts"]
SHAPES = [(96, 40), (40, 96), (64, 64), (1500, 24)]
# Relative errors of what they merge to, in float32, beside the same in float64.
BOUNDS = {"gram": 5e-6, "exact": 5e-5}


def steep(seed: int, shape: tuple[int, int], decay: float) -> np.ndarray:
    """A matrix whose singular values fall from 1 to 10^-decay."""
    rng = np.random.default_rng(seed)
    size = min(shape)
    left, _ = np.linalg.qr(rng.normal(size=(shape[0], size)))
    right, _ = np.linalg.qr(rng.normal(size=(shape[1], size)))
    return left * np.logspace(0, -decay, size) @ right.T


def merged(
    method: str, deltas: list[np.ndarray], dtype: torch.dtype = torch.float64, **parameters: object
) -> np.ndarray:
    base = torch.zeros(deltas[0].shape, dtype=dtype)
    experts = {f"e{i}": {NAME: torch.tensor(d).to(dtype)} for i, d in enumerate(deltas)}
    return merge_tensors(method, {NAME: base}, experts, parameters)[NAME].double().numpy()


@pytest.mark.parametrize("form", ["gram", "exact"])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_top_and_polar(form: str, shape: tuple[int, int], dtype: torch.dtype) -> None:
    matrix = steep(1, shape, 3)
    left, values, right = np.linalg.svd(matrix, full_matrices=False)
    tolerance = 1e-4 if dtype == torch.float32 else 1e-8
    found = top(torch.tensor(matrix).to(dtype), 9, form)
    assert found.left.dtype == found.values.dtype == found.right.dtype == dtype
    np.testing.assert_allclose(found.values.double().numpy(), values[:9], rtol=tolerance)
    rebuilt = (found.left * found.values @ found.right.T).double().numpy()
    expected = left[:, :9] * values[:9] @ right[:9]
    np.testing.assert_allclose(rebuilt, expected, atol=tolerance)
    factor, total = polar(torch.tensor(matrix).to(dtype), form)
    assert total == pytest.approx(values.sum(), rel=tolerance)
    np.testing.assert_allclose(factor.double().numpy(), left @ right, atol=10 * tolerance)


@pytest.mark.parametrize("form", ["gram", "exact"])
@pytest.mark.parametrize("decay", [0.5, 2.0, 4.0])
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("shape", SHAPES)
def test_error_in_float32(form: str, decay: float, method: str, shape: tuple[int, int]) -> None:
    deltas = [steep(seed, shape, decay).astype(np.float32) for seed in range(3)]
    truth = merged(method, [delta.astype(np.float64) for delta in deltas], svd="exact")
    single = merged(method, deltas, torch.float32, svd=form)
    assert np.linalg.norm(single - truth) <= BOUNDS[form] * np.linalg.norm(truth)


@pytest.mark.parametrize("method", METHODS)
def test_forms_agree_in_float64(method: str) -> None:
    deltas = [steep(seed, (50, 30), 2.0) for seed in range(3)]
    np.testing.assert_allclose(
        merged(method, deltas, svd="gram"), merged(method, deltas, svd="exact"), atol=1e-9
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("method", METHODS)
def test_null_directions_have_no_say(method: str, dtype: torch.dtype) -> None:
    """Experts of low rank, as from LoRA: whole numbers, so that their rank is exact."""
    rng = np.random.default_rng(4)
    shape, rank = (60, 40), 3
    deltas = [
        (rng.integers(-3, 4, size=(shape[0], rank)) @ rng.integers(-3, 4, size=(rank, shape[1])))
        for _ in range(3)
    ]
    results = [merged(method, deltas, dtype, svd=form) for form in ("gram", "exact")]
    largest = np.abs(results[0]).max()
    np.testing.assert_allclose(results[0], results[1], atol=1e-4 * largest)
    # Nothing lies outside the columns and rows that some expert uses.
    columns, _ = np.linalg.qr(np.concatenate(deltas, axis=1) @ rng.normal(size=(120, 9)))
    outside = results[0] - columns @ (columns.T @ results[0])
    assert np.abs(outside).max() <= 1e-4 * largest
    assert np.linalg.matrix_rank(results[0], tol=1e-3 * largest) <= 9


@settings(max_examples=80, deadline=None, derandomize=True)
@given(
    st.integers(0, 2**32),
    st.integers(1, 8),
    st.tuples(st.integers(1, 7), st.integers(1, 7)),
    st.sampled_from([torch.float64, torch.float32, torch.bfloat16]),
    st.sampled_from(METHODS),
    st.sampled_from(["gram", "exact"]),
)
def test_small_shapes_of_any_rank(
    seed: int, count: int, shape: tuple[int, int], dtype: torch.dtype, method: str, form: str
) -> None:
    rng = np.random.default_rng(seed)
    deltas = [rng.integers(-1, 2, size=shape) / 16 for _ in range(count)]
    result = merged(method, deltas, dtype, svd=form)
    assert np.isfinite(result).all()
    # No singular value exceeds the sum of the largest of the task matrices.
    bound = sum(np.linalg.norm(delta, 2) for delta in deltas)
    assert np.linalg.norm(result, 2) <= bound * 1.01
    with_zeros = merged(method, [*deltas, np.zeros(shape)], dtype, svd=form)
    assert np.isfinite(with_zeros).all()
    assert not merged(method, [np.zeros(shape)] * count, dtype, svd=form).any()


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("model.embed_tokens.weight", (9, 4)),
        ("model.norm.weight", (6,)),
        ("model.layers.0.self_attn.q_proj.bias", (6,)),
        ("model.layers.0.mlp.experts.gate_up_proj", (2, 3, 4)),
    ],
)
def test_no_matrices_are_averaged(
    method: str, dtype: torch.dtype, name: str, shape: tuple[int, ...]
) -> None:
    rng = np.random.default_rng(3)
    base = rng.integers(-8, 9, size=shape) / 4
    experts = [base + rng.integers(-3, 4, size=shape) / 16 for _ in range(4)]
    tensors = {f"e{i}": {name: torch.tensor(x).to(dtype)} for i, x in enumerate(experts)}
    result = merge_tensors(method, {name: torch.tensor(base).to(dtype)}, tensors, {"scale": 2.0})
    expected = base + 2.0 * (np.mean(experts, axis=0) - base)
    assert torch.equal(result[name], torch.tensor(expected).to(dtype))


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_scale_zero_and_order(method: str, dtype: torch.dtype) -> None:
    rng = np.random.default_rng(6)
    base = {NAME: torch.tensor(rng.normal(size=(20, 30))).to(dtype)}
    experts = {
        e: {NAME: base[NAME] + torch.tensor(rng.normal(size=(20, 30))).to(dtype)} for e in "abcd"
    }
    assert torch.equal(merge_tensors(method, base, experts, {"scale": 0.0})[NAME], base[NAME])
    one = merge_tensors(method, base, experts, {})[NAME]
    other = merge_tensors(method, base, dict(reversed(experts.items())), {})[NAME]
    assert torch.equal(one, other)


def test_which_parameters_are_matrices() -> None:
    matrix = torch.zeros(2, 3)
    assert is_matrix("model.layers.0.mlp.down_proj.weight", matrix)
    assert is_matrix("lm_head.weight", matrix)
    assert is_matrix("model.layers.0.block_sparse_moe.experts.0.w1.weight", matrix)
    assert not is_matrix("model.embed_tokens.weight", matrix)
    assert not is_matrix("model.layers.0.mlp.down_proj.bias", torch.zeros(2))
