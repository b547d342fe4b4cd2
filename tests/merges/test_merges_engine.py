"""The engine on whole checkpoints: what it writes, what it refuses, what it leaves behind."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from blake3 import blake3
from safetensors.torch import load_file, save_file

from checkpoints.reading import Checkpoint
from common.errors import UserError
from common.files import write_json
from merges.engine import run as engine
from merges.engine.config import MergeConfig
from merges.engine.layer_rules import LayerRules, read_rules

NAMES = ("ja", "math", "sql")
HEAD, EMBEDDING = "lm_head.weight", "model.embed_tokens.weight"
NORM = "model.layers.1.input_layernorm.weight"
PROJECTION = "model.layers.1.self_attn.k_proj.weight"


def read(top: Path, names: tuple[str, ...] = NAMES) -> tuple[Checkpoint, dict[str, Checkpoint]]:
    return Checkpoint(top / "base"), {name: Checkpoint(top / name) for name in names}


def merge(
    top: Path, out: Path, method: str = "ties", names: tuple[str, ...] = NAMES, **options: object
) -> dict[str, torch.Tensor]:
    parameters = options.pop("parameters", {})
    engine.merge_to_disk(out, MergeConfig(method, *read(top, names), parameters, **options))
    return load_file(out / "model.safetensors")


@pytest.fixture
def copy(llama: Path, tmp_path: Path) -> Path:
    """A copy of the Llama family that a test may damage."""
    return shutil.copytree(llama, tmp_path / "family")


def change(folder: Path, edit: Callable[[dict[str, torch.Tensor]], None]) -> None:
    tensors = load_file(folder / "model.safetensors")
    edit(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


@pytest.mark.parametrize("architecture", ["llama", "mistral"])
@pytest.mark.parametrize(
    ("method", "names"), [("linear", NAMES), ("ties", NAMES), ("slerp", NAMES[:2])]
)
def test_the_result_is_a_model_that_transformers_loads(
    family: Callable[[str], Path], architecture: str, method: str, names: tuple, tmp_path: Path
) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    top = family(architecture)
    tensors = merge(top, tmp_path / "out", method, names)
    dtype = torch.float32 if architecture == "llama" else torch.bfloat16
    assert {tensor.dtype for tensor in tensors.values()} == {dtype}
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    loaded = model.state_dict()
    assert set(loaded) == set(tensors)
    assert all(torch.equal(loaded[name], tensors[name]) for name in tensors)
    ids = AutoTokenizer.from_pretrained(tmp_path / "out")("w1 w2 w3", return_tensors="pt")
    assert model(ids["input_ids"]).logits.isfinite().all()


def test_uniform_soup_on_disk_is_the_mean_of_the_files(llama: Path, tmp_path: Path) -> None:
    tensors = merge(llama, tmp_path / "out", "linear")
    experts = [load_file(llama / name / "model.safetensors") for name in NAMES]
    for name, tensor in tensors.items():
        mean = np.mean([expert[name].double().numpy() for expert in experts], axis=0)
        np.testing.assert_allclose(tensor.numpy(), mean, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("method", ["linear", "task_arithmetic", "ties", "dare_ties"])
def test_embeddings_and_norms_of_the_base(method: str, llama: Path, tmp_path: Path) -> None:
    base = load_file(llama / "base" / "model.safetensors")
    kept = merge(llama, tmp_path / "kept", method, embeddings_and_norms="base")
    everything = merge(llama, tmp_path / "all", method, embeddings_and_norms="merged")
    for name in base:
        frozen = "norm" in name or name == EMBEDDING
        assert torch.equal(kept[name], base[name]) == frozen, name
        assert not torch.equal(everything[name], base[name]), name
        if not frozen:
            assert torch.equal(kept[name], everything[name])


def test_the_manifest_is_true_and_rebuilds_the_model(llama: Path, tmp_path: Path) -> None:
    rules = [{"layers": [1, 1], "set": {"scale": 0.5}}]
    merge(
        llama,
        tmp_path / "one",
        "dare_ties",
        parameters={"density": 0.7},
        seed=3,
        parameters_for=LayerRules("dare_ties", rules),
    )
    manifest = json.loads((tmp_path / "one" / "manifest.json").read_text())
    assert manifest["kind"] == "merge" and manifest["seed"] == 3
    recipe = manifest["parameters"]
    assert recipe["method"] == "dare_ties" and recipe["experts"] == list(NAMES)
    assert recipe["set"]["density"] == 0.7 and recipe["set"]["rescale"] == "density"
    assert recipe["set_layers"] == rules
    base, experts = read(llama)
    assert manifest["inputs"]["base"] == base.fingerprint
    assert manifest["inputs"]["experts.sql"] == experts["sql"].fingerprint
    written = {path.name for path in (tmp_path / "one").iterdir()}
    assert written - set(manifest["outputs"]) == {"manifest.json", "cost.json"}
    for name, digest in manifest["outputs"].items():
        content = (tmp_path / "one" / name).read_bytes()
        weights = f"blake3:{blake3(content).hexdigest()}"
        right = weights if name == "model.safetensors" else hashlib.sha256(content).hexdigest()
        assert digest == right
    engine.merge_to_disk(
        tmp_path / "two",
        MergeConfig(
            recipe["method"],
            base,
            experts,
            recipe["set"],
            seed=manifest["seed"],
            embeddings_and_norms=recipe["embeddings_and_norms"],
            parameters_for=LayerRules(recipe["method"], recipe["set_layers"]),
        ),
    )
    again = (tmp_path / "two" / "manifest.json").read_text()
    assert json.loads(again) == manifest
    cost = json.loads((tmp_path / "one" / "cost.json").read_text())
    assert cost["counted"]["parameters"] == sum(
        int(np.prod(base.shape(name))) for name in base.names()
    )


def test_seed_and_expert_names_decide_the_masks_and_threads_do_not(
    llama: Path, tmp_path: Path
) -> None:
    first = merge(llama, tmp_path / "a", "dare_ties", seed=1)[PROJECTION]
    threaded = merge(llama, tmp_path / "b", "dare_ties", seed=1, threads=2)[PROJECTION]
    torch.set_num_threads(1)
    assert torch.equal(first, threaded)
    assert not torch.equal(first, merge(llama, tmp_path / "c", "dare_ties", seed=2)[PROJECTION])
    base, experts = read(llama)
    renamed = {f"new_{name}": expert for name, expert in experts.items()}
    other = engine.merge_checkpoints(MergeConfig("dare_ties", base, renamed, {}, seed=1)).tensors[
        PROJECTION
    ]
    assert not torch.equal(first, other)


def test_in_memory_and_on_disk_agree(llama: Path, tmp_path: Path) -> None:
    base, experts = read(llama)
    found = engine.merge_tensors(
        "dare_ties",
        tensors := base.state_dict(),
        {name: expert.state_dict() for name, expert in experts.items()},
        {"density": 0.3},
        seed=5,
        embeddings_and_norms="base",
    )
    assert not {t.data_ptr() for t in found.values()} & {t.data_ptr() for t in tensors.values()}
    options = {"parameters": {"density": 0.3}, "seed": 5, "embeddings_and_norms": "base"}
    written = merge(llama, tmp_path / "out", "dare_ties", **options)
    assert all(torch.equal(found[name], written[name]) for name in written)


def test_methods_without_need_of_it_do_without_a_base(llama: Path, tmp_path: Path) -> None:
    base, experts = read(llama)
    for method, names in [("linear", NAMES), ("slerp", NAMES[1:])]:
        chosen = {name: experts[name] for name in names}
        with_base = engine.merge_checkpoints(MergeConfig(method, base, chosen, {})).tensors
        engine.merge_to_disk(tmp_path / method, MergeConfig(method, None, chosen, {}))
        without = load_file(tmp_path / method / "model.safetensors")
        assert all(torch.equal(with_base[name], without[name]) for name in without)
    with pytest.raises(UserError, match="method ties: no base given"):
        engine.merge_checkpoints(MergeConfig("ties", None, experts, {}))
    with pytest.raises(UserError, match="of the base: no base given"):
        engine.merge_checkpoints(
            MergeConfig("linear", None, experts, {}, embeddings_and_norms="base")
        )


def test_layer_rules_are_the_methods_own_values_there(llama: Path) -> None:
    base, experts = read(llama)
    rules = LayerRules(
        "task_arithmetic",
        [
            {"layers": [0, 1], "set": {"weights": {"sql": 1, "ja": 2, "math": 0}}},
            {"match": "mlp", "layers": [1, 1], "set": {"scale": 0.9, "weights": [1, 0, 0]}},
        ],
    )
    mixed = engine.merge_checkpoints(
        MergeConfig("task_arithmetic", base, experts, {"scale": 0.1}, parameters_for=rules)
    ).tensors
    uniform = [
        engine.merge_checkpoints(MergeConfig("task_arithmetic", base, experts, parameters)).tensors
        for parameters in (
            {"scale": 0.1},
            {"scale": 0.1, "weights": [2, 0, 1]},
            {"scale": 0.9, "weights": [1, 0, 0]},
        )
    ]
    for name, tensor in mixed.items():
        which = 2 if "layers.1.mlp" in name else 1 if "layers." in name else 0
        assert torch.equal(tensor, uniform[which][name]), name


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        ({"match": "x"}, "give a list of rules"),
        (["x"], r'rule 1: give \{"match"'),
        ([{"match": "mlp", "set": {"scale": 1}}, {"set": {}}], "rule 2: give 'match' or 'layers'"),
        ([{"mach": "x", "set": {}}], r"unknown key 'mach' \(did you mean 'match'\?\)"),
        ([{"match": "(", "set": {}}], "no regular expression"),
        ([{"layers": [2, 1], "set": {}}], r"must be \[first, last\]"),
        ([{"layers": [0, True], "set": {}}], r"must be \[first, last\]"),
        ([{"match": "mlp", "set": {"densty": 1}}], "did you mean 'density'"),
        ([{"match": "mlp", "set": {"density": 2}}], "density: 2 is out of range"),
        ([{"layers": [2, 9], "set": {"density": 1}}], "rule 1: it matches no tensor"),
    ],
)
def test_bad_layer_rules(rules: object, message: str, llama: Path, tmp_path: Path) -> None:
    write_json(tmp_path / "rules.json", rules)
    with pytest.raises(UserError, match=message) as error:
        found = read_rules("ties", tmp_path / "rules.json")
        engine.merge_checkpoints(MergeConfig("ties", *read(llama), {}, parameters_for=found))
    assert "rules.json" in str(error.value)


def _drop(tensors: dict[str, torch.Tensor]) -> None:
    del tensors[PROJECTION]


def _add(tensors: dict[str, torch.Tensor]) -> None:
    tensors["model.layers.2.mlp.up_proj.weight"] = torch.ones(2, 2)


def _reshape(tensors: dict[str, torch.Tensor]) -> None:
    tensors[PROJECTION] = tensors[PROJECTION][:8].clone()


def _nan(tensors: dict[str, torch.Tensor]) -> None:
    tensors[EMBEDDING][3, 4] = float("nan")


def _infinite(tensors: dict[str, torch.Tensor]) -> None:
    tensors[PROJECTION][0, 0] = -float("inf")


@pytest.mark.parametrize(
    ("who", "edit", "message"),
    [
        ("math", _drop, rf"math.* lacks .*{PROJECTION}"),
        ("sql", _add, r"sql.* has tensor model.layers.2"),
        ("ja", _reshape, rf"ja.*{PROJECTION} has shape \[8, 32\]"),
        ("base", _nan, rf"base: tensor {EMBEDDING} holds 1 NaN"),
        ("ja", _nan, rf"ja: tensor {EMBEDDING} holds 1 NaN"),
        ("sql", _infinite, rf"sql: tensor {PROJECTION} holds 1 NaN or infinite"),
    ],
)
@pytest.mark.parametrize("policy", ["merged", "base"])
def test_damaged_models_are_refused_and_nothing_is_written(
    who: str, edit: Callable, message: str, policy: str, copy: Path
) -> None:
    change(copy / who, edit)
    out = copy.parent / "place" / "out"
    with pytest.raises(UserError, match=message) as error:
        merge(copy, out, embeddings_and_norms=policy)
    assert "\n" not in str(error.value)
    assert not out.parent.exists() or os.listdir(out.parent) == []


@pytest.mark.parametrize("share", [0.0, 0.001, 0.5, 0.999])
def test_a_truncated_shard_is_refused(share: float, copy: Path) -> None:
    path = copy / "math" / "model.safetensors"
    os.truncate(path, int(path.stat().st_size * share))
    with pytest.raises(UserError, match=r"math/model\.safetensors"):
        merge(copy, copy.parent / "out")


def test_a_missing_shard_is_refused(copy: Path) -> None:
    tensors = load_file(copy / "math" / "model.safetensors")
    names = sorted(tensors)
    for shard, part in [("one", names[::2]), ("two", names[1::2])]:
        save_file({name: tensors[name] for name in part}, copy / "math" / f"{shard}.safetensors")
    index = {name: f"{('one', 'two')[i % 2]}.safetensors" for i, name in enumerate(names)}
    write_json(copy / "math" / "model.safetensors.index.json", {"weight_map": index})
    with pytest.raises(UserError, match="remove the one that is stale"):
        merge(copy, copy.parent / "out")
    (copy / "math" / "model.safetensors").rename(copy / "whole")
    sharded = merge(copy, copy.parent / "sharded")
    (copy / "math" / "model.safetensors.index.json").rename(copy / "index")
    (copy / "whole").rename(copy / "math" / "model.safetensors")
    whole = merge(copy, copy.parent / "single")
    assert all(torch.equal(tensor, whole[name]) for name, tensor in sharded.items())
    (copy / "math" / "model.safetensors").unlink()
    (copy / "index").rename(copy / "math" / "model.safetensors.index.json")
    (copy / "math" / "two.safetensors").unlink()
    with pytest.raises(UserError, match=r"math/two\.safetensors: this shard is missing"):
        merge(copy, copy.parent / "out")


def test_in_memory_mismatches_are_refused() -> None:
    base = {"a": torch.ones(2, 3), "b": torch.ones(2)}
    good = {"a": torch.zeros(2, 3), "b": torch.zeros(2)}
    for expert, message in [
        ({"a": good["a"]}, "expert x lacks tensor b"),
        (good | {"c": torch.ones(1)}, "expert x alone has tensor c"),
        (good | {"a": torch.zeros(3, 2)}, r"expert x: tensor a has shape \[3, 2\], not \[2, 3\]"),
        (good | {"b": torch.tensor([1.0, float("nan")])}, "expert x: tensor b holds 1 NaN"),
    ]:
        with pytest.raises(UserError, match=message):
            engine.merge_tensors("linear", base, {"y": good, "x": expert}, {})


def test_integer_tensors_are_kept_where_equal() -> None:
    base = {"a": torch.ones(3), "steps": torch.tensor([4, 5])}
    expert = {"a": torch.zeros(3), "steps": torch.tensor([4, 5])}
    merged = engine.merge_tensors("linear", base, {"x": expert}, {})
    assert torch.equal(merged["steps"], base["steps"])
    expert["steps"] = torch.tensor([4, 6])
    with pytest.raises(UserError, match="steps holds integers and differs"):
        engine.merge_tensors("linear", base, {"x": expert}, {})


def test_an_overflow_of_the_stored_type_is_refused() -> None:
    base = {"a": torch.ones(3, dtype=torch.float16)}
    expert = {"a": torch.full((3,), 2.0, dtype=torch.float16)}
    with pytest.raises(UserError, match="tensor a: the merge overflows float16"):
        engine.merge_tensors("task_arithmetic", base, {"x": expert}, {"scale": 1e5})


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ([1, 2], "2 numbers for 3 experts"),
        ({"ja": 1, "math": 1}, "no number for expert 'sql'"),
        ({"ja": 1, "math": 1, "sqll": 1}, r"no expert 'sqll' \(did you mean 'sql'\?\)"),
    ],
)
def test_weights_that_do_not_fit_the_experts(weights: object, message: str, llama: Path) -> None:
    with pytest.raises(UserError, match=message):
        engine.merge_checkpoints(MergeConfig("linear", *read(llama), {"weights": weights}))


def test_the_number_of_experts_and_the_policy_are_checked(llama: Path) -> None:
    base, experts = read(llama)
    with pytest.raises(UserError, match="exactly 2 experts; 3 are given"):
        engine.merge_checkpoints(MergeConfig("slerp", base, experts, {}))
    with pytest.raises(UserError, match="no expert given"):
        engine.merge_checkpoints(MergeConfig("linear", base, {}, {}))
    with pytest.raises(UserError, match=r"'bass' is unknown \(did you mean 'base'\?\)"):
        engine.merge_checkpoints(
            MergeConfig("linear", base, experts, {}, embeddings_and_norms="bass")
        )
    with pytest.raises(UserError, match="method ties takes no data"):
        engine.merge_checkpoints(
            MergeConfig("ties", base, experts, {}, calibration={"ja": Path("x")})
        )


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("earlier", [False, True])
def test_a_failure_in_the_middle_leaves_no_half_of_a_model(
    earlier: bool, threads: int, llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "place" / "out"
    if earlier:
        before = merge(llama, out)
    write = engine.StreamedWeights.write
    names = []

    def fail(weights: object, name: str, *arguments: object) -> None:
        write(weights, name, *arguments)
        names.append(name)
        if len(names) > 3:
            raise KeyboardInterrupt

    monkeypatch.setattr(engine.StreamedWeights, "write", fail)
    with pytest.raises(KeyboardInterrupt):
        merge(llama, out, "linear", threads=threads)
    assert os.listdir(out.parent) == (["out"] if earlier else [])
    if earlier:
        now = load_file(out / "model.safetensors")
        assert all(torch.equal(now[name], before[name]) for name in before)
        assert json.loads((out / "manifest.json").read_text())["parameters"]["method"] == "ties"


def test_an_output_folder_with_something_else_is_not_replaced(copy: Path) -> None:
    foreign = copy.parent / "foreign"  # somebody's model
    shutil.copytree(copy / "ja", foreign)
    write_json(foreign / "manifest.json", {"kind": "expert"})
    for out, message in [
        (copy / "ja", "holds the input"),
        (copy, "holds the input"),
        (copy / "tokenizer", "is not empty and holds no earlier merge"),
        (foreign, "is not empty and holds no earlier merge"),
        (copy / "base" / "config.json", "is a file"),
    ]:
        with pytest.raises(UserError, match=message):
            merge(copy, out)
    assert len(merge(copy, copy.parent / "fresh")) > 0
    (copy.parent / "empty").mkdir()
    assert len(merge(copy, copy.parent / "empty")) > 0
