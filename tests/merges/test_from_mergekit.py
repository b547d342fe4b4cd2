"""`--from-mergekit` against results worked out by hand: every tensor of a model is one number."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

from common.errors import UserError
from merges.cli import main
from merges.engine import run as engine
from merges.engine.layer_rules import LayerRules
from merges.mergekit.translation import translate

VALUES = {"base": 1.0, "ja": 2.0, "math": 5.0}
ATTENTION, MLP = "model.layers.{}.self_attn.q_proj.weight", "model.layers.{}.mlp.up_proj.weight"
EMBEDDING, NORM, HEAD = "model.embed_tokens.weight", "model.norm.weight", "lm_head.weight"
Run = Callable[..., dict[str, torch.Tensor]]


def _fill(folder: Path, value: float, dtype: torch.dtype = torch.float32) -> None:
    path = folder / "model.safetensors"
    filled = {n: torch.full(t.shape, value, dtype=dtype) for n, t in load_file(path).items()}
    save_file(filled, path, {"format": "pt"})


@pytest.fixture(scope="module")
def top(tmp_path_factory: pytest.TempPathFactory, make_model: Callable[..., Path]) -> Path:
    """A folder of three models of four layers, and a LoRA adapter that adds 2 to every q_proj."""
    folder = tmp_path_factory.mktemp("models")
    for name, value in VALUES.items():
        make_model(folder / name, num_hidden_layers=4)
        _fill(folder / name, value)
    (folder / "lora").mkdir()
    settings = {"peft_type": "LORA", "r": 1, "lora_alpha": 2, "target_modules": ["q_proj"]}
    settings |= {"task_type": "CAUSAL_LM", "base_model_name_or_path": "ja", "bias": "none"}
    (folder / "lora" / "adapter_config.json").write_text(json.dumps(settings))
    factors = {}
    for layer in range(4):
        where = f"base_model.model.model.layers.{layer}.self_attn.q_proj"
        factors[f"{where}.lora_A.weight"] = torch.ones(1, 32)
        factors[f"{where}.lora_B.weight"] = torch.ones(32, 1)
    save_file(factors, folder / "lora" / "adapter_model.safetensors")
    return folder


@pytest.fixture
def run(top: Path, tmp_path: Path) -> Run:
    """Merge as a configuration says; its models are found in the folder of the file."""

    def merge(content: Any, *options: str) -> dict[str, torch.Tensor]:
        path = top / "config.yml"
        path.write_text(content if isinstance(content, str) else yaml.safe_dump(content))
        main(["--from-mergekit", str(path), "--out", str(tmp_path / "out"), *options])
        return load_file(tmp_path / "out" / "model.safetensors")

    return merge


def number(tensor: torch.Tensor) -> float:
    """The one number that a tensor is filled with."""
    assert bool((tensor == tensor.flatten()[0]).all())
    return float(tensor.flatten()[0])


def check(merged: dict[str, torch.Tensor], expected: dict[str, float]) -> None:
    found = {name: number(merged[name]) for name in expected}
    assert found == pytest.approx(expected, rel=1e-6)


def manifest(tmp_path: Path) -> dict[str, Any]:
    return json.loads((tmp_path / "out" / "manifest.json").read_text())["parameters"]


def two(ja: Any, math: Any) -> list[dict[str, Any]]:
    return [{"model": "ja", "parameters": ja}, {"model": "math", "parameters": math}]


def test_filters_and_gradients(run: Run, tmp_path: Path, top: Path) -> None:
    merged = run(
        """
        merge_method: linear
        models:
          - model: ja
            parameters:
              weight:
                - filter: self_attn
                  value: [0, 1, 0]      # of four layers: 0, 2/3, 2/3, 0
                - filter: mlp
                  value: ["1e-1", 0.7]  # 0.1, 0.3, 0.5, 0.7
                - value: 0.25
          - {model: math, parameters: {weight: 0.1}}
        parameters: {normalize: false}
        """
    )
    check(
        merged,
        {
            **{ATTENTION.format(n): 0.5 + 2 * w for n, w in enumerate((0, 2 / 3, 2 / 3, 0))},
            **{MLP.format(n): 0.5 + 2 * w for n, w in enumerate((0.1, 0.3, 0.5, 0.7))},
            "model.layers.2.input_layernorm.weight": 1.0,
            EMBEDDING: 1.0,
            NORM: 1.0,
            HEAD: 1.0,
        },
    )
    recipe = manifest(tmp_path)
    assert recipe["set"]["normalize"] is False
    rules = LayerRules(recipe["method"], recipe["set_layers"])
    assert rules(MLP.format(3))["weights"] == pytest.approx({"ja": 0.7, "math": 0.1})
    tensors = {name: load_file(top / name / "model.safetensors") for name in ("ja", "math")}
    again = engine.merge_tensors(
        recipe["method"], None, tensors, recipe["set"], parameters_for=rules
    )
    assert all(torch.equal(again[name], merged[name]) for name in merged)


def test_slices_have_gradients_of_their_own_and_ends(run: Run) -> None:
    """Tensors before the layers go with the first slice, those after them with the last."""

    def sources(first: int, end: int, **own: Any) -> list[dict[str, Any]]:
        return [
            {"model": "base", "layer_range": [first, end]},
            {"model": "ja", "layer_range": [first, end], "parameters": own},
        ]

    merged = run(
        {
            "merge_method": "task_arithmetic",
            "base_model": "base",
            "slices": [
                {"sources": sources(0, 1, weight=[3, 4]), "parameters": {"lambda": 2}},
                {"sources": sources(1, 4), "parameters": {"weight": [5, 8]}},
            ],
            "parameters": {"weight": 100, "lambda": 1},
        }
    )
    check(
        merged,
        {
            EMBEDDING: 1 + 2 * 3,
            MLP.format(0): 1 + 2 * 4,  # a single layer has the last value, as in mergekit
            MLP.format(1): 1 + 5,
            MLP.format(2): 1 + 6.5,
            MLP.format(3): 1 + 8,
            NORM: 1 + 5,
            HEAD: 1 + 5,
        },
    )


@pytest.mark.parametrize("listed", [True, False])
def test_a_base_model_of_linear_is_merged_like_the_others(listed: bool, run: Run) -> None:
    models = two({"weight": 1}, {"weight": 2}) + [{"model": "base"}] * listed
    content = {"merge_method": "linear", "models": models, "base_model": "base"}
    merged = run(content | {"parameters": {"weight": 5}})
    check(merged, {HEAD: (1 * 2 + 2 * 5 + 5 * 1) / 8})


@pytest.mark.parametrize("listed", [True, False])
def test_a_base_model_of_task_arithmetic_has_no_weight(
    listed: bool, run: Run, capsys: pytest.CaptureFixture
) -> None:
    models = two({"weight": 1}, {"weight": 0.5})
    models += [{"model": "base", "parameters": {"weight": 9}}] * listed
    merged = run({"merge_method": "task_arithmetic", "models": models, "base_model": "base"})
    check(merged, {HEAD: 1 + 1 + 0.5 * 4})
    assert ("weight has no effect for the base model" in capsys.readouterr().err) == listed


def test_slerp_begins_at_the_base_model(run: Run) -> None:
    """Tensors of one number have the same direction: the straight line."""
    content = {"merge_method": "slerp", "base_model": "math", "parameters": {"t": 0.25}}
    check(run({**content, "models": two({}, {})}), {HEAD: 0.75 * 5 + 0.25 * 2})
    check(run({**content, "models": [{"model": "ja"}]}), {HEAD: 0.75 * 5 + 0.25 * 2})


def test_parameters_of_each_expert_and_the_divisors(run: Run) -> None:
    ties = {"merge_method": "ties", "base_model": "base"}
    models = two({"weight": 1, "density": 1}, {"weight": 3, "density": 1})
    check(run({**ties, "models": models}), {HEAD: 1 + (1 + 3 * 4) / 4})
    summed = {**ties, "models": models, "parameters": {"normalize": False, "lambda": 0.5}}
    check(run(summed), {HEAD: 1 + (1 + 3 * 4) / 2})
    # Of equal magnitudes the first are kept, so both experts' or math's alone.
    models = two({"weight": 1, "density": 0.25}, {"weight": 3, "density": 0.5})
    merged = run({**ties, "models": models})[MLP.format(0)].flatten()
    expected = torch.full_like(merged, 1.0)
    expected[: len(merged) // 2] = 1 + 4
    expected[: len(merged) // 4] = 1 + (1 + 3 * 4) / 4
    assert torch.allclose(merged, expected)


@pytest.mark.parametrize("method", ["dare_ties", "dare_linear"])
def test_dare_rescales_by_the_sum_of_magnitudes_or_not_at_all(method: str, run: Run) -> None:
    content = {"merge_method": method, "base_model": "base", "models": [{"model": "math"}]}
    thinned = run({**content, "parameters": {"weight": 1, "density": 0.4, "rescale": False}})
    for tensor in thinned.values():
        assert set(tensor.unique().tolist()) <= {1.0, 5.0}
    kept = (thinned[HEAD] == 5).double().mean()
    assert 0.3 < kept < 0.5
    rescaled = run({**content, "parameters": {"weight": 1, "density": 0.4}})[HEAD]
    assert torch.equal(rescaled != 1, thinned[HEAD] == 5)
    assert float((rescaled.double() - 1).mean()) == pytest.approx(4, rel=1e-6)


@pytest.mark.parametrize(
    ("types", "stored"),
    [
        ({"dtype": "bfloat16"}, torch.bfloat16),
        ({"dtype": "float32", "out_dtype": "float16"}, torch.float16),
        ({"dtype": "torch.float64"}, torch.float64),
        ({}, torch.float32),
    ],
)
def test_types(types: dict[str, str], stored: torch.dtype, run: Run) -> None:
    models = two({"weight": 1}, {"weight": 2})
    merged = run({"merge_method": "linear", "models": models, **types})
    assert merged[HEAD].dtype == stored
    check(merged, {HEAD: 4.0})


def test_without_a_type_the_widest_of_the_models_counts(
    run: Run, top: Path, make_model: Callable[..., Path]
) -> None:
    if not (top / "narrow").exists():
        make_model(top / "narrow", num_hidden_layers=4)
    _fill(top / "narrow", 1.0, torch.bfloat16)
    content = {"merge_method": "task_arithmetic", "base_model": "narrow"}
    merged = run({**content, "models": [{"model": "ja", "parameters": {"weight": 0.3}}]})
    assert merged[HEAD].dtype == torch.float32
    check(merged, {HEAD: 1.3})


def test_a_model_with_an_adapter(run: Run) -> None:
    models = [{"model": "ja+lora", "parameters": {"weight": 1}}]
    models.append({"model": "ja", "parameters": {"weight": 3}})
    merged = run({"merge_method": "linear", "models": models})
    check(merged, {ATTENTION.format(1): (4 + 3 * 2) / 4, MLP.format(1): 2})


@pytest.mark.parametrize(
    ("asked", "vocabulary", "donor"),
    [
        ({}, "refuse", None),
        ({"tokenizer_source": "base"}, "base", None),
        ({"tokenizer_source": "union"}, "union", None),
        ({"tokenizer": {"source": "base"}}, "base", None),
        ({"tokenizer": {}}, "union", None),
        ({"tokenizer_source": "BASE"}, "base", None),
        ({"tokenizer": {"source": "math"}}, "base", "math"),
    ],
)
def test_tokenizers(asked: dict, vocabulary: str, donor: str, run: Run, tmp_path: Path) -> None:
    if asked.get("tokenizer_source") == "BASE":
        asked = {"tokenizer_source": "./base"}
    base = asked.get("tokenizer_source", "")
    base = base if base.startswith(".") else "base"
    models = two({"weight": 1}, {"weight": 2})
    run({"merge_method": "task_arithmetic", "base_model": base, "models": models, **asked})
    recipe = manifest(tmp_path)
    assert (recipe["vocabulary"], recipe["donor"]) == (vocabulary, donor)


def test_models_are_located(run: Run, top: Path) -> None:
    models = [{"model": "org/one@v1", "parameters": {"weight": 1}}]
    content = {"merge_method": "linear", "models": models}
    check(run(content, "--locate", f"org/one@v1={top / 'math'}"), {HEAD: 5})
    with pytest.raises(UserError, match=r"revisions are not fetched.*--locate org/one@v1=DIR"):
        run(content)


def test_what_has_no_effect_is_told(run: Run, capsys: pytest.CaptureFixture) -> None:
    run(
        {
            "merge_method": "karcher",
            "models": two({"weight": 1, "max_iter": 3}, {}),
            "parameters": {"int8_mask": True, "tol": "1e-6"},
        }
    )
    lines = capsys.readouterr().err.splitlines()
    assert "mergekit configuration: weight has no effect in karcher" in lines
    assert any("max_iter has no effect among the parameters of a model (ja)" in x for x in lines)
    assert not any("int8_mask" in line or "tol " in line for line in lines)


GOOD = {"merge_method": "linear", "models": two({"weight": 1}, {"weight": 2})}
TIES = {"merge_method": "ties", "base_model": "base", "models": [{"model": "ja"}]}


@pytest.mark.parametrize(
    ("method", "models", "parameters", "expected"),
    [
        ("nearswap", ["ja"], {"t": 0.25}, 1.25),
        ("nearswap", ["base", "ja"], {"t": 3}, 2.0),
        ("arcee_fusion", ["ja"], {}, 2.0),  # rows of equal numbers do not diverge
        ("ram", ["ja", "math"], {}, 1 + (1 + 4) / 2),
        ("ram", ["ja", "math"], {"epsilon": 2}, 5.0),
        ("ramplus_tl", ["ja", "math"], {"epsilon": 2, "r": 0.5, "alpha": 0.1}, 5.0),
    ],
)
def test_methods_of_few_words(
    run: Run, method: str, models: list[str], parameters: dict[str, Any], expected: float
) -> None:
    listed = [{"model": model} for model in models]
    content = {"merge_method": method, "base_model": "base", "models": listed}
    merged = run({**content, "parameters": parameters})
    check(merged, {MLP.format(1): expected, EMBEDDING: expected})


def _sliced(*ranges: Any, **more: Any) -> dict[str, Any]:
    parts = [{"sources": [{"model": "ja", "layer_range": list(r)}], **more} for r in ranges]
    return {"merge_method": "linear", "slices": parts, "parameters": {"weight": 1}}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[1", "not valid YAML"),
        ("- 1", "no merge_method"),
        ({**GOOD, "merge_method": "passthrough"}, "passthrough merges exactly 1 expert; 2 are"),
        ({**GOOD, "merge_method": "task_swapping"}, "merge_method task_swapping is not supported"),
        ({**GOOD, "merge_method": "ram"}, "method ram: no base given"),
        ({"merge_method": "linear", "modules": {}}, "'modules' in the configuration is not"),
        ({**GOOD, "chat_template": "chatml"}, "chat_template chatml is a file of mergekit"),
        ({**GOOD, "chat_template": "{{ short }}"}, "is no template; give its text, or auto"),
        ({**GOOD, "dtyp": 1}, r"unknown key 'dtyp' .*did you mean 'dtype'"),
        ({**GOOD, "slices": []}, "give either models or slices"),
        ({"merge_method": "linear"}, "give either models or slices"),
        ({"merge_method": "linear", "models": []}, "models must be a list"),
        ({"merge_method": "linear", "models": ["ja"]}, "'ja' is no mapping; give 'model"),
        ({"merge_method": "linear", "models": [{"model": {"model": "x"}}]}, "model given as"),
        ({**GOOD, "models": [*two({}, {}), {"model": "ja"}]}, "models have ja twice"),
        ({**GOOD, "dtype": "int4"}, "dtype 'int4' is unknown"),
        ({**GOOD, "base_model": {"model": "base"}}, "base_model .* is not supported"),
        ({**GOOD, "base_model": "base+lora"}, r"an adapter on the base model \(base\+lora\)"),
        ({**GOOD, "models": [{"model": "absent"}]}, "no folder 'absent'.*--locate absent=DIR"),
        ({**GOOD, "models": two({"weight": "x"}, {})}, "weight: 'x' is no number"),
        ({**GOOD, "models": two({"weight": True}, {})}, "weight: True is no number"),
        ({**GOOD, "models": two({"weight": 1}, {})}, "no weight of math for tensor"),
        ({**GOOD, "models": two({"wieght": 1}, {})}, "'wieght' .*did you mean 'weight'"),
        ({**GOOD, "parameters": {"normalize": "maybe"}}, "'maybe' is neither true nor false"),
        ({**GOOD, "parameters": {"weight": [{"filtr": "mlp", "value": 1}]}}, "weight: give a val"),
        ({**GOOD, "parameters": {"weight": [1, {"value": 1}]}}, "weight: give a value"),
        ({**GOOD, "parameters": [1]}, "parameters of the configuration"),
        ({**GOOD, "tokenizer_source": "absent"}, "tokenizer source 'absent' is not supported"),
        ({**GOOD, "tokenizer": {"tokens": {}}}, "'tokens' in tokenizer is not supported"),
        ({**GOOD, "tokenizer": {"pad_to_multiple_of": 8}}, "'pad_to_multiple_of' in tokenizer is"),
        ({**GOOD, "tokenizer": {}, "tokenizer_source": "base"}, "tokenizer_source or tokenizer"),
        (_sliced((0, 5)), r"slice 1: ja .* has the layers 0:4, and 0:5 is asked for"),
        (_sliced((0, 2), (3, 3)), r"layer_range \[3, 3\] of ja has no layers"),
        (_sliced((-1, 2)), r"layer_range \[-1, 2\] of ja has no layers"),
        (_sliced((0, 4, 5)), r"layer_range \[0, 4, 5\]: give"),
        (_sliced((0, 4), base_model="ja"), "'base_model' in a slice is not supported"),
        (_sliced((0, 4), residual_weight=0.1), "'residual_weight' in a slice is not supported"),
        ({**TIES, "parameters": {"weight": 1, "rescale": True}}, "rescale: True is not supported"),
        ({**TIES, "parameters": {"weight": -1}}, "weights: -1.0 is out of range"),
        ({**TIES, "parameters": {"weight": 1, "density": 0}}, "density: 0.0 is out of range"),
        ({**TIES, "base_model": None, "parameters": {"weight": 1}}, "ties: no base given"),
        ({"merge_method": "slerp", "models": two({}, {})}, "slerp needs base_model"),
    ],
)
def test_refusals(content: Any, message: str, run: Run, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message) as error:
        run(content)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "out").exists()


def test_a_slice_of_more_models_is_refused(run: Run) -> None:
    content = _sliced((0, 2), (2, 4))
    content["slices"][1]["sources"] += [{"model": "math", "layer_range": [2, 4]}]
    with pytest.raises(UserError, match=r"slice 2 merges 2 models .*, the first one 1"):
        run(content)


def test_models_of_unlike_types_want_one(
    run: Run, top: Path, make_model: Callable[..., Path]
) -> None:
    path = make_model(top / "mixed", num_hidden_layers=4) / "model.safetensors"
    tensors = load_file(path)
    save_file(tensors | {HEAD: tensors[HEAD].to(torch.float64)}, path, {"format": "pt"})
    content = {"merge_method": "linear", "parameters": {"weight": 1}}
    content["models"] = [{"model": "ja"}, {"model": "mixed"}]
    with pytest.raises(UserError, match="stored in different types; give dtype"):
        run(content)
    assert run({**content, "dtype": "bfloat16"})[HEAD].dtype == torch.bfloat16


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"absent\.yml: cannot be read \(No such file"):
        translate(tmp_path / "absent.yml")
