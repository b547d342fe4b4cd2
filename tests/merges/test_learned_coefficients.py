"""Methods that learn coefficients with their own objectives, against plain trainings."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn import functional as F

from common.errors import UserError
from merges.dam.aligning import restarted
from merges.dam.data import draw
from merges.dam.frank_wolfe import FrankWolfe
from merges.dam.objective import jensen_shannon
from merges.dam.sources import load_sources
from merges.dam.supervised import cross_entropy
from merges.engine import registry
from merges.engine import run as engine
from merges.engine.config import MergeConfig
from tests.merges.dam_world import make_world, plain_model

ROWS = {"samples": 8, "batch_size": 4, "epochs": 4}
NAMES = ("expert_merging", "divmerge", "supermerge", "fw_merging")


@pytest.fixture(scope="module")
def world(make_model, tmp_path_factory):
    """Llama with biases and an output head of its own, in float64."""
    folder = tmp_path_factory.mktemp("world")
    return make_world(folder, make_model, "llama", torch.float64, attention_bias=True)


def learned(world, method, **settings):
    rows = {name: value for name, value in ROWS.items() if name in registry.info(method).parameters}
    return registry.load(method)(world, **registry.validate(method, rows | settings))


class Plain:
    """The models' parameters, and the merged model's outputs by transformers alone."""

    def __init__(self, world, head=True):
        self.base = plain_model(world.base.path, torch.float64)
        self.origin = dict(self.base.named_parameters())
        self.models = [
            dict(plain_model(expert.path, torch.float64).named_parameters())
            for expert in world.experts.values()
        ]
        # The rest is the base's.
        self.names = [n for n in self.origin if "_proj." in n or (head and n == "lm_head.weight")]
        self.data = load_sources(world.base, world.experts, world.calibration).calibrations
        self.drawn = draw(self.data, 8, 4, world.seed)

    def leaves(self, value, granularity="layer"):
        """One trained value per expert and parameter, or per expert."""
        if granularity == "task":
            return dict.fromkeys(self.names, torch.full((3,), value).double().requires_grad_())
        return {n: torch.full((3,), value).double().requires_grad_() for n in self.names}

    def merged(self, coefficients):
        result = dict(self.origin)
        for name in self.names:
            for c, model in zip(coefficients[name], self.models, strict=True):
                result[name] = result[name] + c * (model[name] - self.origin[name])
        return result

    def outputs(self, parameters, index, step, tokens, size=4):
        """Logits, final hidden states and labels at a dataset's loss tokens in a step."""
        data, parts = self.data[index], []
        for row in self.drawn[index][size * step : size * step + size]:
            ids = data.ids[data.starts[row] : data.starts[row + 1]]
            first, last = data.loss_span(row, tokens)
            inputs = {"input_ids": ids[None], "use_cache": False, "output_hidden_states": True}
            found = torch.func.functional_call(self.base, parameters, (), inputs)
            states = (found.logits[0, first:last], found.hidden_states[-1][0, first:last])
            parts.append((*states, ids[first + 1 : last + 1]))
        return [torch.cat(own) for own in zip(*parts, strict=True)]


def compared(plain, result, coefficients, losses, name="loss"):
    """Assert that log and weights are those of a plain training."""
    assert [row[name] for row in result.log] == pytest.approx(losses, rel=1e-7)
    with torch.no_grad():
        expected = plain.merged(coefficients)
    for key, tensor in expected.items():
        torch.testing.assert_close(result.tensors[key], tensor, rtol=0, atol=1e-7)


def test_the_rate_restarts_as_torch_has_it():
    parameter = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([parameter], lr=0.5)
    schedule = torch.optim.lr_scheduler.CosineAnnealingWarmRestarts(
        optimizer, T_0=50, T_mult=2, eta_min=0.05
    )
    for step in range(200):
        assert restarted(0.5, step) == pytest.approx(optimizer.param_groups[0]["lr"], rel=1e-12)
        optimizer.step()
        schedule.step()


@pytest.mark.parametrize("hidden", [0.0, 2.0])
def test_expert_merging_follows_a_plain_training(world, hidden):
    plain = Plain(world, head=False)
    raw = plain.leaves(torch.tensor(0.1).double().logit().item())
    optimizer = torch.optim.AdamW(raw.values(), lr=0.3, weight_decay=1e-5)
    losses = []
    for step in range(8):
        coefficients = {name: own.sigmoid() for name, own in raw.items()}
        parameters = plain.merged(coefficients)
        weights = [own for name, own in coefficients.items() if name.endswith("weight")]
        total = 5 * (torch.stack(weights) - 0.1).abs().mean() * (step > 0)  # no slope at first
        for index, model in enumerate(plain.models):
            logits, states, _ = plain.outputs(parameters, index, step, "all")
            with torch.no_grad():
                teacher, goal, _ = plain.outputs(model, index, step, "all")
            log_p, log_q = (F.log_softmax(x / 1.5, -1) for x in (logits, teacher))
            total = total + 1.5**2 * F.kl_div(log_p, log_q.exp(), reduction="batchmean")
            total = total + hidden * F.mse_loss(states, goal)
        losses.append(total.item())
        optimizer.zero_grad()
        total.backward()
        torch.nn.utils.clip_grad_norm_(raw.values(), 1.0)
        optimizer.param_groups[0]["lr"] = restarted(0.3, step)
        optimizer.step()
    result = learned(world, "expert_merging", learning_rate=0.3, temperature=1.5, hidden=hidden)
    compared(plain, result, {name: own.sigmoid() for name, own in raw.items()}, losses)


def test_the_divergence_and_the_cross_entropy_by_hand():
    p, q = torch.tensor([[0.8, 0.2]]).double(), torch.tensor([[0.4, 0.6]]).double()
    assert jensen_shannon(p.log(), q.log(), 1.0)[0].item() == pytest.approx(0.0863046, abs=1e-7)
    value, gradient = cross_entropy(p.log(), torch.tensor([[1]]))
    assert value.item() == pytest.approx(-math.log(0.2))
    assert gradient.tolist()[0] == pytest.approx([0.8, -0.8])


@pytest.mark.parametrize("granularity", ["task", "layer"])
def test_divmerge_follows_a_plain_training(world, granularity):
    plain = Plain(world)
    coefficients = plain.leaves(0.3, granularity)
    trained = list({id(own): own for own in coefficients.values()}.values())
    optimizer = torch.optim.Adam(trained, lr=0.05)
    losses = []
    for step in range(8):
        parameters, total = plain.merged(coefficients), 0.0
        for index, model in enumerate(plain.models):
            p = plain.outputs(parameters, index, step, "all")[0].softmax(-1)
            with torch.no_grad():
                q = plain.outputs(model, index, step, "all")[0].softmax(-1)
            middle = ((p + q) / 2).log()
            sides = [(own * (own.log() - middle)).sum(-1).mean() for own in (p, q)]
            total = total + sum(sides) / 2
        losses.append(total.item())
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
    result = learned(world, "divmerge", granularity=granularity, learning_rate=0.05)
    compared(plain, result, coefficients, losses)


def test_supermerge_follows_a_plain_training(world):
    plain = Plain(world)
    raw = plain.leaves(0.3)
    optimizer = torch.optim.Adam(raw.values(), lr=0.05)
    losses = []
    for step in range(8):
        parameters = plain.merged({name: own.tanh() for name, own in raw.items()})
        total = 0.0
        for index in range(3):
            logits, _, labels = plain.outputs(parameters, index, step, "answer")
            total = total + F.cross_entropy(logits, labels)
        losses.append(total.item())
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
    result = learned(world, "supermerge", learning_rate=0.05)
    compared(plain, result, {name: own.tanh() for name, own in raw.items()}, losses)


def test_frank_wolfe_reaches_the_target_between_two_vertices():
    """Loss |c - (1/4, 3/4)|^2 over the segment from (1, 0) to (0, 1)."""
    target, found = torch.tensor([0.25, 0.75]).double().view(1, 2, 1), []
    parameter = torch.full((2,), 0.5).double().requires_grad_()
    optimizer = FrankWolfe(parameter, lambda flat: [flat.view(1, 2, 1)], 1.0, None)
    for step in range(200):
        parameter.grad = 2 * (parameter.detach() - target.view(2))
        optimizer.param_groups[0]["lr"] = 2 / (step + 2)
        optimizer.step()
        found.append(parameter.tolist())
    expected = ([0, 1], [2 / 3, 1 / 3], [1 / 3, 2 / 3])
    assert all(own == pytest.approx(point) for own, point in zip(found, expected, strict=False))
    assert found[-1] == pytest.approx([0.25, 0.75], abs=0.01)


@pytest.mark.parametrize("granularity", ["task", "layer"])
@pytest.mark.parametrize(("score", "step"), [("product", 1.0), ("cosine", 0.5)])
def test_fw_merging_follows_frank_wolfe_in_weight_space(world, granularity, score, step):
    plain, scale = Plain(world), 0.8
    vertices = [
        {n: plain.origin[n] + scale * (model[n] - plain.origin[n]) for n in plain.names}
        for model in plain.models
    ]
    weights = {n: sum(own[n] for own in vertices) / 3 for n in plain.names}
    plain.drawn = draw(plain.data, 8, 4, world.seed)
    losses = []
    for number in range(4):
        leaves = {n: own.clone().requires_grad_() for n, own in weights.items()}
        total = 0.0
        for index in range(3):
            inputs = plain.origin | leaves
            logits, _, labels = plain.outputs(inputs, index, number, "answer", size=8)
            total = total + F.cross_entropy(logits, labels)
        losses.append(total.item())
        gradients = dict(
            zip(leaves, torch.autograd.grad(total, list(leaves.values())), strict=True)
        )
        share = step * 2 / (number + 2)
        groups = [[n] for n in plain.names] if granularity == "layer" else [plain.names]
        for names in groups:
            scores = []
            for vertex in vertices:
                moved = {n: vertex[n] - plain.origin[n] for n in names}
                size = sum(own.square().sum() for own in moved.values()).sqrt()
                product = sum((gradients[n] * moved[n]).sum() for n in names)
                scores.append(product / (size if score == "cosine" else 1))
            best = vertices[int(torch.stack(scores).argmin())]
            for n in names:
                weights[n] = (1 - share) * weights[n] + share * best[n]
    given = {"granularity": granularity, "score": score, "step": step, "scale": scale}
    values = registry.validate("fw_merging", given | {"samples": 8, "steps": 4})
    result = registry.load("fw_merging")(world, **values)
    assert [row["loss"] for row in result.log] == pytest.approx(losses, rel=1e-9)
    for name, expected in (plain.origin | weights).items():
        torch.testing.assert_close(result.tensors[name], expected, rtol=0, atol=1e-9)
    assert result.counted["steps"] == 4


@pytest.mark.parametrize("method", NAMES)
def test_bad_input_is_one_line(world, method):
    less = {name: path for name, path in world.calibration.items() if name != "two"}
    with pytest.raises(UserError, match="give --calibration two=FILE too"):
        config = MergeConfig(method, world.base, world.experts, {}, calibration=less)
        engine.merge_checkpoints(config)
    with pytest.raises(UserError, match="24 calibration rows, the training was asked for 25"):
        learned(world, method, samples=25)
    assert registry.info(method).needs == {"base", "data"}
    if method == "expert_merging":
        with pytest.raises(UserError, match=r"initial: a sigmoid is below 1, not 1\.0"):
            learned(world, method, initial=1.0)
