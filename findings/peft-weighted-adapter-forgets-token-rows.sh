#!/usr/bin/env bash
# PEFT 0.21.2: add_weighted_adapter combines LoRA adapters and leaves out the token rows that they
# trained with `trainable_token_indices` (the way to teach a chat model new special tokens). The new
# adapter has the setting, and the rows of the base. With the one weight 1.0, which asks for a copy
# of the adapter, it answers otherwise on texts with those tokens. Saved, it holds the base's rows
# under the name of trained ones. Nothing warns, while for `modules_to_save` and `target_parameters`
# it is refused with an error. All three ways that are run here (linear, svd, cat) do it. Who mixes
# adapters thus loses what their chat markers mean.
# Seen with peft 0.21.2, transformers 5.19.0, torch 2.13.0 and Python 3.11, on a CPU.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet peft==0.21.2 transformers==5.19.0 torch==2.13.0
cd "$folder"
HF_HUB_OFFLINE=1 venv/bin/python - <<'PY' 2>log || { cat log; exit 1; }
import copy
import warnings
from importlib.metadata import version

import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file
from transformers import LlamaConfig, LlamaForCausalLM

ROWS = [3, 5]
torch.manual_seed(0)
sizes = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
base = LlamaForCausalLM(LlamaConfig(**sizes, num_attention_heads=2, initializer_range=0.2)).eval()
before = base.model.embed_tokens.weight[ROWS].detach().clone()
texts = {"with the tokens": [[9, 3, 1, 5]], "without them": [[9, 2, 1, 8]]}


@torch.no_grad()
def answers(model):
    return {name: model.eval()(torch.tensor(ids)).logits for name, ids in texts.items()}


def gaps(rows):
    settings = {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "up_proj"]}
    config = LoraConfig(**settings, trainable_token_indices=rows, task_type="CAUSAL_LM")
    model = get_peft_model(copy.deepcopy(base), config)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "trainable_tokens_delta" in name:
                weight.copy_(-weight)
            elif weight.requires_grad:
                weight.copy_(0.1 * torch.randn_like(weight))
    trained = answers(model)
    found = {}
    for way in ("linear", "svd", "cat"):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            model.add_weighted_adapter(["default"], [1.0], way, combination_type=way)
        model.set_adapter(way)
        new = answers(model)
        found[way] = {name: (new[name] - trained[name]).abs().max().item() for name in texts}
    model.save_pretrained(f"saved-{rows is None}")
    return found, model.peft_config["linear"].trainable_token_indices


found, setting = gaps(ROWS)
plain, _ = gaps(None)
stored = load_file("saved-False/linear/adapter_model.safetensors")
rows = next(value for name, value in stored.items() if "trainable_tokens_delta" in name)
print(*(f"{name} {version(name)}" for name in ("peft", "transformers", "torch")))
print("a copy by add_weighted_adapter against the adapter, largest difference of the logits")
for way, gap in found.items():
    print(f"  {way}: {gap}; LoRA alone: {plain[way]}")
same = torch.equal(rows, before)
print("the copy's trainable_token_indices:", setting, "its saved rows are the base's:", same)
assert setting == ROWS and same, "the behaviour has changed"
for way, gap in found.items():
    assert gap["without them"] < 1e-4 and max(plain[way].values()) < 1e-4, "the behaviour has changed"
    assert gap["with the tokens"] > 0.1, "the behaviour has changed"
PY
