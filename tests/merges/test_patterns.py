"""Merges on patterns of bfloat16 against torch, bit by bit, and what their kernels refuse."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
import torch

from common.errors import UserError
from merges.arithmetic import patterns
from merges.engine import registry
from merges.engine.config import MergeConfig
from merges.engine.streaming import Collected, InMemory, Merge

ON_PATTERNS = [name for name, info in registry.describe().items() if info.patterns]
SHAPE = (700, 1001)  # several pieces that are read at once, and no multiple of any buffer


class Patterns:
    """Takes what a merge on arrays gives."""

    def __init__(self) -> None:
        self.found: dict[str, np.ndarray] = {}

    def write(self, name: str, start: int, values: np.ndarray) -> None:
        assert values.dtype == np.uint16
        held = self.found.setdefault(name, np.zeros(np.prod(SHAPE), dtype=np.uint16))
        held[start : start + len(values)] = values

    def done(self, name: str) -> None:
        pass


def models(count: int, scale: float = 1.0) -> tuple[InMemory, dict[str, InMemory]]:
    """Return a base and experts near to it, with equal, tiny and missing changes."""
    draw = torch.Generator().manual_seed(count)
    base = torch.randn(SHAPE, generator=draw) * scale
    base[:5] = 0.0
    base[5:10] *= 1e-38  # subnormal in float32
    experts = {}
    for number in range(count):
        change = 0.05 * scale * torch.randn(SHAPE, generator=draw)
        change[20:40] = 0.0  # frozen
        change[40:300] = (change[40:300] > 0) * 0.0625 * scale  # equal magnitudes at thresholds
        experts[f"e{number}"] = InMemory({"w": (base + change).bfloat16()}, f"e{number}")
    return InMemory({"w": base.bfloat16()}, "base"), experts


def both(
    method: str, given: Mapping[str, Any], count: int = 3, scale: float = 1.0
) -> tuple[np.ndarray, np.ndarray]:
    """Merge on patterns and with torch; return the patterns of both."""
    base, experts = models(registry.info(method).experts or count, scale)
    config = MergeConfig(method, base, experts, dict(given), seed=5)
    sink, tensors = Patterns(), Collected(Merge(config).specs)
    Merge(config, arrays=True).run(sink, ["w"])
    Merge(config).run(tensors, ["w"])
    expected = tensors.tensors["w"].view(torch.int16).numpy().view(np.uint16).reshape(-1)
    return sink.found["w"], expected


def settings(method: str) -> list[dict[str, Any]]:
    """Return combinations of a method's parameters."""
    known = registry.info(method).parameters
    choices: dict[str, list[Any]] = {
        "weights": [None, [0.5, 0.3, 0.0]],
        "density": [0.2, 0.61],
        "merge": ["mean", "sum"],
        "rescale": ["density", "l1"],
        "scale": [0.7],
        "origin": ["zero", "base"],
    }
    names = [name for name in choices if name in known]
    return [
        dict(zip(names, values, strict=True))
        for values in itertools.product(*(choices[name] for name in names))
    ]


@pytest.mark.parametrize(
    ("method", "given"), [(method, given) for method in ON_PATTERNS for given in settings(method)]
)
def test_the_result_is_torchs_bit_by_bit(
    method: str, given: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    used = []
    original = registry.load_patterns(method)
    assert original is not None

    def counting(*values: Any, **parameters: Any) -> Any:
        found = original(*values, **parameters)
        used.append(found is not None)
        return found

    monkeypatch.setattr(registry, "load_patterns", lambda name: counting)
    found, expected = both(method, given)
    np.testing.assert_array_equal(found, expected)
    assert used == [True, True, True]  # nothing went the other way


def test_ties_takes_more_experts_than_have_room() -> None:
    found, expected = both("ties", {"density": 0.3}, count=patterns._MOST + 1)
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("method", ON_PATTERNS)
@pytest.mark.parametrize("bad", [np.inf, -np.inf, np.nan])
@pytest.mark.parametrize("model", ["base", "e1"])
def test_what_is_not_finite_is_named(method: str, bad: float, model: str) -> None:
    base, experts = models(2)
    reads_base = "base" in registry.info(method).needs
    values = (base if model == "base" else experts[model])._tensors["w"]
    values[400_000] = bad
    config = MergeConfig(method, base, experts, seed=5)
    if model == "base" and not reads_base:
        Merge(config, arrays=True).run(Patterns(), ["w"])
        return
    with pytest.raises(UserError, match=f"w.*{model}|{model}.*w"):
        Merge(config, arrays=True).run(Patterns(), ["w"])


@pytest.mark.parametrize("bad", [np.inf, -np.inf, np.nan])
@pytest.mark.parametrize("number", [0, 1, 2])
def test_values_that_a_merge_drops_must_be_finite_too(bad: float, number: int) -> None:
    draws = np.random.default_rng(0).standard_normal((3, 40), dtype=np.float32)
    draws[number, 17] = bad
    *experts, base = (torch.from_numpy(own).bfloat16() for own in draws)
    *experts, base = (own.view(torch.int16).numpy().view(np.uint16) for own in (*experts, base))
    assert patterns.mix(experts, [0.0, 0.0], base) is None
    ways: list[dict[str, Any]] = [
        {"masks": [np.full(40, kept)] * 2, "factors": [2.0, 2.0]} for kept in (False, True)
    ]
    ways += [{"limits": [(limit, limit, 20)] * 2} for limit in (0.0, np.inf)]
    for way in ways:
        for weights in ([0.5, 0.5], [0.0, 0.0]):
            assert patterns.agree(experts, base, weights, "mean", 1.0, **way) is None


@pytest.mark.parametrize("method", ["task_arithmetic", "ties", "dare_ties"])
def test_an_overflow_is_refused_as_elsewhere(method: str) -> None:
    with pytest.raises(UserError, match="overflows"):
        both(method, {"scale": 1e38}, scale=1e3)


def test_task_vectors_that_overflow_are_refused() -> None:
    most = torch.finfo(torch.bfloat16).max
    base = InMemory({"w": torch.full((64,), -most, dtype=torch.bfloat16)}, "base")
    experts = {
        name: InMemory({"w": torch.full((64,), value, dtype=torch.bfloat16)}, name)
        for name, value in (("a", most), ("b", -most))
    }
    for method in ("task_arithmetic", "ties", "dare_ties"):
        with pytest.raises(UserError, match="overflows"):
            Merge(MergeConfig(method, base, experts), arrays=True).run(Patterns(), ["w"])


def test_compiled_kernels_do_what_python_does_with_them() -> None:
    """Python runs the kernels' own statements, one value at a time, with numpy's numbers."""
    rng = np.random.default_rng(0)
    base, *experts = (rng.normal(size=(4, 70)).astype(np.float32).view(np.uint32) >> 16).astype(
        np.uint16
    )
    masks = list((rng.random((3, 70)) < 0.5).astype(np.uint8))
    singles = [np.float32([0.5, 0.3, 0.2]), np.float32([2, 1.5, 1]), np.float32([0.4, 0.6, 0.8])]
    splits, nothing = np.array([0, 30, 70]), np.empty(0, dtype=np.float32)
    one = np.float32(0.7)

    def both(name: str, given: list[Any], *results: np.ndarray, counted: bool = True) -> None:
        """Call a kernel in both ways; lists of arrays are pointers to pointers."""
        function = patterns.KERNELS._functions[name][0]
        compiled = [patterns.addresses(x) if isinstance(x, list) else x for x in given]
        twice = []
        for call, values in ((getattr(patterns, name), compiled), (function, given)):
            out = [np.zeros_like(result) for result in results]
            behind = len(values) - (counted and bool(results))  # what comes after results
            twice.append((call(*values[:behind], *out, *values[behind:]), out))
        assert twice[0][0] == twice[1][0]
        for found, expected in zip(twice[0][1], twice[1][1], strict=True):
            np.testing.assert_array_equal(found, expected)

    for from_base in (0, 1):
        both("_mix", [experts, 3, singles[0], base, from_base, 70], base)
    for mean in (0, 1):
        thin = [1, masks, singles[1], nothing, nothing, splits]
        both("_agree", [experts, 3, base, *thin, singles[0], mean, one, 70], base)
        trim = [0, masks, nothing, singles[2], singles[1], splits]
        both("_agree", [experts, 3, base, *trim, singles[0], mean, one, 70], base)
    both("_products", [experts[0], experts[1], 70], np.zeros(3), counted=False)
    for low, high in ((0.3, 0.6), (0.0, 0.0), (-1.0, np.inf)):
        bounds = [np.float32(low), np.float32(high)]
        between = functools.partial(both, "_between", [experts[0], base, 70, 50, *bounds])
        between(np.zeros(71, dtype=np.float32), np.zeros(4, dtype=np.int64), counted=False)


@pytest.mark.parametrize("bounds", ["some", "equal", "all", "none"])
@pytest.mark.parametrize("count", [1, 15, 16, 1024, 5000])
def test_magnitudes_between_bounds_are_those_that_numpy_finds(bounds: str, count: int) -> None:
    rng = np.random.default_rng(count)
    expert, base = (rng.normal(size=(2, count)).astype(np.float32).view(np.uint32) >> 16).astype(
        np.uint16
    )
    base[::3] = expert[::3]  # frozen
    wide = [
        (own.astype(np.uint32) << 16).view(np.float32).astype(np.float64) for own in (expert, base)
    ]
    magnitudes = np.abs(wide[0] - wide[1]).astype(np.float32)
    low, high = {
        "some": (0.3, 0.6),
        "equal": (0.0, 0.0),
        "all": (-1.0, np.inf),
        "none": (1e9, 1e10),
    }[bounds]
    low, high = np.float32(low), np.float32(high)
    found = patterns.between(expert, base, low, high, 700)
    assert found is not None and len(found) == -(-count // 700)
    for part, (above, number, values) in enumerate(found):
        own = magnitudes[700 * part : 700 * (part + 1)]
        inside = own[(own >= low) & (own <= high)]
        assert (above, number) == (np.count_nonzero(own > high), len(inside))
        assert values.tolist() == ([] if bounds == "equal" else inside.tolist())


@pytest.mark.parametrize("count", [1, 2, 4])
def test_inner_products_have_the_bits_of_those_of_float32(count: int) -> None:
    from merges.arithmetic import kernels

    rng = np.random.default_rng(count)
    bits = rng.normal(size=(count, 1000)).astype(np.float32).view(np.uint32) >> 16
    found = patterns.gram(list(bits.astype(np.uint16)))
    wide = (bits << 16).astype(np.uint32).view(np.float32)
    assert found.tolist() == kernels.gram(list(wide)).tolist()
    np.testing.assert_allclose(found, wide.astype(np.float64) @ wide.T.astype(np.float64))
