"""A small world for searches: a base, three experts, and dev items that the tokenizer knows."""

import numpy as np
import pytest
from tokenizers import Tokenizer

from common.files import write_jsonl
from tests.conftest import behind_bos


def make_items(random, split, count=12):
    """Make multiple-choice items of words; their prompts begin with a word of the split's own."""
    rows = []
    for number in range(count):
        words = [f" w{index}" for index in random.choice(np.arange(6, 48), 5, replace=False)]
        prompt = f"w{4 if split == 'dev' else 5}{words[0]} w{random.integers(6, 48)}"
        row = {"id": f"{split}-{number}", "prompt": prompt, "choices": words[1:]}
        rows.append(row | {"gold": number % 4})
    return rows


@pytest.fixture(scope="session")
def world(make_model, tmp_path_factory):
    """Folders base, a, b, c, and data with the items of one task in both splits."""
    folder = tmp_path_factory.mktemp("world")
    for seed, name in enumerate(("base", "a", "b", "c")):
        make_model(folder / name, "mistral", seed=seed)
        file = str(folder / name / "tokenizer.json")
        behind_bos(Tokenizer.from_file(file)).save(file)
    random = np.random.default_rng(0)
    for split in ("dev", "test"):
        items = make_items(random, split)
        write_jsonl(folder / "data" / split / "bottle_kobest" / "copa.jsonl", items)
    (folder / "data" / "manifest.json").write_text("{}")
    return folder


@pytest.fixture(scope="session")
def command(world):
    """Make a command line over the world's base and two experts, as a list."""

    def make(name, *extra, method="task_arithmetic", experts=("a", "b"), data=True):
        given = [name, "--base", str(world / "base"), "--experts"]
        given += [f"{expert}={world / expert}" for expert in experts]
        if method is not None:
            given += ["--method", method]
        if data:
            given += ["--data", str(world / "data"), "--suites", "bottle_kobest/copa"]
        return [*given, *map(str, extra)]

    return make
