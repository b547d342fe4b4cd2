"""Adapters on tied bases, with added tokens or in unusual files, are what PEFT makes of them."""

import json
import warnings

import pytest
import torch
from safetensors.torch import load_file, save_file

from checkpoints.adapter_settings import CONFIG
from checkpoints.adapters import Adapter
from checkpoints.reading import Checkpoint
from common.errors import UserError
from tests.checkpoints.test_adapters import WEIGHTS, adapt, change

EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"


@pytest.fixture(scope="module")
def tied(make_model, tmp_path_factory):
    return make_model(tmp_path_factory.mktemp("tied") / "base", tie_word_embeddings=True)


def tuned(base, out, rows=0, again=True, **settings):
    """Train (at random) and save an adapter; return what PEFT makes of it, loaded and folded."""
    from peft import LoraConfig, PeftModel, get_peft_model
    from transformers import AutoModelForCausalLM

    def load():
        model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
        if rows:
            with torch.random.fork_rng():
                torch.manual_seed(7)
                model.resize_token_embeddings(model.config.vocab_size + rows, mean_resizing=False)
        return model

    values = {"r": 4, "lora_alpha": 6, "target_modules": ["q_proj"], "task_type": "CAUSAL_LM"}
    with warnings.catch_warnings(), torch.random.fork_rng():
        warnings.simplefilter("ignore")
        model = get_peft_model(load(), LoraConfig(**(values | settings)))
        torch.manual_seed(1)
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.requires_grad:
                    parameter.copy_(torch.randn_like(parameter) * 0.3)
        model.save_pretrained(out)
        if again:
            model = PeftModel.from_pretrained(load(), out)
        return model, model.merge_and_unload() if again else None


CASES = {
    "tokens added": {"rows": 2},
    "embedding saved": {"modules_to_save": ["embed_tokens"]},
    "head saved": {"modules_to_save": ["lm_head"]},
    "both saved": {"modules_to_save": ["lm_head", "embed_tokens"]},
    "saved and tied": {"modules_to_save": ["embed_tokens"], "ensure_weight_tying": True},
    "tokens added, embedding saved": {"rows": 2, "modules_to_save": ["embed_tokens"]},
    "tokens added, head saved": {"rows": 2, "modules_to_save": ["lm_head"]},
    "embedding": {"target_modules": ["q_proj", "embed_tokens"]},
    "head": {"target_modules": ["lm_head"]},
    "embedding and head": {"target_modules": ["lm_head", "embed_tokens"]},
    "tokens added, embedding": {"rows": 2, "target_modules": ["q_proj", "embed_tokens"]},
    "tokens added, head": {"rows": 2, "target_modules": ["q_proj", "lm_head"]},
    "tokens trained": {"trainable_token_indices": [3, 5]},
    "tokens added and trained": {"rows": 1, "trainable_token_indices": [48, 3]},
}


@pytest.mark.parametrize("case", CASES)
def test_an_adapter_on_a_tied_base_is_pefts_merge(tied, tmp_path, case):
    _, merged = tuned(tied, tmp_path / "a", **CASES[case])
    expected, adapter = merged.state_dict(), Adapter(tmp_path / "a", Checkpoint(tied))
    held = adapter.state_dict()
    held.setdefault(HEAD, held[EMBEDDING])
    assert held.keys() == expected.keys()
    for name, tensor in held.items():
        torch.testing.assert_close(tensor, expected[name], rtol=1e-6, atol=2e-7)
    assert adapter.config["tie_word_embeddings"] == merged.config.tie_word_embeddings
    assert adapter.config["vocab_size"] == len(held[EMBEDDING])
    untied = HEAD in adapter.names()
    assert untied != merged.config.tie_word_embeddings
    assert untied == any("untied" in note for note in adapter.notes)
    start = 5 * 32 + 3  # any part of a matrix is that part of the whole
    part = adapter.read(EMBEDDING, start, start + 40)
    torch.testing.assert_close(part, held[EMBEDDING].flatten()[start : start + 40])


def test_token_rows_of_untied_modules(tmp_path, make_model):
    base = make_model(tmp_path / "base")
    _, merged = tuned(
        base, tmp_path / "a", trainable_token_indices={"embed_tokens": [3, 5], "lm_head": [4]}
    )
    held = Adapter(tmp_path / "a", Checkpoint(base)).state_dict()
    for name, tensor in merged.state_dict().items():
        torch.testing.assert_close(held[name], tensor, rtol=1e-6, atol=2e-7)
    change(tmp_path / "a", trainable_token_indices={"embed_tokens": [3, 99], "lm_head": [4]})
    with pytest.raises(UserError, match="does not fit 2 tokens"):
        Adapter(tmp_path / "a", Checkpoint(base))
    change(tmp_path / "a", trainable_token_indices=None)
    with pytest.raises(UserError, match="lists no tokens"):
        Adapter(tmp_path / "a", Checkpoint(base))


def test_an_update_that_is_kept_tied_counts_once(tied, tmp_path):
    """PEFT 0.21 itself adds it twice when it merges, and once in the model that was trained."""
    from transformers import AutoModelForCausalLM

    model, _ = tuned(
        tied,
        tmp_path / "a",
        again=False,
        target_modules=["embed_tokens"],
        ensure_weight_tying=True,
    )
    adapter = Adapter(tmp_path / "a", Checkpoint(tied))
    plain = AutoModelForCausalLM.from_pretrained(tied, dtype=torch.float32)
    plain.load_state_dict({**adapter.state_dict(), HEAD: adapter.load(EMBEDDING)})
    tokens = torch.tensor([[3, 5, 9, 1]])
    with torch.no_grad():
        torch.testing.assert_close(plain(tokens).logits, model(tokens).logits, rtol=1e-4, atol=1e-5)
    assert any("added once" in note for note in adapter.notes)


def test_the_first_pattern_in_the_file_counts_as_when_peft_loads_it(tied, tmp_path):
    """In the training the other one counted: PEFT sorts the patterns when it saves."""
    name = "model.layers.0.self_attn.q_proj.weight"
    patterns = {"q_proj": 32, "layers.0.self_attn.q_proj": 8}
    _, merged = tuned(tied, tmp_path / "a", alpha_pattern=patterns)
    adapter = Adapter(tmp_path / "a", Checkpoint(tied))
    torch.testing.assert_close(adapter.load(name), merged.state_dict()[name])
    held, start = load_file(tmp_path / "a" / WEIGHTS), load_file(tied / "model.safetensors")[name]
    key = f"base_model.model.{name.removesuffix('.weight')}.lora_"
    product = held[f"{key}B.weight"].double() @ held[f"{key}A.weight"].double()
    scale = ((adapter.load(name) - start).double() * product).sum() / (product * product).sum()
    assert round(scale.item(), 4) == 8 / 4
    assert "several of alpha_pattern match" in adapter.notes[0]
    change(tmp_path / "a", alpha_pattern={}, rank_pattern={"layers.0.*": 9, "q_proj": 4})
    with pytest.raises(UserError, match="put the pattern that is meant first in rank_pattern"):
        Adapter(tmp_path / "a", Checkpoint(tied))
    change(tmp_path / "a", rank_pattern={"q_proj": 4, "layers.0.*": 9})
    Adapter(tmp_path / "a", Checkpoint(tied))


def test_a_bias_that_the_base_lacks_cannot_be_folded_by_anybody(tied, tmp_path):
    with pytest.raises(RuntimeError, match="because the base layer has no bias"):
        tuned(tied, tmp_path / "a", lora_bias=True)
    with pytest.raises(UserError, match=r"not even PEFT can fold it; train it again without lora"):
        Adapter(tmp_path / "a", Checkpoint(tied))


def test_an_adapter_in_several_files(tied, tmp_path):
    expected = adapt(tied, tmp_path / "a", target_modules=["q_proj", "v_proj"])
    held = load_file(tmp_path / "a" / WEIGHTS)
    (tmp_path / "a" / WEIGHTS).unlink()
    index = {}
    for number in (0, 1):
        name = f"adapter_model-{number + 1:05}-of-00002.safetensors"
        part = dict(sorted(held.items())[number::2])
        save_file(part, tmp_path / "a" / name)
        index |= dict.fromkeys(part, name)
    (tmp_path / "a" / f"{WEIGHTS}.index.json").write_text(json.dumps({"weight_map": index}))
    adapter = Adapter(tmp_path / "a", Checkpoint(tied))
    for name in adapter.names():
        torch.testing.assert_close(adapter.load(name), expected[name], rtol=1e-6, atol=2e-7)
    assert len(adapter.shards) == 3


def test_a_classifiers_head_has_no_place(tied, tmp_path):
    adapt(tied, tmp_path / "a")
    held = load_file(tmp_path / "a" / WEIGHTS)
    save_file(held | {"base_model.model.score.weight": torch.ones(2, 32)}, tmp_path / "a" / WEIGHTS)
    change(tmp_path / "a", task_type="SEQ_CLS")
    with pytest.raises(UserError, match=r"head of another task \(task_type 'SEQ_CLS'\)"):
        Adapter(tmp_path / "a", Checkpoint(tied))


@pytest.mark.parametrize("start", ["pissa", "olora"])
def test_an_adapter_relative_to_another_base_and_its_remedies(tied, tmp_path, start):
    """Both remedies that the message names give what PEFT loads and folds."""
    from peft import LoraConfig, PeftModel, get_peft_model
    from transformers import AutoModelForCausalLM

    def load():
        return AutoModelForCausalLM.from_pretrained(tied, dtype=torch.float32)

    settings = {"r": 4, "lora_alpha": 6, "target_modules": ["q_proj"], "task_type": "CAUSAL_LM"}
    with warnings.catch_warnings(), torch.random.fork_rng():
        warnings.simplefilter("ignore")
        torch.manual_seed(1)
        model = get_peft_model(load(), LoraConfig(**settings, init_lora_weights=start))
        model.peft_config["default"].init_lora_weights = True
        model.save_pretrained(tmp_path / "start")
        model.peft_config["default"].init_lora_weights = start
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.requires_grad:
                    parameter.add_(torch.randn_like(parameter) * 0.1)
        model.save_pretrained(tmp_path / "raw")
        model.save_pretrained(
            tmp_path / "a", path_initial_model_for_weight_conversion=tmp_path / "start"
        )
        folded = PeftModel.from_pretrained(load(), tmp_path / "raw").merge_and_unload().state_dict()
    with pytest.raises(UserError, match="path_initial_model_for_weight_conversion, or fold"):
        Adapter(tmp_path / "raw", Checkpoint(tied))
    assert json.loads((tmp_path / "a" / CONFIG).read_text())["r"] == 8
    for name, tensor in Adapter(tmp_path / "a", Checkpoint(tied)).state_dict().items():
        torch.testing.assert_close(tensor, folded[name], rtol=1e-4, atol=1e-5)


def test_a_router_that_is_saved_whole_goes_by_the_files_name(tmp_path):
    from transformers import MixtralConfig, MixtralForCausalLM

    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "vocab_size": 32}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 2, "num_local_experts": 4}
    with torch.random.fork_rng():
        MixtralForCausalLM(MixtralConfig(**sizes, **heads)).save_pretrained(tmp_path / "base")
    _, merged = tuned(tmp_path / "base", tmp_path / "a", modules_to_save=["gate"])
    merged.save_pretrained(tmp_path / "folded")
    expected = load_file(tmp_path / "folded" / "model.safetensors")
    adapter = Adapter(tmp_path / "a", Checkpoint(tmp_path / "base"))
    assert adapter.names() == sorted(expected)
    for name in adapter.names():
        torch.testing.assert_close(adapter.load(name), expected[name], rtol=1e-6, atol=2e-7)
    before = load_file(tmp_path / "base" / "model.safetensors")
    gate = "model.layers.0.block_sparse_moe.gate.weight"
    assert not torch.equal(before[gate], expected[gate])
