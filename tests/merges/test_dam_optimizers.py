"""The optimisers against references written out, and a training as the authors' code runs it."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from merges.dam.method import training_parameters
from merges.dam.optimizers import make_optimizer, moments, restore_moments
from merges.dam.sources import load_sources
from merges.dam.training import Trainer, train
from tests.merges.dam_world import Plain, leaves, make_world

SETTINGS = {"learning_rate": 0.1, "betas": (0.9, 0.99), "weight_decay": 0.05}


def blocks(values):
    """Two vectors of five, then three scalars."""
    return [values[:10].view(1, 2, 5), values[10:].view(3, 1, 1)]


def run(name, gradients, start, **changes):
    parameter = torch.tensor(start).requires_grad_()
    optimizer = make_optimizer(name, parameter, blocks, **{"fraction": 0.4, **SETTINGS, **changes})
    for gradient in gradients:
        parameter.grad = torch.tensor(gradient)
        optimizer.step()
    return parameter.detach().numpy()


def reference(gradients, start, share=None):
    """AdamW coordinate by coordinate; with a share, only the largest momenta of a vector move."""
    theta, m, v = start.copy(), np.zeros_like(start), np.zeros_like(start)
    vectors = [range(0, 5), range(5, 10), [10], [11], [12]]
    for t, g in enumerate(gradients, 1):
        m = 0.9 * m + 0.1 * g
        v = 0.99 * v + 0.01 * g * g
        for vector in vectors:
            moved = max(1, int(len(vector) * share)) if share else len(vector)
            largest = sorted(vector, key=lambda i: -abs(m[i]))[:moved]
            for i in vector:
                theta[i] *= 1 - 0.1 * 0.05
                if i in largest:
                    m_hat, v_hat = m[i] / (1 - 0.9**t), v[i] / (1 - 0.99**t)
                    theta[i] -= 0.1 * m_hat / (np.sqrt(v_hat) + 1e-8)
    return theta


@pytest.fixture
def history():
    draws = np.random.default_rng(0)
    return draws.normal(size=(30, 13)), draws.normal(size=13)


def test_adamw(history):
    np.testing.assert_allclose(run("adamw", *history), reference(*history), rtol=1e-10)


@pytest.mark.parametrize("share", [0.2, 0.4, 0.7])
def test_mofo(history, share):
    actual = run("mofo", *history, fraction=share)
    np.testing.assert_allclose(actual, reference(*history, share=share), rtol=1e-10)


def test_mofo_of_everything_is_adamw(history):
    everything = run("mofo", *history, fraction=1.0)
    np.testing.assert_allclose(everything, run("adamw", *history), rtol=1e-10)


def test_mofo_moves_two_of_five_at_first(history):
    gradients, start = history
    moved = run("mofo", gradients[:1], start, weight_decay=0.0) != start
    assert moved.reshape(-1)[:10].reshape(2, 5).sum(1).tolist() == [2, 2]
    assert moved[10:].all()
    assert set(np.flatnonzero(moved[:5])) == set(np.argsort(-abs(gradients[0][:5]))[:2])


@pytest.mark.parametrize("name", ["adamw", "mofo"])
def test_restored_moments_continue_bit_for_bit(history, name):
    gradients, start = history
    parameter = torch.tensor(start).requires_grad_()
    options = {"fraction": 0.4, **SETTINGS}
    optimizer = make_optimizer(name, parameter, blocks, **options)
    assert moments(optimizer) == {}
    for step, gradient in enumerate(gradients):
        if step == 11:
            kept = {key: value.clone() for key, value in moments(optimizer).items()}
            parameter = parameter.detach().clone().requires_grad_()
            optimizer = make_optimizer(name, parameter, blocks, **options)
            restore_moments(optimizer, kept)
        parameter.grad = torch.tensor(gradient)
        optimizer.step()
    assert np.array_equal(parameter.detach().numpy(), run(name, gradients, start))


def test_bfloat16_moments_are_bfloat16():
    parameter = torch.full((13,), 1 / 3, dtype=torch.bfloat16).requires_grad_()
    for name in ("adamw", "mofo"):
        optimizer = make_optimizer(name, parameter, blocks, fraction=0.4, **SETTINGS)
        parameter.grad = torch.ones_like(parameter)
        optimizer.step()
        assert moments(optimizer)["exp_avg_sq"].dtype == torch.bfloat16


def mofo(parameter, state, rate):
    """One update of one vector, after the paper's algorithm, with the authors' weight decay."""
    with torch.no_grad():
        gradient, t = parameter.grad, state.setdefault("t", 0) + 1
        state["t"] = t
        state["m"] = 0.9 * state.get("m", 0) + 0.1 * gradient
        state["v"] = 0.999 * state.get("v", 0) + 0.001 * gradient**2
        count = max(1, int(0.3 * len(parameter)))
        largest = state["m"].abs().argsort(descending=True)[:count]
        parameter.mul_(1 - rate * 0.01)
        step = state["m"] / (1 - 0.9**t) / ((state["v"] / (1 - 0.999**t)).sqrt() + 1e-8)
        parameter[largest] -= rate * step[largest]


def test_twenty_steps_as_the_authors_code_follow_a_plain_loop(make_model, tmp_path):
    """One tensor per model and layer, as there; in float64, in which no tie is broken at random."""
    world = make_world(tmp_path, make_model, "llama", torch.float64, attention_bias=True)
    form = {"transform": "tanh", "unmerged": "tanh_mean"}
    parameters = training_parameters(
        samples=20, learning_rate=1e-3, optimizer="mofo", weight_decay=0.01, last_position=True,
        **form,
    )  # fmt: skip
    sources = load_sources(world.base, world.experts, world.calibration)
    trainer = Trainer(world, parameters, sources)
    started = trainer.coefficients.named(trainer.coefficients.flat)
    vectors = {
        name: [leaves({0: row.reshape(-1)})[0] for row in value] for name, value in started.items()
    }
    every = [vector for rows in vectors.values() for vector in rows]
    states = [{} for _ in every]
    plain, expected = Plain(world, torch.float64, **form), []
    for step in range(20):
        raw = {
            name: torch.cat(rows) if name.endswith("bias") else torch.stack(rows)
            for name, rows in vectors.items()
        }
        rows = [drawn[step : step + 1] for drawn in trainer.rows]
        terms = plain.terms(raw, sources.calibrations, rows, last=True)
        total = terms["kl"] + 0.01 * terms["cosine"] + 1e-6 * terms["l1"] + 1e-6 * terms["l2"]
        for vector in every:
            vector.grad = None
        total.backward()
        torch.nn.utils.clip_grad_norm_(every, 1.0)
        for vector, state in zip(every, states, strict=True):
            mofo(vector, state, 1e-3)
        expected.append(total.item())
    result = train(world, parameters)
    # clip_grad_norm_ divides by norm + 1e-6, which both do.
    assert [row["loss"] for row in result.log] == pytest.approx(expected, rel=1e-9)
    for name, rows in vectors.items():
        wanted = torch.tanh(torch.stack(rows).detach())
        actual = result.extra_tensors[name].view(wanted.shape)
        torch.testing.assert_close(actual, wanted, rtol=1e-8, atol=1e-10)
    single = parameters.replace(optimizer="adamw", samples=2)
    assert train(world, single).log[1]["loss"] != pytest.approx(expected[1], rel=1e-9)
