"""The suites' metadata against the lm-eval definitions beside them."""

from __future__ import annotations

import pytest

from common.errors import UserError
from evaluation.suites import FOLDER, KINDS, load_suites, read_yaml, select

TASKS = [task for suite in load_suites().values() for task in suite.tasks.values()]


def test_every_definition_belongs_to_a_suite_and_the_reverse():
    files = {path for path in FOLDER.rglob("*.yaml") if path.name != "suite.yaml"}
    assert files == {task.definition for task in TASKS}
    assert {path.parent.name for path in FOLDER.rglob("suite.yaml")} == set(load_suites())
    assert all((FOLDER / suite / "README.md").is_file() for suite in load_suites())


@pytest.mark.parametrize("task", TASKS, ids=lambda task: task.name)
def test_metadata_and_definition_agree(task):
    definition = read_yaml(task.definition)
    chooses = task.kind == "multiple_choice"
    assert definition["task"] == task.lm_eval_name
    assert definition["metric_list"] == [
        {"metric": task.metric, "aggregation": "mean", "higher_is_better": True}
    ]
    assert definition["output_type"] == ("multiple_choice" if chooses else "generate_until")
    assert definition["target_delimiter"] == ""
    assert task.kind in KINDS
    assert (0 < task.chance < 1) if chooses else task.chance == 0
    if not chooses:
        assert definition["generation_kwargs"]["do_sample"] is False
        assert definition["generation_kwargs"]["until"] == ["\n"]


def test_names_inside_lm_eval_are_unique():
    assert len({task.lm_eval_name for task in TASKS}) == len(TASKS)


def test_select_takes_suites_and_single_tasks_once():
    names = [
        task.name for task in select(["bottle_kobest/copa", "bottle_kobest", "bottle_heldout"])
    ]
    assert names[0] == "bottle_kobest/copa"
    assert sorted(names) == sorted(
        [f"bottle_kobest/{id}" for id in ("boolq", "copa", "hellaswag", "sentineg", "wic")]
        + ["bottle_heldout/sql_ko"]
    )


def test_a_mistyped_name_gets_the_nearest():
    with pytest.raises(UserError, match=r"no suite named 'bottle_ja9' \(did you mean 'bottle_ja8'"):
        select(["bottle_ja9"])
    with pytest.raises(UserError, match=r"no task named .*did you mean 'bottle_ja8/jsquad'"):
        select(["bottle_ja8/jsqad"])
    with pytest.raises(UserError, match="no suite was named"):
        select([])
