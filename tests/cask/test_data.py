"""A cask's data: what experts learn is in no item, and reads as an evaluation asks."""

import pytest

from cask import data
from cask.data import Sizes, write_data
from common.errors import UserError
from common.files import read_jsonl, write_jsonl
from tests.conftest import tiny_model

SIZES = Sizes(test_items=6, dev_items=4, train_rows=31, calibration_rows=9)
WORLD, BENCHMARK = "bottle_gsm_en/gsm_en", "kobest/sentineg"


def sentences(numbers):
    return [{"id": str(n), "sentence": f"문장 {n}", "label": n % 2} for n in numbers]


def stand_in(sources, source, folder, dev, dev_items):
    """Write what `python -m evaluation data` would; its training split repeats three items."""
    where = folder / "test/kobest"
    write_jsonl(where / "sentineg.jsonl", sentences(range(5)))
    write_jsonl(where / "sentineg.fewshot.jsonl", sentences([0, 3, 41, *range(40, 60)]))
    write_jsonl(folder / "dev/kobest/sentineg.jsonl", sentences(range(40, 42)))


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setattr(data, "build", stand_in)
    experts = {"ko": [BENCHMARK], "math": [WORLD], "both": [WORLD, BENCHMARK]}
    tokenizer = tiny_model(tmp_path / "base")
    write_data(tmp_path / "data", [WORLD, BENCHMARK], experts, tokenizer, seed=1, sizes=SIZES)
    return tmp_path / "data"


def test_no_row_that_an_expert_learns_is_an_item(folder):
    rows = [
        row["prompt"]
        for expert in ("ko", "math", "both")
        for kind in ("train", "calibration")
        for row in read_jsonl(folder / kind / f"{expert}.jsonl")
    ]
    shown = [row for name in (WORLD, BENCHMARK) for row in items(folder, name)]
    assert len(shown) == 6 + 4 + 5 + 2
    for item in shown:
        text = item.get("prompt") or item["sentence"] + " "  # a sentence ends there
        assert not [row for row in rows if text in row + " "]


def items(folder, name):
    return [
        row for split in ("dev", "test") for row in read_jsonl(folder / split / f"{name}.jsonl")
    ]


def test_rows_ask_as_the_task_asks_and_come_from_tasks_in_equal_parts(folder):
    rows = read_jsonl(folder / "train/ko.jsonl")
    assert len(rows) == SIZES.train_rows
    assert {row["answer"].strip() for row in rows} == {"부정", "긍정"}
    # 18 sentences are left; each is drawn once, and 13 of them again.
    counts = {}
    for row in rows:
        counts[row["prompt"]] = counts.get(row["prompt"], 0) + 1
    assert sorted(counts.values()) == [1] * 5 + [2] * 13
    # kobest's prompt and what lm-eval puts between it and an answer.
    assert all("문장" in row["prompt"] and row["eos"] for row in rows)
    both = [row["task"] for row in read_jsonl(folder / "train/both.jsonl")]
    assert both.count(BENCHMARK) in (15, 16) and len(both) == 31


def test_the_worlds_items_are_those_of_its_generator(folder):
    items = read_jsonl(folder / "test" / f"{WORLD}.jsonl")
    assert len(items) == SIZES.test_items
    assert len(read_jsonl(folder / "dev" / f"{WORLD}.jsonl")) == SIZES.dev_items
    for item in items:
        left, right = item["target"].split("=")
        assert eval(left) == int(right)


def test_a_task_without_data_and_a_size_of_nothing_are_refused(tmp_path):
    with pytest.raises(UserError, match="did you mean"):
        write_data(tmp_path / "out", ["bottle_gsm_en/gsm"], {}, tmp_path, seed=0, sizes=SIZES)
    with pytest.raises(UserError, match="--train-rows is 0"):
        write_data(tmp_path / "out", [WORLD], {}, tmp_path, seed=0, sizes=Sizes(train_rows=0))
