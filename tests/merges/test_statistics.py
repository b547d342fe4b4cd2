"""Statistics of a walk layer by layer against whole models of transformers in float64."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn import functional as F

from checkpoints.reading import Checkpoint
from common.errors import UserError
from merges.statistics import budget, collecting
from merges.statistics.collecting import Order
from merges.statistics.files import Statistics, read_rows, write_statistics
from tests.conftest import tiny_model, tiny_tokenizer
from tests.merges.dam_world import plain_model, write_rows

Make = Callable[..., Statistics]
DOWN = "model.layers.1.mlp.down_proj"


def _qwen(folder: Path, kind: str) -> Path:
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.for_model(
        kind, vocab_size=48, hidden_size=32, intermediate_size=48, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, head_dim=8, max_position_embeddings=64,
        tie_word_embeddings=True,
    )  # fmt: skip
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    tiny_tokenizer(folder, 48)
    return folder


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """A tiny model of an architecture, with rows of data in its folder's parent."""
    made: dict[str, Path] = {}

    def make(kind: str) -> Path:
        if kind not in made:
            folder = tmp_path_factory.mktemp(kind) / "model"
            qwen = kind.startswith("qwen")
            made[kind] = _qwen(folder, kind) if qwen else tiny_model(folder, kind)
            tokenizer = folder.parent / "tokenizer"  # of Qwen's class there is no word-level one
            tiny_model(tokenizer) if qwen else tokenizer.symlink_to(folder)
            write_rows(folder.parent / "rows.jsonl", seed=3, rows=10)
        return made[kind]

    return make


@pytest.fixture(scope="module")
def statistics(
    models: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str, str], tuple[Order, Statistics]]:
    """The statistics of a kind, of a tiny model of an architecture."""
    made: dict[tuple[str, str], tuple[Order, Statistics]] = {}

    def make(architecture: str, kind: str) -> tuple[Order, Statistics]:
        if (architecture, kind) not in made:
            order = an_order(models(architecture), kind)
            out = tmp_path_factory.mktemp("statistics") / kind
            assert write_statistics(order, out)
            made[architecture, kind] = order, Statistics(out)
        return made[architecture, kind]

    return make


def an_order(folder: Path, kind: str) -> Order:
    model = Checkpoint(folder)
    read_by = Checkpoint(folder.parent / "tokenizer")
    data = read_rows(read_by, [folder.parent / "rows.jsonl"], "model")
    return Order(model, data, kind, tokens=40)


def plain(order: Order) -> tuple[nn.Module, list[torch.Tensor]]:
    """The whole model in float64, and the ids of every row."""
    own = order.data[0]
    rows = [own.ids[own.starts[n] : own.starts[n + 1]] for n in range(len(own))]
    return plain_model(order.model.path, torch.float64), rows


def plain_inputs(order: Order) -> dict[str, torch.Tensor]:
    """What enters each linear layer, token by token, from one forward for each row."""
    model, rows = plain(order)
    found: dict[str, list[torch.Tensor]] = {}
    hooks = [
        module.register_forward_pre_hook(
            lambda _, given, name=name: found.setdefault(name, []).append(given[0][0])
        )
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear)
    ]
    for ids in rows:
        model(input_ids=ids[None], use_cache=False)
    for hook in hooks:
        hook.remove()
    return {name: torch.cat(parts) for name, parts in found.items()}


@pytest.mark.parametrize("architecture", ["llama", "mistral", "qwen2", "qwen3"])
def test_grams_and_channels_are_those_of_the_whole_model_in_float64(
    architecture: str, statistics: Callable
) -> None:
    order, found = statistics(architecture, "gram")
    inputs = plain_inputs(order)
    tied = architecture.startswith("qwen")
    assert len(inputs) == 2 * 7 + 1 and len(found.widths()) == 2 * 4 + (not tied)
    for name, x in inputs.items():
        if name == "lm_head" and tied:
            assert not found.has("lm_head.weight", "gram")
            continue
        gram = x.T @ x / len(x)
        scale = gram.diag().sqrt()
        error = (found.matrix(f"{name}.weight", "gram") - gram) / torch.outer(scale, scale)
        assert error.abs().max() < 1e-5
        for what, expected in [("mean_abs", x.abs().mean(0)), ("mean_square", gram.diag())]:
            mean = found.read(f"{name}.weight", what).double()
            torch.testing.assert_close(mean, expected, rtol=1e-5, atol=0)


def test_every_token_counts_once_the_first_and_the_last_too(statistics: Callable) -> None:
    order, found = statistics("llama", "gram")
    own = order.data[0]
    assert found.rows == 10 and found.tokens == len(own.ids)
    assert all(own.ids[start] == 1 for start in own.starts[:-1])  # <s> begins every row
    assert (own.ids == 2).sum() > 0 and not (own.ids == 0).any()  # </s> ends some, no padding


def plain_gradients(order: Order, labels: str) -> list[dict[str, torch.Tensor]]:
    """Each row's gradient of the summed log-probability of its answer."""
    model, rows = plain(order)
    weights = {name: value.clone().requires_grad_() for name, value in model.named_parameters()}
    found = []
    for number, ids in enumerate(rows):
        first, stop = order.data[0].loss_span(number, labels)
        given = {"input_ids": ids[None], "use_cache": False}
        logits = torch.func.functional_call(model, weights, (), given).logits[0]
        loss = F.cross_entropy(logits[first:stop], ids[first + 1 : stop + 1], reduction="sum")
        gradients = torch.autograd.grad(loss, list(weights.values()))
        found.append(dict(zip(weights, gradients, strict=True)))
    return found


@pytest.mark.parametrize("architecture", ["llama", "qwen3"])
def test_empirical_fisher_is_the_mean_square_of_each_rows_gradient(
    architecture: str, statistics: Callable
) -> None:
    order, found = statistics(architecture, "empirical_fisher")
    rows = plain_gradients(order, "answer")
    square = 0.0
    for name in rows[0]:
        if "embed_tokens" in name or name == "lm_head.weight":
            assert not found.has(name, "values")
            continue
        expected = torch.stack([row[name] ** 2 for row in rows]).mean(0)
        ours = found.read(name, "values").view(expected.shape).double()
        torch.testing.assert_close(ours, expected, rtol=2e-4, atol=1e-6 * float(expected.max()))
        assert found.mean(name) == pytest.approx(float(expected.mean()), rel=1e-4)
        square += float((expected**2).sum())
    assert found.norm == pytest.approx(square**0.5, rel=1e-4)


def test_gradients_are_mean_magnitudes_of_the_answers_mean_loss(statistics: Callable) -> None:
    order, found = statistics("llama", "gradients")
    rows = plain_gradients(order, "answer")
    spans = [order.data[0].loss_span(number, "answer") for number in range(len(rows))]
    parts = [
        row[f"{DOWN}.weight"].abs() / (stop - first)
        for row, (first, stop) in zip(rows, spans, strict=True)
    ]
    expected = torch.stack(parts).mean(0)
    ours = found.read(f"{DOWN}.weight", "values").view(expected.shape).double()
    torch.testing.assert_close(ours, expected, rtol=1e-3, atol=1e-6 * float(expected.max()))


def test_both_grams_of_kronecker_give_the_rows_gradients(statistics: Callable) -> None:
    """tr(Y^T Y) is counted token by token, so a model of one linear layer would be enough."""
    order, found = statistics("llama", "kronecker")
    model, rows = plain(order)
    layer, total = model.get_submodule(DOWN), torch.zeros(32, 32, dtype=torch.float64)
    for number, ids in enumerate(rows):
        first, stop = order.data[0].loss_span(number, "answer")
        kept: list[torch.Tensor] = []
        hook = layer.register_forward_hook(
            lambda _, __, output, kept=kept: kept.append(output.requires_grad_())
        )
        logits = model(input_ids=ids[None], use_cache=False).logits[0]
        hook.remove()
        loss = F.cross_entropy(logits[first:stop], ids[first + 1 : stop + 1], reduction="sum")
        (y,) = torch.autograd.grad(loss, kept)
        total += y[0].T @ y[0]
    expected = total / found.tokens
    ours = found.matrix(f"{DOWN}.weight", "output_gram").double()
    torch.testing.assert_close(ours, expected, rtol=1e-3, atol=1e-5 * float(expected.max()))
    assert found.has(f"{DOWN}.weight", "gram")


def test_true_fisher_is_the_expectation_over_the_models_own_labels(models: Callable) -> None:
    """One linear layer suffices: its expected square, with two tokens and one counted label."""
    p = torch.tensor([0.8, 0.2])
    gradient = torch.eye(2) - p  # d log p(y) / d logits
    expected = (p[:, None] * gradient**2).sum(0)
    assert torch.allclose(expected, torch.tensor([0.16, 0.16]))
    generator = torch.Generator().manual_seed(0)
    from merges.statistics.inputs import sampled

    drawn = sampled(p.log().repeat(40_000, 1), generator)
    assert torch.allclose((gradient[drawn] ** 2).mean(0), expected, atol=4e-3)


def test_true_fisher_draws_labels_from_its_seed(models: Callable, tmp_path: Path) -> None:
    found = []
    for number, seed in enumerate((0, 0, 1)):
        own = an_order(models("llama"), "fisher")
        order = Order(own.model, own.data, "fisher", seed, tokens=40)
        write_statistics(order, tmp_path / str(number))
        found.append(Statistics(tmp_path / str(number)).read(f"{DOWN}.weight", "values"))
    assert torch.equal(found[0], found[1]) and not torch.equal(found[0], found[2])


def test_batches_do_not_change_what_is_found(models: Callable, tmp_path: Path) -> None:
    own = an_order(models("llama"), "kronecker")
    found = []
    for tokens in (1, 1000):
        order = Order(own.model, own.data, own.kind, tokens=tokens)
        write_statistics(order, tmp_path / str(tokens))
        found.append(Statistics(tmp_path / str(tokens)))
    for what in ("gram", "output_gram"):
        one, all_ = (each.matrix(f"{DOWN}.weight", what) for each in found)
        torch.testing.assert_close(one, all_, rtol=1e-4, atol=1e-5 * float(all_.abs().max()))


@pytest.mark.parametrize("kind", ["gram", "empirical_fisher"])
def test_a_stopped_pass_resumes_with_the_next_layer(
    kind: str, models: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    order = an_order(models("llama"), kind)
    write_statistics(order, tmp_path / "whole")
    stopped: dict[str, bool] = {}
    run = collecting.LayeredDecoder.layer

    def failing(self, number):
        if kind == "gram" and number == 1 and stopped.setdefault("first", True):
            stopped["first"] = False
            raise KeyboardInterrupt
        stopped[str(number)] = True
        return run(self, number)

    def failing_back(self, number):
        if stopped.setdefault("first", True):
            stopped["first"] = False
            raise KeyboardInterrupt
        return back(self, number)

    back = collecting.Pass._back
    monkeypatch.setattr(collecting.LayeredDecoder, "layer", failing)
    if kind != "gram":
        monkeypatch.setattr(collecting.Pass, "_back", failing_back)
    with pytest.raises(KeyboardInterrupt):
        write_statistics(order, tmp_path / "again")
    assert not (tmp_path / "again").exists()
    stopped.pop("0", None)
    assert write_statistics(order, tmp_path / "again")
    if kind == "gram":
        assert "0" not in stopped  # the first layer was not run again
    for shard in (tmp_path / "whole").glob("*.safetensors"):
        assert shard.read_bytes() == (tmp_path / "again" / shard.name).read_bytes()
    assert not list(tmp_path.glob("*.unfinished"))
    assert not write_statistics(order, tmp_path / "again")  # nothing to do any more


def test_wrong_input_is_one_line(models: Callable, tmp_path: Path) -> None:
    order = an_order(models("llama"), "gram")
    with pytest.raises(UserError, match="no calibration rows; give --calibration FILE"):
        read_rows(order.model, [], "model")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("x")
    with pytest.raises(UserError, match="is no earlier folder of statistics"):
        write_statistics(order, tmp_path / "full")
    hostile = tiny_model(tmp_path / "hostile")
    weights = load_file(hostile / "model.safetensors")
    weights["model.layers.1.mlp.up_proj.weight"] *= 1e30
    weights["model.layers.1.mlp.gate_proj.weight"] *= 1e30
    save_file(weights, hostile / "model.safetensors", metadata={"format": "pt"})
    bad = Order(Checkpoint(hostile), order.data, "channels")
    with pytest.raises(UserError, match=r"NaN or infinity at model.layers.1.mlp.down_proj on this"):
        write_statistics(bad, tmp_path / "overflow")
    config = json.loads((hostile / "config.json").read_text())
    (hostile / "config.json").write_text(json.dumps({**config, "model_type": "gemma"}))
    bad = Order(Checkpoint(hostile), order.data, "channels")
    with pytest.raises(UserError, match=r"know the architectures llama, mistral, .* not 'gemma'"):
        write_statistics(bad, tmp_path / "gemma")


LLAMA_2_7B = {
    "hidden_size": 4096, "intermediate_size": 11008, "num_attention_heads": 32,
    "num_key_value_heads": 32, "num_hidden_layers": 32, "vocab_size": 32000,
}  # fmt: skip
LLAMA_3_8B = LLAMA_2_7B | {
    "intermediate_size": 14336, "num_key_value_heads": 8, "vocab_size": 128256,
}  # fmt: skip


@pytest.mark.parametrize("config", [LLAMA_2_7B, LLAMA_3_8B], ids=["Llama-2-7B", "Llama-3-8B"])
def test_at_7b_and_8b_four_gigabytes_are_enough(config: dict[str, int]) -> None:
    for kind in ("channels", "gram", "fisher", "empirical_fisher", "gradients", "kronecker"):
        counted = budget.pass_bytes(config, kind, 2)
        assert counted < 4e9, kind
        deeper = config | {"num_hidden_layers": 80}
        assert budget.pass_bytes(deeper, kind, 2) == counted
    assert budget.pass_bytes(config, "gram", 4) < 4e9  # in float32 too
    assert budget.regression_bytes(config, 2) < 4e9


def test_the_budget_covers_what_a_pass_holds(models: Callable, tmp_path: Path) -> None:
    """The sums alone, by torch's own shapes: a model of 96 and 288 inputs, 2 and 6 layers."""
    held = {}
    for layers in (2, 6):
        folder = tiny_model(
            tmp_path / f"m{layers}", hidden_size=96, intermediate_size=288, num_hidden_layers=layers
        )
        order = an_order(models("llama"), "gram")
        order = Order(Checkpoint(folder), order.data, "gram", tokens=40)
        largest = 0
        write = collecting.Pass._write

        def watched(self, name, tensors, write=write):
            nonlocal largest
            largest = max(largest, sum(value.nbytes for value in tensors.values()))
            write(self, name, tensors)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(collecting.Pass, "_write", watched)
            write_statistics(order, tmp_path / f"s{layers}")
        held[layers] = largest
        config = json.loads((folder / "config.json").read_text())
        sums = 4 * (3 * 96**2 + 288**2)
        assert sums <= largest <= 1.03 * sums
        assert budget.pass_bytes(config, "gram", 4, tokens=40) > largest
    assert held[2] == held[6]
