"""A tiny random Mistral, its tokenizer of known words, a few items and a database."""

from __future__ import annotations

import json
import random
import sqlite3
from pathlib import Path

import pytest

from tests.conftest import behind_bos

WORDS = ["猫", "犬", "鳥", "は", "が", "空", "海", "に", "いる", "飛ぶ", "です", "質問:", "答え:"]
ENGLISH = ["SQL:", " SELECT", " name", " FROM", " pets", " COUNT", " WHERE", "=", "+", ";", "\n"]
SENTENCES = [
    "東京",
    "猫",
    "犬",
    "空",
    "海",
    "走る",
    "Hund",
    "Katze",
    "läuft",
    "고양이",
    "the",
    "cat",
]
SENTENCES += ["runs", "12", "7", "=", "+", "?", "!", "答え：", "質問："]
NUMBERS = [str(number) for number in range(30)]


def write_rows(path: Path, rows: list[dict]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def make_tokenizer(folder: Path) -> None:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = ["<pad>", "<s>", "</s>", "<unk>", *WORDS, *NUMBERS]
    words += [word.replace(" ", "▁") for word in ENGLISH]
    characters = sorted({c for word in words[4:] for c in word} | {"▁"})
    vocabulary = [(word, 0.0) for word in words[:4]] + [(word, -1.0) for word in words[4:]]
    vocabulary += [(c, -10.0) for c in characters if c not in words]
    tokenizer = Tokenizer(models.Unigram(vocabulary, unk_id=3))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="never", split=False)
    tokenizer.decoder = decoders.Metaspace(prepend_scheme="never")
    PreTrainedTokenizerFast(
        tokenizer_object=behind_bos(tokenizer),
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
    ).save_pretrained(folder)


def write_bpe(folder: Path, sentencepiece: bool = False) -> None:
    """Write a tokenizer of 400 entries that can write any bytes.

    Args:
        folder: Where.
        sentencepiece: As Llama 2 and Mistral have it, with a space put before every text and
            tokens for single bytes; else byte-level, as Llama 3 has it.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    special = ["<pad>", "<s>", "</s>", "<end>"]
    if sentencepiece:
        tokenizer = Tokenizer(models.BPE(byte_fallback=True, fuse_unk=True))
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
        tokenizer.decoder = decoders.Sequence(
            [
                decoders.Replace("▁", " "),
                decoders.ByteFallback(),
                decoders.Fuse(),
                decoders.Strip(" ", 1, 0),
            ]
        )
        special += [f"<0x{byte:02X}>" for byte in range(256)]
        alphabet = []
    else:
        tokenizer = Tokenizer(models.BPE())
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
        alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator([" ".join(SENTENCES), "".join(SENTENCES)] * 20, trainer)
    if sentencepiece:  # they are pieces, found and shown like any other
        content = json.loads(tokenizer.to_str())
        content["added_tokens"] = content["added_tokens"][:4]
        tokenizer = Tokenizer.from_str(json.dumps(content))
    PreTrainedTokenizerFast(
        tokenizer_object=behind_bos(tokenizer),
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        additional_special_tokens=["<end>"],
        clean_up_tokenization_spaces=False,
    ).save_pretrained(folder)


@pytest.fixture(scope="session")
def make_bpe():
    """The function that writes a tokenizer of subwords; see `write_bpe`."""
    return write_bpe


def _text(draw: random.Random, words: int) -> str:
    return "".join(draw.choice(SENTENCES) + draw.choice(["", " "]) for _ in range(words))


@pytest.fixture(scope="session")
def ask():
    """A function that makes a request: its kind, its item's number and its arguments."""
    from lm_eval.api.instance import Instance

    def request(kind: str, item: int, *arguments):
        return Instance(kind, doc={}, arguments=arguments, idx=0, metadata=("task", item, 1))

    return request


@pytest.fixture(scope="session")
def choices(ask) -> list:
    """Three choices an item; contexts that are empty, end in whitespace or exceed 96 tokens."""
    draw = random.Random(1)
    contexts = [_text(draw, draw.randint(1, 14)) + draw.choice(["", "\n", " "]) for _ in range(30)]
    contexts += ["", "\n", _text(draw, 150)]
    return [
        ask("loglikelihood", item, context, draw.choice(["", " "]) + _text(draw, length))
        for item, context in enumerate(contexts)
        for length in (1, 2, 5)
    ]


@pytest.fixture(scope="session")
def writings(ask) -> list:
    """Texts to go on with; stop strings of one and of several characters, and different limits."""
    draw = random.Random(2)
    kinds = [
        {"until": ["\n"], "max_gen_toks": 24},
        {"until": ["</s>", "猫", "<end>"], "max_gen_toks": 24},
        {"until": ["Kat", "the cat", ") "], "max_gen_toks": 40, "do_sample": False},
        {"until": [], "max_gen_toks": 3},
    ]
    return [
        ask("generate_until", item, _text(draw, draw.randint(1, 40)), kinds[item % 4])
        for item in range(40)
    ]


def make_model(folder: Path, vocabulary: int, seed: int) -> None:
    import torch
    from transformers import MistralConfig, MistralForCausalLM

    torch.manual_seed(seed)
    config = MistralConfig(
        vocab_size=vocabulary,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=16,
        max_position_embeddings=96,
        sliding_window=None,
        # Large weights: predictions that differ from item to item.
        initializer_range=0.4,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
    )
    MistralForCausalLM(config).save_pretrained(folder)


def make_items(split: Path) -> None:
    draw = random.Random(split.name)

    def sentence(words: int) -> str:
        return "".join(draw.choice(WORDS[:-2]) for _ in range(words))

    choice_rows = []
    for number in range(30):
        choices = [sentence(draw.randint(1, 4)) for _ in range(4)]
        prompt = "" if number == 7 else f"質問:{sentence(draw.randint(1, 9))}答え:"
        choice_rows.append(
            {"id": f"c{number}", "prompt": prompt, "choices": choices, "gold": number % 4}
        )
    write_rows(split / "bottle_ja8/jcomqa.jsonl", choice_rows)
    write_rows(
        split / "bottle_ja8/xwino.jsonl",
        [
            {
                "id": f"x{n}",
                "prompt": sentence(n % 5 + 1),
                "choices": ["猫", "犬です"],
                "gold": n % 2,
            }
            for n in range(11)
        ],
    )
    for task in ("jsquad", "xlsum", "mgsm"):
        write_rows(
            split / f"bottle_ja8/{task}.jsonl",
            [
                {"id": f"{task}{n}", "prompt": sentence(n % 7 + 2) + "答え:", "target": "3+4=7"}
                for n in range(13)
            ],
        )
    write_rows(
        split / "bottle_sql_eval/sql.jsonl",
        [
            {
                "id": f"s{n}",
                "prompt": f"質問:{sentence(n + 1)} SQL:",
                "query": " SELECT name FROM pets",
                "database": "pets.sqlite",
                "category": "select",
            }
            for n in range(5)
        ],
    )


@pytest.fixture(scope="session")
def database(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("databases") / "pets.sqlite"
    make_database(path)
    return path


def make_database(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with sqlite3.connect(path) as connection:
        connection.executescript(
            "CREATE TABLE pets (name TEXT, kind TEXT, age INTEGER, weight REAL);"
            "CREATE INDEX by_age ON pets (age);"
            "INSERT INTO pets VALUES ('Tama', 'cat', 3, 4.5), ('Pochi', 'dog', 5, 12.25),"
            "('Kuro', 'cat', 5, 3.75), ('Piyo', 'bird', NULL, 0.1);"
        )
    connection.close()


@pytest.fixture(scope="session")
def world(tmp_path_factory) -> Path:
    """A folder with data/ (test and dev items, databases/) and the models a and b."""
    folder = tmp_path_factory.mktemp("world")
    for split in ("test", "dev"):
        make_items(folder / "data" / split)
    make_database(folder / "data/databases/pets.sqlite")
    make_tokenizer(folder / "tokenizer")
    tokenizer = json.loads((folder / "tokenizer/tokenizer.json").read_text())
    for seed, name in enumerate("ab"):
        make_model(folder / name, len(tokenizer["model"]["vocab"]), seed)
        make_tokenizer(folder / name)
    return folder
