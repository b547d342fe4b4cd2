"""AdaMerging against a plain training of task vectors' coefficients, and its properties."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch.nn import functional as F

from common.errors import UserError
from merges.dam.data import draw
from merges.dam.sources import load_sources
from merges.engine import registry
from merges.engine import run as engine
from merges.engine.config import MergeConfig
from tests.merges.dam_world import make_world, plain_model

SETTINGS = {"samples": 8, "batch_size": 4, "epochs": 10, "learning_rate": 0.01}


@pytest.fixture(scope="module")
def world(make_model, tmp_path_factory):
    """Llama with biases in float32."""
    folder = tmp_path_factory.mktemp("world")
    return make_world(folder, make_model, "llama", torch.float32, attention_bias=True)


def adamerging(world, policy, **settings):
    request = dataclasses.replace(world, embeddings_and_norms=policy)
    return registry.load("adamerging")(request, **registry.validate("adamerging", settings))


def merged_by_hand(origin, models, coefficients, left_alone):
    result = {}
    for name, value in origin.items():
        result[name] = value
        if not any(part in name for part in left_alone):
            for c, model in zip(coefficients[name], models, strict=True):
                result[name] = result[name] + c * (model[name] - value)
    return result


@pytest.mark.parametrize("granularity", ["task", "layer"])
@pytest.mark.parametrize("policy", ["base", "merged"])
def test_twenty_steps_follow_a_plain_training(world, granularity, policy):
    base = plain_model(world.base.path, torch.float32)
    origin = dict(base.named_parameters())
    models = [
        dict(plain_model(expert.path, torch.float32).named_parameters())
        for expert in world.experts.values()
    ]
    left_alone = ("norm", "embed") if policy == "base" else ()
    if granularity == "task":
        shared = torch.full((3,), 0.3, requires_grad=True)
        coefficients = dict.fromkeys(origin, shared)
        trained = [shared]
    else:
        coefficients = {name: torch.full((3,), 0.3, requires_grad=True) for name in origin}
        trained = list(coefficients.values())
    optimizer = torch.optim.Adam(trained, lr=0.01)
    data = load_sources(world.base, world.experts, world.calibration).calibrations
    drawn = draw(data, 8, 10, world.seed)
    expected = []
    for step in range(20):
        parameters = merged_by_hand(origin, models, coefficients, left_alone)
        total = 0.0
        for own, rows in zip(data, drawn, strict=True):
            entropies = []
            for row in rows[4 * step : 4 * step + 4]:
                ids = own.ids[own.starts[row] : own.starts[row + 1]][None]
                logits = torch.func.functional_call(
                    base, parameters, (), {"input_ids": ids, "use_cache": False}
                ).logits[0, :-1]
                log_p = F.log_softmax(logits, -1)
                entropies.append(-(log_p.exp() * log_p).sum(-1))
            total = total + torch.cat(entropies).mean()
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
        expected.append(total.item())
    result = adamerging(world, policy, granularity=granularity, **SETTINGS)
    assert [row["entropy"] for row in result.log] == pytest.approx(expected, rel=1e-5)
    assert expected[-1] < 0.97 * expected[0]
    with torch.no_grad():
        wanted = merged_by_hand(origin, models, coefficients, left_alone)
    for name, tensor in wanted.items():
        torch.testing.assert_close(result.tensors[name], tensor, rtol=1e-3, atol=1e-4)
    if granularity == "task":
        (learnt,) = result.extra_tensors.values()
        assert learnt.shape == (3, 1)


def test_a_tiny_learning_rate_gives_task_arithmetic(world):
    result = adamerging(
        world, "base", initial=0.4, samples=2, batch_size=2, epochs=1, learning_rate=1e-12
    )
    tensors = {name: expert.state_dict() for name, expert in world.experts.items()}
    expected = engine.merge_tensors(
        "task_arithmetic", world.base.state_dict(), tensors, {"scale": 0.4},
        embeddings_and_norms="base",
    )  # fmt: skip
    assert expected.keys() == result.tensors.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(result.tensors[name], tensor, rtol=1e-5, atol=1e-6)


def test_coefficients_are_cut_to_the_unit_interval(world):
    options = {"samples": 2, "batch_size": 2, "epochs": 1, "learning_rate": 5.0}
    for clamp, low, high in ((True, 0, 1), (False, -5, 6)):
        learnt = adamerging(world, "base", clamp=clamp, **options).extra_tensors
        values = torch.cat([value.view(-1) for value in learnt.values()])
        assert values.min() >= low and values.max() <= high
        assert (values.max() > 1) == (not clamp)


def test_it_needs_data_but_no_teachers(world, tmp_path):
    info = registry.info("adamerging")
    assert info.needs == {"base", "data"} and info.whole_model
    less = {name: path for name, path in world.calibration.items() if name != "two"}
    with pytest.raises(UserError, match="give --calibration two=FILE too"):
        engine.merge_checkpoints(
            MergeConfig("adamerging", world.base, world.experts, {}, calibration=less)
        )
    defaults = registry.validate("adamerging", {})
    with pytest.raises(UserError, match="24 calibration rows, the training was asked for 1600"):
        adamerging(world, "base")
    with pytest.raises(UserError, match="AdaMerging: entropy became nan at step 2 of 3"):
        adamerging(
            world, "base", samples=3, batch_size=1, epochs=1, learning_rate=1e38, clamp=False
        )
    steps = defaults["samples"] * defaults["epochs"] / defaults["batch_size"]
    assert steps == 500 and defaults["initial"] == 0.3
