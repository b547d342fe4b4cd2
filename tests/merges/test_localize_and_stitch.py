"""Localize-and-Stitch against its formulas, and its masks against a plain training."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from common.errors import UserError
from merges.arithmetic.stitching import stitch
from merges.dam.data import draw
from merges.dam.sources import load_sources
from merges.engine import registry
from merges.engine import run as engine
from merges.engine.config import MergeConfig
from tests.merges.dam_world import make_world, plain_model

RATE = 1000.0
SETTINGS = {"samples": 6, "steps": 4, "density": 0.2, "bias": 1.0, "learning_rate": RATE}


def test_the_stitch_by_hand():
    deltas = torch.tensor([[3, 2, 9], [6, 9, 1], [0, 4, 5]]).double()
    masks = torch.tensor([[1, 1, 0], [1, 0, 1], [1, 1, 1]]).bool()
    assert stitch(list(deltas), list(masks)).tolist() == [3.0, 3.0, 3.0]
    assert stitch(list(deltas), list(masks & False)).tolist() == [0.0, 0.0, 0.0]


@pytest.mark.parametrize("scope", ["model", "tensor"])
@pytest.mark.parametrize("count", [1, 3])
def test_without_data_it_averages_the_largest_changes(scope, count):
    rng = np.random.default_rng(count)
    shapes = {"model.norm.weight": (70,), "model.layers.0.mlp.up_proj.weight": (30, 20)}
    spread = dict(zip(shapes, (1.0, 0.1), strict=True))  # unlike, so that the scope matters
    base = {name: torch.tensor(rng.normal(size=shape)) for name, shape in shapes.items()}
    experts = {
        f"e{number}": {
            name: base[name] + spread[name] * torch.tensor(rng.normal(size=shape))
            for name, shape in shapes.items()
        }
        for number in range(count)
    }
    given = {"density": 0.2, "scale": 0.7, "scope": scope}
    found = engine.merge_tensors("localize_and_stitch_dataless", base, experts, given)
    deltas = {
        name: np.stack([(own[name] - base[name]).numpy() for own in experts.values()])
        for name in shapes
    }
    joined = np.concatenate([delta.reshape(count, -1) for delta in deltas.values()], 1)
    for name, delta in deltas.items():
        sizes = np.abs(joined if scope == "model" else delta.reshape(count, -1))
        least = np.sort(sizes, 1)[:, -int(0.2 * sizes.shape[1])].reshape(
            -1, *[1] * (delta.ndim - 1)
        )
        mask = np.abs(delta) >= least
        expected = base[name].numpy() + 0.7 * (delta * mask).sum(0) / np.maximum(mask.sum(0), 1)
        np.testing.assert_allclose(found[name].numpy(), expected, atol=1e-14)


@pytest.fixture(scope="module")
def world(make_model, tmp_path_factory):
    """Llama with biases in float64."""
    folder = tmp_path_factory.mktemp("world")
    return make_world(folder, make_model, "llama", torch.float64, attention_bias=True)


def localized(world, **settings):
    given = registry.validate("localize_and_stitch", SETTINGS | settings)
    return registry.load("localize_and_stitch")(world, **given)


def trained_by_hand(world, l1, binary):
    """Each expert's S by plain autograd over whole weights, and the models' parameters."""
    base = plain_model(world.base.path, torch.float64)
    origin = dict(base.named_parameters())
    names = [k for k in origin if "_proj." in k or k == "lm_head.weight"]
    found, losses = [], []
    for name, expert in world.experts.items():
        moved = dict(plain_model(expert.path, torch.float64).named_parameters())
        deltas = {key: moved[key] - origin[key] for key in names}
        sizes = torch.cat([delta.abs().flatten() for delta in deltas.values()])
        least = sizes.sort().values[-int(0.2 * len(sizes))]
        s = {
            k: torch.where(delta.abs() >= least, 1.0, -1.0).double().requires_grad_()
            for k, delta in deltas.items()
        }
        (data,) = load_sources(
            world.base, {name: expert}, {name: world.calibration[name]}
        ).calibrations
        for step in range(4):
            parameters = dict(origin)
            for key in names:
                parameters[key] = origin[key] + s[key].sigmoid() * deltas[key]
            parts = []
            for row in draw([data], 6, 4, world.seed)[0][6 * step : 6 * step + 6]:
                ids = data.ids[data.starts[row] : data.starts[row + 1]]
                first, last = data.loss_span(row, "answer")
                inputs = {"input_ids": ids[None], "use_cache": False}
                logits = torch.func.functional_call(base, parameters, (), inputs).logits[0]
                parts.append(
                    F.cross_entropy(logits[first:last], ids[first + 1 : last + 1], reduction="none")
                )
            loss = torch.cat(parts).mean()
            losses.append(loss.item())
            gradients = torch.autograd.grad(loss, list(s.values()))
            for (key, own), gradient in zip(s.items(), gradients, strict=True):
                slope = own.sigmoid() * (1 - own.sigmoid())
                signs = torch.where(own > 0, -1.0, 1.0) if binary else 1.0
                s[key] = (own - RATE * gradient - l1 * signs * slope).detach().requires_grad_()
        masks = {k: own.detach() > 0 for k, own in s.items()}
        moved = sum(int((masks[k] != (deltas[k].abs() >= least)).sum()) for k in s)
        assert moved > 50  # it learned
        found.append((masks, deltas))
    return origin, found, losses


@pytest.mark.parametrize(("l1", "penalty"), [(0.0, "sparse"), (2.0, "sparse"), (2.0, "binary")])
def test_four_steps_follow_a_plain_training(world, l1, penalty):
    result = localized(world, l1=l1, penalty=penalty)
    origin, found, losses = trained_by_hand(world, l1, penalty == "binary")
    assert [row["cross_entropy"] for row in result.log] == pytest.approx(losses, rel=1e-9)
    assert [row["expert"] for row in result.log] == [n for n in world.experts for _ in range(4)]
    first = torch.cat([mask.flatten() for mask in found[0][0].values()])
    for key, value in origin.items():
        expected = value
        if key in found[0][0]:
            masks = [own[key] for own, _ in found]
            total = sum(mask * deltas[key] for mask, (_, deltas) in zip(masks, found, strict=True))
            expected = value + total / sum(masks).clamp(min=1)
        torch.testing.assert_close(result.tensors[key], expected, rtol=0, atol=1e-12)
    share = result.extra_tensors["kept.one"].item()
    assert share == pytest.approx(first.double().mean().item(), abs=1e-6)
    if not l1:
        assert losses[3] < losses[0]
    assert result.counted["steps"] == 12 and result.counted["forward_tokens"] > 0


def test_the_penalty_empties_the_mask_and_then_nothing_is_merged(world):
    result = localized(world, l1=1e4, learning_rate=1e-9)
    base = world.base.state_dict()
    assert all(torch.equal(result.tensors[name], base[name]) for name in base)
    both = localized(
        dataclasses.replace(world, embeddings_and_norms="merged"), l1=1e4, learning_rate=1e-9
    )
    mean = sum(own.load("model.norm.weight") for own in world.experts.values()) / 3
    torch.testing.assert_close(both.tensors["model.norm.weight"], mean, rtol=0, atol=1e-12)


def test_bad_input_is_one_line(world):
    less = {name: path for name, path in world.calibration.items() if name != "two"}
    with pytest.raises(UserError, match="give --calibration two=FILE too"):
        config = MergeConfig("localize_and_stitch", world.base, world.experts, {}, calibration=less)
        engine.merge_checkpoints(config)
    with pytest.raises(UserError, match="24 calibration rows, the training was asked for 64"):
        localized(world, samples=64)
    with pytest.raises(UserError, match="l1: -1 is out of range"):
        localized(world, l1=-1)
