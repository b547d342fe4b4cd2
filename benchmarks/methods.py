"""Measure the statistics pass against a plain forward, and RegMean against a dense procedure.

    python benchmarks/methods.py --json docs/data/methods.json
    python benchmarks/methods.py --size 0.65B --json docs/data/methods.json

Makes its own models (Llama shape, float32, random) in --work. The plain forward is that of
transformers with logits, over the same rows, which have one length and need no padding. The dense
procedure is RegMean's as its paper has it: a forward of every expert that collects X^T X before
each linear layer, all of them in memory, then (sum_i W_i G_i) (sum_i G_i)^-1 for each. Each part
is a process, which measures its work without imports; ours and the other alternate, and the least
of the repeats counts. `ratio` says how many times better ours is.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks.merge import SIZES, VOCABULARY, Records, write_tokenizer  # noqa: E402

LENGTH = 512  # tokens of a row


def make_model(folder: Path, size: str, layers: int, seed: int) -> Path:
    """Write a random model in float32, with a word-level tokenizer."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    if (folder / "tokenizer.json").exists():
        return folder
    hidden, wide, _, heads, keys = SIZES[size]
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=hidden,
        intermediate_size=wide,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=keys,
        max_position_embeddings=LENGTH,
    )
    torch.manual_seed(seed)
    LlamaForCausalLM(config).save_pretrained(folder)
    write_tokenizer(folder)
    return folder


def model_apart(*given: Any) -> None:
    """Make a model in a separate process, because a child's peak begins at its parent's."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        pool.submit(make_model, *given).result()


def write_rows(path: Path, rows: int, seed: int) -> Path:
    """Write rows of random words."""
    import random

    draws = random.Random(seed)
    words = [[f"w{draws.randrange(3, VOCABULARY)}" for _ in range(LENGTH)] for _ in range(rows)]
    lines = ({"prompt": " ".join(row), "answer": "", "eos": False} for row in words)
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def ids_of(model: Path, path: Path):
    """Return the rows' token ids, (rows, tokens)."""
    from checkpoints.reading import Checkpoint
    from merges.statistics.files import read_rows

    (data,) = read_rows(Checkpoint(model), [path], "model")
    return data.ids.view(len(data), -1)


def statistics(kind: str, model: Path, rows: Path, out: Path) -> None:
    """Run our pass."""
    from checkpoints.reading import Checkpoint
    from merges.statistics.collecting import Order
    from merges.statistics.files import read_rows, write_statistics

    checkpoint = Checkpoint(model)
    write_statistics(Order(checkpoint, read_rows(checkpoint, [rows], "model"), kind), out)


def forward(model: Path, rows: Path) -> None:
    """Run transformers' model over the rows, four at a time."""
    import torch
    from transformers import AutoModelForCausalLM

    network = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).eval()
    with torch.no_grad():
        for batch in ids_of(model, rows).split(4):
            network(input_ids=batch, use_cache=False)


def regmean(experts: int, work: Path) -> None:
    """Merge with statistics that were made before."""
    from merges.cli import main

    names = [f"e{number}" for number in range(experts)]
    sources = dict(zip(names, names if experts == 3 else ["e0"] * experts, strict=True))
    models, own = (
        [f"{name}={work / folder / source}" for name, source in sources.items()]
        for folder in ("models", "gram")
    )
    given = ["--experts", *models, "--statistics", *own]
    main(["--method", "regmean", *given, "--out", str(work / "merged")])


def ours(work: Path) -> None:
    """RegMean with its statistics."""
    for name in ("e0", "e1", "e2"):
        statistics("gram", work / "models" / name, work / "rows.jsonl", work / "gram" / name)
    regmean(3, work)


def dense(work: Path) -> None:
    """RegMean as in its paper, with every Gram matrix in memory."""
    import torch
    from safetensors.torch import save_file
    from transformers import AutoModelForCausalLM

    # Long because it is one procedure, to be compared with its paper at a glance.
    models, grams = [], []
    for number in range(3):
        folder = work / "models" / f"e{number}"
        network = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
        found: dict[str, torch.Tensor] = {}

        def hook(name: str, found=found) -> Callable:
            def add(module, given) -> None:
                x = given[0].reshape(-1, given[0].shape[-1])
                found[name] = found.get(name, 0) + x.T @ x

            return add

        for name, module in network.named_modules():
            if isinstance(module, torch.nn.Linear):
                module.register_forward_pre_hook(hook(f"{name}.weight"))
        with torch.no_grad():
            for batch in ids_of(folder, work / "rows.jsonl").split(4):
                network(input_ids=batch, use_cache=False)
        models.append(dict(network.state_dict()))
        grams.append(found)
    merged = {}
    for name in models[0]:
        if name not in grams[0]:
            merged[name] = sum(model[name] for model in models) / 3
            continue
        shrunk = [0.9 * own[name] + 0.1 * own[name].diag().diag() for own in grams]
        products = sum(m[name] @ g for m, g in zip(models, shrunk, strict=True))
        merged[name] = products @ torch.linalg.inv(sum(shrunk))
    save_file({k: v.contiguous() for k, v in merged.items()}, work / "dense.safetensors")


def part(name: str, work: Path, model: str, experts: int) -> None:
    """Do one part and print its CPU seconds and peak MB."""
    import torch
    import transformers  # noqa: F401  imports are not measured

    import merges.statistics.files  # noqa: F401

    torch.set_num_threads(1)
    before = resource.getrusage(resource.RUSAGE_SELF)
    rows, folder = work / "rows.jsonl", work / "models" / model
    {
        "statistics": lambda: statistics("gram", folder, rows, work / "one"),
        "fisher": lambda: statistics("fisher", folder, rows, work / "one"),
        "forward": lambda: forward(folder, rows),
        "regmean": lambda: regmean(experts, work),
        "ours": lambda: ours(work),
        "dense": lambda: dense(work),
    }[name]()
    after = resource.getrusage(resource.RUSAGE_SELF)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    print(json.dumps([cpu, after.ru_maxrss * 1024 / 1e6]))


def measured(name: str, work: Path, model: str = "e0", experts: int = 3) -> tuple[float, float]:
    """Run a part in a process; return CPU seconds and peak MB."""
    for left in ("one", "merged"):
        shutil.rmtree(work / left, ignore_errors=True)
    if name == "ours":
        shutil.rmtree(work / "gram", ignore_errors=True)
    command = [sys.executable, __file__, "--part", name, "--work", str(work)]
    command += ["--model", model, "--experts", str(experts)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        command, cwd=ROOT, env=environment, check=True, capture_output=True, text=True
    )
    cpu, peak = json.loads(done.stdout.strip().splitlines()[-1])
    return cpu, peak


def compare(records: Records, work: Path, repeats: int) -> None:
    """Alternate ours and the others, and keep the least."""
    found: dict[str, list[tuple[float, float]]] = {}
    for _ in range(repeats):
        for name in ("forward", "statistics", "dense", "ours"):
            found.setdefault(name, []).append(measured(name, work))
    least = {name: [min(pair) for pair in zip(*runs, strict=True)] for name, runs in found.items()}
    pairs = [("statistics", "forward", 1 / 1.3, None), ("ours", "dense", 2.0, 5.0)]
    titles = {"statistics": "gram statistics, other: forward", "ours": "RegMean, other: dense"}
    for name, other, cpu_goal, peak_goal in pairs:
        for place, (figure, goal) in enumerate([("CPU s", cpu_goal), ("peak MB", peak_goal)]):
            own = (titles[name], figure, least[name][place], least[other][place])
            records.add(*own, None if goal is None else round(goal, 2))


def scaling(records: Records, work: Path, size: str) -> None:
    """Peak memory of models of three depths on one row, and of RegMean of more and more experts."""
    write_rows(work / "rows.jsonl", 1, 0)
    for layers in (3, 6, 12):
        name = f"layers{layers}"
        model_apart(work / "models" / name, size, layers, 0)
        for kind in ("statistics", "fisher"):
            peak = measured(kind, work, name)[1]
            title = "gram" if kind == "statistics" else kind
            records.add(f"{title} statistics, {layers} layers", "peak MB", peak, None)
    for experts in (2, 8):
        peak = measured("regmean", work, experts=experts)[1]
        records.add(f"RegMean of {experts} experts", "peak MB", peak, None)


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--size", choices=list(SIZES), default="0.1B")
    parser.add_argument("--layers", type=int, help="in place of the size's")
    parser.add_argument("--rows", type=int, default=16, help=f"of {LENGTH} tokens")
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--work", type=Path, default=Path("benchmark-methods"))
    parser.add_argument("--json", type=Path)
    parser.add_argument("--part", help=argparse.SUPPRESS)
    parser.add_argument("--model", default="e0", help=argparse.SUPPRESS)
    parser.add_argument("--experts", type=int, default=3, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.part:
        part(given.part, given.work, given.model, given.experts)
        return
    work = given.work / given.size
    work.mkdir(parents=True, exist_ok=True)
    for number in range(3):
        layers = given.layers or SIZES[given.size][2]
        model_apart(work / "models" / f"e{number}", given.size, layers, number)
    write_rows(work / "rows.jsonl", given.rows, 0)
    records = Records()
    compare(records, work, given.repeats)
    scaling(records, work, given.size)
    if given.json:
        given.json.write_text(json.dumps(records.rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
