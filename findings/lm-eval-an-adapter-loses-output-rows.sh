#!/usr/bin/env bash
# lm_eval 0.4.13: with `peft=ADAPTER` the base's embedding and output head are cut to the number of
# the tokenizer's tokens before the adapter is put on. Many models have more rows than tokens (Qwen
# 2.5: 151,936 and 151,665). The softmax then runs over fewer entries, and every log-likelihood is
# higher than that of the same adapter merged into the base, which keeps all rows. How much depends
# on the rows without a token, which are zero here. The gain is per token: longer choices gain more,
# and another answer may be chosen. Who compares adapters with merged models compares unlike
# numbers. Only a line of level INFO says it ("Resizing model embedding layer").
# Seen with lm_eval 0.4.13, peft 0.21.2, transformers 5.19.0, torch 2.13.0, Python 3.11, on a CPU.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet lm_eval==0.4.13 peft==0.21.2 transformers==5.19.0 \
  torch==2.13.0 accelerate==1.15.0
cd "$folder"
HF_HUB_OFFLINE=1 venv/bin/python - <<'PY' 2>log || { cat log; exit 1; }
from importlib.metadata import version

import torch
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from peft import LoraConfig, get_peft_model
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

ROWS, TOKENS = 64, 48
words = Tokenizer(models.WordLevel({f"w{n}": n for n in range(TOKENS)}, unk_token="w0"))
words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, eos_token="w1")
torch.manual_seed(0)
sizes = {"vocab_size": ROWS, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1}
base = LlamaForCausalLM(LlamaConfig(**sizes, num_attention_heads=2, initializer_range=0.2))
with torch.no_grad():
    base.lm_head.weight[TOKENS:] = 0  # rows without a token, as they were never trained
base.save_pretrained("base")
tokenizer.save_pretrained("base")
tuned = get_peft_model(base, LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM"))
with torch.no_grad():
    for name, weight in tuned.named_parameters():
        if "lora_B" in name:
            weight.copy_(0.2 * torch.randn_like(weight))
tuned.save_pretrained("adapter")
tuned.merge_and_unload().save_pretrained("merged")
tokenizer.save_pretrained("merged")
choices = [f" w{n}" for n in range(2, TOKENS)] + [f" w{n} w{n + 1}" for n in range(2, TOKENS - 1)]


def scores(**folders):
    model = HFLM(device="cpu", batch_size=1, **folders)
    asked = [Instance("loglikelihood", {}, ("w3 w4", choice), 0) for choice in choices]
    return model.model.get_output_embeddings().weight.shape[0], torch.tensor(
        [score for score, _ in model.loglikelihood(asked, disable_tqdm=True)]
    )


rows, merged = scores(pretrained="merged")
cut, adapter = scores(pretrained="base", peft="adapter")
length = torch.tensor([len(choice.split()) for choice in choices])
gain = adapter - merged
print(*(f"{name} {version(name)}" for name in ("lm_eval", "peft", "transformers", "torch")))
print(f"rows of the head: merged {rows}, adapter {cut}")
print("mean gain of the adapter: choices of one token", gain[length == 1].mean().item(),
      "of two", gain[length == 2].mean().item())
pairs = [
    (one, two)
    for one in range(len(choices))
    for two in range(len(choices))
    if length[one] == 1 and length[two] == 2
    if merged[one] > merged[two] and adapter[one] < adapter[two]
]
one, two = pairs[0]
print(f"choose between '{choices[one]}' and '{choices[two]}': merged", merged[[one, two]].tolist(),
      "adapter", adapter[[one, two]].tolist(), f"(and {len(pairs) - 1} other pairs)")
assert (rows, cut) == (ROWS, TOKENS), "the behaviour has changed"
assert gain.min() > 0.05 and pairs, "the behaviour has changed"
PY
