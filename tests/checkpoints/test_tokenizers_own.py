"""Tokenizers whose class ignores tokenizer.json, against the file and a tokenisation by hand."""

from __future__ import annotations

import json

import pytest

from checkpoints.loading import load_tokenizer
from checkpoints.tokenizers_own import folder_of
from common.errors import UserError

TEXT = "  The t 12ü\n\n the 猫 and  ﬁne <s>x "
BYTES = [f"<0x{byte:02X}>" for byte in range(256)]


def byte_level():
    """A byte-level BPE, each digit a token, with one merge."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    letters = ["<s>", "</s>", *sorted(pre_tokenizers.ByteLevel.alphabet()), "Ġt"]
    tokenizer = Tokenizer(models.BPE({c: n for n, c in enumerate(letters)}, [("Ġ", "t")]))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(s, special=True) for s in ("<s>", "</s>")])
    return tokenizer


def byte_fallback():
    """As published for Llama 2 and Mistral 0.1: ▁ in front, bytes for what is unknown."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers

    letters = [
        "<unk>",
        "<s>",
        "</s>",
        *BYTES,
        *"▁abcdefghijklmnopqrstuvwxyzT12",
        "▁t",
        "he",
        "▁the",
    ]
    tokenizer = Tokenizer(
        models.BPE(
            {c: n for n, c in enumerate(letters)},
            [("▁", "t"), ("h", "e"), ("▁t", "he")],
            unk_token="<unk>",
            fuse_unk=True,
            byte_fallback=True,
        )
    )
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    tokenizer.add_special_tokens(
        [AddedToken(s, special=True, normalized=False) for s in ("<unk>", "<s>", "</s>")]
    )
    return tokenizer


def folder_with(folder, own, name: str, kind: str):
    own.save(str(folder / "tokenizer.json"))
    about = {"tokenizer_class": name, "bos_token": "<s>", "eos_token": "</s>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(about))
    (folder / "config.json").write_text(json.dumps({"model_type": kind}))
    return folder


@pytest.mark.parametrize("kind", ["llama", "mistral", "qwen2"])
@pytest.mark.parametrize(
    "name",
    [
        *("LlamaTokenizer", "LlamaTokenizerFast", "GemmaTokenizer", "Qwen2Tokenizer"),
        *("GPT2Tokenizer", "T5TokenizerFast", "CodeLlamaTokenizer", "PreTrainedTokenizerFast"),
    ],
)
@pytest.mark.parametrize("make", [byte_level, byte_fallback])
def test_the_file_decides_whatever_class_is_named(tmp_path, make, name, kind):
    own = make()
    tokenizer = load_tokenizer(folder_with(tmp_path, own, name, kind))
    ids = own.encode(TEXT, add_special_tokens=False).ids
    assert tokenizer.encode(TEXT, add_special_tokens=False) == ids
    assert tokenizer.decode(ids) == own.decode(ids, skip_special_tokens=False)
    assert (tokenizer.bos_token, tokenizer.eos_token) == ("<s>", "</s>")
    with folder_of(tokenizer) as folder:  # what vLLM is given
        again = load_tokenizer(folder)
        assert again.encode(TEXT, add_special_tokens=False) == ids


def test_a_llama_2_file_reads_as_it_always_did(tmp_path):
    """Counted by hand: ▁ in front, blanks kept, bytes of an unknown letter."""
    folder = folder_with(tmp_path, byte_fallback(), "LlamaTokenizer", "llama")
    tokenizer = load_tokenizer(folder)
    found = tokenizer.convert_ids_to_tokens(tokenizer.encode(" the ü", add_special_tokens=False))
    assert found == ["▁", "▁the", "▁", "<0xC3>", "<0xBC>"]


def test_it_is_said_once_and_only_where_something_changes(tmp_path, capsys):
    for name, said in (("LlamaTokenizer", 1), ("PreTrainedTokenizerFast", 0)):
        folder = tmp_path / name
        folder.mkdir()
        folder_with(folder, byte_level(), name, "llama")
        for _ in range(2):
            load_tokenizer(folder)
        assert capsys.readouterr().err.count("its own pipeline is used") == said


def test_a_damaged_file_is_refused(tmp_path):
    folder = folder_with(tmp_path, byte_level(), "LlamaTokenizer", "llama")
    (folder / "tokenizer.json").write_text("{}")
    with pytest.raises(UserError, match="no tokenizer that transformers can read"):
        load_tokenizer(folder)
