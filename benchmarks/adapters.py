"""Score merges of adapters, in and outside their factors' space, on a finished run's experts.

    python benchmarks/adapters.py --results results/more --json docs/data/adapters.json

Each expert becomes a LoRA adapter of rank 16, which leaves its change of the output head out (an
adapter that has one cannot be merged into an adapter). The adapters are merged by folding each into
the base (a merge of models), in Core Space, and by CoPA, at several densities and scales, of which
none is chosen. Every merge answers the test items of its case in the run's first world; `average`
is that of the case's table. It takes about three CPU minutes.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from common.files import read_json, write_text  # noqa: E402
from search.record import average_of  # noqa: E402

RANK = 16  # of matrices with 64 to 256 rows
SCALES = (0.7, 1.0, 1.5)
DENSITIES = (0.2, 0.5, 0.8)  # .2 is CoPA's own, .5 is that of TIES here


def ways() -> Iterator[tuple[str, list[str], dict[str, float]]]:
    """List the merges: name, command without its models, settings."""
    for scale in SCALES:
        for method in ("task_arithmetic", "ties"):
            settings = {"scale": scale} | ({"density": 0.5} if method == "ties" else {})
            yield f"{method}, folded", ["--method", method], settings
            yield f"{method}, core space", ["core-space", "--method", method], settings
    for density in DENSITIES:
        if density != 0.5:
            settings = {"scale": 1.5, "density": density}
            yield "ties, folded", ["--method", "ties"], settings
            yield "ties, core space", ["core-space", "--method", "ties"], settings
        for factor in (1.0, 2.0):
            yield "copa", ["copa"], {"density": density, "factor": factor}


def run(*command: Any) -> None:
    """Run a command of this project, which says what is wrong if it ends with an error."""
    given = [sys.executable, "-m", *map(str, command)]
    subprocess.run(given, check=True, cwd=ROOT, stdout=subprocess.DEVNULL)


def measure(case: Path, about: dict[str, Any], work: Path) -> list[dict[str, Any]]:
    """Make every merge of one case, fold those that are adapters, and score them together."""
    base = case / "models" / "base"
    columns = [group["tasks"] for group in about["columns"] if group.get("in_average", True)]
    adapters = {name: work / "lora" / name for name in about["experts"]}
    for name, folder in adapters.items():
        expert = ["--model", case / "models" / name, "--rank", RANK, "--others", "drop"]
        run("checkpoints", "extract-lora", "--base", base, *expert, "--out", folder)
    experts = ["--experts", *(f"{name}={folder}" for name, folder in adapters.items())]
    made: list[tuple[str, dict[str, float], Path]] = [
        (f"{name}, rank {RANK}", {}, folder) for name, folder in adapters.items()
    ]
    for number, (name, command, settings) in enumerate(ways()):
        given = ["--set", *(f"{key}={value}" for key, value in settings.items())]
        out = work / f"merge-{number}"
        run("merges", *command, "--base", base, *experts, *given, "--out", out)
        made.append((name, settings, out))
    models = {}
    # One process scores all: its start takes longer than a model.
    for number, (_, _, folder) in enumerate(made):
        models[number] = folder
        if (folder / "adapter_config.json").exists():
            models[number] = work / f"folded-{number}"
            alone = ["--method", "task_arithmetic", "--set", "scale=1", "--base", base]
            run("merges", *alone, "--experts", f"adapter={folder}", "--out", models[number])
    named = [f"m{number}={folder}" for number, folder in models.items()]
    asked = ["--suites", ",".join(task for tasks in columns for task in tasks)]
    place = ["--data", case / "data", "--split", "test", "--out-dir", work / "scores"]
    run("evaluation", "--model", *named, *asked, *place, "--threads", 1)
    rows: list[dict[str, Any]] = []
    for number, (name, settings, _) in enumerate(made):
        scores = read_json(work / "scores" / f"m{number}.json")["tasks"]
        value = average_of({task: own["value"] for task, own in scores.items()}, columns)
        rows.append({"name": name, "settings": settings, "average": round(value, 4)})
        print(f"{case.name}  {name:<28} {value:.3f}  {settings}", flush=True)
    return rows


def main() -> None:
    """Measure, print a table and write the records."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--results", type=Path, required=True, metavar="DIR", help="a finished run")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the records here")
    given = parser.parse_args()
    config = read_json(given.results / "config.json")
    found = {}
    for case, about in config["cases"].items():
        with tempfile.TemporaryDirectory() as work:
            found[case] = measure((given.results / case).resolve(), about, Path(work))
    if given.json:
        write_text(given.json, json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
