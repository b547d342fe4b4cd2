"""Command line of `python -m search front`: the merges of a search that no other one beats."""

from __future__ import annotations

import argparse
import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from common import manifest
from common.cli import add_values, command_parser, json_list, pairs
from common.errors import UserError
from common.files import staged_directory, write_text
from merges.engine.checks import check_output
from search import replay
from search.evaluation import Evaluation
from search.goals.dominance import fronts, growth, representatives
from search.goals.informed import goals_of
from search.record import TABLE, check_groups, read_table

FRONT, GROWTH, FIGURE = "front.csv", "hypervolume.csv", "front.svg"
_NO_GENES = ("evaluation", "dev_average", "full_average", "failure")
_DESCRIPTION = """\
Show the candidates of a finished search that no other candidate beats: none is at least as good in
all goals and better in one. Works for every search, whichever its algorithm. Writes front.csv,
hypervolume.csv (the volume that the front dominates, after each evaluation) and front.svg; with
--write K also the models of K members that together dominate most. Nothing is evaluated.
"""
_EPILOG = """\
examples:
  python -m search front --of merges/nsga2 --out fronts/nsga2
  python -m search front --of merges/nsga2 --out fronts/nsga2 --write 3 --base models/base \\
      --experts ja=models/ja math=models/math
  python -m search front --of merges/evolutionary --goals '[["mine/a", "mine/b"], ["mine/c"]]' \\
      --out fronts/evolutionary
"""


def build_parser() -> argparse.ArgumentParser:
    """Build the command line's parser."""
    parser = command_parser("search front", _DESCRIPTION, _EPILOG)
    about = "the result of a finished search"
    parser.add_argument("--of", type=Path, required=True, metavar="DIR", help=about)
    about = (
        "lists of tasks; a goal is the mean over its list (default: the goals of the search; "
        "of one without, its average's columns, or each task)"
    )
    parser.add_argument("--goals", metavar="JSON", help=about)
    about = "how many members' models are written (0)"
    parser.add_argument("--write", type=int, default=0, metavar="K", help=about)
    parser.add_argument("--base", type=Path, metavar="DIR", help="with --write: as searched with")
    add_values(parser, "--experts", metavar="NAME=DIR", help="with --write: as searched with")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR")
    return parser


def _goals(given: argparse.Namespace, search: Mapping[str, Any]) -> list[list[str]]:
    """Return the goals, each a list of tasks."""
    columns = search["average"]
    tasks = list(dict.fromkeys(task for column in columns for task in column))
    if given.goals is not None:
        goals = json_list(given.goals, "--goals")
        try:
            check_groups(tasks, goals)
        except UserError as error:
            raise UserError(f"--goals: {str(error).replace('the average', 'a goal')}") from None
        return goals
    return search.get("goals") or (columns if len(columns) > 1 else [[task] for task in tasks])


def _history(rows: Sequence[Mapping[str, str]], goals: Sequence[Sequence[str]]) -> list[Evaluation]:
    """Read the candidates of a table; of those that failed, only their number."""
    tasks = {task for goal in goals for task in goal}
    if lacking := sorted(tasks - rows[0].keys()):
        raise UserError(f"{TABLE} has no scores of {lacking[0]}: search again, or give --goals")
    found = []
    for row in rows:
        average = float(row["dev_average"]) if row["dev_average"] else None
        scores = {} if average is None else {task: float(row[task]) for task in tasks}
        found.append(Evaluation(int(row["evaluation"]), {}, average, scores, row["failure"]))
    return found


def members(points: np.ndarray) -> list[int]:
    """Return the undominated points; of equal ones the first.

    Args:
        points: Float64 [n, goals].
    """
    seen: dict[tuple[float, ...], int] = {}
    for n in fronts(points)[0]:
        seen.setdefault(tuple(points[n]), n)
    return sorted(seen.values())


def _csv(rows: Sequence[Sequence[Any]]) -> str:
    stream = io.StringIO()
    csv.writer(stream, lineterminator="\n").writerows(rows)
    return stream.getvalue()


def title(goal: Sequence[str]) -> str:
    """Name a goal by its tasks, without their suites where it has more than one."""
    return goal[0] if len(goal) == 1 else " + ".join(task.partition("/")[2] for task in goal)


def draw(
    path: Path,
    titles: Sequence[str],
    scores: Sequence[Sequence[float]],
    averages: Sequence[float],
    volumes: Sequence[float],
) -> None:
    """Draw a front, one line for each member over the goals, and how its volume grew.

    Args:
        path: The SVG to write.
        titles: The goals' names.
        scores: By member, its score in each goal.
        averages: By member, its dev average: its colour.
        volumes: The hypervolume after each evaluation.
    """
    from matplotlib import colormaps, rc_context
    from matplotlib.figure import Figure

    # Equal scores give an equal file: no random identifiers, no date.
    with rc_context({"svg.hashsalt": "front", "font.size": 8, "axes.grid": True}):
        figure = Figure(figsize=(8.4, 3.4), layout="constrained")
        left, right = figure.subplots(1, 2, width_ratios=(2, 1))
        low, high = min(averages), max(averages)
        for values, average in zip(scores, averages, strict=True):
            shade = colormaps["viridis"]((average - low) / (high - low) if high > low else 1.0)
            left.plot(range(len(titles)), values, color=shade, linewidth=1, marker="o", ms=3)
        names = [name.replace("$", r"\$") for name in titles]
        left.set_xticks(range(len(titles)), names, rotation=30, ha="right")
        left.set_title(f"{len(scores)} merges that no other beats (darker: lower average)")
        right.step(range(1, len(volumes) + 1), volumes, where="post", color="black")
        right.set_title("Hypervolume")
        right.set_xlabel("evaluations")
        figure.savefig(path, format="svg", metadata={"Date": None})


def _write_models(
    given: argparse.Namespace, folder: Path, rows: Sequence[Mapping[str, str]], chosen: list[int]
) -> None:
    """Write the models of some candidates into a folder each, named by their numbers."""
    record = manifest.read_manifest(given.of)
    opened = replay.reopen(given, record)
    for n in chosen:
        inner = folder / "models" / rows[n]["evaluation"]
        inner.mkdir(parents=True)
        about = {
            "chosen": int(rows[n]["evaluation"]),
            "front_of": len(rows),
            "evaluations": len(rows),
            "dev_average": float(rows[n]["dev_average"]),
        }
        genome = replay.genome_of(opened[2], rows[n])
        replay.write_candidate(inner, record, opened, genome, about, ("search/goals/front.py",))


@dataclass(frozen=True)
class Front:
    """The front of a finished search.

    Attributes:
        goals: The goals, each a list of tasks.
        members: Its candidates' numbers, the best average first.
        scores: By member, its score in each goal.
        averages: By member, its dev average.
        volumes: The hypervolume after each evaluation of the search.
    """

    goals: list[list[str]]
    members: list[int]
    scores: list[list[float]]
    averages: list[float]
    volumes: list[float]


def front_of(rows: Sequence[Mapping[str, str]], goals: list[list[str]]) -> Front:
    """Find the front of a search.

    Args:
        rows: Its table, as `read_table` reads it.
        goals: The goals, each a list of tasks.

    Raises:
        UserError: The table lacks a task of the goals.
    """
    history = _history(rows, goals)
    scored = [n for n, item in enumerate(history) if item.average is not None]
    points = np.array([goals_of(history[n], goals) for n in scored])
    best = sorted((scored[n] for n in members(points)), key=lambda n: (-history[n].rank, n))
    after, volumes = iter(growth(points)), [0.0]
    for item in history:  # a candidate that failed adds nothing
        volumes.append(volumes[-1] if item.average is None else next(after))
    scores = [goals_of(history[n], goals) for n in best]
    return Front(goals, best, scores, [history[n].rank for n in best], volumes[1:])


def _write_tables(folder: Path, rows: Sequence[Mapping[str, str]], front: Front) -> None:
    """Write both tables and the figure."""
    titles = [title(goal) for goal in front.goals]
    genes = [name for name in rows[0] if name not in _NO_GENES and "/" not in name]
    lines = [["evaluation", "dev_average", *titles, *genes]]
    for n, scores in zip(front.members, front.scores, strict=True):
        own = [rows[n][gene] for gene in genes]
        lines.append([rows[n]["evaluation"], rows[n]["dev_average"], *map(repr, scores), *own])
    write_text(folder / FRONT, _csv(lines))
    volumes = [(n, repr(volume)) for n, volume in enumerate(front.volumes, 1)]
    write_text(folder / GROWTH, _csv([("evaluations", "hypervolume"), *volumes]))
    draw(folder / FIGURE, titles, front.scores, front.averages, front.volumes)


def main(argv: Sequence[str]) -> int:
    """Run the command line.

    Raises:
        UserError: What the user can fix.
    """
    given = build_parser().parse_args(argv)
    if given.write < 0:
        raise UserError(f"--write {given.write}: give 0 or more")
    if given.write and (given.base is None or not given.experts):
        raise UserError("--write needs --base DIR and --experts NAME=DIR, as searched with")
    rows = read_table(given.of)
    record = manifest.read_manifest(given.of)
    if "search" not in record.get("parameters", {}):
        raise UserError(f"{given.of}: no result of `python -m search`; give one")
    front = front_of(rows, _goals(given, record["parameters"]["search"]))
    models = [given.base] if given.base else []
    check_output(given.out, [given.of, *models, *pairs(given.experts, "--experts").values()])
    # The folder appears complete: tables without the models that were asked for are no result.
    chosen = [front.members[n] for n in representatives(front.scores, given.write)]
    with staged_directory(given.out) as folder:
        _write_tables(folder, rows, front)
        if chosen:
            _write_models(given, folder, rows, chosen)
        manifest.write_manifest(
            folder / manifest.NAME,
            kind="front",
            parameters={"goals": front.goals, "models": chosen},
            inputs={"search": given.of},
            outputs={name: folder / name for name in (FRONT, GROWTH, FIGURE)},
            seed=None,
            code=("search/goals/front.py",),
        )
    written = f", with the models of {', '.join(map(str, chosen))}" if chosen else ""
    print(
        f"front: {len(front.members)} of {len(rows)} candidates are beaten by none in "
        f"{len(front.goals)} goals, hypervolume {front.volumes[-1]:.4f}; written to "
        f"{given.out}{written}"
    )
    return 0
