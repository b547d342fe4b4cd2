"""WIDEN, WUDI, DRM, LoRE, OPCM and DOGE against their formulas in numpy, in float64."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from merges.arithmetic import selection
from merges.engine.run import merge_tensors

NAME = "model.layers.0.self_attn.q_proj.weight"
GAIN = "model.layers.0.input_layernorm.weight"
Arrays = list[np.ndarray]
shapes = pytest.mark.parametrize("shape", [(12, 7), (7, 12), (9, 9)])
forms = pytest.mark.parametrize("svd", ["gram", "exact"])


def merged(method: str, base: Any, experts: Any, name: str = NAME, **parameters: Any) -> np.ndarray:
    tensors = {f"e{i}": {name: torch.tensor(x).double()} for i, x in enumerate(experts)}
    base = {name: torch.tensor(base).double()}
    return merge_tensors(method, base, tensors, parameters)[name].numpy()


def models(seed: int, count: int, shape: tuple[int, ...]) -> tuple[np.ndarray, Arrays]:
    rng = np.random.default_rng(seed)
    base = rng.normal(size=shape)
    return base, [base + 0.3 * rng.normal(size=shape) for _ in range(count)]


def close(found: np.ndarray, expected: Any, atol: float = 1e-9) -> None:
    np.testing.assert_allclose(found, expected, rtol=0, atol=atol)


def test_widen_by_hand() -> None:
    base = [[1, 2], [0, 2]]
    experts = [[[1, 2], [1, 2]], [[2, 2], [0, 0]]]
    close(merged("widen", base, experts), [[1.688770, 2], [1, 0.5]], 1e-6)
    transposed = [np.transpose(x) for x in (base, *experts)]
    tokens = merged("widen", transposed[0], transposed[1:], "model.embed_tokens.weight")
    close(tokens, [[1.688770, 1], [2, 0.5]], 1e-6)


def softmax(values: np.ndarray) -> np.ndarray:
    return np.exp(values) / np.exp(values).sum(0)


@shapes
def test_widen_formula(shape: tuple[int, int]) -> None:
    base, experts = models(1, 3, shape)

    def score(moves: np.ndarray) -> np.ndarray:
        ranks = moves.argsort(1).argsort(1) / moves.shape[1]
        return np.where(ranks > 0.9 * ranks.mean(1, keepdims=True), 0.8, softmax(ranks))

    lengths = np.array(
        [np.abs(np.linalg.norm(x, axis=0) - np.linalg.norm(base, axis=0)) for x in experts]
    )
    cosines = np.array(
        [
            (x * base).sum(0) / np.linalg.norm(x, axis=0) / np.linalg.norm(base, axis=0)
            for x in experts
        ]
    )
    weights = (score(lengths) + score(1 - cosines)) / 2
    expected = base + 0.5 * sum(w * (x - base) for w, x in zip(weights, experts, strict=True))
    parameters = {"ratio": 0.9, "calibration": 0.8, "scale": 0.5}
    close(merged("widen", base, experts, **parameters), expected)


def test_widen_of_a_vector() -> None:
    base, experts = models(2, 3, (20,))
    deltas = np.stack(experts) - base
    sizes = np.abs(deltas)
    weights = np.where(sizes > sizes.mean(1, keepdims=True), 1, softmax(sizes))
    close(merged("widen", base, experts, GAIN), base + (weights * deltas).sum(0))


def interference(task: np.ndarray, deltas: Arrays) -> float:
    return sum(np.linalg.norm((task - d) @ d.T) ** 2 / np.linalg.norm(d) ** 2 for d in deltas)


def test_wudi_by_hand() -> None:
    close(merged("wudi", [[0, 0]], [[[1, 0]], [[1, 1]]]), [[1, 1]])


@forms
@shapes
@pytest.mark.parametrize("count", [1, 2, 4])
def test_wudi_is_the_minimum(count: int, shape: tuple[int, int], svd: str) -> None:
    base, experts = models(count, count, shape)
    deltas = [x - base for x in experts]
    grams = [d.T @ d / np.linalg.norm(d) ** 2 for d in deltas]
    task = sum(d @ g for d, g in zip(deltas, grams, strict=True)) @ np.linalg.pinv(
        sum(grams), rcond=1e-10
    )
    close(merged("wudi", base, experts, svd=svd), base + task)
    close(merged("wudi", base, [*experts, base], svd=svd), base + task)
    for seed in range(3):
        other = task + 0.01 * np.random.default_rng(seed).normal(size=shape)
        assert interference(task, deltas) <= interference(other, deltas)


def test_wudi_leaves_the_sum_where_nothing_interferes() -> None:
    rng = np.random.default_rng(0)
    deltas = [np.zeros((6, 8)) for _ in range(2)]
    for i, delta in enumerate(deltas):
        delta[:, 4 * i : 4 * i + 4] = rng.normal(size=(6, 2)) @ rng.normal(size=(2, 4))
    close(merged("wudi", np.zeros((6, 8)), deltas), sum(deltas))


def adam(start: np.ndarray, gradient: Any, steps: int, rate: float) -> np.ndarray:
    point, first, second = start.copy(), 0.0, 0.0
    for step in range(1, steps + 1):
        slope = gradient(point)
        first, second = 0.9 * first + 0.1 * slope, 0.999 * second + 0.001 * slope**2
        scaled = np.sqrt(second / (1 - 0.999**step)) + 1e-8
        point = point - rate * first / (1 - 0.9**step) / scaled
    return point


def test_published_wudi_stops_early() -> None:
    base, experts = models(5, 3, (6, 9))
    deltas = [x - base for x in experts]

    def slope(task: np.ndarray) -> np.ndarray:
        return sum(2 * (task - d) @ d.T @ d / np.linalg.norm(d) ** 2 for d in deltas)

    expected = adam(sum(deltas), slope, 40, 1e-3)
    given = {"solver": "adam", "steps": 40, "learning_rate": 1e-3}
    close(merged("wudi", base, experts, **given), base + expected, 1e-8)
    moved = merged("wudi", base, experts, solver="adam") - base - sum(deltas)
    assert 0 < np.abs(moved).max() <= 3e-3 * 1.01


@pytest.mark.parametrize("method", ["wudi", "drm", "doge", "opcm", "lore"])
def test_what_is_no_matrix(method: str) -> None:
    base, experts = models(3, 3, (10,))
    deltas = np.stack(experts) - base
    expected = base + deltas.mean(0)
    if method == "opcm":
        total = deltas.sum(0)
        expected = base + total * np.linalg.norm(deltas, axis=1).mean() / np.linalg.norm(total)
    if method == "doge":
        norms = np.linalg.norm(deltas, axis=1, keepdims=True)
        kept = np.abs(deltas) >= np.sort(np.abs(deltas), axis=1)[:, [-3]]
        expected = base + (0.07 / norms * kept * deltas).sum(0)
    close(merged(method, base, experts, GAIN), expected)


def joint(deltas: Arrays, density: float, floor: float) -> np.ndarray:
    """DRM-H, entry by entry."""
    left, values, right = np.linalg.svd(np.concatenate(deltas, 1), full_matrices=False)
    there = values >= floor * values[0]
    left, values, right = left[:, there], values[there], right[there]
    blocks = np.stack(np.split(right, len(deltas), axis=1))
    norms = np.linalg.norm(blocks, axis=2, keepdims=True)
    units = np.divide(blocks, norms, out=np.zeros_like(blocks), where=norms > 1e-12)
    keep = np.sort(np.abs(units), axis=None)[::-1][int(density * units.size) - 1]
    shares = np.where(np.abs(units) >= keep, units, 0) * norms * values[None, :, None]
    agreeing = np.where(np.sign(shares) == np.sign(shares.sum(0)), shares, 0)
    return left @ (agreeing.sum(0) / np.maximum((agreeing != 0).sum(0), 1))


@forms
@shapes
@pytest.mark.parametrize(("density", "floor"), [(0.2, 0.01), (0.5, 0.3), (1.0, 0.0)])
def test_drm_formula(density: float, floor: float, shape: tuple[int, int], svd: str) -> None:
    base, experts = models(6, 3, shape)
    deltas = [x - base for x in experts]
    given = {"density": density, "floor": floor, "svd": svd, "scale": 0.8}
    close(merged("drm", base, experts, **given), base + 0.8 * joint(deltas, density, floor))
    expected = base + 0.8 * joint([d.T for d in deltas], density, floor).T
    close(merged("drm", base, experts, along="columns", **given), expected)


def test_drm_with_a_block_row_of_norm_zero() -> None:
    deltas = [np.diag([3.0, 1.0]), np.array([[0.0, 2.0], [0.0, 0.0]])]
    found = merged("drm", np.zeros((2, 2)), deltas, density=1.0)
    close(found, joint(deltas, 1.0, 0.01))


@pytest.mark.parametrize(
    ("experts", "common", "deltas"),
    [((4, 1, 1), 1.25, (2.25, 0, 0)), ((3, 1), 2, (0.5, -0.5))],
)
def test_lore_by_hand(experts: tuple, common: float, deltas: tuple) -> None:
    """Of matrices of one number the estimates have a limit."""
    given = {"mu": 0.5, "rounds": 80, "merge": "sum"}
    inputs = [[[float(x)]] for x in experts]
    close(merged("lore", [[0]], inputs, **given), [[common + sum(deltas)]])
    close(merged("lore", [[0]], inputs, strength=0.0, **given), [[common]])


def test_lore_penalties() -> None:
    from merges.methods.lore import shrink

    values = torch.tensor([3.0, 1.0]).double()
    close(shrink(values, 0.2, "nuclear").numpy(), [2.8, 0.8])
    close(shrink(values, 0.2, "squared").numpy(), np.array([17, 3]) / 7)
    # The minimum of |s - v|^2 / 2 + mu (sum s)^2 / 2, where the last value is shrunk to zero.
    close(shrink(torch.tensor([3.0, 1.0, 0.1]).double(), 0.2, "squared"), [17 / 7, 3 / 7, 0])


@shapes
@pytest.mark.parametrize("merge", ["mean", "sum"])
def test_lore_formula(merge: str, shape: tuple[int, int]) -> None:
    base, experts = models(8, 3, shape)
    deltas = np.zeros((3, *shape))
    for _ in range(4):
        common = (np.stack(experts) - deltas).mean(0)
        for number, expert in enumerate(experts):
            left, values, right = np.linalg.svd(expert - common, full_matrices=False)
            deltas[number] = left * np.maximum(values - 0.4, 0) @ right
    found = merged("lore", base, experts, mu=0.4, rounds=4, strength=0.9, merge=merge)
    close(found, common + 0.9 * getattr(np, merge)(deltas, axis=0))


def continual(deltas: Arrays, alpha: float) -> np.ndarray:
    total = deltas[0]
    for delta in deltas[1:]:
        left, values, right = np.linalg.svd(total)
        block = int(np.argmax(values.cumsum() / values.sum() > alpha))
        product = left.T @ delta @ right.T
        np.fill_diagonal(product, 0)
        product[:block, :block] = 0
        added = left @ product @ right
        assert abs((added * total).sum()) < 1e-9
        total = total + added
    return total


@forms
@shapes
@pytest.mark.parametrize("alpha", [0.0, 0.5, 0.9])
def test_opcm_formula(alpha: float, shape: tuple[int, int], svd: str) -> None:
    base, experts = models(9, 4, shape)
    deltas = [x - base for x in experts]
    total = continual(deltas, alpha)
    mean = np.mean([np.linalg.norm(d) for d in deltas])
    expected = base + total * mean / np.linalg.norm(total)
    close(merged("opcm", base, experts, alpha=alpha, svd=svd), expected)
    turned = merged("opcm", base, experts[::-1], alpha=alpha, svd=svd)
    assert np.abs(turned - expected).max() > 1e-3


def test_opcm_takes_lengths_over_the_model_as_its_running_factor_does() -> None:
    """The authors scale at every step; the factors of all steps but the last cancel."""
    rng = np.random.default_rng(1)
    deltas = [{NAME: rng.normal(size=(5, 6)), GAIN: rng.normal(size=6)} for _ in range(3)]

    def length(model: dict[str, np.ndarray]) -> float:
        return float(np.sqrt(sum((values**2).sum() for values in model.values())))

    state, mean, factor = deltas[0], length(deltas[0]), 1.0
    for number, delta in enumerate(deltas[1:], 2):
        step = {NAME: continual([state[NAME], delta[NAME]], 0.5) - state[NAME], GAIN: delta[GAIN]}
        mean = ((number - 1) * mean + length(delta)) / number
        unscaled = {name: factor * state[name] + step[name] for name in state}
        factor = length(unscaled) / mean
        state = {name: values / factor for name, values in unscaled.items()}
    base = {name: torch.zeros(values.shape).double() for name, values in state.items()}
    experts = {
        f"e{i}": {name: torch.tensor(values) for name, values in delta.items()}
        for i, delta in enumerate(deltas)
    }
    found = merge_tensors("opcm", base, experts, {})
    for name, values in state.items():
        close(found[name].numpy(), values)


def doge_loss(change: torch.Tensor, deltas: Arrays, factors: list[float]) -> torch.Tensor:
    tasks = [torch.tensor(delta) for delta in deltas]
    summed = sum(f * (task + change) for f, task in zip(factors, tasks, strict=True))
    return sum((task * (task - summed)).sum(1).square().sum() for task in tasks)


def test_doge_by_hand() -> None:
    deltas = [np.array([[1.0, 0.0]]), np.array([[0.0, 2.0]])]
    worked_out = doge_loss(torch.zeros(1, 2), deltas, [0.07, 0.035])
    assert float(worked_out) == pytest.approx(15.7645, abs=1e-4)
    # The only left vector is shared, so nothing is left of the gradient.
    given = {"steps": 1, "density": 1.0, "learning_rate": 0.01}
    close(merged("doge", np.zeros((1, 2)), deltas, **given), [[0.07, 0.07]])
    base, experts = models(4, 2, (8, 6))
    still = merged("doge", base, experts, steps=0, density=1.0)
    expected = base + sum(0.07 * (x - base) / np.linalg.norm(x - base) for x in experts)
    close(still, expected)


def test_doge_trims_a_large_model_as_a_small_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """Above a size, the threshold of the whole model is found from a sample of each tensor."""
    base, experts = models(5, 2, (40, 30))
    small = merged("doge", base, experts, steps=2)
    monkeypatch.setattr(selection, "_FEW", 100)
    close(merged("doge", base, experts, steps=2), small, 0)


@shapes
def test_doge_formula(shape: tuple[int, int]) -> None:
    base, experts = models(2, 3, shape)
    deltas = [x - base for x in experts]
    factors = [0.5 / np.linalg.norm(d) for d in deltas]
    size = min(shape)
    lefts = [np.linalg.svd(d)[0][:, : size // 3] for d in deltas]
    space = np.linalg.svd(np.concatenate(lefts, 1))[0][:, : max(1, int(size * 0.3))]

    def slope(change: np.ndarray) -> np.ndarray:
        point = torch.tensor(change, requires_grad=True)
        [gradient] = torch.autograd.grad(doge_loss(point, deltas, factors), point)
        return gradient.numpy() - space @ space.T @ gradient.numpy()

    change = adam(np.zeros(shape), slope, 30, 0.01)
    expected = base.copy()
    for factor, delta in zip(factors, deltas, strict=True):
        keep = np.sort(np.abs(delta), axis=None)[::-1][int(0.3 * delta.size) - 1]
        expected += factor * (np.abs(delta) >= keep) * (delta + change)
    given = {"scale": 0.5, "steps": 30, "learning_rate": 0.01, "shared": 0.3}
    close(merged("doge", base, experts, **given), expected, 1e-7)
