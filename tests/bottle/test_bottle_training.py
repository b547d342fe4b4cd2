"""Training: loss, determinism, frozen embeddings, batches against hand-counted ones, bad input."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from bottle import cli
from bottle.data import write_data
from bottle.flops import forward_flops
from bottle.training import (
    Recipe,
    Shape,
    Text,
    batches,
    build_model,
    fit,
    learning_rate_at,
    train_role,
)
from checkpoints.reading import Checkpoint
from common.calling import call
from common.errors import UserError
from common.files import read_json, sha256_file

_SHAPE = Shape("llama", hidden_size=32, layers=1, heads=2, kv_heads=1, intermediate_size=48)
_RECIPE = Recipe(
    steps=12,
    learning_rate=3e-3,
    embedding_learning_rate=3e-3,
    prompt_weight=0.5,
    weight_decay=0.01,
    batch_size=8,
)


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("training") / "data"
    write_data(
        folder, "case2", seed=0, test_items=4, dev_items=2, train_rows=400, calibration_rows=10
    )
    return folder


def train(
    out: Path,
    data: Path,
    role: str = "base",
    base: Path | None = None,
    stop_after: int | None = None,
    **changes,
) -> Path:
    recipe = Recipe(**{**_RECIPE.__dict__, **changes})
    train_role(
        out,
        "case2",
        role,
        data,
        base=base,
        shape=_SHAPE if base is None else None,
        recipe=recipe,
        seed=0,
        threads=1,
        stop_after=stop_after,
    )
    return out


@pytest.fixture(scope="module")
def base(data, tmp_path_factory) -> Path:
    return train(tmp_path_factory.mktemp("training") / "base", data)


def test_two_runs_give_identical_weights(data, base, tmp_path):
    again = train(tmp_path / "again", data)
    assert sha256_file(again / "model.safetensors") == sha256_file(base / "model.safetensors")
    assert (again / "manifest.json").read_bytes() == (base / "manifest.json").read_bytes()


def test_an_ancestor_is_what_the_whole_training_passes_through(data, base, tmp_path, monkeypatch):
    passed = []
    step = torch.optim.AdamW.step

    def remember(optimizer, *arguments):
        result = step(optimizer, *arguments)
        values = [p.detach().flatten() for g in optimizer.param_groups for p in g["params"]]
        passed.append(torch.cat(values).sort().values)
        return result

    monkeypatch.setattr(torch.optim.AdamW, "step", remember)
    whole = train(tmp_path / "whole", data)
    assert sha256_file(whole / "model.safetensors") == sha256_file(base / "model.safetensors")
    assert len(passed) == 12
    ancestor = train(tmp_path / "ancestor", data, stop_after=7)
    assert len(passed) == 12 + 7
    written = torch.cat([p.flatten() for p in load_file(ancestor / "model.safetensors").values()])
    assert torch.equal(written.sort().values, passed[6])
    assert not torch.equal(passed[6], passed[11])
    assert read_json(ancestor / "manifest.json")["parameters"]["stop_after"] == 7
    assert "stop_after" not in read_json(base / "manifest.json")["parameters"]
    with pytest.raises(UserError, match="give 1 to 12"):
        train(tmp_path / "late", data, stop_after=13)


def test_a_model_folder_loads_and_says_what_it_cost(base):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(base)
    assert type(model).__name__ == "LlamaForCausalLM"
    assert model.config.max_position_embeddings == 256
    assert not torch.equal(model.lm_head.weight, model.model.embed_tokens.weight)
    assert len(AutoTokenizer.from_pretrained(base)) == Checkpoint(base).shape("lm_head.weight")[0]
    counted = read_json(base / "cost.json")["counted"]
    assert counted["forward_tokens"] == counted["backward_tokens"] > 12 * 8
    assert read_json(base / "manifest.json")["kind"] == "base"


def test_loss_falls():
    model = build_model(_SHAPE, 20, seed=0)
    texts = [Text([1, 4 + n, 9 + n, 14 + n, 2], 2) for n in range(5)]
    result = fit(model, texts, Recipe(60, 1e-2, 1e-2, 0.5, 0.0, batch_size=5), 0, "test")
    assert result["first_loss"] > 1.5
    assert result["last_loss"] < 0.5 * result["first_loss"]


@pytest.mark.parametrize("prompt_weight", [0.0, 0.5])
def test_the_loss_is_that_of_all_logits_by_their_weights(prompt_weight):
    """Positions that weigh nothing never reach the head; the loss is as if they had."""
    texts = [Text([1, 4, *range(9, 12 + n), 2], 2 + n % 2) for n in range(4)]
    ids, weights = next(batches(texts, 30, prompt_weight, seed=0))
    model = build_model(_SHAPE, 20, seed=0)
    chances = model(input_ids=ids[:, :-1]).logits.double().log_softmax(-1)
    total = sum(
        weights[row, at].item() * chances[row, at, ids[row, at + 1]].item()
        for row in range(ids.shape[0])
        for at in range(ids.shape[1] - 1)
    )
    assert (weights == prompt_weight).any()
    recipe = Recipe(1, 1e-3, 1e-3, prompt_weight, 0.0, batch_size=30)
    loss = fit(model, texts, recipe, 0, "test")["first_loss"]
    assert abs(loss + total / weights.sum().item()) < 1e-5


def test_an_expert_with_frozen_embeddings_keeps_its_base_s(data, base, tmp_path):
    frozen = train(tmp_path / "frozen", data, "sql", base, embedding_learning_rate=0.0)
    free = train(tmp_path / "free", data, "sql", base)
    ours, theirs, others = (
        load_file(folder / "model.safetensors") for folder in (base, frozen, free)
    )
    for name in ours:
        still = "embed" in name or "norm" in name
        assert torch.equal(ours[name], theirs[name]) == still, name
        assert not torch.equal(ours[name], others[name]), name
    assert read_json(frozen / "manifest.json")["kind"] == "expert"


def test_a_batch_weighs_prompt_answer_and_padding():
    # 31 short texts and a long one make 16 batches; the long one shares its with a short one.
    texts = [Text([1, 5, 6, 7, 2], 3), *[Text([1, 8, 9], 2)] * 31]
    stream = batches(texts, 2, 0.25, seed=0)
    ids, weights = next(batch for batch in stream if batch[0].shape[1] == 5)
    order = {row[1]: index for index, row in enumerate(ids.tolist())}
    long, short = order[5], order[8]
    assert ids[long].tolist() == [1, 5, 6, 7, 2]
    assert ids[short].tolist() == [1, 8, 9, 0, 0]
    # A position's weight is that of the token after it: two prompt tokens follow the bos.
    assert weights[long].tolist() == [0.25, 0.25, 1.0, 1.0]
    assert weights[short].tolist() == [0.25, 1.0, 0.0, 0.0]


def test_every_text_is_seen_once_an_epoch():
    texts = [Text([1, 4 + n, 2], 1) for n in range(64)]
    stream = batches(texts, 4, 1.0, seed=1)
    seen = [row[1].item() for _ in range(16) for row in next(stream)[0]]
    assert sorted(seen) == list(range(4, 68))


def test_learning_rate_rises_then_falls_to_a_tenth():
    rates = [learning_rate_at(step, 200) for step in range(200)]
    peak = rates.index(max(rates))
    assert 5 <= peak <= 12
    assert rates[0] < 0.15
    assert abs(rates[-1] - 0.1) < 0.001
    assert all(earlier > later for earlier, later in itertools.pairwise(rates[peak:]))


def test_flops_by_hand():
    model = build_model(_SHAPE, 20, seed=0)
    # q and o 32x32, k and v 16x32, three 48x32 projections; attention 4*1*32*10; the head 20x32.
    weights = 2 * 32 * 32 + 2 * 16 * 32 + 3 * 48 * 32
    body = 2 * weights + 4 * 32 * 10
    assert forward_flops(model, 10, 30, 7) == 30 * body + 7 * 2 * 20 * 32


@pytest.mark.parametrize("architecture", ["mistral", "llama"])
def test_architectures(architecture):
    shape = Shape(architecture)
    model = build_model(shape, 50, seed=0)
    assert model.config.model_type == architecture
    assert model.config.hidden_size // model.config.num_attention_heads == 32
    assert getattr(model.config, "sliding_window", None) is None


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        (Shape("lama"), "did you mean 'llama'"),
        (Shape("llama", hidden_size=30, heads=4), "do not divide"),
        (Shape("llama", layers=0), "at least 1"),
    ],
)
def test_bad_architectures_are_refused(shape, message):
    with pytest.raises(UserError, match=message):
        build_model(shape, 10, seed=0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--case", "case2", "--role", "fr"], "no role 'fr' in case2"),
        (["--case", "cas2", "--role", "base"], "did you mean 'case"),
        (["--case", "case2", "--role", "de"], "give --init"),
        (["--case", "case2", "--role", "base", "--init", "x"], "leave --init out"),
        (["--case", "case2", "--role", "base", "--steps", "0"], "at least 1 step"),
    ],
)
def test_the_command_line_refuses_in_one_line(arguments, message, data, tmp_path, capsys):
    out = tmp_path / "model"
    code = call("bottle.cli", ["train", *arguments, "--data", str(data), "--out", str(out)])
    error = capsys.readouterr().err
    assert code == 2
    assert message in error and error.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_missing_data_and_a_foreign_base_are_refused(data, base, tmp_path):
    with pytest.raises(UserError, match="no such file"):
        train(tmp_path / "m", tmp_path / "nothing")
    config = json.loads((base / "config.json").read_text())
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    (foreign / "config.json").write_text(json.dumps({**config, "vocab_size": 7}))
    (foreign / "model.safetensors").write_bytes((base / "model.safetensors").read_bytes())
    with pytest.raises(UserError, match="7 tokens"):
        train(tmp_path / "m", data, "de", foreign)
    with pytest.raises(UserError, match="no such folder"):
        train(tmp_path / "m", data, "de", tmp_path / "nothing")


def test_help_teaches(capsys):
    for arguments in (["--help"], ["data", "--help"], ["train", "--help"]):
        with pytest.raises(SystemExit) as end:
            cli.main(arguments)
        assert end.value.code == 0
        assert "examples:" in capsys.readouterr().out


def test_decay_goes_a_share_of_the_way_back_to_the_base(data, base, tmp_path):
    start = load_file(base / "model.safetensors")
    one = {"role": "de", "base": base, "steps": 1, "embedding_learning_rate": 0.0}
    plain = load_file(train(tmp_path / "plain", data, **one) / "model.safetensors")
    decayed = load_file(
        train(tmp_path / "decayed", data, **one, base_decay=40.0) / "model.safetensors"
    )
    share = 40.0 * _RECIPE.learning_rate * learning_rate_at(0, 1)
    moved = 0
    for name, value in plain.items():
        expected = value.double() + share * (start[name].double() - value.double())
        torch.testing.assert_close(decayed[name].double(), expected, rtol=0, atol=1e-8)
        moved += not torch.equal(value, start[name])
    assert moved > 5 and 0.01 < share < 0.99


def test_an_expert_with_decay_stays_nearer_to_its_base(data, base, tmp_path):
    start = load_file(base / "model.safetensors")

    def drift(folder: Path) -> float:
        weights = load_file(folder / "model.safetensors")
        return sum(float((weights[name] - start[name]).square().sum()) for name in start) ** 0.5

    free = drift(train(tmp_path / "free", data, "de", base))
    assert drift(train(tmp_path / "held", data, "de", base, base_decay=50.0)) < 0.8 * free


@pytest.mark.parametrize(
    ("role", "decay", "message"),
    [("base", 1.0, "leave --base-decay out"), ("de", 400.0, "less than 1 / learning rate")],
)
def test_a_decay_that_makes_no_sense_is_refused(data, base, tmp_path, role, decay, message):
    start = None if role == "base" else base
    with pytest.raises(UserError, match=message):
        train(tmp_path / "out", data, role, start, base_decay=decay)
    assert not (tmp_path / "out").exists()
