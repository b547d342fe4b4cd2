"""Measure a merge's CPU seconds, wall seconds and memory against mergekit and the I/O floor.

    python benchmarks/merge.py --mergekit /path/to/mergekit-yaml --against CHECKOUT \
        --json docs/data/merge.json

Makes its own models (Llama shape, bfloat16, random) in --work, about 7 GB. Three experts and a base
of 0.65B parameters, one thread each; ours, mergekit and, with --against, an earlier checkout of
this project take turns, and the least of the repeats of each counts. The floor reads all inputs and
writes the output with nothing between, fsync included as in a merge. Inputs' hashes are in our
cache, as in any merge but the first with a model; hashing has a separate row. `ratio` says how many
times better ours is than the other.
"""

from __future__ import annotations

import argparse
import json
import math
import multiprocessing
import os
import platform
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))


@dataclass(frozen=True)
class Goals:
    """CPU seconds of mergekit and of an earlier build over ours; wall seconds over the floor's."""

    mergekit: float
    earlier: float
    floor: float


METHODS = {
    "linear": Goals(5.0, 1.6, 1.05),
    "task_arithmetic": Goals(5.0, 1.6, 1.15),
    "slerp": Goals(9.0, 1.5, 1.25),
    "dare_ties": Goals(14.0, 2.0, 2.0),
    "ties": Goals(25.0, 2.2, 2.0),
}
MOST_MB = 150  # goal of peak memory
MOST_START = 0.3  # goal of the CPU seconds of a merge with hardly a value
WEIGHTS = (0.5, 0.3, 0.2)
DENSITY = 0.5

# Parameters, hidden size, intermediate size, layers, heads, key-value heads.
SIZES = {
    "tiny": (32, 64, 2, 4, 2),
    "0.1B": (768, 2048, 12, 12, 4),
    "0.65B": (1536, 4096, 22, 24, 8),
    "2B": (2304, 6144, 34, 36, 12),
}
VOCABULARY = 32_000


@dataclass
class Cost:
    """What a command took: user and system seconds, wall seconds, peak memory in MB (10^6)."""

    cpu: float
    wall: float
    rss: float


def measure(
    command: Sequence[str | Path],
    environment: dict[str, str] | None = None,
    folder: Path = ROOT,
) -> Cost:
    """Run a command in a folder and measure it, its threads included."""
    start = time.monotonic()
    process = subprocess.Popen(
        [str(part) for part in command],
        cwd=folder,
        env={**os.environ, "OMP_NUM_THREADS": "1", **(environment or {})},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )
    message = process.stderr.read() if process.stderr else b""
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        sys.exit(f"{' '.join(map(str, command))}\n{message.decode()[-2000:]}")
    wall = time.monotonic() - start
    return Cost(usage.ru_utime + usage.ru_stime, wall, usage.ru_maxrss * 1024 / 1e6)


def least(costs: Sequence[Cost]) -> Cost:
    """Return the least of each figure: what disturbs a measurement only adds."""
    return Cost(*(min(getattr(cost, f) for cost in costs) for f in ("cpu", "wall", "rss")))


def shapes(size: str) -> dict[str, tuple[int, ...]]:
    """Name the parameters of a Llama of this size with their shapes."""
    hidden, intermediate, layers, heads, kv_heads = SIZES[size]
    keys = hidden // heads * kv_heads
    found: dict[str, tuple[int, ...]] = {
        "lm_head.weight": (VOCABULARY, hidden),
        "model.embed_tokens.weight": (VOCABULARY, hidden),
        "model.norm.weight": (hidden,),
    }
    for layer in range(layers):
        top = f"model.layers.{layer}"
        found |= {
            f"{top}.self_attn.q_proj.weight": (hidden, hidden),
            f"{top}.self_attn.k_proj.weight": (keys, hidden),
            f"{top}.self_attn.v_proj.weight": (keys, hidden),
            f"{top}.self_attn.o_proj.weight": (hidden, hidden),
            f"{top}.mlp.gate_proj.weight": (intermediate, hidden),
            f"{top}.mlp.up_proj.weight": (intermediate, hidden),
            f"{top}.mlp.down_proj.weight": (hidden, intermediate),
            f"{top}.input_layernorm.weight": (hidden,),
            f"{top}.post_attention_layernorm.weight": (hidden,),
        }
    return found


def write_tokenizer(folder: Path) -> None:
    """Write a tokenizer of words, because mergekit wants one to copy."""
    words = {"<s>": 0, "</s>": 1, "<unk>": 2}
    words |= {f"w{number}": number for number in range(3, VOCABULARY)}
    model = {"type": "WordLevel", "vocab": words, "unk_token": "<unk>"}
    content = {"version": "1.0", "added_tokens": [], "pre_tokenizer": {"type": "Whitespace"}}
    (folder / "tokenizer.json").write_text(json.dumps({**content, "model": model}))
    about = {"tokenizer_class": "PreTrainedTokenizerFast", "unk_token": "<unk>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(about))


def make_models(work: Path, size: str, experts: int = 3, shards: int = 2) -> dict[str, Path]:
    """Make a base and experts near to it, those that are not there yet.

    Returns:
        The folders, ``base`` first.
    """
    import torch

    from checkpoints.writing import write_weights

    hidden, intermediate, layers, heads, kv_heads = SIZES[size]
    wanted = shapes(size)
    total = 2 * sum(map(math.prod, wanted.values()))
    folders = {}
    for number, name in enumerate(["base", *(f"e{n}" for n in range(experts))]):
        folder = work / f"{size}-{shards}" / name
        folders[name] = folder
        if (folder / "config.json").is_file():
            continue
        folder.mkdir(parents=True, exist_ok=True)
        tensors = {}
        for index, (tensor, shape) in enumerate(wanted.items()):
            generator = torch.Generator().manual_seed(index)
            values = torch.empty(shape).normal_(0, 0.02, generator=generator).bfloat16()
            if number:  # experts are near the base: a tenth of its spread
                generator.manual_seed(index + 1000 * number)
                values = (values + torch.empty(shape).normal_(0, 0.002, generator=generator)).to(
                    torch.bfloat16
                )
            tensors[tensor] = values
        write_weights(folder, tensors, shard_bytes=math.ceil(1.08 * total / shards))
        write_tokenizer(folder)
        config = {
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "hidden_size": hidden,
            "intermediate_size": intermediate,
            "num_hidden_layers": layers,
            "num_attention_heads": heads,
            "num_key_value_heads": kv_heads,
            "vocab_size": VOCABULARY,
            "tie_word_embeddings": False,
            "dtype": "bfloat16",
        }
        (folder / "config.json").write_text(json.dumps(config))
    return folders


def models_apart(work: Path, size: str, experts: int = 3, shards: int = 2) -> dict[str, Path]:
    """Make models in a separate process, because a child's peak begins at its parent's."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(make_models, work, size, experts, shards).result()


def settings(method: str, experts: int) -> dict[str, Any]:
    """Return our parameters of a method; mergekit's are the same in its own words."""
    weights = list((WEIGHTS * 3)[:experts])
    all_settings: dict[str, dict[str, Any]] = {
        "slerp": {"t": 0.4},
        "linear": {"weights": weights},
        "task_arithmetic": {"weights": weights, "scale": 1.0},
        "ties": {"weights": weights, "density": DENSITY},
        "dare_ties": {"weights": weights, "density": DENSITY},
    }
    return all_settings[method]


def our_command(method: str, models: dict[str, Path], out: Path, threads: int = 1) -> list[Any]:
    """Return the command of a merge with this project."""
    experts = [name for name in models if name != "base"]
    if method == "slerp":
        experts = experts[:2]
    command = [sys.executable, "-m", "merges", "--method", method, "--base", models["base"]]
    command += ["--experts", *(f"{name}={models[name]}" for name in experts)]
    for name, value in settings(method, len(experts)).items():
        command += ["--set", f"{name}={json.dumps(value)}"]
    return [*command, "--threads", threads, "--out", out]


def peer_command(program: Path, method: str, models: dict[str, Path], out: Path) -> list[Any]:
    """Return the command of the same merge with mergekit, and write its configuration."""
    experts = [path for name, path in models.items() if name != "base"]
    config: dict[str, Any] = {"merge_method": method, "dtype": "bfloat16"}
    if method == "slerp":
        config |= {"base_model": str(experts[0]), "parameters": {"t": 0.4}}
        config["models"] = [{"model": str(path)} for path in experts[:2]]
    else:
        own = [{"weight": weight, "density": DENSITY} for weight in WEIGHTS]
        config["models"] = [
            {"model": str(path), "parameters": parameters}
            for path, parameters in zip(experts, own, strict=True)
        ]
        if method != "linear":
            config["base_model"] = str(models["base"])
    path = out.with_suffix(".yaml")
    path.write_text(json.dumps(config))
    return [program, path, out, "-j", 1, "--quiet", "--random-seed", 0]


def floor(inputs: Sequence[Path], out: Path) -> None:
    """Read the inputs' weights and write as much as one of them has."""
    block = bytearray(1 << 22)
    size = 0
    for folder in inputs:
        size = 0
        for shard in sorted(folder.glob("*.safetensors")):
            with open(shard, "rb", buffering=0) as stream:
                while got := stream.readinto(block):
                    size += got
    with open(out, "wb", buffering=0) as stream:
        for start in range(0, size, len(block)):
            stream.write(memoryview(block)[: size - start])
        os.fsync(stream.fileno())


class Records:
    """Figures of the run, printed as they come."""

    def __init__(self) -> None:
        self.rows: list[dict[str, Any]] = []

    def add(
        self, name: str, figure: str, ours: float, other: float | None, goal: float | None = None
    ) -> None:
        ratio = None if other is None else other / ours
        self.rows.append(
            {
                "name": name,
                "figure": figure,
                "ours": round(ours, 2),
                "other": None if other is None else round(other, 2),
                "ratio": None if ratio is None else round(ratio, 2),
                "goal": goal,
            }
        )
        against = "" if other is None else f"{other:10.2f}  {ratio:6.2f} x"
        wanted = "" if goal is None else f"  (goal {goal:g} x)"
        print(f"{name:<44} {figure:<14} {ours:10.2f}{against}{wanted}", flush=True)


def run(command: Sequence[Any], out: Path, cache: Path, folder: Path = ROOT) -> Cost:
    """Measure a merge into an empty place."""
    shutil.rmtree(out, ignore_errors=True)
    return measure(command, {"BOTTLE_HASH_CACHE": str(cache)}, folder)


def table(
    work: Path,
    program: Path | None,
    earlier: Path | None,
    methods: Sequence[str],
    repeats: int,
    records: Records,
) -> None:
    """Measure every method against mergekit and an earlier build, and both cores on the floor."""
    models = models_apart(work, "0.65B")
    out, cache = work / "out", work / "hashes.json"
    run(our_command("linear", models, out), out, cache)  # fills the cache of hashes, and compiles
    if earlier:
        run(our_command("ties", models, out), out, cache, earlier)
    for method in methods:
        command, goals = our_command(method, models, out), METHODS[method]
        ours, before, peers = [], [], []
        for number in range(repeats):
            ours.append(run(command, out, cache))
            if earlier:
                before.append(run(command, out, cache, earlier))
            if program and not (method == "ties" and number):
                peers.append(run(peer_command(program, method, models, out), out, cache))
        mine = least(ours)
        for name, costs, goal in (
            ("mergekit", peers, goals.mergekit),
            ("earlier build", before, goals.earlier),
        ):
            if costs:
                title, other = f"{method} (other: {name})", least(costs)
                records.add(title, "CPU s", mine.cpu, other.cpu, goal)
                records.add(title, "wall s", mine.wall, other.wall)
                records.add(title, "peak MB", mine.rss, other.rss)
        records.add(f"{method} (other: goal)", "peak MB", mine.rss, MOST_MB, 1.0)
    for method in methods:
        experts = [name for name in models if name != "base"]
        # Of the base, these read nothing but the header.
        read = {"linear": experts, "slerp": experts[:2]}.get(method, list(models))
        folders = [str(models[name]) for name in read]
        command = [sys.executable, __file__, "--work", str(work), "--floor", *folders]
        floors, both = [], []
        for _ in range(repeats):
            floors.append(measure(command))
            both.append(run(our_command(method, models, out, threads=2), out, cache))
        bottom, mine = least(floors), least(both)
        title = f"{method}, 2 threads (other: floor)"
        records.add(title, "wall s", mine.wall, bottom.wall, 1 / METHODS[method].floor)
        records.add(title, "CPU s", mine.cpu, bottom.cpu)
    hashing = "import sys; from common.manifest import hash_of; print(*map(hash_of, sys.argv[1:]))"
    hashed = [sys.executable, "-c", hashing]
    own = measure([*hashed, *sorted(out.glob("*.safetensors"))])
    shards = [shard for path in models.values() for shard in sorted(path.glob("*.safetensors"))]
    once = measure([*hashed, *shards])
    records.add("hash of the output", "CPU s", own.cpu, None)
    records.add("hashes of the inputs, once for each model", "CPU s", once.cpu, None)
    tiny = models_apart(work, "tiny")
    count = sum(map(math.prod, shapes("tiny").values()))
    for method in ("linear", "ties"):
        command = our_command(method, tiny, out)
        run(command, out, cache)
        start = least([run(command, out, cache) for _ in range(repeats)])
        title = f"{method} of {count / 1e6:.0f}M parameters (other: goal)"
        records.add(title, "CPU s", start.cpu, MOST_START, 1.0)


def main() -> None:
    """Measure, print a table and write the records."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--mergekit", type=Path, metavar="FILE", help="the program mergekit-yaml")
    parser.add_argument("--against", type=Path, metavar="DIR", help="an earlier checkout")
    parser.add_argument("--work", type=Path, default=Path("/tmp/merge-benchmark"), metavar="DIR")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=[*METHODS], help="all")
    parser.add_argument("--repeats", type=int, default=3, metavar="N", help="of each but TIES")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the records here")
    parser.add_argument("--floor", nargs="+", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.floor:
        floor(given.floor, given.work / "floor")
        return
    given.work.mkdir(parents=True, exist_ok=True)
    records = Records()
    print(f"{platform.platform()}, {os.cpu_count()} cores; least of {given.repeats}")
    print(f"{'':<44} {'':<14} {'ours':>10}{'other':>10}")
    table(
        *(given.work, given.mergekit, given.against and given.against.resolve()),
        *(given.methods, given.repeats, records),
    )
    if given.json:
        given.json.write_text(json.dumps(records.rows, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
