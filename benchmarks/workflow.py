"""Measure the workflow's own cost: planning a run, finding nothing to do, starting steps.

    python benchmarks/workflow.py --json docs/data/workflow.json

Runs the commands that a user types, in the current folder; results/ is only read. The figures are
ratios in one run: ours against the same step started cold, and against a goal in seconds. `ratio`
says how many times better ours is than the other.
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
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from common.warm import Worker  # noqa: E402

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


def main() -> None:
    """Measure, print a table and write the records."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the records here")
    given = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    records = []

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
        "import sys; sys.argv[1:] = []; from common.cli import run; run('benchmarks.imports')",
    ]
    cold = median_wall(step)
    with Worker():
        seconds(step)  # the first request starts the worker
        warm = median_wall(step)
    record("start of an evaluation step, warm (other: cold)", warm, cold)
    if given.json:
        given.json.write_text(json.dumps(records, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
