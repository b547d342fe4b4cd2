"""Merged weights in bfloat16: against float64, and bit by bit against torch's own operations."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from merges.dam import narrow
from merges.dam.layers import MergedWeight

SIZES = [(1, 1, 1), (2, 3, 513), (3, 130, 512), (8, 65, 100), (9, 5, 40)]  # models, rows, columns


def drawn(models, rows, columns, each):
    generator = torch.Generator().manual_seed(rows)
    shape = (models, 1, columns if each == "column" else 1)
    coefficients = torch.randn(shape, generator=generator).requires_grad_()
    weights = torch.randn(models, rows, columns, generator=generator).bfloat16()
    upstream = torch.randn(rows, columns, generator=generator).bfloat16()
    return coefficients, list(weights), upstream


@pytest.fixture
def threads():
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.mark.parametrize("each", ["column", "weight"])
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_a_merged_weight_is_torch_s_bit_by_bit(size, each, monkeypatch):
    coefficients, weights, _ = drawn(*size, each)
    found = MergedWeight.apply(coefficients, *weights)
    assert narrow.serves(weights, coefficients) == (size[0] <= 8)
    monkeypatch.setattr(narrow, "serves", lambda *_: False)
    expected = MergedWeight.apply(coefficients, *weights)
    assert torch.equal(found.view(torch.int16), expected.view(torch.int16))
    exact = sum(c * w.double() for c, w in zip(coefficients.double(), weights, strict=True))
    # Half a unit of bfloat16's last place, of the largest term where terms cancel.
    terms = sum((c * w.double()).abs() for c, w in zip(coefficients.double(), weights, strict=True))
    assert ((found.double() - exact).abs() <= exact.abs() * 2**-8 + terms * 2**-22).all()


@pytest.mark.parametrize("each", ["column", "weight"])
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_its_gradient_is_that_of_the_formula_in_float64(size, each):
    coefficients, weights, upstream = drawn(*size, each)
    MergedWeight.apply(coefficients, *weights).backward(upstream)
    products = upstream.double() * torch.stack(weights).double()
    expected = products.sum_to_size(coefficients.shape)
    spread = products.abs().sum_to_size(coefficients.shape)
    assert coefficients.grad.dtype == torch.float32
    assert ((coefficients.grad - expected).abs() <= spread * 2**-21).all()


@pytest.mark.parametrize("count", [2, 3])
def test_threads_change_no_bit(count, threads):
    coefficients, weights, upstream = drawn(3, 200, 70, "column")
    results = []
    for number in (1, count):
        threads(number)
        merged = narrow.merge(weights, coefficients)
        results.append((merged.view(torch.int16), narrow.reduce(upstream, weights, (3, 1, 70))))
    assert all(torch.equal(one, other) for one, other in zip(*results, strict=True))


def test_a_gradient_that_is_a_view_is_read_in_its_order():
    _, weights, upstream = drawn(2, 6, 4, "column")
    turned = upstream.t().contiguous().t()
    assert not turned.is_contiguous()
    found = narrow.reduce(turned, weights, (2, 1, 4))
    assert torch.equal(found, narrow.reduce(upstream, weights, (2, 1, 4)))


def test_what_the_kernels_cannot_read_goes_the_other_way():
    coefficients, weights, _ = drawn(2, 6, 4, "column")
    of_rows = torch.ones(2, 6, 1)
    turned = [weight.t().contiguous().t() for weight in weights]
    others = [
        (weights, of_rows),
        (turned, coefficients),
        ([weight.float() for weight in weights], coefficients),
        (weights, coefficients.double()),
    ]
    assert narrow.serves(weights, coefficients)
    assert not any(narrow.serves(*given) for given in others)
    found = MergedWeight.apply(coefficients, *turned)
    assert torch.equal(found, MergedWeight.apply(coefficients, *weights))


def test_what_is_not_finite_stays_so():
    _, weights, _ = drawn(2, 1, 4, "column")
    coefficients = torch.tensor([[[np.inf, np.nan, 3e38, 1.0]], [[1.0, 1.0, 3e38, 1.0]]])
    weights[0][:], weights[1][:] = 2.0, 2.0
    found = narrow.merge(weights, coefficients)[0].float()
    assert found[0] == np.inf and found[1].isnan() and found[2] == np.inf and found[3] == 4.0
