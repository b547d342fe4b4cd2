"""Methods that choose entry by entry, against cases counted by hand and against numpy."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from common.errors import UserError
from merges.engine.run import merge_tensors
from merges.methods.arcee_fusion import importance

Arrays = list[np.ndarray]


def merged(method: str, base: Any, experts: Any, **parameters: Any) -> np.ndarray:
    tensors = {f"e{i}": {"w": torch.tensor(x).double()} for i, x in enumerate(experts)}
    base = {"w": torch.tensor(base).double()}
    return merge_tensors(method, base, tensors, parameters)["w"].numpy()


def from_zero(method: str, *deltas: Any, **parameters: Any) -> list:
    """Merge task vectors: the base is zero."""
    return merged(method, np.zeros_like(deltas[0], float), deltas, **parameters).tolist()


def models(seed: int, count: int, *shape: int) -> tuple[np.ndarray, Arrays]:
    rng = np.random.default_rng(seed)
    base = rng.normal(size=shape)
    return base, [base + 0.1 * rng.normal(size=shape) for _ in range(count)]


def test_magmax_and_emr_by_hand() -> None:
    deltas = ([2.0, -1.0, 0.5], [1.0, -3.0, -0.2])
    assert from_zero("emr_unified", *deltas) == [2.0, -3.0, 0.5]
    assert from_zero("magmax", *deltas) == [2.0, -3.0, 0.5]
    # The largest entry has not the elected sign, two cancel, two are equally large.
    deltas = ([-3.0, 1.0, -2.0], [2.0, -1.0, 2.0], [2.0, 0.0, 1.0])
    assert from_zero("emr_unified", *deltas) == [2.0, 0.0, 2.0]
    assert from_zero("magmax", *deltas) == [-3.0, 1.0, -2.0]


@pytest.mark.parametrize("count", [1, 2, 5])
def test_magmax_and_emr_formulas(count: int) -> None:
    base, experts = models(count, count, 7, 5)
    deltas = np.stack(experts) - base
    largest = np.take_along_axis(deltas, np.abs(deltas).argmax(0)[None], 0)[0]
    np.testing.assert_allclose(
        merged("magmax", base, experts, scale=0.6), base + 0.6 * largest, atol=1e-14
    )
    sign = np.sign(deltas.sum(0))
    unified = sign * np.where(np.sign(deltas) == sign, np.abs(deltas), 0).max(0)
    np.testing.assert_allclose(
        merged("emr_unified", base, experts, scale=0.6), base + 0.6 * unified, atol=1e-14
    )


def test_nearswap_is_mergekits_formula() -> None:
    base, experts = models(3, 1, 9, 4)
    experts[0][0] = base[0]
    share = np.clip(0.05 / np.maximum(np.abs(experts[0] - base), 1e-300), 0, 1)
    expected = share * experts[0] + (1 - share) * base
    np.testing.assert_allclose(merged("nearswap", base, experts, t=0.05), expected, atol=1e-15)
    np.testing.assert_allclose(merged("nearswap", base, experts, t=9.0), experts[0], atol=1e-15)


def test_nearswap_takes_one_expert_and_a_positive_threshold() -> None:
    with pytest.raises(UserError, match="merges exactly 1 expert; 2 are given"):
        merged("nearswap", [0.0], [[1.0], [2.0]])
    with pytest.raises(UserError, match="t: 0 is out of range"):
        merged("nearswap", [0.0], [[1.0]], t=0)


def test_ram_by_hand() -> None:
    deltas = ([1.0, 2.0, 3.0, 0.0], [0.0, 4.0, 1e-6, 0.0], [0.0, 0.0, 6.0, 0.0])
    assert from_zero("ram", *deltas) == [1.0, 3.0, 4.5, 0.0]
    assert from_zero("ram", *deltas, epsilon=0.0) == [1.0, 3.0, pytest.approx(3.0 + 1e-6 / 3), 0.0]
    # The first: two shared entries, one alone, so 2 cut to 1/2; the others have none alone.
    assert from_zero("ram_plus", *deltas, r=0.4, alpha=0.5) == pytest.approx([1.2, 3.0, 4.5, 0.0])
    assert from_zero("ram_plus", *deltas, r=0.0) == [1.0, 3.0, 4.5, 0.0]


def ram_plus_oracle(deltas: Arrays, r: float, alpha: float) -> Arrays:
    """Compute the factor of each expert's unique entries."""
    changed = [np.abs(d) > 1e-5 for d in deltas]
    count = sum(c.astype(int) for c in changed)
    alone = [int((c & (count == 1)).sum()) for c in changed]
    factors = [
        1 + r * np.clip((c.sum() - u) / max(u, 1e-5), 0, alpha)
        for c, u in zip(changed, alone, strict=True)
    ]
    return [
        np.where(count == 1, f, 1 / np.maximum(count, 1)) * c * d
        for f, c, d in zip(factors, changed, deltas, strict=True)
    ]


@pytest.mark.parametrize("scope", ["tensor", "model"])
def test_ram_plus_counts_over_a_tensor_or_the_model(scope: str) -> None:
    rng = np.random.default_rng(4)
    deltas = [
        {name: rng.normal(size=size) * (rng.random(size) < share) for name, size in shapes}
        for share in (0.1, 0.3, 0.8)
        for shapes in [(("a", (6, 30)), ("b", (70,)))]
    ]
    base = {name: torch.zeros(values.shape).double() for name, values in deltas[0].items()}
    tensors = {
        f"e{i}": {name: torch.tensor(values) for name, values in delta.items()}
        for i, delta in enumerate(deltas)
    }
    given = {"r": 0.5, "alpha": 3.0, "scope": scope, "scale": 0.9}
    found = merge_tensors("ram_plus", base, tensors, given)
    joined = [np.concatenate([d["a"].ravel(), d["b"]]) for d in deltas]
    if scope == "model":
        whole = 0.9 * sum(ram_plus_oracle(joined, 0.5, 3.0))
        expected = {"a": whole[:180].reshape(6, 30), "b": whole[180:]}
    else:
        expected = {n: 0.9 * sum(ram_plus_oracle([d[n] for d in deltas], 0.5, 3.0)) for n in base}
    for name, values in expected.items():
        np.testing.assert_allclose(found[name].numpy(), values, atol=1e-14)


def fused(base: np.ndarray, expert: np.ndarray) -> np.ndarray:
    """Arcee Fusion in float64, sorted whole."""

    def probabilities(values: np.ndarray) -> np.ndarray:
        exps = np.exp(values - values.max(-1, keepdims=True))
        return exps / exps.sum(-1, keepdims=True) + 1e-8

    new, old = probabilities(expert), probabilities(base)
    importance = np.abs(expert - base) * (new * np.log(new / old)).sum(-1, keepdims=True)
    ordered = np.sort(importance, axis=None)
    first, median, third = (ordered[int(q * (ordered.size - 1))] for q in (0.25, 0.5, 0.75))
    return np.where(importance >= median + 1.5 * (third - first), expert, base)


@pytest.mark.parametrize("shape", [(3,), (40,), (7, 5), (300, 70), (3, 4, 11)])
def test_arcee_fusion_formula(shape: tuple[int, ...]) -> None:
    base, experts = models(len(shape), 1, *shape)
    experts[0] += np.random.default_rng(1).normal(size=(*shape[:-1], 1))
    found = merged("arcee_fusion", base, experts)
    np.testing.assert_array_equal(found, fused(base, experts[0]))
    if base.size > 100:
        assert 0 < (found != base).mean() < 0.4


def test_the_divergence_of_an_expert_near_its_base_keeps_its_digits() -> None:
    draw = np.random.default_rng(0)
    base = (0.02 * draw.normal(size=(8, 1024))).astype(np.float32)
    expert = (base + 0.0004 * draw.normal(size=base.shape)).astype(np.float32)
    found = importance(torch.from_numpy(base), torch.from_numpy(expert)).numpy()
    wide, near = expert.astype(np.float64), base.astype(np.float64)
    # In another form, without sums that cancel: sum of q ((1 + d) log(1 + d) - d), p = q (1 + d).
    new, old = (np.exp(x) / np.exp(x).sum(-1, keepdims=True) + 1e-8 for x in (wide, near))
    d = (new - old) / old
    divergence = (old * ((1 + d) * np.log1p(d) - d)).sum(-1, keepdims=True)
    np.testing.assert_allclose(found, np.abs(wide - near) * divergence, rtol=1e-5, atol=1e-17)


def test_cabs_by_hand() -> None:
    deltas = ([4.0, -3.0, 1.0, 2.0], [5.0, 1.0, -2.0, 3.0])
    parameters = {"keep": 2, "group": 4}
    assert from_zero("cabs", *deltas, **parameters) == [4.0, -3.0, -2.0, 3.0]
    assert from_zero("cabs", *deltas, **parameters, weights=[1, 0]) == [4.0, -3.0, 0.0, 0.0]
    # In the other order the second expert has the first choice.
    assert from_zero("cabs", *deltas[::-1], **parameters) == [5.0, -3.0, 1.0, 3.0]


@pytest.mark.parametrize(("keep", "group"), [(2, 4), (3, 7), (None, 6), (1, 100)])
def test_cabs_formula(keep: int | None, group: int) -> None:
    base, experts = models(group, 3, 11, 5)
    taken, expected = np.zeros(55, bool), base.flatten()
    for expert in experts:
        delta = (expert - base).ravel()
        for start in range(0, 55, group):
            free = [p for p in range(start, min(start + group, 55)) if not taken[p]]
            chosen = sorted(free, key=lambda p: -abs(delta[p]))[: keep or group // 3]
            taken[chosen] = True
            expected[chosen] += 0.8 * delta[chosen]
    parameters = {"keep": keep, "group": group, "scale": 0.8}
    found = merged("cabs", base, experts, **parameters)
    np.testing.assert_allclose(found.ravel(), expected, atol=1e-14)


def test_cabs_keeps_no_more_than_a_group() -> None:
    with pytest.raises(UserError, match="keep: 5 of a group of 4 cannot be kept; give at most 4"):
        from_zero("cabs", [1.0], keep=5, group=4)
