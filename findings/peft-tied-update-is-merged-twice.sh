#!/usr/bin/env bash
# PEFT 0.21.2: LoRA on the embedding of a tied model with `ensure_weight_tying=True` trains one
# update, which the embedding and the output head share. merge_and_unload adds it twice: the two
# adapters are merged one after the other into the one matrix that both layers hold. The merged
# model computes with W + 2 s B A where the trained one computed with W + s B A. It is the same for
# the adapter saved and loaded again, and nothing warns. `modules_to_save` with the same option
# is merged rightly.
# Seen with peft 0.21.2, transformers 5.19.0, torch 2.13.0 and Python 3.11, on a CPU.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet peft==0.21.2 transformers==5.19.0 torch==2.13.0
cd "$folder"
HF_HUB_OFFLINE=1 venv/bin/python - <<'PY' 2>log || { cat log; exit 1; }
import copy
from importlib.metadata import version

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM

torch.manual_seed(0)
sizes = {"vocab_size": 64, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1}
config = LlamaConfig(
    **sizes, num_attention_heads=2, num_key_value_heads=2, tie_word_embeddings=True
)
base = LlamaForCausalLM(config).eval()
tokens = torch.tensor([[3, 5, 9, 1]])


def train(**settings):
    torch.manual_seed(1)
    lora = LoraConfig(r=4, lora_alpha=8, task_type="CAUSAL_LM", ensure_weight_tying=True, **settings)
    tuned = get_peft_model(copy.deepcopy(base), lora).eval()
    with torch.no_grad():
        for parameter in tuned.parameters():
            if parameter.requires_grad:
                parameter.copy_(0.3 * torch.randn_like(parameter))
    return tuned


@torch.no_grad()
def gap(tuned):
    trained = tuned(tokens).logits
    return (tuned.merge_and_unload()(tokens).logits - trained).abs().max().item()


tuned = train(target_modules=["embed_tokens"])
tuned.save_pretrained("adapter")
parts = dict(tuned.named_parameters())
a, b = (next(p for n, p in parts.items() if f"lora_embedding_{half}" in n) for half in "AB")
update = 2 * (b @ a).T.detach()
before = base.model.embed_tokens.weight.detach()
again = PeftModel.from_pretrained(copy.deepcopy(base), "adapter").eval()
gaps = {"fresh": gap(tuned), "loaded": gap(again)}
gaps["saved whole"] = gap(train(target_modules=["q_proj"], modules_to_save=["embed_tokens"]))
merged = tuned.base_model.model.model.embed_tokens.weight.detach()
times = ((merged - before) * update).sum() / (update * update).sum()
print(*(f"{name} {version(name)}" for name in ("peft", "transformers", "torch")))
print("logits, merged against trained, largest difference:", gaps)
print(f"the merged embedding is the base's plus {times:.4f} times the update")
assert abs(times - 2) < 1e-4 and min(gaps["fresh"], gaps["loaded"]) > 0.1, "the behaviour has changed"
assert gaps["saved whole"] < 1e-4, "the behaviour has changed"
PY
