"""German Okapi: prompts pinned as text, requests against lm-eval's own tasks, mended faults."""

from __future__ import annotations

import json
import math
import random
from pathlib import Path

import numpy as np
import pytest

from evaluation.data.converters import converter_of
from evaluation.definitions import load_definition
from evaluation.suites import load_suites, select
from evaluation.tasks.okapi_de import functions
from evaluation.tasks.okapi_de.functions import arc_gold, arc_options, mc2, truthfulqa_choices


@pytest.fixture(scope="session", autouse=True)
def libraries():
    """Import what takes seconds only when the tests run: collecting them stays quick."""
    global LocalTask
    from evaluation.lm_task import LocalTask


def options(*texts: str | None) -> dict:
    return {f"option_{letter}": text for letter, text in zip("abcde", texts, strict=False)}


# Rows made by hand in the hub's columns; no real German item is in a public code repository.
HUB = {
    "arc": [
        {
            "id": "ARC-Challenge/test/made-0",
            "instruction": "Warum ist der Himmel [tags] blau? ",
            "answer": "C",
        }
        | options("Wegen des Meeres", "", "Wegen der  Streuung", "Wegen [Eis]", None),
        {"id": "ARC-Challenge/test/made-1", "instruction": "Was ist Eis?", "answer": "B"}
        | options("Gas", "festes Wasser", "Sand", "Öl", "Holz"),
    ],
    "hellaswag": [
        {
            "id": 0,
            "activity_label": "Hunde waschen",
            "ctx_a": "Eine Frau steht im Garten.",
            "ctx_b": "der Hund der Frau",
            "endings": ["bellt. [substeps] Er rennt.", "fliegt.", "liest  Zeitung.", "tippt."],
            "label": "0",
        },
        {
            "id": 1,
            "activity_label": "Kochen",
            "ctx_a": "[header] Wie man kocht [title] Wasser aufsetzen.",
            "ctx_b": "",
            "endings": ["Warten.", "Rennen.", "Singen.", "Malen."],
            "label": "3",
        },
    ],
    "mmlu": [
        {"id": "anatomy/test/0", "instruction": " Was pumpt Blut? ", "answer": "B"}
        | options("Die Leber", "Das Herz ", "Die Lunge", "Der Magen"),
        {"id": "anatomy/test/1", "instruction": "Wie viele Hände?", "answer": "A"}
        | options("zwei", "drei", "vier", "fünf"),
    ],
    "truthfulqa": [
        {
            "question": "Kann man [wirklich] fliegen?",
            "mc1_targets_choices": ["Nein.", "Ja."],
            "mc1_targets_labels": [1, 0],
            "mc2_targets_choices": ["Nein.", "Nicht ohne Hilfe.", "Ja.", "Immer."],
            "mc2_targets_labels": [1, 1, 0, 0],
        },
        {
            "question": "Ist die Erde flach?",
            "mc1_targets_choices": ["Ja.", "Nein."],
            "mc1_targets_labels": [0, 1],
            "mc2_targets_choices": ["Ja.", "Nein."],
            "mc2_targets_labels": [0, 1],
        },
    ],
}
PRESET_END = (
    "Q: Where were the 1992 Olympics held?\nA: The 1992 Olympics were held in Barcelona, Spain."
)
GERMAN_END = (
    "F: Wo fanden die Olympischen Spiele 1992 statt?\n"
    "A: Die Olympischen Spiele 1992 fanden in Barcelona in Spanien statt."
)
# The first row of each: the end of the context that is the item's own, and the continuations.
PINNED = {
    "okapi_de/arc": (
        "Question: Warum ist der Himmel blau?\nAnswer:",
        [" Wegen des Meeres", " Wegen der Streuung", " Wegen "],
    ),
    "okapi_de:corrected/arc": (
        "Frage: Warum ist der Himmel [tags] blau?\nAntwort:",
        [" Wegen des Meeres", " Wegen der  Streuung", " Wegen [Eis]"],
    ),
    "okapi_de/hellaswag": (
        "Hunde waschen: Eine Frau steht im Garten. Der hund der frau",
        [" bellt. Er rennt.", " fliegt.", " liest Zeitung.", " tippt."],
    ),
    "okapi_de:corrected/hellaswag": (
        "Hunde waschen: Eine Frau steht im Garten. Der Hund der Frau",
        [" bellt. Er rennt.", " fliegt.", " liest Zeitung.", " tippt."],
    ),
    "okapi_de/mmlu": (
        "Was pumpt Blut?\nA. Die Leber\nB. Das Herz \nC. Die Lunge\nD. Der Magen\nAnswer:",
        [" A", " B", " C", " D"],
    ),
    "okapi_de:corrected/mmlu": (
        "Was pumpt Blut?\nA. Die Leber\nB. Das Herz\nC. Die Lunge\nD. Der Magen\nAntwort:",
        [" A", " B", " C", " D"],
    ),
    "okapi_de/truthfulqa": (
        f"{PRESET_END}\n\nQ: Kann man fliegen?\nA:",
        [" Nein.", " Ja.", " Nicht ohne Hilfe.", " Immer."],
    ),
    "okapi_de:corrected/truthfulqa": (
        f"{GERMAN_END}\n\nF: Kann man [wirklich] fliegen?\nA:",
        [" Nein.", " Ja.", " Nicht ohne Hilfe.", " Immer."],
    ),
    "okapi_de:corrected:mlmm/truthfulqa": (
        f"{GERMAN_END}\n\nF: Kann man [wirklich] fliegen?\nA:",
        [" Nein.", " Ja.", " Nicht ohne Hilfe.", " Immer."],
    ),
    "okapi_de:mlmm/hellaswag": (
        "Hunde waschen: Eine Frau steht im Garten. Der hund der frau",
        [" bellt. Er rennt.", " fliegt.", " liest Zeitung.", " tippt."],
    ),
    "okapi_de:mlmm/truthfulqa": (
        f"{PRESET_END}\n\nQ: Kann man [wirklich] fliegen?\nA:",
        [" Nein.", " Ja.", " Nicht ohne Hilfe.", " Immer."],
    ),
}


@pytest.fixture(scope="module")
def rows(tmp_path_factory) -> dict[str, list[dict]]:
    """The rows as the suite reads them."""
    folder = tmp_path_factory.mktemp("okapi")
    converted = {}
    for id, hub in HUB.items():
        path = folder / f"{id}.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in hub))
        converted[id] = converter_of("okapi_de", id)({"items": path})["items"]
    return converted


def local_task(name: str, rows: list[dict], pool: list[dict] = ()) -> LocalTask:
    (task,) = select([name])
    return LocalTask(load_definition(task), rows, list(pool))


def requests(task) -> list[tuple[str, str]]:
    """What a model is asked: (context, continuation), in order."""
    task.build_all_requests()
    return [instance.arguments for instance in task.instances]


def own_task_of_lm_eval(file: str, rows: list[dict]):
    """lm-eval's own task of that file, over hand-made rows in place of a download."""
    import datasets
    import lm_eval
    from lm_eval.api.task import ConfigurableTask
    from lm_eval.tasks._yaml_loader import load_yaml

    config = load_yaml(Path(lm_eval.__file__).parent / "tasks/okapi" / file)
    for name in ("training_split", "validation_split", "test_split", "fewshot_split"):
        config.pop(name, None)
    splits = datasets.DatasetDict({"items": datasets.Dataset.from_list(rows)})
    config |= {"test_split": "items", "custom_dataset": lambda **_: splits}
    return ConfigurableTask(config=config)


@pytest.mark.parametrize("name", PINNED)
def test_prompt_of_a_hand_made_row(rows, name):
    end, continuations = PINNED[name]
    asked = requests(local_task(name, rows[name.partition("/")[2]]))[: len(continuations)]
    assert [continuation for _, continuation in asked] == continuations
    assert all(context.endswith(end) for context, _ in asked)
    if "truthfulqa" not in name:
        assert asked[0][0] == end


@pytest.mark.parametrize(
    ("id", "file"),
    [
        ("arc", "arc_multilingual/arc_de.yaml"),
        ("hellaswag", "hellaswag_multilingual/hellaswag_de.yaml"),
        ("mmlu", "mmlu_multilingual/m_mmlu_de.yaml"),
    ],
)
def test_published_requests_and_gold_are_those_of_lm_eval(rows, id, file):
    ours, theirs = local_task(f"okapi_de/{id}", rows[id]), own_task_of_lm_eval(file, HUB[id])
    assert requests(ours) == requests(theirs)
    for row, doc in zip(rows[id], theirs.eval_docs, strict=True):
        gold = theirs.doc_to_target(doc)
        assert ours.doc_to_target(row) == ("ABCD".index(gold) if isinstance(gold, str) else gold)


@pytest.mark.parametrize("target", ["mc1", "mc2"])
def test_published_truthfulqa_asks_and_scores_as_lm_eval(rows, target):
    ours = local_task("okapi_de/truthfulqa", rows["truthfulqa"])
    file = f"truthfulqa_multilingual/truthfulqa_de_{target}.yaml"
    theirs = own_task_of_lm_eval(file, HUB["truthfulqa"])
    asked = requests(ours)
    assert set(requests(theirs)) <= set(asked)
    draw = random.Random(target)
    answers = {pair: (draw.uniform(-40, -1), False) for pair in asked}
    process = functions.definition("truthfulqa", "lm-eval", "published")["process_results"]
    theirs.build_all_requests()
    for number, (row, doc) in enumerate(zip(rows["truthfulqa"], theirs.eval_docs, strict=True)):
        own = [i.arguments for i in ours.instances if i.doc_id == number]
        other = [i.arguments for i in theirs.instances if i.doc_id == number]
        expected = theirs.process_results(doc, [answers[pair] for pair in other])["acc"]
        found = process(row, [answers[pair] for pair in own])[target]
        assert found == pytest.approx(expected, rel=1e-12)


def test_each_choice_is_asked_once(rows):
    assert truthfulqa_choices(rows["truthfulqa"][0]) == [
        "Nein.",
        "Ja.",
        "Nicht ohne Hilfe.",
        "Immer.",
    ]


def test_an_empty_option_shifts_the_published_gold_only(rows):
    row = rows["arc"][0]
    assert arc_options(row) == ["Wegen des Meeres", "Wegen der  Streuung", "Wegen [Eis]"]
    assert local_task("okapi_de/arc", [row]).doc_to_target(row) == 2  # points to the fourth
    assert local_task("okapi_de:corrected/arc", [row]).doc_to_target(row) == 1
    assert arc_gold(rows["arc"][1]) == 1
    # No choice can be right where the right option is empty.
    assert arc_gold(row | {"gold": 1}) == 3


def test_capitals_of_german_nouns_survive_when_corrected(rows):
    published = requests(local_task("okapi_de/hellaswag", rows["hellaswag"]))
    corrected = requests(local_task("okapi_de:corrected/hellaswag", rows["hellaswag"]))
    assert "Der hund der frau" in published[0][0]
    assert "Der Hund der Frau" in corrected[0][0]
    # An empty second half leaves no blank at the end, and WikiHow's marks go in both.
    for asked in (published, corrected):
        assert asked[4][0] == "Kochen: Wie man kocht. Wasser aufsetzen."


def test_mc2_counted_by_hand_and_under_underflow():
    # Masses 1/2, 1/4, 1/4: three quarters on the true ones.
    loglikelihoods = np.log([0.5, 0.25, 0.25])
    for shifted in (True, False):
        assert mc2(loglikelihoods, [1, 0, 1], shifted) == pytest.approx(0.75, rel=1e-12)
    low = loglikelihoods - 2000
    assert mc2(low, [1, 0, 1], shifted=True) == pytest.approx(0.75, rel=1e-12)
    assert math.isnan(mc2(low, [1, 0, 1], shifted=False))


def test_mc1_trusts_the_first_choice_only_as_published(rows):
    row = rows["truthfulqa"][1]  # its second choice is the right one
    results = [(-5.0, False), (-1.0, False)]
    scores = {
        fidelity: functions.definition("truthfulqa", "lm-eval", fidelity)["process_results"](
            row, results
        )
        for fidelity in ("published", "corrected")
    }
    assert [scores[fidelity]["mc1"] for fidelity in ("published", "corrected")] == [0.0, 1.0]
    expected = math.exp(-1) / (math.exp(-1) + math.exp(-5))
    for found in scores.values():
        assert found["mc2"] == pytest.approx(expected, rel=1e-12)
    # What is kept suffices to compute both again.
    kept = scores["corrected"]
    values = np.array([value for value, _ in results])
    assert mc2(values[kept["mc2_choices"]], kept["mc2_labels"], True) == kept["mc2"]
    assert float(np.argmax(values[kept["mc1_choices"]]) == kept["mc1_gold"]) == kept["mc1"]


def pool(id: str, rows: list[dict], size: int) -> list[dict]:
    """Examples to draw from: the second row of a task, told apart by its question."""
    return [rows[1] | {"id": f"fewshot-{n}", "question": f"Frage Nummer {n}?"} for n in range(size)]


def test_mlmm_draws_25_shots_with_the_generator_of_the_shuffle(rows):
    examples = pool("arc", rows["arc"], 40)
    items = [rows["arc"][1] | {"id": n, "question": f"Was ist {n}?"} for n in range(6)]
    task = local_task("okapi_de:mlmm/arc", items, examples)
    contexts = list(dict.fromkeys(context for context, _ in requests(task)))
    generator = random.Random(42)
    order = list(items)
    generator.shuffle(order)
    for item, context in zip(order, contexts, strict=True):
        drawn = generator.sample(examples, 25)
        shots = [f"Question: {row['question']}\nAnswer: festes Wasser" for row in drawn]
        assert context == "\n\n".join([*shots, f"Question: {item['question']}\nAnswer:"])


def test_mlmm_scores_mmlu_by_the_text_of_its_choices(rows):
    examples = pool("mmlu", rows["mmlu"], 25)
    task = local_task("okapi_de:mlmm/mmlu", rows["mmlu"][:1], examples)
    asked = requests(task)
    assert [choice for _, choice in asked] == [
        " Die Leber",
        " Das Herz ",
        " Die Lunge",
        " Der Magen",
    ]
    context = asked[0][0]
    assert context.count("\n\n") == 25
    assert context.split("\n\n")[0].endswith(
        "?\nChoices:\nA. zwei\nB. drei\nC. vier\nD. fünf\nAnswer: zwei"
    )
    assert context.endswith(
        "\n\nQuestion:  Was pumpt Blut? \nChoices:\n"
        "A. Die Leber\nB. Das Herz \nC. Die Lunge\nD. Der Magen\nAnswer:"
    )


@pytest.mark.parametrize(
    ("fidelity", "id", "text"),
    [
        ("published", "arc", "Question: Warum ist der Himmel [tags] blau? \nAnswer:"),
        ("corrected", "arc", "Frage: Warum ist der Himmel [tags] blau?\nAntwort:"),
        (
            "corrected",
            "mmlu",
            "Frage: Was pumpt Blut?\nAuswahl:\n"
            "A. Die Leber\nB. Das Herz\nC. Die Lunge\nD. Der Magen\nAntwort:",
        ),
        (
            "corrected",
            "hellaswag",
            "Hunde waschen: Eine Frau steht im Garten. Der Hund der Frau",
        ),
    ],
)
def test_mlmm_prompt_of_a_hand_made_row(rows, fidelity, id, text):
    assert functions.definition(id, "mlmm", fidelity)["doc_to_text"](rows[id][0]) == text


def test_variants_and_shots():
    suite = load_suites()["okapi_de"]
    assert (suite.fidelities, suite.prompts) == (("published", "corrected"), ("lm-eval", "mlmm"))
    tasks = select(["okapi_de", "okapi_de:mlmm", "okapi_de:corrected:mlmm"])
    shots = {task.name: load_definition(task).get("num_fewshot", 0) for task in tasks}
    assert {task.name: task.shots for task in tasks} == shots  # what tables say
    assert {name: count for name, count in shots.items() if count} == {
        "okapi_de:mlmm/arc": 25,
        "okapi_de:mlmm/mmlu": 25,
        "okapi_de:corrected:mlmm/arc": 25,
        "okapi_de:corrected:mlmm/mmlu": 25,
    }
    shown = {id: task.metric for id, task in suite.tasks.items()}
    assert shown == {"arc": "acc_norm", "hellaswag": "acc_norm", "mmlu": "acc", "truthfulqa": "mc2"}


def test_the_suite_through_the_harness(rows, world, tmp_path):
    from evaluation.backends.hf import load_model
    from evaluation.harness import Harness

    for id, items in rows.items():
        path = tmp_path / f"test/okapi_de/{id}.jsonl"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(json.dumps(row) + "\n" for row in items))
    names = ["okapi_de/arc", "okapi_de/hellaswag", "okapi_de/mmlu"]
    corrected = [name.replace("/", ":corrected/") for name in names]
    harness = Harness(tmp_path, names + corrected, "test", world / "tokenizer", batch_size=4)
    scores, items = harness.evaluate_with_items(load_model(world / "a"), "a")
    for name in names + corrected:
        assert set(scores["tasks"][name]["metrics"]) == {"acc", "acc_norm", "macro_f1"}
    for item in items:
        per_character = [
            value / length
            for value, length in zip(item["loglikelihoods"], item["lengths"], strict=True)
        ]
        best = per_character if "mmlu" not in item["task"] else item["loglikelihoods"]
        assert item["score"] == float(best.index(max(best)) == item["gold"])
