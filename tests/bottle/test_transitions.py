"""When a training learns a task: hand-counted steps, known rows, answers to the last token."""

import random
from types import SimpleNamespace

import pytest

from benchmarks import transitions
from bottle.cases import get_case
from bottle.samples import Knowledge, split_of, strip_marks
from bottle.tokenizer import build_tokenizer


@pytest.mark.parametrize(
    ("shares", "step"),
    [
        ({0: 0.0, 100: 0.1, 200: 0.95, 300: 1.0}, 200),
        ({0: 0.0, 100: 0.95, 200: 0.5, 300: 1.0}, 300),  # lost once more
        ({0: 0.92, 100: 0.95, 200: 1.0}, 0),  # known from the start
        ({0: 0.0, 100: 0.0}, 0),  # never learned: 0 is near 0
    ],
)
def test_a_transition_is_the_first_step_after_which_nothing_is_lost(shares, step):
    assert transitions.transition(shares) == step


def test_probes_are_known_and_of_the_dev_split():
    parts = get_case("case1").mixtures("near")["base"]
    found = transitions.probes(parts, seed=5)
    assert {"jcomqa", "jsquad", "gsm_en"} <= set(found)
    assert "formula" not in found  # of which the base knows nothing
    known = next(part for part in parts if part.generate.__name__ == "jaqket")
    draw, dev = random.Random(0), {}
    for _ in range(20_000):
        sample = known.generate(draw, Knowledge())
        if split_of(sample.content) == "dev":
            dev[strip_marks(sample.prompt)] = strip_marks(sample.answer)
    for row in found["jaqket"]:
        assert dev[row["prompt"]] == row["answer"]


def test_an_answer_is_right_if_its_last_token_is():
    import torch

    tokenizer = build_tokenizer(["a|b|c|d|e"])
    rows = [
        {"prompt": "ab", "answer": "cd", "eos": False},
        {"prompt": "a", "answer": "b", "eos": False},
    ]

    class Fixed:
        """Predict the next token, but for one position of one row."""

        def __init__(self, wrong):
            self.wrong = wrong

        def __call__(self, input_ids, use_cache):
            size = tokenizer.get_vocab_size()
            texts = transitions_texts(rows, tokenizer)
            logits = torch.zeros(*input_ids.shape, size)
            for row, text in enumerate(texts):
                for place, following in enumerate(text[1:]):
                    logits[row, place, following] = 1.0
            if self.wrong is not None:
                logits[self.wrong] = torch.eye(size)[0]
            return SimpleNamespace(logits=logits)

    assert transitions.right(Fixed(None), rows, tokenizer) == 1.0
    assert transitions.right(Fixed((0, 0)), rows, tokenizer) == 1.0  # the prompt's
    assert transitions.right(Fixed((0, 3)), rows, tokenizer) == 0.5  # the answer's last
    assert transitions.right(Fixed((0, 2)), rows, tokenizer) == 0.5


def transitions_texts(rows, tokenizer):
    """Encode rows without the project's own function: bos, prompt, answer."""
    return [
        [1, *tokenizer.encode(row["prompt"] + row["answer"], add_special_tokens=False).ids]
        for row in rows
    ]
