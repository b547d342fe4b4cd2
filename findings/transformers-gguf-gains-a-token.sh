#!/usr/bin/env bash
# transformers 5.19.0 with gguf 0.19.0: the tokenizer that is made from a GGUF file may have a token
# more than the file. A byte-level vocabulary goes through GPT2Tokenizer, and a SentencePiece one of
# Gemma through GemmaTokenizer; both add the special tokens of their first models where the
# vocabulary lacks them: <|endoftext|> or <pad>, <bos>, <eos>, <mask>. Their numbers lie behind the last row of the
# model's embedding, and they become pad or unknown token where the file names none.
# Nothing warns. The files below hold a tokenizer, and a configuration for a Llama and a Gemma 3.
# Seen with transformers 5.19.0, gguf 0.19.0, tokenizers 0.23.3, numpy 2.3.5, torch 2.13.0, Python 3.11.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet transformers==5.19.0 gguf==0.19.0 tokenizers==0.23.3 numpy==2.3.5 torch==2.13.0
cd "$folder"
HF_HUB_OFFLINE=1 venv/bin/python - <<'PY' 2>/dev/null
from importlib.metadata import version

import gguf
import numpy as np
from transformers import AutoTokenizer


def write(name, kind, words):
    writer = gguf.GGUFWriter(name, "llama" if kind == "gpt2" else "gemma3")
    writer.add_tokenizer_model(kind)
    writer.add_token_list(words)
    writer.add_token_types([gguf.TokenType.CONTROL] * 2 + [gguf.TokenType.NORMAL] * (len(words) - 2))
    if kind == "gpt2":
        writer.add_tokenizer_pre("gpt-2")
        writer.add_token_merges(["a b"])
    else:
        writer.add_token_scores([-float(number) for number in range(len(words))])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(1)
    writer.add_tensor("token_embd.weight", np.zeros((len(words), 32), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


seen = {}
for kind in ("gpt2", "llama"):
    words = ["<s>", "</s>", "a", "b", "c", "ab"]
    write(f"{kind}.gguf", kind, words)
    tokenizer = AutoTokenizer.from_pretrained(".", gguf_file=f"{kind}.gguf")
    added = {token: number for token, number in tokenizer.get_vocab().items() if token not in words}
    seen[kind] = len(words), len(tokenizer), sorted(added)
print("transformers", version("transformers"), "gguf", version("gguf"))
print("by kind of vocabulary: tokens in the file, tokens loaded, those that the file lacks:", seen)
expected = {
    "gpt2": (6, 7, ["<|endoftext|>"]),
    "llama": (6, 11, ["<bos>", "<eos>", "<mask>", "<pad>", "<unk>"]),
}
assert seen == expected, "the behaviour has changed"
PY
