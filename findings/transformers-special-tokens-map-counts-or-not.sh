#!/usr/bin/env bash
# transformers 5.19.0: whether special_tokens_map.json counts depends on another file. If
# tokenizer_config.json has the key `added_tokens_decoder`, be it empty, the map is not read;
# without the key the map replaces what tokenizer_config.json says. The same two files thus give
# two end tokens. Older versions of transformers wrote the key in every tokenizer_config.json; 5.x
# leaves it out. A folder into which tools of both ages wrote, as an adapter's next to its base's, may
# change its end token when one file of it is saved again. Nothing warns.
# Seen with transformers 5.19.0, tokenizers 0.23.3 and Python 3.11, without torch.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet transformers==5.19.0 tokenizers==0.23.3 jinja2==3.1.6
cd "$folder"
HF_HUB_OFFLINE=1 venv/bin/python - <<'PY' 2>/dev/null
import json
from importlib.metadata import version
from pathlib import Path

from tokenizers import Tokenizer, models
from transformers import AutoTokenizer, PreTrainedTokenizerFast

words = Tokenizer(models.WordLevel({"a": 0, "</s>": 1, "<|end|>": 2}, unk_token="a"))
PreTrainedTokenizerFast(tokenizer_object=words, eos_token="</s>").save_pretrained("model")
Path("model/special_tokens_map.json").write_text(json.dumps({"eos_token": "<|end|>"}))
config = Path("model/tokenizer_config.json")
about = json.loads(config.read_text())
assert about["eos_token"] == "</s>"
seen = {}
for name, change in (("without the key", {}), ("with an empty one", {"added_tokens_decoder": {}})):
    rest = {key: value for key, value in about.items() if key != "added_tokens_decoder"}
    config.write_text(json.dumps(rest | change))
    tokenizer = AutoTokenizer.from_pretrained("model")
    seen[name] = tokenizer.eos_token, tokenizer.eos_token_id
print("transformers", version("transformers"), "tokenizers", version("tokenizers"))
print("tokenizer_config.json says </s>, special_tokens_map.json <|end|>; loaded:", seen)
expected = {"without the key": ("<|end|>", 2), "with an empty one": ("</s>", 1)}
assert seen == expected, "the behaviour has changed"
PY
