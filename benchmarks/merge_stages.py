"""Measure where the CPU seconds of a merge go.

    python benchmarks/merge_stages.py --json docs/data/merge-stages.json

Makes the models of `benchmarks/merge.py` in --work. Each merge runs alone in a process with one
thread, its inputs' hashes known, and the functions that do a stage's work count their thread's CPU
seconds; the run with the least in all counts. Kernels widen, merge and round in one pass, so that
these three are one stage.

    python benchmarks/merge_stages.py --spectral --json docs/data/merge-spectral.json

compares TSV-M and Iso-C at --size 0.1B, whole commands, with nothing but the singular value
decompositions that their formulas name, by LAPACK (`torch.linalg.svd`) on matrices of the same
shapes: of TSV-M each expert's task matrix and the two matrices that are made orthogonal, of Iso-C
the sum of the task matrices.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import shutil
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

BEGUN = time.process_time()  # what Python itself took
ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks.clock import Clock  # noqa: E402
from benchmarks.merge import METHODS, SIZES, Records, models_apart, run, settings  # noqa: E402

STAGES = (
    "start",
    "read: copies from the system's cache",
    "sample and bound the thresholds",
    "compare all magnitudes with the bounds",
    "rank those between the bounds",
    "draw masks",
    "angle of the models",
    "widen, merge, round",
    "write: copies to the system's cache",
    "hash, in a separate thread",
    "other",
)


def stages(method: str, models: dict[str, Path], out: Path) -> dict[str, float]:
    """Merge in this process; return the CPU seconds of each stage and of all."""
    from checkpoints import reading, writing
    from merges.arithmetic import kernels, masks, patterns, selection
    from merges.engine.config import MergeConfig
    from merges.engine.run import merge_to_disk

    work, hashing = Clock(time.thread_time), Clock(time.thread_time)  # hashing has its thread
    read, bound, compare, rank, mask, angle, merge, write, hashed = STAGES[1:-1]
    work.watch(reading.SafetensorsWeights, "_fill", read)
    work.watch(selection, "_sample", bound)
    work.watch(selection._Search, "__init__", bound)
    work.watch(patterns, "between", compare)
    work.watch(selection._Search, "finish", rank)
    work.watch(masks, "keep_array", mask)
    work.watch(patterns, "gram", angle)
    for kernel in ("mix", "agree"):
        work.watch(patterns, kernel, merge)
    work.watch(writing.StreamedWeights, "write", write)
    hashing.watch(writing.StreamedWeights, "_hash_shard", hashed)
    kernels.KERNELS.load()  # part of the start
    patterns.KERNELS.load()
    experts = {name: reading.Checkpoint(path) for name, path in models.items() if name != "base"}
    if method == "slerp":
        experts = dict(list(experts.items())[:2])
    config = MergeConfig(
        method, reading.Checkpoint(models["base"]), experts, settings(method, len(experts))
    )
    start = time.process_time()
    merge_to_disk(out, config)
    whole = time.process_time()
    found = {STAGES[0]: start} | work.spent | hashing.spent
    return found | {STAGES[-1]: whole - sum(found.values()), "all": whole}


def decompositions(method: str, models: dict[str, Path]) -> float:
    """Return the CPU seconds of the decompositions of a method, by LAPACK in float32."""
    import torch

    from checkpoints import reading
    from merges.arithmetic.spectral import is_matrix

    torch.set_num_threads(1)
    base, *experts = (reading.Checkpoint(path) for path in models.values())
    spent = 0.0
    for name in base.names():
        shape = base.shape(name)
        if not is_matrix(name, torch.empty(shape, device="meta")):
            continue
        origin = base.read(name).float()
        deltas = [(e.read(name).float() - origin).view(shape) for e in experts]
        kept = max(1, min(shape) // len(experts))
        if method == "iso_c":
            wanted = [torch.stack(deltas).sum(0)]
        else:  # what is made orthogonal has the vectors that are kept of all experts
            wanted = [*deltas, *(torch.randn(side, kept * len(experts)) for side in shape)]
        began = time.process_time()
        for matrix in wanted:
            torch.linalg.svd(matrix, full_matrices=False)
        spent += time.process_time() - began
    return spent


def spectral(work: Path, size: str, records: Records) -> None:
    """Compare methods of singular vectors with their decompositions alone."""
    models, out = models_apart(work, size), work / "out"
    for method in ("tsv_m", "iso_c"):
        experts = [f"{name}={path}" for name, path in models.items() if name != "base"]
        command = [sys.executable, "-m", "merges", "--method", method, "--base", models["base"]]
        command += ["--experts", *experts, "--threads", "1", "--out", out]
        run(command, out, work / "hashes.json")  # hashes the inputs
        ours = run(command, out, work / "hashes.json")
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
            other = pool.submit(decompositions, method, models).result()
        records.add(f"{method} (other: LAPACK alone)", "CPU s", ours.cpu, other, 1 / 1.3)
        records.add(method, "peak MB", ours.rss, None)


def by_stage(work: Path, size: str, methods: Sequence[str], repeats: int, records: Records) -> None:
    """Measure the stages of each method's merge."""
    models, out = models_apart(work, size), work / "out"
    spawn = multiprocessing.get_context("spawn")
    for method in methods:
        runs = []
        for number in range(repeats + 1):
            shutil.rmtree(out, ignore_errors=True)
            with ProcessPoolExecutor(1, spawn) as pool:
                found = pool.submit(stages, method, models, out).result()
            if number:  # the first one compiles and hashes
                runs.append(found)
        best = min(runs, key=lambda found: found["all"])
        for stage in (*STAGES, "all"):
            if stage in best:
                records.add(f"{method}: {stage}", "CPU s", best[stage], None)


def main() -> None:
    """Measure, print a table and write the records."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, default=Path("/tmp/merge-benchmark"), metavar="DIR")
    parser.add_argument("--size", choices=SIZES, help="of the models: 0.65B; 0.1B for --spectral")
    parser.add_argument("--spectral", action="store_true", help="TSV-M and Iso-C against LAPACK")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=[*METHODS], help="all")
    parser.add_argument("--repeats", type=int, default=3, metavar="N")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the records here")
    given = parser.parse_args()
    os.environ["BOTTLE_HASH_CACHE"] = str(given.work / "hashes.json")
    os.environ["OMP_NUM_THREADS"] = "1"
    given.work.mkdir(parents=True, exist_ok=True)
    records = Records()
    if given.spectral:
        spectral(given.work, given.size or "0.1B", records)
    else:
        by_stage(given.work, given.size or "0.65B", given.methods, given.repeats, records)
    if given.json:
        given.json.write_text(json.dumps(records.rows, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
