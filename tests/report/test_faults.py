"""Damaged and foreign files: each costs its row or its cell, is named, and all else is made."""

from __future__ import annotations

import csv
import json

import pytest

from report import cli
from report.ablation_table import ablation_grid
from report.load import load

SCORES = "case1/scores/test/soup.json"
TASK = "bottle_ja8/a"


def change(path, edit):
    content = json.loads(path.read_text())
    edit(content)
    path.write_text(json.dumps(content))


def made(small, command="tables", *more):
    """Run a command of the report and return its exit code."""
    config, results, _ = small
    out = results.parent / command
    options = ["--config", config, "--results", results, "--out", out, *more]
    return cli.main([command, *map(str, options)])


def rows(small):
    with (small[1].parent / "tables/table1.csv").open(encoding="utf-8") as file:
        return {row["id"]: row for row in csv.DictReader(file)}


def entry(**values):
    return lambda content: content["tasks"][TASK].update(values)


@pytest.mark.parametrize(
    ("edit", "said"),
    [
        (entry(value=float("nan")), "has the score nan, which is not between 0 and 1"),
        (entry(value=float("inf")), "has the score inf"),
        (entry(value=87.5), "has the score 87.5"),
        (entry(value=-0.5), "has the score -0.5"),
        (entry(stderr=float("nan")), "has the standard error nan"),
        (entry(stderr=-1), "has the standard error -1"),
        (entry(stderr=1e308), "has the standard error 1e+308"),
        (entry(items="many"), "is not a score"),
        (entry(value=None), "is not a score"),
        (entry(items=7), "has 7 items in"),
        (entry(metric="rouge1"), "has the metric rouge1"),
    ],
)
def test_a_bad_cell_is_empty_and_named_with_its_file(small, capsys, edit, said):
    assert made(small) == 0
    before = rows(small)
    change(small[1] / SCORES, edit)
    assert made(small) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: {TASK} {said}") and str(small[1] / SCORES) in line
    after = rows(small)
    assert (after["soup"]["A_1"], after["soup"]["Avg"]) == ("", "")
    assert after["soup"]["Pair"] == before["soup"]["Pair"]
    assert {id: row for id, row in after.items() if id != "soup"} == {
        id: row for id, row in before.items() if id != "soup"
    }
    assert f"Model Soups, A\\_1: {TASK.replace('_', chr(92) + '_')}" in (
        small[1].parent / "tables/table1.md"
    ).read_text(encoding="utf-8")


@pytest.mark.parametrize("name", ["9" * 300, "s/" + "9" * 300, "x" * 5000, "a\0b"])
@pytest.mark.parametrize("where", ["tasks", "split"])
def test_a_name_that_no_file_can_have_costs_no_other_row(small, name, where):
    assert made(small) == 0
    before = rows(small)
    task = {"tasks": {name: {"value": 0.5, "stderr": 0.1, "items": 2, "metric": "acc"}}}
    change(
        small[1] / SCORES,
        lambda content: (
            content["tasks"].update(task["tasks"])
            if where == "tasks"
            else content.update(split=name)
        ),
    )
    made(small)
    after = rows(small)
    assert {id: row for id, row in after.items() if id != "soup"} == {
        id: row for id, row in before.items() if id != "soup"
    }


@pytest.mark.parametrize("text", ["", '{"tasks": {', "[]", "{}", '{"tasks": 5}', '{"tasks": [1]}'])
@pytest.mark.parametrize(
    "name",
    [
        SCORES,
        "case1/smoke.json",
        "case1/gate.json",
        "case1/merges/soup/manifest.json",
        "case1/merges/soup/cost.json",
        "ablation/kl/seed1/scores.json",
    ],
)
def test_a_damaged_file_is_named_and_the_rest_is_made(small, capsys, name, text):
    (small[1] / name).write_text(text, encoding="utf-8")
    wrong = not (text.startswith("{") and json_of(text) is not None and "scores" not in name)
    wrong = wrong or (text == "{}" and "smoke" in name)
    code, said = made(small), capsys.readouterr().err
    assert (code == 1) == (str(small[1] / name) in said)
    if wrong:
        assert code == 1
    found = rows(small)
    assert found["dam"]["Avg"] and bool(found["soup"]["Avg"]) == (name != SCORES)
    assert made(small, "tables", "--go-on") == 0


def json_of(text):
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return None


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("case1/merges/soup/cost.json", {"counted": None}, "counted is NoneType"),
        ("case1/merges/soup/manifest.json", {"parameters": None}, "parameters is NoneType"),
        ("case1/merges/soup/manifest.json", {"inputs": {"a": []}}, "inputs.a is list"),
        ("case1/gate.json", {"experts": {"ja": {}}}, "it lacks experts.ja.tasks"),
        ("case1/smoke.json", {"model": {}}, "it lacks parents"),
        (SCORES, {"tasks": {}, "lm_eval": {}}, "lm_eval is dict, not str"),
        (SCORES, {"tasks": {TASK: {"metric": []}}}, f"tasks.{TASK}.metric is list, not str"),
    ],
)
def test_a_wrong_part_is_named(small, capsys, name, content, said):
    (small[1] / name).write_text(json.dumps(content))
    assert made(small) == 1
    assert f"{small[1] / name}: not a " in (line := capsys.readouterr().err) and said in line


@pytest.mark.parametrize(
    ("key", "value", "status"),
    [
        ("split", "dev", "failed: scores of the split 'dev', not test"),
        ("model", "dam", "failed: scores of the model 'dam'"),
        ("seed", 77, "of another world (seed 77, not 7)"),
    ],
)
def test_scores_of_something_else_are_no_numbers_of_the_row(small, key, value, status):
    change(small[1] / SCORES, lambda content: content.update({key: value}))
    code = made(small)
    row = rows(small)["soup"]
    assert (code, row["status"], row["Avg"]) == (1, status, "")


def test_another_harness_and_a_missing_task_are_said(small):
    for path in (small[1] / "case1/scores/test").glob("*.json"):
        if "cost" not in path.name:
            change(path, lambda c: c.update(lm_eval="0.4.13"))
    change(small[1] / SCORES, lambda c: c.update(lm_eval="0.3.0"))
    change(small[1] / "case1/scores/test/dam.json", lambda c: c["tasks"].pop(TASK))
    assert made(small) == 0  # a column may be newer than the scores
    text = (small[1].parent / "tables/table1.md").read_text(encoding="utf-8").replace("\\", "")
    assert "Evaluated with lm-eval 0.3.0, unlike the others: Model Soups." in text
    assert f"DAM, A_1: no score of {TASK} in case1/scores/test/dam.json." in text


def test_other_items_than_the_other_rows_answered_are_noticed(small):
    for name, of in (("soup", "1"), ("dam", "2"), ("slerp", "2")):
        path = small[1] / f"case1/scores/test/{name}.manifest.json"
        path.write_text(json.dumps({"kind": "scores", "inputs": {TASK: of * 64}}))
    assert made(small) == 1
    assert (rows(small)["soup"]["A_1"], rows(small)["dam"]["A_1"] != "") == ("", True)


def test_a_model_without_manifest_has_data_that_are_not_recorded(small):
    for name in ("soup", "dam", "ties_tuned"):
        (small[1] / f"case1/merges/{name}/manifest.json").unlink()
    assert made(small) == 0
    assert {rows(small)[n]["data"] for n in ("soup", "dam", "ties_tuned")} == {"not recorded"}


def test_a_mean_over_fewer_seeds_is_counted_and_not_the_best(small):
    for seed in (1, 2):
        change(
            small[1] / f"ablation/mse/seed{seed}/scores.json",
            lambda c: [e.update(value=0.99) for e in c["tasks"].values()],
        )
    (small[1] / "ablation/mse/seed0/scores.json").unlink()
    grid = ablation_grid(load(small[0], small[1]).ablation)
    labels = {row.cells[0].text: row.cells[1].strong for row in grid.rows}
    assert labels == {"KL": True, "MSE (2 of 3 seeds)": False}


def test_a_cell_that_one_world_lacks_is_counted_and_not_marked(small):
    from tests.report.conftest import fill, write

    config = small[2] | {"seeds": [7, 8]}
    config.pop("seed")
    write(small[0], config)
    fill(small[1], config)
    for world in ("case1", "case1-seed8"):
        path = small[1] / f"{world}/scores/test/soup.json"
        change(path, entry(value=1.0, stderr=0.0))
    change(path, entry(value=float("nan")))
    assert made(small) == 1
    text = (small[1].parent / "tables/table1.md").read_text(encoding="utf-8").replace("\\", "")
    assert f"Model Soups, A_1: 1 of 2 worlds (seed 8: {TASK} has the score nan" in text
    (line,) = [line for line in text.splitlines() if line.startswith("| Model Soups")]
    assert "| 1.000 " in line and "**1.000**" not in line
