"""The eight Japanese tasks' prompts, shots and caps: pinned, and from real rows by another way."""

from __future__ import annotations

import json
import os
import random
from pathlib import Path

import pytest

from evaluation.suites import select
from evaluation.tasks.ja8 import functions
from tests.evaluation.ja8_rows import ITEMS, Characters, built, pool_of, write

PROMPTS = Path(__file__).parent / "prompts"
ALPACA = (
    "以下は、タスクを説明する指示と、文脈のある入力の組み合わせです。"
    "要求を適切に満たす応答を書きなさい。\n\n"
)
LLAMA = "<s>[INST] <<SYS>>\nあなたは役立つアシスタントです。\n<</SYS>>\n\n"


@pytest.fixture(scope="module")
def hand_made(tmp_path_factory) -> Path:
    return write(tmp_path_factory.mktemp("ja8"))


def tasks(prompt: str, fidelity: str = "published") -> dict:
    return {task.id: task for task in select(["ja8"], fidelity, prompt)}


def contexts(instances: list) -> list[str]:
    return [instance.args[0] for instance in instances if instance.idx == 0]


@pytest.mark.parametrize("prompt", ["0.3", "0.6"])
def test_the_first_prompt_of_every_task_is_as_pinned(hand_made, prompt):
    # Hand-made rows of the benchmarks' schemas; a vertical bar marks each prompt's end.
    sections = (PROMPTS / f"ja8-{prompt}.txt").read_text(encoding="utf-8").split("##### ")[1:]
    pinned = dict(section.split("\n", 1) for section in sections)
    assert pinned.keys() == ITEMS.keys()
    for fidelity in ("published", "corrected"):
        for id, task in tasks(prompt, fidelity).items():
            assert contexts(built(hand_made, task))[0] + "|\n" == pinned[id], id


@pytest.mark.parametrize("id", sorted(set(ITEMS) - {"jnli", "xwinograd_ja"}))
def test_one_generator_shuffles_the_items_and_then_draws_every_items_shots(hand_made, id):
    task = tasks("0.3")[id]
    rows, pool = list(ITEMS[id]), pool_of(id)
    generator = random.Random(42)
    generator.shuffle(rows)
    expected = []
    for row in rows:
        shots = [functions._input(id, "0.3", shot) for shot in generator.sample(pool, task.shots)]
        expected.append([*shots, functions._input(id, "0.3", row)])
    found = [
        [part.split("\n\n### 応答:\n")[0] for part in context.split("### 入力:\n")[1:]]
        for context in contexts(built(hand_made, task))
    ]
    assert found == expected


def test_jnli_shows_every_relation_once_though_half_the_pool_is_neutral(hand_made):
    pool = {label: [] for label in ("neutral", "entailment", "contradiction")}
    for row in pool_of("jnli"):
        pool[row["label"]].append(row["premise"])
    assert [len(rows) for rows in pool.values()] == [3, 2, 1]
    rows = list(ITEMS["jnli"])
    generator = random.Random(42)
    generator.shuffle(rows)
    found = contexts(built(hand_made, tasks("0.3")["jnli"]))
    for row, context in zip(rows, found, strict=True):
        # int(3 * 1/2), int(3 * 1/3) and int(3 * 1/6) give 1, 1, 0; the last is made up to 1.
        shots = [generator.sample(premises, 1)[0] for premises in pool.values()]
        generator.shuffle(shots)
        shown = [line[3:] for line in context.split("\n") if line.startswith("前提：")]
        assert shown == [*shots, row["premise"]]


def test_a_limit_cuts_after_the_shuffle_and_leaves_the_shots_alone(hand_made):
    task = tasks("0.3")["jcommonsenseqa"]
    whole, cut = built(hand_made, task), built(hand_made, task, limit=2)
    ids = [row["id"] for row in ITEMS["jcommonsenseqa"]]
    random.Random(42).shuffle(ids)
    assert [instance.doc["id"] for instance in cut if instance.idx == 0] == ids[:2]
    assert [instance.args for instance in cut] == [instance.args for instance in whole[:10]]


def test_a_pool_that_stands_in_never_shows_an_item_its_own_answer(hand_made, tmp_path):
    folder = tmp_path / "test/ja8"
    folder.mkdir(parents=True)
    source = hand_made / "test/ja8/jsquad.jsonl"
    for name in ("jsquad.jsonl", "jsquad.fewshot.jsonl"):
        (folder / name).write_text(source.read_text(encoding="utf-8"), encoding="utf-8")
    for instance in built(tmp_path, tasks("0.3")["jsquad"]):
        assert instance.args[0].count("質問：" + instance.doc["question"]) == 1
        assert instance.args[0].count("質問：") == 3


def test_published_caps_follow_the_gold_answer_and_corrected_ones_are_fixed(hand_made):
    caps = {
        # Characters are tokens here: the longer of two answers; the summary plus ten.
        "jsquad": lambda row: max(len(answer) for answer in row["answers"]),
        "jaqket_v2": lambda row: len(row["answers"][0]),
        "xlsum_ja": lambda row: len(row["summary"]) + 10,
        "mgsm": lambda row: 256,
    }
    for id, cap in caps.items():
        for instance in built(hand_made, tasks("0.3")[id]):
            settings = instance.args[1]
            assert settings["max_gen_toks"] == cap(instance.doc)
            assert settings["until"] == ["\n"] and settings["do_sample"] is False
            # Only mgsm's stop strings begin with the end of the text.
            assert settings.get("ignore_eos", False) == (id != "mgsm")
        settings = {
            repr(instance.args[1]) for instance in built(hand_made, tasks("0.3", "corrected")[id])
        }
        assert len(settings) == 1 and "ignore_eos" not in settings.pop()
    assert functions.longest_answer({"answers": ["ab", "abcd", "a"]}, Characters()) == 4


REAL = os.environ.get("BOTTLE_DATA")


def test_lm_evals_own_tasks_differ_as_the_readme_says():
    """Read in the installed package, so that another version that mends them is noticed."""
    import lm_eval

    folder = Path(lm_eval.__file__).parent / "tasks/japanese_leaderboard"
    own = {
        path.stem.removeprefix("ja_leaderboard_"): path.read_text(encoding="utf-8")
        for path in folder.glob("ja_leaderboard_*.yaml")
    }
    assert len(own) == len(ITEMS) == 8
    for id, text in own.items():
        assert "### 指示:" not in text
        assert ("### 応答：" in text) == (id != "xwinograd")
        if "generate_until" in text:
            assert 'until:\n    - "\\n\\n"\n' in text
            assert "max_gen_toks" not in text
        assert "balanced_acc" not in text and "acc_norm" not in text and "f1" not in text
        assert "sampler" not in text
    assert "最適な答えを選んでください" not in own["jcommonsenseqa"]
    for id in ("jsquad", "jaqket_v2"):
        assert "answers['text'][0]" in own[id]
    assert "Tagger" in (folder / "ja_leaderboard_xlsum.py").read_text(encoding="utf-8")
    assert 'doc["sentence1"].strip()' in (folder / "ja_leaderboard_xwinograd.py").read_text()


needs_real = pytest.mark.skipif(not REAL, reason="BOTTLE_DATA names no folder of real data")
JGLUE = Path(REAL or "") / "jglue"


def json_lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@pytest.fixture(scope="module")
def real(tmp_path_factory) -> Path:
    from evaluation.data.cli import main

    out = tmp_path_factory.mktemp("real")
    ids = ("jcommonsenseqa", "jnli", "jsquad", "xwinograd_ja", "mgsm")
    names = ",".join(f"ja8/{id}" for id in ids)
    main(["--suite", names, "--source", REAL, "--out", str(out)])
    return out


def shuffled(count: int) -> tuple[list[int], random.Random]:
    order, generator = list(range(count)), random.Random(42)
    generator.shuffle(order)
    return order, generator


@needs_real
@pytest.mark.parametrize("prompt", ["0.3", "0.6"])
def test_jcommonsenseqa_on_real_rows(real, prompt):
    rows = json_lines(JGLUE / "jcommonsenseqa-valid-v1.3.json")
    pool = json_lines(JGLUE / "jcommonsenseqa-train-v1.3.json")
    order, generator = shuffled(len(rows))
    assert (len(rows), len(pool)) == (1119, 8939)

    def body(row: dict) -> str:
        choices = "".join(f"- {row[f'choice{i}']}\n" for i in range(5))
        if prompt == "0.3":
            return (
                "### 指示:\n与えられた選択肢の中から、最適な答えを選んでください。"
                f"出力は以下から選択してください：\n{choices}\n"
                f"### 入力:\n{row['question']}\n\n### 応答:\n"
            )
        return (
            "与えられた5つの選択肢の中から、最適な答えを選んでください。"
            f"出力は以下から選択してください：\n{choices}\n質問：{row['question']} [/INST] "
        )

    between = "\n\n" if prompt == "0.3" else " </s><s>[INST] "
    expected = []
    for index in order:
        shots = generator.sample(pool, 3)
        solved = "".join(body(s) + s[f"choice{s['label']}"] + between for s in shots)
        expected.append((ALPACA if prompt == "0.3" else LLAMA) + solved + body(rows[index]))
    found = built(real, tasks(prompt)["jcommonsenseqa"])
    assert contexts(found) == expected
    assert [i.args[1] for i in found[:5]] == [rows[order[0]][f"choice{n}"] for n in range(5)]


@needs_real
@pytest.mark.parametrize("prompt", ["0.3", "0.6"])
def test_mgsm_on_real_rows(real, prompt):
    rows = (Path(REAL) / "mgsm/mgsm_ja.tsv").read_text(encoding="utf-8").splitlines()
    questions = [row.split("\t")[0] for row in rows]
    pool = list(json.loads((Path(REAL) / "mgsm/exemplars_ja.json").read_text()).values())
    order, generator = shuffled(len(questions))
    assert (len(questions), len(pool)) == (250, 8)
    instruction = "与えられた問題に対して、ステップごとに答えを導き出してください。"

    def body(question: str) -> str:
        if prompt == "0.3":
            return f"### 指示:\n{instruction}\n\n### 入力:\n{question}\n\n### 応答:\n"
        return f"{instruction}\n\n{question} [/INST] "

    between = "\n\n" if prompt == "0.3" else " </s><s>[INST] "
    expected = []
    for index in order:
        solved = ""
        for shot in generator.sample(pool, 5):
            assert shot["q"].startswith("問題：") and shot["a"].startswith("ステップごとの答え：")
            solved += body(shot["q"][3:]) + shot["a"][len("ステップごとの答え：") :] + between
        expected.append((ALPACA if prompt == "0.3" else LLAMA) + solved + body(questions[index]))
    assert contexts(built(real, tasks(prompt)["mgsm"])) == expected


@needs_real
@pytest.mark.parametrize("prompt", ["0.3", "0.6"])
def test_jnli_on_real_rows(real, prompt):
    # The training rows are not to be had here: the shots come from the test split.
    rows = json_lines(JGLUE / "jnli-valid-v1.1.json")
    order, _ = shuffled(len(rows))
    assert len(rows) == 2434
    found = contexts(built(real, tasks(prompt)["jnli"]))
    labels = {"entailment": "含意", "contradiction": "矛盾", "neutral": "中立"}
    answer = "### 応答:\n" if prompt == "0.3" else " [/INST] "
    instruction = (
        "与えられた前提と仮説の関係を回答してください。\n\n"
        "出力は以下から選択してください：\n含意\n矛盾\n中立\n\n"
    )
    for index, context in zip(order, found, strict=True):
        row = rows[index]
        pair = f"前提：{row['sentence1']}\n仮説：{row['sentence2']}"
        if prompt == "0.3":
            end = f"### 指示:\n{instruction}### 入力:\n{pair}\n\n### 応答:\n"
            assert context.startswith(ALPACA + "### 指示:\n" + instruction)
        else:
            end = f" </s><s>[INST] {instruction}{pair} [/INST] "
            assert context.startswith(LLAMA + instruction)
        assert context.endswith(end)
        shown = [part[:2] for part in context.split(answer)[1:-1]]
        assert sorted(shown) == sorted(labels.values())


@needs_real
@pytest.mark.parametrize("prompt", ["0.3", "0.6"])
def test_jsquad_on_real_rows(real, prompt):
    articles = json.loads((JGLUE / "jsquad-test-v1.3.json").read_text(encoding="utf-8"))["data"]
    rows = [
        (paragraph["context"], question)
        for article in articles
        for paragraph in article["paragraphs"]
        for question in paragraph["qas"]
    ]
    order, _ = shuffled(len(rows))
    assert len(rows) == 4420
    found = [i for i in built(real, tasks(prompt)["jsquad"]) if i.idx == 0]
    for index, instance in zip(order, found, strict=True):
        context, question = rows[index]
        text = context.split("[SEP]")[-1].strip()
        pair = f"文脈：{text}\n質問：{question['question']}"
        instruction = "与えられた文脈から、質問に対する答えを抜き出してください。\n\n"
        if prompt == "0.3":
            end = f"\n\n### 指示:\n{instruction}### 入力:\n{pair}\n\n### 応答:\n"
        else:
            end = f" </s><s>[INST] {instruction}{pair} [/INST] "
        assert instance.args[0].endswith(end)
        longest = max(len(answer["text"]) for answer in question["answers"])
        assert instance.args[1]["max_gen_toks"] == longest


@needs_real
def test_xwinograd_on_real_rows(real):
    lines = (Path(REAL) / "xwinograd/jp.tsv").read_text(encoding="utf-8").splitlines()
    order, _ = shuffled(len(lines))
    assert len(lines) == 959
    found = built(real, tasks("0.3")["xwinograd_ja"])
    assert {instance.args[0] for instance in found} == {""}
    pairs = [(found[2 * i].args[1], found[2 * i + 1].args[1]) for i in range(len(lines))]
    for index, pair in zip(order, pairs, strict=True):
        candidates = json.loads(lines[index].split("\t")[6])
        for sentence, candidate in zip(pair, candidates, strict=True):
            assert candidate[0] in sentence
