"""Compare the algorithms of a search at equal evaluations.

    python benchmarks/algorithms.py --results results/bottle \
        --json docs/data/evolutionary-algorithms.json

For every world of a case of a finished run, repeats the command of its row `evolutionary` with each
algorithm and a smaller budget; the search's seed is the world's. Then it scores each search's best
merge on the test items. The hypervolume is of the columns of the average, after each evaluation, as
`python -m search front` has it; not of MERGE^3, whose scores are estimates.
"""

from __future__ import annotations

import argparse
import csv
import json
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import fmean
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

ALGORITHMS = ("cma-es", "nsga2", "map", "m2n2", "merge3")


def run(command: list[str]) -> None:
    """Run a command of the project; end with its message if it fails."""
    done = subprocess.run([sys.executable, *command], cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{shlex.join(command[:4])} failed:\n{done.stderr[-2000:]}")


def command_of(results: Path, world: Path, row: str) -> dict[str, list[str]]:
    """Return the options of the command that made a row, by name; paths are absolute."""
    record = json.loads((world / "merges" / row / "cost.json").read_text(encoding="utf-8"))
    inside = f"results/{results.name}/"
    options: dict[str, list[str]] = {}
    for word in shlex.split(record["command"])[4:]:
        if word.startswith("--"):
            options[word] = []
        else:
            options[list(options)[-1]].append(word.replace(inside, f"{results}/"))
    return options


def searched(options: dict[str, list[str]], algorithm: str, budget: int, out: Path) -> list[str]:
    """Return the command of a search with another algorithm and budget."""
    changed = options | {"--algorithm": [algorithm], "--budget": [str(budget)], "--out": [str(out)]}
    return [
        "-m",
        "search",
        "evolve",
        *(word for name in changed for word in (name, *changed[name])),
    ]


def rows_of(path: Path) -> list[dict[str, str]]:
    """Read a table."""
    with path.open(encoding="utf-8", newline="") as stream:
        return list(csv.DictReader(stream))


def measured(
    options: dict[str, list[str]], algorithm: str, budget: int, folder: Path
) -> dict[str, Any]:
    """Search, score the best merge on the test items, and look at the front."""
    out, front, scores = folder / "merge", folder / "front", folder / "scores.json"
    run(searched(options, algorithm, budget, out))
    run(["-m", "search", "front", "--of", str(out), "--out", str(front)])
    given = {name: options[name][0] for name in ("--suites", "--data")}
    known = [word for pair in given.items() for word in pair]
    run(["-m", "evaluation", "--model", str(out), *known, "--split", "test", "--out", str(scores)])
    tasks = json.loads(scores.read_text(encoding="utf-8"))["tasks"]
    groups = json.loads(options["--average"][0])
    cost = json.loads((out / "cost.json").read_text(encoding="utf-8"))
    manifest = json.loads((out / "manifest.json").read_text(encoding="utf-8"))
    about = manifest["parameters"]["search"]
    fitness = about.get("fitness", {})
    history = rows_of(out / "search.csv")
    volumes = [float(row["hypervolume"]) for row in rows_of(front / "hypervolume.csv")]
    estimated = algorithm == "merge3"
    return {
        "evaluations": len(history),
        "start": float(history[0]["dev_average"]),
        "dev_average": fitness.get("full_average", about["dev_average"]),
        "test_average": fmean(fmean(tasks[task]["value"] for task in group) for group in groups),
        "hypervolume_by_evaluation": None if estimated else volumes,
        "front": None if estimated else len(rows_of(front / "front.csv")),
        "dev_tokens": cost["counted"]["dev_tokens"],
        "cpu_s": cost["cpu_s"],
        "spearman": fitness.get("spearman"),
    }


def main() -> None:
    """Measure, print a table and write the records."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--results", type=Path, required=True, metavar="DIR", help="a finished run")
    parser.add_argument("--case", default="case1", help="case1")
    parser.add_argument("--row", default="evolutionary", help="whose command is repeated")
    parser.add_argument("--budget", type=int, default=48, metavar="N", help="evaluations (48)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the records here")
    given = parser.parse_args()
    results, records = given.results.resolve(), []
    worlds = sorted(path for path in results.glob(f"{given.case}*") if (path / "merges").is_dir())
    for number, world in enumerate(worlds, 1):
        options = command_of(results, worlds[0], given.row)
        first, own = f"{results}/{worlds[0].name}/", f"{world}/"
        options = {n: [word.replace(first, own) for word in words] for n, words in options.items()}
        options["--seed"] = [str(number)]
        for algorithm in ALGORITHMS:
            with tempfile.TemporaryDirectory() as folder:
                found = measured(options, algorithm, given.budget, Path(folder))
            records.append({"algorithm": algorithm, "world": number, **found})
            print(world.name, algorithm, found["dev_average"], found["test_average"], flush=True)
    if given.json:
        text = ",\n".join(f" {json.dumps(record)}" for record in records)
        given.json.write_text(f"[\n{text}\n]\n", encoding="utf-8")


if __name__ == "__main__":
    main()
