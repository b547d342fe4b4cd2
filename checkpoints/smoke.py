"""Does a model still speak? Finite logits on a text, and perplexity next to its parents'."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from checkpoints.loading import load_causal, load_tokenizer
from checkpoints.reading import Checkpoint
from common.errors import UserError
from common.files import write_json
from common.manifest import beside, write_manifest

TEXT = """\
The river rises in the hills above the town and runs west for about ninety miles before it meets \
the sea. In spring, when the snow melts, the lower fields are often under water for a week or two.
Question: A box holds 12 rows of 8 apples, and 15 of them are spoiled. How many good apples are \
there? Answer: 12 times 8 is 96, and 96 minus 15 is 81. There are 81 good apples.
def mean(values):
    return sum(values) / len(values)
昨日は雨が降っていたので、私たちは家で本を読みました。今日は天気がいいから、公園まで歩きます。
Der Zug nach Hamburg fährt um acht Uhr ab und kommt am späten Nachmittag an.
오늘은 날씨가 좋아서 친구와 함께 공원에 갔습니다.
"""
_ALARM = 10.0  # a merge this many times worse than its worst parent deserves a line


def measure(folder: Path, text: str) -> dict[str, Any]:
    """Have a model read a text.

    The text is cut into windows of the model's context; the first token of each is not predicted.

    Args:
        folder: A complete model folder.
        text: What to read.

    Returns:
        ``tokens`` (predicted ones), ``not_finite`` (positions at which a logit is NaN or
        infinite), ``perplexity`` (for each token) and ``bits_per_byte`` (of the text in UTF-8,
        comparable between tokenizers); the last two None where a logit is not finite.

    Raises:
        UserError: The folder is not a sound model, lacks a tokenizer, or the text is too short.
    """
    import torch

    model = load_causal(folder, dtype="auto").eval()
    tokenizer = load_tokenizer(folder)
    ids = torch.tensor([tokenizer(text)["input_ids"]])
    if ids.numel() < 2:
        raise UserError("the text for the smoke check has fewer than two tokens; give a longer one")
    window = getattr(model.config.get_text_config(), "max_position_embeddings", None) or ids.numel()
    total, tokens, bad = 0.0, 0, 0
    for piece in ids.split(max(window, 2), dim=1):
        with torch.inference_mode():
            logits = model(piece).logits[0].float()
        bad += int((~logits.isfinite()).any(dim=-1).sum())
        chances = logits[:-1].log_softmax(dim=-1)
        total -= float(chances.gather(1, piece[0, 1:, None]).sum(dtype=torch.float64))
        tokens += piece.shape[1] - 1
    sound = not bad and math.isfinite(total)
    mean = total / max(tokens, 1)
    return {
        "tokens": tokens,
        "not_finite": bad,
        # A model that is sure of wrong tokens can be worse than a number can say.
        "perplexity": math.exp(mean) if sound and mean < 700 else None,
        "bits_per_byte": total / math.log(2) / len(text.encode()) if sound else None,
    }


def smoke(model: Path, parents: Mapping[str, Path], out: Path, text: str = TEXT) -> dict[str, Any]:
    """Check a merged model and write its figures and its parents'.

    Args:
        model: The merged model's folder.
        parents: Folders of the models that it was made of, by name.
        out: The JSON file to write.
        text: What the models read.

    Returns:
        The report as written: ``text`` (sha256), ``weights`` (the model's fingerprint), ``model``
        and ``parents`` as `measure` gives them.

    Raises:
        UserError: The model's logits are not finite.
    """
    found = measure(model, text)
    report = {
        "text": hashlib.sha256(text.encode()).hexdigest(),
        "weights": Checkpoint(model).fingerprint,
        "model": found,
        "parents": {name: measure(path, text) for name, path in parents.items()},
    }
    write_json(out, report)  # for a broken model too: the workflow's tables show it
    read = {"weights": model, **{f"parents.{name}": path for name, path in parents.items()}}
    write_manifest(
        beside(out),
        kind="smoke",
        parameters={},
        inputs={name: Checkpoint(path).fingerprint for name, path in read.items()},
        outputs={out.name: out},
        code=("checkpoints/smoke.py",),
    )
    bad = found["not_finite"]
    if bad or found["bits_per_byte"] is None:
        raise UserError(
            f"{model}: logits are NaN or infinite at {bad} positions of the smoke text; "
            "check its parents, then merge with smaller weights"
        )
    return report


def lines(report: Mapping[str, Any]) -> list[str]:
    """Write a report of `smoke` for readers, a line for each model."""
    rows = {"model": report["model"], **report["parents"]}
    width = max(map(len, rows))
    found = [
        f"{name:{width}}  perplexity {_number(row['perplexity'])}  bits per byte "
        f"{_number(row['bits_per_byte'])}  tokens {row['tokens']}"
        for name, row in rows.items()
    ]
    bits = [row["bits_per_byte"] for row in report["parents"].values() if row["bits_per_byte"]]
    own = report["model"]["perplexity"]
    worst = [row["perplexity"] for row in report["parents"].values() if row["perplexity"]]
    if bits and (own is None or own > _ALARM * max(worst)):
        found.append(f"note: the model is more than {_ALARM:g} times worse than its worst parent")
    return found


def _number(value: float | None) -> str:
    return "none" if value is None else f"{value:.4g}"
