"""lm-eval through the project's backend, against plain torch computations."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from common.errors import UserError


@pytest.fixture(scope="session", autouse=True)
def libraries():
    """Import what takes seconds only when the tests run: collecting them stays quick."""
    global Harness, load_model
    from evaluation.backends.hf import load_model
    from evaluation.harness import Harness


CHOICE_TASKS = ["bottle_ja8/jcomqa", "bottle_ja8/xwino"]
TEXT_TASKS = ["bottle_ja8/jsquad", "bottle_ja8/xlsum", "bottle_ja8/mgsm"]
ALL = [*CHOICE_TASKS, *TEXT_TASKS, "bottle_sql_eval"]


def rows(world: Path, task: str) -> list[dict]:
    lines = (world / f"data/test/{task}.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


@pytest.fixture(scope="module")
def tokenizer(world):
    from tokenizers import Tokenizer

    return Tokenizer.from_file(str(world / "tokenizer/tokenizer.json"))


@pytest.fixture(scope="module")
def model(world):
    return load_model(world / "a")


@pytest.fixture(scope="module")
def harness(world) -> Harness:
    return Harness(world / "data", ALL, "test", world / "tokenizer", batch_size=8)


@pytest.fixture(scope="module")
def result(harness, model) -> tuple[dict, dict[str, list[dict]]]:
    scores, items = harness.evaluate_with_items(model, "a", "hash")
    by_task: dict[str, list[dict]] = {}
    for item in items:
        by_task.setdefault(item["task"], []).append(item)
    return scores, by_task


@torch.no_grad()
def loglikelihood(model, tokenizer, prompt: str, choice: str) -> float:
    """One sequence at a time, no batch, no sharing, float64 softmax."""
    start = [1, *tokenizer.encode(prompt, add_special_tokens=False).ids]
    end = tokenizer.encode(choice, add_special_tokens=False).ids
    logits = model(torch.tensor([start + end])).logits[0].double()
    logprobs = logits.log_softmax(-1)
    return sum(float(logprobs[len(start) + i - 1, token]) for i, token in enumerate(end))


@pytest.mark.parametrize("task", CHOICE_TASKS)
def test_choices_equal_a_plain_computation(world, model, tokenizer, result, task):
    scores, items = result
    correct = []
    for row, item in zip(rows(world, task), items[task], strict=True):
        plain = [loglikelihood(model, tokenizer, row["prompt"], c) for c in row["choices"]]
        assert item["loglikelihoods"] == pytest.approx(plain, abs=2e-4)
        assert item["id"] == row["id"]
        assert item["answer"] == plain.index(max(plain))
        correct.append(float(plain.index(max(plain)) == row["gold"]))
        assert item["score"] == correct[-1]
    entry = scores["tasks"][task]
    assert 0 < sum(correct) < len(correct)
    assert entry["value"] == pytest.approx(sum(correct) / len(correct))
    assert entry["items"] == len(correct)


@torch.no_grad()
def greedy(model, tokenizer, prompt: str, limit: int) -> list[int]:
    """Argmax after argmax without a cache, up to and with the end of the sequence or a line."""
    start = [1, *tokenizer.encode(prompt, add_special_tokens=False).ids]
    written: list[int] = []
    while len(written) < limit:
        token = int(model(torch.tensor([start + written])).logits[0, -1].argmax())
        written.append(token)
        if token == 2 or "\n" in tokenizer.decode([token]):
            break
    return written


@pytest.mark.parametrize("task,limit", [("jsquad", 8), ("mgsm", 16), ("xlsum", 16)])
def test_generation_equals_a_plain_argmax_loop(world, model, tokenizer, result, task, limit):
    answers = [item["answer"] for item in result[1][f"bottle_ja8/{task}"]]
    plain = [
        tokenizer.decode(greedy(model, tokenizer, row["prompt"], limit)).split("\n")[0]
        for row in rows(world, f"bottle_ja8/{task}")
    ]
    assert answers == plain
    assert len(set(plain)) > 3


def test_equals_the_unaltered_hf_backend(world, harness, model, result):
    from lm_eval.models.huggingface import HFLM
    from transformers import AutoTokenizer

    instances = [i for task in harness._lm_tasks.values() for i in task.instances]
    # lm-eval leaves it to the tokenizer to put <s> in front.
    begins = AutoTokenizer.from_pretrained(world / "tokenizer")
    # Its cache of one-token answers misreads prompts that are another prompt plus its answer.
    plain = HFLM(pretrained=model, tokenizer=begins, batch_size=4, logits_cache=False)
    for kind in ("loglikelihood", "generate_until"):
        requests = [i for i in instances if i.request_type == kind]
        expected = getattr(plain, kind)(requests, disable_tqdm=True)
        found = getattr(harness._lm, kind)(requests)
        if kind == "generate_until":
            assert found == expected
        else:
            assert [v for v, _ in found] == pytest.approx([v for v, _ in expected], abs=2e-4)
            assert [g for _, g in found] == [g for _, g in expected]


def test_scores_file_holds_what_the_tables_need(result):
    scores, _ = result
    assert {
        k: v for k, v in scores.items() if k not in ("tasks", "suites", "counted", "lm_eval")
    } == {
        "model": "a",
        "weights": "hash",
        "split": "test",
        "backend": "hf",
        "dtype": "float32",
        "seed": 0,
    }
    entry = scores["tasks"]["bottle_ja8/jcomqa"]
    share = entry["value"]
    assert entry["stderr"] == pytest.approx((share * (1 - share) / 29) ** 0.5)
    assert (entry["metric"], entry["chance"]) == ("acc", 0.25)
    assert scores["counted"]["requests"] == 30 * 4 + 11 * 2 + 3 * 13 + 5


def test_tokens_and_flops_are_counted(world, tmp_path, model, tokenizer):
    def ids(text: str) -> int:
        return len(tokenizer.encode(text, add_special_tokens=False).ids)

    path = tmp_path / "test/bottle_ja8/xwino.jsonl"
    path.parent.mkdir(parents=True)
    row = {"id": "0", "prompt": "猫は空", "choices": ["に犬", "に鳥", "に海いる"], "gold": 0}
    path.write_text(json.dumps(row) + "\n" + json.dumps(row))
    harness = Harness(tmp_path, ["bottle_ja8/xwino"], "test", world / "tokenizer")
    counted = harness.evaluate(model)["counted"]
    # Per item <s> and the prompt once; "に" once for all choices; "海" of the longest; no last
    # token. Two items share nothing.
    tokens = 2 * (1 + ids("猫は空") + 1 + 1)
    parameters = sum(p.numel() for p in model.parameters())
    assert counted == {"requests": 6, "tokens": tokens, "flops": 2 * parameters * tokens}
    harness = Harness(world / "data", ["bottle_ja8/mgsm"], "test", world / "tokenizer")
    # The last generated token is read by no one.
    expected = sum(
        1 + ids(row["prompt"]) + len(greedy(model, tokenizer, row["prompt"], 16)) - 1
        for row in rows(world, "bottle_ja8/mgsm")
    )
    assert harness.evaluate(model)["counted"]["tokens"] == expected


def test_the_same_harness_serves_other_weights_and_repeats_exactly(world, harness, model, result):
    other = load_model(world / "b")
    fresh = Harness(world / "data", ALL, "test", world / "tokenizer", batch_size=8)
    expected = fresh.evaluate_with_items(other, "b")
    assert harness.evaluate_with_items(other, "b") == expected
    assert expected[0]["tasks"] != result[0]["tasks"]
    again = harness.evaluate_with_items(model, "a", "hash")
    assert again[0] == result[0]
    assert again[1] == [item for items in result[1].values() for item in items]


def test_overwritten_parameters_are_seen(world, harness):
    from checkpoints.reading import Checkpoint

    changed = load_model(world / "a")
    with torch.no_grad():
        for name, parameter in changed.named_parameters():
            parameter.copy_(Checkpoint(world / "b").load(name))
    expected = harness.evaluate(load_model(world / "b"))
    assert harness.evaluate(changed) == expected


def test_batch_size_does_not_change_the_answers(world, model, result):
    single = Harness(world / "data", ALL, "test", world / "tokenizer", batch_size=1)
    scores, _ = single.evaluate_with_items(model, "a", "hash")
    for task, entry in scores["tasks"].items():
        expected = result[0]["tasks"][task]
        assert (entry["value"], entry["stderr"]) == pytest.approx(
            (expected["value"], expected["stderr"])
        )


def test_prompts_beyond_the_window_fall_back_to_lm_eval(world, tmp_path, model, tokenizer):
    long = "猫は空に" * 40
    path = tmp_path / "test/bottle_ja8/xwino.jsonl"
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps({"id": "0", "prompt": long, "choices": ["猫", "犬"], "gold": 0}))
    harness = Harness(tmp_path, ["bottle_ja8/xwino"], "test", world / "tokenizer")
    _, items = harness.evaluate_with_items(model)
    ids = tokenizer.encode(long, add_special_tokens=False).ids
    with torch.no_grad():
        logits = model(torch.tensor([ids[-96:]])).logits[0, -1].double().log_softmax(-1)
    expected = [float(logits[tokenizer.token_to_id(word)]) for word in ("猫", "犬")]
    assert items[0]["loglikelihoods"] == pytest.approx(expected, abs=2e-4)


@pytest.mark.parametrize("suites,task", [(["bottle_ja8/jcomqa"], "jcomqa"), (TEXT_TASKS, "jsquad")])
def test_damaged_weights_are_named(world, suites, task):
    broken = load_model(world / "a")
    with torch.no_grad():
        broken.model.layers[1].mlp.up_proj.weight[3, 4] = float("nan")
    harness = Harness(world / "data", suites, "test", world / "tokenizer")
    with pytest.raises(UserError, match=f"'broken', task bottle_ja8_{task}.*not finite"):
        harness.evaluate(broken, "broken")


def test_a_task_without_items_is_refused(world, tmp_path):
    with pytest.raises(UserError, match=r"bottle_ja8/jnli has no items .*jnli\.jsonl.*not exist"):
        Harness(world / "data", ["bottle_ja8/jnli"], "test", world / "tokenizer")
    empty = tmp_path / "dev/bottle_ja8/jnli.jsonl"
    empty.parent.mkdir(parents=True)
    empty.write_text("")
    with pytest.raises(UserError, match=r"bottle_ja8/jnli has no items in .* is empty"):
        Harness(tmp_path, ["bottle_ja8/jnli"], "dev", world / "tokenizer")


def test_an_incomplete_item_is_refused(world, tmp_path):
    path = tmp_path / "dev/bottle_ja8/jnli.jsonl"
    path.parent.mkdir(parents=True)
    path.write_text('{"id": "1", "prompt": "猫", "choices": ["犬", "鳥"]}\n')
    with pytest.raises(UserError, match=r"jnli\.jsonl, line 1: no 'gold'"):
        Harness(tmp_path, ["bottle_ja8/jnli"], "dev", world / "tokenizer")
    path.write_text('{"id": "1", "prompt": "猫", "choices": ["犬", "鳥"], "gold": 2}\n')
    with pytest.raises(UserError, match=r"jnli\.jsonl, line 1: no choice"):
        Harness(tmp_path, ["bottle_ja8/jnli"], "dev", world / "tokenizer")
