"""`extract-lora` against numpy's decomposition, our reader of adapters, and PEFT itself."""

from __future__ import annotations

import csv
import json
import re
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from checkpoints.adapters import Adapter
from checkpoints.extraction import extract_lora
from checkpoints.reading import Checkpoint
from common.calling import call
from common.errors import UserError

FILE = "model.safetensors"
Q, DOWN = "model.layers.0.self_attn.q_proj", "model.layers.1.mlp.down_proj"
BIAS, NORM = f"{Q}.bias", "model.layers.1.input_layernorm.weight"
EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"
LINEAR = r"_proj\.weight$"


@pytest.fixture(scope="module")
def base(make_model: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("extraction") / "base", attention_bias=True)


def trained(base: Path, out: Path, pattern: str = LINEAR, size: float = 0.1) -> Path:
    """Write a copy of a model in which the parameters of a pattern have changed at random."""
    shutil.copytree(base, out)
    tensors, generator = load_file(base / FILE), torch.Generator().manual_seed(3)
    for name in sorted(tensors):
        if re.search(pattern, name):
            change = size * torch.randn(tensors[name].shape, generator=generator)
            tensors[name] = (tensors[name].float() + change).to(tensors[name].dtype)
    save_file(tensors, out / FILE, {"format": "pt"})
    return out


def changes(base: Path, model: Path) -> dict[str, np.ndarray]:
    """Return what changed in each layer, in float64."""
    old, new = load_file(base / FILE), load_file(model / FILE)
    found = {name: (new[name].double() - old[name].double()).numpy() for name in new}
    return {n.removesuffix(".weight"): d for n, d in found.items() if d.any() and d.ndim == 2}


def tail(change: np.ndarray, rank: int) -> float:
    return float((np.linalg.svd(change, compute_uv=False)[rank:] ** 2).sum())


def merged_by_peft(base: Path, adapter: Path) -> dict[str, torch.Tensor]:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = AutoModelForCausalLM.from_pretrained(
            base, dtype=torch.float32, trust_remote_code=False
        )
        return PeftModel.from_pretrained(model, adapter).merge_and_unload().state_dict()


def test_what_a_rank_leaves_out_is_the_sum_of_the_squares_behind_it(
    base: Path, tmp_path: Path
) -> None:
    model = trained(base, tmp_path / "model")
    layers = extract_lora(base, model, tmp_path / "a", rank=5)
    expected = changes(base, model)
    assert [layer.module for layer in layers] == sorted(expected)
    folded = Adapter(tmp_path / "a", Checkpoint(base))
    for layer in layers:
        change, name = expected[layer.module], f"{layer.module}.weight"
        assert layer.rank == 5
        assert layer.squared == pytest.approx((change**2).sum(), rel=1e-12)
        assert layer.left_out == pytest.approx(tail(change, 5), rel=1e-12)
        rest = load_file(model / FILE)[name].double() - folded.load(name).double()
        assert float(rest.square().sum()) == pytest.approx(layer.left_out, rel=1e-5)
    rows = list(csv.DictReader((tmp_path / "a" / "layers.csv").open()))
    assert [(r["module"], float(r["left_out"])) for r in rows] == [
        (layer.module, layer.left_out) for layer in layers
    ]
    config = json.loads((tmp_path / "a" / "adapter_config.json").read_text())
    assert set(config["target_modules"]) == {module.rpartition(".")[2] for module in expected}


def test_at_full_rank_the_fold_is_the_checkpoint(base: Path, tmp_path: Path) -> None:
    """Within the roundings of two factors and a product of n terms: 2^-24 n of the largest value;
    stored in bfloat16 bit for bit."""
    model = trained(base, tmp_path / "model")
    layers = extract_lora(base, model, tmp_path / "a", energy=1.0)
    assert {x.module: x.rank for x in layers} == {
        module: min(change.shape) for module, change in changes(base, model).items()
    }
    folded = Adapter(tmp_path / "a", Checkpoint(base)).state_dict()
    for name, tensor in load_file(model / FILE).items():
        bound = 2.0**-24 * max(tensor.shape) * float(tensor.abs().max())
        assert float((tensor - folded[name]).abs().max()) <= bound


def test_a_bfloat16_checkpoint_comes_back_bit_for_bit(base: Path, tmp_path: Path) -> None:
    shutil.copytree(base, tmp_path / "base")
    narrow = {name: tensor.bfloat16() for name, tensor in load_file(base / FILE).items()}
    save_file(narrow, tmp_path / "base" / FILE, {"format": "pt"})
    model = trained(tmp_path / "base", tmp_path / "model")
    extract_lora(tmp_path / "base", model, tmp_path / "a", energy=1.0)
    folded = Adapter(tmp_path / "a", Checkpoint(tmp_path / "base")).state_dict()
    for name, tensor in load_file(model / FILE).items():
        assert torch.equal(folded[name].bfloat16(), tensor), name


def test_a_share_of_the_energy_takes_the_smallest_rank_and_peft_folds_it(
    base: Path, tmp_path: Path
) -> None:
    model = trained(base, tmp_path / "model", rf"^({Q}|{DOWN})\.weight$")
    layers = extract_lora(base, model, tmp_path / "a", energy=0.8)
    expected = changes(base, model)
    assert [layer.module for layer in layers] == [Q, DOWN]
    assert layers[0].rank != layers[1].rank
    for layer in layers:
        total = (expected[layer.module] ** 2).sum()
        assert tail(expected[layer.module], layer.rank) <= 0.2 * total
        assert tail(expected[layer.module], layer.rank - 1) > 0.2 * total
    folded, theirs = Adapter(tmp_path / "a", Checkpoint(base)), merged_by_peft(base, tmp_path / "a")
    original = load_file(base / FILE)
    for name, tensor in folded.state_dict().items():
        torch.testing.assert_close(tensor, theirs[name], rtol=1e-6, atol=2e-7)
        is_changed = name.removesuffix(".weight") in expected
        assert torch.equal(tensor, original[name]) != is_changed


def test_a_low_rank_change_is_found_again(base: Path, tmp_path: Path) -> None:
    model = trained(base, tmp_path / "model", f"^{Q}$")
    tensors = load_file(base / FILE)
    torch.manual_seed(1)
    rows, columns = tensors[f"{Q}.weight"].shape
    tensors[f"{Q}.weight"] += torch.randn(rows, 2) @ torch.randn(2, columns)
    save_file(tensors, model / FILE, {"format": "pt"})
    (layer,) = extract_lora(base, model, tmp_path / "a", energy=1 - 1e-9)
    assert layer.rank == 2


OTHERS = f"^({re.escape(BIAS)}|{re.escape(NORM)}|{re.escape(EMBEDDING)}|{re.escape(HEAD)})$"


@pytest.mark.parametrize("tied", [False, True])
def test_what_factors_do_not_hold_is_stored(
    base: Path, make_model: Callable[..., Path], tmp_path: Path, tied: bool
) -> None:
    if tied:
        base = make_model(tmp_path / "base", attention_bias=True, tie_word_embeddings=True)
    model = trained(base, tmp_path / "model", f"{LINEAR}|{OTHERS}")
    extract_lora(base, model, tmp_path / "a", energy=1.0, others="store")
    adapter = Adapter(tmp_path / "a", Checkpoint(base))
    folded, theirs = adapter.state_dict(), merged_by_peft(base, tmp_path / "a")
    expected = load_file(model / FILE)
    assert set(folded) == set(expected)
    for name in (BIAS, NORM, EMBEDDING, *(() if tied else (HEAD,))):
        assert torch.equal(folded[name], expected[name]), name
    for name, tensor in expected.items():
        torch.testing.assert_close(folded[name], tensor, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(theirs[name], folded[name], rtol=1e-6, atol=2e-7)
    if tied:
        assert torch.equal(theirs[HEAD], expected[EMBEDDING])


def test_they_are_dropped_or_refused_by_name(
    base: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    model = trained(base, tmp_path / "model", f"{LINEAR}|layernorm|{OTHERS}")
    given = ["--base", str(base), "--model", str(model), "--out", str(tmp_path / "a")]
    assert call("checkpoints.cli", ["extract-lora", *given, "--rank", "4"]) == 2
    error = capsys.readouterr().err
    assert f"{HEAD}, {EMBEDDING}, model.layers.*.input_layernorm.weight (2)" in error
    assert error.count("\n") == 1 and not (tmp_path / "a").exists()
    assert call("checkpoints.cli", ["extract-lora", *given, "--rank", "4", "--others", "drop"]) == 0
    assert "note: dropped: lm_head.weight" in capsys.readouterr().err
    folded, original = Adapter(tmp_path / "a", Checkpoint(base)), load_file(base / FILE)
    for name in (BIAS, NORM, EMBEDDING, HEAD):
        assert torch.equal(folded.load(name), original[name])


def test_layers_stored_the_other_way_round(tmp_path: Path) -> None:
    from transformers import GPT2Config, GPT2LMHeadModel

    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = GPT2Config(vocab_size=48, n_positions=16, n_embd=24, n_layer=1, n_head=2)
        GPT2LMHeadModel(config).save_pretrained(tmp_path / "base")
    model = trained(tmp_path / "base", tmp_path / "model", r"(c_attn|c_proj|c_fc)\.weight")
    extract_lora(tmp_path / "base", model, tmp_path / "a", energy=1.0)
    folded = Adapter(tmp_path / "a", Checkpoint(tmp_path / "base"))
    theirs = merged_by_peft(tmp_path / "base", tmp_path / "a")
    for name, tensor in load_file(model / FILE).items():
        torch.testing.assert_close(folded.load(name), tensor, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(theirs[name], tensor, rtol=1e-5, atol=1e-5)


def test_bad_input_is_one_line(base: Path, make_model: Callable[..., Path], tmp_path: Path) -> None:
    model = trained(base, tmp_path / "model")
    broken = trained(base, tmp_path / "broken")
    tensors = load_file(broken / FILE)
    tensors[f"{Q}.weight"][0, 0] = float("nan")
    save_file(tensors, broken / FILE, {"format": "pt"})
    wide = make_model(tmp_path / "wide", attention_bias=True, intermediate_size=80)
    plain = make_model(tmp_path / "plain")
    norm = trained(base, tmp_path / "norm", NORM)
    (tmp_path / "filled").mkdir()
    (tmp_path / "filled" / "x").write_text("")
    for given, settings, message in (
        (base, {"rank": 4}, "equal to the base"),
        (wide, {"rank": 4}, "tensor .* has shape"),
        (plain, {"rank": 4}, "alone has tensor model.layers.0.self_attn.k_proj.bias"),
        (broken, {"rank": 4}, "q_proj.weight or the base's holds NaN or infinity"),
        (norm, {"rank": 4, "others": "drop"}, "no linear layer has changed"),
        (model, {"rank": 17}, "rank 17 is above the smaller side of .*give at most 16, or"),
        (model, {"rank": 0}, "rank 0: give a whole number from 1 on"),
        (model, {"energy": 1.5}, "energy 1.5: give a share above 0 and at most 1"),
        (model, {"energy": float("nan")}, "energy nan: give a share"),
        (model, {}, "give either a rank or a share of the energy"),
    ):
        with pytest.raises(UserError, match=message) as error:
            extract_lora(base, given, tmp_path / "a", **settings)
        assert "\n" not in str(error.value)
        assert not (tmp_path / "a").exists()
    for out, message in ((model, "is or holds a model"), (tmp_path / "filled", "something else")):
        with pytest.raises(UserError, match=message):
            extract_lora(base, model, out, rank=4)
