"""Measure the cost of a search's candidate in one process, against a checkpoint and process each.

    python benchmarks/evolutionary.py --case results/bottle/case1 --json docs/data/evolutionary.json

Takes the models and the dev items of a case of the bottle. The same candidates (CMA-ES, from its
start) are scored twice: by the search itself, in memory; and each merged, written, and evaluated by
a fresh `python -m evaluation`. Both must give the same scores. CPU seconds of the processes, on one
thread; the time before a process's first candidate is a separate row. `ratio` says how many times
better the first way is. `merge alone` times the merges of the candidates in memory, from mapped
files, as in a search, and from files that are read. `scoring alone` compares the class of small
models with transformers' forward pass.

    python benchmarks/evolutionary.py --case results/bottle/case1 --earlier ../checkout --json FILE

compares a generation of candidates with an earlier build instead: the same genomes, each build in a
process with one thread, in turn; every item's score must be the same.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks.clock import Clock  # noqa: E402
from benchmarks.merge import Records  # noqa: E402

GOAL_RATIO = 5.0  # candidates a minute, in memory against on disk
GOAL_SHARE = 10.0  # per cent of a candidate's time that is not its evaluation
METHODS = ("task_arithmetic", "ties", "dare_ties")


def _children() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def parents(case: Path, mapped: bool) -> tuple[Any, dict[str, Any]]:
    """Open a case's base and experts."""
    from checkpoints.reading import Checkpoint

    experts = {
        path.name: Checkpoint(path, mapped=mapped)
        for path in sorted((case / "models").iterdir())
        if path.name != "base" and (path / "config.json").is_file()
    }
    return Checkpoint(case / "models" / "base", mapped=mapped), experts


def merging(case: Path, method: str, genomes: list[list[float]], mapped: bool) -> float:
    """Return the CPU milliseconds of a candidate's merge into an allocated model."""
    from merges.engine.config import MergeConfig
    from search.parameters import ParameterSpace
    from search.workbench import Allocated

    base, experts = parents(case, mapped)
    space, allocated = ParameterSpace(MergeConfig(method, base, experts), {}), Allocated(base)
    allocated.become(space, space.decode(genomes[0]))
    least = float("inf")
    for _ in range(3):
        began = time.process_time()
        for genome in reversed(genomes):
            allocated.become(space, space.decode(genome))
        least = min(least, time.process_time() - began)
    return 1000 * least / len(genomes)


def scoring(bench: Any, evaluations: list[Any], quick: bool) -> float:
    """Return the CPU milliseconds in which a candidate is scored; its scores must be the same.

    Args:
        bench: The search's workbench.
        evaluations: Candidates with their scores.
        quick: Whether by the class of small models, or through transformers.
    """
    from evaluation.backends import plain

    serves = plain.serves
    plain.serves = serves if quick else lambda *_: False
    recipe = bench.space.decode(evaluations[0].genome)
    bench._allocated.become(bench.space, recipe)
    bench._score(type(evaluations[0])(0, {}), bench._harness)  # arranges the items, for all
    spent = 0.0
    for evaluation in evaluations:
        bench._allocated.become(bench.space, bench.space.decode(evaluation.genome))
        again = type(evaluation)(evaluation.index, {})
        began = time.process_time()
        bench._score(again, bench._harness)
        spent += time.process_time() - began
        assert again.tasks == evaluation.tasks
    plain.serves = serves
    return 1000 * spent / len(evaluations)


def compare(
    case: Path, method: str, suites: str, count: int, written: int, records: Records
) -> None:
    """Score the same candidates both ways.

    Args:
        case: A case's folder, with `models/` and `data/`.
        method: What the candidates are merged with.
        suites: Suites to score.
        count: Candidates that are scored in memory.
        written: How many of them are scored from the disk too.
        records: Takes the figures.
    """
    from evaluation.suites import select
    from merges.engine.config import MergeConfig
    from merges.engine.layer_rules import LayerRules
    from merges.engine.run import merge_to_disk
    from search.evolutionary import CmaEs
    from search.loop import Budget, Search
    from search.parameters import ParameterSpace
    from search.state import StateFile
    from search.workbench import Allocated, Workbench

    base, experts = parents(case, mapped=True)
    space = ParameterSpace(MergeConfig(method, base, experts), {})
    tasks = [task.name for task in select(suites.split(","))]
    with tempfile.TemporaryDirectory(dir=os.environ.get("TMPDIR")) as scratch:
        began = time.process_time()
        bench = Workbench(space, base, case / "data", suites.split(","), [tasks])
        bench.evaluate(0, [gene.start for gene in space.genes])  # encodes the items, for all
        ready = time.process_time() - began
        strategy = CmaEs(space.genes, population=None, sigma=0.3, seed=0)
        file = StateFile(Path(scratch) / "out", {})
        search = Search(space, strategy, bench, Budget(count), file)
        clock = Clock()
        clock.watch(Allocated, "become")
        clock.watch(Workbench, "_score")
        began = time.process_time()
        history = search.run()
        whole = time.process_time() - began
        other = whole - clock.spent["become"] - clock.spent["_score"]
        on_disk = 0.0
        for evaluation in history[:written]:
            recipe = space.decode(evaluation.genome)
            folder, scores = Path(scratch) / "model", Path(scratch) / "scores.json"
            began = time.process_time() + _children()
            merge_to_disk(
                folder,
                MergeConfig(
                    method,
                    *parents(case, mapped=False),
                    recipe["set"],
                    parameters_for=LayerRules(method, recipe["set_layers"]),
                ),
            )
            command = [sys.executable, "-m", "evaluation", "--model", str(folder)]
            command += ["--suites", suites, "--data", str(case / "data")]
            command += ["--split", "dev", "--out", str(scores)]
            subprocess.run(command, check=True, cwd=ROOT, capture_output=True)
            on_disk += time.process_time() + _children() - began
            found = json.loads(scores.read_text())["tasks"]
            assert {name: found[name]["value"] for name in tasks} == evaluation.tasks
            shutil.rmtree(folder)
    per, against = whole / count, on_disk / written
    records.add(method, "CPU s", per, against, GOAL_RATIO)
    records.add(method, "per CPU min", 60 / per, None)
    records.add(f"{method}: before the first", "CPU s", ready, None)
    for what, spent in (("merge", clock.spent["become"]), ("ask, tell, state", other)):
        records.add(f"{method}: {what}", "% of it", 100 * spent / whole, None)
    genomes = [evaluation.genome for evaluation in history]
    mapped, read = (merging(case, method, genomes, way) for way in (True, False))
    records.add(f"{method}: merge alone", "CPU ms", mapped, read)
    ours, other = (scoring(bench, history[:written], quick) for quick in (True, False))
    records.add(f"{method}: scoring alone, through transformers", "CPU ms", ours, other)
    share = 100 * (whole - clock.spent["_score"]) / whole
    # As a ratio: how many times below the goal it stays.
    records.add(f"{method}: all but evaluation", "% of it", share, GOAL_SHARE, 1.0)


# Runs in either build, whose modules have other names; prints CPU seconds a candidate, those in
# products of matrices, and every item's score.
_GENERATION = """
import importlib, json, random, sys, time
from pathlib import Path
import torch
torch.set_num_threads(1)
from checkpoints.reading import Checkpoint
from evaluation.suites import select
from search.parameters import ParameterSpace
from search.workbench import Workbench
case, method, suites = Path(sys.argv[1]), sys.argv[2], sys.argv[3].split(",")
count = int(sys.argv[4])
try:
    config = importlib.import_module("merges.engine.config").MergeConfig
except ImportError:
    config = importlib.import_module("search.merged").Merging
models = {path.name: Checkpoint(path, mapped=True) for path in sorted((case / "models").iterdir())
          if (path / "config.json").is_file()}
base = models.pop("base")
space = ParameterSpace(config(method, base, models), {})
bench = Workbench(space, base, case / "data", suites, [[task.name for task in select(suites)]])
draws = random.Random(0)
genomes = [[draws.uniform(0.5, 1.5) for _ in space.genes] for _ in range(count)]
bench.evaluate(0, [gene.start for gene in space.genes])  # encodes the items, for all
began = time.process_time()
for number, genome in enumerate(genomes, 1):
    assert not bench.evaluate(number, genome).failure
spent = time.process_time() - began
items, inside = [], [0.0]
def timed(function):
    def call(*given, **options):
        began = time.thread_time()
        try:
            return function(*given, **options)
        finally:
            inside[0] += time.thread_time() - began
    return call
linear, torch.nn.functional.linear = torch.nn.functional.linear, timed(torch.nn.functional.linear)
torch.addmm = timed(torch.addmm)
for genome in genomes:
    bench._allocated.become(space, space.decode(genome))
    found = bench._harness.evaluate_with_items(bench._allocated.model, "candidate")[1]
    items.append([[item["task"], item["id"], item["score"]] for item in found])
print(json.dumps([spent / count, inside[0] / count, items]))
"""


def earlier(case: Path, checkout: Path, method: str, suites: str, count: int) -> list[Any]:
    """Score a generation in a build; see `_GENERATION`."""
    command = [sys.executable, "-c", _GENERATION, str(case), method, suites, str(count)]
    done = subprocess.run(
        command,
        cwd=checkout,
        env=os.environ | {"PYTHONPATH": str(checkout)},
        check=True,
        capture_output=True,
        text=True,
    )
    return json.loads(done.stdout.splitlines()[-1])


def compare_builds(
    case: Path, checkout: Path, method: str, suites: str, count: int, records: Records
) -> None:
    """Compare a generation with an earlier build, twice in turn; the least counts."""
    rounds = [
        [earlier(case, build, method, suites, count) for build in (ROOT, checkout)]
        for _ in range(2)
    ]
    ours, other = (min(found[side][0] for found in rounds) for side in (0, 1))
    assert all(found[0][2] == found[1][2] for found in rounds), "the builds' scores differ"
    records.add(f"{method}: a candidate", "CPU ms", 1000 * ours, 1000 * other, 4.0)
    records.add(f"{method}: candidates", "per CPU min", 60 / ours, None)
    products = min(found[0][1] for found in rounds)
    name = f"{method}: products of matrices alone"
    records.add(name, "CPU ms", 1000 * products, 1000 * other, 4.0)


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--case", type=Path, required=True, metavar="DIR")
    parser.add_argument("--suites", default="bottle_ja8,bottle_gsm_en", metavar="A,B")
    parser.add_argument("--methods", nargs="+", default=METHODS)
    parser.add_argument("--candidates", type=int, default=24, metavar="N")
    parser.add_argument("--written", type=int, default=3, metavar="N")
    parser.add_argument("--earlier", type=Path, metavar="DIR", help="a checkout to compare with")
    parser.add_argument("--json", type=Path, metavar="FILE")
    given = parser.parse_args()
    # Read when the libraries are imported, here and in the fresh processes.
    os.environ.update(OMP_NUM_THREADS="1", BOTTLE_HASH_CACHE="off", PYTHONPATH=str(ROOT))
    import torch

    torch.set_num_threads(1)
    records = Records()
    for method in given.methods:
        if given.earlier:
            sizes = (given.suites, given.candidates, records)
            compare_builds(given.case.resolve(), given.earlier.resolve(), method, *sizes)
            continue
        compare(
            given.case.resolve(), method, given.suites, given.candidates, given.written, records
        )
    if given.json is not None:
        given.json.write_text(json.dumps(records.rows, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
