"""The tasks that `benchmarks/evaluation.py` measures, and the answers that have to be the same."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

SUITE = "bottle_ja8"
CHOICES = ("jcomqa", "jnli", "marc", "xwino")
WRITING = ("jsquad", "jaqket")
TASKS = [f"{SUITE}/{task}" for task in (*CHOICES, *WRITING)]
TOLERANCE = 1e-3  # of a log-likelihood in float32, of items of some hundred tokens


def read_lines(path: Path) -> list[dict[str, Any]]:
    """Read JSON lines."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]


class Answers(dict):
    """Per model and task: the score, and the items' log-likelihoods or texts."""

    def check(self, other: Answers, tied: Callable[[str, str, int, str, str], bool]) -> int:
        """Stop if the other's answers are not the same.

        Args:
            other: What another program answered.
            tied: Whether rounding decides between two texts, given model, task, item and the texts.

        Returns:
            How many texts differ because two tokens are equally probable but for rounding.
        """
        ties = 0
        if self.keys() != other.keys():
            raise SystemExit(f"not the same tasks: {sorted(self)}, {sorted(other)}")
        for key, (score, items) in self.items():
            theirs_score, theirs = other[key]
            if abs(score - theirs_score) > 1e-9 or len(items) != len(theirs):
                raise SystemExit(f"{key}: score {score}, the other's {theirs_score}")
            for at, (one, two) in enumerate(zip(items, theirs, strict=True)):
                same = one == two
                if isinstance(one, list):
                    same = max(abs(a - b) for a, b in zip(one, two, strict=True)) < TOLERANCE
                if not same and isinstance(one, str) and tied(key[0], key[1], at, one, two):
                    ties += 1
                elif not same:
                    raise SystemExit(f"{key}: answer {one!r}, the other's {two!r}")
        return ties


def is_tie(folder: Path, prompt: str, one: str, two: str) -> bool:
    """Return whether two greedy answers differ where the two best tokens differ only by rounding.

    Args:
        folder: The model.
        prompt: What both answers follow.
        one, two: The answers.

    Returns:
        Whether the best two logits are closer than `TOLERANCE` in float64 somewhere before the
        answers part.
    """
    import torch

    model, tokenizer = load_exactly(folder)
    written: list[int] = []
    start = [tokenizer.bos_token_id, *tokenizer.encode(prompt, add_special_tokens=False)]
    for _ in range(len(one) + len(two)):
        text = tokenizer.decode(written)
        if not (one.startswith(text) and two.startswith(text)):
            break
        with torch.no_grad():
            best = model(torch.tensor([start + written])).logits[0, -1].topk(2)
        if best.values[0] - best.values[1] < TOLERANCE:
            return True
        written.append(int(best.indices[0]))
    return False


@functools.cache
def load_exactly(folder: Path) -> tuple[Any, Any]:
    """Load a model in float64, and its tokenizer."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64)
    return model, AutoTokenizer.from_pretrained(folder)


def our_answers(out: Path, models: list[Path]) -> Answers:
    """Read what `python -m evaluation` wrote."""
    from evaluation.items import read_records

    answers = Answers()
    for model in models:
        scores = json.loads((out / f"{model.name}.json").read_text())["tasks"]
        items = read_records(out / f"{model.name}.items.jsonl.gz")
        for task in TASKS:
            own = [item for item in items if item["task"] == task]
            kept = [item.get("loglikelihoods", item.get("answer")) for item in own]
            answers[model.name, task.partition("/")[2]] = (scores[task]["value"], kept)
    return answers


def plain_answers(results: dict[str, Any], model: str) -> Answers:
    """Read what lm_eval returned or wrote, its samples among it."""
    answers = Answers()
    for task in (*CHOICES, *WRITING):
        metric = "exact_match,none" if task in WRITING else "acc,none"
        samples = sorted(results["samples"][f"plain_{task}"], key=lambda sample: sample["doc_id"])
        first = [sample["filtered_resps"] for sample in samples]
        if task in WRITING:
            kept = [texts[0] for texts in first]
        else:
            kept = [[float(value) for value, _ in pairs] for pairs in first]
        answers[model, task] = (results["results"][f"plain_{task}"][metric], kept)
    return answers
