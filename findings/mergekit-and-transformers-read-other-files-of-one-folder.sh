#!/usr/bin/env bash
# mergekit 0.1.5 with transformers 5.19.0: a second merge into the same folder leaves the first one's
# weights there if the number of files changes (another --out-shard-size, or twice the size by
# another dtype). The folder then has model.safetensors of one merge, and model.safetensors.index.json
# with its shards of the other. transformers reads the single file, mergekit the index: whichever
# merge was the later one, one of the two takes the earlier. Who evaluates the folder gets
# the scores of the old merge, or who merges it further builds on the old one. Nothing warns.
# Seen with mergekit 0.1.5, transformers 5.19.0, torch 2.13.0, safetensors 0.8.0, Python 3.11, on a CPU.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet mergekit==0.1.5 torch==2.13.0 transformers==5.19.0 safetensors==0.8.0
cd "$folder"
export HF_HUB_OFFLINE=1
venv/bin/python - <<'PY' 2>/dev/null
import torch
from transformers import LlamaConfig, LlamaForCausalLM

sizes = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
for name, value in (("first", 1.0), ("second", 2.0)):
    model = LlamaForCausalLM(LlamaConfig(**sizes, num_attention_heads=2, num_key_value_heads=2))
    with torch.no_grad():
        for weight in model.parameters():
            weight.fill_(value)
    model.save_pretrained(name)
PY
merge() { # OUT MODEL [OPTION]...
  printf 'merge_method: linear\nmodels: [{model: ./%s, parameters: {weight: 1}}]\n' "$2" >recipe.yml
  venv/bin/mergekit-yaml --no-write-model-card recipe.yml "$1" "${@:3}" >log 2>&1 || {
    cat log
    exit 1
  }
}
merge grown first
merge grown second --out-shard-size 50000
merge shrunk first --out-shard-size 50000
merge shrunk second
for name in grown shrunk; do
  echo "$name: $(cd $name && echo *.safetensors*)"
  merge "$name-again" "$name" # by mergekit, into an empty folder
done
venv/bin/python - <<'PY' 2>/dev/null
from importlib.metadata import version

from transformers import AutoModelForCausalLM


def values(name):
    return {weight.unique().item() for weight in AutoModelForCausalLM.from_pretrained(name).parameters()}


print(*(f"{name} {version(name)}" for name in ("mergekit", "transformers")))
read = {}
for name in ("grown", "shrunk"):
    read[name] = values(name), values(f"{name}-again")
    print(f"{name} (the later merge is filled with 2): transformers reads {read[name][0]},",
          f"mergekit {read[name][1]}")
assert read == {"grown": ({1.0}, {2.0}), "shrunk": ({2.0}, {1.0})}, "the behaviour has changed"
PY
