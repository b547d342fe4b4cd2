"""Every form of the coefficients, in whole models, against plain autograd in float64."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch

from common.errors import UserError
from merges.dam import layers
from merges.dam.coefficients import Coefficients, Form
from merges.dam.data import make_batch
from merges.dam.layers import MergedLinear
from merges.dam.method import training_parameters
from merges.dam.sources import load_sources
from merges.dam.training import Trainer, train
from tests.merges.dam_world import EVERY_TERM, Plain, leaves, make_world

SMALL = training_parameters(samples=4, batch_size=2)
ROWS = [[0, 3], [1, 2], [4, 6]]
FORMS = {
    "row": {"granularity": "row"},
    "head": {"granularity": "head"},
    "layer": {"granularity": "layer"},
    "model": {"granularity": "model"},
    "common column": {"granularity": "common_column"},
    "common column of the base too": {"granularity": "common_column", "base_source": True},
    "tanh": {"transform": "tanh"},
    "sigmoid of rows": {"transform": "sigmoid", "granularity": "row"},
    "relu": {"transform": "relu"},
    "clamp": {"transform": "clamp", "granularity": "layer", "task_vectors": True},
    "task vectors": {"task_vectors": True},
    "task vectors by head, tanh": {
        "task_vectors": True, "granularity": "head", "transform": "tanh"
    },
    "task vectors of the model": {
        "task_vectors": True, "granularity": "model", "embeddings": "scalar", "norms": "scalar"
    },
    "base as a source": {"base_source": True},
    "embeddings and norms by feature": {"embeddings": "vector", "norms": "vector"},
    "embeddings and norms by scalar": {
        "embeddings": "scalar", "norms": "scalar", "transform": "tanh"
    },
    "norms of a base source": {"norms": "vector", "base_source": True},
    "no output head": {"merge_lm_head": False, "granularity": "row"},
    "tanh mean": {"unmerged": "tanh_mean", "transform": "tanh"},
    "teachers share": {"teacher_embeddings": "merged"},
    "teachers share the tanh mean": {"teacher_embeddings": "merged", "unmerged": "tanh_mean"},
}  # fmt: skip


@pytest.fixture(scope="module")
def worlds(make_model, tmp_path_factory):
    """Llama with biases, Mistral with a tied head; float64."""
    changes = {"llama": {"attention_bias": True}, "mistral": {"tie_word_embeddings": True}}
    return {
        name: make_world(tmp_path_factory.mktemp(name), make_model, name, torch.float64, **own)
        for name, own in changes.items()
    }


def spread_out(trainer):
    """Move the trained values apart, some below 0 and above 1."""
    flat = trainer.coefficients.flat
    noise = torch.randn(flat.shape, generator=torch.Generator().manual_seed(3), dtype=flat.dtype)
    with torch.no_grad():
        flat.add_(0.4 * noise)
    return leaves(trainer.coefficients.named(flat))


TIED = ("embeddings and norms by feature", "embeddings and norms by scalar", "tanh", "tanh mean")


@pytest.mark.parametrize(
    ("architecture", "form"),
    [("llama", form) for form in FORMS] + [("mistral", form) for form in TIED],
)
def test_loss_gradient_and_result_agree_with_plain_autograd(worlds, architecture, form):
    request, options = worlds[architecture], FORMS[form]
    sources = load_sources(request.base, request.experts, request.calibration)
    parameters = SMALL.replace(
        objective=EVERY_TERM, formulas="paper", last_position=True, **options
    )
    trainer = Trainer(request, parameters, sources)
    raw, plain = spread_out(trainer), Plain(request, torch.float64, **options)
    terms = plain.terms(raw, sources.calibrations, ROWS, formulas="paper", last=True)
    expected = sum(EVERY_TERM[name] * value for name, value in terms.items())
    wanted = torch.autograd.grad(expected, raw.values(), allow_unused=True)
    batch = make_batch(sources.calibrations, ROWS, "all", last=True)
    total, _ = trainer.loss(batch, ROWS)
    total.backward()
    torch.testing.assert_close(total, expected, rtol=1e-9, atol=0)
    actual = trainer.coefficients.named(trainer.coefficients.flat.grad)
    for (name, leaf), gradient in zip(raw.items(), wanted, strict=True):
        gradient = torch.zeros_like(leaf) if gradient is None else gradient
        tolerance = 1e-8 * gradient.abs().max().item() + 1e-12
        torch.testing.assert_close(actual[name], gradient, rtol=1e-6, atol=tolerance)
    assert sum(value.abs().sum() for value in actual.values()) > 0
    merged = trainer.result().tensors
    for name, tensor in plain.parameters(raw).items():
        torch.testing.assert_close(merged[name], tensor.detach(), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(
    "form", ["row", "task vectors by head, tanh", "common column", "teachers share"]
)
def test_weights_in_blocks_of_rows_agree_too(worlds, form, monkeypatch):
    monkeypatch.setattr(layers, "SMALL", 0)
    monkeypatch.setattr(layers, "CPU_BLOCK", 100)
    test_loss_gradient_and_result_agree_with_plain_autograd(worlds, "llama", form)


@pytest.mark.parametrize("form", FORMS)
def test_gradients_found_by_model_agree_too(worlds, form, monkeypatch):
    monkeypatch.setattr(layers, "SMALL", 0)
    monkeypatch.setattr(layers, "backward_by_model", lambda *layer: True)
    called = []
    forward = layers.MergedProduct.forward
    monkeypatch.setattr(
        layers.MergedProduct,
        "forward",
        staticmethod(lambda *given: called.append(1) or forward(*given)),
    )
    test_loss_gradient_and_result_agree_with_plain_autograd(worlds, "llama", form)
    assert bool(called) == (FORMS[form].get("granularity") != "row")


def test_the_way_to_the_gradients_is_chosen_by_tokens():
    # 3 models, 4096 outputs: at most 48 bytes x 4096 against 55.7 + 102 a token, 1246 tokens.
    for tokens, expected in ((1, True), (1246, True), (1247, False), (6144, False)):
        assert layers.backward_by_model(3, tokens, 4096, "cuda") is expected
    assert not layers.backward_by_model(3, 1246, 4096, "cpu")
    assert layers.backward_by_model(2, 1246, 4096, "cpu")  # no product more than the other way
    assert layers.backward_by_model(1, 100_000, 200_000, "cpu")


def test_flops_are_those_of_the_way_taken(worlds, monkeypatch):
    request = worlds["llama"]
    sources = load_sources(request.base, request.experts, request.calibration)
    monkeypatch.setattr(layers, "SMALL", 0)
    counted = []
    for taken in (False, True):
        monkeypatch.setattr(layers, "backward_by_model", lambda *layer, taken=taken: taken)
        trainer = Trainer(request, SMALL, sources)
        trainer._gradient(ROWS)
        counted.append(trainer.counted["flops"])
        tokens = trainer.counted["backward_tokens"]
    body = sum(
        layer.weights[0].numel()
        for name, layer in trainer.layers.items()
        if f"{name}.weight" != sources.head
    )
    models = len(request.experts)
    # As many products as models in place of two; no reduction of dL/dW against each model.
    assert counted[1] - counted[0] == 2 * (models - 2) * body * tokens - 2 * models * body


@pytest.mark.parametrize("form", ["task vectors", "base as a source", "teachers share"])
def test_samples_one_by_one_and_recomputed_layers_give_the_packed_steps_gradient(worlds, form):
    request = worlds["llama"]
    sources = load_sources(request.base, request.experts, request.calibration)
    gradients, losses = [], []
    for changes in ({}, {"tokens_per_forward": 1}, {"recompute_activations": True}):
        parameters = SMALL.replace(objective=EVERY_TERM, **FORMS[form], **changes)
        trainer = Trainer(request, parameters, sources)
        spread_out(trainer)
        sums = trainer._gradient(ROWS)
        losses.append({name: value.item() for name, value in sums.items()})
        gradients.append(trainer.coefficients.flat.grad)
        assert set(sums) == {"loss", *EVERY_TERM}
    assert losses[1] == pytest.approx(losses[0], rel=1e-10)
    scale = gradients[0].abs().max().item()
    torch.testing.assert_close(gradients[1], gradients[0], rtol=1e-8, atol=1e-10 * scale)
    assert losses[2] == losses[0] and torch.equal(gradients[2], gradients[0])


def test_parts_of_a_step_train_alike_and_count_alike(worlds):
    request = worlds["llama"]
    results = [
        train(request, SMALL.replace(tokens="answer", tokens_per_forward=limit))
        for limit in (0, 20)
    ]
    for whole, parts in zip(*(result.log for result in results), strict=True):
        assert parts == pytest.approx(whole, rel=1e-9)
    whole, parts = (result.counted for result in results)
    assert parts["forward_tokens"] == whole["forward_tokens"] and parts["steps"] == whole["steps"]


SUMMING_TO_ONE = [
    *(
        {"granularity": granularity, "task_vectors": task_vectors}
        for granularity in ("column", "row", "head", "layer", "model")
        for task_vectors in (False, True)
    ),
    {"granularity": "common_column"},
    {"init": "random"},
]


@pytest.mark.parametrize(
    ("options", "names"),
    [(options, ("one",)) for options in SUMMING_TO_ONE]
    + [(options, ("one", "same", "again")) for options in SUMMING_TO_ONE]
    # A sigmoid cannot reach 1, which a single expert needs.
    + [({"init": "random", "transform": "sigmoid"}, ("one", "same", "again"))],
)
def test_one_expert_or_identical_experts_are_reproduced(worlds, options, names):
    """At the start the coefficients of a parameter add up to 1, whatever the form."""
    world = worlds["llama"]
    request = dataclasses.replace(
        world,
        experts=dict.fromkeys(names, world.experts["one"]),
        calibration=dict.fromkeys(names, world.calibration["one"]),
    )
    sources = load_sources(request.base, request.experts, request.calibration)
    parameters = SMALL.replace(embeddings="vector", norms="scalar", **options)
    merged = Trainer(request, parameters, sources).result().tensors
    expert = world.experts["one"].state_dict()
    assert merged.keys() == expert.keys()
    for name, tensor in merged.items():
        torch.testing.assert_close(tensor, expert[name], rtol=1e-12, atol=1e-12)


def test_initial_values():
    layers = {"a.q_proj": MergedLinear([torch.zeros(4, 6)] * 3, [torch.zeros(4)] * 3)}

    def start(**form):
        return Coefficients(layers, 3, form=Form(**form)).named()

    assert torch.equal(start()["a.q_proj.weight"], torch.full((3, 6), 1 / 3))
    assert torch.equal(start(start=0.3)["a.q_proj.weight"], torch.full((3, 6), 0.3))
    tanh = start(transform="tanh")["a.q_proj.weight"]
    torch.testing.assert_close(tanh, torch.full((3, 6), math.tanh(1 / 3)))
    drawn, again, other = (start(init="random", seed=seed) for seed in (0, 0, 1))
    for name, value in drawn.items():
        assert torch.equal(value, again[name]) and not torch.equal(value, other[name])
        torch.testing.assert_close(value.sum(0), torch.ones_like(value.sum(0)))
        # Softmax of draws in [0, 1): at most e / (e + 2), at least 1 / (1 + 2e).
        assert value.min() > 1 / (1 + 2 * math.e) and value.max() < math.e / (math.e + 2)
    assert len(drawn["a.q_proj.weight"].unique()) == 18


def test_shapes_of_what_is_saved(worlds):
    request = worlds["llama"]  # width 32, 4 heads, 2 of them for keys, 64 wide in the MLP
    sources = load_sources(request.base, request.experts, request.calibration)
    widths = {
        "column": (32, 32, 64, 32),
        "row": (32, 16, 32, 48),
        "head": (4, 2, 1, 1),
        "layer": (1, 1, 1, 1),
        "common_column": (32, 32, 64, 32),
    }
    layer = "model.layers.0."
    names = ("self_attn.q_proj", "self_attn.k_proj", "mlp.down_proj")
    for granularity, expected in widths.items():
        named = Trainer(
            request, SMALL.replace(granularity=granularity), sources
        ).coefficients.named()
        full = [f"{layer}{name}.weight" for name in names] + ["lm_head.weight"]
        assert [tuple(named[name].shape) for name in full] == [(3, width) for width in expected]
        assert named[f"{layer}self_attn.q_proj.bias"].shape == (3,)
    whole = Trainer(request, SMALL.replace(granularity="model"), sources)
    assert {name: value.shape for name, value in whole.coefficients.named().items()} == {
        "model": (3, 1)
    }


def test_bfloat16_coefficients_lose_small_updates(worlds):
    """Near 1/3 neighbours are 2^-9 apart: an update below half of that changes nothing."""
    request = worlds["llama"]
    shares = {}
    for dtype in ("float32", "bfloat16"):
        for rate in (5e-4, 2e-3):
            result = train(
                request,
                training_parameters(
                    samples=5, learning_rate=rate, coefficient_dtype=dtype, objective={"kl": 1.0}
                ),
            )
            values = torch.cat([value.view(-1) for value in result.extra_tensors.values()])
            start = torch.tensor(1 / 3, dtype=values.dtype)
            if dtype == "bfloat16":
                start = start.to(torch.bfloat16).to(values.dtype)
                assert torch.equal(values, values.to(torch.bfloat16).to(values.dtype))
            shares[dtype, rate] = (values != start).double().mean().item()
    assert shares["bfloat16", 5e-4] == 0
    assert shares["float32", 5e-4] > 0.99
    assert shares["bfloat16", 2e-3] > 0.1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"task_vectors": True, "base_source": True}, "choose one"),
        (
            {"teacher_embeddings": "merged", "norms": "vector"},
            "cannot share embeddings and norms that are being merged",
        ),
        ({"granularity": "common_column", "init": "random"}, "no random start"),
        ({"beta2": 1.0}, "must be below 1"),
    ],
)
def test_options_that_exclude_each_other_are_refused(worlds, changes, message):
    with pytest.raises(UserError, match=message):
        train(worlds["llama"], SMALL.replace(**changes))
