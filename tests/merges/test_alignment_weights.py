"""Weight matching: planted moves are undone, and its parts are the best there are."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from checkpoints.reading import Checkpoint
from common.errors import UserError
from merges import cli
from merges.alignment import moves, solving
from merges.alignment.aligning import align_models
from merges.alignment.groups import group_of
from merges.alignment.moved import Moved
from merges.alignment.weights import match
from merges.engine.streaming import InMemory
from tests.merges import wide_decoder

PLACES = ("hidden", "heads", "groups", "residual", "signs")


def generator(seed):
    return torch.Generator().manual_seed(seed)


def numbers(seed, *shape):
    return torch.randn(shape, generator=generator(seed), dtype=torch.float64)


def tiny(kind, dtype=torch.float32, **changes):
    model = wide_decoder.make(kind, **changes)
    tensors = {name: own.to(dtype) for name, own in wide_decoder.weights(model).items()}
    return model, tensors, group_of(model.config.to_dict(), tensors, "it")


def matched(group, tensors, other, rotated=False):
    return match(group, InMemory(tensors, "a"), InMemory(other, "b"), rotated, "matching")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_twenty_of_twenty_planted_moves_are_undone_to_the_bit(dtype):
    _, tensors, group = tiny("mistral", dtype)
    for seed in range(20):
        element = moves.draw(group, generator(seed), PLACES)
        found = matched(group, tensors, moves.apply_all(group, element, tensors))
        back = moves.apply_all(group, found.element, moves.apply_all(group, element, tensors))
        assert all(torch.equal(back[name], own) for name, own in tensors.items()), seed
        assert found.after == pytest.approx(1, abs=1e-12)


@pytest.mark.parametrize("kind", ["gemma2", "gemma3_text", "gpt_neox", "llama", "qwen2", "qwen3"])
def test_planted_moves_are_found_through_noise(kind):
    model, tensors, group = tiny(kind, torch.float64)
    element = moves.draw(group, generator(1), PLACES)
    noisy = {n: own + 0.25 * own.std(correction=0) * numbers(9, *own.shape)
             for n, own in tensors.items()}  # fmt: skip
    found = matched(group, tensors, moves.apply_all(group, element, noisy))
    back = moves.apply_all(group, found.element, moves.apply_all(group, element, noisy))
    assert all(torch.equal(back[name], own) for name, own in noisy.items())
    # Whatever is found keeps the function.
    assert wide_decoder.change(model, noisy, back) < 1e-12


@pytest.mark.parametrize(("kind", "tied"), [("llama", False), ("llama", True), ("qwen3", False)])
def test_rotations_are_undone(kind, tied):
    model, tensors, group = tiny(kind, torch.float64, tie_word_embeddings=tied)
    slots, parts = group.slots(), (*PLACES, "values", "turns")
    if group.foldable:
        tensors = {n: moves.fold(slots[n], own, tensors.__getitem__) for n, own in tensors.items()}
    drawn = dict(moves.draw(group, generator(2), parts))
    # Of the continuous part, matching looks for orthogonal moves alone.
    for space, move in drawn.items():
        if move.blocks is not None and move.blocks.shape[-1] > 1:
            left, _, right = torch.linalg.svd(move.blocks)
            drawn[space] = moves.Move(move.order, left @ right)
    if group.foldable:
        drawn["residual"] = moves.rotation(torch.linalg.qr(numbers(3, group.width, group.width))[0])
    other = moves.apply_all(group, drawn, tensors)
    assert wide_decoder.change(model, tensors, other) < 1e-10
    found = matched(group, tensors, other, rotated=True)
    back = moves.apply_all(group, found.element, other)
    assert found.after > 1 - 1e-9
    assert all(torch.allclose(back[n], own, rtol=0, atol=1e-6) for n, own in tensors.items())


def test_models_of_one_ancestor_stay_as_they_are():
    _, tensors, group = tiny("llama")
    near = {
        n: own + 0.05 * own.std() * numbers(4, *own.shape).float() for n, own in tensors.items()
    }
    found = matched(group, tensors, near)
    assert found.after == found.before > 0.99
    back = moves.apply_all(group, found.element, near)
    assert all(torch.equal(back[name], own) for name, own in near.items())


def test_strangers_come_nearer_and_rotations_bring_them_nearest():
    _, tensors, group = tiny("llama", torch.float64)
    other = {name: numbers(50 + i, *own.shape) for i, (name, own) in enumerate(tensors.items())}
    plain, turned = (matched(group, tensors, other, rotated) for rotated in (False, True))
    assert plain.before < plain.after < turned.after
    moved = moves.apply_all(group, turned.element, other)
    stream = turned.element["residual"].blocks[0]
    assert torch.allclose(stream @ stream.T, torch.eye(group.width, dtype=torch.float64))
    product = sum(
        float((tensors[n] * moved[n]).sum()) for n, own in tensors.items() if own.dim() > 1
    )
    size = [sum(float(t[n].square().sum()) for n, own in tensors.items() if own.dim() > 1)
            for t in (tensors, other)]  # fmt: skip
    assert turned.after == pytest.approx(product / (size[0] * size[1]) ** 0.5, abs=1e-9)


def best_heads_by_force(group, grams):
    """Try every assignment of groups and heads, with the best signed permutations for each."""
    count, ratio, head = group.groups, group.heads // group.groups, group.head
    shared, each = (count, head), (count, ratio, head)
    own = {s: grams[s].numpy().reshape(*shared, *shared) for s in ("keys", "values")}
    own |= {s: grams[s].numpy().reshape(*each, *each) for s in ("queries", "outputs")}

    def of_values(gram):
        places = itertools.permutations(range(head))
        return max(sum(abs(gram[i, j]) for i, j in enumerate(place)) for place in places)

    def of_keys(gram):
        half = head // 2
        return sum(abs(gram[i, i] + gram[i + half, i + half]) for i in range(half))

    best = -np.inf
    for order in itertools.permutations(range(count)):
        total = 0.0
        for new, old in enumerate(order):
            scores = []
            for within in itertools.permutations(range(ratio)):
                keys, values = own["keys"][new, :, old], own["values"][new, :, old]
                for a, b in enumerate(within):
                    keys = keys + own["queries"][new, a, :, old, b]
                    values = values + own["outputs"][new, a, :, old, b]
                scores.append(of_keys(keys) + of_values(values))
            total += max(scores)
        best = max(best, total)
    return best


@pytest.mark.parametrize("seed", range(4))
def test_heads_against_every_assignment(seed):
    _, _, group = tiny("llama", torch.float64, head_dim=4)
    spaces = {"keys": group.groups, "values": group.groups}
    spaces |= {"queries": group.heads, "outputs": group.heads}
    grams, planted = {}, moves.draw(group, generator(seed), PLACES)
    for number, (space, units) in enumerate(spaces.items()):
        # A planted order with noise: on noise alone the ascent may end at a lower hill.
        own = numbers(10 * seed + number, units * group.head, 30)
        other = planted[f"{space}.0"].inverse().rows(own) + numbers(99 + number, *own.shape)
        grams[space] = own @ other.T
    found = solving.heads(group, 0, grams, rotated=False)
    eye = {s: torch.eye(n * group.head, dtype=torch.float64) for s, n in spaces.items()}
    score = sum(float((grams[s] * found[f"{s}.0"].rows(eye[s])).sum()) for s in spaces)
    assert score == pytest.approx(best_heads_by_force(group, grams), rel=1e-12)


def test_hidden_units_against_every_order_and_sign():
    _, _, group = tiny("llama", torch.float64, intermediate_size=4)
    gate, up = numbers(1, 4, 4), numbers(2, 4, 4)
    found = solving.hidden(group, 0, {"gate": gate, "up": up})
    order, signs = found["up.0"].order, found["up.0"].blocks[:, 0, 0]
    score = sum(gate[i, j] + signs[i] * up[i, j] for i, j in enumerate(order.tolist()))
    best = max(
        sum(gate[i, j] + abs(up[i, j]) for i, j in enumerate(place))
        for place in itertools.permutations(range(4))
    )
    assert float(score) == pytest.approx(float(best)) and set(signs.tolist()) <= {-1.0, 1.0}
    assert torch.equal(found["gate.0"].order, order) and found["gate.0"].blocks is None


def test_turns_against_a_search_over_angles():
    _, _, group = tiny("llama", torch.float64, num_key_value_heads=4, head_dim=2)
    gram = numbers(3, 2, 2)
    heads = solving._Heads(group, {s: torch.zeros(8, 8).double() for s in
                                   ("keys", "values", "queries", "outputs")}, True)  # fmt: skip
    angles = np.linspace(0, 2 * np.pi, 100_001)
    cosine, sine = np.cos(angles), np.sin(angles)
    own = gram.numpy()
    scores = cosine * (own[0, 0] + own[1, 1]) + sine * (own[1, 0] - own[0, 1])
    found = heads._turns(gram)
    assert float((gram * found).sum()) == pytest.approx(scores.max(), rel=1e-9)
    assert torch.allclose(found @ found.T, torch.eye(2, dtype=torch.float64))


def test_a_moved_model_is_read_in_pieces(make_model, tmp_path):
    model = Checkpoint(make_model(tmp_path / "a"))
    group = group_of(model.config, model.names(), model.path)
    moved = Moved(model, group, moves.draw(group, generator(5)), folded=True)
    for name in model.names():
        whole = moved.load(name).flatten()
        pieces = [moved.read(name, i, min(i + 7, len(whole))) for i in range(0, len(whole), 7)]
        assert torch.equal(torch.cat(pieces), whole)
    assert len({moved.fingerprint, model.fingerprint}) == 1


def test_too_many_units_are_refused(monkeypatch):
    monkeypatch.setattr(solving, "MOST_UNITS", 3)
    with pytest.raises(UserError, match="at most 3 units"):
        solving.assign(torch.zeros(4, 4))


def run(*words):
    assert cli.main([str(word) for word in words]) == 0


def test_a_soup_of_a_model_and_its_disguise_is_the_model(make_model, tmp_path, capsys):
    from transformers import AutoModelForCausalLM

    make_model(tmp_path / "a", "mistral")
    run("align", "--model", tmp_path / "a", "--disguise", 3, "--out", tmp_path / "b")
    models = ["--experts", f"a={tmp_path / 'a'}", f"b={tmp_path / 'b'}"]
    run("--method", "linear", *models, "--out", tmp_path / "plain")
    for method in ("weights", "rotations"):
        run("--method", "linear", *models, "--align", method, "--out", tmp_path / method)
    assert "cosine of their weights" in capsys.readouterr().err
    loaded = {
        name: AutoModelForCausalLM.from_pretrained(tmp_path / name, trust_remote_code=False)
        for name in ("a", "plain", "weights", "rotations")
    }
    ids = torch.arange(4, 20)[None]
    with torch.no_grad():
        own = {name: model(input_ids=ids).logits for name, model in loaded.items()}
    assert torch.equal(own["weights"], own["a"])
    assert torch.allclose(own["rotations"], own["a"], rtol=0, atol=1e-4)
    assert not torch.allclose(own["plain"], own["a"], rtol=0, atol=1e-1)
    written, first = (load_file(tmp_path / n / "model.safetensors") for n in ("weights", "a"))
    assert all(torch.equal(written[name], value) for name, value in first.items())
    recipe = json.loads((tmp_path / "weights/manifest.json").read_text())["parameters"]
    assert recipe["align"] == "weights"


def test_a_model_written_in_anothers_basis_is_its_twin(make_model, tmp_path, capsys):
    make_model(tmp_path / "a")
    run("align", "--model", tmp_path / "a", "--disguise", 3, "--out", tmp_path / "b")
    reference = ["--reference", tmp_path / "a", "--model", tmp_path / "b"]
    run("align", *reference, "--method", "weights", "--out", tmp_path / "c")
    assert "and is 1.000" in capsys.readouterr().out
    made, first = (load_file(tmp_path / n / "model.safetensors") for n in ("c", "a"))
    assert all(torch.equal(made[name], value) for name, value in first.items())
    assert (tmp_path / "c/tokenizer.json").is_file()
    run("align", *reference, "--out", tmp_path / "c")  # replaces an earlier one
    with pytest.raises(UserError, match="no merge"):
        run("--to-mergekit", tmp_path / "c", "--locate", "a=x", "--out", tmp_path / "d.yml")
    with pytest.raises(UserError, match="holds the input"):
        run("align", *reference, "--out", tmp_path)


def test_a_model_with_nan_is_refused_in_one_line(make_model, tmp_path):
    one = Checkpoint(make_model(tmp_path / "a"))
    tensors = load_file(make_model(tmp_path / "b", seed=1) / "model.safetensors")
    tensors["model.layers.1.mlp.up_proj.weight"][0, 0] = float("nan")
    save_file(tensors, tmp_path / "b/model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match=r"up_proj.*1 NaN"):
        align_models(one, {"b": Checkpoint(tmp_path / "b")}, "weights")


def test_what_align_prints(make_model, tmp_path, capsys):
    make_model(tmp_path / "a")
    run("align", "--group", tmp_path / "a")
    run("align", "--list")
    printed = capsys.readouterr().out
    assert "hidden units: permutations of 64" in printed and "weights: " in printed


def test_the_base_is_the_reference_and_an_expert_of_it_stays(make_model, tmp_path):
    base = Checkpoint(make_model(tmp_path / "base"))
    found = align_models(base, {"same": base}, "weights")
    assert found.experts["same"] is base and not found.notes


@pytest.mark.parametrize(
    ("more", "says"),
    [
        (["--align", "weight"], "weights"),
        (["--align", "weights", "--slices", "a=0:1,b=0:1"], "--slices"),
        (["--align", "weights", "--vocabulary", "union"], "--vocabulary"),
    ],
)
def test_what_does_not_fit_is_refused_before_anything_is_written(make_model, tmp_path, more, says):
    for name in "ab":
        make_model(tmp_path / name, seed=ord(name))
    experts = [f"{name}={tmp_path / name}" for name in "ab"]
    with pytest.raises(UserError, match=says):
        run("--method", "linear", "--experts", *experts, *more, "--out", tmp_path / "out")
    assert not Path(tmp_path / "out").exists()
