"""A folded adapter is what PEFT itself makes of it; what cannot be folded exactly is refused."""

import hashlib
import json
import shutil
import warnings

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from checkpoints.adapter_settings import CONFIG, _may_be_matched
from checkpoints.adapters import Adapter, is_adapter, open_model
from checkpoints.reading import Checkpoint
from common.errors import UserError

WEIGHTS = "adapter_model.safetensors"


@pytest.fixture(scope="module")
def base(make_model, tmp_path_factory):
    # Width, head and vocabulary differ, so that a turned matrix cannot pass for a right one.
    return make_model(tmp_path_factory.mktemp("adapters") / "base", attention_bias=True)


def adapt(base, out, seed=1, **settings):
    """Give a base a random PEFT adapter; save it, and return PEFT's own merge."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
        values = {"r": 4, "lora_alpha": 6, "target_modules": ["q_proj"], "task_type": "CAUSAL_LM"}
        tuned = get_peft_model(model, LoraConfig(**(values | settings)))
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            for parameter in tuned.parameters():
                if parameter.requires_grad:
                    parameter.data = torch.randn_like(parameter) * 0.3
        tuned.save_pretrained(out)
        return tuned.merge_and_unload().state_dict()


CASES = {
    "one module": {},
    "rslora": {"use_rslora": True},
    "all linear": {"target_modules": "all-linear", "r": 3, "lora_alpha": 5},
    "patterns": {
        "target_modules": ["q_proj", "v_proj", "down_proj"],
        "rank_pattern": {"v_proj": 2, "layers.1.mlp.down_proj": 5},
        "alpha_pattern": {r"layers\.0\..*q_proj": 1, "down_proj": 9},
    },
    "embedding": {"target_modules": ["embed_tokens", "o_proj"]},
    "head": {"target_modules": ["lm_head"]},
    "modules": {"modules_to_save": ["lm_head", "norm", "embed_tokens"]},
    "all biases": {"bias": "all"},
    "own biases": {"bias": "lora_only", "target_modules": ["q_proj", "k_proj"]},
    "bias of B": {"lora_bias": True, "target_modules": ["q_proj", "o_proj"]},
    "eva's place": {"init_lora_weights": "gaussian", "layers_to_transform": [1]},
}


@pytest.mark.parametrize("case", CASES)
def test_folding_is_pefts_merge(base, tmp_path, case):
    expected = adapt(base, tmp_path / "a", **CASES[case])
    adapter = Adapter(tmp_path / "a", Checkpoint(base))
    assert adapter.names() == sorted(expected)
    original, changed = load_file(base / "model.safetensors"), 0
    for name, tensor in adapter.state_dict().items():
        assert tensor.shape == expected[name].shape
        assert adapter.dtype(name) == "F32"
        torch.testing.assert_close(tensor, expected[name], rtol=1e-6, atol=2e-7)
        changed += not torch.equal(tensor, original[name])
    assert changed
    untouched = [n for n in original if torch.equal(original[n], expected[n])]
    assert all(torch.equal(adapter.load(name), original[name]) for name in untouched)


def test_layers_stored_the_other_way_round(tmp_path):
    from transformers import GPT2Config, GPT2LMHeadModel

    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = GPT2Config(
            vocab_size=48, n_positions=16, n_embd=24, n_layer=1, n_head=2, tie_word_embeddings=False
        )
        GPT2LMHeadModel(config).save_pretrained(tmp_path / "base")
    # c_proj of the attention is square: only its class tells how it lies.
    expected = adapt(
        tmp_path / "base",
        tmp_path / "a",
        target_modules=["c_attn", "c_proj", "c_fc"],
        fan_in_fan_out=True,
    )
    adapter = Adapter(tmp_path / "a", Checkpoint(tmp_path / "base"))
    for name in adapter.names():
        torch.testing.assert_close(adapter.load(name), expected[name], rtol=1e-6, atol=2e-7)


def test_any_range_of_values_is_that_part_of_the_whole(base, tmp_path):
    adapt(base, tmp_path / "a", target_modules=["q_proj", "embed_tokens"])
    adapter = Adapter(tmp_path / "a", Checkpoint(base))
    for name in ("model.layers.0.self_attn.q_proj.weight", "model.embed_tokens.weight"):
        whole = adapter.load(name).flatten()
        for start, stop in [(0, 5), (31, 33), (32, 64), (7, 1000), (1023, 1024), (50, 50)]:
            torch.testing.assert_close(adapter.read(name, start, stop), whole[start:stop])


def test_only_the_rows_asked_for_are_read_from_the_base(base, tmp_path, monkeypatch):
    adapt(base, tmp_path / "a")
    below, asked = Checkpoint(base), []
    read = below.read
    monkeypatch.setattr(below, "read", lambda *given: asked.append(given) or read(*given))
    name = "model.layers.0.self_attn.q_proj.weight"
    Adapter(tmp_path / "a", below).read(name, 40, 70)
    assert asked == [(name, 32, 96)]


def test_a_bfloat16_base_is_folded_without_rounding(base, tmp_path, make_model):
    adapt(base, tmp_path / "a", lora_alpha=7)
    shutil.copytree(base, tmp_path / "half")
    tensors = load_file(base / "model.safetensors")
    save_file({n: t.bfloat16() for n, t in tensors.items()}, tmp_path / "half/model.safetensors")
    adapter = Adapter(tmp_path / "a", Checkpoint(tmp_path / "half"))
    name = "model.layers.1.self_attn.q_proj"
    held = load_file(tmp_path / "a" / WEIGHTS)
    a, b = (held[f"base_model.model.{name}.lora_{x}.weight"].double().numpy() for x in "AB")
    expected = tensors[f"{name}.weight"].bfloat16().double().numpy() + 7 / 4 * (b @ a)
    assert adapter.dtype(f"{name}.weight") == "F32"
    assert adapter.dtype("model.norm.weight") == "BF16"
    difference = adapter.load(f"{name}.weight").double().numpy() - expected
    assert np.abs(difference).max() < 1e-6 < 2**-9 * np.abs(expected).max()


def test_the_fingerprint_follows_base_weights_and_configuration(base, tmp_path, make_model):
    adapt(base, tmp_path / "a")
    first = Adapter(tmp_path / "a", Checkpoint(base))
    assert Adapter(tmp_path / "a", Checkpoint(base)).fingerprint == first.fingerprint
    # As statistics and merges that are older than BLAKE3 recorded it.
    digests = {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest()
        for path in (base / "model.safetensors", tmp_path / "a" / CONFIG, tmp_path / "a" / WEIGHTS)
    }
    lines = [f"{name} {digest}\n" for name, digest in digests.items()]
    parts = [hashlib.sha256(text.encode()).hexdigest() for text in (lines[0], "".join(lines[1:]))]
    assert first.has_fingerprint(hashlib.sha256(" ".join(parts).encode()).hexdigest())
    assert first.path == tmp_path / "a"
    assert first.config == Checkpoint(base).config
    assert [path.name for path in first.shards] == ["model.safetensors", WEIGHTS]
    other = make_model(tmp_path / "other", seed=5, attention_bias=True)
    prints = {first.fingerprint, Adapter(tmp_path / "a", Checkpoint(other)).fingerprint}
    change(tmp_path / "a", lora_alpha=8)
    prints.add(Adapter(tmp_path / "a", Checkpoint(base)).fingerprint)
    held = load_file(tmp_path / "a" / WEIGHTS)
    save_file({name: tensor + 1 for name, tensor in held.items()}, tmp_path / "a" / WEIGHTS)
    prints.add(Adapter(tmp_path / "a", Checkpoint(base)).fingerprint)
    assert len(prints) == 4


def change(folder, **settings):
    held = json.loads((folder / CONFIG).read_text())
    (folder / CONFIG).write_text(json.dumps(held | settings))


@pytest.mark.parametrize("lora", [["q_proj"], ["q_proj", "embed_tokens"]])
def test_an_adapter_with_tokens_added_has_its_own_rows(base, tmp_path, make_model, lora):
    from peft import LoraConfig, PeftModel, get_peft_model
    from transformers import AutoModelForCausalLM

    from checkpoints.vocabulary import align

    with warnings.catch_warnings(), torch.random.fork_rng():
        warnings.simplefilter("ignore")
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_pretrained(base)
        model.resize_token_embeddings(50)
        saved = ["lm_head"] if "embed_tokens" in lora else ["lm_head", "embed_tokens"]
        tuned = get_peft_model(model, LoraConfig(r=2, target_modules=lora, modules_to_save=saved))
        for parameter in tuned.parameters():
            if parameter.requires_grad:
                parameter.data = torch.randn_like(parameter)
        tuned.save_pretrained(tmp_path / "a", save_embedding_layers=True)
        plain = AutoModelForCausalLM.from_pretrained(base)
        plain.resize_token_embeddings(50)
        expected = PeftModel.from_pretrained(plain, tmp_path / "a").merge_and_unload().state_dict()
    adapter = Adapter(tmp_path / "a", Checkpoint(base))
    assert adapter.config["vocab_size"] == 50
    for name, tensor in adapter.state_dict().items():
        assert adapter.shape(name) == tensor.shape
        torch.testing.assert_close(tensor, expected[name], rtol=1e-6, atol=1e-6)
    cropped = align(Checkpoint(base), {"a": adapter}, "crop-to-base").experts["a"]
    for name in ("lm_head.weight", "model.embed_tokens.weight"):
        assert torch.equal(cropped.load(name), adapter.load(name)[:48])


def refused(folder, base, match, **options):
    with pytest.raises(UserError, match=match) as caught:
        Adapter(folder, Checkpoint(base), **options)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"use_dora": True}, "DoRA"),
        ({"peft_type": "LOHA"}, "type 'LOHA'"),
        ({"peft_type": None}, "type None"),
        ({"use_qalora": True}, "'use_qalora' is set"),
        (
            {"peft_type": "PREFIX_TUNING"},
            "PREFIX_TUNING puts vectors .* leave it out",
        ),
        ({"layer_replication": [[0, 2], [1, 2]]}, "layer_replication makes a model"),
        ({"alora_invocation_tokens": [4]}, "alora_invocation_tokens.* leave it out"),
        ({"target_parameters": ["mlp.experts.down_proj"]}, "'target_parameters' is set"),
        ({"some_new_variant": True}, "'some_new_variant' is set"),
        ({"init_lora_weights": "pissa_niter_4"}, "changes the base"),
        ({"init_lora_weights": "olora"}, "changes the base"),
        ({"bias": "some"}, "bias='some'"),
        ({"fan_in_fan_out": True}, "fits either way"),
        ({"r": 0}, "r or rank_pattern is no number"),
        ({"r": "4"}, "r or rank_pattern is no number"),
        ({"lora_alpha": float("nan")}, "lora_alpha or alpha_pattern is no number"),
        ({"rank_pattern": [4]}, "r or rank_pattern is no number"),
        ({"alpha_pattern": {"(": 4}}, "no regular expression"),
        ({"r": 10**400}, "r or rank_pattern is no number"),
        ({"lora_alpha": 1e308}, "lora_alpha or alpha_pattern is no number"),
        # Harmless ones of the forms that are refused: their time is not bounded in general.
        ({"rank_pattern": {"(q_proj)+": 4}}, r"the rank_pattern '\(q_proj\)\+', which is not"),
        ({"alpha_pattern": {"a*b*c*": 4}}, "the alpha_pattern"),
        ({"rank_pattern": {"a" * 201: 4}}, "the rank_pattern"),
        ({"rank_pattern": {r"(q)\1": 4}}, "the rank_pattern"),
        ({"rank_pattern": {"(?=q)q_proj": 4}}, "the rank_pattern"),
        ({"rank_pattern": {"q{1,3}": 4}}, "the rank_pattern"),
        ({"r": 5}, "of rank 4, not 5"),
    ],
)
def test_what_would_be_folded_wrongly_is_refused(base, tmp_path, settings, match):
    adapt(base, tmp_path / "a")
    change(tmp_path / "a", **settings)
    refused(tmp_path / "a", base, match)


@pytest.mark.parametrize(
    "pattern",
    [
        *("q_proj", "layers.0.self_attn.q_proj", r"model\.layers\.\d+\.mlp\.down_proj"),
        *(
            "^model.layers.1.*v_proj$",
            "(q|k)_proj",
            "(?:layers.[02468].mlp.up_proj)",
            r".*\.\d+\.q",
        ),
    ],
)
def test_patterns_that_peft_writes_are_matched(pattern):
    assert _may_be_matched(pattern)


def test_pefts_own_dora_is_refused(base, tmp_path):
    adapt(base, tmp_path / "a", use_dora=True)
    refused(tmp_path / "a", base, "DoRA")
    change(tmp_path / "a", use_dora=False)
    refused(tmp_path / "a", base, "lora_magnitude_vector")


def test_a_quantised_base_is_refused(base, tmp_path):
    adapt(base, tmp_path / "a")
    quantised = shutil.copytree(base, tmp_path / "q")
    config = json.loads((quantised / "config.json").read_text())
    config["quantization_config"] = {"bits": 4}
    (quantised / "config.json").write_text(json.dumps(config))
    assert Adapter(tmp_path / "a", Checkpoint(quantised)).names()  # a leftover, with true weights
    tensors = load_file(quantised / "model.safetensors")
    tensors["model.layers.0.self_attn.q_proj.qweight"] = torch.zeros(2, 2, dtype=torch.int32)
    save_file(tensors, quantised / "model.safetensors")
    refused(tmp_path / "a", quantised, "quantised base")


def test_an_adapter_of_another_base_is_refused(base, tmp_path, make_model):
    adapt(base, tmp_path / "a", target_modules=["q_proj", "embed_tokens"])
    shallow = make_model(tmp_path / "shallow", num_hidden_layers=1, attention_bias=True)
    refused(tmp_path / "a", shallow, r"layers\.1\.\S+ changes .* which the base .* lacks")
    larger = make_model(tmp_path / "larger", vocabulary=50, attention_bias=True)
    refused(tmp_path / "a", larger, r"embedding and head have unlike rows \[48, 50\]")
    wide = make_model(tmp_path / "wide", hidden_size=64, attention_bias=True)
    refused(tmp_path / "a", wide, r"shape \[48, 32\], the base's .* has \[48, 64\]")


@pytest.mark.parametrize("half", ["A", "B"])
def test_half_an_update_is_refused(base, tmp_path, half):
    adapt(base, tmp_path / "a")
    held = load_file(tmp_path / "a" / WEIGHTS)
    lost = next(name for name in held if f"lora_{half}" in name)
    save_file({n: t for n, t in held.items() if n != lost}, tmp_path / "a" / WEIGHTS)
    refused(tmp_path / "a", base, "has no other half")


def test_an_adapter_with_nothing_or_something_unknown_in_it_is_refused(base, tmp_path):
    adapt(base, tmp_path / "a")
    save_file({}, tmp_path / "a" / WEIGHTS)
    refused(tmp_path / "a", base, "holds no weights")
    save_file({"x.lora_A.weight": torch.ones(4, 4)}, tmp_path / "a" / WEIGHTS)
    refused(tmp_path / "a", base, "its tensor x.lora_A.weight")
    save_file({"base_model.model.x.lora_C": torch.ones(4)}, tmp_path / "a" / WEIGHTS)
    refused(tmp_path / "a", base, "its tensor base_model.model.x.lora_C")
    (tmp_path / "a" / WEIGHTS).unlink()
    refused(tmp_path / "a", base, f"no {WEIGHTS}")


def test_a_pickled_adapter_is_refused_unless_asked_for(base, tmp_path):
    adapt(base, tmp_path / "a")
    name = "model.layers.0.self_attn.q_proj.weight"
    expected = Adapter(tmp_path / "a", Checkpoint(base)).load(name)
    torch.save(load_file(tmp_path / "a" / WEIGHTS), tmp_path / "a" / "adapter_model.bin")
    (tmp_path / "a" / WEIGHTS).unlink()
    refused(tmp_path / "a", base, "a pickle, which can run code")
    adapter = Adapter(tmp_path / "a", Checkpoint(base), allow_pickle=True)
    assert torch.equal(adapter.load(name), expected)


def test_a_folder_is_opened_as_what_it_is(base, tmp_path):
    adapt(base, tmp_path / "a")
    assert is_adapter(tmp_path / "a") and not is_adapter(base)
    assert isinstance(open_model(base), Checkpoint)
    assert isinstance(open_model(tmp_path / "a", Checkpoint(base)), Adapter)
    with pytest.raises(UserError, match="an adapter needs its base"):
        open_model(tmp_path / "a")
