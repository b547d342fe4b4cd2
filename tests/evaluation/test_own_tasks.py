"""A user's own tasks: what an entry may say, what a row must hold, and what becomes of them."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from common.errors import UserError
from common.files import read_jsonl
from evaluation.cli import main
from evaluation.definitions import load_definition
from evaluation.own_data import add, own_tasks
from evaluation.own_tasks import OwnTask, parse, read_tasks
from evaluation.suites import select
from tests.evaluation.conftest import write_rows


@pytest.fixture(scope="session", autouse=True)
def libraries():
    """Import what takes seconds only when the tests run: collecting them stays quick."""
    global Harness
    from evaluation.harness import Harness


COLUMNS = {"prompt": "question", "choices": "options", "gold": "answer"}


def quiz(folder: Path, count: int = 24) -> Path:
    rows = [
        {"question": f"猫 {number} =", "options": ["犬", "鳥", "空"], "answer": number % 3}
        for number in range(count)
    ]
    write_rows(folder / "quiz.jsonl", rows)
    return folder / "quiz.jsonl"


def entry(folder: Path, **changes) -> OwnTask:
    values = {"kind": "multiple_choice", "items": str(quiz(folder)), "columns": COLUMNS}
    return parse({"mine/quiz": values | changes})["mine/quiz"]


def test_one_file_is_divided_by_its_ids_and_named_as_the_kind_has_it(tmp_path):
    add("mine/quiz", entry(tmp_path, dev_share=0.5), tmp_path / "data")
    parts = {
        split: read_jsonl(tmp_path / f"data/{split}/mine/quiz.jsonl") for split in ("test", "dev")
    }
    assert sum(map(len, parts.values())) == 24 and all(parts.values())
    asked = [row["prompt"] for rows in parts.values() for row in rows]
    assert len(set(asked)) == 24
    # A row that is added moves no other one to the other side.
    before = {row["id"] for row in parts["dev"]}
    row = {"question": "新", "options": ["犬", "鳥"], "answer": "鳥"}
    lines = quiz(tmp_path).read_text(encoding="utf-8")
    more = entry(tmp_path, dev_share=0.5)
    (tmp_path / "quiz.jsonl").write_text(json.dumps(row) + "\n" + lines, encoding="utf-8")
    add("mine/quiz", more, tmp_path / "data")
    after = read_jsonl(tmp_path / "data/dev/mine/quiz.jsonl")
    assert {row["id"] for row in after if row["prompt"] != "新"} == before
    rows = after + read_jsonl(tmp_path / "data/test/mine/quiz.jsonl")
    (added,) = [row for row in rows if row["prompt"] == "新"]
    assert added["gold"] == 1  # "鳥"


def test_a_task_is_known_to_the_data_folder_that_holds_it(tmp_path):
    add("mine/quiz", entry(tmp_path), tmp_path)
    (task,) = select(["mine"], own=own_tasks(tmp_path))
    assert (task.name, task.metric, task.kind, task.shots) == (
        "mine/quiz",
        "acc",
        "multiple_choice",
        0,
    )
    assert task.chance == pytest.approx(1 / 3)
    assert load_definition(task)["target_delimiter"] == " "
    with pytest.raises(UserError, match="no suite named 'mine'"):
        select(["mine/quiz"])


def test_scores_are_those_of_the_same_rows_in_a_shipped_suite(world, tmp_path):
    """The bottle's own rows, given as a user's task, get the bottle's scores."""
    source = world / "data/test/bottle_ja8/jcomqa.jsonl"
    task = {"kind": "multiple_choice", "items": str(source), "dev_items": str(source)}
    add("mine/quiz", OwnTask(**task, delimiter=""), tmp_path)
    own = Harness(tmp_path, ["mine/quiz"], "test", world / "a")
    shipped = Harness(world / "data", ["bottle_ja8/jcomqa"], "test", world / "a")
    found, items = own.evaluate_folder(world / "a", "a")
    wanted, reference = shipped.evaluate_folder(world / "a", "a")
    entry, other = found["tasks"]["mine/quiz"], wanted["tasks"]["bottle_ja8/jcomqa"]
    assert {k: v for k, v in entry.items() if k != "metrics"} == {
        k: v for k, v in other.items() if k != "metrics"
    }
    assert [i["loglikelihoods"] for i in items] == [i["loglikelihoods"] for i in reference]


def test_examples_come_from_the_pool_and_stand_in_front(world, tmp_path):
    pool = [{"question": f"海 {n}", "options": ["犬", "鳥"], "answer": 0} for n in range(4)]
    write_rows(tmp_path / "pool.jsonl", pool)
    few_shot = {"pool": str(tmp_path / "pool.jsonl"), "count": 2}
    add("mine/quiz", entry(tmp_path, few_shot=few_shot), tmp_path / "data")
    harness = Harness(tmp_path / "data", ["mine/quiz"], "test", world / "a")
    lm_task = harness._lm_tasks["mine/quiz"]
    lm_task.build_all_requests()
    contexts = {instance.arguments[0] for instance in lm_task.instances}
    assert all(context.count("海") == 2 and context.count("猫") == 1 for context in contexts)
    assert all(context.rpartition("\n\n")[2].startswith("猫") for context in contexts)


def test_a_task_of_lm_eval_is_taken_with_its_functions(world, tmp_path):
    rows = [{"q": f"猫 {n}", "a": ["犬", "鳥"], "right": n % 2} for n in range(6)]
    write_rows(tmp_path / "rows.jsonl", rows)
    (tmp_path / "utils.py").write_text("def text(doc):\n    return 'Q: ' + doc['q']\n")
    (tmp_path / "quiz.yaml").write_text(
        "task: quiz\ndataset_path: json\n"
        f"dataset_kwargs: {{data_files: {{test: {tmp_path}/rows.jsonl}}}}\n"
        "output_type: multiple_choice\ntest_split: test\ndoc_to_text: !function utils.text\n"
        "doc_to_choice: a\ndoc_to_target: right\n"
        "metric_list: [{metric: acc_norm}, {metric: acc}]\nmetadata: {version: 2.0}\n"
    )
    task = OwnTask(lm_eval=str(tmp_path / "quiz.yaml"), dev_items=str(tmp_path / "rows.jsonl"))
    add("mine/quiz", task, tmp_path / "data")
    (tmp_path / "utils.py").unlink()  # the data folder has what it needs
    harness = Harness(tmp_path / "data", ["mine"], "test", world / "a")
    assert [text for _, text, _ in harness.contents()["mine/quiz"]] == [
        f"Q: 猫 {n}" for n in range(6)
    ]
    scores = harness.evaluate_folder(world / "a", "a")[0]["tasks"]["mine/quiz"]
    assert scores["metric"] == "acc_norm" and set(scores["metrics"]) == {"acc_norm", "acc"}


def test_a_generation_task_of_lm_eval_compares_with_its_target_column(world, tmp_path):
    write_rows(tmp_path / "rows.jsonl", [{"q": f"猫 {n}", "wanted": "犬"} for n in range(3)])
    (tmp_path / "write.yaml").write_text(
        "output_type: generate_until\ndoc_to_text: q\ndoc_to_target: wanted\n"
        "generation_kwargs: {until: ['\\n'], max_gen_toks: 2}\n"
        "metric_list: [{metric: exact_match}]\n"
    )
    rows = str(tmp_path / "rows.jsonl")
    task = OwnTask(lm_eval=str(tmp_path / "write.yaml"), items=rows, dev_items=rows)
    add("mine/write", task, tmp_path / "data")
    harness = Harness(tmp_path / "data", ["mine/write"], "dev", world / "a")
    scores, items = harness.evaluate_folder(world / "a", "a")
    assert {item["gold"] for item in items} == {"犬"}
    assert math.isfinite(scores["tasks"]["mine/write"]["value"])


def test_a_query_runs_on_the_database_that_came_with_it(world, database, tmp_path):
    rows = [{"prompt": "質問:猫", "query": " SELECT name FROM pets", "database": database.name}]
    write_rows(tmp_path / "rows.jsonl", rows)
    file = str(tmp_path / "rows.jsonl")
    task = OwnTask(kind="sql", items=file, dev_items=file, databases=str(database.parent))
    add("mine/pets", task, tmp_path / "data")
    (copied,) = (tmp_path / "data/databases").iterdir()
    assert copied.read_bytes() == database.read_bytes()
    harness = Harness(tmp_path / "data", ["mine"], "test", world / "a")
    (item,) = harness.evaluate_folder(world / "a", "a")[1]
    assert item["outcome"] and item["database"] == copied.name


@pytest.mark.parametrize(
    ("tasks", "message"),
    [
        ({}, "no entries"),
        ({"quiz": {}}, "not a task's name"),
        ({"ja8/quiz": {}}, "ja8 is a suite of this project"),
        (
            {"mine/q": {"kind": "multiple_choice", "itms": "x"}},
            "unknown key 'itms' at tasks.mine/q ",
        ),
        ({"mine/q": {"kind": "choice", "items": "x"}}, "tasks.mine/q.kind: "),
        ({"mine/q": {"items": "x"}}, "either 'kind' or 'lm_eval'"),
        ({"mine/q": {"kind": "generation"}}, "no 'items'"),
        (
            {"mine/q": {"kind": "generation", "items": "x", "columns": {"gold": "y"}}},
            "has no 'gold'",
        ),
        (
            {"mine/q": {"kind": "generation", "items": "x", "metric": "exact"}},
            "did you mean 'exact_match'",
        ),
        ({"mine/q": {"kind": "sql", "items": "x"}}, "databases"),
        ({"mine/q": {"kind": "multi", "items": "x"}}, "kind: .*did you mean 'multiple_choice'"),
        (
            {"mine/q": {"kind": "generation", "items": "x", "few_shot": {"poll": "y", "count": 1}}},
            "few_shot.pool: Field required|unknown key 'poll'",
        ),
    ],
)
def test_a_wrong_entry_is_one_line(tasks, message):
    with pytest.raises(UserError, match=message) as caught:
        parse(tasks)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("[1]", "line 2: not a JSON object; write one object a line"),
        ("{", "line 2: not valid JSON .*write one JSON object a line"),
        ('{"question": "a", "options": ["b"]}', r"line 2: no 'answer' \(its gold\); add it"),
        ('{"question": "a", "options": ["b"], "answer": 1}', "line 2: 1 names no choice"),
        ('{"question": "a", "options": ["b"], "answer": "c"}', "line 2: 'c' names no choice"),
        ('{"question": 1, "options": ["b"], "answer": "b"}', "line 2: 'prompt'.* is not a text"),
        (None, r"line 2: the same item \(or id\) as line 1"),
    ],
)
def test_a_wrong_row_is_named_by_file_and_line(tmp_path, line, message):
    task = entry(tmp_path)
    first = (tmp_path / "quiz.jsonl").read_text(encoding="utf-8").splitlines()[0]
    (tmp_path / "quiz.jsonl").write_text(f"{first}\n{line or first}\n", encoding="utf-8")
    with pytest.raises(UserError, match=f"tasks.mine/quiz: .*quiz.jsonl, {message}") as caught:
        add("mine/quiz", task, tmp_path / "data")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "data").exists()


def test_missing_and_empty_files_are_told_before_anything_is_written(tmp_path):
    with pytest.raises(UserError, match=r"no such file nothing.jsonl \(looked for from /"):
        add("mine/quiz", entry(tmp_path, items="nothing.jsonl"), tmp_path / "data")
    task = entry(tmp_path)
    (tmp_path / "quiz.jsonl").write_text("")
    with pytest.raises(UserError, match="holds no items"):
        add("mine/quiz", task, tmp_path / "data")
    assert not (tmp_path / "data").exists()


def test_the_command_takes_a_small_yaml_and_evaluates_it(world, tmp_path, capsys):
    quiz(tmp_path)
    (tmp_path / "quiz.yaml").write_text(
        "tasks:\n  mine/quiz:\n    kind: multiple_choice\n"
        f"    items: {tmp_path}/quiz.jsonl\n    columns: {json.dumps(COLUMNS)}\n"
    )
    assert set(read_tasks(tmp_path / "quiz.yaml")) == {"mine/quiz"}
    data, out = tmp_path / "data", tmp_path / "scores.json"
    given = ["--model", str(world / "a"), "--data", str(data), "--out", str(out)]
    assert main([*given, "--tasks", str(tmp_path / "quiz.yaml")]) == 0
    scores = json.loads(out.read_text())
    assert list(scores["tasks"]) == ["mine/quiz"] and scores["suites"]["mine"]["acc"]["tasks"] == 1
    # The folder knows the task from now on.
    assert main([*given, "--suites", "mine/quiz", "--split", "dev"]) == 0
    assert main(["tasks", str(tmp_path / "quiz.yaml"), "--data", str(data)]) == 0
    assert "mine/quiz: " in capsys.readouterr().out
    (tmp_path / "quiz.jsonl").unlink()
    with pytest.raises(UserError, match=r"quiz\.yaml: tasks\.mine/quiz: no such file"):
        main(["tasks", str(tmp_path / "quiz.yaml"), "--data", str(data)])
