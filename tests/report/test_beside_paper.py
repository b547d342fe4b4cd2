"""The paper's values next to ours: the difference, the verdict, and why some do not compare."""

from __future__ import annotations

import json
import math

import pytest

from report import published
from report.averages import Score
from report.beside_paper import against, values_grid
from report.load import load
from tests.report.conftest import score, write


@pytest.mark.parametrize(
    ("stated", "value", "stderr", "verdict"),
    [
        (0.62, 0.60, 0.0100, "within error"),  # .02 is at most .0196 and .005
        (0.62, 0.59, 0.0100, "different"),
        (0.6125, 0.593, 0.0100, "within error"),  # .0195 is at most .0196 and .00005
        (0.6125, 0.592, 0.0100, "different"),
        (0.55, 0.5549, 0.0, "within error"),  # it may have been rounded down to .55
        (0.55, 0.556, 0.0, "different"),
    ],
)
def test_a_difference_is_judged_by_our_error_and_the_papers_rounding(
    stated, value, stderr, verdict
):
    gap, word = against(stated, Score(value, stderr, 200))
    assert math.isclose(gap, value - stated) and word == verdict


def table(small, **changes) -> list[list[str]]:
    """Rows of the stated values of Table 1's JComQA for a made-up DARE-TIES."""
    config, results, about = small
    about["methods"] |= {"dare_ties": {"label": "DARE-TIES", "method": "dare_ties"}}
    case = about["cases"]["case1"]
    task = changes.pop("task", "ja8/jcommonsenseqa")
    case["columns"] = [{"label": "JComQA", "tasks": [task]}]
    case["beside"] = []
    case["base"] = changes.pop("base", {"hub": "mistral_7b"})
    entry = score(0.8) | changes.pop("score", {})
    write(config, about | {"hub": {"table": "paper/hub.tsv"}} | changes)
    content = json.loads((results / "case1/scores/test/base.json").read_text())
    content |= {"model": "dare_ties", "tasks": {task: entry}}
    write(results / "case1/scores/test/dare_ties.json", content)
    grid = values_grid(load(config, results), published.load())
    rows = [[cell.text for cell in row.cells] for row in grid.rows]
    return [row for row in rows if row[1] == "JComQA" and row[3] == "DARE-TIES"]


def test_published_models_and_tasks_compare(small):
    ((*_, stated, ours, gap, verdict),) = table(small)
    # The standard error of .8 of 200 items is .028, so that .02 is no difference.
    assert (stated, ours, gap, verdict) == (".82", ".800", "-.020", "within error")


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"task": "bottle_ja8/jcomqa"}, "generated tasks"),
        (
            {"score": {"stand_in": {"items": "made by hand"}}},
            "rows that stand in for the benchmark's",
        ),
        ({"base": {"package": "gemma3-270m"}}, "other models"),
        ({"hub": {"table": "mine.tsv"}}, "other models"),
        ({"hub": {"table": "paper/hub.tsv", "stand_ins": "a.yaml"}}, "other models"),
        ({"evaluation": {"limit": 100}}, "100 items of each task"),
        (
            {"task": "bottle_ja8/jcomqa", "base": {}, "evaluation": {"limit": 9}},
            "generated tasks, other models, 9 items of each task",
        ),
    ],
)
def test_what_does_not_compare_says_why(small, changes, why):
    ((*_, ours, gap, verdict),) = table(small, **changes)
    assert (ours, gap, verdict) == (".800", "–", f"not comparable: {why}")


def test_a_column_that_we_lack_is_said_to_be_missing(small):
    table(small)
    grid = values_grid(load(*small[:2]), published.load())
    rows = [[cell.text for cell in row.cells] for row in grid.rows]
    assert [row[-1] for row in rows if row[1] == "MGSM"] == ["no such column"]
