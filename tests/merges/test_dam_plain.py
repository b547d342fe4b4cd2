"""A small body's own forward and backward against the model's class and autograd."""

from __future__ import annotations

import pytest
import torch

from merges.dam.data import make_batch
from merges.dam.method import training_parameters
from merges.dam.sources import load_sources
from merges.dam.training import Trainer
from tests.merges.dam_world import make_world

ROWS = [[0, 3, 5], [1, 2, 7], [4, 6, 0]]
FORMS = {
    "column": {},
    "last position": {"last_position": True},  # all tokens are in the loss
    "answer": {"tokens": "answer"},
    "task vectors": {"tokens": "answer", "task_vectors": True, "granularity": "head"},
    "row": {"granularity": "row", "transform": "tanh"},
    "layer": {"granularity": "layer", "norms": "vector", "embeddings": "vector"},
    "model": {"granularity": "model", "norms": "scalar", "embeddings": "scalar"},
}


@pytest.fixture(scope="module", params=["llama", "mistral"])
def world(request, make_model, tmp_path_factory):
    return make_world(
        tmp_path_factory.mktemp(request.param), make_model, request.param, torch.float64
    )


def trainer_of(world, **parameters):
    own = load_sources(world.base, world.experts, world.calibration)
    return Trainer(world, training_parameters(samples=4, **parameters), own)


def loss_and_gradient(trainer, rows, parameters, plain):
    """Return both at a moved start; `plain` says which way, None lets it choose."""
    if plain is False:
        trainer.decoder._plain = None
    elif plain:
        trainer.decoder.hidden_states = None  # a call would fail
    data = trainer.sources.calibrations
    tokens, last = parameters.get("tokens", "all"), parameters.get("last_position", False)
    flat = trainer.coefficients.flat
    with torch.no_grad():
        flat += 0.3 * torch.randn(flat.shape, generator=torch.Generator().manual_seed(3))
    total, _ = trainer.loss(make_batch(data, rows, tokens, last), rows)
    total.backward()
    return total.detach(), flat.grad


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("rows", [ROWS, [[0], [1], [4]]], ids=["three rows", "one row"])
def test_loss_and_gradient_are_those_of_class_and_autograd(world, form, rows):
    given = FORMS[form]
    loss, gradient = loss_and_gradient(trainer_of(world, **given), rows, given, True)
    expected, wanted = loss_and_gradient(trainer_of(world, **given), rows, given, False)
    torch.testing.assert_close(loss, expected, rtol=1e-12, atol=0)
    distance = torch.linalg.vector_norm(gradient - wanted)
    assert distance <= 1e-12 * torch.linalg.vector_norm(wanted)


def test_four_steps_in_float32_are_those_of_class_and_autograd(make_model, tmp_path):
    world = make_world(tmp_path, make_model, "mistral", torch.float32)
    ends = []
    for plain in (True, False):
        trainer = trainer_of(world, learning_rate=0.02, last_position=True)
        if not plain:
            trainer.decoder._plain = None
        for _ in range(4):
            trainer.step()
        ends.append(trainer.coefficients.flat.detach())
    torch.testing.assert_close(*ends, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("architecture", "changes", "given"),
    [
        ("llama", {"attention_bias": True}, {}),
        ("llama", {"hidden_act": "gelu"}, {}),
        ("mistral", {"sliding_window": 5}, {}),
        ("mistral", {}, {"recompute_activations": True}),
    ],
)
def test_other_bodies_have_no_plain_form(make_model, tmp_path, architecture, changes, given):
    world = make_world(tmp_path, make_model, architecture, torch.float32, **changes)
    assert trainer_of(world, **given).decoder._plain is None


def test_large_layers_and_narrow_types_have_no_plain_form(make_model, tmp_path, monkeypatch):
    world = make_world(tmp_path / "narrow", make_model, "mistral", torch.bfloat16)
    assert trainer_of(world).decoder._plain is None
    world = make_world(tmp_path / "wide", make_model, "mistral", torch.float32)
    assert trainer_of(world).decoder._plain is not None
    monkeypatch.setattr("merges.dam.layers.SMALL", 100)
    assert trainer_of(world).decoder._plain is None


def test_long_samples_take_the_other_way(make_model, tmp_path, monkeypatch):
    world = make_world(tmp_path, make_model, "mistral", torch.float64)
    expected = loss_and_gradient(trainer_of(world), ROWS, {}, True)
    monkeypatch.setattr("merges.dam.network.SHORT", 3)
    trainer = trainer_of(world)
    monkeypatch.setattr(trainer.decoder._plain, "states", None)  # a call would fail
    torch.testing.assert_close(loss_and_gradient(trainer, ROWS, {}, None), expected)
