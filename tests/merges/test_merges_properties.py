"""Algebraic properties that hold whatever the shapes, experts and settings."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from merges.engine import registry
from merges.engine.run import merge_tensors
from tests.merges.fake_statistics import drawn

NAME = "model.layers.3.self_attn.q_proj.weight"
WITH_BASE = ["task_arithmetic", "ties", "dare_ties"]
quick = settings(max_examples=40, deadline=None, derandomize=True)

seeds = st.integers(0, 2**32)
counts = st.integers(1, 8)
shapes = st.lists(st.integers(1, 6), min_size=1, max_size=3).map(tuple)
densities = st.floats(0.01, 1.0)
dtypes = st.sampled_from([torch.float64, torch.float32, torch.bfloat16])


def models(
    seed: int, count: int, shape: tuple[int, ...], dtype: torch.dtype = torch.float64
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """A base and experts; some deltas are zero or equal, as in real fine-tuning."""
    rng = np.random.default_rng(seed)
    base = torch.tensor(rng.normal(size=shape)).to(dtype)
    steps = [rng.integers(-3, 4, size=shape) / 16 for _ in range(count)]
    experts = [base + torch.tensor(step).to(dtype) for step in steps]
    return base, {f"e{number}": expert for number, expert in enumerate(experts)}


def run(
    method: str,
    base: torch.Tensor,
    experts: dict[str, torch.Tensor],
    seed: int = 0,
    **parameters: object,
) -> torch.Tensor:
    wrapped = {name: {NAME: expert} for name, expert in experts.items()}
    found = drawn(method, experts, {NAME: tuple(base.shape)})
    return merge_tensors(method, {NAME: base}, wrapped, parameters, seed=seed, statistics=found)[
        NAME
    ]


@quick
@given(seeds, counts, shapes, dtypes, st.sampled_from(WITH_BASE))
def test_scale_zero_gives_the_base(
    seed: int, count: int, shape: tuple[int, ...], dtype: torch.dtype, method: str
) -> None:
    base, experts = models(seed, count, shape, dtype)
    assert torch.equal(run(method, base, experts, scale=0.0), base)


def methods_with(parameter: str) -> list[str]:
    return [
        name
        for name, info in registry.describe().items()
        if not info.whole_model and parameter in info.parameters
    ]


PER_TENSOR = [name for name, info in registry.describe().items() if not info.whole_model]
few = settings(max_examples=15, deadline=None, derandomize=True)


# The scale of passthrough is on the weights, not on their distance from a base.
@pytest.mark.parametrize("method", sorted({*methods_with("scale")} - {"passthrough"}))
@few
@given(seed=seeds, count=counts, shape=shapes, dtype=dtypes)
def test_every_method_with_a_scale_gives_the_base_at_zero(
    method: str, seed: int, count: int, shape: tuple[int, ...], dtype: torch.dtype
) -> None:
    base, experts = models(seed, registry.info(method).experts or count, shape, dtype)
    assert torch.equal(run(method, base, experts, scale=0.0), base)


@pytest.mark.parametrize("method", PER_TENSOR)
@few
@given(
    seed=seeds,
    count=counts,
    shape=shapes,
    dtype=dtypes,
    zero=st.sampled_from(["none", "base", "deltas", "one expert", "all"]),
    random=st.randoms(use_true_random=False),
)
def test_every_method_keeps_shape_and_type_and_knows_no_order(
    method: str,
    seed: int,
    count: int,
    shape: tuple[int, ...],
    dtype: torch.dtype,
    zero: str,
    random: object,
) -> None:
    info = registry.info(method)
    base, experts = models(seed, info.experts or max(count, 2), shape, dtype)
    if zero in ("base", "all"):
        base = torch.zeros_like(base)
    for number, name in enumerate(experts):
        if zero == "deltas":
            experts[name] = base.clone()
        if zero == "all" or (zero == "one expert" and number == 0):
            experts[name] = torch.zeros_like(base)
    result = run(method, base, experts, seed % 1000)
    assert result.shape == base.shape and result.dtype == dtype
    assert result.isfinite().all()
    if zero == "all":
        assert not result.any()
    if zero == "deltas":
        torch.testing.assert_close(result, base, rtol=4 * torch.finfo(dtype).eps, atol=0)
    if not info.ordered:
        names = list(experts)
        random.shuffle(names)
        again = run(method, base, {name: experts[name] for name in names}, seed % 1000)
        assert torch.equal(again, result)


@quick
@given(seeds, counts, shapes)
def test_without_trim_and_conflict_ties_is_task_arithmetic(
    seed: int, count: int, shape: tuple[int, ...]
) -> None:
    base, experts = models(seed, count, shape)
    agreeing = {name: base + (expert - base).abs() for name, expert in experts.items()}
    expected = run("task_arithmetic", base, agreeing, scale=0.7)
    for method in ("ties", "dare_ties"):
        found = run(method, base, agreeing, density=1.0, merge="sum", scale=0.7)
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-14)


@quick
@given(seeds, counts, shapes)
def test_identical_experts_give_themselves(seed: int, count: int, shape: tuple[int, ...]) -> None:
    base, experts = models(seed, 1, shape)
    same = {f"e{number}": experts["e0"].clone() for number in range(count)}
    for method, parameters in [
        ("linear", {}),
        ("task_arithmetic", {"scale": 1 / count}),
        ("ties", {"density": 1.0}),
        ("dare_ties", {"density": 1.0, "merge": "mean"}),
    ]:
        found = run(method, base, same, **parameters)
        torch.testing.assert_close(found, experts["e0"], rtol=1e-12, atol=1e-14)


@quick
@given(seeds, st.integers(2, 8), shapes, dtypes, densities, st.randoms(use_true_random=False))
def test_order_of_experts_changes_no_bit(
    seed: int,
    count: int,
    shape: tuple[int, ...],
    dtype: torch.dtype,
    density: float,
    random: object,
) -> None:
    base, experts = models(seed, count, shape, dtype)
    weights = {name: 0.1 + 0.3 * index for index, name in enumerate(experts)}
    names = list(experts)
    random.shuffle(names)
    shuffled = {name: experts[name] for name in names}
    for method in ("linear", *WITH_BASE):
        own = {"density": density} if method.endswith("ties") else {}
        one = run(method, base, experts, seed, weights=weights, **own)
        other = run(method, base, shuffled, seed, weights=[weights[n] for n in names], **own)
        assert torch.equal(one, other)


@quick
@given(seeds, counts, shapes, densities, st.integers(-8, 8))
def test_scaling_all_models_scales_the_merge(
    seed: int, count: int, shape: tuple[int, ...], density: float, exponent: int
) -> None:
    base, experts = models(seed, count, shape)
    factor = 2.0**exponent  # a power of two is exact, so the equality is too
    scaled = {name: expert * factor for name, expert in experts.items()}
    for method in ("linear", *WITH_BASE):
        own = {"density": density} if method.endswith("ties") else {}
        expected = run(method, base, experts, seed, **own) * factor
        assert torch.equal(run(method, base * factor, scaled, seed, **own), expected)


@quick
@given(seeds, counts, shapes)
def test_an_expert_of_weight_zero_is_as_absent(
    seed: int, count: int, shape: tuple[int, ...]
) -> None:
    base, experts = models(seed, count + 1, shape)
    fewer = {name: expert for name, expert in experts.items() if name != "e0"}
    weights = {name: float(name != "e0") for name in experts}
    for method in ("linear", *WITH_BASE):
        found = run(method, base, experts, weights=weights)
        torch.testing.assert_close(found, run(method, base, fewer), rtol=1e-12, atol=1e-14)


@quick
@given(seeds, shapes, st.floats(0, 1))
def test_slerp_ends_and_length(seed: int, shape: tuple[int, ...], t: float) -> None:
    rng = np.random.default_rng(seed)
    one, two = (torch.tensor(rng.normal(size=shape)) for _ in range(2))
    pair = {"x": one / one.norm(), "y": two / two.norm()}
    close = {"rtol": 1e-12, "atol": 1e-12}
    torch.testing.assert_close(run("slerp", one, pair, t=0), pair["x"], **close)
    torch.testing.assert_close(run("slerp", one, pair, t=1), pair["y"], **close)
    backwards = {"y": pair["y"], "x": pair["x"]}
    found = run("slerp", one, pair, t=t)
    torch.testing.assert_close(run("slerp", one, backwards, t=1 - t), found, **close)
    if abs(float((pair["x"] * pair["y"]).sum())) < 0.9995:
        assert abs(float(found.norm()) - 1) < 1e-9


@quick
@given(seeds, st.integers(1, 200), densities)
def test_the_trim_keeps_exactly_its_share_and_the_largest(
    seed: int, count: int, density: float
) -> None:
    delta = torch.tensor(np.random.default_rng(seed).integers(-4, 5, size=count) * 1.0)
    delta[delta == 0] = 0.5
    trimmed = run("ties", torch.zeros_like(delta), {"e0": delta}, density=density)
    kept = trimmed != 0
    assert int(kept.sum()) == max(1, int(density * count))
    assert torch.equal(trimmed[kept], delta[kept])
    if (~kept).any():
        assert delta[kept].abs().min() >= delta[~kept].abs().max()


@pytest.mark.parametrize("method", [n for n, i in registry.describe().items() if not i.whole_model])
def test_inputs_are_left_as_they_are_and_not_handed_back(method: str) -> None:
    base, experts = models(1, registry.info(method).experts or 2, (4, 5), torch.float32)
    before = [base.clone(), *(expert.clone() for expert in experts.values())]
    result = run(method, base, experts)
    for now, then in zip([base, *experts.values()], before, strict=True):
        assert torch.equal(now, then)
        assert now.data_ptr() != result.data_ptr()


def test_dare_is_unbiased_over_seeds() -> None:
    base, experts = models(2, 1, (30, 30))
    total = sum(run("dare_ties", base, experts, seed, density=0.25) for seed in range(400)) / 400
    delta = experts["e0"] - base
    # A kept entry is 4 d with probability 1/4: variance 3 d^2; six standard errors of the mean.
    assert ((total - experts["e0"]).abs() <= 6 * delta.abs() * (3 / 400) ** 0.5 + 1e-12).all()
