"""AdaRank against a plain training of masked decompositions, and its limits."""

from __future__ import annotations

import pytest
import torch

from merges.engine import registry
from merges.engine import run as engine
from tests.merges.dam_world import make_world
from tests.merges.test_learned_coefficients import Plain

ROWS = {"samples": 8, "batch_size": 4, "epochs": 4}


@pytest.fixture(scope="module")
def world(make_model, tmp_path_factory):
    """Llama with biases and an output head of its own, in float64."""
    folder = tmp_path_factory.mktemp("world")
    return make_world(folder, make_model, "llama", torch.float64, attention_bias=True)


def adarank(world, **settings):
    return registry.load("adarank")(world, **registry.validate("adarank", ROWS | settings))


def straight_through(soft):
    return (soft > 0.5).double() + soft - soft.detach()


@pytest.mark.parametrize(
    ("origin", "share", "held"), [("base", 1.0, 1.0), ("mean", 0.3, 1.0), ("base", 0.2, 0.5)]
)
def test_eight_steps_follow_a_plain_training(world, origin, share, held):
    plain = Plain(world)
    centre = dict(plain.origin)
    if origin == "mean":
        for name in plain.names:
            centre[name] = sum(model[name] for model in plain.models) / 3
    parts, trained = {}, []
    for name in plain.names:
        for index, model in enumerate(plain.models):
            delta = model[name] - centre[name]
            scale = torch.tensor(0.3).double().requires_grad_()
            trained.append(scale)
            if delta.ndim == 1:
                parts[name, index] = (delta, scale)
                continue
            left, values, right = torch.linalg.svd(delta, full_matrices=False)
            count, first = int(held * len(values)), int(share * len(values))
            logits = torch.where(torch.arange(count) < first, 0.1, -0.1).double().requires_grad_()
            trained.append(logits)
            parts[name, index] = (left[:, :count], values[:count], right[:count], logits, scale)
    optimizer = torch.optim.Adam(trained, lr=0.05)

    def merged():
        result = dict(centre)
        for (name, _), part in parts.items():
            if len(part) == 2:
                result[name] = result[name] + part[1] * part[0]
            else:
                left, values, right, logits, scale = part
                mask = straight_through((logits / 2).sigmoid())
                result[name] = result[name] + scale * (left * (mask * values)) @ right
        return result

    losses = []
    for step in range(8):
        total, parameters = 0.0, merged()
        for index in range(3):
            p = plain.outputs(parameters, index, step, "all")[0].softmax(-1)
            total = total - (p * p.log()).sum(-1).mean()
        losses.append(total.item())
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
    result = adarank(
        world, origin=origin, share=share, held=held, temperature=2, learning_rate=0.05
    )
    assert [row["entropy"] for row in result.log] == pytest.approx(losses, rel=1e-6)
    with torch.no_grad():
        for name, tensor in merged().items():
            torch.testing.assert_close(result.tensors[name], tensor, rtol=0, atol=1e-6)
    name = "model.layers.0.mlp.up_proj.weight"
    logits = [part[3] for (own, _), part in parts.items() if own == name]
    found = result.extra_tensors[f"{name}.ranks"].tolist()
    assert found == [int((own > 0).sum()) for own in logits]
    size = int(share * min(plain.origin[name].shape))
    # Some directions were turned off or on.
    every = [v for k, v in result.extra_tensors.items() if k.endswith("up_proj.weight.ranks")]
    assert any(count != size for own in every for count in own.tolist())


def test_a_tiny_learning_rate_gives_task_arithmetic_and_a_low_rank_its_truncation(world):
    least = {"samples": 2, "batch_size": 2, "epochs": 1, "learning_rate": 1e-12}
    tensors = {name: expert.state_dict() for name, expert in world.experts.items()}
    base = world.base.state_dict()
    expected = engine.merge_tensors(
        "task_arithmetic", base, tensors, {"scale": 0.4}, embeddings_and_norms="base"
    )
    result = adarank(world, initial=0.4, **least)
    for name, tensor in expected.items():
        torch.testing.assert_close(result.tensors[name], tensor, rtol=0, atol=1e-7)
    name = "model.layers.1.self_attn.q_proj.weight"
    low = adarank(world, initial=0.4, share=0.1, **least).tensors[name]
    count = int(0.1 * min(base[name].shape))
    change = 0
    for own in tensors.values():
        left, values, right = torch.linalg.svd(own[name] - base[name], full_matrices=False)
        change = change + (left[:, :count] * values[:count]) @ right[:count]
    torch.testing.assert_close(low, base[name] + 0.4 * change, rtol=0, atol=1e-7)
