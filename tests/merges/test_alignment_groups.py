"""The symmetry group of a decoder: what is in it keeps the function, what is not changes it."""

from __future__ import annotations

import functools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from common.errors import UserError
from merges.alignment import moves
from merges.alignment.groups import FAMILIES, group_of
from merges.alignment.moves import Move
from tests.merges import wide_decoder

KINDS = sorted(FAMILIES)
KEPT, CHANGED = 1e-10, 1e-2  # 1e-6 is asked for; float64 leaves a margin


@functools.cache
def a_model(kind, **changes):
    model = wide_decoder.make(kind, **changes)
    tensors = wide_decoder.weights(model)
    return model, tensors, group_of(model.config.to_dict(), tensors, "it")


def changed_by(kind, element, tensors=None, **changes):
    """The relative change of logits by an element, of the model or of other weights of it."""
    model, own, group = a_model(kind, **changes)
    own = own if tensors is None else tensors
    return wide_decoder.change(model, own, moves.apply_all(group, element, own))


def generator(seed):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=6, deadline=None, derandomize=True)
@given(seed=st.integers(0, 2**31), parts=st.sets(st.sampled_from(moves.PARTS), min_size=1))
def test_any_element_keeps_the_function(kind, seed, parts):
    group = a_model(kind)[2]
    element = moves.draw(group, generator(seed), parts)
    assert changed_by(kind, element) < KEPT


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("part", moves.PARTS)
def test_each_part_moves_weights_and_keeps_the_function(kind, part):
    _, tensors, group = a_model(kind)
    drawn = [moves.draw(group, generator(seed), (part,)) for seed in range(4)]
    moved = [moves.apply_all(group, element, tensors) for element in drawn]
    lacks = {
        "scales": not group.family.gated,
        "gains": not group.family.normalised,
        "signs": not group.signs,
        "heads": group.heads == group.groups,
    }
    changed = any(not torch.equal(one[name], own) for one in moved for name, own in tensors.items())
    assert changed != lacks.get(part, False)
    assert max(changed_by(kind, element) for element in drawn[:2]) < KEPT


@pytest.mark.parametrize(
    ("kind", "changes"),
    [
        ("llama", {"attention_bias": True, "mlp_bias": True}),
        ("llama", {"tie_word_embeddings": True}),
        ("qwen3", {"attention_bias": True}),
        ("gpt_neox", {"use_parallel_residual": False}),
        ("llama", {"num_key_value_heads": 1}),
        ("llama", {"num_key_value_heads": 4}),
    ],
)
def test_variants_of_a_family_keep_the_function(kind, changes):
    _, _, group = a_model(kind, **changes)
    assert changed_by(kind, moves.draw(group, generator(5)), **changes) < KEPT


def test_the_whole_group_is_undone_and_composed():
    _, tensors, group = a_model("qwen2")
    one, two = (moves.draw(group, generator(seed)) for seed in (1, 2))
    there = moves.apply_all(group, one, tensors)
    back = moves.apply_all(group, moves.inverse(one), there)
    both = moves.apply_all(group, two, there)
    composed = moves.apply_all(group, {s: two[s].after(one[s]) for s in one}, tensors)
    for name, own in tensors.items():
        assert torch.allclose(back[name], own, rtol=0, atol=1e-12)
        assert torch.allclose(both[name], composed[name], rtol=0, atol=1e-11)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", ["llama", "gemma2", "gpt_neox"])
def test_permutations_and_signs_are_undone_to_the_bit(kind, dtype):
    _, tensors, group = a_model(kind)
    tensors = {name: own.to(dtype) for name, own in tensors.items()}
    parts = ("hidden", "heads", "groups", "residual", "signs")
    element = moves.draw(group, generator(4), parts)
    back = moves.apply_all(group, moves.inverse(element), moves.apply_all(group, element, tensors))
    assert all(torch.equal(back[name], own) for name, own in tensors.items())


def folded(kind, **changes):
    model, tensors, group = a_model(kind, **changes)
    slots = group.slots()
    found = {n: moves.fold(slots[n], own, tensors.__getitem__) for n, own in tensors.items()}
    return model, group, found


def a_rotation(group, seed=6):
    drawn = torch.randn(group.width, group.width, generator=generator(seed), dtype=torch.float64)
    return {"residual": moves.rotation(torch.linalg.qr(drawn)[0])}


@pytest.mark.parametrize("kind", ["llama", "mistral", "qwen2", "qwen3"])
def test_rotations_of_the_stream_need_folded_gains(kind):
    model, group, found = folded(kind)
    assert group.foldable
    assert wide_decoder.change(model, a_model(kind)[1], found) < KEPT
    assert changed_by(kind, a_rotation(group), found) < KEPT
    assert changed_by(kind, a_rotation(group)) > CHANGED


@pytest.mark.parametrize("kind", ["gemma", "gemma2", "gemma3_text", "gpt_neox"])
def test_rotations_of_the_stream_are_not_in_other_groups(kind):
    _, _, group = a_model(kind)
    assert not group.foldable and changed_by(kind, a_rotation(group)) > CHANGED


def test_a_tied_head_leaves_no_place_for_the_last_gain():
    changes = {"tie_word_embeddings": True}
    model, group, found = folded("llama", **changes)
    assert not group.foldable
    assert wide_decoder.change(model, a_model("llama", **changes)[1], found) > CHANGED
    assert changed_by("llama", a_rotation(group), **changes) > CHANGED


def blocks(group, space, seed=7):
    units, size = group.units(space)
    drawn = torch.randn(units, size, size, generator=generator(seed), dtype=torch.float64)
    return torch.linalg.qr(drawn)[0]


def controls(group):
    """Yield elements that look like those of the group and are not: name, element."""
    head, ratio = group.head, group.heads // group.groups
    units = moves.identity(group.hidden)
    factors = torch.linspace(0.5, 2, group.hidden, dtype=torch.float64)[:, None, None]
    yield (
        "factors of the gate or of an MLP without one",
        {
            "gate.0" if group.family.gated else "up.0": Move(units, factors),
        },
    )
    heads = moves.identity(group.heads)
    if ratio > 1:
        yield (
            "another M for each query head",
            {
                "values.0": Move(moves.identity(group.groups), blocks(group, "values.0")),
                "outputs.0": Move(heads, blocks(group, "outputs.0")),
            },
        )
        crossed = heads.roll(1)
        yield (
            "a query head in another group",
            {
                "queries.0": Move(crossed),
                "outputs.0": Move(crossed),
            },
        )
        yield (
            "groups without their query heads",
            {"keys.0": Move(moves.identity(group.groups).flip(0))},
        )

    def on_keys(matrix):
        whole = torch.eye(head, dtype=torch.float64)
        whole[: len(matrix), : len(matrix)] = matrix
        keys = whole.repeat(group.groups, 1, 1)
        own = moves.identity(group.groups)
        within = moves.identity(ratio).repeat(group.groups, 1)
        return moves.attention(group, 0, own, within, keys=keys)

    rotary, half = group.rotary, group.rotary // 2
    yield "any rotation of rotated keys", on_keys(blocks(group, "keys.0")[0, :rotary, :rotary])
    flip = torch.eye(rotary, dtype=torch.float64)
    flip[half:] *= -1
    yield "a reflection within each pair", on_keys(flip)
    swapped = torch.eye(rotary, dtype=torch.float64).roll(half, 0)
    yield "the two of each pair exchanged", on_keys(swapped)
    pairs = torch.arange(rotary).view(2, half).flip(1).flatten()
    yield "pairs in another order", on_keys(torch.eye(rotary, dtype=torch.float64)[pairs])
    z = torch.polar(torch.ones(half).double(), torch.linspace(1, 2, half).double())
    neighbours = torch.arange(rotary).view(half, 2).T.flatten().argsort()
    turned = moves.turning(z)[neighbours][:, neighbours]
    yield "neighbours as pairs", on_keys(turned)
    if group.family.normalised:
        yield "turns of normalised keys", on_keys(moves.turning(z))
        size = torch.linspace(0.3, 3, head, dtype=torch.float64).diag()[None]
        own = {"key_gain.0": Move(moves.identity(1), size)}
        own["query_gain.0"] = Move(moves.identity(1), torch.linalg.inv(size))
        yield "other factors within a pair of gains", own
    stream = moves.identity(group.width)
    if not group.signs:
        signs = (stream % 2 * 2.0 - 1).double()[:, None, None]
        yield "signs through a LayerNorm", {"residual": Move(stream, signs)}
    scale = torch.linspace(0.5, 2, group.width, dtype=torch.float64)[:, None, None]
    yield "factors of the stream", {"residual": Move(stream, scale)}


@pytest.mark.parametrize("kind", KINDS)
def test_negative_controls_change_the_function(kind):
    _, _, group = a_model(kind)
    found = {name: changed_by(kind, element) for name, element in controls(group)}
    assert len(found) >= 7
    assert not {name: value for name, value in found.items() if value < CHANGED}


def test_a_stream_of_one_layer_alone_is_not_in_the_group():
    model, tensors, group = a_model("llama")
    order = {"residual": Move(moves.identity(group.width).flip(0))}
    moved = moves.apply_all(group, order, tensors)
    one = {name: moved[name] if ".0." in name else own for name, own in tensors.items()}
    assert wide_decoder.change(model, tensors, one) > CHANGED
    assert wide_decoder.change(model, tensors, moved) < KEPT


def test_a_move_against_matrices_written_out():
    order = torch.tensor([2, 0, 1])
    drawn = torch.randn(3, 2, 2, generator=generator(8), dtype=torch.float64)
    move = Move(order, drawn)
    matrix = torch.zeros(6, 6, dtype=torch.float64)
    for new, old in enumerate(order.tolist()):
        matrix[2 * new : 2 * new + 2, 2 * old : 2 * old + 2] = drawn[new]
    values = torch.randn(6, 5, generator=generator(9), dtype=torch.float64)
    assert torch.allclose(move.rows(values), matrix @ values)
    assert torch.allclose(move.rows(values[:, 0]), matrix @ values[:, 0])
    assert torch.allclose(move.columns(values.T), values.T @ torch.linalg.inv(matrix))


@pytest.mark.parametrize(
    ("config", "names", "says"),
    [
        ({"model_type": "mamba"}, [], "not 'mamba'"),
        (
            {"model_type": "llama", "num_hidden_layers": 1},
            ["model.layers.1.mlp.up_proj.weight"],
            "layers.1.mlp.up_proj",
        ),
    ],
)
def test_what_is_not_known_is_refused(config, names, says):
    with pytest.raises(UserError, match=says):
        group_of(config, names, "it")
