"""The quick class of small models against transformers' own forward pass and generation."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from common.errors import UserError
from evaluation.backends import class_of
from evaluation.backends.packing import pack
from evaluation.backends.tokenisation import CORRECTED, PUBLISHED
from tests.evaluation.plain_forward import WINDOW, plain_score


@pytest.fixture(scope="session", autouse=True)
def libraries():
    """Import what takes seconds only when the tests run: collecting them stays quick."""
    global HFBackend, PlainBackend, load_model
    from evaluation.backends.hf import HFBackend, load_model
    from evaluation.backends.plain import PlainBackend


# Heads that share keys, a head's size of its own, one matrix for embedding and head.
KINDS = {
    "mistral": {"sliding_window": None},
    "llama": {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 6},
    "tied": {"tie_word_embeddings": True},
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory, make_model, make_bpe) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("models")
    for seed, (kind, settings) in enumerate(KINDS.items()):
        architecture = "mistral" if kind == "mistral" else "llama"
        sizes = {"max_position_embeddings": WINDOW} | settings
        make_model(root / kind, architecture, seed, 400, **sizes)
        make_bpe(root / kind, sentencepiece=True)
    return {kind: root / kind for kind in KINDS}


@pytest.fixture(scope="module")
def tokenizer(folders):
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folders["llama"])


def test_what_is_packed_can_be_unpacked_and_is_shared():
    """Counted by hand: distinct beginnings of three sequences, and of the last two alone."""
    sequences = [[5, 6, 7], [5, 6, 8, 9], [5, 6, 7], [4]]
    (whole,) = pack(sequences, [2, 1, 0, 0], 100)
    assert len(whole.tokens) == len({(4,), (5,), (5, 6), (5, 6, 7), (5, 6, 8), (5, 6, 8, 9)})
    for row, length, owner in zip(whole.rows, whole.lengths, whole.chosen, strict=True):
        nodes = row[: int(length)]
        assert whole.tokens[nodes].tolist() == sequences[owner]
        assert whole.depths[nodes].tolist() == list(range(int(length)))
    small = list(pack(sequences, [2, 1, 0, 0], 4))
    assert sorted(n for part in small for n in part.chosen) == [0, 1, 2, 3]
    assert [len(part.tokens) for part in small] == [4, 4]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("rule", [CORRECTED, PUBLISHED], ids=["corrected", "published"])
def test_every_continuation_equals_transformers_forward_pass(
    folders, tokenizer, choices, kind, rule
):
    backend = PlainBackend(folders[kind], tokenizer, 8, rule)
    model = load_model(folders[kind])
    expected = [plain_score(model, *backend._encoder.encode_pair(*r.args)) for r in choices]
    found = backend.loglikelihood(choices)
    assert [v for v, _ in found] == pytest.approx([v for v, _ in expected], abs=2e-4)
    assert [g for _, g in found] == [g for _, g in expected]


@pytest.mark.parametrize("kind", KINDS)
def test_every_answer_equals_transformers_generation(folders, tokenizer, writings, kind):
    backend = PlainBackend(folders[kind], tokenizer, 8)
    model, expected, tokens = load_model(folders[kind]), [], 0
    for request in writings:
        settings = request.args[1]
        limit, stops = settings["max_gen_toks"], settings["until"]
        prompt = backend._encoder.encode_prompt(request.args[0])[-(WINDOW - limit) :]
        ids = torch.tensor([prompt])
        ends = [2, *(tokenizer.convert_tokens_to_ids(s) for s in stops if s == "<end>")]
        about = {"max_new_tokens": limit, "do_sample": False, "eos_token_id": ends}
        about |= {"attention_mask": torch.ones_like(ids), "pad_token_id": 0}
        written = model.generate(ids, **about)[0, len(prompt) :].tolist()
        texts = [
            tokenizer.decode(written[:n], skip_special_tokens=True)
            for n in range(1, len(written) + 1)
        ]
        ended = (n for n, text in enumerate(texts, 1) if any(s in text for s in stops if s))
        count = next(ended, len(written))
        tokens += len(prompt) + count - 1
        answer = texts[count - 1]
        for stop in filter(None, stops):
            answer = answer.split(stop, 1)[0]
        expected.append(answer)
    assert backend.generate_until(writings) == expected
    assert len(set(expected)) > len(expected) / 2
    assert backend.counted == {"requests": len(writings), "tokens": tokens}


def test_counts_and_answers_are_those_of_the_other_class(folders, tokenizer, choices, writings):
    """Beginnings that items share are counted for each of them, as if it were alone."""
    ours = PlainBackend(folders["llama"], tokenizer, 8)
    other = HFBackend(folders["llama"], tokenizer, 8)
    scored, expected = ours.loglikelihood(choices), other.loglikelihood(choices)
    assert [v for v, _ in scored] == pytest.approx([v for v, _ in expected], abs=2e-4)
    assert ours.generate_until(writings) == other.generate_until(writings)
    assert ours.counted == other.counted
    assert (ours.parameters, ours.window) == (other.parameters, other.window)


def test_a_model_in_memory_is_read_as_it_is_now(folders, tokenizer, choices):
    model = load_model(folders["llama"])
    backend = PlainBackend(model, tokenizer, 8)
    first = backend.loglikelihood(choices)
    assert first == PlainBackend(folders["llama"], tokenizer, 8).loglikelihood(choices)
    with torch.no_grad():
        model.model.norm.weight.mul_(0.5)
    assert backend.loglikelihood(choices) != first


def test_a_model_that_overflows_is_named(folders, tokenizer, choices, writings):
    model = load_model(folders["llama"])
    with torch.no_grad():
        model.model.norm.weight.fill_(float("nan"))
    backend = PlainBackend(model, tokenizer, 8, name="broken")
    for ask in (lambda: backend.loglikelihood(choices), lambda: backend.generate_until(writings)):
        with pytest.raises(UserError, match=r"model 'broken', task task: .*not finite"):
            ask()


@pytest.mark.parametrize(
    "change",
    [
        {"sliding_window": 8},
        {"model_type": "qwen2"},
        {"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 10000.0}},
        {"hidden_act": "gelu"},
        {"attention_bias": True},
        {"hidden_size": 4096},
        {"num_hidden_layers": 7},
    ],
    ids=lambda change: next(iter(change)),
)
def test_other_models_are_left_to_transformers(folders, tmp_path, change):
    folder = folders["mistral"]
    assert class_of("hf", folder, "float32", "cpu") is PlainBackend
    assert class_of("hf", folder, "bfloat16", "cpu") is HFBackend
    assert class_of("hf", folder, "float32", "cuda") is HFBackend
    other = tmp_path / "other"
    other.mkdir()
    for path in folder.iterdir():
        (other / path.name).symlink_to(path)
    (other / "config.json").unlink()
    config = json.loads((folder / "config.json").read_text()) | change
    (other / "config.json").write_text(json.dumps(config))
    assert class_of("hf", other, "float32", "cpu") is HFBackend
