"""An expert's training against plain transformers: one row at a time, all logits, no adapter."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from cask import cli, memory
from cask.training import (
    Recipe,
    Text,
    answers_loss,
    batches,
    fit,
    learn,
    pack,
    parts,
    tokenise,
    train_expert,
    with_lora,
)
from checkpoints.loading import load_causal, load_tokenizer
from common.errors import UserError
from common.files import read_json, write_jsonl
from tests.conftest import tiny_model

TEXTS = [
    Text([1, 5, 6, 7, 8, 2], 3),
    Text([1, 9, 10], 2),
    Text([1, 11, 12, 13, 14, 15, 16, 17, 18], 7),
]


def gemma(**more):
    """A tiny Gemma 3 whose sliding window is shorter than the texts."""
    from transformers import Gemma3ForCausalLM, Gemma3TextConfig

    torch.manual_seed(3)
    sizes = {"vocab_size": 48, "hidden_size": 32, "intermediate_size": 48, "head_dim": 8}
    layers = {"num_hidden_layers": 2, "layer_types": ["sliding_attention", "full_attention"]}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "sliding_window": 3}
    config = Gemma3TextConfig(**sizes, **layers, **heads, **more)
    return Gemma3ForCausalLM(config).eval()


def llama(tmp_path):
    return load_causal(tiny_model(tmp_path / "llama"), dtype=torch.float32)


@pytest.fixture(params=["llama", "gemma3", "gemma3 with a softcap"])
def model(request, tmp_path):
    if request.param == "llama":
        return llama(tmp_path)
    return gemma(**({"final_logit_softcapping": 2.0} if "softcap" in request.param else {}))


def plain_loss(model, texts):
    """Mean over the answers' tokens, each row by itself."""
    losses = []
    for text in texts:
        logits = model(input_ids=torch.tensor([text.ids]), use_cache=False).logits[0].double()
        logs = logits.log_softmax(-1)
        places = range(text.prompt_length, len(text.ids))
        losses += [-logs[place - 1, text.ids[place]] for place in places]
    return torch.stack(losses).mean()


def test_packed_rows_have_the_loss_of_single_ones(model):
    found = answers_loss(model, pack(TEXTS), 6).double()
    torch.testing.assert_close(found, plain_loss(model, TEXTS), rtol=1e-5, atol=1e-6)


def test_their_gradients_too(model):
    wanted = [p for name, p in model.named_parameters() if "proj" in name]
    found = torch.autograd.grad(answers_loss(model, pack(TEXTS), 6), wanted)
    expected = torch.autograd.grad(plain_loss(model, TEXTS), wanted)
    for ours, plain in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, plain, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("rank", [0, 4])
def test_only_linear_layers_below_the_head_are_learned(rank, tmp_path):
    model = llama(tmp_path)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    recipe = Recipe(steps=12, batch_size=2, learning_rate=0.02, rank=rank)
    model, result = fit(model, TEXTS, recipe, 0, "expert")
    after = model.state_dict()
    assert after.keys() == before.keys()
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert moved == {name for name in before if name.endswith("_proj.weight")}
    assert result["last_loss"] < 0.7 * result["first_loss"]


def test_the_folded_model_is_the_base_and_its_adapter(tmp_path):
    base = llama(tmp_path)
    before = {name: tensor.clone() for name, tensor in base.state_dict().items()}
    adapted = with_lora(base, 4)
    torch.manual_seed(1)
    for name, parameter in adapted.named_parameters():
        if "lora_" in name:
            parameter.data = torch.randn_like(parameter) * 0.1
    stem = "base_model.model.model.layers.1.mlp.up_proj"
    state = {name: value.double().clone() for name, value in adapted.state_dict().items()}
    down, up = state[f"{stem}.lora_A.default.weight"], state[f"{stem}.lora_B.default.weight"]
    folded = adapted.merge_and_unload().state_dict()["model.layers.1.mlp.up_proj.weight"]
    expected = before["model.layers.1.mlp.up_proj.weight"].double() + 2 * up @ down
    torch.testing.assert_close(folded.double(), expected, rtol=1e-5, atol=1e-6)


def test_a_step_in_parts_has_the_gradient_of_its_mean_loss(model):
    found = parts(TEXTS, 7)
    # 5, 2 and 8 tokens that predict: the first two fit together, the last is longer than a part.
    assert [batch.ids.numel() for batch in found] == [7, 8]
    assert [batch.ids.numel() for batch in parts(TEXTS, 100)] == [15]
    assert len(parts(TEXTS, 1)) == 3
    wanted = [p for name, p in model.named_parameters() if "proj" in name]
    expected = torch.autograd.grad(plain_loss(model, TEXTS), wanted)
    loss = learn(model, found)
    assert loss == pytest.approx(plain_loss(model, TEXTS).item(), rel=1e-5)
    for parameter, plain in zip(wanted, expected, strict=True):
        torch.testing.assert_close(parameter.grad, plain, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("tied", [True, False])
def test_tables_kept_as_stored_change_no_result(tied):
    model = gemma(tie_word_embeddings=tied)
    tables = [p for name, p in model.named_parameters() if "embed" in name or "lm_head" in name]
    assert len(tables) == 2 - tied
    for table in tables:
        table.data = table.data.bfloat16().float()
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    wanted = [p for name, p in model.named_parameters() if "proj" in name]
    expected = answers_loss(model, pack(TEXTS), 6)
    gradients = torch.autograd.grad(expected, wanted)
    memory.narrow_tables(model, torch.bfloat16)
    assert all(table.dtype == torch.bfloat16 and not table.requires_grad for table in tables)
    assert model.state_dict().keys() == state.keys()
    assert all(torch.equal(now.float(), state[n]) for n, now in model.state_dict().items())
    found = answers_loss(model, pack(TEXTS), 6)
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=0)
    for ours, plain in zip(torch.autograd.grad(found, wanted), gradients, strict=True):
        torch.testing.assert_close(ours, plain, rtol=1e-4, atol=1e-7)


def test_a_widened_product_is_that_of_the_wide_matrix(monkeypatch):
    monkeypatch.setattr(memory, "_BLOCK", 20)  # 4 of 11 rows at a time
    weight, inputs = torch.randn(11, 5).bfloat16(), torch.randn(2, 3, 5, requires_grad=True)
    outputs = memory._Widened.apply(inputs, weight)
    expected = inputs.double() @ weight.double().T
    torch.testing.assert_close(outputs.double(), expected, rtol=1e-5, atol=1e-6)
    upstream = torch.randn(2, 3, 11)
    outputs.backward(upstream)
    expected = upstream.double() @ weight.double()
    torch.testing.assert_close(inputs.grad.double(), expected, rtol=1e-5, atol=1e-5)


def test_the_loss_is_torch_s_in_float64_and_takes_the_logits_place(monkeypatch):
    monkeypatch.setattr(memory, "_ROWS", 60)  # 2 of 5 rows at a time
    logits, targets = 4 * torch.randn(5, 30), torch.tensor([3, 0, 29, 3, 7])
    exact = logits.double().requires_grad_()
    expected = torch.nn.functional.cross_entropy(exact, targets, reduction="sum") / 8
    expected.backward()
    given = logits.clone().requires_grad_()
    loss = memory.cross_entropy(given * 1.0, targets, 8)
    (2 * loss).backward()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-6)
    torch.testing.assert_close(given.grad.double(), 2 * exact.grad, rtol=1e-5, atol=1e-7)


def test_every_row_is_seen_once_an_epoch():
    texts = [Text([1, number, 2], 1) for number in range(3, 15)]
    stream = batches(texts, 4, 0)
    epochs = [sorted(next(stream)[0].targets.tolist()[::2] for _ in range(3)) for _ in range(2)]
    for epoch in epochs:
        assert sorted(number for part in epoch for number in part) == list(range(3, 15))
    assert epochs[0] != epochs[1]


def test_rows_are_read_as_an_evaluation_reads_them(tmp_path):
    tokenizer = load_tokenizer(tiny_model(tmp_path))
    rows = [
        {"prompt": "w4 w5", "answer": " w6", "eos": True},
        {"prompt": "w4", "answer": " w5 w6", "eos": False},
        {"prompt": "w4 " * 40, "answer": "w6", "eos": False},  # too long
    ]
    first = tokenizer("w4 w5")["input_ids"]
    texts = tokenise(rows, tokenizer, 10)
    assert texts[0] == Text([*first, 6, 2], len(first))
    assert texts[1].ids[-2:] == [5, 6] and len(texts) == 2


def test_rows_without_answers_are_refused(tmp_path):
    tokenizer = load_tokenizer(tiny_model(tmp_path))
    with pytest.raises(UserError, match="none of 1 rows has a prompt, an answer"):
        tokenise([{"prompt": "w4", "answer": "", "eos": False}], tokenizer, 10)


def rows_file(folder: Path) -> Path:
    rows = [{"prompt": f"w{n} w5", "answer": f" w{n + 1}", "eos": True} for n in range(6, 20)]
    write_jsonl(folder / "rows.jsonl", rows)
    return folder / "rows.jsonl"


def test_the_written_expert_has_its_bases_type_and_files(tmp_path, capsys):
    base = tiny_model(tmp_path / "base", dtype="bfloat16")
    stored = {
        name: tensor.bfloat16() for name, tensor in load_file(base / "model.safetensors").items()
    }

    save_file(stored, base / "model.safetensors", {"format": "pt"})
    rows, out = rows_file(tmp_path), tmp_path / "expert"
    command = ["train", "--base", str(base), "--rows", str(rows), "--out", str(out)]
    assert cli.main([*command, "--steps", "8", "--batch-size", "4", "--rank", "2"]) == 0
    assert "expert: loss" in capsys.readouterr().out
    found = load_file(out / "model.safetensors")
    assert found.keys() == stored.keys()
    assert {tensor.dtype for tensor in found.values()} == {torch.bfloat16}
    assert torch.equal(found["model.norm.weight"], stored["model.norm.weight"])
    assert (out / "tokenizer.json").read_bytes() == (base / "tokenizer.json").read_bytes()
    manifest, cost = read_json(out / "manifest.json"), read_json(out / "cost.json")
    assert manifest["parameters"]["recipe"]["rank"] == 2
    # 14 rows of 4 tokens, of which the last predicts nothing: 3 a row, 4 rows a step, 8 steps.
    assert cost["counted"]["forward_tokens"] == 8 * 4 * 3 + 8 * 4 * has_bos(base)
    load_causal(out)


def has_bos(base: Path) -> int:
    return len(load_tokenizer(base)("w4")["input_ids"]) - 1


def test_the_same_seed_gives_the_same_bytes_and_another_does_not(tmp_path):
    base, rows = tiny_model(tmp_path / "base"), rows_file(tmp_path)
    recipe = Recipe(steps=4, batch_size=4, rank=2)
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        train_expert(tmp_path / name, base, rows, recipe=recipe, seed=seed)
    a, b, c = ((tmp_path / name / "model.safetensors").read_bytes() for name in "abc")
    assert a == b != c


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [("--steps", "0", "--steps is below 1"), ("--learning-rate", "-1", "give a positive number")],
)
def test_numbers_out_of_range_are_refused(option, value, message, tmp_path):
    base, rows = tiny_model(tmp_path / "base"), rows_file(tmp_path)
    command = ["train", "--base", str(base), "--rows", str(rows), "--out", str(tmp_path / "out")]
    with pytest.raises(UserError, match=message):
        cli.main([*command, option, value])
    assert not (tmp_path / "out").exists()


def test_a_loss_that_is_not_finite_ends_the_training(tmp_path):
    base, rows = tiny_model(tmp_path / "base"), rows_file(tmp_path)
    recipe = Recipe(steps=30, batch_size=4, learning_rate=1e30, rank=0)
    with pytest.raises(UserError, match="lower the rate"):
        train_expert(tmp_path / "out", base, rows, recipe=recipe, seed=0)
    assert not (tmp_path / "out").exists()


def test_the_settings_stand_in_the_manifest_as_json(tmp_path):
    base, rows = tiny_model(tmp_path / "base"), rows_file(tmp_path)
    train_expert(tmp_path / "out", base, rows, recipe=Recipe(steps=2, rank=2), seed=5)
    manifest = json.loads((tmp_path / "out/manifest.json").read_text())
    assert manifest["seed"] == 5 and manifest["parameters"]["rows"] == 14
