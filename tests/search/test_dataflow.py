"""Data-flow space: what genomes decode to, counted by hand and against numpy; what is refused."""

import numpy as np
import pytest
import torch

from checkpoints.reading import Checkpoint
from common.errors import UserError
from search.dataflow import SCALES, DataFlowSpace


@pytest.fixture(scope="module")
def models(make_model, tmp_path_factory):
    """A base and experts of two and three layers: a row of five."""
    folder = tmp_path_factory.mktemp("dataflow")
    for seed, (name, layers) in enumerate({"base": 2, "a": 2, "b": 3}.items()):
        make_model(folder / name, "llama", seed, num_hidden_layers=layers)
    return {name: Checkpoint(folder / name) for name in ("base", "a", "b")}


@pytest.fixture(scope="module")
def space(models):
    def make(**settings):
        return DataFlowSpace(models["base"], {n: models[n] for n in "ab"}, **settings)

    return make


def genome(space, **changes):
    """The start's values, changed by the genes' names (with _ for a space)."""
    values = {gene.name: gene.start for gene in space.genes}
    for name, value in changes.items():
        gene = name.replace("_", " ")
        assert gene in values
        values[gene] = value
    return list(values.values())


@pytest.mark.parametrize("scales", SCALES)
def test_the_search_starts_from_an_expert_as_it_is(space, models, scales):
    for settings, first in (({}, "a"), ({"embedding_from": "b"}, "b")):
        made = space(scales=scales, **settings)
        recipe = made.decode([gene.start for gene in made.genes])
        layers = {"a": 2, "b": 3}[first]
        assert recipe == {
            "path": [{"expert": first, "layer": n, "scale": 1.0} for n in range(layers)],
            "embedding_from": first,
        }
        tensors, changes = made.tensors(recipe)
        assert changes == made.config(recipe) == {"num_hidden_layers": layers}
        assert sorted(tensors) == models[first].names()
        assert all(torch.equal(tensors[name], models[first].load(name)) for name in tensors)
    from_base = space(scales=scales, embedding_from="base")
    recipe = from_base.decode([gene.start for gene in from_base.genes])
    assert [step["expert"] for step in recipe["path"]] == ["a", "a"]
    head = from_base.tensors(recipe)[0]["lm_head.weight"]
    assert torch.equal(head, models["base"].load("lm_head.weight"))


def test_genes_by_hand(space):
    # Five layers, in two passes ten slots; 25 pairs; four units of five weights and a bias.
    counts = {"none": 10, "matrix": 10 + 25, "network": 10 + 4 * 5 + 1}
    for scales, count in counts.items():
        made = space(scales=scales)
        names = [gene.name for gene in made.genes]
        assert len(names) == len(set(names)) == count
        for gene in made.genes:
            low, high = gene.bounds
            assert low < gene.start < high
    assert len(space(scales="network", repeats=5).genes) == 25 + 21


def test_a_genome_decodes_into_slots_in_order_with_the_pairs_factors(space):
    made = space(scales="matrix")
    values = genome(
        made,
        include_a_layer_0_pass_0=-0.1,
        include_b_layer_2_pass_0=0.2,
        include_a_layer_0_pass_1=0.7,
        scale_a_1_to_b_2=1.0,
        scale_b_2_to_a_0=-0.5,
        scale_b_2_to_a_1=0.9,  # not on the path
    )
    assert made.decode(values)["path"] == [
        {"expert": "a", "layer": 1, "scale": 1.0},
        {"expert": "b", "layer": 2, "scale": 2.0},
        {"expert": "a", "layer": 0, "scale": pytest.approx(2**-0.5)},
    ]


def test_the_network_s_factors_are_those_of_numpy(space):
    made = space(scales="network", repeats=2)
    draw = np.random.default_rng(0)
    weights = draw.uniform(-2, 2, 21)
    slots = [1, 4, 5, 8]  # a 1, b 2; in the second pass a 0, b 1
    included = np.full(10, -1.0)
    included[slots] = 1.0
    path = made.decode([*included, *weights])["path"]
    assert [(step["expert"], step["layer"]) for step in path] == [
        ("a", 1),
        ("b", 2),
        ("a", 0),
        ("b", 1),
    ]
    units = weights[:20].reshape(4, 5)
    assert path[0]["scale"] == 1.0
    for before, slot, step in zip(slots, slots[1:], path[1:], strict=False):
        x = np.array([before % 5 + 0.5, slot % 5 + 0.5, (slot + 0.5) / 2]) / 5 * 2 - 1
        out = units[:, 4] @ np.tanh(units[:, :3] @ x + units[:, 3]) + weights[20]
        assert step["scale"] == pytest.approx(2 ** np.tanh(out), rel=1e-12)


@pytest.mark.parametrize("scales", ["network", "matrix"])
def test_every_scale_within_the_bounds_is_positive_and_bounded(space, scales):
    made = space(scales=scales)
    low, high = np.array([gene.bounds for gene in made.genes]).T
    draw = np.random.default_rng(1)
    for _ in range(50):
        values = np.where(draw.random(len(low)) < 0.5, low, high)
        values[:10] = draw.permutation([1.0] * 5 + [-1.0] * 5)
        for step in made.decode(values)["path"]:
            assert 0.5 <= step["scale"] <= 2.0


def test_an_empty_and_a_deep_path_stand_for_no_model(space):
    made = space(max_depth=3)
    slots = range(10)
    with pytest.raises(UserError, match="no layer is included"):
        made.decode([-1.0 if n in slots else 0.0 for n, _ in enumerate(made.genes)])
    values = [1.0 if n < 4 else -1.0 for n, _ in enumerate(made.genes)]
    with pytest.raises(UserError, match="4 layers, more than 3"):
        made.decode(values)
    assert len(space().decode(values)["path"]) == 4  # M = 5 is the default


def test_only_what_changed_is_read_and_gives_the_same_model(space, monkeypatch):
    made = space(scales="matrix")
    one = made.decode(genome(made))
    other = made.decode(genome(made, include_b_layer_0_pass_0=1.0, scale_a_1_to_b_0=0.3))
    third = made.decode(genome(made, include_b_layer_0_pass_0=1.0, scale_a_1_to_b_0=0.4))
    settings = [made.settings(recipe) for recipe in (one, other, third)]
    unlike = {
        name.split(".layers.")[1].removesuffix(".weight")
        for name in settings[1]
        if settings[1][name] != settings[2][name]
    }
    assert unlike == {"2.self_attn.o_proj", "2.mlp.down_proj"}
    parameters = {n: values.clone() for n, values in made.tensors(other)[0].items()}
    read = []
    load = Checkpoint.load
    monkeypatch.setattr(Checkpoint, "load", lambda model, n: read.append(n) or load(model, n))
    names = [name for name in settings[2] if settings[1][name] != settings[2][name]]
    made.overwrite(third, parameters, names)
    assert len(read) == 2
    expected, _ = made.tensors(third)
    assert all(torch.equal(parameters[name], expected[name]) for name in expected)


def test_the_card_s_note_holds_the_path(space):
    made = space(scales="none")
    (note,) = made.notes(made.decode(genome(made, include_b_layer_1_pass_0=1.0)))
    assert "those of `a`" in note
    assert note.splitlines()[-1] == "| 2 | b | 1 | 1.0000 | 1.0000 |"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"embedding_from": "c"}, "--embedding-from: no model 'c'"),
        ({"scales": "matrx"}, "did you mean 'matrix'"),
        ({"repeats": 0}, "--repeats is 0"),
        ({"max_depth": 1}, "starts from the 2 layers of a"),
    ],
)
def test_bad_settings_are_refused(space, settings, message):
    with pytest.raises(UserError, match=message):
        space(**settings)


def test_an_expert_called_base_is_refused(models):
    with pytest.raises(UserError, match="no expert can be called 'base'"):
        DataFlowSpace(models["base"], {"base": models["a"]})
