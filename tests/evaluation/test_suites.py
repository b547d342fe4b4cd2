"""The suites' metadata against the lm-eval definitions beside them, and names of variants."""

from __future__ import annotations

from pathlib import Path

import pytest

from common.errors import UserError
from evaluation import metrics
from evaluation.definitions import bind, load_definition
from evaluation.ends import ENDS
from evaluation.suites import FOLDER, KINDS, load_suites, select

TASKS = [task for suite in load_suites().values() for task in suite.tasks.values()]
VARIANTS = [
    task
    for suite in load_suites().values()
    for prompt in suite.prompts or [None]
    for task in select([suite.name], "both", prompt)
]
BOTTLE = [task for task in TASKS if task.maker == "bottle"]


def test_every_definition_belongs_to_a_suite_and_the_reverse():
    files = {path for path in FOLDER.rglob("*.yaml") if path.name != "suite.yaml"}
    assert files == {task.definition for task in TASKS if task not in BOTTLE}
    assert {path.parent.name for path in FOLDER.rglob("suite.yaml")} == set(load_suites())


def test_every_task_names_what_makes_its_items():
    makers = {task.suite: (task.maker, task.world) for task in TASKS}
    assert makers.pop("bottle_ja8") == ("bottle", "case1")
    assert makers.pop("bottle_heldout") == ("bottle", "case2")
    benchmarks = {"ja8", "kobest", "okapi_de", "sql_eval"}
    assert {suite for suite, (maker, _) in makers.items() if maker == "benchmark"} == benchmarks


@pytest.mark.parametrize("task", VARIANTS, ids=lambda task: task.name)
def test_metadata_and_definition_agree(task):
    definition = load_definition(task)
    chooses = task.kind == "multiple_choice"
    assert definition["task"] == task.lm_eval_name
    assert definition["output_type"] == ("multiple_choice" if chooses else "generate_until")
    names = {entry["metric"]: entry.get("aggregation") for entry in definition["metric_list"]}
    assert task.metric in names
    assert set(names.values()) <= {None, *metrics.AGGREGATES}
    assert task.shots == definition.get("num_fewshot", 0)
    assert task.kind in KINDS
    if not chooses:
        assert task.chance == 0
        assert definition["generation_kwargs"]["do_sample"] is False
        settings = definition["generation_kwargs"]
        assert settings["until"] or settings["ends"] in ENDS


@pytest.mark.parametrize("task", BOTTLE, ids=lambda task: task.name)
def test_the_bottles_prompts_and_answers_are_joined_as_they_stand(task):
    definition = load_definition(task)
    assert definition["target_delimiter"] == "" and definition["doc_to_text"] == "prompt"
    assert (0 < task.chance < 1) == (task.kind == "multiple_choice")
    assert (task.how, task.bos, task.shots) == ("joint", True, 0)


def test_names_inside_lm_eval_are_unique():
    assert len({task.lm_eval_name for task in VARIANTS}) == len(VARIANTS)
    assert len({task.name for task in VARIANTS}) == len(VARIANTS)


def test_select_takes_suites_and_single_tasks_once():
    names = [
        task.name for task in select(["bottle_kobest/copa", "bottle_kobest", "bottle_heldout"])
    ]
    assert names[0] == "bottle_kobest/copa"
    assert sorted(names) == sorted(
        [f"bottle_kobest/{id}" for id in ("boolq", "copa", "hellaswag", "sentineg", "wic")]
        + ["bottle_heldout/sql_ko"]
    )


@pytest.mark.parametrize(
    "name,fidelity,prompt,found",
    [
        ("ja8/jnli", None, None, ["ja8/jnli"]),
        ("ja8/jnli", "published", "0.3", ["ja8/jnli"]),
        ("ja8/jnli", "corrected", None, ["ja8:corrected/jnli"]),
        ("ja8/jnli", "both", "0.6", ["ja8:0.6/jnli", "ja8:corrected:0.6/jnli"]),
        ("ja8:0.6/jnli", "corrected", None, ["ja8:corrected:0.6/jnli"]),
        ("ja8:0.6:corrected/jnli", "both", "0.3", ["ja8:corrected:0.6/jnli"]),
        # Suites without variants take no notice.
        ("bottle_ja8/jnli", "both", "0.6", ["bottle_ja8/jnli"]),
    ],
)
def test_a_name_says_its_variant(name, fidelity, prompt, found):
    tasks = select([name], fidelity, prompt)
    assert [task.name for task in tasks] == found
    assert [select([task.name]) for task in tasks] == [[task] for task in tasks]


def test_variants_differ_as_their_suite_says():
    published, corrected = select(["ja8/jnli"], "both")
    assert (published.metric, corrected.metric) == ("acc", "balanced_acc")
    assert (published.how, published.bos) == ("separate", False)
    assert (corrected.how, corrected.bos) == ("joint", True)
    assert [task.scale for task in select(["ja8/jsquad"], "both")] == [100, 1]


@pytest.mark.parametrize(
    "names,prompt,message",
    [
        (["bottle_ja9"], None, r"no suite named 'bottle_ja9' \(did you mean 'bottle_ja8'"),
        (["bottle_ja8/jsqad"], None, r"no task named .*did you mean 'bottle_ja8/jsquad'"),
        (["ja8:corected"], None, r"no variant 'corected' \(did you mean 'corrected'"),
        (["bottle_ja8:corrected"], None, "no variant 'corrected'"),
        (["ja8:corrected:published/jnli"], None, "says its fidelity twice; give both by commas"),
        (["ja8:0.6:0.3"], None, "says its prompt twice"),
        (["ja8"], "0.4", "suite ja8 has no prompt version '0.4'"),
        ([], None, "no suite was named"),
    ],
)
def test_a_mistyped_name_gets_the_nearest(names, prompt, message):
    with pytest.raises(UserError, match=message):
        select(names, None, prompt)


def test_functions_get_what_they_name_and_nothing_else():
    def cap(row, tokenizer):
        return tokenizer + row

    def plain(row):
        return row

    bound = bind(
        {"doc_to_text": plain, "metadata": {"cap": cap}, "n": 3}, tokenizer=2, context=None
    )
    assert bound["doc_to_text"] is plain and bound["n"] == 3
    assert bound["metadata"]["cap"](5) == 7


def test_an_unknown_function_is_named(tmp_path, monkeypatch):
    task = select(["ja8/jnli"])[0]
    text = task.definition.read_text(encoding="utf-8").replace("functions.relation", "functions.x")
    (tmp_path / "ja8").mkdir()
    (tmp_path / "ja8/jnli.yaml").write_text(text, encoding="utf-8")
    monkeypatch.setattr("evaluation.suites.FOLDER", Path(tmp_path))
    with pytest.raises(UserError, match=r"jnli\.yaml: no function 'functions\.x'"):
        load_definition(task)
