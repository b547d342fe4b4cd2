"""Gradients over layers, in rules of one's own: read, refused, evaluated and written down."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from common.errors import UserError
from merges.cli import main
from merges.engine import run as engine
from merges.engine.layer_rules import LayerRules, read_rules
from merges.engine.stacks import count_layers, layer_of

LAYERS = 5
SHAPE = (2, 3)
NAMES = [
    "model.embed_tokens.weight",
    *(
        f"model.layers.{n}.{part}.weight"
        for n in range(LAYERS)
        for part in ("self_attn.q_proj", "mlp.up_proj")
    ),
    "lm_head.weight",
]
# Two task vectors that are told apart: of ones and of hundreds.
BASE = {name: torch.zeros(SHAPE) for name in NAMES}
EXPERTS = {
    "ja": {name: torch.ones(SHAPE) for name in NAMES},
    "math": {name: torch.full(SHAPE, 100.0) for name in NAMES},
}


def merged(rules: list, method: str = "task_arithmetic", **settings: object) -> dict[str, float]:
    found = engine.merge_tensors(
        method, BASE, EXPERTS, settings, parameters_for=LayerRules(method, rules)
    )
    return {name: float(tensor[0, 0]) for name, tensor in found.items()}


def of(kind: str, found: dict[str, float]) -> list[float]:
    return [found[f"model.layers.{n}.{kind}.weight"] for n in range(LAYERS)]


def test_a_gradient_is_piecewise_linear_over_the_layers() -> None:
    found = merged(
        [{"match": "self_attn", "gradient": {"scale": [0, 0.6, 0.4]}}], scale=2.0, weights=[1, 0]
    )
    assert of("self_attn.q_proj", found) == pytest.approx([0, 0.3, 0.6, 0.5, 0.4])
    assert of("mlp.up_proj", found) == [2.0] * LAYERS
    assert found["lm_head.weight"] == found["model.embed_tokens.weight"] == 2.0


def test_numbers_of_each_expert_have_gradients_of_their_own() -> None:
    found = merged([{"gradient": {"weights": {"ja": [0, 1, 0], "math": [1, 0]}}}], scale=1.0)
    expected = [0 + 100, 0.5 + 75, 1 + 50, 0.5 + 25, 0 + 0]
    assert of("self_attn.q_proj", found) == pytest.approx(expected)
    assert of("mlp.up_proj", found) == pytest.approx(expected)
    assert found["lm_head.weight"] == 101.0
    found = merged(
        [{"match": "mlp", "gradient": {"weights": {"ja": 3, "math": [0, 0.04]}}}], scale=1
    )
    assert of("mlp.up_proj", found) == pytest.approx([3, 4, 5, 6, 7])


def test_a_gradient_over_some_layers_and_the_order_of_rules() -> None:
    rules = [
        {"gradient": {"scale": [1, 2]}},
        {
            "layers": [1, 3],
            "match": "mlp",
            "gradient": {"scale": [10, 30]},
            "set": {"weights": [1, 0]},
        },
        {"layers": [3, 3], "set": {"scale": 7}},
        {"layers": [4, 4], "gradient": {"scale": [8, 9]}},
    ]
    found = merged(rules, scale=5.0, weights=[1, 0])
    assert of("self_attn.q_proj", found) == pytest.approx([1, 1.25, 1.5, 7, 9])
    assert of("mlp.up_proj", found) == pytest.approx([1, 10, 20, 7, 9])
    assert found["lm_head.weight"] == 5.0


def test_a_rule_of_both_touches_tensors_of_no_layer_with_what_it_sets() -> None:
    rules = [{"match": "weight", "set": {"weights": [2, 0]}, "gradient": {"scale": [1, 5]}}]
    found = merged(rules, scale=10.0)
    assert of("mlp.up_proj", found) == pytest.approx([2, 4, 6, 8, 10])
    assert found["lm_head.weight"] == 20.0


def test_one_number_for_all_experts_where_there_may_be_several() -> None:
    """TIES' density: a list of a gradient is over layers, a mapping by expert."""
    rng = np.random.default_rng(3)
    names = [f"model.layers.{n}.mlp.up_proj.weight" for n in range(3)]
    values = {n: torch.tensor(rng.standard_normal((40, 10))) for n in names}
    base = {name: torch.zeros(40, 10, dtype=torch.float64) for name in names}
    for points in ([0.25, 0.75], {"one": [0.25, 0.75]}):
        rules = LayerRules("ties", [{"gradient": {"density": points}}])
        found = engine.merge_tensors("ties", base, {"one": values}, {}, parameters_for=rules)
        kept = [int(found[name].count_nonzero()) for name in names]
        assert kept == [100, 200, 300]


def test_rules_are_written_as_they_were_read(tmp_path: Path) -> None:
    written = [
        {"match": "self_attn", "gradient": {"t": [0, 0.5, 0.3, 0.7, 1]}},
        {"layers": [0, 1], "set": {"t": 0.5}},
        {"match": "mlp", "layers": [1, 2], "set": {}, "gradient": {"t": [1, 0]}},
    ]
    (tmp_path / "rules.json").write_text(json.dumps(written))
    rules = read_rules("slerp", tmp_path / "rules.json")
    again = LayerRules("slerp", json.loads(json.dumps(rules.as_json())))
    assert again.as_json() == rules.as_json()
    for found in (rules, again):
        found.check_used(NAMES)
        assert found(NAMES[5]) == {"t": pytest.approx(0.5 * 0 + 0.3)}
        assert found(NAMES[6]) == {"t": 0.0}
        assert found(NAMES[-1]) == {}


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        ({"gradient": {}}, 'give "gradient" as'),
        ({"gradient": [0, 1]}, 'give "gradient" as'),
        ({"gradient": {"scale": []}}, "gradient of scale: give a list"),
        ({"gradient": {"scale": 1}}, "gradient of scale: give a list"),
        ({"gradient": {"scale": [0, "x"]}}, "gradient of scale: give a list"),
        ({"gradient": {"scale": [0, True]}}, "gradient of scale: give a list"),
        ({"gradient": {"scal": [0, 1]}}, "no parameter 'scal' .did you mean 'scale'"),
        ({"gradient": {"scale": {"ja": [1]}}}, "scale: .* is no number"),
        ({"gradient": {"weights": [0, 1]}}, "weights: 0 is neither a list nor a mapping"),
        ({"gradient": {"weights": {"ja": [0, -1], "math": 0}}}, "weights: -1 is out of range"),
        ({"gradient": {"density": [0.5, 0]}}, "density: 0 is out of range"),
        ({"gradient": {"merge": [0, 1]}}, "merge: 0 is unknown"),
        ({"set": {"scale": 1}, "match": "x", "gradient": {"scale": [1]}}, "scale is in 'set' and"),
        ({"match": "lm_head", "gradient": {"scale": [0, 1]}}, "it matches no tensor of a layer"),
        ({"match": "nothing", "gradient": {"scale": [0, 1]}}, "it matches no tensor of the model"),
        ({"gradient": {"weights": {"ja": [0, 1]}}}, "no number for expert 'math'"),
    ],
)
def test_bad_gradients(rule: dict, message: str) -> None:
    with pytest.raises(UserError, match=message) as error:
        merged([rule], "ties")
    assert "\n" not in str(error.value)


def test_whole_numbers_must_stay_whole() -> None:
    """Between 1 and 5 the five layers have 1 to 5, between 1 and 4 not."""
    for points, fits in (([1, 5], True), ([1, 4], False)):
        rules = LayerRules("karcher", [{"gradient": {"max_iterations": points}}])
        if fits:
            rules.check_used(NAMES)
            assert rules(NAMES[3]) == {"max_iterations": 2}
        else:
            with pytest.raises(UserError, match=r"rule 1: .*max_iterations: 1.75 is not whole"):
                rules.check_used(NAMES)


@pytest.mark.parametrize(
    ("tensor", "layer"),
    [
        ("model.layers.12.mlp.up_proj.weight", 12),
        ("transformer.h.3.attn.c_attn.weight", 3),
        ("bert.encoder.layer.7.output.dense.weight", 7),
        ("model.embed_tokens.weight", None),
        ("model.norm.weight", None),
    ],
)
def test_layers_are_told_from_names(tensor: str, layer: int | None) -> None:
    assert (layer_of(tensor) or (None, None))[1] == layer
    assert count_layers([tensor, "x"]) == (0 if layer is None else layer + 1)


def test_the_command_line_takes_gradients(llama: Path, tmp_path: Path) -> None:
    (tmp_path / "rules.json").write_text('[{"match": "mlp", "gradient": {"t": [0, 1]}}]')
    experts = [f"{name}={llama / name}" for name in ("ja", "math")]
    out = tmp_path / "out"
    rules = ["--set-layers", str(tmp_path / "rules.json")]
    main(["--method", "slerp", "--experts", *experts, "--out", str(out), *rules])
    from safetensors.torch import load_file

    found = load_file(out / "model.safetensors")
    for layer, expert in ((0, "ja"), (1, "math")):
        own = load_file(llama / expert / "model.safetensors")
        name = f"model.layers.{layer}.mlp.up_proj.weight"
        torch.testing.assert_close(found[name], own[name], rtol=1e-6, atol=1e-7)
    manifest = json.loads((out / "manifest.json").read_text())["parameters"]
    assert manifest["set_layers"] == [{"match": "mlp", "gradient": {"t": [0, 1]}}]
