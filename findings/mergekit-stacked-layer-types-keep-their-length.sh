#!/usr/bin/env bash
# mergekit 0.1.5 with transformers 5.24.0: a stack of layers (merge_method: passthrough) of a model
# whose config.json lists layer_types ends in an error after the weights were written. mergekit sets
# num_hidden_layers to the new number and leaves layer_types as long as the first model's, and
# transformers refuses to save a configuration in which the two disagree. The folder then holds
# model.safetensors alone: no config.json, no tokenizer. transformers 5 writes layer_types for every
# Qwen2 and Qwen3, with full attention in all layers too. Without the list (Llama) the same recipe works.
# Seen with mergekit 0.1.5, transformers 5.24.0, torch 2.13.0, tokenizers 0.23.3, Python 3.11.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet mergekit==0.1.5 torch==2.13.0 transformers==5.24.0 tokenizers==0.23.3
cd "$folder"
HF_HUB_OFFLINE=1 venv/bin/python - <<'PY' 2>/dev/null
import json
import os
import subprocess
from importlib.metadata import version

from tokenizers import Tokenizer, models
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
)

SIZES = dict(vocab_size=8, hidden_size=16, intermediate_size=32, num_hidden_layers=2,
             num_attention_heads=2, num_key_value_heads=2)
RECIPE = """\
merge_method: passthrough
dtype: float32
slices:
- sources: [{{model: ./{0}, layer_range: [0, 2]}}]
- sources: [{{model: ./{0}, layer_range: [1, 2]}}]
"""
seen = {}
words = Tokenizer(models.WordLevel({f"w{n}": n for n in range(8)}, unk_token="w0"))
for name, model in (("llama", LlamaForCausalLM(LlamaConfig(**SIZES))),
                    ("qwen2", Qwen2ForCausalLM(Qwen2Config(**SIZES)))):
    model.save_pretrained(name)
    PreTrainedTokenizerFast(tokenizer_object=words).save_pretrained(name)
    with open(f"{name}.yml", "w") as file:
        file.write(RECIPE.format(name))
    done = subprocess.run(["venv/bin/mergekit-yaml", f"{name}.yml", f"{name}-out"],
                          capture_output=True, text=True)
    last = done.stderr.strip().splitlines()[-1].strip() if done.returncode else ""
    files = sorted(os.listdir(f"{name}-out"))
    layers = json.load(open(f"{name}-out/config.json"))["num_hidden_layers"] if done.returncode == 0 else None
    seen[name] = done.returncode, layers, "model.safetensors" in files, "config.json" in files, last
print("mergekit", version("mergekit"), "transformers", version("transformers"))
for name, found in seen.items():
    print(f"{name}: exit code, layers, weights there, config.json there, last line:", found)
assert seen["llama"] == (0, 3, True, True, "")
assert seen["qwen2"][:4] == (1, None, True, False), "the behaviour has changed"
assert "num_hidden_layers" in seen["qwen2"][4] and "layer_types" in seen["qwen2"][4]
PY
