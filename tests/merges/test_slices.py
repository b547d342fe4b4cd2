"""Slices: stacked models against layers run by hand, merged ranges against their formula."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from checkpoints.cli import main as checkpoints
from common.errors import UserError
from merges.cli import main
from merges.engine.slices import columns_of
from tests.conftest import tiny_model, tiny_tokenizer
from tests.evaluation import walk
from tests.merges.mergekit_runs import PROGRAM, RUNNER, needs_mergekit

IDS = torch.randint(4, 48, (2, 9), generator=torch.Generator().manual_seed(3))
DEPTHS = {"a": 4, "b": 6, "c": 4}
SIZES = {"vocab_size": 48, "hidden_size": 32, "intermediate_size": 24, "num_attention_heads": 4}
# Of the sliding model p every second layer slides, of q the first two.
SLIDING = {"p": "FSFS", "q": "SSFF"}
KINDS = {"F": "full_attention", "S": "sliding_attention"}
WINDOW = 3


@pytest.fixture(scope="module")
def top(tmp_path_factory):
    """Llamas a and c of four layers and b of six, and two Qwen2 with sliding layers."""
    from transformers import Qwen2Config, Qwen2ForCausalLM

    folder = tmp_path_factory.mktemp("models")
    for seed, (name, depth) in enumerate(DEPTHS.items()):
        tiny_model(folder / name, seed=seed, num_hidden_layers=depth)
    for seed, (name, kinds) in enumerate(SLIDING.items()):
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            config = Qwen2Config(
                **SIZES,
                num_key_value_heads=2,
                num_hidden_layers=4,
                use_sliding_window=True,
                sliding_window=WINDOW,
                layer_types=[KINDS[kind] for kind in kinds],
                initializer_range=0.3,
            )
            Qwen2ForCausalLM(config).save_pretrained(folder / name)
        tiny_tokenizer(folder / name, 48)
    return folder


def tensors(folder):
    return load_file(folder / "model.safetensors")


def settings(folder):
    return json.loads((folder / "config.json").read_text())


def smoke(folder):
    return checkpoints(["smoke", "--model", str(folder), "--out", str(folder / "../smoke.json")])


def merge(top, out, method, slices, *options, experts=(), base=None):
    names = experts or sorted({name for part in slices for name in re.findall(r"(\w+)=", part)})
    experts = [f"{name}={top / name}" for name in names if name != "base"]
    root = ["--base", str(top / base)] if base else []
    given = [*root, "--experts", *experts, "--slices", *slices, *options, "--out", str(out)]
    main(["--method", method, *given])
    return {n: t for path in out.glob("*.safetensors") for n, t in load_file(path).items()}


def load(folder):
    from transformers import AutoModelForCausalLM

    model, loading = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float64, attn_implementation="eager", output_loading_info=True
    )
    assert not loading["missing_keys"] and not loading["unexpected_keys"]
    return model.eval()


def by_hand(top, path):
    """Run the layers one after another; return what each reads, and the logits."""
    models = {name: load(top / name) for name, _ in path}
    first, last = models[path[0][0]], models[path[-1][0]]
    length = IDS.shape[1]
    behind = torch.arange(length)[:, None] - torch.arange(length)[None, :]
    states = [first.model.embed_tokens(IDS)]
    turns = first.model.rotary_emb(states[0], torch.arange(length)[None])
    for name, number in path:
        slides = SLIDING.get(name, "F" * 9)[number] == "S"
        seen = (behind >= 0) & (behind < (WINDOW if slides else length))
        mask = torch.zeros(seen.shape, dtype=torch.float64).masked_fill(~seen, -torch.inf)
        layer = models[name].model.layers[number]
        state = layer(states[-1], attention_mask=mask[None, None], position_embeddings=turns)
        states.append(state)
    return states, last.lm_head(last.model.norm(states[-1]))


@pytest.mark.parametrize(
    ("slices", "path"),
    [
        (["a=0:3", "b=2:6"], "a0 a1 a2 b2 b3 b4 b5"),
        (["b=1:2", "a=0:4", "b=1:2"], "b1 a0 a1 a2 a3 b1"),
        (["a=0:3", "a=1:4"], "a0 a1 a2 a1 a2 a3"),
        (["p=0:2", "q=1:4", "p=3:4"], "p0 p1 q1 q2 q3 p3"),
    ],
)
def test_a_stack_computes_what_its_layers_compute(slices, path, top, tmp_path):
    merge(top, tmp_path / "out", "passthrough", slices)
    steps = [(step[0], int(step[1])) for step in path.split()]
    config = settings(tmp_path / "out")
    assert config["num_hidden_layers"] == len(steps)
    kinds = [KINDS[SLIDING[name][layer]] for name, layer in steps if name in SLIDING]
    assert config.get("layer_types", []) == kinds
    with torch.no_grad():
        states, logits = by_hand(top, steps)
        found = load(tmp_path / "out")(input_ids=IDS, output_hidden_states=True)
    for own, expected in zip(found.hidden_states, states[:-1], strict=False):
        assert torch.allclose(own, expected, rtol=1e-12, atol=1e-12)
    assert torch.allclose(found.logits, logits, rtol=1e-12, atol=1e-12)
    assert smoke(tmp_path / "out") == 0


def test_scales_by_rule_and_every_bit_without(top, tmp_path):
    rules = [{"match": r"layers\.[23]\..*down_proj", "set": {"scale": 0}}]
    (tmp_path / "rules.json").write_text(json.dumps(rules))
    options = ["--set-layers", str(tmp_path / "rules.json")]
    found = merge(top, tmp_path / "out", "passthrough", ["a=0:3", "c=2:4"], *options)
    a, c = tensors(top / "a"), tensors(top / "c")
    assert torch.equal(found["model.embed_tokens.weight"], a["model.embed_tokens.weight"])
    for name in ("model.norm.weight", "lm_head.weight"):
        assert torch.equal(found[name], c[name])
    for number, (model, layer) in enumerate([(a, 0), (a, 1), (a, 2), (c, 2), (c, 3)]):
        for name in (n for n in a if n.startswith(f"model.layers.{layer}.")):
            own = found[name.replace(f"layers.{layer}", f"layers.{number}")]
            zero = number in (2, 3) and "down_proj" in name
            assert torch.equal(own, model[name] * (0 if zero else 1))


def test_ranges_of_other_places_are_merged_by_the_formula(top, tmp_path):
    slices = ["base=0:2,a=1:3,b=4:6", "base=2:4,a=0:2,b=0:2"]
    weights = ["--set", 'weights={"a": 0.4, "b": -0.7}', "scale=0.5"]
    options = [*weights, "--threads", "2", "--shard-size", "20KB"]
    found = merge(top, tmp_path / "one", "task_arithmetic", slices, *weights, base="c")
    sharded = merge(top, tmp_path / "two", "task_arithmetic", slices, *options, base="c")
    a, b, c = (tensors(top / name) for name in "abc")
    rows = [(0, 1, 4), (1, 2, 5), (2, 0, 0), (3, 1, 1)]
    for name, own in found.items():
        said = re.match(r"model\.layers\.(\d)\.(.*)", name)
        names = [name] * 3
        if said:
            names = [f"model.layers.{layer}.{said[2]}" for layer in rows[int(said[1])]]
        base, one, two = (m[n].double() for m, n in zip((c, a, b), names, strict=True))
        expected = base + 0.5 * (0.4 * (one - base) - 0.7 * (two - base))
        assert torch.allclose(own.double(), expected, rtol=0, atol=3e-7)
        assert torch.equal(own, sharded[name])


def test_columns_by_name_or_by_place():
    same = [{"base": (0, 2), "a": (0, 2), "b": (1, 3)}, {"b": (0, 1), "a": (2, 3), "base": (2, 3)}]
    assert columns_of(same) == {"a": ["a", "a"], "b": ["b", "b"]}
    other = [{"a": (0, 2), "b": (1, 3)}, {"c": (0, 1), "b": (2, 3)}]
    assert columns_of(other) == {"a/c": ["a", "c"], "b": ["b", "b"]}
    assert columns_of([{"a": (0, 2)}, {"b": (0, 2)}, {"a": (0, 1)}]) == {"a/b": ["a", "b", "a"]}


def test_manifest_and_card_say_where_layers_come_from(top, tmp_path):
    merge(top, tmp_path / "out", "passthrough", ["b=2:6", "a=0:3"], base="c")
    about = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert about["parameters"]["slices"] == [
        [{"model": "b", "layer_range": [2, 6]}],
        [{"model": "a", "layer_range": [0, 3]}],
    ]
    assert set(about["inputs"]) == {"base", "experts.a", "experts.b"}
    card = (tmp_path / "out" / "README.md").read_text()
    assert "The embedding comes from `b`, the final norm and the output head from `a`." in card
    assert "| 0 to 3 | `b` 2 to 5 |\n| 4 to 6 | `a` 0 to 2 |" in card


@pytest.mark.parametrize(
    ("method", "slices", "message"),
    [
        ("passthrough", ["a=0:5"], r"slice 1: a .* has the layers 0:4, and 0:5 is asked for"),
        ("passthrough", ["a=0:1", "a=2:2"], r"slice 2: a .* and 2:2 is asked for"),
        ("passthrough", ["a"], "--slices a: give NAME=FIRST:END"),
        ("passthrough", ["a=1:2"], "no slice takes layers of b; leave the model out"),
        ("passthrough", ["a=1:2", "aa=0:1"], "slice 2: no model 'aa'"),
        ("passthrough", ["a=0:1,a=1:2"], "a is there twice"),
        ("passthrough", ["a=0:2,b=0:2", "a=0:1,b=0:1"], "exactly 1 expert; 2 are given in a"),
        ("linear", ["a=0:2,b=0:3"], r"slice 1: ranges of unlike lengths \(a 0:2, b 0:3\)"),
        ("linear", ["a=0:2", "a=0:1,b=2:3"], "slice 2 merges 2 models .*, the first one 1"),
        ("ties", ["a=0:2,b=0:2"], "ties needs layers of the base in each slice; give base="),
        ("ties", ["base=0:2,a=0:2", "a=0:2"], "the base is in some slices only"),
        ("ties", ["base=0:2"], "slice 1 has no expert"),
        ("regmean", ["a=0:2,b=0:2"], "regmean needs statistics|takes no slices"),
        ("passthrough", ["a=0:2", "wide=0:1"], "hidden_size is 16, the base's is 32"),
        ("passthrough", ["a=0:2", "words=0:1"], "has another tokenizer than"),
        ("passthrough", ["a=0:2", "p=0:1"], "of another architecture|unlike kinds|does not fit"),
        ("linear", ["p=0:2,q=0:2"], "slice 1: layers of unlike kinds .layer_types"),
    ],
)
def test_bad_input_is_one_line(method, slices, message, top, tmp_path):
    if not (top / "wide").exists():
        sizes = {"hidden_size": 16, "num_attention_heads": 2, "num_key_value_heads": 1}
        tiny_model(top / "wide", **sizes)
        tiny_model(top / "words", vocabulary=40)
    experts = ["a", "b"] if method == "ties" or slices[0] in ("a", "a=1:2") else ()
    with pytest.raises(UserError, match=message) as error:
        merge(top, tmp_path / "out", method, slices, experts=experts, base="c")
    assert "\n" not in str(error.value)
    assert not (tmp_path / "out").exists()


def test_a_value_that_is_not_finite_is_reported_with_its_model(top, tmp_path):
    shutil.copytree(top / "b", tmp_path / "b")
    shutil.copytree(top / "a", tmp_path / "a")
    broken = tensors(tmp_path / "b")
    broken["model.layers.2.mlp.up_proj.weight"][1, 1] = torch.nan
    save_file(broken, tmp_path / "b" / "model.safetensors", {"format": "pt"})
    with pytest.raises(UserError, match=rf"{tmp_path / 'b'}: tensor model.layers.1.mlp.up_proj"):
        merge(tmp_path, tmp_path / "out", "passthrough", ["a=0:1", "b=2:3"])
    assert not (tmp_path / "out").exists()


def _source(model, first, end, **own):
    found = {"model": model, "layer_range": [first, end]}
    return found | ({"parameters": own} if own else {})


def _kit(method, *slices, **top):
    parts = [{"sources": [part] if isinstance(part, dict) else part} for part in slices]
    return {"merge_method": method, "slices": parts, **top}


_HALF = [{"filter": "layers.2.self_attn.o", "value": 0.5}, {"filter": "down_proj", "value": [0, 1]}]
KIT = {
    "stack": _kit("passthrough", _source("a", 0, 3), _source("b", 2, 6)),
    "donor": _kit("passthrough", _source("b", 0, 3), _source("a", 2, 4), base_model="c"),
    "scale": _kit(
        "passthrough",
        _source("a", 0, 3, scale=[*_HALF, {"value": 2.0}]),
        _source("b", 2, 6),
        _source("a", 1, 4, scale=[*_HALF, {"filter": "layers.1.", "value": 1.5}]),
        parameters={"scale": [{"filter": "q_proj", "value": 3.0}]},
    ),
    "complete": {
        "merge_method": "passthrough",
        "models": [{"model": "a", "parameters": {"scale": [{"filter": "norm", "value": 2}]}}],
    },
    "linear": _kit(
        "linear",
        [_source("a", 0, 2, weight=0.3), _source("b", 1, 3, weight=0.5)],
        [_source("c", 1, 4, weight=[1, 3]), _source("b", 3, 6, weight=2)],
    ),
    "slerp": _kit(
        "slerp",
        [_source("a", 0, 2), _source("b", 1, 3)],
        [_source("b", 3, 6), _source("a", 1, 4)],
        base_model="a",
        parameters={"t": [0.2, 0.6]},
    ),
    "ties": _kit(
        "ties",
        [_source("c", 0, 2), _source("a", 1, 3, density=0.4)],
        [_source("b", 0, 2), _source("c", 2, 4)],
        base_model="c",
        parameters={"weight": 0.5, "density": 0.7},
    ),
}


def ours(top, out, content):
    path = out.with_suffix(".yml")
    path.write_text(json.dumps(content))
    located = ["--locate", *(f"{name}={top / name}" for name in (*DEPTHS, *SLIDING))]
    main(["--from-mergekit", str(path), *located, "--out", str(out)])
    return tensors(out)


def _located(top, folder, name):
    """The models of a recipe; the base of slerp is its first model, of the others c."""
    keys = json.loads((folder / "manifest.json").read_text())["inputs"]
    names = [key.removeprefix("experts.") for key in keys]
    base = top / ("a" if name == "slerp" else "c")
    return [f"{own}={base if own == 'base' else top / own}" for own in names]


@needs_mergekit
def test_mergekit_makes_the_same_weights(top, tmp_path):
    """And from the recipe that is written back; but for its settings, the configuration too."""
    jobs = []
    for name, content in KIT.items():
        ours(top, tmp_path / name, content)
        text = re.sub(r'model": "(\w)"', rf'model": "{top}/\1"', json.dumps(content))
        (tmp_path / f"{name}-kit.yml").write_text(text)
        back, located = str(tmp_path / f"{name}-back.yml"), _located(top, tmp_path / name, name)
        main(["--to-mergekit", str(tmp_path / name), "--locate", *located, "--out", back])
        for kind in ("kit", "back"):
            jobs.append([str(tmp_path / f"{name}-{kind}.yml"), str(tmp_path / f"{name}-{kind}")])
    (tmp_path / "jobs.json").write_text(json.dumps(jobs))
    python = Path(PROGRAM or "").parent / "python"
    subprocess.run([python, "-c", RUNNER, tmp_path / "jobs.json"], check=True, cwd=tmp_path)
    for name in KIT:
        own = tensors(tmp_path / name)
        for kind in ("kit", "back"):
            found = tensors(tmp_path / f"{name}-{kind}")
            assert found.keys() == own.keys()
            for tensor, values in found.items():
                assert torch.allclose(values, own[tensor], rtol=1e-6, atol=2e-7), (name, tensor)
            depth = settings(tmp_path / f"{name}-{kind}")["num_hidden_layers"]
            assert settings(tmp_path / name)["num_hidden_layers"] == depth


def test_scales_of_a_configuration(top, tmp_path):
    """Filters and gradients as mergekit reads them: the embedding is scaled as well."""
    found = ours(top, tmp_path / "out", KIT["scale"])
    a, b = tensors(top / "a"), tensors(top / "b")
    down, query = "model.layers.{}.mlp.down_proj.weight", "model.layers.{}.self_attn.q_proj.weight"
    embedding = "model.embed_tokens.weight"
    assert torch.equal(found[embedding], 2 * a[embedding])
    for layer, factor in enumerate((0, 0.5, 1)):
        assert torch.equal(found[down.format(layer)], factor * a[down.format(layer)])
        assert torch.equal(found[query.format(layer)], 2 * a[query.format(layer)])
    assert torch.equal(found[down.format(3)], b[down.format(2)])
    assert torch.allclose(found[query.format(3)], 3 * b[query.format(2)], rtol=2e-7)
    # Filters are compared with the names that the layers have in their model.
    output = "model.layers.{}.self_attn.o_proj.weight"
    for layer, own, factor in ((1, 1, 2), (2, 2, 0.5), (7, 1, 1.5), (8, 2, 0.5), (9, 3, 1)):
        assert torch.equal(found[output.format(layer)], factor * a[output.format(own)])
    assert torch.equal(found["lm_head.weight"], a["lm_head.weight"])


@pytest.mark.parametrize("name", KIT)
def test_a_recipe_written_for_mergekit_makes_the_same_bytes(name, top, tmp_path):
    ours(top, tmp_path / "out", KIT[name])
    back = str(tmp_path / "back.yml")
    located = _located(top, tmp_path / "out", name)
    main(["--to-mergekit", str(tmp_path / "out"), "--locate", *located, "--out", back])
    main(["--from-mergekit", back, "--out", str(tmp_path / "again")])
    one, two = (tmp_path / n / "model.safetensors" for n in ("out", "again"))
    assert one.read_bytes() == two.read_bytes()


@pytest.mark.parametrize(
    ("kind", "number", "refused"),
    [
        ("gpt2", "n_layer", ""),
        ("gemma3_text", "num_hidden_layers", ""),
        ("smollm3", "num_hidden_layers", ""),
        ("bloom", "n_layer", ""),
        ("deepseek_v3", "", "a layer with mlp.down_proj.weight comes to a place where config.json"),
        ("gpt_neo", "", "its config.json does not fit 4 of its layers"),
    ],
)
def test_other_architectures(kind, number, refused, tmp_path):
    """Every layer keeps its kind, or it is refused: each is read by its class afterwards."""
    model = walk.make(kind, vocab_size=48)
    model.save_pretrained(tmp_path / kind)
    tiny_tokenizer(tmp_path / kind, 48)
    slices = [f"{kind}=0:2", f"{kind}=1:2", f"{kind}=0:1"]
    if refused:
        with pytest.raises(UserError, match=refused):
            merge(tmp_path, tmp_path / "out", "passthrough", slices)
        return
    merge(tmp_path, tmp_path / "out", "passthrough", slices)
    made, own = settings(tmp_path / "out"), settings(tmp_path / kind)
    assert made[number] == 4 and own[number] == 2
    for key in ("layer_types", "no_rope_layers"):
        if key in own:
            assert made[key] == [own[key][layer] for layer in (0, 1, 1, 0)]
    assert smoke(tmp_path / "out") == 0


def test_one_vocabulary_and_tied_heads(tmp_path):
    tiny_model(tmp_path / "a", tie_word_embeddings=True)
    tiny_model(tmp_path / "b", seed=1, tie_word_embeddings=True, vocabulary=50)
    tiny_model(tmp_path / "c", seed=2)
    embedding = "model.embed_tokens.weight"
    union = ["--vocabulary", "union"]
    found = merge(tmp_path, tmp_path / "ab", "passthrough", ["a=0:2", "b=1:2"], *union)
    assert "lm_head.weight" not in found and settings(tmp_path / "ab")["vocab_size"] == 50
    first, other = tensors(tmp_path / "a")[embedding], tensors(tmp_path / "b")[embedding]
    assert torch.equal(found[embedding][:48], first)
    assert torch.equal(found[embedding][48:], other[48:])
    # A tied and an untied model: the head is that of the last slice.
    found = merge(tmp_path, tmp_path / "ca", "passthrough", ["c=0:2", "a=1:2"])
    assert torch.equal(found["lm_head.weight"], first)
    assert torch.equal(found[embedding], tensors(tmp_path / "c")[embedding])
    assert settings(tmp_path / "ca")["tie_word_embeddings"] is False
