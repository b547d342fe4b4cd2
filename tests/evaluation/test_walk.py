"""Many model types: scores and texts of the hf backend against plain passes of the models."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from common.errors import UserError
from tests import compatibility
from tests.evaluation import walk

# Of a sum of up to six log-probabilities, computed in float32.
_EXACT = 2e-5


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory, make_bpe):
    from transformers import AutoTokenizer

    folder = tmp_path_factory.mktemp("tokenizer")
    make_bpe(folder, sentencepiece=True)
    return AutoTokenizer.from_pretrained(folder)


def check(found: dict) -> None:
    assert found["error"] < _EXACT, found
    assert found["texts"], found
    assert found["generate"], found


WAYS = [
    ("gpt_neo", ("rows", "batch")),
    ("lfm2", ("rows", "kept")),
    ("mamba", ("rows", "own")),
    ("openai-gpt", ("rows", "anew")),
    ("gemma3_text", ("trees", "batch")),
]


@pytest.mark.parametrize("kind,ways", WAYS)
def test_the_quickest_right_way_is_taken_and_said(tokenizer, capsys, kind, ways):
    found = walk.compare(kind, tokenizer)
    check(found)
    assert (found["score"], found["write"]) == ways
    said = capsys.readouterr().err
    assert said.count("\n") == (ways != ("trees", "batch"))
    assert (f"note: model '{kind}' ({kind}): the quicker ways differ" in said) == bool(said)


@pytest.mark.parametrize("dtype,rounding", [(torch.bfloat16, 0.15), (torch.float16, 0.02)])
@pytest.mark.parametrize("kind,ways", [*WAYS, ("mixtral", ("trees", "batch"))])
def test_the_same_ways_are_taken_and_right_in_half_precision(
    tokenizer, kind, ways, dtype, rounding
):
    """The choice is made in float32; what is left is the type's own rounding."""
    found = walk.compare(kind, tokenizer, dtype)
    assert (found["score"], found["write"]) == ways
    assert found["error"] < rounding and found["behind"] < rounding


def test_generation_settings_of_a_folder_do_not_change_answers(tokenizer):
    from evaluation.backends.base import Prompt
    from evaluation.backends.hf import HFBackend

    model = walk.make("llama")
    tokens = torch.randint(3, 300, (9,), generator=torch.Generator().manual_seed(4)).tolist()
    expected = walk.plain_text(model, tokens, 12)
    model.generation_config.update(repetition_penalty=50.0, max_new_tokens=3)
    assert walk.own_text(model, tokens, 12) != expected  # transformers' own obeys them
    backend = HFBackend(model, tokenizer, batch_size=4, max_length=256)
    assert backend._write([Prompt(np.array(tokens, np.int32), (), 12, True)]) == [expected]


def test_positions_that_change_with_a_texts_length(tokenizer):
    """longrope counts otherwise from a length on: texts on both sides of it, and across it."""
    from evaluation.backends.base import Pair, Prompt
    from evaluation.backends.hf import HFBackend
    from evaluation.backends.probe import Ways

    long = [1.0, 4.0, 7.0, 10.0]
    rope = {"rope_type": "longrope", "rope_theta": 1e4, "short_factor": [1.0] * 4, "factor": 8.0}
    rope |= {"long_factor": long, "original_max_position_embeddings": 128}
    model = walk.make("llama", rope_parameters=rope)
    backend = HFBackend(model, tokenizer, batch_size=4, max_length=256)
    draw = torch.Generator().manual_seed(2)
    texts = [torch.randint(3, 300, (n,), generator=draw).tolist() for n in (20, 125, 125, 180, 60)]
    after = torch.randint(3, 300, (6,), generator=draw).tolist()
    pairs = [Pair(n, text, after) for n, text in enumerate(texts)]
    found = [value for value, _ in backend._score(backend._arrange(pairs), len(pairs))]
    expected = [walk.plain_loglikelihood(model, text, after) for text in texts]
    assert found == pytest.approx(expected, abs=_EXACT)
    prompts = [Prompt(np.array(text, np.int32), (), 6, past_end=True) for text in texts]
    assert backend._write(prompts) == [walk.plain_text(model, text, 6) for text in texts]
    assert backend._ways() == Ways("trees", "batch", 128)
    same = walk.make("llama", rope_parameters=rope | {"long_factor": [1.0] * 4})
    other = [walk.plain_loglikelihood(same, text, after) for text in texts]
    differs = [abs(a - b) > 1e-3 for a, b in zip(expected, other, strict=True)]
    assert differs == [False, True, True, True, False]


@pytest.mark.parametrize("sharp", [1, 3])
def test_a_window_beyond_the_usual_probe_is_noticed(tokenizer, sharp):
    """GPT-Neo's window of 256, with weights that make attention flat or sharp."""
    from evaluation.backends.base import Pair
    from evaluation.backends.hf import HFBackend

    model = walk.make("gpt_neo", window_size=256)
    for parameter in model.parameters():
        parameter.data *= sharp
    backend = HFBackend(model, tokenizer, batch_size=4)
    draw = torch.Generator().manual_seed(3)
    before, *choices = (
        torch.randint(3, 300, (n,), generator=draw).tolist() for n in (400, 30, 40, 35, 25)
    )
    pairs = [Pair(0, before, choice) for choice in choices]
    found = [value for value, _ in backend._score(backend._arrange(pairs), len(pairs))]
    expected = [walk.plain_loglikelihood(model, before, choice) for choice in choices]
    assert found == pytest.approx(expected, abs=1e-3)
    assert backend._ways().score == "rows"


@pytest.mark.slow
def test_a_walk_through_the_types_of_transformers(tokenizer):
    from evaluation.backends.probe import SCORE_WAYS, WALKED, WRITE_WAYS

    found = [walk.compare(kind, tokenizer) for kind in sorted(walk.TYPES)]
    for one in found:
        check(one)
    quick = {one["kind"] for one in found if (one["score"], one["write"]) == ("trees", "batch")}
    assert quick >= WALKED
    rows = [
        [one["kind"], "right", "right", SCORE_WAYS[one["score"]], WRITE_WAYS[one["write"]]]
        for one in found
    ]
    compatibility.keep(
        "1-model-types",
        "Model types in `python -m evaluation`",
        f"{len(rows)} types of transformers, each a tiny model with random weights in float32, "
        "whose windows and chunks are shorter than the texts. Log-likelihoods are compared with "
        f"one plain pass for each choice, summed in float64 (within {_EXACT:g} nats), and texts "
        "with plain passes over everything for each token and with transformers' own `generate`. "
        "The last two columns say which way the probe of the `hf` backend chose.",
        ["type", "log-likelihoods", "texts", "a pass reads", "answers are written as"],
        rows,
        compared=3,  # which way passes the probe may depend on a processor's rounding
    )


@pytest.mark.parametrize("kind", sorted(walk.BOTH_WAYS))
def test_a_model_that_reads_both_ways_is_refused(tokenizer, kind):
    with pytest.raises(UserError, match=rf"model '{kind}': type {kind} is no left-to-right"):
        walk.compare(kind, tokenizer)
