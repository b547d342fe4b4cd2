"""Attention by strips: the formula in float64, and in bfloat16 no further from it than torch's."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from merges.dam import attention
from merges.dam.attention import StripAttention, packed_attention
from merges.dam.packing import Packing

HEADS, GROUPS, WIDTH = 6, 2, 16


def drawn(length: int, dtype: torch.dtype) -> list[torch.Tensor]:
    """Return query, key, value and the gradient of the output, the same in every type."""
    draw = torch.Generator().manual_seed(length)
    return [
        torch.randn(1, heads, length, WIDTH, generator=draw).bfloat16().to(dtype)
        for heads in (HEADS, GROUPS, GROUPS, HEADS)
    ]


def formula(given: list[torch.Tensor], window: int | None) -> list[torch.Tensor]:
    """Return output and gradients by autograd from the formula, one score for each pair."""
    query, key, value, outer = (x.double() for x in given)
    inputs = [x.requires_grad_() for x in (query, key, value)]
    k, v = (x.repeat_interleave(HEADS // GROUPS, 1) for x in (key, value))
    places = torch.arange(query.shape[2])
    behind = places[:, None] - places
    seen = (behind >= 0) & (behind < (window or len(places)))
    scores = (query @ k.mT * WIDTH**-0.5).masked_fill(~seen, float("-inf"))
    output = scores.softmax(-1) @ v
    return [output.detach(), *torch.autograd.grad(output, inputs, outer)]


def by_strips(given: list[torch.Tensor], window: int | None) -> list[torch.Tensor]:
    *inputs, outer = given
    length = outer.shape[2]
    mask = Packing([length]).visible(length, window, outer.dtype)
    for tensor in inputs:
        tensor.requires_grad_()
    output = StripAttention.apply(*inputs, mask, WIDTH**-0.5)
    return [output.detach(), *torch.autograd.grad(output, inputs, outer)]


@pytest.mark.parametrize("window", [None, 1, 70])
@pytest.mark.parametrize("length", [1, 2, 63, 64, 65, 128, 200])
def test_strips_are_the_formula(length: int, window: int | None) -> None:
    found = by_strips(drawn(length, torch.float64), window)
    expected = formula(drawn(length, torch.float64), window)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)


def error(found: list[torch.Tensor], expected: list[torch.Tensor]) -> list[float]:
    """Return relative errors, of the root mean square."""
    pairs = zip(found, expected, strict=True)
    return [float((one.double() - own).norm() / own.norm()) for one, own in pairs]


@pytest.mark.parametrize("length", [65, 200, 333])
def test_in_bfloat16_strips_are_about_as_near_to_the_formula_as_torch(length: int) -> None:
    expected = formula(drawn(length, torch.float64), None)
    *inputs, outer = drawn(length, torch.bfloat16)
    inputs = [tensor.requires_grad_() for tensor in inputs]
    output = F.scaled_dot_product_attention(*inputs, is_causal=True, enable_gqa=True)
    own = error([output.detach(), *torch.autograd.grad(output, inputs, outer)], expected)
    found = error(by_strips(drawn(length, torch.bfloat16), None), expected)
    assert max(found) < 1e-2
    assert max(found) < 2 * max(own)


@pytest.mark.parametrize("lengths", [[65], [70, 3, 130]])
def test_packed_samples_go_by_strips_where_these_are_faster(
    lengths: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The choice changes nothing but rounding, and a large sample goes by torch's kernel."""
    monkeypatch.setattr(attention, "widened", lambda tensor: tensor)
    monkeypatch.setattr(attention, "MOST_KEPT", HEADS * 100**2)
    taken: list[int] = []
    original = attention.attend
    monkeypatch.setattr(
        attention, "attend", lambda q, *r: taken.append(q.shape[1]) or original(q, *r)
    )
    given = drawn(sum(lengths), torch.bfloat16)[:3]
    packing = Packing(lengths)
    found, _ = packed_attention(torch.nn.Identity(), *given, None, packing=packing)
    by_kernel = [length for length in lengths if length > 100]
    assert sum(taken) == (sum(lengths) - sum(by_kernel)) * HEADS // GROUPS
    monkeypatch.setattr(attention, "MOST_KEPT", 0)
    other, _ = packed_attention(torch.nn.Identity(), *given, None, packing=packing)
    torch.testing.assert_close(found, other, rtol=0, atol=0.03)
