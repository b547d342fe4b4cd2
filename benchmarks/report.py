"""Measure tables, figures and page of a finished run, of its scores alone, and of hundreds of rows.

    python benchmarks/report.py --results results/bottle --json docs/data/report.json
    git worktree add EARLIER COMMIT
    python benchmarks/report.py --results results/bottle --against EARLIER

Runs the three commands as `make reproduce` does, each in a fresh process, with an empty cache for
the three together. With `--against`, another checkout does the same in turns, and every file that
both write is compared. The many rows are made of the run's own: each answers an item as one of two
rows does, drawn by chance, so that its scores are those of its answers. `ratio` says how many times
better ours is than the other; a goal is for all three together, in seconds.
"""

from __future__ import annotations

import argparse
import gzip
import json
import platform
import random
import shutil
import statistics
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks.merge import Cost, Records, measure  # noqa: E402
from common.files import read_json, sha256_file, write_bytes, write_json, write_text  # noqa: E402
from common.machine import describe  # noqa: E402
from common.worlds import folder_of, seeds_of  # noqa: E402

GOALS = {"as it is": 8.0, "scores alone": 10.0, "many rows": 60.0}  # CPU s of all three commands
PARTS = ("tables", "figures", "page")


def _answers(path: Path) -> list[str]:
    return gzip.decompress(path.read_bytes()).decode().splitlines()


def _scored(lines: list[str], tasks: Mapping[str, Any]) -> dict[str, Any]:
    """Score items: each task with the mean of its items and its standard error."""
    values: dict[str, list[float]] = {}
    for record in map(json.loads, lines):
        values.setdefault(record["task"], []).append(record["score"])
    found = {}
    for task, about in tasks.items():
        own = values[task]
        error = statistics.stdev(own) / len(own) ** 0.5
        found[task] = {**about, "value": statistics.fmean(own), "stderr": error}
    return found


def _mixed(world: Path, to: Path, names: tuple[str, str, str], lines: list[str]) -> None:
    """Write the model folder and the scores of a row that answers as two others do.

    Args:
        world: The folder of the world with the two.
        to: The folder of the world with many rows.
        names: The new row's and the two others'; the first of these gives its model and cost.
        lines: The new row's answers.
    """
    new, first, _ = names
    scores, model = world / "scores/test", to / "merges" / new
    for name in ("manifest.json", "cost.json"):
        write_bytes(model / name, (world / "merges" / first / name).read_bytes())
    place = to / "scores/test"
    content = read_json(scores / f"{first}.json")
    content |= {"model": new, "tasks": _scored(lines, content["tasks"])}
    write_json(place / f"{new}.json", content)
    packed = gzip.compress("".join(f"{line}\n" for line in lines).encode(), 6, mtime=0)
    write_bytes(place / f"{new}.items.jsonl.gz", packed)
    manifest = read_json(scores / f"{first}.manifest.json")
    manifest["outputs"] = {
        "items": sha256_file(place / f"{new}.items.jsonl.gz"),
        "scores": sha256_file(place / f"{new}.json"),
    }
    write_json(place / f"{new}.manifest.json", manifest)
    shutil.copy2(scores / f"{first}.cost.json", place / f"{new}.cost.json")


def _checks(world: Path, to: Path, names: Mapping[str, str]) -> None:
    """Write smoke check and inspection of a world, with new rows as the others are that they name.

    Manifests that would vouch for the old files are left out.
    """
    smoke = read_json(world / "smoke.json")
    smoke["parents"] |= {new: smoke["parents"][old] for new, old in names.items()}
    write_json(to / "smoke.json", smoke)
    found = read_json(world / "inspection.json")
    known = {new: old for new, old in names.items() if old in found["merges"]}
    found["merges"] += known
    for place in (found["all"], *found["groups"]):
        for what in ("kept", "outside", "length"):
            place[what] |= {new: place[what][old] for new, old in known.items()}
    write_json(to / "inspection.json", found)
    for name in ("smoke", "inspection"):
        (to / f"{name}.manifest.json").unlink(missing_ok=True)


def many(results: Path, out: Path, count: int) -> None:
    """Write a results folder whose tables have many merges, half of them beyond the paper's.

    Args:
        results: A finished run, of which weights are left out.
        out: The new folder.
        count: Merges of each case.
    """
    ignored = shutil.ignore_patterns("*.safetensors", "tables", "figures", "items", "statistics")
    shutil.copytree(results, out, ignore=ignored)
    config, draw = read_json(results / "config.json"), random.Random(0)
    seeds, methods = seeds_of(config), dict(config["methods"])
    for case in config["cases"]:
        old = [id for id, row in config["methods"].items() if case in row.get("cases", [case])]
        origins = {}
        for number in range(count - len(old)):
            first, second = draw.sample(old, 2)
            new = f"{case}_{first}_{number}"
            origins[new] = (new, first, second)
            row = config["methods"][first]
            label = f"{row.get('label', first)}, variant {number}"
            methods[new] = {**row, "label": label, "cases": [case]}
        for name in (folder_of(case, seed, seeds) for seed in seeds):
            scores = results / name / "scores/test"
            own = {id: _answers(scores / f"{id}.items.jsonl.gz") for id in old}
            for names in origins.values():
                pairs = zip(*(own[id] for id in names[1:]), strict=True)
                lines = [draw.choice(pair) for pair in pairs]
                _mixed(results / name, out / name, names, lines)
            firsts = {new: names[1] for new, names in origins.items()}
            _checks(results / name, out / name, firsts)
    write_json(out / "config.json", config | {"methods": methods})


def alone(results: Path, out: Path) -> None:
    """Write a results folder with nothing but the configuration and the files of test scores."""
    scores = [*results.glob("*/scores/test/*.json"), *results.glob("ablation/*/*/scores.json")]
    for path in (results / "config.json", *scores):
        if not path.name.endswith((".cost.json", ".manifest.json")):
            write_bytes(out / path.relative_to(results), path.read_bytes())


def commands(code: Path, results: Path, out: Path) -> dict[str, list[Any]]:
    """Return the three commands of a checkout, as the workflow runs them."""
    start = ["env", "-C", code, sys.executable, "-m", "report"]
    given = ["--config", results / "config.json", "--results", results, "--go-on", "--out"]
    tables, figures = out / "tables", out / "figures"
    places = ["--tables", tables, "--figures", figures, "--items", out / "items"]
    return {
        "tables": [*start, "tables", *given, tables],
        "figures": [*start, "figures", *given, figures],
        "page": [*start, "page", *given, out / "report.html", *places],
    }


def reported(code: Path, results: Path, out: Path) -> dict[str, Cost]:
    """Make a report with an empty cache; return what each command took."""
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    with tempfile.TemporaryDirectory() as cache:
        environment = {"BOTTLE_HASH_CACHE": f"{cache}/hashes.json", "BOTTLE_WARM_WORKER": ""}
        made = commands(code, results, out).items()
        return {name: measure(command, environment) for name, command in made}


def together(costs: Mapping[str, Cost]) -> Cost:
    """Add up times of commands one after the other; the peak is the highest."""
    found = costs.values()
    return Cost(sum(c.cpu for c in found), sum(c.wall for c in found), max(c.rss for c in found))


def unlike(one: Path, two: Path) -> list[str]:
    """List the files of two reports that are not the same bytes, manifests aside."""
    names = {
        path.relative_to(top).as_posix()
        for top in (one, two)
        for path in top.rglob("*")
        if path.is_file() and path.name != "manifest.json"
    }
    both = [(name, one / name, two / name) for name in sorted(names)]
    return [
        name
        for name, a, b in both
        if not (a.is_file() and b.is_file() and a.read_bytes() == b.read_bytes())
    ]


def compared(name: str, results: Path, given: argparse.Namespace, records: Records) -> None:
    """Measure one results folder, in turns with the other checkout, and record the least."""
    codes = {"ours": ROOT} | ({"other": given.against.resolve()} if given.against else {})
    taken: dict[str, list[dict[str, Cost]]] = {side: [] for side in codes}
    for _ in range(given.repeats):
        for side, code in codes.items():
            taken[side].append(reported(code, results, given.work / side))
    best = {side: min(runs, key=lambda costs: together(costs).cpu) for side, runs in taken.items()}
    for costs in best.values():
        costs["together"] = together(costs)
    for part in (*PARTS, "together"):
        ours, *other = (costs[part] for costs in best.values())
        records.add(f"{name}: {part}", "CPU s", ours.cpu, other[0].cpu if other else None)
        records.add(f"{name}: {part}", "peak MB", ours.rss, other[0].rss if other else None)
    whole = best["ours"]["together"]
    records.add(f"{name}: together (other: goal)", "CPU s", whole.cpu, GOALS[name], 1.0)
    if given.against:
        differing = unlike(given.work / "ours", given.work / "other")
        print(f"{name}: files that differ from the other's: {', '.join(differing) or 'none'}")


def main() -> None:
    """Measure, print a table and write the records."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--results", type=Path, required=True, help="a finished run")
    parser.add_argument("--against", type=Path, metavar="CHECKOUT", help="compare with this code")
    parser.add_argument("--rows", type=int, default=300, help="merges a table (default: 300)")
    parser.add_argument("--repeats", type=int, default=2, help="of which the least counts")
    parser.add_argument("--work", type=Path, help="keep reports and the many rows in this folder")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the records here")
    given = parser.parse_args()
    print(f"{platform.platform()}, {describe()['processor']}; least of {given.repeats}")
    given.results, records = given.results.resolve(), Records()
    with tempfile.TemporaryDirectory() as made:
        given.work = (given.work or Path(made)).resolve()
        compared("as it is", given.results, given, records)
        shutil.rmtree(given.work / "alone", ignore_errors=True)
        alone(given.results, given.work / "alone")
        compared("scores alone", given.work / "alone", given, records)
        if given.rows:
            folder = given.work / f"rows{given.rows}"
            if not (folder / "config.json").exists():
                shutil.rmtree(folder, ignore_errors=True)
                many(given.results, folder, given.rows)
            compared("many rows", folder, given, records)
    if given.json:
        write_text(given.json, json.dumps(records.rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
