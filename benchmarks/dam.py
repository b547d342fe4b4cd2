"""Measure the cost of a DAM training step against a plain version of its authors' procedure.

    python benchmarks/dam.py --json docs/data/dam.json
    python benchmarks/dam.py --scaling --json docs/data/dam-scaling.json
    python benchmarks/dam.py --budget
    python benchmarks/dam.py --against CHECKOUT --json docs/data/dam-earlier.json

Makes its own models (Llama shape, random) and rows (samples of 291 tokens in the mean and
as unequal as in the paper's data) in --work. One training row, a sample per expert, is one
optimiser step; each variant has its own process and one thread and sees the same rows. CPU seconds
are those of the cheapest step but the first; memory is the process's peak, the import of torch
included. First, in float32 and on a small model, all variants must give the
authors' losses and gradients. `ratio` says how many times better than the other ours is; in the
rows "without ..." the other is ours with that measure switched off. With --against, the other is
an earlier build of this project, and losses must be the same.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import platform
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks.merge import Records  # noqa: E402

# Vocabulary, hidden size, intermediate size, layers, heads, key-value heads; heads of 64.
SIZES = {
    "1M": (512, 128, 352, 2, 2, 1),
    "8M": (4096, 256, 704, 8, 4, 2),
    "27M": (4096, 512, 1408, 8, 8, 2),
    "98M": (4096, 1024, 2816, 8, 16, 4),
    "0.27B": (32000, 1024, 2816, 18, 16, 4),
}
CONTEXT = 2048
# What each variant of the authors' procedure pads a sample to.
AUTHORS = {"published": CONTEXT, "padded to 1024": 1024, "trimmed": 0}
MEASURES = ("packing", "one forward", "own merged weight", "own output loss", "cached teachers")
OURS = ("ours", "recomputing activations", *(f"without {measure}" for measure in MEASURES))
SLOW_REPEATS = 2  # these variants take most of the time and vary least
GOALS = {"published": 15.0, "trimmed": 1.4}  # CPU seconds of the authors' over ours
MOST_MEMORY = 0.4  # of the published peak


@dataclasses.dataclass(frozen=True)
class World:
    """Random models and their data."""

    size: str = "27M"  # of `SIZES`
    experts: int = 3
    mean: int = 291  # tokens of a sample in the mean
    dtype: str = "bfloat16"  # of the weights
    rows: int = 4  # training rows; the first is not measured


def start(
    world: World, work: Path, variant: str, gradients: Path | None = None, root: Path = ROOT
) -> dict[str, Any]:
    """Run one variant in its own process.

    Args:
        world: Models and data.
        work: Folder of both.
        variant: Of `AUTHORS` or `OURS`, or ``prepare`` to make models and data.
        gradients: File to write for the first step's gradients, None for none.
        root: The checkout that runs it.

    Returns:
        What the process prints: losses and CPU seconds by step, and its peak MB.
    """
    command = [sys.executable, root / "benchmarks" / "dam_variants.py", variant, work]
    command += [json.dumps(dataclasses.asdict(world)), *([gradients] if gradients else [])]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
    done = subprocess.run(
        [str(part) for part in command], env=environment, capture_output=True, text=True
    )
    if done.returncode:
        sys.exit(f"{variant}\n{done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def figures(
    world: World, work: Path, variants: Mapping[str, int]
) -> dict[str, tuple[float, float]]:
    """Measure variants, alternating.

    Args:
        world: Models and data.
        work: Folder of both.
        variants: The number of repeats by variant.

    Returns:
        CPU seconds per step and peak MB by variant.
    """
    start(world, work, "prepare")
    runs: dict[str, list[dict[str, Any]]] = {variant: [] for variant in variants}
    for repeat in range(max(variants.values())):
        for variant, repeats in variants.items():
            if repeat < repeats:
                runs[variant].append(start(world, work, variant))
    found = {}
    for variant, own in runs.items():
        seconds = min(min(run["seconds"][1:]) for run in own)
        found[variant] = seconds, min(run["peak"] for run in own)
    return found


def check(work: Path) -> None:
    """Stop unless all variants have the authors' losses and first gradients in float32."""
    world = World("1M", dtype="float32")
    start(world, work, "prepare")
    path = work / "gradients.npz"
    expected: tuple[np.ndarray, dict[str, np.ndarray]] | None = None
    worst = np.zeros(2)
    variants = ["published", "trimmed", *OURS]
    for variant in variants:
        losses = np.array(start(world, work, variant, path)["losses"])
        gradients = dict(np.load(path))
        if expected is None:
            expected = losses, gradients
        largest = max(abs(value).max() for value in expected[1].values())
        distances = [
            abs(gradients[name] - value).max() / largest for name, value in expected[1].items()
        ]
        apart = np.array([abs(losses / expected[0] - 1).max(), max(distances)])
        if len(gradients) != len(expected[1]) or not apart.max() < 1e-4:
            sys.exit(f"{variant}: losses or gradients differ from the authors' by {apart}")
        worst = np.maximum(worst, apart)
    print(
        f"{len(variants)} variants agree in float32: {world.rows} losses within {worst[0]:.0e}, "
        f"gradients within {worst[1]:.0e} of the largest\n"
    )


def table(work: Path, repeats: int, records: Records, size: str, dtype: str) -> None:
    """Measure ours against the authors', and each measure by switching it off."""
    slow = ("published", "padded to 1024", "without packing")
    variants = {
        variant: min(repeats, SLOW_REPEATS) if variant in slow else repeats
        for variant in (*AUTHORS, *OURS)
    }
    found = figures(World(size, dtype=dtype), work, variants)
    cpu, peak = found.pop("ours")
    for variant, (other, memory) in found.items():
        name = f"authors', {variant}" if variant in AUTHORS else variant
        goal = 1 / MOST_MEMORY if variant == "published" else None
        records.add(name, "CPU s", cpu, other, GOALS.get(variant))
        records.add(name, "peak MB", peak, memory, goal)


def earlier(work: Path, root: Path, repeats: int, records: Records, size: str, dtype: str) -> None:
    """Measure ours against an earlier build's, in turns."""
    world = World(size, dtype=dtype)
    # Each has its own models and teachers' signals, from the same seeds.
    folders = {ROOT: work, root: work / "earlier"}
    for place, folder in folders.items():
        folder.mkdir(exist_ok=True)
        start(world, folder, "prepare", root=place)
    pairs = [
        tuple(start(world, folder, "ours", root=place) for place, folder in folders.items())
        for _ in range(repeats)
    ]
    losses = np.array([run["losses"] for pair in pairs for run in pair])
    apart = abs(losses / losses[0] - 1).max()
    if not apart < (1e-3 if dtype == "bfloat16" else 1e-5):
        sys.exit(f"losses differ from the earlier build's by {apart:.0e}")
    ours, other = (
        (min(min(run["seconds"][1:]) for run in own), min(run["peak"] for run in own))
        for own in zip(*pairs, strict=True)
    )
    name = f"{size}, {dtype} (other: earlier build)"
    for figure, own, before in zip(("CPU s", "peak MB"), ours, other, strict=True):
        records.add(name, figure, own, before, 1.25)


def scaling(work: Path, repeats: int, records: Records, dtype: str) -> None:
    """Measure how step time and memory grow, ours and the authors' without padding."""
    worlds = {
        f"8M, {experts} experts": World("8M", experts=experts, dtype=dtype)
        for experts in (2, 3, 5, 8)
    }
    worlds |= {f"{size} parameters": World(size, dtype=dtype) for size in ("8M", "27M", "98M")}
    worlds |= {
        f"8M, mean of {mean} tokens": World("8M", mean=mean, dtype=dtype)
        for mean in (73, 146, 291, 582)
    }
    measured: dict[World, dict[str, tuple[float, float]]] = {}
    for name, world in worlds.items():
        if world not in measured:
            measured[world] = figures(world, work, {"ours": repeats, "trimmed": repeats})
        ours, trimmed = measured[world]["ours"], measured[world]["trimmed"]
        records.add(name, "CPU s", ours[0], trimmed[0])
        records.add(name, "peak MB", ours[1], trimmed[1])


def main() -> None:
    """Measure, print a table and write the records."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, default=Path("/tmp/dam-benchmark"), metavar="DIR")
    parser.add_argument("--size", choices=SIZES, default="27M", help="of the table's models (27M)")
    parser.add_argument(
        "--dtype",
        choices=("bfloat16", "float32"),
        default="bfloat16",
        help="of the weights; a CPU without bfloat16 arithmetic wants float32",
    )
    parser.add_argument("--repeats", type=int, default=3, metavar="N", help="of each but the slow")
    parser.add_argument("--scaling", action="store_true", help="measure growth instead")
    parser.add_argument("--budget", action="store_true", help="7B x 3: count, on a GPU measure too")
    parser.add_argument("--against", type=Path, metavar="DIR", help="an earlier checkout")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the records here")
    given = parser.parse_args()
    records = Records()
    if given.budget:  # counts shapes, so it needs no folder, models or repeats
        from benchmarks.dam_budget import budget

        budget(records)
    else:
        given.work.mkdir(parents=True, exist_ok=True)
        print(f"{platform.platform()}, {os.cpu_count()} cores; {given.repeats} repeats")
        check(given.work)
        print(f"{'':<44} {'':<14} {'ours':>10}{'other':>10}")
        if given.against:
            place = given.against.resolve()
            earlier(given.work, place, given.repeats, records, given.size, given.dtype)
        elif given.scaling:
            scaling(given.work, given.repeats, records, given.dtype)
        else:
            table(given.work, given.repeats, records, given.size, given.dtype)
    if given.json:
        given.json.write_text(json.dumps(records.rows, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
