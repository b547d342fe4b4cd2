"""A tiny random Mistral, its tokenizer of known words, a few items and a database."""

from __future__ import annotations

import json
import random
import sqlite3
from pathlib import Path

import pytest

WORDS = ["猫", "犬", "鳥", "は", "が", "空", "海", "に", "いる", "飛ぶ", "です", "質問:", "答え:"]
ENGLISH = ["SQL:", " SELECT", " name", " FROM", " pets", " COUNT", " WHERE", "=", "+", ";", "\n"]
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
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
    ).save_pretrained(folder)


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
