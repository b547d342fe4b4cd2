"""Alignment by what units answer, mixtures of units, and least squares on mean activations."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from checkpoints.reading import Checkpoint
from common.errors import UserError
from merges import cli
from merges.alignment import activations, moves, solving, transport
from merges.alignment.activations import Correlation
from merges.alignment.aligning import align_models
from merges.alignment.groups import group_of
from merges.alignment.least_squares import Regression
from merges.alignment.moved import Moved
from merges.statistics.files import read_rows
from tests.merges.dam_world import write_rows
from tests.merges.test_alignment_weights import PLACES, generator, numbers


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """Two models of one tokenizer, and rows."""
    from tests.conftest import tiny_model

    top = tmp_path_factory.mktemp("pair")
    for seed, name in enumerate("ab"):
        tiny_model(top / name, seed=seed)
    write_rows(top / "rows.jsonl", seed=3, rows=30)
    return top


def opened(pair, name="a"):
    model = Checkpoint(pair / name)
    return model, group_of(model.config, model.names(), model.path)


@pytest.mark.parametrize("method", ["activations", "activation-rotations"])
def test_a_disguise_is_undone_by_what_units_answer(pair, method):
    model, group = opened(pair)
    element = moves.draw(group, generator(4), PLACES)
    found = align_models(model, {"b": _Named(model, group, element)}, method, [pair / "rows.jsonl"])
    back, target = found.experts["b"], found.reference
    for name in model.names():
        own, other = target.load(name), back.load(name)
        if method == "activations":
            assert torch.equal(own, other), name
        else:
            assert torch.allclose(own, other, rtol=0, atol=1e-3), name


class _Named(Moved):
    """A disguised model with another fingerprint, as it would have on disk."""

    fingerprint = "other"


def test_correlations_against_numpy():
    one, two = numbers(1, 40, 3).numpy(), numbers(2, 40, 4).numpy()
    two[:, 1] = 0.7  # never changes
    found = Correlation()
    for start in (0, 15):
        stop = start + 15 if not start else 40
        found.add(torch.tensor(one[start:stop]), torch.tensor(two[start:stop]))
    varied = [0, 2, 3]
    expected = np.corrcoef(one.T, two[:, varied].T)[:3, 3:]
    assert np.allclose(found.matrix()[:, varied], expected)
    assert not found.matrix()[:, 1].any()
    sizes = [np.sqrt(x.var(0).mean()) for x in (one, two)]
    covariance = (one - one.mean(0)).T @ (two - two.mean(0)) / 40
    assert np.allclose(found.matrix(whole=True), covariance / (sizes[0] * sizes[1]))


def test_activation_grams_are_those_of_the_models_of_transformers(pair, monkeypatch):
    from transformers import AutoModelForCausalLM

    seen = {}
    real = solving.hidden
    monkeypatch.setattr(
        solving, "hidden", lambda g, n, grams: seen.setdefault(n, grams) and real(g, n, grams)
    )
    model, group = opened(pair)
    other, _ = opened(pair, "b")
    (data,) = read_rows(model, [pair / "rows.jsonl"], "a")
    data = data.first(5)
    activations.match(group, model, other, [data], False)
    answers = []
    for name in "ab":
        whole = AutoModelForCausalLM.from_pretrained(pair / name, trust_remote_code=False)
        kept = []
        layer = whole.model.layers[1].mlp.down_proj
        layer.register_forward_hook(lambda m, x, y, kept=kept: kept.append(x[0][0]))
        for row in range(5):
            whole(data.ids[data.starts[row] : data.starts[row + 1]][None])
        answers.append(torch.cat(kept).detach().double().numpy())
    expected = np.corrcoef(answers[0].T, answers[1].T)[:64, 64:]
    assert np.allclose(seen[1]["up"], expected, atol=1e-4)


def test_a_plan_has_its_sums_and_is_the_best():
    gain = numbers(5, 6, 6)
    plan = transport.sinkhorn(gain, 0.5).numpy()
    assert np.allclose(plan.sum(0), 1) and np.allclose(plan.sum(1), 1)
    # Sinkhorn's form in plain numbers: scaled rows and columns of exp(gain / entropy).
    kernel, rows, columns = np.exp(gain.numpy() / 0.5), np.ones(6), np.ones(6)
    for _ in range(2000):
        rows = 1 / (kernel @ columns)
        columns = 1 / (kernel.T @ rows)
    assert np.allclose(plan, rows[:, None] * kernel * columns, atol=1e-7)

    def value(own):
        return (own * gain.numpy()).sum() - 0.5 * (own * np.log(own)).sum()

    for seed in range(20):  # no other plan is better
        step = numbers(seed, 6, 6).numpy()
        step -= step.mean(0)
        step -= step.mean(1, keepdims=True)
        assert value(plan + 1e-4 * step) <= value(plan) + 1e-12


def test_without_entropy_a_plan_is_the_assignment():
    gain = numbers(6, 5, 5)
    plan = transport.sinkhorn(gain, 1e-3)
    best = max(
        itertools.permutations(range(5)),
        key=lambda own: sum(float(gain[i, j]) for i, j in enumerate(own)),
    )
    assert plan.argmax(1).tolist() == list(best)


def test_mixtures_of_units_move_rows_and_columns_by_one_matrix(pair):
    model, _ = opened(pair)
    found = align_models(model, {"b": opened(pair, "b")[0]}, "transport").experts["b"]
    gate, up = found.element["gate.0"], found.element["up.0"]
    ones = torch.ones(64, dtype=torch.float64)  # with so little entropy, after 1,000 iterations
    assert torch.allclose(gate.matrix.sum(1), ones, atol=1e-3)
    assert torch.allclose(gate.matrix.sum(0), ones, atol=1e-12)
    assert torch.allclose(up.matrix.abs(), gate.matrix)
    assert 1 < float(1 / gate.matrix.square().sum(1).mean()) < 64  # units are mixed, not all
    stream = found.element["residual"]
    for name, soft, rows in (("gate_proj", gate, True), ("down_proj", up, False)):
        key = f"model.layers.0.mlp.{name}.weight"
        own = found.origin.load(key).double()
        own = stream.columns(own) if rows else stream.rows(own)
        expected = soft.matrix @ own if rows else own @ soft.matrix.T
        assert torch.allclose(found.load(key).double(), expected, atol=1e-5)


@pytest.mark.parametrize("ridge", [0.0, 0.1])
def test_least_squares_against_numpy(ridge):
    x, y, centre = numbers(1, 2, 30, 4), numbers(2, 2, 30, 3), numbers(3, 3, 4)
    own = Regression()
    for start, stop in ((0, 11), (11, 30)):
        own.add(x[:, start:stop], y[:, start:stop])
    inputs, outputs = x.mean(0).numpy(), y.mean(0).numpy()
    strength = np.sqrt(ridge * (inputs**2).mean() * 30)
    rows = np.vstack([inputs, strength * np.eye(4)])
    targets = np.vstack([outputs, strength * centre.numpy().T])
    expected = np.linalg.lstsq(rows, targets, rcond=None)[0].T
    assert np.allclose(own.solve(centre, ridge), expected)


def test_inputs_that_nobody_saw_keep_the_mean():
    own = Regression()
    own.add([torch.tensor([[2.0, 0.0]])], [torch.tensor([[6.0]])])
    for ridge in (0.0, 1e-9):
        found = own.solve(torch.tensor([[1.0, 5.0]]), ridge)
        assert torch.allclose(found, torch.tensor([[3.0, 5.0]]).double(), atol=1e-6)


def run(*words):
    assert cli.main([str(word) for word in words]) == 0


def pleas(pair, out, names, *more):
    experts = [f"{name}={pair / name}" for name in names]
    rows = [f"{name}={pair / 'rows.jsonl'}" for name in names]
    run(
        *("--method", "pleas", "--base", pair / "a", "--experts", *experts),
        *("--calibration", *rows, "--out", out, *more),
    )
    return load_file(out / "model.safetensors")


def test_pleas_of_equal_models_is_the_model(pair, tmp_path):
    (pair / "c").exists() or run(
        "align", "--model", pair / "a", "--disguise", 3, "--out", pair / "c"
    )
    own = load_file(pair / "a/model.safetensors")
    found = pleas(pair, tmp_path / "out", "ac", "--align", "weights")
    assert all(torch.allclose(found[n], value, rtol=0, atol=1e-4) for n, value in own.items())


def test_pleas_answers_with_the_mean(pair, tmp_path):
    """The first layer's values on the mean input, against transformers and least squares."""
    from transformers import AutoModelForCausalLM

    found = pleas(pair, tmp_path / "out", "ab", "--set", "ridge=1e-9")
    (data,) = read_rows(opened(pair)[0], [pair / "rows.jsonl"], "a")
    inputs, outputs = [], []
    for name in "ab":
        whole = AutoModelForCausalLM.from_pretrained(pair / name, trust_remote_code=False)
        layer = whole.model.layers[0]
        kept = layer.input_layernorm(whole.model.embed_tokens(data.ids)).detach().double()
        inputs.append(kept)
        outputs.append(kept @ layer.self_attn.v_proj.weight.detach().double().T)
    x, y = (torch.stack(own).mean(0).numpy() for own in (inputs, outputs))
    merged = found["model.layers.0.self_attn.v_proj.weight"].double().numpy()
    best = np.linalg.lstsq(x, y, rcond=None)[0]
    assert np.linalg.norm(x @ merged.T - y) <= np.linalg.norm(x @ best - y) + 1e-4


@pytest.mark.parametrize(
    ("more", "says"),
    [
        (["--align", "activations"], "needs --align-rows"),
        (["--align", "weights", "--align-rows", "x.jsonl"], "reads no rows"),
        (["--align-rows", "x.jsonl"], "give that too"),
        (["--align", "activations", "--align-rows", "none.jsonl"], "none.jsonl"),
    ],
)
def test_rows_are_given_where_they_are_read(pair, tmp_path, more, says):
    experts = [f"{name}={pair / name}" for name in "ab"]
    with pytest.raises(UserError, match=says):
        run("--method", "linear", "--experts", *experts, *more, "--out", tmp_path / "out")
    assert not (tmp_path / "out").exists()
