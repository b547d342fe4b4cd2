"""Measure what a step of a run costs the machine, with a warm worker, against an earlier build.

    python benchmarks/steps.py --case results/bottle/case1 --against EARLIER \\
        --json docs/data/workflow-steps.json

A step's cost file counts what the step does. This counts all: the command that asks the worker,
the fork, the imports, the work and the end, as the CPU seconds for which all cores together were
busy (/proc/stat). Therefore nothing else may run. EARLIER is a checkout of an earlier commit; both
builds do the same steps on the same models of a finished run, in turns.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
REPEATS = 8  # of each step in a turn
# What each build runs: its own worker, and the steps one after another.
TURN = """
import json, os, subprocess, sys
from common import warm
repeats, steps = json.loads(sys.argv[1])
def busy():
    user, nice, system, _, _, irq, softirq, *_ = open("/proc/stat").readline().split()[1:]
    return sum(map(int, (user, nice, system, irq, softirq))) / os.sysconf("SC_CLK_TCK")
found = {}
with warm.Worker(steps=warm.STEPS) if hasattr(warm, "STEPS") else warm.Worker():
    for name, (out, *command) in steps.items():
        for number in range(repeats + 1):
            if number == 1:  # the first starts the worker, and fills caches
                began = busy()
            subprocess.run(["rm", "-rf", out], check=True)
            done = subprocess.run([sys.executable, "-m", *command], capture_output=True, text=True)
            if done.returncode:
                sys.exit(done.stderr)
        found[name] = (busy() - began) / repeats
print(json.dumps(found))
"""


def steps_of(case: Path, out: Path) -> dict[str, list[str]]:
    """Return by name what a step writes and its command, on a finished case study 1."""
    models, data = case / "models", case / "data"
    experts = [f"{name}={models / name}" for name in ("ja", "math_a", "math_b")]
    parents = ["--base", str(models / "base"), "--experts", *experts]
    scored = ["--data", str(data), "--suites"]
    return {
        "nothing (a list of tasks)": [str(out), "evaluation", "--list"],
        "a TIES merge": [
            *(str(out), "merges", "--method", "ties", *parents, "--out", str(out)),
        ],
        "a tuned row of one candidate, one task": [
            *(str(out), "search", "tune", "--method", "ties", *parents, *scored),
            *("bottle_ja8/jcomqa", "--average", '[["bottle_ja8/jcomqa"]]'),
            *("--candidates", '[{"density": 0.2}]', "--out", str(out)),
        ],
        "an evaluation, eight tasks": [
            *(str(out), "evaluation", "--model", str(models / "ja"), *scored, "bottle_ja8"),
            *("--out", f"{out}/ja.json"),
        ],
    }


def turn(build: Path, steps: dict[str, list[str]]) -> dict[str, float]:
    """Run all steps with one build's code; return their CPU seconds."""
    environment = {**os.environ, "PYTHONPATH": str(build), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", TURN, json.dumps([REPEATS, steps])]
    done = subprocess.run(
        command, cwd=build, env=environment, check=True, stdout=subprocess.PIPE, text=True
    )
    return json.loads(done.stdout)


def main() -> None:
    """Measure in turns, print a table and write the records."""
    # Long, because it also describes the command line and prints the table.
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--case", type=Path, required=True, metavar="DIR", help="of a finished run")
    parser.add_argument("--against", type=Path, required=True, metavar="DIR", help="a checkout")
    parser.add_argument("--turns", type=int, default=3, metavar="N", help="of each build (3)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the records here")
    given = parser.parse_args()
    records = []
    with tempfile.TemporaryDirectory() as folder:
        steps = steps_of(given.case.resolve(), Path(folder) / "out")
        builds = {"ours": ROOT, "other": given.against.resolve()}
        found: dict[str, list[dict[str, float]]] = {name: [] for name in builds}
        for _ in range(given.turns):
            for name, build in builds.items():
                found[name].append(turn(build, steps))
    print(f"{platform.platform()}, {os.cpu_count()} cores, {time.strftime('%Y-%m-%d')}")
    for step in steps:
        ours, other = (statistics.median(one[step] for one in found[name]) for name in builds)
        records.append(
            {
                "name": step,
                "figure": "CPU seconds of the machine",
                "ours": round(ours, 3),
                "other": round(other, 3),
                "ratio": round(other / ours, 2),
                "goal": None,
            }
        )
        print(f"{step:<42} {ours:6.3f}  {other:6.3f}  {other / ours:5.2f} x")
    if given.json:
        given.json.write_text(json.dumps(records, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
