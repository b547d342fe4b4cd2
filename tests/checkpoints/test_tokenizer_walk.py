"""Kinds of tokenizers through evaluation's reading, a merge and the comparison of vocabularies."""

from __future__ import annotations

import itertools
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from checkpoints.loading import load_tokenizer
from checkpoints.reading import Checkpoint
from checkpoints.vocabulary import align
from common.errors import UserError
from merges.engine.config import MergeConfig
from merges.engine.run import merge_to_disk
from tests import compatibility
from tests.checkpoints.test_tokenizers_own import BYTES, byte_fallback, byte_level
from tests.conftest import tiny_model

TEXTS = ("  The t 12ü\n\n the 猫 inner ", "the inner", "a", "  ", "t\n\nhe 12")
CHAT = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}"
WORDS = ("▁t", "he", "▁the", "in", "er", *"▁abcdefghijklmnopqrstuvwxyzT12\n")
Read = Callable[[str], list[int]]


def by_score(scores: dict[str, float], text: str) -> list[str]:
    """Merge, again and again, the two neighbours whose union has the best score."""
    pieces = list(text)
    while True:
        joined = [scores.get(a + b) for a, b in itertools.pairwise(pieces)]
        found = [(score, -n) for n, score in enumerate(joined) if score is not None]
        if not found:
            return pieces
        place = -max(found)[1]
        pieces[place : place + 2] = [pieces[place] + pieces[place + 1]]


def likeliest(scores: dict[str, float], text: str) -> list[str]:
    """Cut a text into pieces whose scores have the largest sum; unknown letters stay alone."""
    best: list[tuple[float, list[str]]] = [(0.0, [])]
    for end in range(1, len(text) + 1):
        ways = []
        for start in range(max(0, end - 8), end):
            piece = text[start:end]
            score = scores.get(piece, -1e3 if end - start == 1 else None)
            if score is not None:
                ways.append((best[start][0] + score, [*best[start][1], piece]))
        best.append(max(ways, key=lambda way: way[0]))
    return best[-1][1]


def write_pieces(folder: Path, unigram: bool = False, prefix: bool = True) -> Read:
    """Write a SentencePiece file; return what it does, by its definition."""
    from transformers.convert_slow_tokenizer import import_protobuf

    model = import_protobuf().ModelProto()
    model.trainer_spec.model_type = 1 if unigram else 2
    model.trainer_spec.byte_fallback = True
    model.normalizer_spec.add_dummy_prefix = prefix
    model.normalizer_spec.remove_extra_whitespaces = False
    scores = {word: -2 - n / 2 if unigram else -1.0 - n for n, word in enumerate(WORDS)}
    kinds = {"<unk>": 2, "<s>": 3, "</s>": 3, **dict.fromkeys(BYTES, 6), **dict.fromkeys(WORDS, 1)}
    for word, kind in kinds.items():
        model.pieces.add(piece=word, score=scores.get(word, 0.0), type=kind)
    (folder / "tokenizer.model").write_bytes(model.SerializeToString())
    ids = {word: number for number, word in enumerate(kinds)}

    def read(text: str) -> list[int]:
        text = ("▁" if prefix else "") + text.replace(" ", "▁")
        found = []
        for piece in (likeliest if unigram else by_score)(scores, text):
            own = [piece] if piece in ids else [f"<0x{byte:02X}>" for byte in piece.encode()]
            found += [ids[part] for part in own]
        return found

    return read


def pieces(unigram: bool = False, prefix: bool = True) -> Callable[[Path], Read]:
    return lambda folder: write_pieces(folder, unigram, prefix)


def file(make: Callable) -> Callable[[Path], Read]:
    """Write a tokenizer.json; the library that it is made for reads it, without transformers."""

    def write(folder: Path) -> Read:
        own = make()
        own.save(str(folder / "tokenizer.json"))
        return lambda text: own.encode(text, add_special_tokens=False).ids

    return write


def word_pieces(folder: Path) -> Read:
    """As BERT has them: lower case, cut at blanks and signs, the longest beginning first."""
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "the", "in", "##ner", "t", "12", "猫"]
    (folder / "vocab.txt").write_text("\n".join(words) + "\n")

    def read(text: str) -> list[int]:
        found = []
        for word in re.findall(r"猫|[a-z0-9ü]+", text.lower()):
            parts, start = [], 0
            while start < len(word):
                ends = range(len(word), start, -1)
                cut = [("##" if start else "") + word[start:end] for end in ends]
                part = next((p for p in cut if p in words), None)
                if part is None:
                    parts = ["[UNK]"]
                    break
                parts.append(part)
                start += len(part.removeprefix("##"))
            found += [words.index(part) for part in parts]
        return found

    return read


def two_files(folder: Path) -> Read:
    """As GPT-2 has them: vocab.json and merges.txt, bytes as letters."""
    from tokenizers import pre_tokenizers

    letters = ["<|endoftext|>", *sorted(pre_tokenizers.ByteLevel.alphabet()), "Ġt", "he", "Ġthe"]
    ids = {letter: number for number, letter in enumerate(letters)}
    (folder / "vocab.json").write_text(json.dumps(ids))
    (folder / "merges.txt").write_text("#version: 0.2\nĠ t\nh e\nĠt he\n")
    scores = {"Ġt": -1.0, "he": -2.0, "Ġthe": -3.0}
    cuts = pre_tokenizers.ByteLevel(add_prefix_space=False)  # GPT-2's pattern and its letters

    def read(text: str) -> list[int]:
        return [ids[p] for w, _ in cuts.pre_tokenize_str(text) for p in by_score(scores, w)]

    return read


def words_alone():
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = ["<unk>", "<s>", "</s>", "the", "inner", "t", "12", "a"]
    own = Tokenizer(models.WordLevel({w: n for n, w in enumerate(words)}, unk_token="<unk>"))
    own.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return own


LLAMA = ("<s>", "</s>")
# Kind: how the files are written, the class and the model type that they name, BOS and EOS.
KINDS: dict[str, tuple[Callable[[Path], Read], str | None, str, tuple[str, str]]] = {
    "tokenizer.json, byte-level, Llama's class": (
        file(byte_level),
        "LlamaTokenizer",
        "llama",
        LLAMA,
    ),
    "tokenizer.json, byte-level, no class": (file(byte_level), None, "llama", LLAMA),
    "tokenizer.json, byte-level, Qwen's class": (
        file(byte_level),
        "Qwen2Tokenizer",
        "qwen2",
        LLAMA,
    ),
    "tokenizer.json, bytes for the unknown, Llama's class": (
        file(byte_fallback),
        "LlamaTokenizerFast",
        "llama",
        LLAMA,
    ),
    "tokenizer.json, bytes for the unknown, CodeLlama's class": (
        file(byte_fallback),
        "CodeLlamaTokenizer",
        "llama",
        LLAMA,
    ),
    "tokenizer.json, bytes for the unknown, Gemma's class": (
        file(byte_fallback),
        "GemmaTokenizerFast",
        "gemma",
        LLAMA,
    ),
    "tokenizer.json, bytes for the unknown, Mistral": (
        file(byte_fallback),
        "LlamaTokenizer",
        "mistral",
        LLAMA,
    ),
    "tokenizer.json, words": (file(words_alone), "PreTrainedTokenizerFast", "llama", LLAMA),
    "tokenizer.model alone, Llama's class": (pieces(), "LlamaTokenizer", "llama", LLAMA),
    "tokenizer.model alone, CodeLlama's class": (pieces(), "CodeLlamaTokenizer", "llama", LLAMA),
    "tokenizer.model alone, Gemma's class": (
        pieces(prefix=False),
        "GemmaTokenizer",
        "gemma",
        LLAMA,
    ),
    "tokenizer.model alone, Mistral": (pieces(), "LlamaTokenizer", "mistral", LLAMA),
    "tokenizer.model alone, Llama's class on Qwen": (pieces(), "LlamaTokenizer", "qwen2", LLAMA),
    "tokenizer.model alone, no class": (pieces(), None, "llama", LLAMA),
    "tokenizer.model alone, unigram": (pieces(unigram=True), "LlamaTokenizer", "llama", LLAMA),
    "vocab.txt (BERT)": (word_pieces, "BertTokenizer", "bert", ("[CLS]", "[SEP]")),
    "vocab.json and merges.txt (GPT-2)": (
        two_files,
        "GPT2Tokenizer",
        "gpt2",
        ("<|endoftext|>", "<|endoftext|>"),
    ),
}
TEMPLATES = {
    "none": ({}, {}),
    "in tokenizer_config.json": ({"chat_template": CHAT}, {}),
    "named, in tokenizer_config.json": (
        {"chat_template": [{"name": n, "template": n + CHAT} for n in ("default", "rag")]},
        {},
    ),
    "chat_template.jinja": ({}, {"chat_template.jinja": CHAT}),
    "named, as files": (
        {},
        {"chat_template.jinja": CHAT, "additional_chat_templates/rag.jinja": "r" + CHAT},
    ),
}


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    return tiny_model(tmp_path_factory.mktemp("weights") / "base", vocabulary=310)


def folder_of(weights: Path, folder: Path, kind: str, template: str = "none") -> Read:
    """Write a model's folder with a kind of tokenizer; return how a text is read."""
    make, name, model, (begin, end) = KINDS[kind]
    shutil.copytree(weights, folder, ignore=shutil.ignore_patterns("*token*"))
    read = make(folder)
    about, files = TEMPLATES[template]
    named = {"tokenizer_class": name} if name else {}
    about = {"bos_token": begin, "eos_token": end, **named, **about}
    (folder / "tokenizer_config.json").write_text(json.dumps(about))
    for path, text in files.items():
        (folder / path).parent.mkdir(exist_ok=True)
        (folder / path).write_text(text)
    # The type decides which class reads a tokenizer; that the weights are a Llama's plays no part.
    config = json.loads((folder / "config.json").read_text()) | {"model_type": model}
    (folder / "config.json").write_text(json.dumps(config))
    return read


def merged(base: Path, expert: Path, out: Path) -> Path:
    start = Checkpoint(base)
    merge_to_disk(out, MergeConfig("linear", start, {"x": Checkpoint(expert)}))
    return out


def walked(weights: Path, top: Path, kind: str) -> list[str]:
    """Read, merge and compare; an assertion fails where something is not right."""
    read = folder_of(weights, top / "base", kind)
    folder_of(weights, top / "expert", kind)
    for folder in (top / "base", merged(top / "base", top / "expert", top / "out")):
        tokenizer = load_tokenizer(folder)
        for text in TEXTS:
            assert tokenizer.encode(text, add_special_tokens=False) == read(text), (folder, text)
        assert (tokenizer.bos_token, tokenizer.eos_token) == KINDS[kind][3]
    change_order(top / "expert")
    with pytest.raises(UserError, match=r"expert x .* has another tokenizer than"):
        align(Checkpoint(top / "base"), {"x": Checkpoint(top / "expert")}, "refuse")
    return [kind, "as the files say", "as the base's", "noticed"]


def change_order(folder: Path) -> None:
    """Exchange two tokens of equal length in whatever file has them."""
    for path in folder.iterdir():
        if path.name.startswith(("tokenizer.json", "tokenizer.model", "vocab.")):
            swapped = path.read_bytes()
            if path.name == "vocab.txt":
                swapped = swapped.replace(b"the\nin", b"in\nthe")
            elif path.suffix == ".model":
                swapped = swapped.replace(b"in", b"##").replace(b"er", b"in").replace(b"##", b"er")
            else:
                content = json.loads(swapped)
                ids = content["model"]["vocab"] if "model" in content else content
                first, second = [w for w in ids if ids[w] > 4][-2:]
                ids[first], ids[second] = ids[second], ids[first]
                swapped = json.dumps(content).encode()
            assert swapped != path.read_bytes()
            path.write_bytes(swapped)


@pytest.mark.parametrize("kind", ["tokenizer.model alone, Mistral", "vocab.txt (BERT)"])
def test_a_tokenizer_is_read_kept_and_compared(weights, tmp_path, kind):
    walked(weights, tmp_path, kind)


@pytest.mark.parametrize("template", TEMPLATES)
@pytest.mark.parametrize("form", ["tokenizer.json", "tokenizer.model"])
def test_templates_reach_the_result(weights, tmp_path, template, form):
    kind = next(k for k in KINDS if k.startswith(form))
    folder_of(weights, tmp_path / "base", kind, template)
    folder_of(weights, tmp_path / "x", kind, template)
    out = merged(tmp_path / "base", tmp_path / "x", tmp_path / "out")
    expected = {
        "none": None,
        "in tokenizer_config.json": CHAT,
        "named, in tokenizer_config.json": {"default": "default" + CHAT, "rag": "rag" + CHAT},
        "chat_template.jinja": CHAT,
        "named, as files": {"default": CHAT, "rag": "r" + CHAT},
    }[template]
    assert load_tokenizer(out).chat_template == load_tokenizer(tmp_path / "x").chat_template
    assert load_tokenizer(out).chat_template == expected


def test_sentencepiece_itself_agrees(tmp_path):
    library = pytest.importorskip("sentencepiece", reason="compares with sentencepiece")
    for number, settings in enumerate([{}, {"unigram": True}, {"prefix": False}]):
        folder = tmp_path / str(number)
        folder.mkdir()
        read = write_pieces(folder, **settings)
        own = library.SentencePieceProcessor(model_file=str(folder / "tokenizer.model"))
        assert [own.encode(text) for text in TEXTS] == [read(text) for text in TEXTS]


@pytest.mark.parametrize("name", ["tokenizer.model", "spiece.model"])
def test_a_file_that_cannot_be_read_is_refused(weights, tmp_path, name):
    folder = shutil.copytree(weights, tmp_path / "x", ignore=shutil.ignore_patterns("*token*"))
    (folder / name).write_bytes(b"no pieces")
    with pytest.raises(UserError, match=r"fetch the model's tokenizer\.json") as caught:
        load_tokenizer(folder)
    assert "\n" not in str(caught.value)


@pytest.mark.slow
def test_a_walk_through_tokenizers(weights, tmp_path):
    rows = [walked(weights, tmp_path / str(n), kind) for n, kind in enumerate(KINDS)]
    compatibility.keep(
        "4-tokenizers",
        "Tokenizers",
        f"{len(rows)} kinds of tokenizers. What evaluation reads is compared with the library "
        "`tokenizers` on the file, or with the definition where there is no tokenizer.json "
        "(pieces by score, the likeliest pieces, the longest beginning, merges in order); texts "
        "have blanks in front and in a row, line breaks and letters that the vocabulary lacks. "
        "Each is merged, and an expert with two tokens exchanged is refused. Chat templates in "
        "`tokenizer_config.json`, as a file, and named ones of both forms reach the result. A "
        "tokenizer with code, or a `spiece.model` alone, needs its `tokenizer.json`.",
        ["files and class", "a text is read", "in a merge", "other order"],
        rows,
        compared=4,
    )
