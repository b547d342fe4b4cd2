"""KoBEST: prompts pinned as text, requests against lm-eval's own tasks, scores against others."""

from __future__ import annotations

import json
import math
import os
import random
from pathlib import Path

import pytest

from evaluation.data.build import convert_local
from evaluation.data.sources import load_sources
from evaluation.definitions import load_definition
from evaluation.metrics import aggregate, choice_values
from evaluation.suites import load_suites, select
from evaluation.tasks.kobest.functions import subject_particle


@pytest.fixture(scope="session", autouse=True)
def libraries():
    """Import what takes seconds only when the tests run: collecting them stays quick."""
    global LocalTask
    from evaluation.lm_task import LocalTask


FOLDER = os.environ.get("BOTTLE_DATA")
real_data = pytest.mark.skipif(
    FOLDER is None, reason="needs real benchmark files: set BOTTLE_DATA to their folder"
)
TASKS = ("boolq", "copa", "hellaswag", "sentineg", "wic")
# Rows made by hand in the benchmark's columns; the blanks at ends occur in the real ones.
MADE = {
    "boolq": [
        {
            "id": 0,
            "paragraph": "해는 동쪽에서 뜬다. ",
            "question": "해는 서쪽에서 뜨나요?",
            "label": 0,
        },
        {"id": 1, "paragraph": "물은 젖는다.", "question": "물은 젖나요? ", "label": 1},
    ],
    "copa": [
        {
            "id": 0,
            "premise": "비가 왔다. ",
            "question": "결과",
            "alternative_1": "땅이 말랐다.",
            "alternative_2": "땅이 젖었다. ",
            "label": 1,
        },
        {
            "id": 1,
            "premise": "꽃이 피었다.",
            "question": "원인 ",
            "alternative_1": "봄이 왔다.",
            "alternative_2": "눈이 왔다.",
            "label": 0,
        },
    ],
    "hellaswag": [
        {
            "id": 0,
            "context": "아이가 공을 찬다. 공이 난다. ",
            "ending_1": "공이 떨어진다.",
            "ending_2": "공이 잔다.",
            "ending_3": "공이 운다.",
            "ending_4": "공이 먹는다. ",
            "label": 0,
        },
        {
            "id": 1,
            "context": "문을 연다.",
            "ending_1": "문이 난다.",
            "ending_2": "문이 운다.",
            "ending_3": "방에 들어간다.",
            "ending_4": "문이 먹는다.",
            "label": 2,
        },
    ],
    "sentineg": [
        {"id": 0, "sentence": "정말 좋아요 ", "label": 1},
        {"id": 1, "sentence": "별로네요", "label": 0},
    ],
    "wic": [
        {
            "id": 0,
            "word": "손",
            "context_1": "[손]을 잡다.",
            "context_2": "[손]이 모자라다. ",
            "label": 0,
        },
        {
            "id": 1,
            "word": "다리",
            "context_1": "[다리]를 건너다.",
            "context_2": "[다리]가 끊겼다.",
            "label": 1,
        },
    ],
}
# The first row of each task above: context, then the continuations.
PINNED_MADE = {
    "boolq": ("해는 동쪽에서 뜬다.  질문: 해는 서쪽에서 뜨나요? 답변: ", [" 아니오", " 예"]),
    "copa": ("비가 왔다.   그래서", [" 땅이 말랐다.", " 땅이 젖었다. "]),
    "hellaswag": (
        "문장: 아이가 공을 찬다. 공이 난다. ",
        [" 공이 떨어진다.", " 공이 잔다.", " 공이 운다.", " 공이 먹는다. "],
    ),
    "sentineg": ("문장: 정말 좋아요  긍부정:", [" 부정", " 긍정"]),
    "wic": (
        "문장1: [손]을 잡다. 문장2: [손]이 모자라다.  두 문장에서 손가 같은 뜻으로 쓰였나?",
        [" 아니오", " 예"],
    ),
    "corrected/boolq": (
        "해는 동쪽에서 뜬다. 질문: 해는 서쪽에서 뜨나요? 답변:",
        [" 아니오", " 예"],
    ),
    "corrected/copa": ("비가 왔다. 그래서", [" 땅이 말랐다.", " 땅이 젖었다."]),
    "corrected/hellaswag": (
        "문장: 아이가 공을 찬다. 공이 난다.",
        [" 공이 떨어진다.", " 공이 잔다.", " 공이 운다.", " 공이 먹는다."],
    ),
    "corrected/sentineg": ("문장: 정말 좋아요 긍부정:", [" 부정", " 긍정"]),
    "corrected/wic": (
        "문장1: [손]을 잡다. 문장2: [손]이 모자라다. 두 문장에서 손이 같은 뜻으로 쓰였나?",
        [" 아니오", " 예"],
    ),
}
PINNED_REAL = {
    "boolq": (
        "콜라독립 815(815 Cola)는 코카콜라를 대한민국에서 라이선스로 만들어 오던 범양식품이 1998년 "
        "4월 1일에 출시한 탄산음료다. 질문: 콜라독립 815는 코카콜라에서 만들었나요? 답변: ",
        [" 아니오", " 예"],
        0,
    ),
    "copa": (
        "새로 산 바지의 허리가 컸다.  그래서",
        [" 바지의 밑단을 잘랐다.", " 벨트를 바지에 끼워 사이즈를 조절했다."],
        1,
    ),
    "sentineg": ("문장: 택배사 정말 마음에 듬 긍부정:", [" 부정", " 긍정"], 1),
}


def local_task(name: str, rows: list[dict]) -> LocalTask:
    (task,) = select([name])
    return LocalTask(load_definition(task), rows, [])


def requests(task) -> list[tuple[str, str]]:
    """What a model is asked: (context, continuation), in order."""
    task.build_all_requests()
    return [instance.arguments for instance in task.instances]


def own_task_of_lm_eval(file: str, rows: list[dict], split: str):
    """lm-eval's own task of that file, over our rows in place of a download."""
    import datasets
    import lm_eval
    from lm_eval.api.task import ConfigurableTask
    from lm_eval.tasks._yaml_loader import load_yaml

    path = Path(lm_eval.__file__).parent / "tasks" / file
    config = load_yaml(path)
    splits = datasets.DatasetDict({split: datasets.Dataset.from_list(rows)})
    for name in ("training_split", "validation_split", "test_split", "fewshot_split"):
        config.pop(name, None)
    for metric in config["metric_list"]:
        metric.pop("hf_evaluate", None)
    config |= {"test_split": split, "custom_dataset": lambda **_: splits}
    return ConfigurableTask(config=config)


@pytest.mark.parametrize("name", PINNED_MADE)
def test_prompt_of_a_hand_made_row(name):
    fidelity, _, id = name.rpartition("/")
    task = f"kobest:{fidelity}/{id}" if fidelity else f"kobest/{id}"
    context, continuations = PINNED_MADE[name]
    asked = requests(local_task(task, MADE[id]))[: len(continuations)]
    assert asked == [(context, continuation) for continuation in continuations]


@real_data
@pytest.mark.parametrize("id", PINNED_REAL)
def test_prompt_of_the_first_real_item(id):
    (converted,) = convert_local([load_sources()[f"kobest/{id}"]], Path(FOLDER))
    rows = converted.rows["items"][:3]
    context, continuations, gold = PINNED_REAL[id]
    task = local_task(f"kobest/{id}", rows)
    asked = requests(task)[: len(continuations)]
    assert asked == [(context, continuation) for continuation in continuations]
    assert task.doc_to_target(rows[0]) == gold


@pytest.mark.parametrize("id", TASKS)
def test_published_requests_and_gold_are_those_of_lm_eval(id):
    rows = MADE[id]
    ours = local_task(f"kobest/{id}", rows)
    theirs = own_task_of_lm_eval(f"kobest/kobest_{id}.yaml", rows, "test")
    assert requests(ours) == requests(theirs)
    for row, doc in zip(rows, theirs.eval_docs, strict=True):
        gold = theirs.doc_to_target(doc)
        if isinstance(gold, str):  # COPA's is the text of the right alternative
            gold = theirs.doc_to_choice(doc).index(gold)
        assert ours.doc_to_target(row) == gold


def test_shown_metric_chance_and_fidelities():
    suite = load_suites()["kobest"]
    assert suite.fidelities == ("published", "corrected")
    assert list(suite.tasks) == list(TASKS)
    chances = {id: 1 / len(PINNED_MADE[id][1]) for id in TASKS}
    assert {id: task.chance for id, task in suite.tasks.items()} == chances
    for task in select(["kobest", "kobest:corrected"]):
        metrics = [entry["metric"] for entry in load_definition(task)["metric_list"]]
        assert metrics == ["acc", "acc_norm", "macro_f1"]
        assert task.metric in metrics


@pytest.mark.parametrize(
    ("word", "particle"), [("손", "이"), ("다리", "가"), ("말", "이"), ("배", "가"), ("TV", "가")]
)
def test_particle_by_the_last_consonant(word, particle):
    assert subject_particle(word) == particle


def record(loglikelihoods: list[float], choices: list[str], gold: int) -> dict:
    return {
        "loglikelihoods": loglikelihoods,
        "lengths": [len(choice) for choice in choices],
        "bytes": [len(choice.encode()) for choice in choices],
        "gold": gold,
    }


def test_scores_counted_by_hand():
    choices = ["아니오", "예"]
    # Per character -1.0 against -2.0, and -2.0 against -1.5.
    items = [
        record([-3.0, -2.0], choices, 0),
        record([-6.0, -1.5], choices, 1),
        record([-1.0, -9.0], choices, 0),
        record([-1.0, -9.0], choices, 1),
    ]
    assert aggregate(items, "acc")["value"] == 2 / 4
    assert aggregate(items, "acc_norm")["value"] == 3 / 4
    # Class 0: 1 right, 2 predicted, 2 gold, F1 = 2 / 4. Class 1: 1, 2, 2, F1 = 2 / 4.
    assert aggregate(items, "macro_f1", "macro_f1")["value"] == pytest.approx(0.5)
    assert choice_values([-3.0, -2.0], [3, 1], [9, 3], 0)["acc_norm"] == 1.0


@pytest.mark.parametrize("classes", [2, 4])
def test_accuracy_and_macro_f1_against_scikit_learn(classes):
    sklearn = pytest.importorskip("sklearn.metrics")
    draw = random.Random(classes)
    choices = [f"{number}" for number in range(classes)]
    items = [
        record([draw.gauss(0, 1) for _ in choices], choices, draw.randrange(classes))
        for _ in range(301)
    ]
    gold = [item["gold"] for item in items]
    predicted = [max(range(classes), key=item["loglikelihoods"].__getitem__) for item in items]
    assert aggregate(items, "acc")["value"] == pytest.approx(
        sklearn.accuracy_score(gold, predicted)
    )
    assert aggregate(items, "macro_f1", "macro_f1")["value"] == pytest.approx(
        sklearn.f1_score(gold, predicted, average="macro")
    )


def test_a_class_that_is_never_predicted_counts_as_zero():
    sklearn = pytest.importorskip("sklearn.metrics")
    items = [record([-1.0, -2.0], ["a", "b"], gold) for gold in (0, 0, 1)]
    value = aggregate(items, "macro_f1", "macro_f1")["value"]
    assert value == pytest.approx(0.4)  # (0.8 + 0) / 2
    assert value == pytest.approx(sklearn.f1_score([0, 0, 1], [0, 0, 0], average="macro"))


def test_both_fidelities_through_the_harness(world, tmp_path):
    from evaluation.backends.hf import load_model
    from evaluation.harness import Harness

    for id, rows in MADE.items():
        path = tmp_path / f"test/kobest/{id}.jsonl"
        path.parent.mkdir(parents=True, exist_ok=True)
        many = [
            row | {"id": 2 * number + row["id"]} for number in range(3 + len(id)) for row in rows
        ]
        path.write_text("".join(json.dumps(row) + "\n" for row in many))
    harness = Harness(
        tmp_path, ["kobest", "kobest:corrected"], "test", world / "tokenizer", batch_size=8
    )
    scores, items = harness.evaluate_with_items(load_model(world / "a"), "a")
    assert set(scores["tasks"]) == {
        f"{s}/{id}" for s in ("kobest", "kobest:corrected") for id in TASKS
    }
    for suite in ("kobest", "kobest:corrected"):
        means = scores["suites"][suite]
        for metric in ("acc", "acc_norm", "macro_f1"):
            entries = [scores["tasks"][f"{suite}/{id}"] for id in TASKS]
            values = [entry["metrics"][metric]["value"] for entry in entries]
            counts = [entry["items"] for entry in entries]
            weighted = sum(v * n for v, n in zip(values, counts, strict=True)) / sum(counts)
            assert means[metric]["mean"] == pytest.approx(math.fsum(values) / 5)
            assert means[metric]["weighted_mean"] == pytest.approx(weighted)
    for item in items:
        right = item["loglikelihoods"].index(max(item["loglikelihoods"])) == item["gold"]
        assert item["score"] == float(right)
