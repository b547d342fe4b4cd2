#!/usr/bin/env bash
# transformers 5.19.0: a named chat template in additional_chat_templates/ hides the default one that
# tokenizer_config.json holds. The folder of files is read in its stead, and with no
# chat_template.jinja there is no default any more: apply_chat_template raises ValueError. The
# other way round nothing is lost: a tokenizer that is saved again has both as files. A default
# inside tokenizer_config.json is how transformers 4 wrote it, and a named template as a file is how
# 5 does, so that adding a file to an older model's folder takes its chat away.
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

words = Tokenizer(models.WordLevel({"a": 0, "</s>": 1}, unk_token="a"))
PreTrainedTokenizerFast(tokenizer_object=words, eos_token="</s>").save_pretrained("model")
config = Path("model/tokenizer_config.json")
config.write_text(json.dumps(json.loads(config.read_text()) | {"chat_template": "default"}))
chat = [{"role": "user", "content": "a"}]


def spoken():
    tokenizer = AutoTokenizer.from_pretrained("model")
    try:
        return tokenizer.chat_template, tokenizer.apply_chat_template(chat, tokenize=False)
    except ValueError as error:
        return tokenizer.chat_template, type(error).__name__


before = spoken()
Path("model/additional_chat_templates").mkdir()
Path("model/additional_chat_templates/rag.jinja").write_text("with documents")
after = spoken()
print("transformers", version("transformers"))
print("the default in tokenizer_config.json:", before)
print("with a named template as a file:", after)
assert before == ("default", "default"), "the behaviour has changed"
assert after == ({"rag": "with documents"}, "ValueError"), "the behaviour has changed"
PY
