"""What an evaluation refuses and how it tells it: lengths, vocabularies, rows, undefined scores."""

from __future__ import annotations

import gc
import gzip
import json
import math
import shutil
import weakref
from pathlib import Path

import pytest

from common.errors import UserError
from evaluation.backends import check_max_length
from evaluation.cli import main, summary
from evaluation.metrics import aggregate
from evaluation.suites import check_items, select

TASK = "bottle_ja8/jcomqa"
ROW = {"id": "0", "prompt": "猫は", "choices": ["空", "海"], "gold": 0}
BOOLQ = {"id": 5, "paragraph": "가", "question": "나", "label": 0}


def write_items(folder: Path, *rows: object, task: str = TASK) -> Path:
    path = folder / f"test/{task}.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def harness(world: Path, data: Path, tasks: list[str], **settings):
    from evaluation.harness import Harness

    return Harness(data, tasks, "test", world / "tokenizer", **settings)


@pytest.mark.parametrize(
    ("max_length", "config", "backend", "most"),
    [
        (96, {"max_position_embeddings": 96}, "hf", None),
        (97, {"max_position_embeddings": 96}, "hf", 96),
        (94, {"max_position_embeddings": 96}, "vllm", None),
        (95, {"max_position_embeddings": 96}, "vllm", 94),
        (33, {"n_positions": 32}, "hf", 32),
        (33, {"text_config": {"max_position_embeddings": 32}}, "hf", 32),
        (10**9, {}, "hf", None),
        (None, {"max_position_embeddings": 96}, "hf", None),
    ],
)
def test_a_context_longer_than_the_models_is_refused(max_length, config, backend, most):
    if most is None:
        check_max_length(max_length, config, backend, "m")
        return
    with pytest.raises(UserError, match=rf"--max-length {max_length}: model 'm' .* give {most} or"):
        check_max_length(max_length, config, backend, "m")


def test_a_shorter_context_drops_the_beginning_of_the_prompt(world, tmp_path):
    """The same log-likelihoods as of the prompt's last tokens alone, without BOS in front."""
    import torch
    from tokenizers import Tokenizer

    from evaluation.backends.hf import load_model

    tokenizer = Tokenizer.from_file(str(world / "tokenizer/tokenizer.json"))
    write_items(tmp_path, ROW | {"prompt": "猫は空に" * 5})
    short = harness(world, tmp_path, [TASK], max_length=8)
    scores, items = short.evaluate_folder(world / "a", "a")
    assert scores["max_length"] == 8
    ids = tokenizer.encode("猫は空に" * 5, add_special_tokens=False).ids
    with torch.no_grad():
        logits = load_model(world / "a")(torch.tensor([ids[-8:]])).logits[0, -1].double()
    logprobs = logits.log_softmax(-1)
    expected = [float(logprobs[tokenizer.token_to_id(word)]) for word in ROW["choices"]]
    assert items[0]["loglikelihoods"] == pytest.approx(expected, abs=2e-4)
    whole, _ = harness(world, tmp_path, [TASK]).evaluate_folder(world / "a", "a")
    assert "max_length" not in whole
    with pytest.raises(UserError, match="--max-length 97: model 'a' reads at most 96"):
        harness(world, tmp_path, [TASK], max_length=97).evaluate_folder(world / "a", "a")


def test_the_store_keeps_contexts_of_different_lengths_apart(world, tmp_path):
    from evaluation.store import Store

    write_items(tmp_path, ROW | {"prompt": "猫は空に" * 5})
    found = []
    for length in (8, None, 8):
        one = harness(world, tmp_path, [TASK], max_length=length, store=Store(tmp_path / "store"))
        found.append(one.evaluate_folder(world / "a", "a")[1])
    assert found[0] == found[2] != found[1]
    assert len(list((tmp_path / "store").iterdir())) == 2


@pytest.mark.parametrize("task", [TASK, "bottle_ja8/jsquad"])
def test_a_tokenizer_beyond_the_models_vocabulary_is_named(world, tmp_path, task):
    from transformers import MistralConfig, MistralForCausalLM

    config = MistralConfig.from_pretrained(world / "a", vocab_size=6)
    MistralForCausalLM(config).save_pretrained(tmp_path / "small")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(world / "tokenizer" / name, tmp_path / "small")
    write_items(tmp_path, ROW | {"target": "空"}, task=task)
    with pytest.raises(UserError, match=r"'small', .*token \d+ \(.*\) is beyond .* of 6; give"):
        harness(world, tmp_path, [task]).evaluate_folder(tmp_path / "small", "small")


@pytest.mark.parametrize(
    ("task", "row", "problem"),
    [
        (TASK, ROW | {"choices": ["", "b"]}, "none of them empty"),
        (TASK, ROW | {"choices": "ab"}, "'choices' is not a list"),
        (TASK, ROW | {"gold": "0"}, "no choice has the number in 'gold'"),
        (TASK, ROW | {"gold": -1}, "no choice has the number in 'gold'"),
        (TASK, ROW | {"prompt": None}, "is not a text"),
        (TASK, 42, "line 1: not a JSON object"),
        ("bottle_ja8/jsquad", {"id": 0, "prompt": "猫", "target": 3}, "is not a text"),
        ("kobest/boolq", BOOLQ | {"label": -1}, "item 5: -1 numbers none of its 2 choices"),
        ("kobest/boolq", BOOLQ | {"label": 2}, "cannot ask what a row holds"),
        ("kobest/boolq", BOOLQ | {"label": None}, "item 5: None numbers none of its 2 choices"),
        (
            "kobest/copa",
            {"id": 0, "premise": "가", "question": "?", "alternative_1": "나"}
            | {"alternative_2": "다", "label": 0},
            r"cannot ask what a row holds \(KeyError: '\?'\)",
        ),
    ],
)
def test_a_row_that_cannot_be_asked_is_told_in_one_line(world, tmp_path, task, row, problem):
    path = write_items(tmp_path, row, task=task)
    with pytest.raises(UserError, match=problem) as caught:
        harness(world, tmp_path, [task])
    assert str(path) in str(caught.value)
    assert "make the data with python -m " in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_later_row_without_a_right_choice_is_told(world, tmp_path):
    write_items(tmp_path, BOOLQ, BOOLQ | {"id": 6, "label": 7}, task="kobest/boolq")
    with pytest.raises(UserError, match="item 6: 7 numbers none of its 2 choices"):
        harness(world, tmp_path, ["kobest/boolq"])


def test_items_that_are_not_utf8_are_told(world, tmp_path):
    path = write_items(tmp_path, ROW)
    path.write_bytes(b'{"id": "\xff"}\n')
    with pytest.raises(UserError, match=r"jcomqa\.jsonl: not UTF-8"):
        harness(world, tmp_path, [TASK])


def test_odd_items_are_scored(world, tmp_path):
    """One item, more rows a batch than items, a limit beyond them, one choice, no prompt."""
    rows = [
        ROW | {"id": "one", "choices": ["猫"]},
        ROW | {"id": "none", "prompt": ""},
        ROW | {"id": "odd", "choices": ["\u2028\x85", "🐱"]},
        ROW | {"id": "same", "choices": ["空", "空"], "gold": 1},
        ROW | {"id": "long", "prompt": "猫は空に" * 500},
    ]
    for count, size, limit in ((1, 64, None), (5, 64, 99), (5, 1, None)):
        write_items(tmp_path, *rows[:count])
        one = harness(world, tmp_path, [TASK], batch_size=size, limit=limit)
        scores, items = one.evaluate_folder(world / "a", "a")
        assert [item["id"] for item in items] == [row["id"] for row in rows[:count]]
        assert all(math.isfinite(v) for item in items for v in item["loglikelihoods"])
        entry = scores["tasks"][TASK]
        assert (entry["items"], scores.get("limit")) == (count, limit)
        assert items[0]["score"] == 1.0
        if count == 1:
            assert (entry["value"], entry["stderr"]) == (1.0, 0.0)
        else:
            assert items[3]["score"] == 0.0  # of equals the first counts


def test_missing_items_are_all_told_with_how_to_get_them(tmp_path):
    write_items(tmp_path, ROW, task="ja8/jnli")
    write_items(tmp_path, ROW, task="kobest/wic")
    tasks = select(["ja8/jnli", "ja8/marc_ja", "okapi_de/arc", "kobest/wic", "bottle_ja8/xwino"])
    with pytest.raises(UserError) as caught:
        check_items(tmp_path, "test", tasks)
    assert str(caught.value) == (
        f"no items in {tmp_path}/test for ja8/marc_ja, okapi_de/arc, bottle_ja8/xwino; "
        f"make the data with python -m evaluation data --suite ja8 --out {tmp_path}; make the data "
        f"with python -m evaluation data --suite okapi_de --out {tmp_path}; make the data with "
        f"python -m bottle data --case case1 --out {tmp_path}, or leave out what has none: "
        "--suites ja8/jnli,kobest/wic"
    )
    check_items(tmp_path, "test", tasks[:1])


def test_missing_copies_are_all_told(tmp_path):
    from evaluation.data.build import convert_local
    from evaluation.data.sources import select_sources

    (tmp_path / "kobest/BoolQ").mkdir(parents=True)
    (tmp_path / "kobest/BoolQ/test.tsv").write_text("ID\tText\tQuestion\tAnswer\n")
    with pytest.raises(UserError) as caught:
        convert_local(select_sources(["kobest/boolq", "kobest/copa", "kobest/wic"]), tmp_path)
    assert str(caught.value) == (
        f"{tmp_path} has no skt/kobest_v1/copa/test.jsonl or kobest/COPA/test.tsv (kobest/copa); "
        "skt/kobest_v1/wic/test.jsonl or kobest/WiC/test.tsv (kobest/wic); put the files there, "
        "or leave those tasks out: --suite kobest/boolq"
    )


def question(number: int, length: int) -> dict:
    targets = {"choices": ["猫" * length, "犬" * length], "labels": [1, 0]}
    return {"id": number, "question": "空？", "mc1_targets": targets, "mc2_targets": targets}


def test_a_score_that_is_not_a_number_is_said_so_and_never_written(world, tmp_path, capsys):
    """Published MC2 divides nothing by nothing where exp() of every choice underflows."""
    from safetensors.torch import load_file, save_file

    sure = tmp_path / "sure"  # of what it expects: ninety tokens are less probable than exp(-745)
    shutil.copytree(world / "a", sure)
    tensors = load_file(sure / "model.safetensors")
    tensors["lm_head.weight"] *= 10
    save_file(tensors, sure / "model.safetensors", metadata={"format": "pt"})
    write_items(tmp_path, question(0, 90), question(1, 3), task="okapi_de/truthfulqa")
    arguments = ["--data", str(tmp_path), "--model", f"a={sure}"]
    arguments += ["--suites", "okapi_de/truthfulqa,okapi_de:corrected/truthfulqa"]
    main([*arguments, "--out-dir", str(tmp_path / "out")])
    shown = capsys.readouterr().out
    text = (tmp_path / "out/a.json").read_text()
    scores = json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} in scores.json"))
    lines = gzip.decompress((tmp_path / "out/a.items.jsonl.gz").read_bytes()).decode()
    items = [
        json.loads(line, parse_constant=lambda name: pytest.fail(f"{name} in items"))
        for line in lines.splitlines()
    ]
    published = scores["tasks"]["okapi_de/truthfulqa"]
    masses = [[math.exp(v) for v in item["loglikelihoods"]] for item in items[:2]]
    assert (sum(masses[0]), items[0]["values"]["mc2"]) == (0.0, None)
    expected = masses[1][0] / sum(masses[1])
    assert items[1]["values"]["mc2"] == pytest.approx(expected, rel=1e-9)
    why = "not a number for 1 of 2 items"
    assert published["metrics"]["mc2"] == {"value": None, "stderr": None, "undefined": why}
    assert (published["value"], published["undefined"]) == (None, why)
    assert published["metrics"]["mc1"]["value"] is not None
    primary = scores["suites"]["okapi_de"]["primary"]
    assert (primary["mean"], primary["undefined"]) == (None, "not a number for 1 of 1 tasks")
    assert published["chance"] == 0.5  # one of each item's two choices is true
    corrected = scores["tasks"]["okapi_de:corrected/truthfulqa"]
    assert 0 <= corrected["value"] <= 1
    assert f"mc2 is {why}" in shown


def test_what_is_undefined_stops_the_gate_and_the_report(tmp_path):
    from evaluation.gate import check
    from report.load import read_scores

    entry = {"value": None, "stderr": None, "undefined": "not a number for 1 of 2 items"}
    scores = {"model": "m", "split": "test", "tasks": {"okapi_de/truthfulqa": entry | {"items": 2}}}
    with pytest.raises(UserError, match="okapi_de/truthfulqa has no score for m: not a number"):
        check(scores, {"x": (scores, ["okapi_de/truthfulqa"])})
    path = tmp_path / "m.json"
    path.write_text(json.dumps(scores))
    with pytest.raises(UserError, match=r"m\.json: task okapi_de/truthfulqa has no score"):
        read_scores(path)
    assert aggregate([{"values": {"x": 0.5}}, {"values": {"x": 1.0}}], "x")["value"] == 0.75


def test_the_summary_says_what_limits_the_scores():
    task = {"metric": "acc", "value": 0.5, "stderr": 0.1, "items": 4, "chance": 0.25}
    task["metrics"] = {"acc": {"value": 0.5, "stderr": 0.1}, "f1": {"value": 0.25, "stderr": 0.1}}
    lost = {"value": None, "stderr": None, "undefined": "not a number for 1 of 4 items"}
    tasks = {
        "ja8/jsquad": task | {"scale": 100, "stand_in": {"items": "another split"}},
        "ja8/mgsm": task | lost | {"metrics": {"acc": lost}},
    }
    mean = {"mean": None, "weighted_mean": None, "tasks": 2, "undefined": "not a number for 1 of 2"}
    scores = {"model": "m", "split": "test", "backend": "hf", "dtype": "float32", "limit": 4}
    scores |= {"max_length": 64, "tasks": tasks, "suites": {"ja8": {"primary": mean}}}
    assert summary(scores).splitlines() == [
        "m (test, hf, float32, limit 4, max length 64; ± standard error)",
        "  ja8/jsquad acc            50.00 ± 10.00  n=4  chance 0.25  (f1 25.00)",
        "    not the benchmark's own items: another split",
        "  ja8/mgsm   acc                -  n=4  chance 0.25",
        "    acc is not a number for 1 of 4 items",
        "  ja8: mean of 2                -  (not a number for 1 of 2)",
    ]


def test_a_single_item_has_no_error():
    """A deviation needs two: ± 0 would say that the score is certain."""
    task = {"metric": "acc", "value": 1.0, "stderr": 0.0, "items": 3, "chance": 0}
    task["metrics"] = {"acc": {"value": 1.0, "stderr": 0.0}}
    task["groups"] = {"easy": {"value": 1.0, "stderr": 0.0, "items": 1}}
    mean = {"mean": 1.0, "weighted_mean": 1.0, "tasks": 1}
    scores = {"model": "m", "split": "test", "backend": "hf", "dtype": "float32"}
    scores |= {"tasks": {"own/a": task}, "suites": {"own": {"primary": mean}}}
    assert [line.split() for line in summary(scores).splitlines()[1:]] == [
        ["own/a", "acc", "1.000", "±", "0.000", "n=3"],
        ["easy", "1.000", "n=1,", "which", "has", "no", "error"],
    ]
    del task["groups"]
    task["items"] = 1
    assert summary(scores).endswith("1.000  n=1, which has no error")


def test_rows_that_stand_in_are_marked_in_the_scores(world, tmp_path):
    path = write_items(tmp_path, ROW)
    about = {"extra": {"tasks": {"jcomqa": {"stand_in": {"items": "another split"}}}}}
    path.with_name("manifest.json").write_text(json.dumps(about))
    scores, _ = harness(world, tmp_path, [TASK]).evaluate_folder(world / "a", "a")
    assert scores["tasks"][TASK]["stand_in"] == {"items": "another split"}


def test_a_closed_harness_holds_no_model_and_can_go_on(world, tmp_path):
    write_items(tmp_path, ROW)
    one = harness(world, tmp_path, [TASK])
    first = one.evaluate_folder(world / "a", "a")
    weights = weakref.ref(one._lm._decoder)
    one.close()
    gc.collect()
    assert weights() is None
    assert one.evaluate_folder(world / "a", "a") == first
