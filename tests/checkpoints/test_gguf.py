"""GGUF files that are written here from tiny random models, and what becomes of them."""

from __future__ import annotations

import itertools
import math
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from checkpoints import cli
from checkpoints.gguf_file import import_gguf
from checkpoints.loading import load_causal, load_tokenizer
from common.errors import UserError

_WORDS = ["<unk>", "<s>", "</s>"]
_SIZES = {
    "vocab_size": 0,  # the vocabulary's
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 128,
}
_WINDOW = {"sliding_window": 4}
_SOFTCAPS = {"attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0}
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("LlamaForCausalLM", {}),
    "qwen2": ("Qwen2ForCausalLM", {}),
    "qwen3": ("Qwen3ForCausalLM", {"head_dim": 128}),  # transformers knows no other from a file
    "gemma2": ("Gemma2ForCausalLM", {**_WINDOW, **_SOFTCAPS, "query_pre_attn_scalar": 256}),
    # Every sixth layer attends to the whole text, which no key of the file says.
    "gemma3": (
        "Gemma3ForCausalLM",
        {**_WINDOW, "query_pre_attn_scalar": 256, "num_hidden_layers": 6},
    ),
}
# How llama.cpp calls the tensors of a layer.
_LAYER = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
}
_NORMS = {"llama": {"post_attention_layernorm": "ffn_norm"}}
_NORMS["qwen2"] = _NORMS["qwen3"] = _NORMS["llama"]
_NORMS["gemma2"] = _NORMS["gemma3"] = {
    "post_attention_layernorm": "post_attention_norm",
    "pre_feedforward_layernorm": "ffn_norm",
    "post_feedforward_layernorm": "post_ffw_norm",
}
_OUTSIDE = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}


def _named(family: str, name: str) -> str:
    stem, _, end = name.rpartition(".")
    if stem in _OUTSIDE:
        return f"{_OUTSIDE[stem]}.{end}"
    _, _, layer, rest = stem.split(".", 3)
    return f"blk.{layer}.{(_LAYER | _NORMS[family])[rest]}.{end}"


def _as_llama_cpp(family: str, name: str, values: np.ndarray) -> np.ndarray:
    """Rotary pairs side by side for Llama, and norms with their 1 for Gemma."""
    if family == "llama" and name.endswith(("q_proj.weight", "k_proj.weight")):
        half, width = _SIZES["head_dim"] // 2, values.shape[1]
        return values.reshape(-1, 2, half, width).swapaxes(1, 2).reshape(values.shape)
    if family.startswith("gemma") and "norm" in name:
        return values + 1
    return values


def _model(family: str, vocabulary: int) -> Any:
    import transformers

    name, more = FAMILIES[family]
    kind = getattr(transformers, name)
    sizes = {**_SIZES, **more, "vocab_size": vocabulary}
    torch.manual_seed(7)
    model = kind(kind.config_class(**sizes, tie_word_embeddings=family.startswith("gemma")))
    for name, values in model.named_parameters():
        # Norms are 0 or 1 at first, which would hide a norm that is left out.
        values.data = torch.randn_like(values) * (0.3 if "norm" in name else 0.1) + (
            1.0 if "norm" in name and not family.startswith("gemma") else 0.0
        )
    return model.eval()


def _sentencepiece() -> tuple[list[str], list[float]]:
    pieces = [f"<0x{byte:02X}>" for byte in range(256)]
    pieces += ["▁", "a", "b", "c", "1", "2", "ab", "▁a", "▁ab", "日", "本", "日本"]
    words = _WORDS + pieces
    scores = [-float(number) for number in range(len(words))]
    # Gemma's runs of blanks have a low score and are stored as blanks.
    return [*words, "  ", "   "], [*scores, -1000.0, -1000.0]


def _byte_level() -> tuple[list[str], list[str]]:
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    merges = ["Ġ Ġ", "a b", "Ġ ab", "1 2"]
    letters = list(bytes_to_unicode().values())
    return [*_WORDS, *letters, *(merge.replace(" ", "") for merge in merges)], merges


def _tokens(writer: Any, kind: str, said: dict[str, Any]) -> int:
    words, more = _sentencepiece() if kind == "llama" else _byte_level()
    writer.add_tokenizer_model(kind)
    writer.add_token_list(words)
    kinds = [6 if word.startswith("<0x") else 1 for word in words[3:]]
    writer.add_token_types(
        [2, 3, 3] + [4 if word.isspace() else k for word, k in zip(words[3:], kinds, strict=True)]
    )
    if kind == "llama":
        writer.add_token_scores(more)
        writer.add_add_space_prefix(said.get("space", False))
    else:
        writer.add_token_merges(more)
        writer.add_tokenizer_pre(said.get("pre", "gpt-2"))
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    if "bos" in said:
        writer.add_add_bos_token(said["bos"])
    return len(words)


def write(path: Path, family: str = "gemma3", kind: str = "llama", **said: Any) -> SimpleNamespace:
    """Write a tiny random model as llama.cpp's converter would; return model and path.

    Args:
        path: The folder.
        family: A key of `FAMILIES`.
        kind: ``llama`` for SentencePiece, ``gpt2`` for a byte-level vocabulary.
        said: What differs: `bos`, `pre`, `space` of the tokenizer, `architecture`, `keys` and
            `tensors` that are added, `without` a tensor, `quantised` by Q8_0.
    """
    import gguf

    path.mkdir(parents=True, exist_ok=True)
    file = path / f"{family}.gguf"
    writer = gguf.GGUFWriter(file, said.get("architecture", family))
    model = _model(family, _tokens(writer, kind, said))
    config = model.config
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    base = config.rope_parameters
    writer.add_rope_freq_base(base.get("full_attention", base)["rope_theta"])
    if family.startswith(("gemma", "qwen3")):
        writer.add_key_length(config.head_dim)
        writer.add_value_length(config.head_dim)
    if family.startswith("gemma"):
        writer.add_sliding_window(config.sliding_window)
    for key, value in said.get("keys", {}).items():
        writer.add_float32(key, value)
    tensors = {name: value.numpy() for name, value in model.state_dict().items()}
    if config.tie_word_embeddings:
        del tensors["lm_head.weight"]
    for name, values in tensors.items():
        if name != said.get("without"):
            stored = _as_llama_cpp(family, name, values).astype(np.float32)
            called = _named(family, name)
            if called in said.get("quantised", ()):
                whole = gguf.GGMLQuantizationType.Q8_0
                writer.add_tensor(called, gguf.quantize(stored, whole), raw_dtype=whole)
            else:
                writer.add_tensor(called, stored)
    for name, values in said.get("tensors", {}).items():
        writer.add_tensor(name, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return SimpleNamespace(model=model, path=file)


def _logits(model: Any, ids: list[int]) -> torch.Tensor:
    with torch.no_grad():
        return model(torch.tensor([ids])).logits[0].double()


@pytest.mark.parametrize("family", FAMILIES)
def test_the_imported_model_is_the_one_that_was_written(family: str, tmp_path: Path) -> None:
    made = write(tmp_path, family, "llama" if family.startswith("gemma") else "gpt2")
    import_gguf(made.path, tmp_path / "out", dtype="float32")
    ids = [1, 30, 41, 52, 63, 74, 85, 96, 107]  # longer than the window
    found, expected = _logits(load_causal(tmp_path / "out"), ids), _logits(made.model, ids)
    torch.testing.assert_close(found, expected, rtol=2e-5, atol=2e-5)


def test_eight_bits_are_scale_times_integer_and_bfloat16_rounds_them(tmp_path: Path) -> None:
    name = "blk.0.ffn_up.weight"
    made = write(tmp_path, quantised=(name,))
    import_gguf(made.path, tmp_path / "out")
    before = made.model.state_dict()["model.layers.0.mlp.up_proj.weight"].double().numpy()
    blocks = before.reshape(-1, 32)
    scale = np.float64(np.float16(np.abs(blocks).max(axis=1, keepdims=True) / 127))
    # The integer is chosen with the scale before it was rounded to 16 bits.
    integers = np.round(blocks / (np.abs(blocks).max(axis=1, keepdims=True) / 127))
    expected = torch.tensor(scale * integers).float().bfloat16().reshape(before.shape)
    found = load_causal(tmp_path / "out", dtype=torch.bfloat16).state_dict()
    assert torch.equal(found["model.layers.0.mlp.up_proj.weight"], expected)


@pytest.mark.parametrize(
    ("kind", "said", "begins"),
    [
        ("llama", {"bos": True}, True),
        ("llama", {}, True),  # llama.cpp reads silence so
        ("llama", {"bos": False}, False),
        ("gpt2", {"bos": True}, True),
        ("gpt2", {}, False),
        ("gpt2", {"pre": "llama-bpe"}, True),
    ],
)
def test_a_text_begins_as_the_file_says(
    kind: str, said: dict[str, Any], begins: bool, tmp_path: Path
) -> None:
    made = write(tmp_path, "gemma3" if kind == "llama" else "llama", kind, **said)
    import_gguf(made.path, tmp_path / "out")
    tokenizer = load_tokenizer(tmp_path / "out")
    assert (tokenizer("ab")["input_ids"][0] == tokenizer.bos_token_id) == begins
    assert tokenizer.decode(tokenizer("ab 12")["input_ids"], skip_special_tokens=True) == "ab 12"


@pytest.mark.parametrize(
    ("pre", "expected"),
    # GPT-2's pattern keeps a last blank for the word behind it; digits are cut off before it.
    [("smollm", ["ab", "ĠĠ", "1", "2"]), ("gpt-2", ["ab", "Ġ", "Ġ", "12"])],
)
def test_text_is_split_as_the_vocabulary_was_learned(
    pre: str, expected: list[str], tmp_path: Path
) -> None:
    made = write(tmp_path, "llama", "gpt2", pre=pre)
    import_gguf(made.path, tmp_path / "out")
    tokenizer = load_tokenizer(tmp_path / "out")
    assert tokenizer.tokenize("ab  12") == expected


def _merged(text: str, scores: dict[str, float]) -> list[str]:
    """SentencePiece's own way: merge the neighbours that make the piece of the best score.

    Before that, what the vocabulary's user defined is cut out: here, runs of two or three blanks.
    """
    parts = re.findall(" {3}|  |.", text, re.DOTALL)
    parts = [part.replace(" ", "▁") for part in parts]
    scores = {word: score for word, score in scores.items() if not word.isspace()}
    scores |= {"▁▁": -math.inf, "▁▁▁": -math.inf}
    while True:
        pairs = [
            (scores.get(a + b), -n)
            for n, (a, b) in enumerate(itertools.pairwise(parts))
            if "▁▁" not in a + b
        ]
        best = max(((score, n) for score, n in pairs if score is not None), default=None)
        if best is None:
            break
        place = -best[1]
        parts[place : place + 2] = ["".join(parts[place : place + 2])]
    return [
        piece
        for part in parts
        for piece in ([part] if part in scores else [f"<0x{b:02X}>" for b in part.encode()])
    ]


@pytest.mark.parametrize("space", [False, True])
def test_pieces_are_merged_by_their_scores(space: bool, tmp_path: Path) -> None:
    made = write(tmp_path, space=space)
    import_gguf(made.path, tmp_path / "out")
    tokenizer, scores = load_tokenizer(tmp_path / "out"), dict(zip(*_sentencepiece(), strict=True))
    for text in ["ab 12", " a  ab", "日本 b", "c\n語ab", "aabab", "   a", "a  ab     b"]:
        assert tokenizer.tokenize(text) == _merged(" " * space + text, scores), text
        ids = tokenizer(text)["input_ids"]
        assert tokenizer.decode(ids, skip_special_tokens=True) == text


def test_what_lies_in_the_folder_says_where_it_is_from(tmp_path: Path) -> None:
    made = write(tmp_path)
    assert cli.main(["import-gguf", str(made.path), str(tmp_path / "out")]) == 0
    card = (tmp_path / "out/README.md").read_text()
    assert "sha256" in card and "F32" in card and "bfloat16" in card
    assert "lm_head.weight" not in load_file(tmp_path / "out/model.safetensors")


def load_file(path: Path) -> dict[str, torch.Tensor]:
    """Read a file of weights with the library that others use."""
    from safetensors.torch import load_file as load

    return load(path)


_EXTRA = {"rope_freqs.weight": np.ones(4, np.float32)}
REFUSED = {
    "an architecture": ({"architecture": "gemma4"}, "'gemma4' cannot be imported"),
    "a key without a place": (
        {"keys": {"gemma3.rope.scaling.factor": 8.0}},
        "gemma3.rope.scaling.factor = 8.0 has no place",
    ),
    "a key of another value": (
        {"keys": {"gemma3.final_logit_softcapping": 30.0}},
        "gemma3.final_logit_softcapping is 30.0, transformers makes",
    ),
    "a tensor without a place": ({"tensors": _EXTRA}, "holds rope_freqs.weight"),
    "a missing tensor": (
        {"without": "model.layers.1.mlp.up_proj.weight"},
        "has no weights for",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_the_import_would_lose_is_refused_by_name(case: str, tmp_path: Path) -> None:
    said, message = REFUSED[case]
    made = write(tmp_path, **said)
    with pytest.raises(UserError, match=r"^[^\n]*$") as refusal:
        import_gguf(made.path, tmp_path / "out")
    assert message in str(refusal.value)
    assert not (tmp_path / "out").exists()


def test_an_unknown_split_is_refused_and_another_tokenizer_is_the_remedy(tmp_path: Path) -> None:
    known = write(tmp_path / "known", "llama", "gpt2")
    import_gguf(known.path, tmp_path / "known/out")
    made = write(tmp_path, "llama", "gpt2", pre="a-new-one")
    with pytest.raises(UserError, match=r"'a-new-one' is not known here; .*--tokenizer DIR"):
        import_gguf(made.path, tmp_path / "out")
    import_gguf(made.path, tmp_path / "out", tokenizer=tmp_path / "known/out")
    assert load_tokenizer(tmp_path / "out").tokenize("ab  12") == ["ab", "Ġ", "Ġ", "12"]


def test_a_tokenizer_of_other_tokens_is_refused(tmp_path: Path) -> None:
    other = write(tmp_path / "other", "gemma3", "llama")
    import_gguf(other.path, tmp_path / "other/out")
    made = write(tmp_path, "llama", "gpt2")
    with pytest.raises(UserError, match="give the tokenizer of the file's own model"):
        import_gguf(made.path, tmp_path / "out", tokenizer=tmp_path / "other/out")


@pytest.mark.parametrize("content", [b"", b"GGUF", b"{}" * 40])
def test_what_is_no_gguf_is_refused(content: bytes, tmp_path: Path) -> None:
    file = tmp_path / "x.gguf"
    file.write_bytes(content)
    with pytest.raises(UserError, match="no GGUF file, or a damaged one"):
        import_gguf(file, tmp_path / "out")


def test_a_cut_file_is_refused(tmp_path: Path) -> None:
    made = write(tmp_path)
    whole = made.path.read_bytes()
    for share in (0.3, 0.9):
        made.path.write_bytes(whole[: int(len(whole) * share)])
        with pytest.raises(UserError, match=r"^[^\n]*$"):
            import_gguf(made.path, tmp_path / "out")
        assert not (tmp_path / "out").exists()


def test_counts_and_lengths_beyond_the_file_are_refused_before_a_library_believes_them() -> None:
    import io
    import struct

    from checkpoints.gguf_claims import check_claims

    def text(value: bytes, length: int | None = None) -> bytes:
        return struct.pack("<Q", len(value) if length is None else length) + value

    def claims(
        tensors: int = 1, keys: int = 2, entries: int = 2, length: int | None = None
    ) -> None:
        content = b"GGUF" + struct.pack("<IQQ", 3, tensors, keys)
        content += text(b"a", length) + struct.pack("<IB", 0, 7)
        content += text(b"list") + struct.pack("<IIQ", 9, 8, entries) + text(b"x") + text(b"y")
        content += text(b"w") + struct.pack("<IQIQ", 1, 4, 0, 0) + bytes(16)
        check_claims(io.BytesIO(content), len(content))

    claims()
    for wrong in ({"tensors": 9}, {"keys": 30}, {"entries": 30}, {"length": 400}):
        with pytest.raises(ValueError, match="header"):
            claims(**wrong)
