"""CoPA against its formula in numpy, by hand, and its adapter against PEFT."""

from __future__ import annotations

import json
import warnings

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from checkpoints.adapters import Adapter
from checkpoints.reading import Checkpoint
from common.errors import UserError
from merges.cli import main
from merges.copa import merge_copa
from merges.core_space import Pair
from tests.conftest import tiny_model
from tests.merges.test_core_space import changes, write_adapter


def pair(b, a, scale=1.0):
    return Pair(torch.tensor(b).double(), torch.tensor(a).double(), scale)


def test_two_adapters_by_hand():
    one = pair([[2.0, 1.0], [0.0, 4.0]], [[3.0, 1.0], [2.0, 2.0]])
    two = pair([[1.0, 6.0], [5.0, 0.0]], [[4.0, 0.0], [1.0, 3.0]], 0.5)
    merged = merge_copa({"one": {"m": one}, "two": {"m": two}}, 0.5, 0.0, 1.0)["m"]
    # Two entries of four stay. One: (3, 0), (2, 0), s = 4/3, 2. Two: (4, 0), (0, 3), s = 1, 4/3.
    assert merged.a.tolist() == [[7.0, 0.0], [2.0, 3.0]]
    weights = np.array([[4 / 3, 2.0], [1.0, 4 / 3]])
    kept = np.array([[[2.0, 0.0], [0.0, 4.0]], [[0.0, 3.0], [2.5, 0.0]]])
    expected = (weights[:, None] * kept).sum(0) / weights.sum(0)
    np.testing.assert_allclose(merged.b.numpy(), expected, atol=1e-15)
    # No factor below the largest of an adapter: 2 and 2, 4/3 and 4/3.
    even = merge_copa({"one": {"m": one}, "two": {"m": two}}, 0.5, 1.0, 1.0)["m"]
    expected = (2 * kept[0] + 4 / 3 * kept[1]) / (10 / 3)
    np.testing.assert_allclose(even.b.numpy(), expected, atol=1e-15)


@pytest.mark.parametrize(("density", "quantile"), [(0.2, 0.8), (0.6, 0.5), (1.0, 0.8)])
def test_three_adapters_are_the_formula(density, quantile):
    rng = np.random.default_rng(7)
    own = [(rng.normal(size=(9, 4)), rng.normal(size=(4, 11)), 0.5 + n) for n in range(3)]
    own[1][1][2] *= 1e-3  # a row of which nothing is kept
    adapters = {str(n): {"m": pair(*factors)} for n, factors in enumerate(own)}
    found = merge_copa(adapters, density, quantile)["m"]

    def kept(matrix):
        order = np.sort(np.abs(matrix).ravel())[::-1]
        return np.where(np.abs(matrix) >= order[int(density * matrix.size) - 1], matrix, 0)

    total_a, total_b, weights = 0, 0, 0
    for b, a, scale in own:
        small, left = kept(a), np.abs(kept(a)).sum(1)
        s = np.abs(a).sum(1)[left > 0] / left[left > 0]
        least = np.sort(s)[min(int(quantile * len(s)), len(s) - 1)]
        factors = np.zeros(4)
        factors[left > 0] = np.maximum(s, least)
        total_a, weights = total_a + small, weights + factors
        total_b = total_b + factors * kept(scale * b)
    assert density == 1 or not kept(own[1][1])[2].any()
    np.testing.assert_allclose(found.a.numpy(), 2 * total_a, atol=1e-13)
    np.testing.assert_allclose(found.b.numpy(), 2 * total_b / weights, atol=1e-13)


def test_order_and_equal_adapters():
    rng = np.random.default_rng(1)
    one, two = (pair(rng.normal(size=(5, 2)), rng.normal(size=(2, 6))) for _ in range(2))
    both = merge_copa({"x": {"m": one}, "y": {"m": two}})["m"]
    other = merge_copa({"y": {"m": two}, "x": {"m": one}})["m"]
    assert torch.allclose(both.b @ both.a, other.b @ other.a, rtol=0, atol=1e-14)
    # Without pruning, A is twice the sum and B twice the mean: 8 times one of two alike.
    same = merge_copa({"x": {"m": one}, "y": {"m": one}}, density=1.0)["m"]
    assert torch.allclose(same.b @ same.a, 8 * one.b @ one.a, rtol=0, atol=1e-13)
    # An adapter without the module takes no part.
    alone = merge_copa({"x": {"m": one}, "y": {"n": two}}, density=1.0)["m"]
    assert torch.allclose(alone.b @ alone.a, 4 * one.b @ one.a, rtol=0, atol=1e-13)


@pytest.fixture(scope="module")
def top(tmp_path_factory):
    """A base and adapters of rank 2, 2 and 3."""
    folder = tmp_path_factory.mktemp("copa")
    base = Checkpoint(tiny_model(folder / "base"))
    for seed, (name, rank) in enumerate({"one": 2, "two": 2, "three": 3}.items()):
        write_adapter(folder / name, base, rank, seed, alpha=4 + seed)
    return folder


def command(top, out, *experts, settings=()):
    given = ["copa", "--base", str(top / "base"), "--out", str(out), "--experts"]
    given += [f"x_{name}={top / name}" for name in experts]
    return main([*given, *(["--set", *settings] if settings else [])])


def test_the_adapter_folds_as_peft_folds_it(top, tmp_path):
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    assert command(top, tmp_path / "out", "one", "two", settings=["density=0.5"]) == 0
    read = {
        name: {module: pair(*factors) for module, factors in changes(top, name).items()}
        for name in ("one", "two")
    }
    expected = merge_copa(read, 0.5)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = AutoModelForCausalLM.from_pretrained(top / "base", trust_remote_code=False)
        theirs = PeftModel.from_pretrained(model, tmp_path / "out").merge_and_unload().state_dict()
    ours = Adapter(tmp_path / "out", Checkpoint(top / "base")).state_dict()
    base = load_file(top / "base" / "model.safetensors")
    for name, values in ours.items():
        assert torch.allclose(values, theirs[name], rtol=0, atol=1e-6)
        if own := expected.get(name.removesuffix(".weight")):
            change = base[name].double() + own.b @ own.a
            assert torch.allclose(values.double(), change, rtol=0, atol=1e-5)
    about = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert about["parameters"]["set"] == {"density": 0.5, "quantile": 0.8, "factor": 2.0}
    assert len(about["inputs"]) == 3


def test_bad_input_is_one_line(top, tmp_path):
    out = tmp_path / "out"
    for experts, settings, message in (
        (("one",), [], "CoPA merges two or more adapters"),
        (("one", "three"), [], r"down_proj has ranks \{.*: 2, .*: 3\}; use .* core-space"),
        (("one", "base"), [], "no LoRA adapter with"),
        (("one", "two"), ["density=0"], "parameter density: 0 is out of range; give a number"),
        (("one", "two"), ["densty=1"], r"no parameter 'densty' \(did you mean 'density'"),
    ):
        with pytest.raises(UserError, match=message) as error:
            command(top, out, *experts, settings=settings)
        assert "\n" not in str(error.value) and not out.exists()
    still = {"m": pair([[0.0], [0.0]], [[1.0, 2.0]])}
    with pytest.raises(UserError, match="merge to no change"):
        merge_copa({"x": still, "y": still})
