"""Layers are counted in their own stack, whatever is nested in what."""

from __future__ import annotations

import pytest
import torch

from common.errors import UserError
from merges.engine.layer_rules import LayerRules
from merges.engine.slices import arrange
from merges.engine.stacks import Layer, Stacks, layer_of
from merges.engine.streaming import InMemory
from merges.mergekit.recipes import RECIPES
from merges.mergekit.settings import Parameters, Slice

TEXT = "language_model.model.layers"
VISION = "vision_tower.vision_model.encoder.layers"
TOWERS = [
    "language_model.model.embed_tokens.weight",
    *(f"{TEXT}.{n}.mlp.up_proj.weight" for n in range(2)),
    *(f"{VISION}.{n}.mlp.fc1.weight" for n in range(3)),
    "multi_modal_projector.0.weight",
]


@pytest.mark.parametrize(
    ("tensor", "stack", "number"),
    [
        ("model.layers.12.mlp.up_proj.weight", "model.layers", 12),
        ("h.0.attn.c_attn.weight", "h", 0),
        ("transformer.h.11.ln_1.bias", "transformer.h", 11),
        ("model.layers.3.block_sparse_moe.experts.5.w1.weight", "model.layers", 3),
        ("layers.3.experts.5.layers.1.w", "layers", 3),
        ("encoder.block.2.layer.1.DenseReluDense.wi.weight", "encoder.block", 2),
        ("blocks.2.att.key.weight", "blocks", 2),
        ("model.visual.blocks.3.attn.qkv.weight", "model.visual.blocks", 3),
        ("mtp.layers.0.mlp.up_proj.weight", "mtp.layers", 0),
        ("experts.4.layers.2.w", "experts.4.layers", 2),
    ],
)
def test_the_outermost_list_of_layers_counts(tensor, stack, number):
    assert layer_of(tensor) == Layer(stack, number)


@pytest.mark.parametrize("tensor", ["visual.merger.mlp.0.weight", "model.norm.weight", "layers.w"])
def test_other_numbers_are_of_no_layer(tensor):
    assert layer_of(tensor) is None


def test_layers_that_predict_further_tokens_are_counted_apart():
    names = [f"model.layers.{n}.mlp.up_proj.weight" for n in range(4)]
    stacks = Stacks([*names, "model.layers.3.eh_proj.weight", "mtp.layers.0.w"])
    assert stacks.main == "model.layers"
    assert stacks.limits == {"model.layers": (0, 2), "model.layers+": (3, 3), "mtp.layers": (0, 0)}
    assert [stacks.place(layer_of(name)) for name in names] == [0, 0.5, 1, 1]


def test_a_gradient_goes_over_each_tower():
    rules = LayerRules("slerp", [{"gradient": {"t": [0, 1]}}])
    rules.check_used(TOWERS)
    assert [rules(name).get("t") for name in TOWERS] == [None, 0, 1, 0, 0.5, 1, None]


def parameters(slices, t):
    return Parameters("slerp", RECIPES["slerp"], {"a": "a", "b": "b"}, slices, {"t": t}, {})


def values(found, tensors):
    common, rules = found.resolve(tensors)
    if rules is None:
        return [common["t"]] * len(tensors)
    rules.check_used(tensors)
    return [{**common, **rules(name)}["t"] for name in tensors]


def test_mergekits_gradients_and_slices_go_over_the_text():
    whole = parameters([Slice(0, None, {}, {})], [0, 1])
    assert values(whole, TOWERS) == [0, 0, 1, 0, 0.5, 1, 0]
    assert values(parameters([Slice(0, 1, {}, {})], 0.5), TOWERS) == [0.5] * 7
    tower = InMemory({name: torch.zeros(1) for name in TOWERS}, "tower")
    assert arrange(None, {"a": tower}, [{"a": (0, 2)}])[2] is None  # all of the text's layers
    with pytest.raises(UserError, match=r"tower: has several stacks of layers .* one stack"):
        arrange(None, {"a": tower}, [{"a": (0, 1)}])
    two = parameters([Slice(0, 0, {}, {}), Slice(1, 1, {}, {})], 0.5)
    with pytest.raises(
        UserError, match=r"several stacks of layers .* do not say which they divide"
    ):
        two.resolve(TOWERS)
