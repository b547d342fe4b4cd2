"""A path's checkpoint in the stock classes against layers that are given scaled hidden states."""

from __future__ import annotations

import copy

import pytest
import torch

from checkpoints.reading import Checkpoint
from checkpoints.writing import write_checkpoint
from common.errors import UserError
from common.files import read_json, write_json
from search import dataflow_model
from search.dataflow import DataFlowSpace
from search.dataflow_model import Step, check_stackable, path_table, sources
from tests.merges import families


@pytest.fixture(scope="session", autouse=True)
def libraries():
    """Import what takes seconds only when the tests run: collecting them stays quick."""
    global Allocated, AutoModelForCausalLM, LlamaRMSNorm, MistralRMSNorm
    from transformers import AutoModelForCausalLM
    from transformers.models.llama.modeling_llama import LlamaRMSNorm
    from transformers.models.mistral.modeling_mistral import MistralRMSNorm

    from search.workbench import Allocated


PATH = [
    Step("a", 0, 1.0),
    Step("b", 1, 0.6),
    Step("b", 1, 1.7),
    Step("a", 1, 1.9),
    Step("b", 0, 0.55),
]
IDS = torch.tensor([[1, 9, 30, 12, 40, 5, 5, 21], [1, 7, 8, 31, 32, 33, 20, 11]])
FORMS = {
    "llama": {},
    "llama with biases": {"attention_bias": True, "mlp_bias": True},
    "mistral": {"sliding_window": 4},
}


def parents(folder, make_model, form, eps=1e-6, dtype=torch.float32):
    """Two models with every parameter random, biases and norms included."""
    for seed, name in enumerate("ab"):
        changes = FORMS[form] | {"rms_norm_eps": eps}
        make_model(folder / name, form.split()[0], seed, **changes)
        model = AutoModelForCausalLM.from_pretrained(folder / name, dtype=dtype)
        draw = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for tensor, values in model.named_parameters():
                if tensor.endswith("bias") or "norm" in tensor:
                    values.add_(0.3 * torch.randn(values.shape, generator=draw, dtype=dtype))
        model.save_pretrained(folder / name)
    return {name: Checkpoint(folder / name) for name in "ab"}


def stacked(path, models, outside="a"):
    found = sources(path, outside, models)
    return {name: dataflow_model.load(name, source, models) for name, source in found.items()}


def written(folder, path, models, outside="a"):
    folder.mkdir()
    write_checkpoint(folder, stacked(path, models, outside), models[outside].path)
    config = read_json(folder / "config.json")
    write_json(folder / "config.json", config | {"num_hidden_layers": len(path)})
    return folder


def load(folder, dtype=torch.float32):
    model, loading = AutoModelForCausalLM.from_pretrained(
        folder, dtype=dtype, output_loading_info=True
    )
    assert not loading["missing_keys"] and not loading["unexpected_keys"]
    return model.eval()


def explicit(path, models, outside, dtype):
    """Follow the path with whole stock layers, scaling what each one reads."""
    stock = {name: load(model.path, dtype).model for name, model in models.items()}
    ends = load(models[outside].path, dtype)
    with torch.no_grad():
        state = ends.model.embed_tokens(IDS)
        length = IDS.shape[1]
        turns = ends.model.rotary_emb(state, torch.arange(length)[None])
        ahead = torch.arange(length)
        behind = ahead[:, None] - ahead[None, :]
        seen = (behind >= 0) & (behind < (ends.config.to_dict().get("sliding_window") or length))
        for step in path:
            layer = stock[step.expert].layers[step.layer]
            state = layer(
                step.scale * state, attention_mask=seen[None, None], position_embeddings=turns
            )
        return ends.lm_head(ends.model.norm(state))


def logits_of(folder, dtype=torch.float32):
    with torch.no_grad():
        return load(folder, dtype)(input_ids=IDS).logits


def norm_in_full_precision(norm, states):
    """The stock norms' formula; they themselves compute in float32, whatever the model's type."""
    mean = states.square().mean(dim=-1, keepdim=True)
    return norm.weight * states / torch.sqrt(mean + norm.variance_epsilon)


@pytest.mark.parametrize("form", FORMS)
def test_folded_scales_differ_from_scaled_states_by_epsilon_alone(
    form, make_model, tmp_path, monkeypatch
):
    monkeypatch.setattr(LlamaRMSNorm, "forward", norm_in_full_precision)
    monkeypatch.setattr(MistralRMSNorm, "forward", norm_in_full_precision)
    errors = {}
    for eps in (0.0, 1e-6, 1e-5):
        folder = tmp_path / str(eps)
        models = parents(folder, make_model, form, eps, torch.float64)
        ours = logits_of(written(folder / "path", PATH, models), torch.float64)
        theirs = explicit(PATH, models, "a", torch.float64)
        unscaled = explicit([Step(s.expert, s.layer) for s in PATH], models, "a", torch.float64)
        errors[eps] = float((ours - theirs).abs().max() / theirs.std())
        assert (ours - unscaled).abs().max() > 0.1 * theirs.std()  # the scales do matter
    assert errors[0.0] < 1e-12
    # States here have a mean square of 0.1 and more: 1e-6 / 0.1 at each of a few norms.
    assert 1e-8 < errors[1e-6] < 1e-4
    assert errors[1e-5] / errors[1e-6] == pytest.approx(10, rel=0.05)


def test_a_stacked_model_generates_alike_with_and_without_its_cache(make_model, tmp_path):
    for form in ("llama with biases", "mistral"):
        models = parents(tmp_path / form, make_model, form)
        model = load(written(tmp_path / form / "path", PATH, models))
        assert [layer.self_attn.layer_idx for layer in model.model.layers] == list(range(5))
        settings = {"max_new_tokens": 12, "do_sample": False, "eos_token_id": None}
        with_cache = model.generate(IDS, use_cache=True, **settings)
        without = model.generate(IDS, use_cache=False, **settings)
        assert torch.equal(with_cache, without)
        assert with_cache.shape == (2, 20)


def test_a_model_s_own_layers_give_that_model_bit_for_bit(make_model, tmp_path):
    models = parents(tmp_path, make_model, "llama with biases")
    tensors = stacked([Step("b", 0), Step("b", 1)], models, "b")
    assert sorted(tensors) == models["b"].names()
    for name, values in tensors.items():
        assert torch.equal(values, models["b"].load(name))


def test_embedding_norm_and_head_come_from_the_model_named(make_model, tmp_path):
    models = parents(tmp_path, make_model, "mistral")
    tensors = stacked([Step("a", 1), Step("a", 0)], models, "b")
    for name in ("model.embed_tokens.weight", "model.norm.weight", "lm_head.weight"):
        assert torch.equal(tensors[name], models["b"].load(name))
    own = "self_attn.q_proj.weight"
    first, second = (models["a"].load(f"model.layers.{n}.{own}") for n in (1, 0))
    assert torch.equal(tensors[f"model.layers.0.{own}"], first)
    assert torch.equal(tensors[f"model.layers.1.{own}"], second)


def test_only_what_a_branch_ends_in_is_divided_by_the_cumulative_scale(make_model, tmp_path):
    models = parents(tmp_path, make_model, "llama with biases")
    tensors = stacked([Step("a", 0, 2.0), Step("b", 1, 4.0)], models)
    for name, values in tensors.items():
        number = int(name.split(".")[2]) if ".layers." in name else None
        source = "a" if number in (None, 0) else "b"
        folded = number is not None and ("o_proj" in name or "down_proj" in name)
        expected = models[source].load(name) / ({0: 2.0, 1: 8.0}[number] if folded else 1.0)
        assert torch.equal(values, expected), name  # powers of two divide exactly


def test_a_scale_too_small_for_the_stored_type_is_refused(make_model, tmp_path):
    models = parents(tmp_path, make_model, "llama")
    with pytest.raises(UserError, match="overflows float32"):
        stacked([Step("a", 0, 1e-30), Step("a", 1, 1e-30)], models)


def test_models_whose_layers_do_not_fit_are_refused(make_model, tmp_path):
    models = parents(tmp_path, make_model, "llama")
    check_stackable(models)
    make_model(tmp_path / "deep", "llama", num_hidden_layers=3)
    check_stackable(models | {"deep": Checkpoint(tmp_path / "deep")})
    make_model(tmp_path / "other", "llama", rms_norm_eps=1e-5)
    with pytest.raises(UserError, match="rms_norm_eps is 1e-05, that of a is 1e-06"):
        check_stackable(models | {"other": Checkpoint(tmp_path / "other")})
    biased = parents(tmp_path / "biased", make_model, "llama with biases")["a"]
    with pytest.raises(UserError, match="attention_bias is True"):
        check_stackable(models | {"biased": biased})
    config = read_json(tmp_path / "b" / "config.json")
    write_json(tmp_path / "b" / "config.json", config | {"model_type": "gpt_neox"})
    with pytest.raises(UserError, match="give models of type llama, mistral"):
        check_stackable({"b": Checkpoint(tmp_path / "b")})


def test_the_table_lists_every_step():
    table = path_table([Step("ja", 2, 1.0), Step("math_a", 0, 1.5), Step("ja", 1, 0.5)])
    assert table.splitlines()[2:] == [
        "| 0 | ja | 2 | 1.0000 | 1.0000 |",
        "| 1 | math_a | 0 | 1.5000 | 1.5000 |",
        "| 2 | ja | 1 | 0.5000 | 0.7500 |",
    ]


KINDS = {
    "gemma2": {"rms_norm_eps": 0.0, "attn_logit_softcapping": 2.0, "final_logit_softcapping": 3.0},
    "gemma3_text": {"rms_norm_eps": 0.0},
    "granite": {"rms_norm_eps": 0.0, "residual_multiplier": 0.5, "embedding_multiplier": 3.0},
    "cohere": {"layer_norm_eps": 0.0},
    "phi": {"layer_norm_eps": 0.0},
    "starcoder2": {"norm_epsilon": 0.0},
    "smollm3": {"rms_norm_eps": 0.0},
    "qwen2": {"rms_norm_eps": 0.0},
    "qwen3": {"rms_norm_eps": 0.0},
    "stablelm": {"layer_norm_eps": 0.0},
    "phi3": {"rms_norm_eps": 0.0},
    "gemma": {"rms_norm_eps": 0.0},
    "seed_oss": {"rms_norm_eps": 0.0},
    "arcee": {"rms_norm_eps": 0.0},
}
FAST = ("gemma2", "gemma3_text", "granite", "phi")


def random_parents(folder, kind):
    for seed, name in enumerate("ab"):
        families.make(kind, seed, **KINDS[kind]).double().save_pretrained(folder / name)
    return {name: Checkpoint(folder / name) for name in "ab"}


def with_scaled_states(models, kind):
    """Give transformers' own model the path's layers, and scale what each one reads."""
    stock = {name: load(model.path, torch.float64) for name, model in models.items()}
    whole, sliding = load(models["a"].path, torch.float64), []
    whole.model.layers = torch.nn.ModuleList()
    for step in PATH:
        layer = copy.deepcopy(stock[step.expert].model.layers[step.layer])
        layer.register_forward_pre_hook(
            lambda _, inputs, scale=step.scale: (scale * inputs[0], *inputs[1:])
        )
        whole.model.layers.append(layer)
        for key in sliding_keys(whole.config):
            sliding.append((key, getattr(stock[step.expert].config, key)[step.layer]))
    for key in sliding_keys(whole.config):
        setattr(whole.config, key, [value for name, value in sliding if name == key])
    whole.config.num_hidden_layers = len(PATH)
    return whole


def sliding_keys(config):
    return [key for key in ("layer_types", "no_rope_layers") if getattr(config, key, None)]


def follow(kind, folder):
    models = random_parents(folder, kind)
    space = DataFlowSpace(models["a"], {"a2": models["a"], "b": models["b"]})
    names = {"a": "a2", "b": "b"}
    path = [{"expert": names[s.expert], "layer": s.layer, "scale": s.scale} for s in PATH]
    recipe = {"path": path, "embedding_from": "a2"}
    (folder / "path").mkdir()
    tensors, changes = space.tensors(recipe)
    write_checkpoint(folder / "path", tensors, models["a"].path)
    config = read_json(folder / "path" / "config.json")
    write_json(folder / "path" / "config.json", config | changes)
    with torch.no_grad():
        ours = load(folder / "path", torch.float64)(input_ids=IDS, use_cache=False).logits
        theirs = with_scaled_states(models, kind)(input_ids=IDS, use_cache=False).logits
    spread = (theirs - theirs.mean()).abs().max()
    assert (ours - theirs).abs().max() < 2e-5 * spread  # norms compute in float32
    unscaled = dict(recipe, path=[step | {"scale": 1.0} for step in path])
    held = Allocated(models["a"])
    for wanted in (recipe, unscaled, recipe):
        held.become(space, wanted)
    with torch.no_grad():
        again = held.model(input_ids=IDS, use_cache=False).logits.double()
        held.become(space, unscaled)
        other = held.model(input_ids=IDS, use_cache=False).logits.double()
    assert (again - theirs).abs().max() < 1e-3 * spread  # in float32
    assert (other - theirs).abs().max() > 0.05 * spread  # the scales do matter


@pytest.mark.parametrize("kind", FAST)
def test_paths_of_other_classes_follow_their_own_layers(kind, tmp_path):
    follow(kind, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("kind", sorted(KINDS.keys() - set(FAST)))
def test_paths_of_more_classes(kind, tmp_path):
    follow(kind, tmp_path)


def test_every_class_of_paths_is_tested():
    assert dataflow_model.ARCHITECTURES.keys() == KINDS.keys() | {"llama", "mistral"}


def test_a_class_whose_branches_read_the_hidden_state_itself_is_refused(tmp_path):
    families.make("olmo2").save_pretrained(tmp_path / "a")
    with pytest.raises(UserError, match="layers of a 'olmo2' model cannot be rearranged"):
        check_stackable({"a": Checkpoint(tmp_path / "a")})
