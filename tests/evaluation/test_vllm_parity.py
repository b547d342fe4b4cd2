"""vLLM and transformers give the same answers: `make test-vllm`, where vLLM has its environment."""

from __future__ import annotations

import random
import re
from pathlib import Path

import pytest

from common.errors import UserError
from evaluation.backends.tokenisation import CORRECTED, PUBLISHED, Rule
from tests.evaluation.vllm_marks import NEEDS_VLLM

pytestmark = NEEDS_VLLM
RULES = [PUBLISHED, CORRECTED, Rule("separate", bos=True), Rule("joint", bos=False)]
WINDOW = 96


@pytest.fixture(scope="module")
def models(tmp_path_factory, make_model, make_bpe) -> Path:
    """Folder of the models llama_a, llama_b, mistral_a and mistral_b."""
    folder = tmp_path_factory.mktemp("models")
    for first, architecture in enumerate(("llama", "mistral")):
        for second, name in enumerate("ab"):
            model = make_model(
                folder / f"{architecture}_{name}",
                architecture,
                2 * first + second,
                vocabulary=400,
                hidden_size=64,
                num_attention_heads=2,
                num_key_value_heads=1,
                head_dim=32,
                max_position_embeddings=256,
                # Small enough that logits stay where fp32 rounds below 1e-5.
                initializer_range=0.2,
                **({"sliding_window": None} if architecture == "mistral" else {}),
            )
            make_bpe(model, sentencepiece=architecture == "mistral")
    return folder


@pytest.fixture(scope="module", params=["llama", "mistral"])
def backends(request, models) -> dict:
    """Both backends with one architecture's tokenizer: models are then served in turn."""
    from transformers import AutoTokenizer

    from evaluation.backends import open_backend

    first = models / f"{request.param}_a"
    tokenizer = AutoTokenizer.from_pretrained(first)
    opened = {
        name: open_backend(name, first, tokenizer, batch_size=8, max_length=WINDOW)
        for name in ("hf", "vllm")
    }
    yield opened | {"architecture": request.param}
    opened["vllm"].close()


def serve(backends: dict, models: Path, name: str, rule: Rule) -> None:
    for backend in (backends["hf"], backends["vllm"]):
        backend.serve(models / f"{backends['architecture']}_{name}", name)
        backend.set_rule(rule)


def stripped(answer: str) -> str:
    """Leave out a character that the limit cut in the middle of its bytes."""
    return re.sub("\ufffd+$", "", answer)


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: f"{rule.how}-{rule.bos}")
@pytest.mark.parametrize("model", ["a", "b"])
def test_backends_agree(backends, models, ask, choices, writings, model, rule):
    agree(backends, models, ask, choices, writings, model, rule)


def agree(backends, models, ask, choices, writings, model, rule) -> None:
    serve(backends, models, model, rule)
    requests = choices
    hf, vllm = (backends[name].loglikelihood(requests) for name in ("hf", "vllm"))
    assert [v for v, _ in vllm] == pytest.approx([v for v, _ in hf], abs=1e-4, rel=0)
    assert [g for _, g in vllm] == [g for _, g in hf]
    for at in range(0, len(requests), 3):
        first, second = ([value for value, _ in found[at : at + 3]] for found in (hf, vllm))
        assert first.index(max(first)) == second.index(max(second))
    requests = writings
    hf, vllm = (
        list(map(stripped, backends[name].generate_until(requests))) for name in ("hf", "vllm")
    )
    assert vllm == hf
    assert len(set(hf)) > 30
    # Neither the window's end nor a broken byte decides a whole text.
    rolling = [ask("loglikelihood_rolling", n, "猫が走る the cat" * n) for n in (1, 4, 30)]
    hf, vllm = (backends[name].loglikelihood_rolling(rolling) for name in ("hf", "vllm"))
    assert vllm == pytest.approx(hf, abs=1e-4 * WINDOW, rel=0)


def test_greedy_continuations_are_told_as_such(backends, models, ask, writings):
    serve(backends, models, "a", CORRECTED)
    prompts = writings
    answers = backends["hf"].generate_until(prompts)
    # What was written greedily, read again: where the text gives the same tokens, it is greedy.
    pairs = [
        ask("loglikelihood", i, prompt.args[0], answer)
        for i, (prompt, answer) in enumerate(zip(prompts, answers, strict=True))
        if answer and "\ufffd" not in answer
    ]
    hf, vllm = ([g for _, g in backends[name].loglikelihood(pairs)] for name in ("hf", "vllm"))
    assert hf == vllm
    assert any(hf)


def test_weights_are_exchanged_and_nothing_of_the_old_stays(backends, models, choices, writings):
    vllm, own = backends["vllm"], backends["architecture"]
    other = "llama" if own == "mistral" else "mistral"
    found = {}
    # Weights of the same shape are read in place; another architecture gets another engine.
    for name in (f"{own}_a", f"{own}_b", f"{other}_a", f"{own}_a", f"{own}_b"):
        vllm.serve(models / name, name)
        answer = (vllm.loglikelihood(choices), vllm.generate_until(writings))
        assert found.setdefault(name, answer) == answer
    assert len({str(answer) for answer in found.values()}) == 3


def test_damaged_weights_are_named(backends, models, ask, choices, writings, tmp_path):
    import shutil

    from safetensors.torch import load_file, save_file

    broken = tmp_path / "broken"
    shutil.copytree(models / f"{backends['architecture']}_a", broken)
    tensors = load_file(broken / "model.safetensors")
    tensors["model.layers.1.mlp.up_proj.weight"][3, 4] = float("nan")
    save_file(tensors, broken / "model.safetensors", metadata={"format": "pt"})
    serve(backends, models, "a", CORRECTED)
    backends["vllm"].serve(broken, "broken")
    for kind, requests in (("loglikelihood", choices), ("generate_until", writings)):
        with pytest.raises(UserError, match=r"'broken', task task.*not finite"):
            getattr(backends["vllm"], kind)(requests)
    agree(backends, models, ask, choices, writings, "a", CORRECTED)


def test_what_choices_share_is_read_once(backends, models, ask):
    serve(backends, models, "a", CORRECTED)
    context = "東京猫犬空海走るHund" * 16  # some blocks of 32 tokens
    short = [ask("loglikelihood", 0, context, answer) for answer in ("猫", "空12", "the cat")]
    # A continuation that another begins, and one asked twice: what was read before has to be told.
    long = "läuft12=7 " * 4
    inside = [ask("loglikelihood", 1, "犬", text) for text in (long, long + "空", long)]
    for requests in (short, inside):
        hf, vllm = (backends[name].loglikelihood(requests) for name in ("hf", "vllm"))
        assert [v for v, _ in vllm] == pytest.approx([v for v, _ in hf], abs=1e-4, rel=0)
        assert [g for _, g in vllm] == [g for _, g in hf]
    vllm = backends["vllm"]
    vllm.serve(models / f"{backends['architecture']}_b", "b")  # with nothing in its cache
    vllm.loglikelihood(short)
    lengths = [sum(map(len, vllm._encoder.encode_pair(*request.args))) for request in short]
    shared = len(vllm._encoder.encode_pair(*short[0].args)[0]) // 32 * 32
    assert shared >= 32
    assert vllm.counted["tokens"] == sum(lengths) - (len(short) - 1) * shared
    told = []
    vllm.on_progress = told.append
    vllm.loglikelihood(inside)
    assert sum(told) == len(inside)


def test_a_long_answer_is_refused(backends, models, ask):
    serve(backends, models, "a", CORRECTED)
    for backend in (backends["hf"], backends["vllm"]):
        with pytest.raises(UserError, match=r"task task: an answer of \d+ tokens does not fit"):
            backend.loglikelihood([ask("loglikelihood", 0, "猫", "?!" * WINDOW)])


def test_answers_beyond_the_end_agree(backends, models, writings, tmp_path):
    """As published: the end-of-sequence token ends nothing, and special tokens are text."""
    import copy
    import shutil

    from safetensors.torch import load_file, save_file

    ending = tmp_path / "ending"
    shutil.copytree(models / f"{backends['architecture']}_a", ending)
    tensors = load_file(ending / "model.safetensors")
    tensors["lm_head.weight"][2] *= 4  # it writes </s> again and again
    save_file(tensors, ending / "model.safetensors", metadata={"format": "pt"})
    past = copy.deepcopy(writings)
    for request in past:
        request.args[1]["ignore_eos"] = True
    found = {}
    for name in ("hf", "vllm"):
        backends[name].serve(ending, "ending")
        backends[name].set_rule(PUBLISHED)
        found[name] = [
            list(map(stripped, backends[name].generate_until(requests)))
            for requests in (past, writings)
        ]
    assert found["vllm"] == found["hf"]
    beyond, within = found["hf"]
    assert sum("</s>" in answer for answer in beyond) > 5
    assert not any("</s>" in answer for answer in within)
    ended = [answer.split("</s>")[0] for answer in beyond if "</s>" in answer]
    assert any(ended)


def test_tokens_beyond_the_vocabulary_are_named_alike(backends, models, ask, tmp_path):
    """Before vLLM meets them."""
    serve(backends, models, "a", CORRECTED)
    for backend in (backends["hf"], backends["vllm"]):
        assert backend.vocabulary == 400
        with pytest.raises(UserError, match=r"token 400 .* beyond the model's vocabulary of 400"):
            backend._check_known([3, 400])


def test_harness_scores_and_counts_alike(models, tmp_path):
    """Through lm-eval's evaluator; last, for two engines at once need each other's parts."""
    import json

    from evaluation.harness import Harness

    draw = random.Random(3)
    for task, row in {
        "jcomqa": lambda: {"choices": [draw.choice("猫犬空海") + c for c in "abcd"], "gold": 1},
        "jsquad": lambda: {"target": "猫"},
    }.items():
        path = tmp_path / f"test/bottle_ja8/{task}.jsonl"
        path.parent.mkdir(parents=True, exist_ok=True)
        rows = [
            {"id": str(n), "prompt": "".join(draw.choices("猫犬空 東京海", k=n % 9 + 1))} | row()
            for n in range(20)
        ]
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = {}
    for backend in ("hf", "vllm"):
        harness = Harness(
            tmp_path,
            ["bottle_ja8/jcomqa", "bottle_ja8/jsquad"],
            "test",
            models / "llama_a",
            backend=backend,
        )
        found[backend] = harness.evaluate_folder(models / "mistral_b", "b")
    (hf, hf_items), (vllm, vllm_items) = found["hf"], found["vllm"]
    assert vllm["tasks"] == hf["tasks"]
    assert (vllm["backend"], vllm["dtype"]) == ("vllm", "float32")
    assert vllm["counted"]["requests"] == hf["counted"]["requests"] == 100
    for one, other in zip(hf_items, vllm_items, strict=True):
        assert one.keys() == other.keys()
        if "loglikelihoods" in one:
            assert other["loglikelihoods"] == pytest.approx(one["loglikelihoods"], abs=1e-4)


def test_models_of_two_tokenizers_are_served_in_turn(models, tmp_path):
    """One engine after another in one process, with a context of a given length."""
    import json

    from evaluation.cli import main
    from evaluation.items import read_records

    path = tmp_path / "test/bottle_ja8/jcomqa.jsonl"
    path.parent.mkdir(parents=True)
    rows = [
        {"id": str(n), "prompt": "猫犬" * 10 * n + "東京", "choices": ["猫", "空12"], "gold": n % 2}
        for n in range(6)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = {}
    for backend in ("hf", "vllm"):
        arguments = ["--data", str(tmp_path), "--suites", "bottle_ja8/jcomqa"]
        arguments += ["--backend", backend, "--max-length", "60"]
        for name in ("llama_b", "mistral_b", "llama_a"):
            arguments += ["--model", str(models / name)]
        main([*arguments, "--out-dir", str(tmp_path / backend)])
        found[backend] = {
            name: read_records(tmp_path / backend / f"{name}.items.jsonl.gz")
            for name in ("llama_b", "mistral_b", "llama_a")
        }
    for name, items in found["hf"].items():
        for one, other in zip(items, found["vllm"][name], strict=True):
            assert other["loglikelihoods"] == pytest.approx(one["loglikelihoods"], abs=1e-4)
