"""Dev items of published benchmarks: what no test item is and no prompt of the test shows."""

import random

import pytest

from common.errors import UserError
from common.files import read_json, read_jsonl, write_jsonl
from evaluation.data.build import build
from evaluation.data.cli import main
from evaluation.data.dev import choose_dev, content_hash
from evaluation.data.sources import load_sources
from evaluation.suites import select
from tests.evaluation.ja8_rows import built

BOOLQ = "ID\tText\tQuestion\tAnswer\n"


def rows_of(count, prefix):
    return [
        {
            "id": f"{prefix}{number}",
            "question": f"{prefix}質問{number}番は？",
            "choices": [f"選{number}{letter}" for letter in "あいうえお"],
            "gold": number % 5,
        }
        for number in range(count)
    ]


def relations(count, prefix):
    labels = ("entailment", "contradiction", "neutral", "neutral")
    return [
        {
            "id": f"{prefix}{number}",
            "premise": f"{prefix}前提{number}番。",
            "hypothesis": "仮。",
            "label": labels[number % 4],
        }
        for number in range(count)
    ]


def prompts_of(task, items, pool, folder):
    """The prompts of an evaluation, from the harness's own tasks."""
    where = folder / "test" / task.suite
    write_jsonl(where / f"{task.id}.jsonl", items)
    write_jsonl(where / f"{task.id}.fewshot.jsonl", pool)
    return "".join(instance.args[0] for instance in built(folder, task))


@pytest.mark.parametrize(
    ("name", "make", "column"),
    [("ja8/jcommonsenseqa", rows_of, "question"), ("ja8/jnli", relations, "premise")],
)
def test_dev_items_stand_in_no_prompt_of_the_test(tmp_path, name, make, column):
    (task,) = select([name])
    items, pool = make(12, "甲"), make(60, "乙")
    dev, rest = choose_dev(task, items, pool, 10)
    prompts = prompts_of(task, items, pool, tmp_path)
    shown = {row["id"] for row in pool if row[column] in prompts}
    assert 20 < len(shown) <= 3 * 12  # three examples for each item, some drawn twice
    assert not shown & {row["id"] for row in dev}
    ids = [row["id"] for row in pool]
    assert sorted([*(row["id"] for row in dev), *(row["id"] for row in rest)]) == sorted(ids)
    # All that is left can be had, and not one more.
    assert len(choose_dev(task, items, pool, 60 - len(shown))[0]) == 60 - len(shown)
    with pytest.raises(UserError, match=f"{60 - len(shown)} rows of its training split"):
        choose_dev(task, items, pool, 61 - len(shown))


def test_the_choice_depends_on_content_alone():
    (task,) = select(["kobest/boolq"])  # no shots
    pool = rows_of(30, "乙")
    copy = pool[3] | {"id": "other", "question": f" {pool[3]['question'].replace('3', '３')}"}
    assert content_hash(copy) == content_hash(pool[3])
    dev, _ = choose_dev(task, [], pool, 7)
    shuffled = pool[:]
    random.Random(1).shuffle(shuffled)
    assert choose_dev(task, [], shuffled, 7)[0] == dev
    again, rest = choose_dev(task, [], [*pool, copy], 30)
    assert len(again) == 30 and rest == []  # a copy is neither chosen nor left as an example
    test = [row | {"id": f"t{row['id']}"} for row in dev]
    assert not {row["id"] for row in choose_dev(task, test, pool, 23)[0]} & {
        row["id"] for row in dev
    }


@pytest.fixture
def copies(tmp_path):
    folder = tmp_path / "copies" / "kobest" / "BoolQ"
    folder.mkdir(parents=True)
    for split, count in (("test", 1404), ("train", 3665)):
        lines = [f"{n}\t글{split}{n}\t질문?\tTrue\n" for n in range(count)]
        (folder / f"{split}.tsv").write_text(BOOLQ + "".join(lines))
    return tmp_path / "copies"


def test_dev_items_are_written_beside_the_test_s(copies, tmp_path, capsys):
    out = tmp_path / "out"
    given = ["--suite", "kobest/boolq", "--source", str(copies), "--out", str(out)]
    assert main([*given, "--dev", "kobest/boolq", "--dev-items", "9"]) == 0
    dev = read_jsonl(out / "dev" / "kobest" / "boolq.jsonl")
    assert len(dev) == 9 and all(row["paragraph"].startswith("글train") for row in dev)
    assert not (out / "dev" / "kobest" / "boolq.fewshot.jsonl").exists()  # a task without shots
    about = read_json(out / "dev" / "kobest" / "manifest.json")["extra"]["tasks"]["boolq"]
    assert about["rows"] == {"items": 9} and about["dev_items_from"] == "fewshot"
    assert "dev/kobest/manifest.json" in read_json(out / "manifest.json")["outputs"]
    assert "3665 fewshot, 9 dev items" in capsys.readouterr().out
    (copies / "kobest" / "BoolQ" / "train.tsv").unlink()
    with pytest.raises(UserError, match=r"boolq/train.jsonl, which is not there"):
        main([*given, "--dev", "kobest/boolq"])


@pytest.mark.parametrize(
    ("names", "told"),
    [
        (["ja8/mgsm", "ja8/jnli", "ja8/xwinograd_ja"], "for ja8/mgsm, ja8/xwinograd_ja, of which"),
        (["ja8/jnly"], "did you mean 'ja8/jnli'"),
    ],
)
def test_tasks_without_dev_items_are_refused_by_name(tmp_path, names, told):
    chosen = [load_sources()[name] for name in ("ja8/mgsm", "ja8/jnli", "ja8/xwinograd_ja")]
    with pytest.raises(UserError) as refused:
        build(chosen, tmp_path, tmp_path / "out", names)
    assert told in str(refused.value) and "\n" not in str(refused.value)
    assert not (tmp_path / "out").exists()
