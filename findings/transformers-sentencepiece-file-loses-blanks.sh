#!/usr/bin/env bash
# transformers 5.19.0: a model folder with a SentencePiece file (tokenizer.model) and no
# tokenizer.json is read otherwise than sentencepiece reads the same file. With Llama as the model
# type, one of the blanks at the beginning of a text is lost. With Mistral, or without a class, the
# blank that the file asks to put in front of every text (add_dummy_prefix) is missing, so that
# every text begins with another token. With Qwen 2 all blanks are lost. The file below is made by
# sentencepiece's own trainer with the settings of Llama 2's. Nothing warns.
# Seen with transformers 5.19.0, sentencepiece 0.2.1, tokenizers 0.23.3, protobuf 7.36.2, Python 3.11.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet transformers==5.19.0 sentencepiece==0.2.1 \
  tokenizers==0.23.3 protobuf==7.36.2
cd "$folder"
HF_HUB_OFFLINE=1 venv/bin/python - <<'PY' 2>log || { cat log; exit 1; }
import io
import json
from importlib.metadata import version
from pathlib import Path

import sentencepiece
from transformers import AutoTokenizer

made = io.BytesIO()
sentencepiece.SentencePieceTrainer.train(
    sentence_iterator=iter(["the cat and the other cat", "another cat is in the inner hat"] * 50),
    model_writer=made,
    model_type="bpe",
    vocab_size=300,
    byte_fallback=True,
    normalization_rule_name="identity",
    remove_extra_whitespaces=False,
    minloglevel=2,
)
own = sentencepiece.SentencePieceProcessor(model_proto=made.getvalue())
print(*(f"{name} {version(name)}" for name in ("transformers", "sentencepiece", "tokenizers")))
right = {}
texts = ("the cat", " the cat", "   the cat")
print("sentencepiece:", [own.encode(text, out_type=str) for text in texts])
for kind, named in (("llama", True), ("mistral", True), ("llama", False), ("qwen2", True)):
    folder = Path(f"{kind}-{named}")
    folder.mkdir()
    (folder / "tokenizer.model").write_bytes(made.getvalue())
    (folder / "config.json").write_text(json.dumps({"model_type": kind}))
    if named:
        about = json.dumps({"tokenizer_class": "LlamaTokenizer"})
        (folder / "tokenizer_config.json").write_text(about)
    read = AutoTokenizer.from_pretrained(folder)
    ids = [read.encode(text, add_special_tokens=False) for text in texts]
    print(f"{kind}, class named: {named}:", [read.convert_ids_to_tokens(i) for i in ids])
    right[kind, named] = [i == own.encode(text) for i, text in zip(ids, texts)]
assert right["llama", True] == [True, False, False], "the behaviour has changed"
assert right["mistral", True] == [False] * 3, "the behaviour has changed"
assert right["llama", False] == [False] * 3, "the behaviour has changed"
assert right["qwen2", True] == [False] * 3, "the behaviour has changed"
PY
