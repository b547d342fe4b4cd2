#!/usr/bin/env bash
# mergekit 0.1.5: a model given as a relative path with at most one slash ("expert", "./expert",
# "models/expert") is looked up on the hub, though the folder is there: the model card wants to know
# whether the name is a repository. Offline (HF_HUB_OFFLINE=1) `mergekit-yaml` writes the whole
# merge, then ends with a traceback and exit code 1, without README.md and without the tokenizer
# that it copies afterwards. The same folder as an absolute path works, and so does
# --no-write-model-card.
# Seen with torch 2.13.0, transformers 5.24.0, huggingface-hub 2.4.0 and Python 3.11, on a CPU.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet mergekit==0.1.5 torch==2.13.0 transformers==5.24.0 huggingface-hub==2.4.0
cd "$folder"
export HF_HUB_OFFLINE=1
venv/bin/python - <<'PY'
from transformers import LlamaConfig, LlamaForCausalLM

sizes = {"vocab_size": 64, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1}
heads = {"num_attention_heads": 2, "num_key_value_heads": 2}
LlamaForCausalLM(LlamaConfig(**sizes, **heads)).save_pretrained("models/expert")
PY
merge() { # OUT MODEL [OPTION]; prints the exit code
  printf 'merge_method: linear\nmodels: [{model: "%s", parameters: {weight: 1}}]\n' "$2" >"$1.yml"
  local code=0
  venv/bin/mergekit-yaml ${3:-} "$1.yml" "$1" >"$1.log" 2>&1 || code=$?
  echo "$code"
}
relative=$(merge relative models/expert)
absolute=$(merge absolute "$folder/models/expert")
cardless=$(merge cardless models/expert --no-write-model-card)
venv/bin/python -c "from importlib.metadata import version; print('mergekit', version('mergekit'))"
echo "exit codes: relative $relative, absolute $absolute, relative without a card $cardless"
echo "last line: $(tail -n 1 relative.log)"
ls relative absolute
if ! [ "$relative" = 1 ] || ! [ "$absolute" = 0 ] || ! [ "$cardless" = 0 ] ||
  ! grep -q OfflineModeIsEnabled relative.log || ! [ -s relative/model.safetensors ] ||
  [ -e relative/README.md ] || ! [ -s absolute/README.md ]; then
  echo "the behaviour has changed" >&2
  exit 1
fi
