#!/usr/bin/env bash
# mergekit 0.1.5: `arcee_fusion` and `ramplus_tl` with `dtype: bfloat16` write float32 weights, so
# that the merged model has twice the size of its parents; `linear` with the same key writes
# bfloat16. The two multiply with a mask or a factor that they make in float32, which promotes the
# result. `dtype` is the type in which the parents are read, and only `out_dtype` casts the result.
# Seen with torch 2.13.0, transformers 5.24.0 and Python 3.11, on a CPU.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet mergekit==0.1.5 torch==2.13.0 transformers==5.24.0
cd "$folder"
export HF_HUB_OFFLINE=1
venv/bin/python - <<'PY'
import torch
from transformers import LlamaConfig, LlamaForCausalLM

for seed, name in enumerate(("base", "one", "two")):
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=64,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
    )
    LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(name)
PY
merge() { # NAME METHOD MODELS [LINE]
  printf 'merge_method: %s\ndtype: bfloat16\nmodels: %s\n%s\n' "$2" "$3" "${4:-}" >"$1.yml"
  if [ "$2" != linear ]; then echo 'base_model: base' >>"$1.yml"; fi
  venv/bin/mergekit-yaml --no-write-model-card "$1.yml" "$1" >log 2>&1 || {
    cat log
    exit 1
  }
}
one='[{model: one}]'
two='[{model: one}, {model: two}]'
merge linear linear '[{model: one, parameters: {weight: 1}}, {model: two, parameters: {weight: 1}}]'
merge arcee_fusion arcee_fusion "$one"
merge ramplus_tl ramplus_tl "$two"
merge arcee_fusion_cast arcee_fusion "$one" 'out_dtype: bfloat16'
merge ramplus_tl_cast ramplus_tl "$two" 'out_dtype: bfloat16'
venv/bin/python - <<'PY'
from importlib.metadata import version
from pathlib import Path

from safetensors import safe_open

names = ("base", "linear", "arcee_fusion", "ramplus_tl", "arcee_fusion_cast", "ramplus_tl_cast")
found = {name: set() for name in names}
for name, types in found.items():
    for path in Path(name).glob("*.safetensors"):
        with safe_open(path, "pt") as weights:
            types |= {weights.get_slice(key).get_dtype() for key in weights.keys()}
print("mergekit", version("mergekit"), found)
wide = {name for name, types in found.items() if "F32" in types}
assert wide == {"arcee_fusion", "ramplus_tl"}, "the behaviour has changed"
assert all(found[name] == {"BF16"} for name in set(names) - wide), "the behaviour has changed"
PY
