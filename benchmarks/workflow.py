"""Measure the workflow's own cost, and say where the CPU seconds of a finished run went.

    python benchmarks/workflow.py --json docs/data/workflow.json
    python benchmarks/workflow.py --results results/bottle --json docs/data/workflow-stages.json
    python benchmarks/workflow.py --results results/bottle --against EARLIER/results/bottle

The first runs the commands that a user types, in the current folder; results/ is only read. The
figures are ratios in one run: ours against the same step started cold, and against a goal in
seconds. `ratio` says how many times better ours is than the other.

The others add up the cost files of a run, stage by stage, and say how long the counted arithmetic
would take at the speed at which this machine, now, multiplies matrices of the bottle's size.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from common.warm import STEPS, Worker  # noqa: E402

GOAL_CPU_S = 1440.0  # of a default run: 12 minutes on two cores
REPEATS = 5  # the median of five withstands a disturbance or two
NO_OP_GOAL_S = 5.0


def seconds(command: list[str]) -> tuple[float, float]:
    """Run a command; return its wall and CPU seconds."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    start = time.monotonic()
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    wall = time.monotonic() - start
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return wall, cpu


def median_wall(command: list[str]) -> float:
    """Run a command several times; return the median of its wall seconds."""
    return statistics.median(seconds(command)[0] for _ in range(REPEATS))


def stage_of(path: Path, counted: Mapping[str, float]) -> str:
    """Name the stage of a step.

    Args:
        path: Its cost file, from the run's folder.
        counted: What it counted.
    """
    parts = path.parts
    if "requests" in counted:
        return "evaluation"
    if parts[0] == "ablation":
        return "ablation"
    if {"teachers", "data"} & set(parts):
        return "data" if "data" in parts else "teachers of DAM"
    if "models" in parts:
        return "bases" if parts[-2] == "base" else "experts"
    if "evaluations" not in counted:
        return "DAM and AdaMerging" if "steps" in counted else "other merges"
    return "DAM, tuned" if "steps" in counted else "searches and other tuned rows"


def stages(results: Path) -> dict[str, dict[str, float]]:
    """Add up a run's cost files but for studies: each stage's steps, CPU seconds and FLOPs."""
    found: dict[str, dict[str, float]] = {}
    for path in sorted(results.rglob("*cost.json")):
        if path.relative_to(results).parts[0] == "studies":  # beyond the run
            continue
        cost = json.loads(path.read_text(encoding="utf-8"))
        counted = cost["counted"]
        own = found.setdefault(
            stage_of(path.relative_to(results), counted), {"steps": 0, "cpu_s": 0.0, "flops": 0.0}
        )
        own["steps"] += 1
        own["cpu_s"] += cost["cpu_s"]
        own["flops"] += counted.get("flops", 0) + counted.get("dev_flops", 0)
    return found


def products_a_second() -> float:
    """Measure FLOP/s of products of 1,000 rows with a layer's weight, as a training step has."""
    import torch

    torch.set_num_threads(1)
    inputs, weight = torch.randn(1000, 128), torch.randn(256, 128)
    flops, best = 2 * 1000 * weight.numel() * 20, float("inf")
    for _ in range(20):
        start = time.process_time()
        for _ in range(20):
            inputs @ weight.T
        best = min(best, time.process_time() - start)
    return flops / best


def where_it_went(results: Path, against: Path | None) -> list[dict[str, Any]]:
    """Print the stages of a run; return them, with those of another run next to them."""
    # The best of this moment: the products of a step have several sizes, some of them slower.
    speed = products_a_second()
    ours, other = stages(results), stages(against) if against else {}
    for rows in (ours, other):
        rows["all"] = {k: sum(r[k] for r in rows.values()) for k in ("steps", "cpu_s", "flops")}
    print(f"{results}; products at {speed / 1e9:.0f} GFLOP/s")
    print(f"{'stage':<32} {'steps':>6} {'CPU s':>8} {'products':>9} {'other':>8}")
    records: list[dict[str, Any]] = []
    for stage in sorted(ours, key=lambda name: (name == "all", -ours[name]["cpu_s"])):
        own, theirs = ours[stage], other.get(stage)
        record: dict[str, Any] = {
            "stage": stage,
            "steps": own["steps"],
            "cpu_s": round(own["cpu_s"], 1),
            "products_s": round(own["flops"] / speed, 1),
            "other_cpu_s": round(theirs["cpu_s"], 1) if theirs and against else None,
            "goal": GOAL_CPU_S if stage == "all" else None,
        }
        records.append(record)
        values = [record[name] for name in ("steps", "cpu_s", "products_s", "other_cpu_s")]
        print(f"{stage:<32} " + " ".join(f"{'' if v is None else v:>8}" for v in values))
    return records


def main() -> None:
    """Measure, print a table and write the records."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the records here")
    parser.add_argument("--results", type=Path, metavar="DIR", help="a finished run: its stages")
    parser.add_argument("--against", type=Path, metavar="DIR", help="an earlier build's run")
    given = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    records: list[dict[str, Any]] = []
    if given.results:
        records = where_it_went(given.results, given.against)
        if given.json:
            given.json.write_text(json.dumps(records, indent=1) + "\n", encoding="utf-8")
        return

    def record(name: str, ours: float, other: float, goal: float | None = None) -> None:
        records.append(
            {
                "name": name,
                "figure": "wall seconds",
                "ours": round(ours, 3),
                "other": round(other, 3),
                "ratio": round(other / ours, 2),
                "goal": goal,
            }
        )
        print(f"{name:<58} {ours:8.2f} s  {other:8.2f} s  {other / ours:6.1f} x", flush=True)

    print(f"{platform.platform()}, {os.cpu_count()} cores; median of {REPEATS}")
    print(f"{'':<58} {'ours':>8}    {'other':>8}")
    snakemake = [sys.executable, "-m", "snakemake", "--cores", "2"]
    record(
        "snakemake -n of the default experiment (other: goal)",
        median_wall([*snakemake, "-n", "--quiet", "all"]),
        NO_OP_GOAL_S,
        goal=1.0,
    )
    # The step's work is nothing but its imports, which is what the worker saves.
    step = [
        sys.executable,
        "-c",
        "import sys; sys.argv[1:] = []; from common.client import run; run('benchmarks.imports')",
    ]
    cold = median_wall(step)
    with Worker(steps=STEPS):
        seconds(step)  # the first request starts the worker
        warm = median_wall(step)
    record("start of an evaluation step, warm (other: cold)", warm, cold)
    if given.json:
        given.json.write_text(json.dumps(records, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
