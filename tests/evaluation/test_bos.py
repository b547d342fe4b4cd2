"""A model whose loss depends on BOS: `corrected` asks it as trained, `published` another one."""

from __future__ import annotations

import json
import math

import pytest
import torch

from evaluation import cli
from tests.conftest import tiny_model
from tests.evaluation.ja8_rows import XWINOGRAD
from tests.evaluation.test_ja8_run import make_tokenizer

BOS, EOS = 1, 2
TASK = "xwinograd_ja"


def sentence(row, right):
    return row["sentence1"] if (row["gold"] == 0) == right else row["sentence2"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Items, and a model that says the right sentence behind BOS, the wrong one behind EOS."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = tmp_path_factory.mktemp("bos")
    rows = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in XWINOGRAD)
    items = folder / "data/test/ja8"
    items.mkdir(parents=True)
    (items / f"{TASK}.jsonl").write_text(rows, encoding="utf-8")
    make_tokenizer(folder / "tokenizer", rows)
    tokenizer = AutoTokenizer.from_pretrained(folder / "tokenizer", trust_remote_code=False)
    tiny_model(folder / "model", "mistral", seed=1, vocabulary=len(tokenizer))
    tokenizer.save_pretrained(folder / "model")
    model = AutoModelForCausalLM.from_pretrained(folder / "model", trust_remote_code=False).train()
    ids = torch.tensor(
        [
            [begin, *tokenizer.encode(sentence(row, begin == BOS), add_special_tokens=False)]
            for row in XWINOGRAD
            for begin in (BOS, EOS)
        ]
    )
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for _ in range(80):
        loss = model(input_ids=ids, labels=ids).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    model.save_pretrained(folder / "model")
    return folder


def score(folder, suites):
    out = folder / "scores.json"
    words = ["--model", folder / "model", "--suites", suites, "--data", folder / "data"]
    assert cli.main([*map(str, words), "--out", str(out)]) == 0
    return {name: task["value"] for name, task in json.loads(out.read_text())["tasks"].items()}


@pytest.fixture(autouse=True)
def not_yet_warned():
    cli._warn.cache_clear()


def test_its_loss_depends_on_bos(folder):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder / "model", trust_remote_code=False)
    model = AutoModelForCausalLM.from_pretrained(folder / "model", trust_remote_code=False)
    for row in XWINOGRAD:
        ids = tokenizer.encode(sentence(row, True), add_special_tokens=False)
        losses = [
            model(torch.tensor([[begin, *ids]]), labels=torch.tensor([[-100, *ids]])).loss.item()
            for begin in (BOS, EOS)
        ]
        assert math.isfinite(losses[0]) and losses[1] > losses[0] + 0.1


def test_corrected_asks_behind_bos_and_published_without(folder):
    scores = score(folder, f"ja8/{TASK},ja8:corrected/{TASK}")
    assert scores == {f"ja8/{TASK}": 0.0, f"ja8:corrected/{TASK}": 1.0}


def test_one_line_warns_of_the_published_form_alone(folder, capsys):
    score(folder, f"ja8:corrected/{TASK}")
    assert "BOS" not in capsys.readouterr().err
    for _ in range(2):
        score(folder, f"ja8/{TASK}")
    lines = [line for line in capsys.readouterr().err.splitlines() if "BOS" in line]
    assert len(lines) == 1
    assert lines[0].startswith("warning: ja8: ")
    assert "--suites ja8:corrected" in lines[0]


def test_nothing_is_said_of_a_tokenizer_without_bos(folder, tmp_path, capsys):
    described = json.loads((folder / "tokenizer/tokenizer.json").read_text(encoding="utf-8"))
    described["post_processor"] = None
    (tmp_path / "tokenizer.json").write_text(json.dumps(described), encoding="utf-8")
    config = (folder / "tokenizer/tokenizer_config.json").read_text(encoding="utf-8")
    (tmp_path / "tokenizer_config.json").write_text(config, encoding="utf-8")
    cli._say_what_begins(cli.select(["ja8"]), tmp_path)
    assert capsys.readouterr().err == ""
    cli._say_what_begins(cli.select(["ja8"]), folder / "tokenizer")
    assert "BOS" in capsys.readouterr().err
