"""Measure an expert's training against PEFT in a plain loop, and a step of DAM against its floor.

    python benchmarks/cask.py --case results/cask/cask --expert ko --json docs/data/cask.json

`--case` is a case's folder of a run: models/, data/, teachers/.

Both train the same LoRA adapter on the same rows in the same steps. The plain loop pads a step's
rows to the longest and computes all logits, as transformers' Trainer does; prompts and padding are
masked in the labels. Each is a process, which loads the base, trains one step that is not measured,
and then the others. Ours and the other alternate, and the least of the repeats counts. Both losses
of the last step are printed: they must agree. `ratio` says how many times better ours is.

The floor of DAM's step (a row of each expert, all positions, after one step that is not measured)
is what its counted operations take at the speed of a product of the weights' type and a layer's
shape, plus its counted bytes at the speed of a copy; both speeds are measured in the same process.
Bytes are the experts' linear weights read twice (merged forwards, reduced backwards), the merged
ones written once and read twice, the head read once for each expert's logits, the merged ones and
the gradient back, and logits written and read once for each.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks.clock import least, product_speed  # noqa: E402
from benchmarks.merge import Records  # noqa: E402

RANK, RATE = 16, 5e-4


def ours(model: Any, optimizer: Any, texts: list[Any], pad: int) -> float:
    """Train one step on packed rows with the head on answers alone."""
    from cask.training import MOST, learn, parts

    optimizer.zero_grad()
    loss = learn(model, parts(texts, MOST))
    optimizer.step()
    return loss


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

    from cask.training import load_base, read_texts, tokenise, with_lora
    from checkpoints.loading import load_causal, load_tokenizer
    from checkpoints.reading import Checkpoint
    from common.files import read_jsonl

    torch.set_num_threads(1)
    if name == "ours":
        texts, pad = read_texts(rows, base, 512)[0], 0
        model = load_base(Checkpoint(base))
    else:
        tokenizer = load_tokenizer(base)
        texts, pad = tokenise(read_jsonl(rows), tokenizer, 512), tokenizer.pad_token_id or 0
        model = load_causal(base, dtype=torch.float32)
    texts = texts[: (steps + 1) * batch]
    torch.manual_seed(0)
    model = with_lora(model, RANK)
    learned = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(learned, lr=RATE)
    groups = [texts[start : start + batch] for start in range(0, len(texts), batch)]
    STEPS[name](model, optimizer, groups[0], pad)
    before = resource.getrusage(resource.RUSAGE_SELF)
    losses = [STEPS[name](model, optimizer, group, pad) for group in groups[1:]]
    after = resource.getrusage(resource.RUSAGE_SELF)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    tokens = sum(len(text.ids) - 1 for group in groups[1:] for text in group)
    print(json.dumps([cpu, after.ru_maxrss * 1024 / 1e6, tokens, losses[-1]]))


def learned_step(case: Path, steps: int) -> None:
    """Train with DAM and print CPU seconds a step, peak MB, tokens a step and the floor."""
    import torch

    from checkpoints.reading import Checkpoint, Model
    from merges.dam.layers import MergedLinear
    from merges.dam.method import training_parameters
    from merges.dam.sources import load_sources
    from merges.dam.training import Trainer
    from merges.engine.requests import WholeModelRequest

    torch.set_num_threads(1)
    names = sorted(path.stem for path in (case / "data/calibration").glob("*.jsonl"))
    base = Checkpoint(case / "models/base")
    experts: dict[str, Model] = {name: Checkpoint(case / "models" / name) for name in names}
    data = {name: case / f"data/calibration/{name}.jsonl" for name in names}
    request = WholeModelRequest(base, experts, data, case / "teachers", 1, "base", 1)
    parameters = training_parameters(samples=steps + 1, learning_rate=1e-3, tokens="all")
    trainer = Trainer(request, parameters, load_sources(base, experts, data))
    trainer.step()
    flops, tokens = trainer.counted["flops"], trainer.counted["forward_tokens"]
    start = time.process_time()
    for _ in range(steps):
        trainer.step()
    cpu = (time.process_time() - start) / steps
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6
    flops = (trainer.counted["flops"] - flops) / steps
    length = (trainer.counted["forward_tokens"] - tokens) / steps
    # What the step moves at least, from shapes.
    head = trainer.sources.base[trainer.sources.head]
    linear = sum(
        layer.weights[0].numel()
        for layer in trainer.layers.values()
        if isinstance(layer, MergedLinear)
    )
    products, size = 2 + len(names), head.element_size()
    moved: float = size * linear * (2 * len(names) + 3) + size * head.numel() * products
    moved += size * 2 * 3 * length * len(head)  # merged, teacher's, gradient
    dtype = str(head.dtype).removeprefix("torch.")
    speed = product_speed(round(length), head.shape[1], 2048, dtype)
    one, other = torch.zeros(1 << 26), torch.zeros(1 << 26)
    bandwidth = 2 * 4 * len(one) / least(lambda: other.copy_(one))
    floor = flops / speed + moved / bandwidth
    print(json.dumps([cpu, peak, length, floor, speed / 1e9, bandwidth / 1e9]))


def apart(name: str, given: argparse.Namespace) -> list[Any]:
    """Run a part in a process and return what it prints."""
    command = [sys.executable, __file__, "--part", name, "--case", str(given.case)]
    command += ["--expert", given.expert, "--steps", str(given.steps), "--batch", str(given.batch)]
    done = subprocess.run(
        command,
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        check=True,
        stdout=subprocess.PIPE,
        text=True,
    )
    return json.loads(done.stdout.strip().splitlines()[-1])


def measured(name: str, given: argparse.Namespace) -> tuple[float, float, int, float]:
    """Train in one way in a process and show what it took."""
    cpu, peak, tokens, loss = apart(name, given)
    print(f"{name}: {cpu:.1f} CPU s, {peak:.0f} MB, {tokens} tokens, last loss {loss:.4f}")
    return cpu, peak, tokens, loss


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--case", type=Path, required=True, help="a case's folder of a run")
    parser.add_argument("--expert", default="ko", help="whose training is measured (ko)")
    parser.add_argument("--steps", type=int, default=4, help="that are measured")
    parser.add_argument("--batch", type=int, default=16, help="rows a step")
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--part", choices=[*STEPS, "dam"], help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.part == "dam":
        learned_step(given.case, given.steps)
        return
    if given.part:
        rows = given.case / "data/train" / f"{given.expert}.jsonl"
        part(given.part, given.case / "models/base", rows, given.steps, given.batch)
        return
    # Ours and the other alternate, so that both meet the same load.
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
    steps = [apart("dam", given) for _ in range(given.repeats)]
    cpu, peak, tokens, floor, speed, bandwidth = min(steps)
    print(f"dam: {tokens:.0f} tokens a step; {speed:.0f} GFLOP/s, {bandwidth:.1f} GB/s")
    records.add("a step of DAM, other: its floor", "CPU s", cpu, floor, round(1 / 1.3, 2))
    records.add("a step of DAM, other: the goal", "peak MB", peak, 6000.0, 1.0)
    if given.json:
        given.json.write_text(json.dumps(records.rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
