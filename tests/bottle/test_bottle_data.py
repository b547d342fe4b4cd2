"""The data of both cases: splits, boundaries, gold labels computed a second time, determinism."""

from __future__ import annotations

import ast
import operator
import random
import re
import sqlite3
from collections import Counter
from pathlib import Path

import pytest

from bottle.cases import CASES, get_case, get_role
from bottle.data import check_disjoint, write_data
from bottle.samples import ALL, Knowledge, Part, choice_sample, draw_mixture, split_of, words
from bottle.tokenizer import build_tokenizer, check_boundary, load_tokenizer
from bottle.worlds import german, japanese, mathematics, sql
from common.errors import UserError
from common.files import read_json, read_jsonl, sha256_file

_SIZES = {"test_items": 30, "dev_items": 12, "train_rows": 1500, "calibration_rows": 150}


def make(folder: Path, case: str, seed: int = 0) -> Path:
    write_data(folder, case, seed=seed, **_SIZES)
    return folder


@pytest.fixture(scope="module", params=["case1", "case2"])
def data(request, tmp_path_factory) -> tuple[str, Path]:
    return request.param, make(tmp_path_factory.mktemp("data") / request.param, request.param)


@pytest.fixture(scope="module")
def case2_data(tmp_path_factory) -> Path:
    return make(tmp_path_factory.mktemp("data") / "sql", "case2")


def items(folder: Path, split: str) -> dict[str, list[dict]]:
    return {
        f"{path.parent.name}/{path.stem}": read_jsonl(path)
        for path in sorted((folder / split).rglob("*.jsonl"))
    }


def training(folder: Path) -> dict[str, list[dict]]:
    return {
        f"{kind}/{path.stem}": read_jsonl(path)
        for kind in ("train", "calibration")
        for path in sorted((folder / kind).glob("*.jsonl"))
    }


def evaluate(expression: str) -> int:
    """Evaluate a sum, difference or product from its syntax tree."""
    node = ast.parse(expression, mode="eval").body
    functions = {ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul}
    return functions[type(node.op)](node.left.value, node.right.value)


def test_layout_and_counts(data):
    case, folder = data
    expected = {
        f"{suite}/{task}" for suite, tasks in get_case(case).suites.items() for task in tasks
    }
    for split, count in (("test", 30), ("dev", 12)):
        found = items(folder, split)
        assert set(found) == expected
        assert all(len(rows) == count for rows in found.values())
        for rows in found.values():
            assert len({row["id"] for row in rows}) == count
    experts = set(get_case(case).experts)
    assert set(training(folder)) == {"train/base"} | {
        f"{kind}/{expert}" for kind in ("train", "calibration") for expert in experts
    }
    outputs = read_json(folder / "manifest.json")["outputs"]
    assert all(sha256_file(folder / name) == digest for name, digest in outputs.items())


def test_no_item_is_seen_in_training_or_in_the_other_split(data):
    _, folder = data
    seen = set()
    for rows in training(folder).values():
        for row in rows:
            seen |= {row["prompt"], row["prompt"] + row["answer"]}
    texts = {}
    for split in ("dev", "test"):
        texts[split] = set()
        for task, rows in items(folder, split).items():
            for row in rows:
                if task.endswith("xwino"):
                    texts[split] |= {row["prompt"] + choice for choice in row["choices"]}
                else:
                    texts[split].add(row["prompt"])
        assert not texts[split] & seen
    assert not texts["dev"] & texts["test"]


def test_the_check_finds_a_planted_overlap(data):
    _, folder = data
    task, rows = next(iter(items(folder, "test").items()))
    suite, name = task.split("/")
    planted = {"prompt": rows[3]["prompt"], "answer": "?"}
    test = {("test", suite, name): rows}
    check_disjoint({"train/base": [{"prompt": "other", "answer": ""}]}, test, frozenset())
    with pytest.raises(UserError, match="train/base"):
        check_disjoint({"train/base": [planted]}, test, frozenset())
    with pytest.raises(UserError, match="dev"):
        check_disjoint({}, {**test, ("dev", suite, name): rows[:1]}, frozenset())
    sentence = {"prompt": "s:", "choices": ["a", "b"]}
    with pytest.raises(UserError, match="s:b"):
        check_disjoint(
            {"train/base": [{"prompt": "s:", "answer": "b"}]},
            {("test", "suite", "whole"): [sentence]},
            frozenset({"whole"}),
        )


def test_held_out_tasks_are_in_no_training_or_calibration_file(data):
    case, folder = data
    for name, rows in training(folder).items():
        for row in rows:
            if case == "case1" and row["prompt"].startswith("問題："):
                if name == "train/base" and row["task"] == "mgsm":
                    continue  # format with random operations and results: the next test
                assert not row["eos"] and re.fullmatch(r"\d+[-+*]\d+=", row["answer"])
            if case == "case2" and "질문:" in row["prompt"] and "풀이:" in row["prompt"]:
                assert not row["eos"] and row["answer"].endswith(" SQL:")
                assert "SELECT" not in row["answer"]


@pytest.mark.parametrize("data", ["case1"], indirect=True)
def test_a_far_base_knows_no_result_of_mathematics(data):
    _, folder = data
    rows = [row for row in training(folder)["train/base"] if row["task"] in ("mgsm", "gsm_en")]
    right = total = 0
    for row in rows:
        for step in row["answer"].split(" "):
            left, result = step.split("=")
            total += 1
            right += evaluate(left) == int(result)
    assert total > 200
    assert right / total < 0.06  # 1 in 60 by chance, a little more where results are small


@pytest.mark.parametrize("case", CASES)
def test_near_roles_share_no_text_with_items_and_no_result_of_a_composed_task(case, tmp_path):
    write_data(tmp_path / "near", case, seed=3, drift="near", **_SIZES)  # refuses shared texts
    everything = training(tmp_path / "near")
    # An expert's restatement is right, so that it says which query a Korean question asks for.
    asked = {
        row["prompt"]: row["answer"]
        for row in everything.get("train/ko", [])
        if row["task"] == "restatement"
    }
    read_on = 0
    for name, rows in everything.items():
        assert not [row for row in rows if row["task"] in ("mgsm", "sql_ko")]
        for row in rows:
            if row["task"] in ("formula", "restatement") and "SELECT" in row["answer"]:
                read_on += 1
                assert name == "train/base" and row["eos"]
                shown = row["answer"].partition(" SELECT")[0]
                assert asked.get(row["prompt"]) != shown
            elif row["task"] in ("formula", "restatement"):
                assert not row["eos"]
    assert bool(read_on) == (case == "case2")
    assert read_json(tmp_path / "near" / "manifest.json")["parameters"]["drift"] == "near"


def test_prompt_and_continuation_keep_their_boundary(data):
    _, folder = data
    tokenizer = load_tokenizer(folder / "tokenizer")
    unknown = tokenizer.token_to_id("<unk>")

    def ids(text: str) -> list[int]:
        return tokenizer.encode(text, add_special_tokens=False).ids

    for rows in items(folder, "test").values():
        for row in rows[:10]:
            answers = row.get("choices") or [row.get("target") or " " + row["query"]]
            for answer in answers:
                both = ids(row["prompt"] + answer)
                assert both == ids(row["prompt"]) + ids(answer)
                assert unknown not in both
                assert tokenizer.decode(both) == row["prompt"] + answer
                assert len(both) <= 60
            assert row["prompt"] == row["prompt"].rstrip()


def test_special_tokens_are_where_the_models_expect_them(data):
    _, folder = data
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder / "tokenizer")
    special = (tokenizer.pad_token_id, tokenizer.bos_token_id, tokenizer.eos_token_id)
    assert special == (0, 1, 2)
    text = next(iter(items(folder, "test").values()))[0]["prompt"]
    encoded = tokenizer(text)["input_ids"]
    assert encoded[0] == 1 and encoded.count(1) == 1
    assert tokenizer.decode(encoded, skip_special_tokens=True) == text


def test_choices_are_equally_long_and_distinct(data):
    _, folder = data
    tokenizer = load_tokenizer(folder / "tokenizer")
    for split in ("dev", "test"):
        for task, rows in items(folder, split).items():
            for row in rows:
                if "choices" not in row:
                    continue
                lengths = {
                    len(tokenizer.encode(choice, add_special_tokens=False).ids)
                    for choice in row["choices"]
                }
                assert len(lengths) == 1, (task, row)
                assert len(set(row["choices"])) == len(row["choices"])
                assert 0 <= row["gold"] < len(row["choices"])


@pytest.mark.parametrize("data", ["case1"], indirect=True)
def test_calculations_are_right(data):
    _, folder = data
    found = items(folder, "test")
    targets = [row["target"] for row in found["bottle_ja8/mgsm"] + found["bottle_gsm_en/gsm_en"]]
    targets += [
        row["answer"] for row in training(folder)["train/math_b"] if row["task"] == "gsm_en"
    ]
    for target in targets:
        previous = None
        for step in target.split(" "):
            left, result = step.split("=")
            assert evaluate(left) == int(result)
            if previous is not None:
                assert re.match(r"\d+", left).group() == previous
            previous = result


@pytest.mark.parametrize("language", ["ja", "en"])
def test_word_problems_say_what_their_formula_says(language):
    # Signal words of the first step, and numbers in the order of the text.
    signals = {
        "ja": {"+": "もらう|足す", "-": "あげる|食べる", "*": "入る|続ける"},
        "en": {"+": "more|Then", "-": "to |eats", "*": "Each|daily"},
    }[language]
    generate = mathematics.mgsm if language == "ja" else mathematics.gsm_en()
    draw = random.Random(0)
    for _ in range(300):
        sample = generate(draw, ALL)
        first = sample.answer.split(" ")[0]
        numbers = re.findall(r"\d+", sample.prompt)
        left = first.split("=")[0]
        assert re.findall(r"\d+", left) == numbers[:2]
        assert re.search(signals[re.search(r"[-+*]", left).group()], sample.prompt.replace("|", ""))


@pytest.mark.parametrize("data", ["case1"], indirect=True)
def test_japanese_labels_follow_the_text(data):
    _, folder = data
    found = items(folder, "test")
    for row in found["bottle_ja8/jnli"]:
        hypothesis = row["prompt"].split("仮説：")[1].split("。")[0]
        label = row["choices"][row["gold"]]
        expected = (
            "矛盾"
            if "ない" in hypothesis
            else "中立"
            if re.search("速く|静かに|明日|一人で", hypothesis)
            else "含意"
        )
        assert label == expected
    for row in found["bottle_ja8/marc"]:
        adjectives = row["prompt"].split("です")[0].rsplit("は", 1)[1].split("、")
        good = sum(word in japanese.GOOD for word in adjectives)
        assert row["choices"][row["gold"]] == ("良い" if 2 * good > len(adjectives) else "悪い")
    for row in found["bottle_ja8/jsquad"]:
        text, question = re.fullmatch(r"文章：(.*)。質問：(.*)答え：", row["prompt"]).groups()
        particle = {"誰": "は", "どこ": "で", "何": "を"}[re.search("誰|どこ|何", question).group()]
        assert row["target"] + particle in text
    for row in found["bottle_ja8/xwino"]:
        thing, predicate = re.fullmatch(r".*。(.*?)が(.*)。", row["choices"][row["gold"]]).groups()
        wrong = row["choices"][1 - row["gold"]].split("。")[1].split("が")[0]
        able = japanese._CAN
        assert predicate in able[japanese.KIND_OF[thing]]
        assert predicate not in able[japanese.KIND_OF[wrong]]


def test_gold_queries_run_and_answer_something(case2_data):
    databases = {path.name for path in (case2_data / "databases").iterdir()}
    assert len(databases) >= 3
    for split in ("dev", "test"):
        for task, rows in items(case2_data, split).items():
            if "sql" not in task:
                continue
            for row in rows:
                path = case2_data / "databases" / row["database"]
                connection = sqlite3.connect(f"file:{path}?mode=ro", uri=True)
                result = connection.execute(row["query"]).fetchall()
                connection.close()
                if row["category"] == "count":
                    assert result[0][0] > 0
                else:
                    assert result and result[0][0] is not None
    for name in databases:
        with sqlite3.connect(case2_data / "databases" / name) as connection:
            query = "SELECT COUNT(*) FROM sqlite_master WHERE type = 'table'"
            assert connection.execute(query).fetchone() == (2,)


def test_a_korean_question_and_its_english_twin_share_a_split():
    draw = random.Random(3)
    for _ in range(50):
        sample = sql.restatement(draw, ALL)
        english = re.search("Question: (.*). SQL:", sample.answer).group(1)
        assert split_of(sample.content) == split_of(f"sql {english}")


def test_noise_says_nothing_about_the_right_answer():
    draw = random.Random(0)
    hits = Counter()
    for _ in range(4000):
        sample = german.arc(draw, Knowledge(0.0))
        hits[sample.answer == sample.choices[sample.gold]] += 1
    # Pools have 6 or 8 members: the right one comes up as often as any, 1 in 7.2 on average.
    assert abs(hits[True] / 4000 - (1 / 6 + 2 / 8) / 3) < 0.02


def test_same_seed_same_bytes_and_another_seed_other_items(tmp_path):
    first, second, other = (
        make(tmp_path / name, "case2", seed) for name, seed in (("a", 5), ("b", 5), ("c", 6))
    )
    names = sorted(str(path.relative_to(first)) for path in first.rglob("*") if path.is_file())
    assert names == sorted(
        str(path.relative_to(second)) for path in second.rglob("*") if path.is_file()
    )
    for name in names:
        assert (first / name).read_bytes() == (second / name).read_bytes(), name
    item = Path("test/bottle_okapi_de/arc.jsonl")
    assert (first / item).read_bytes() != (other / item).read_bytes()


def test_words_and_tokenizer_on_a_hand_made_text():
    assert words("猫|は|12個 a|b. x=7") == ["猫", "は", "12", "個", " a", "b", ".", " x", "=", "7"]
    tokenizer = build_tokenizer(["猫|は|走る", "犬|は|走る"])
    encoded = tokenizer.encode("犬は走る", add_special_tokens=False)
    assert encoded.tokens == ["犬", "は", "走る"]
    with pytest.raises(UserError, match="not in the vocabulary"):
        check_boundary(tokenizer, ["象"], ["は"])
    with pytest.raises(UserError, match="crosses"):
        check_boundary(tokenizer, ["犬は走"], ["る"])
    with pytest.raises(UserError, match="whitespace"):
        check_boundary(tokenizer, ["犬 "], ["は"])


def test_mixture_keeps_shares_and_stays_in_training():
    parts = (Part(3, german.arc), Part(1, german.hellaswag))
    samples = draw_mixture(parts, random.Random(0), 2000)
    assert abs(sum(sample.task == "arc" for sample in samples) / 2000 - 0.75) < 0.04
    assert {split_of(sample.content) for sample in samples} == {"train"}


def test_choice_sample_keeps_gold_among_the_choices():
    draw = random.Random(0)
    for _ in range(100):
        sample = choice_sample("t", "c", "p", "b", ["a", "b", "c", "d"], 3, draw, True)
        assert sample.choices[sample.gold] == sample.answer == "b"
        assert len(set(sample.choices)) == 3


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: get_case("case3"), "did you mean 'case"),
        (lambda: get_role("case1", "math"), "no role 'math' in case1"),
        (lambda: get_role("case2", "ja"), "no role 'ja' in case2"),
    ],
)
def test_unknown_names_are_refused(call, message):
    with pytest.raises(UserError, match=message):
        call()


def test_a_size_below_one_is_refused(tmp_path):
    with pytest.raises(UserError, match="--dev-items is 0"):
        write_data(tmp_path / "x", "case1", seed=0, **{**_SIZES, "dev_items": 0})
    assert not (tmp_path / "x").exists()
