"""What holds for every method that combines experts by their angles, whatever the tensors."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from merges.engine.run import merge_tensors

METHODS = [
    ("slerp", {"t": 0.3}),
    ("nuslerp", {}),
    ("nuslerp", {"origin": "base", "along": "rows"}),
    ("nuslerp", {"along": "columns"}),
    ("multislerp", {}),
    ("multislerp", {"origin": "base"}),
    ("karcher", {}),
    ("model_stock", {}),
    ("model_stock", {"along": "rows", "average": "cosines"}),
]
quick = settings(max_examples=25, deadline=None, derandomize=True)
shapes = st.lists(st.integers(1, 6), min_size=1, max_size=3).map(tuple)
dtypes = st.sampled_from([torch.float64, torch.float32, torch.bfloat16])
# Multiples of a common step, of the base, or a random step: zero, parallel, opposite, anything.
kinds = st.lists(st.sampled_from([0, 1, 2, -1, "base", "other"]), min_size=2, max_size=8)


def models(
    seed: int, kinds: list[object], shape: tuple[int, ...], dtype: torch.dtype
) -> tuple[torch.Tensor, list[torch.Tensor]]:
    rng = np.random.default_rng(seed)
    base, step = (torch.tensor(rng.integers(-4, 5, size=shape) / 4) for _ in range(2))
    made = []
    for kind in kinds:
        if kind == "other":
            made.append(torch.tensor(rng.integers(-4, 5, size=shape) / 4))
        else:
            made.append(base if kind == "base" else kind * step)
    return base.to(dtype), [x.to(dtype) for x in made]


def run(
    method: str, base: torch.Tensor, experts: dict[str, torch.Tensor], parameters: dict
) -> torch.Tensor:
    wrapped = {name: {"w": expert} for name, expert in experts.items()}
    return merge_tensors(method, {"w": base}, wrapped, parameters)["w"]


def count_for(method: str, experts: list[torch.Tensor]) -> list[torch.Tensor]:
    return experts[:2] if method.endswith("slerp") and method != "multislerp" else experts


@pytest.mark.parametrize(("method", "parameters"), METHODS)
@quick
@given(st.integers(0, 2**32), kinds, shapes, dtypes)
def test_the_result_is_finite_and_the_order_changes_no_bit(
    method: str,
    parameters: dict,
    seed: int,
    kinds: list[object],
    shape: tuple[int, ...],
    dtype: torch.dtype,
) -> None:
    base, experts = models(seed, kinds, shape, dtype)
    named = {f"e{n}": x for n, x in enumerate(count_for(method, experts))}
    result = run(method, base, named, parameters)
    assert result.isfinite().all()
    if method != "slerp":
        turned = dict(reversed(named.items()))
        assert torch.equal(run(method, base, turned, parameters), result)


@pytest.mark.parametrize(("method", "parameters"), METHODS)
@quick
@given(st.integers(0, 2**32), st.integers(2, 8), shapes, dtypes, st.booleans())
def test_identical_experts_give_themselves(
    method: str,
    parameters: dict,
    seed: int,
    count: int,
    shape: tuple[int, ...],
    dtype: torch.dtype,
    zero: bool,
) -> None:
    base, (expert,) = models(seed, [0 if zero else "other"], shape, dtype)
    named = {f"e{n}": x for n, x in enumerate(count_for(method, [expert] * count))}
    found = run(method, base, named, parameters)
    # bfloat16 is summed in float32: where the expert is 0, the error of that stays.
    tolerance = {torch.float64: 1e-14, torch.float32: 2e-6, torch.bfloat16: 2e-6}[dtype]
    torch.testing.assert_close(found, expert, rtol=0, atol=tolerance)


@pytest.mark.parametrize(("method", "parameters"), METHODS)
@quick
@given(st.integers(0, 2**32), st.integers(2, 8), shapes, st.integers(0, 20))
def test_longer_models_give_a_longer_result(
    method: str,
    parameters: dict,
    seed: int,
    count: int,
    shape: tuple[int, ...],
    exponent: int,
) -> None:
    """A power of two scales without rounding; bounds in absolute numbers are all far below 1."""
    base, experts = models(seed, ["other"] * count, shape, torch.float64)
    own = {**parameters, "epsilon": 0.0} if method == "multislerp" else parameters
    named = {f"e{n}": x for n, x in enumerate(count_for(method, experts))}
    longer = {name: expert * 2.0**exponent for name, expert in named.items()}
    expected = run(method, base, named, own) * 2.0**exponent
    found = run(method, base * 2.0**exponent, longer, own)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12 * 2.0**exponent)
