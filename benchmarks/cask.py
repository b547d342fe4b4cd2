"""Measure the training of a cask's expert against PEFT in a plain transformers loop.

    python benchmarks/cask.py --base models/base --rows data/train/ko.jsonl --repeats 2

Both train the same LoRA adapter on the same rows in the same steps. The plain loop pads a step's
rows to the longest and computes all logits, as transformers' Trainer does; prompts and padding are
masked in the labels. Each is a process, which loads the base, trains one step that is not measured,
and then the others. Ours and the other alternate, and the least of the repeats counts. Both losses
of the last step are printed: they must agree. `ratio` says how many times better ours is.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks.merge import Records  # noqa: E402

RANK, RATE = 16, 5e-4


def ours(model: Any, optimizer: Any, texts: list[Any], pad: int) -> float:
    """Train one step on packed rows with the head on answers alone."""
    from cask.training import answers_loss, pack

    loss = answers_loss(model, pack(texts))
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    return loss.item()


def plain(model: Any, optimizer: Any, texts: list[Any], pad: int) -> float:
    """Train one step on padded rows with all logits."""
    import torch

    longest = max(len(text.ids) for text in texts)
    ids = torch.full((len(texts), longest), pad)
    mask, labels = torch.zeros_like(ids), torch.full_like(ids, -100)
    for row, text in enumerate(texts):
        length = len(text.ids)
        ids[row, :length] = torch.tensor(text.ids)
        mask[row, :length] = 1
        labels[row, text.prompt_length : length] = torch.tensor(text.ids[text.prompt_length :])
    loss = model(input_ids=ids, attention_mask=mask, labels=labels, use_cache=False).loss
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    return loss.item()


STEPS: dict[str, Callable[..., float]] = {"ours": ours, "plain": plain}


def part(name: str, base: Path, rows: Path, steps: int, batch: int) -> None:
    """Train in one way and print CPU seconds, peak MB, tokens and the last loss."""
    import torch

    from cask.training import tokenise, with_lora
    from checkpoints.loading import load_causal, load_tokenizer
    from common.files import read_jsonl

    torch.set_num_threads(1)
    tokenizer = load_tokenizer(base)
    texts = tokenise(read_jsonl(rows)[: (steps + 1) * batch], tokenizer, 512)
    torch.manual_seed(0)
    model = with_lora(load_causal(base, dtype=torch.float32), RANK)
    learned = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(learned, lr=RATE)
    groups = [texts[start : start + batch] for start in range(0, len(texts), batch)]
    pad = tokenizer.pad_token_id or 0
    STEPS[name](model, optimizer, groups[0], pad)
    before = resource.getrusage(resource.RUSAGE_SELF)
    losses = [STEPS[name](model, optimizer, group, pad) for group in groups[1:]]
    after = resource.getrusage(resource.RUSAGE_SELF)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    tokens = sum(len(text.ids) - 1 for group in groups[1:] for text in group)
    print(json.dumps([cpu, after.ru_maxrss * 1024 / 1e6, tokens, losses[-1]]))


def measured(name: str, given: argparse.Namespace) -> tuple[float, float, int, float]:
    """Run a part in a process."""
    command = [sys.executable, __file__, "--part", name, "--base", str(given.base)]
    command += ["--rows", str(given.rows), "--steps", str(given.steps), "--batch", str(given.batch)]
    done = subprocess.run(
        command,
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        check=True,
        capture_output=True,
        text=True,
    )
    cpu, peak, tokens, loss = json.loads(done.stdout.strip().splitlines()[-1])
    print(f"{name}: {cpu:.1f} CPU s, {peak:.0f} MB, {tokens} tokens, last loss {loss:.4f}")
    return cpu, peak, tokens, loss


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--base", type=Path, required=True, help="a base's folder")
    parser.add_argument("--rows", type=Path, required=True, help="an expert's training rows")
    parser.add_argument("--steps", type=int, default=4, help="that are measured")
    parser.add_argument("--batch", type=int, default=16, help="rows a step")
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--part", choices=list(STEPS), help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.part:
        part(given.part, given.base, given.rows, given.steps, given.batch)
        return
    found: dict[str, list[tuple[float, float, int, float]]] = {}
    for _ in range(given.repeats):
        for name in STEPS:
            found.setdefault(name, []).append(measured(name, given))
    records, tokens = Records(), found["ours"][0][2]
    for place, (figure, goal, scale) in enumerate(
        [("CPU ms a token", 2.0, 1e3 / tokens), ("peak MB", 2.0, 1.0)]
    ):
        least = {name: min(run[place] for run in runs) * scale for name, runs in found.items()}
        title = "training of an expert, other: PEFT, padded"
        records.add(title, figure, least["ours"], least["plain"], goal)
    records.add("its last loss", "nats", found["ours"][0][3], found["plain"][0][3])
    if given.json:
        given.json.write_text(json.dumps(records.rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
