"""The table in docs/evaluation.md says what the code does."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from evaluation.data.sources import load_sources
from evaluation.definitions import load_definition
from evaluation.suites import load_suites, select

ROOT = Path(__file__).parents[2]
COLUMNS = {"published": "`published`", "corrected": "`corrected` instead"}


def table() -> dict[str, dict[str, str]]:
    """Return the rows by task, a task's empty cells filled from its suite's row."""
    text = (ROOT / "docs/evaluation.md").read_text(encoding="utf-8")
    lines = text[text.index("| task") :].split("\n\n")[0].splitlines()
    head, _, *body = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines]
    head = ["task", "source", "items", "shots", "scores", *head[5:]]
    rows, suite, common = {}, "", {}
    for cells in body:
        row = dict(zip(head, cells, strict=True))
        found = re.match(r"\*\*(\w+)\*\*, all", row["task"])
        if found:
            suite, common = found[1], row
        else:
            row["items"] = row["items"].replace(",", "")
            rows[f"{suite}/{row['task']}"] = {k: v or common[k] for k, v in row.items()}
    return rows


TASKS = {
    task.name: task
    for suite in load_suites().values()
    for task in suite.tasks.values()
    if not suite.name.startswith("bottle_")
}


def test_every_task_has_its_row_and_no_other():
    assert list(table()) and set(table()) == set(TASKS)


@pytest.mark.parametrize("name", TASKS)
def test_a_row_says_items_shots_and_scores_as_the_code_has_them(name):
    row, task, source = table()[name], TASKS[name], load_sources()[name]
    count = source.files["items"].rows
    assert row["items"] == (str(count) if count else source.files["items"].path.split("/")[-1][:-6])
    shots = re.match(r"\d+", row["shots"])
    if shots:
        assert int(shots[0]) == task.shots
    else:
        assert task.shots == 0 and "six fixed" in row["shots"]
    if task.suite == "okapi_de" and name.endswith(("arc", "mmlu")):
        assert "mlmm: 25 for arc, mmlu" in row["shots"]
        assert select([name.replace("/", ":mlmm/")])[0].shots == 25
    scores = re.sub(r"; .*", "", row["scores"]).split(", ")
    metrics = [entry["metric"] for entry in load_definition(task)["metric_list"]]
    if task.suite == "kobest":
        assert set(scores) == set(metrics)
    else:
        assert sorted(scores) == sorted(metrics)
    assert scores[0] == task.metric


@pytest.mark.parametrize("name", [n for n in TASKS if n in ("ja8/jnli", "ja8/marc_ja")])
def test_what_tables_show_by_fidelity(name):
    row, suite_id = table()[name], name.split("/")
    for fidelity in ("published", "corrected"):
        (task,) = select([f"{suite_id[0]}:{fidelity}/{suite_id[1]}"])
        cell = row[COLUMNS[fidelity]]
        assert f"{task.metric} in tables" in cell


@pytest.mark.parametrize(
    ("name", "fidelity", "cap"),
    [
        ("jsquad", "corrected", 256),
        ("jaqket_v2", "corrected", 256),
        ("xlsum_ja", "corrected", 256),
        ("mgsm", "published", 256),
        ("mgsm", "corrected", 512),
    ],
)
def test_caps_stand_in_the_table(name, fidelity, cap):
    (task,) = select([f"ja8:{fidelity}/{name}"])
    assert load_definition(task)["generation_kwargs"]["max_gen_toks"] == cap
    cell = table()[f"ja8/{name}"][
        "`published`" if fidelity == "published" else "`corrected` instead"
    ]
    assert str(cap) in cell or cell == "as jsquad"


def test_tokenisation_stands_in_the_table():
    published, corrected = (
        select([f"ja8:{fidelity}/jnli"])[0] for fidelity in ("published", "corrected")
    )
    assert (published.how, published.bos) == ("separate", False)
    assert (corrected.how, corrected.bos) == ("joint", True)
    text = (ROOT / "docs/evaluation.md").read_text(encoding="utf-8")
    assert "prompt and answer tokenised apart, no BOS | together, BOS |" in text
