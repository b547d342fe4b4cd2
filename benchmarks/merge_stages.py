"""Measure where the CPU seconds of a merge go.

    python benchmarks/merge_stages.py --json docs/data/merge-stages.json

Makes the models of `benchmarks/merge.py` in --work. Each merge runs alone in a process with one
thread, its inputs' hashes known, and the functions that do a stage's work count their thread's CPU
seconds; the run with the least in all counts. Kernels widen, merge and round in one pass, so that
these three are one stage.
"""

from __future__ import annotations

import argparse
import functools
import json
import multiprocessing
import os
import shutil
import sys
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

BEGUN = time.process_time()  # what Python itself took
ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks.merge import METHODS, Records, models_apart, settings  # noqa: E402

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
    "hash, in a thread of its own",
    "other",
)


def _watch(spent: dict[str, float], owner: Any, name: str, stage: str) -> None:
    """Count a function's CPU seconds, without those of watched functions that it calls."""
    function: Callable = getattr(owner, name)

    @functools.wraps(function)
    def counted(*args: Any, **kwargs: Any) -> Any:
        before, began = sum(spent.values()), time.thread_time()
        try:
            return function(*args, **kwargs)
        finally:
            whole = time.thread_time() - began
            spent[stage] = spent.get(stage, 0) + whole - (sum(spent.values()) - before)

    setattr(owner, name, counted)


def stages(method: str, models: dict[str, Path], out: Path) -> dict[str, float]:
    """Merge in this process; return the CPU seconds of each stage, and of the whole."""
    from checkpoints import reading, writing
    from merges.arithmetic import kernels, masks, patterns, selection
    from merges.engine.config import MergeConfig
    from merges.engine.run import merge_to_disk

    spent: dict[str, float] = {}
    hashing: dict[str, float] = {}  # counted apart: its thread runs beside the others
    read, bound, compare, rank, mask, angle, merge, write, hashed = STAGES[1:-1]
    _watch(spent, reading.SafetensorsWeights, "_fill", read)
    _watch(spent, selection, "_sample", bound)
    _watch(spent, selection._Search, "__init__", bound)
    _watch(spent, patterns, "between", compare)
    _watch(spent, selection._Search, "finish", rank)
    _watch(spent, masks, "keep_array", mask)
    _watch(spent, patterns, "gram", angle)
    for kernel in ("mix", "agree"):
        _watch(spent, patterns, kernel, merge)
    _watch(spent, writing.StreamedWeights, "write", write)
    _watch(hashing, writing.StreamedWeights, "_hash_shard", hashed)
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
    found = {STAGES[0]: start} | spent | hashing
    return found | {STAGES[-1]: whole - sum(found.values()), "whole": whole}


def main() -> None:
    """Measure, print a table and write the records."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, default=Path("/tmp/merge-benchmark"), metavar="DIR")
    parser.add_argument("--size", default="0.65B", metavar="SIZE", help="of the models")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=[*METHODS], help="all")
    parser.add_argument("--repeats", type=int, default=3, metavar="N")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the records here")
    given = parser.parse_args()
    os.environ["BOTTLE_HASH_CACHE"] = str(given.work / "hashes.json")
    os.environ["OMP_NUM_THREADS"] = "1"
    models, out, records = models_apart(given.work, given.size), given.work / "out", Records()
    spawn = multiprocessing.get_context("spawn")
    for method in given.methods:
        runs = []
        for number in range(given.repeats + 1):
            shutil.rmtree(out, ignore_errors=True)
            with ProcessPoolExecutor(1, spawn) as pool:
                found = pool.submit(stages, method, models, out).result()
            if number:  # the first one compiles and hashes
                runs.append(found)
        best = min(runs, key=lambda found: found["whole"])
        for stage in (*STAGES, "whole"):
            if stage in best:
                records.add(f"{method}: {stage}", "CPU s", best[stage], None)
    if given.json:
        given.json.write_text(json.dumps(records.rows, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
