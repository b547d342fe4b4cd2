#!/usr/bin/env bash
# mergekit 0.1.5: an FP8 checkpoint of compressed-tensors holds codes ("weight") and a scale for each
# of their rows ("weight_scale"). mergekit merges the codes as if they were the weights and leaves
# the scales out, with exit code 0 and no word of them in its log. The written config.json keeps
# quantization_config, so that transformers takes the values for codes. It lists the scales as missing
# and goes on: the "merge" of one model by itself is another model, or gives NaN. If one model has
# the weights of another times four, both have the same codes. Their mean should be 2.5 times the
# first; the file has the codes. The scales are lost, so that the merge cannot be mended.
# Seen with mergekit 0.1.5, compressed-tensors 0.20.1, transformers 5.19.0, torch 2.13.0, Python 3.11.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet mergekit==0.1.5 compressed-tensors==0.20.1 torch==2.13.0 \
  transformers==5.19.0
cd "$folder"
export HF_HUB_OFFLINE=1
venv/bin/python - <<'PY' >log 2>&1 || { cat log; exit 1; }
import torch
from compressed_tensors.compressors import ModelCompressor
from compressed_tensors.quantization import (
    QuantizationConfig,
    QuantizationStatus,
    apply_quantization_config,
    preset_name_to_scheme,
)
from transformers import LlamaConfig, LlamaForCausalLM

sizes = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
for name, times in (("one", 1), ("larger", 4)):
    torch.manual_seed(0)
    config = LlamaConfig(**sizes, num_attention_heads=2, initializer_range=0.2)
    model = LlamaForCausalLM(config).bfloat16()
    scheme = preset_name_to_scheme("FP8_DYNAMIC", ["Linear"])
    apply_quantization_config(
        model, QuantizationConfig(config_groups={"all": scheme}, ignore=["lm_head"])
    )
    with torch.no_grad():
        for layer in model.modules():
            if hasattr(layer, "weight_scale"):
                scale = layer.weight.abs().amax(-1, keepdim=True) / 448
                layer.weight.mul_(times)
                layer.weight_scale.copy_(scale * times)
                layer.quantization_status = QuantizationStatus.FROZEN
    compressor = ModelCompressor.from_pretrained_model(model)
    compressor.compress_model(model)
    model.save_pretrained(name)
    compressor.update_config(name)
PY
merge() { # OUT MODELS
  printf 'merge_method: linear\ndtype: bfloat16\nmodels: %s\n' "$2" >recipe.yml
  venv/bin/mergekit-yaml --no-write-model-card recipe.yml "$1" >>merge.log 2>&1 || {
    cat merge.log
    exit 1
  }
}
merge same '[{model: ./one, parameters: {weight: 1}}]'
merge mean '[{model: ./one, parameters: {weight: 1}}, {model: ./larger, parameters: {weight: 1}}]'
echo "lines of mergekit's log with 'scale': $(grep -ci scale merge.log || true)"
venv/bin/python - <<'PY' 2>log || { cat log; exit 1; }
import json
from importlib.metadata import version

import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

tokens = torch.tensor([[3, 5, 9, 1, 7, 8]])
KEY = "model.layers.0.self_attn.q_proj.weight"
weights, scales, codes, logits = {}, {}, {}, {}
for name in ("one", "larger", "same", "mean"):
    tensors = load_file(f"{name}/model.safetensors")
    scales[name] = sum("weight_scale" in key for key in tensors)
    codes[name] = tensors[KEY].float()
    kept = "quantization_config" in json.load(open(f"{name}/config.json"))
    assert kept, "the behaviour has changed"
    print(f"{name}: {KEY} {tensors[KEY].dtype}, largest {codes[name].abs().max().item()},",
          f"tensors of scales {scales[name]}, quantization_config kept: {kept}")
    if f"{KEY}_scale" in tensors:
        weights[name] = codes[name] * tensors[f"{KEY}_scale"].float()
with torch.no_grad():
    for name in ("one", "same"):
        logits[name] = AutoModelForCausalLM.from_pretrained(name).eval()(tokens).logits.float()
gap = (logits["same"] - logits["one"]).abs().max().item()
true = (weights["one"] + weights["larger"]) / 2
print(*(f"{name} {version(name)}" for name in ("mergekit", "compressed-tensors", "transformers")))
print("the same model's logits after its merge, largest difference:", gap)
print("largest weight of the mean: right", true.abs().max().item(), "written", codes["mean"].abs().max().item())
assert scales["one"] == 14 and scales["same"] == scales["mean"] == 0, "the behaviour has changed"
assert not gap < 0.5, "the behaviour has changed"
assert torch.equal(codes["mean"], codes["one"]), "the behaviour has changed"
PY
