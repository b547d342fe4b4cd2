"""What a loader shares, computes or spells otherwise is no difference between models."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass, field

import pytest
import torch
from safetensors.torch import load_file, save_file

from checkpoints.loading import load_causal
from checkpoints.names import is_embedding
from checkpoints.reading import Checkpoint
from checkpoints.settling import check_allocatable, settle
from common.errors import UserError
from merges.engine import registry
from merges.engine.config import MergeConfig
from merges.engine.run import merge_to_disk
from tests.evaluation import walk

HEAD, EMBEDDING = "lm_head.weight", "model.embed_tokens.weight"
SMALL = {"hidden_size": 16, "intermediate_size": 24, "max_position_embeddings": 32}


def change(folder, edit):
    path = folder / "model.safetensors"
    tensors = load_file(path)
    edit(tensors)
    save_file({name: t.contiguous() for name, t in tensors.items()}, path, {"format": "pt"})


def configure(folder, edit):
    path = folder / "config.json"
    content = json.loads(path.read_text())
    edit(content)
    path.write_text(json.dumps(content))
    return folder


def copy_head(tensors):
    tensors[HEAD] = tensors[EMBEDDING].clone()


def noisy(base, folder, seed):
    """Write the base with noise."""
    shutil.copytree(base, folder)
    draw = torch.Generator().manual_seed(seed)

    def edit(tensors):
        for tensor in tensors.values():
            tensor += 0.05 * torch.randn(tensor.shape, generator=draw)

    change(folder, edit)
    return folder


@dataclass
class Merged:
    tensors: dict
    config: dict
    notes: list = field(default_factory=list)


@pytest.fixture
def merge(tmp_path):
    def run(top, method="linear", experts=("a", "b"), base="base", **options):
        out, notes = tmp_path / "out", []
        shutil.rmtree(out, ignore_errors=True)
        config = MergeConfig(
            method,
            base and Checkpoint(top / base),
            {f"the_{name}": Checkpoint(top / name) for name in experts},
            **options,
        )
        merge_to_disk(out, config, notes.append)
        config = json.loads((out / "config.json").read_text())
        return Merged(load_file(out / "model.safetensors"), config, notes)

    return run


@pytest.fixture(scope="module")
def tied(make_model, tmp_path_factory):
    top = tmp_path_factory.mktemp("tied")
    make_model(top / "base", tie_word_embeddings=True, num_hidden_layers=1, **SMALL)
    for seed, name in enumerate("ab", 1):
        noisy(top / "base", top / name, seed)
    return top


@pytest.fixture
def family(tied, tmp_path):
    return shutil.copytree(tied, tmp_path / "family")


def mean(top, name, other=None):
    values = [load_file(top / e / "model.safetensors") for e in "ab"]
    return (values[0][name].double() + values[1][other or name].double()) / 2


@pytest.mark.parametrize("holders", ["", "a", "base", "base a b"])
def test_a_copy_of_a_tied_head_is_no_difference(holders, family, merge):
    for name in holders.split():
        change(family / name, copy_head)
    found = merge(family)
    assert torch.allclose(found.tensors[EMBEDDING].double(), mean(family, EMBEDDING), atol=1e-7)
    assert found.config["tie_word_embeddings"] is True
    # The result holds the copy where the base does, and it is the embedding.
    assert (HEAD in found.tensors) == ("base" in holders)
    if HEAD in found.tensors:
        assert torch.equal(found.tensors[HEAD], found.tensors[EMBEDDING])


@pytest.mark.parametrize("kind", ["mamba", "ctrl", "biogpt", "openai-gpt", "gpt_neox", "bloom"])
def test_heads_and_embeddings_of_other_types(kind, tmp_path):
    """An equal copy of the head is none of the weights, whatever the type calls the two."""
    walk.make(kind, tie_word_embeddings=True).save_pretrained(tmp_path / "tied")
    walk.make(kind, tie_word_embeddings=False).save_pretrained(tmp_path / "own")
    names = Checkpoint(tmp_path / "tied").names()
    head = next(n for n in Checkpoint(tmp_path / "own").names() if n not in names)
    (embedding,) = filter(is_embedding, names)
    for factor, untied in ((1, False), (2, True)):
        change(tmp_path / "tied", lambda t, f=factor: t.update({head: f * t[embedding]}))
        model = Checkpoint(tmp_path / "tied")
        assert (head in model.names(), model.config["tie_word_embeddings"]) == (untied, not untied)


def test_no_method_gives_a_tied_model_a_head_of_its_own(family, merge):
    for name in ("base", "a", "b"):
        change(family / name, copy_head)
    walked = 0
    for name, info in registry.describe().items():
        if "data" in info.needs or info.statistics:  # they are handed the same names, as below
            continue
        experts = ("a",) if info.experts == 1 else ("a", "b")
        needed = {"t": 0.5, "weights": [0.5, 0.5]}
        parameters = {
            key: value
            for key, value in needed.items()
            if key in info.parameters and len(experts) == 2
        } or ({"t": 0.01} if "t" in info.parameters else {})
        base = "base" if "base" in info.needs else None
        found = merge(family, name, experts, base, parameters=parameters)
        assert torch.equal(found.tensors[HEAD], found.tensors[EMBEDDING]), name
        assert found.config["tie_word_embeddings"] is True
        walked += 1
    assert walked >= 33
    assert HEAD not in Checkpoint(family / "base").names()
    found = merge(family, embeddings_and_norms="base")
    base = load_file(family / "base" / "model.safetensors")
    assert torch.equal(found.tensors[HEAD], base[EMBEDDING])


def test_one_tied_and_one_untied_give_an_untied_result(family, merge):
    own = torch.full((48, 16), 0.25)
    change(family / "b", lambda tensors: tensors.__setitem__(HEAD, own))
    configure(family / "b", lambda config: config.update(tie_word_embeddings=False))
    found = merge(family, donor="the_b")
    assert found.config["tie_word_embeddings"] is False
    expected = (load_file(family / "a" / "model.safetensors")[EMBEDDING].double() + own) / 2
    assert torch.allclose(found.tensors[HEAD].double(), expected, atol=1e-7)
    assert any("the result is untied" in note for note in found.notes)
    # A search allocates the base's class, in which the head has no place of its own.
    base = Checkpoint(family / "base")
    settled = settle(base, {"b": Checkpoint(family / "b")})
    with pytest.raises(UserError, match=r"--base EXPERT --experts start=.* makes it"):
        check_allocatable(base, settled.base)
    made = merge(family, base="b", experts=("base",))  # what that line says
    assert torch.equal(made.tensors[HEAD], made.tensors[EMBEDDING])
    assert made.config["tie_word_embeddings"] is False


def test_a_tied_configuration_over_another_head_is_untied(family, merge):
    own = torch.full((48, 16), 0.25)
    change(family / "a", lambda tensors: tensors.__setitem__(HEAD, own))
    assert Checkpoint(family / "a").config["tie_word_embeddings"] is False
    assert torch.equal(load_causal(family / "a").lm_head.weight, own)  # as transformers has it
    found = merge(family)
    assert found.config["tie_word_embeddings"] is False
    expected = (own.double() + load_file(family / "b" / "model.safetensors")[EMBEDDING]) / 2
    assert torch.allclose(found.tensors[HEAD].double(), expected, atol=1e-7)
    assert any("differs from" in note for note in found.notes)


def test_a_tied_matrix_that_was_saved_as_the_head_is_the_embedding(family, merge):
    change(family / "a", lambda tensors: tensors.__setitem__(HEAD, tensors.pop(EMBEDDING)))
    found = merge(family)
    expected = mean(family, HEAD, EMBEDDING)
    assert torch.allclose(found.tensors[EMBEDDING].double(), expected, atol=1e-7)
    assert HEAD not in found.tensors


def frequencies(tensors):
    for layer in range(2):
        name = f"model.layers.{layer}.self_attn.rotary_emb.inv_freq"
        tensors[name] = 1 / 10000 ** (torch.arange(0, 4, 2) / 4)


@pytest.mark.parametrize("holders", ["base", "a", "base a b"])
def test_rotary_frequencies_in_some_files_are_no_difference(holders, family, merge):
    for name in holders.split():
        change(family / name, frequencies)
    found = merge(family, "dare_ties")
    assert not any("inv_freq" in name for name in found.tensors)
    assert any("computed buffer" in note for note in found.notes)


def gpt2(folder, seed):
    from transformers import GPT2Config, GPT2LMHeadModel

    with torch.random.fork_rng():
        torch.manual_seed(seed)
        config = GPT2Config(
            vocab_size=48, n_positions=8, n_embd=16, n_layer=2, n_head=2, eos_token_id=2
        )
        config.bos_token_id = 1
        model = GPT2LMHeadModel(config)
        for name, value in model.named_parameters():
            if name.endswith("bias"):
                value.data.normal_()
    model.save_pretrained(folder)


def test_masks_of_gpt2_are_left_out_and_its_biases_stay(tmp_path, merge):
    for seed, name in enumerate(("base", "a", "b")):
        gpt2(tmp_path / name, seed)
    names = set(load_file(tmp_path / "base" / "model.safetensors"))

    def masks(tensors):
        for layer in range(2):
            mask = torch.ones(8, 8).tril()[None, None]
            tensors[f"transformer.h.{layer}.attn.bias"] = mask
            tensors[f"transformer.h.{layer}.attn.masked_bias"] = torch.tensor(-1e4)

    change(tmp_path / "base", masks)
    # As the published file has it: names of the body alone.
    change(
        tmp_path / "a",
        lambda tensors: [tensors.__setitem__(n[12:], tensors.pop(n)) for n in list(tensors)],
    )
    found = merge(tmp_path)
    assert set(found.tensors) == names
    bias = "transformer.h.1.attn.c_attn.bias"
    expected = load_file(tmp_path / "a" / "model.safetensors")[bias[12:]].double()
    expected = (expected + load_file(tmp_path / "b" / "model.safetensors")[bias]) / 2
    assert torch.allclose(found.tensors[bias].double(), expected, atol=1e-7)


def test_what_only_looks_like_a_buffer_is_a_weight(family):
    trained = {
        "model.layers.0.attn.bias": torch.randn(16),
        "model.layers.0.attention.bias": torch.randn(1, 1, 8, 8),
        "model.layers.0.attn.masked_bias": torch.tensor([0.5]),
        "model.layers.0.rotary_emb.inv_freq": torch.tensor([0.1, 0.7]),
        "model.position_ids": torch.tensor([[0, 2, 1]]),
    }
    change(family / "a", lambda tensors: tensors.update(trained))
    assert trained.keys() <= set(Checkpoint(family / "a").names())


def test_a_leftover_block_on_quantisation_is_left_out(family, merge):
    block = {"quant_method": "bitsandbytes", "load_in_4bit": True}
    for name in ("base", "a"):
        configure(family / name, lambda config: config.update(quantization_config=block))
    found = merge(family)
    assert "quantization_config" not in found.config
    assert sum("is a leftover" in note for note in found.notes) == 2
    assert load_causal(family / "a").dtype == torch.float32
    change(family / "a", lambda tensors: tensors.update({"x.absmax": torch.ones(2)}))
    with pytest.raises(UserError, match=r"is quantised, as its config\.json and its tensors say"):
        merge(family)


def test_the_configuration_states_the_type_of_the_file(family, merge):
    def narrow(tensors):
        for name in tensors:
            tensors[name] = tensors[name].to(torch.bfloat16)

    change(family / "base", narrow)
    for old in ("dtype", "torch_dtype"):
        configure(family / "base", lambda config, old=old: config.update({old: "float32"}))
        found = merge(family)
        assert {t.dtype for t in found.tensors.values()} == {torch.bfloat16}
        assert found.config["dtype"] == "bfloat16" and "torch_dtype" not in found.config
        configure(family / "base", lambda config, old=old: config.pop(old))
    # Without the key, transformers would give all tensors the type of the first.
    change(family / "base", lambda tensors: tensors.update({"model.norm.weight": torch.ones(16)}))
    assert merge(family).config["dtype"] == "bfloat16"


def test_stacked_and_single_experts_are_one_model(tmp_path, merge, make_model):
    from transformers import MixtralConfig, MixtralForCausalLM

    config = MixtralConfig(
        **SMALL,
        vocab_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        num_local_experts=3,
    )
    models = {}
    for seed, name in enumerate(("base", "a", "b")):
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            models[name] = MixtralForCausalLM(config)
        models[name].save_pretrained(tmp_path / name)  # one matrix for each expert
    for name in ("base", "b"):  # as mergekit-moe writes it
        save_file(models[name].state_dict(), tmp_path / name / "model.safetensors")
    found = merge(tmp_path)
    assert any("stacked experts" in note for note in found.notes)
    merged = load_causal(tmp_path / "out").state_dict()
    a, b = models["a"].state_dict(), models["b"].state_dict()
    assert merged.keys() == a.keys()
    for name, value in merged.items():
        assert torch.allclose(value.double(), (a[name].double() + b[name]) / 2, atol=1e-7), name


def test_copies_in_an_encoder_decoder_are_no_difference(tmp_path, merge):
    from transformers import T5Config, T5ForConditionalGeneration

    sizes = {"d_model": 16, "d_kv": 4, "d_ff": 16, "num_layers": 1, "num_heads": 4}
    for seed, name in enumerate(("base", "a", "b")):
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            model = T5ForConditionalGeneration(T5Config(vocab_size=48, **sizes))
        model.save_pretrained(tmp_path / name)
    shared = "shared.weight"
    copies = ("encoder.embed_tokens.weight", HEAD)  # not all that the class ties
    change(tmp_path / "a", lambda t: t.update({name: t[shared].clone() for name in copies}))
    found = merge(tmp_path)
    assert not found.tensors.keys() & set(copies)
    assert torch.allclose(found.tensors[shared].double(), mean(tmp_path, shared), atol=1e-6)


def test_another_number_of_heads_is_refused_under_any_name(tmp_path, merge):
    for name in ("base", "a", "b"):
        gpt2(tmp_path / name, 0)
    configure(tmp_path / "a", lambda config: config.update(n_head=4))
    with pytest.raises(UserError, match="num_attention_heads is 4, the base's is 2"):
        merge(tmp_path)
