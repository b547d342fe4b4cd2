"""The eight Japanese tasks from rows to scores with a tiny model, against plain computations."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

from evaluation import metrics
from evaluation.cli import main
from evaluation.items import read_records
from evaluation.metrics import rouge2
from evaluation.suites import select
from tests.conftest import behind_bos
from tests.evaluation.ja8_rows import ITEMS, built, write


@pytest.fixture(scope="session", autouse=True)
def libraries():
    """Import what takes seconds only when the tests run: collecting them stays quick."""
    global Harness, load_model
    from evaluation.backends.hf import load_model
    from evaluation.harness import Harness


BOTH = ["ja8", "ja8:corrected"]


def make_tokenizer(folder: Path, text: str) -> None:
    """A tokenizer of characters that puts a space in front of every text, as SentencePiece does."""
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    special = ["<pad>", "<s>", "</s>", "<unk>", "▁"]
    vocabulary = {token: i for i, token in enumerate([*special, *sorted(set(text) - {" "})])}
    tokenizer = Tokenizer(models.BPE(vocabulary, [], unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    PreTrainedTokenizerFast(
        tokenizer_object=behind_bos(tokenizer),
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
    ).save_pretrained(folder)


@pytest.fixture(scope="module")
def ja8(tmp_path_factory, make_model) -> Path:
    """A folder with data/ and the model model/."""
    folder = tmp_path_factory.mktemp("ja8")
    data = write(folder / "data")
    texts = [
        i.args
        for prompt in ("0.3", "0.6")
        for task in select(["ja8"], "published", prompt)
        for i in built(data, task)
    ]
    make_tokenizer(folder / "tokenizer", "\n".join(str(text) for text in texts))
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder / "tokenizer")
    make_model(
        folder / "model",
        "mistral",
        seed=3,
        vocabulary=len(tokenizer),
        max_position_embeddings=2048,
        sliding_window=None,
    )
    tokenizer.save_pretrained(folder / "model")
    return folder


@pytest.fixture(scope="module")
def model(ja8):
    return load_model(ja8 / "model")


@pytest.fixture(scope="module")
def harness(ja8) -> Harness:
    return Harness(ja8 / "data", BOTH, "test", ja8 / "model", batch_size=8)


@pytest.fixture(scope="module")
def result(harness, model) -> tuple[dict, dict[str, list[dict]]]:
    scores, items = harness.evaluate_with_items(model, "m")
    by_task: dict[str, list[dict]] = {}
    for item in items:
        by_task.setdefault(item["task"], []).append(item)
    return scores, by_task


@pytest.fixture(scope="module")
def tokenizer(ja8):
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(ja8 / "tokenizer")


def test_every_item_of_every_task_is_there_in_both_fidelities(result):
    scores, items = result
    assert scores["tasks"].keys() == items.keys() == {f"{s}/{t}" for s in BOTH for t in ITEMS}
    for name, found in items.items():
        rows = ITEMS[name.split("/")[1]]
        assert sorted(str(item["id"]) for item in found) == sorted(str(row["id"]) for row in rows)
        assert scores["tasks"][name]["items"] == len(rows)


def requests(ja8, name: str) -> list:
    return built(ja8 / "data", select([name])[0])


@torch.no_grad()
def loglikelihood(model, before: list[int], after: list[int]) -> float:
    logprobs = model(torch.tensor([before + after])).logits[0].double().log_softmax(-1)
    return sum(float(logprobs[len(before) + i - 1, token]) for i, token in enumerate(after))


@pytest.mark.parametrize("id", ["jcommonsenseqa", "jnli", "marc_ja", "xwinograd_ja"])
def test_published_choices_are_tokenised_apart_without_bos(ja8, model, tokenizer, result, id):
    instances = requests(ja8, f"ja8/{id}")
    found = [value for item in result[1][f"ja8/{id}"] for value in item["loglikelihoods"]]
    expected = []
    for context, choice in (instance.args for instance in instances):
        before = tokenizer.encode(context, add_special_tokens=False) or [2]
        after = tokenizer.encode(choice, add_special_tokens=False)
        assert after[0] == 4  # the space in front
        expected.append(loglikelihood(model, before, after))
    assert found == pytest.approx(expected, abs=2e-4)


@pytest.mark.parametrize("id", ["jcommonsenseqa", "xwinograd_ja"])
def test_corrected_choices_are_tokenised_with_the_prompt_behind_bos(
    ja8, model, tokenizer, result, id
):
    instances = requests(ja8, f"ja8:corrected/{id}")
    found = [v for item in result[1][f"ja8:corrected/{id}"] for v in item["loglikelihoods"]]
    expected = []
    for context, choice in (instance.args for instance in instances):
        whole = [1, *tokenizer.encode(context + choice, add_special_tokens=False)]
        # The line break at the context's end is scored with the choice.
        stem = context.rstrip()
        length = len(tokenizer.encode(stem, add_special_tokens=False)) if stem else 0
        expected.append(loglikelihood(model, whole[: 1 + length], whole[1 + length :]))
    assert found == pytest.approx(expected, abs=2e-4)


@torch.no_grad()
def greedy(model, start: list[int], limit: int, ends: set[int]) -> list[int]:
    written: list[int] = []
    while len(written) < limit and not (written and written[-1] in ends):
        written.append(int(model(torch.tensor([start + written])).logits[0, -1].argmax()))
    return written


@pytest.mark.parametrize("id", ["jsquad", "jaqket_v2", "xlsum_ja"])
def test_published_answers_are_cut_at_the_gold_answers_length(ja8, model, tokenizer, result, id):
    newline = tokenizer.encode("\n", add_special_tokens=False)[-1]
    answers = {str(item["id"]): item["answer"] for item in result[1][f"ja8/{id}"]}
    for instance in requests(ja8, f"ja8/{id}"):
        row = instance.doc
        golds = row["answers"] if "answers" in row else [row["summary"]]
        lengths = [len(tokenizer.encode(gold, add_special_tokens=False)) for gold in golds]
        cap = max(lengths) + (10 if id == "xlsum_ja" else 0)
        start = tokenizer.encode(instance.args[0], add_special_tokens=False)
        # Only a line break ends the answer; the end of the text is a token like any other.
        text = tokenizer.decode(greedy(model, start, cap, {newline}), skip_special_tokens=False)
        assert answers[str(row["id"])] == text.split("\n")[0]


def test_corrected_answers_have_one_cap_for_all(ja8, model, tokenizer, result):
    newline = tokenizer.encode("\n", add_special_tokens=False)[-1]
    answers = {item["id"]: item["answer"] for item in result[1]["ja8:corrected/jsquad"]}
    for instance in requests(ja8, "ja8:corrected/jsquad")[:2]:
        start = [1, *tokenizer.encode(instance.args[0], add_special_tokens=False)]
        text = tokenizer.decode(greedy(model, start, 256, {2, newline}), skip_special_tokens=True)
        assert answers[instance.doc["id"]] == text.split("\n")[0]


def test_scores_come_from_the_records_alone(result, tokenizer):
    scores, items = result
    for name, entry in scores["tasks"].items():
        id = name.split("/")[1]
        found = items[name]
        if id in ("jnli", "marc_ja"):
            golds = [item["gold"] for item in found]
            right = [
                item["loglikelihoods"].index(max(item["loglikelihoods"])) == item["gold"]
                for item in found
            ]
            shares = [
                sum(r for r, g in zip(right, golds, strict=True) if g == gold) / golds.count(gold)
                for gold in set(golds)
            ]
            balanced = sum(shares) / len(shares)
            assert entry["metrics"]["balanced_acc"]["value"] == pytest.approx(balanced)
            assert entry["metrics"]["acc"]["value"] == pytest.approx(sum(right) / len(right))
            published = not name.startswith("ja8:corrected")
            assert entry["metric"] == ("acc" if published else "balanced_acc")
        assert entry["value"] == entry["metrics"][entry["metric"]]["value"]
        for metric, value in entry["metrics"].items():
            if metric in ("exact_match", "f1"):
                mean = sum(item["values"][metric] for item in found) / len(found)
                assert value["value"] == pytest.approx(mean)
    for item in items["ja8/xlsum_ja"]:
        tokens = [tokenizer.tokenize(text) for text in (item["answer"], item["gold"])]
        assert item["values"]["rouge2"] == pytest.approx(rouge2(*tokens))
    again = metrics.aggregate(items["ja8/xlsum_ja"], "rouge2", "bootstrap_median")
    assert scores["tasks"]["ja8/xlsum_ja"]["value"] == again["value"]


def test_suites_are_averaged_with_and_without_weights(result):
    scores, _ = result
    for suite in BOTH:
        entries = [scores["tasks"][f"{suite}/{id}"] for id in ITEMS]
        means = scores["suites"][suite]
        assert means["primary"]["mean"] == pytest.approx(sum(e["value"] for e in entries) / 8)
        weighted = sum(e["value"] * e["items"] for e in entries) / sum(e["items"] for e in entries)
        assert means["primary"]["weighted_mean"] == pytest.approx(weighted)
        # acc_norm: jcommonsenseqa, jnli and marc_ja.
        assert means["acc_norm"]["tasks"] == 3
        assert means["exact_match"]["tasks"] == means["f1"]["tasks"] == 2


def test_command_line_takes_variants_limits_and_a_store(ja8, tmp_path, capsys, monkeypatch):
    command = [f"--model=m={ja8 / 'model'}", f"--data={ja8 / 'data'}", "--limit=2"]
    command += ["--suites", "ja8/jsquad,ja8/mgsm", "--fidelity", "both", "--prompt", "0.6"]
    command += [f"--store={tmp_path / 'store'}"]
    assert main([*command, f"--out={tmp_path / 'first.json'}"]) == 0
    shown = capsys.readouterr().out
    names = [
        f"ja8{fidelity}:0.6/{id}" for id in ("jsquad", "mgsm") for fidelity in ("", ":corrected")
    ]
    assert all(name in shown for name in names)
    scores = json.loads((tmp_path / "first.json").read_text())
    assert sorted(scores["tasks"]) == sorted(names)
    entry = scores["tasks"]["ja8:0.6/jsquad"]
    assert (entry["items"], entry["shots"], entry["scale"]) == (2, 2, 100)
    assert (entry["fidelity"], entry["prompt"]) == ("published", "0.6")

    # What is in the store needs no model any more, and gives the same files.
    monkeypatch.setattr("evaluation.harness.open_backend", None)
    assert main([*command, f"--out={tmp_path / 'second.json'}"]) == 0
    for ending in (".json", ".items.jsonl.gz"):
        first, second = (tmp_path / f"{name}{ending}" for name in ("first", "second"))
        assert first.read_bytes() == second.read_bytes()
    assert len(read_records(tmp_path / "second.items.jsonl.gz")) == 8


def test_a_run_cut_short_goes_on_with_the_task_it_was_at(ja8, tmp_path, capsys, monkeypatch):
    command = [f"--model=m={ja8 / 'model'}", f"--data={ja8 / 'data'}", "--limit=2"]
    command += ["--suites=ja8/jnli,ja8/jsquad,ja8/mgsm", f"--store={tmp_path / 'store'}"]
    command += [f"--out={tmp_path / 'scores.json'}"]
    run, asked = Harness._run, []

    def dies(self, task, backend):
        asked.append(task.id)
        if asked == ["jnli", "jsquad"]:
            raise MemoryError
        return run(self, task, backend)

    monkeypatch.setattr(Harness, "_run", dies)
    with pytest.raises(MemoryError):
        main(command)
    assert not (tmp_path / "scores.json").exists()
    main(command)
    assert asked == ["jnli", "jsquad", "jsquad", "mgsm"]
    assert len(json.loads((tmp_path / "scores.json").read_text())["tasks"]) == 3


def test_the_published_harness_goes_on_behind_the_end_of_the_text(ja8, model, tokenizer, result):
    # The end-of-sequence token takes the place of the token that answers begin with most.
    answers = [item["answer"] for item in result[1]["ja8/jsquad"]]
    first = [tokenizer.encode(text, add_special_tokens=False)[1] for text in answers if text]
    common = max(first, key=first.count)
    changed = load_model(ja8 / "model")
    with torch.no_grad():
        head = changed.get_output_embeddings().weight
        head[2] = 1.01 * head[common]
    newline = tokenizer.encode("\n", add_special_tokens=False)[-1]
    harness = Harness(ja8 / "data", ["ja8/jsquad", "ja8:corrected/jsquad"], "test", ja8 / "model")
    _, items = harness.evaluate_with_items(changed, "m")
    found = {(item["task"], item["id"]): item["answer"] for item in items}
    for instance in requests(ja8, "ja8/jsquad"):
        start = tokenizer.encode(instance.args[0], add_special_tokens=False)
        lengths = [
            len(tokenizer.encode(a, add_special_tokens=False)) for a in instance.doc["answers"]
        ]
        written = greedy(changed, start, max(lengths), {newline})
        text = tokenizer.decode(written, skip_special_tokens=False).split("\n")[0]
        assert found["ja8/jsquad", instance.doc["id"]] == text
    published = [text for (task, _), text in found.items() if task == "ja8/jsquad"]
    assert any("</s>" in text and not text.endswith("</s>") for text in published)
    assert not any("</s>" in text for (task, _), text in found.items() if "corrected" in task)


def test_nothing_is_served_for_another_model_tokenizer_or_setting(ja8, tmp_path, monkeypatch):
    def asked(folder: Path, *more: str) -> int:
        counts = []
        run = Harness._run
        monkeypatch.setattr(Harness, "_run", lambda *given: counts.append(1) or run(*given))
        command = [f"--model=m={folder}", f"--data={ja8 / 'data'}", "--suites=ja8/xwinograd_ja"]
        command += [f"--store={tmp_path / 'store'}", f"--out={tmp_path / 'scores.json'}"]
        main([*command, *more])
        monkeypatch.undo()
        return len(counts)

    model = tmp_path / "model"
    shutil.copytree(ja8 / "model", model)
    assert [asked(model), asked(ja8 / "model")] == [1, 0]
    assert [
        asked(model, *more) for more in (["--limit=3"], ["--dtype=bfloat16"], ["--seed=1"])
    ] == [
        1,
        1,
        1,
    ]
    for name, old, new in (
        ("config.json", '"rms_norm_eps": 1e-06', '"rms_norm_eps": 0.5'),
        ("tokenizer_config.json", "{", '{"model_max_length": 99,'),
    ):
        text = (model / name).read_text()
        (model / name).write_text(text.replace(old, new, 1))
        assert (model / name).read_text() != text
        assert [asked(model), asked(model)] == [1, 0]
    weights = bytearray((model / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (model / "model.safetensors").write_bytes(weights)
    assert asked(model) == 1
