"""The study of quality against price: the search's budget curve and what it says of claim C2."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common.errors import UserError
from common.manifest import read_manifest
from report import fields
from report.averages import Score, spread
from report.cost import amount, read_cost
from report.experiment import Case, Model
from report.grid import MISSING, Cell, Grid, Row, number
from report.intervals import difference, mean
from report.load import load_case, read_scores
from report.verdicts import MUCH_LOWER

FOLDER = "studies/cost"


@dataclass(frozen=True)
class Look:
    """One row with one seed after a number of dev evaluations."""

    case: str  # its case study
    row: str  # id of its row
    label: str  # the row's title
    seed: int  # seed of its search and data draw
    evaluations: int  # dev evaluations spent
    dev: float | None  # best dev average until then; None where nothing was chosen
    test: Score  # test average of that model
    flops: float  # FLOPs spent until then, the teachers that it learned from included
    cpu_s: float  # CPU seconds of the same. Of a search in proportion to its evaluations


def _best_dev(path: Path, evaluations: int) -> float | None:
    if not path.exists() or not evaluations:
        return None
    with path.open(encoding="utf-8", newline="") as stream:
        tried = [row["dev_average"] for row in csv.DictReader(stream)][:evaluations]
    return max((float(average) for average in tried if average), default=None)


def _looks(results: Path, case: Case, row: str, label: str, seed: int) -> Iterator[Look]:
    run = results / FOLDER / case.id / row / f"seed{seed}"
    scores = {
        int(found[1]): path
        for path in run.glob("test/after*.json")
        if (found := re.fullmatch(r"after(\d+)\.json", path.name))
    }
    if not scores:
        return
    manifest = read_manifest(run / "model" / "manifest.json")
    (made,) = read_cost(run / "model" / "cost.json", "search", case.id, row)
    whole = manifest.get("parameters", {}).get("search", {}).get("evaluations", 0)
    taught = []
    if "teachers" in manifest.get("inputs", {}):
        taught = list(read_cost(results / case.id / "teachers/cost.json", "teachers", case.id, ""))
    for evaluations, path in sorted(scores.items()):
        share = evaluations / whole if whole else 1.0
        average = case.average(Model(row, label, "merge", tasks=read_scores(path)[0]))
        if average is None:
            raise UserError(f"{path}: lacks a task of the average; evaluate the model again")
        yield Look(
            *(case.id, row, label, seed, evaluations),
            _best_dev(run / "model" / "search.csv", evaluations),
            average,
            share * made.flops + sum(cost.flops for cost in taught),
            share * made.cpu_s + sum(cost.cpu_s for cost in taught),
        )


def load_looks(config: Mapping[str, Any], results: Path) -> list[Look]:
    """Read the study's runs, as far as they have been scored.

    Returns:
        In the order of cases, rows, seeds and evaluations.

    Raises:
        UserError: Nothing of the study has been scored.
    """
    study = config["studies"]["cost"]
    looks: list[Look] = []
    for name in study["cases"]:
        case = load_case(config, results, name)
        for row in study["rows"]:
            for seed in study["seeds"]:
                looks += _looks(results, case, row, config["methods"][row]["label"], seed)
    if not looks:
        raise UserError(
            f"no scores in {results / FOLDER}: run `python -m workflow study cost` first"
        )
    return looks


def grouped(looks: Sequence[Look]) -> dict[tuple[str, str, int], list[Look]]:
    """Group looks that differ in nothing but the seed, by case, row and evaluations."""
    groups: dict[tuple[str, str, int], list[Look]] = {}
    for look in looks:
        groups.setdefault((look.case, look.row, look.evaluations), []).append(look)
    return groups


def study_csv(looks: Sequence[Look]) -> str:
    """Write one row per look, for programs."""
    header = ["case", "row", "label", "seed", "evaluations", "dev_average"]
    rows: list[list[Any]] = [[*header, *fields.score_titles("test_average"), "flops", "cpu_s"]]
    for look in looks:
        start = [look.case, look.row, look.label, look.seed, look.evaluations]
        cost = [f"{look.flops:.0f}", f"{look.cpu_s:.3f}"]
        rows.append([*start, fields.decimals(look.dev), *fields.score_fields(look.test), *cost])
    return fields.text(rows)


def _spread_cell(values: Sequence[float | None]) -> Cell:
    total = spread(values)
    if total is None:
        return Cell(MISSING)
    return Cell(number(total.mean), "" if total.deviation is None else number(total.deviation))


def study_grid(looks: Sequence[Look], config: Mapping[str, Any]) -> Grid:
    """Lay out the study for people: means and deviations over the seeds."""
    rows = []
    for (case, _, evaluations), group in grouped(looks).items():
        cells = [
            *(Cell(case), Cell(group[0].label), Cell(str(evaluations)), Cell(str(len(group)))),
            _spread_cell([look.dev for look in group]),
            _spread_cell([look.test.value for look in group]),
            Cell(amount(mean([look.flops for look in group]))),
            Cell(f"{mean([look.cpu_s for look in group]):.1f}"),
        ]
        rows.append(Row(tuple(cells), f"{case} {group[0].row}"))
    seeds = ", ".join(map(str, config["studies"]["cost"]["seeds"]))
    caption = (
        f"Best model after a number of dev evaluations: mean ± sample standard deviation over the "
        f"seeds {seeds} of search and data draw; base, experts and items stay. FLOPs and CPU "
        "seconds are of making it: a search's in proportion to its evaluations, and with the "
        "whole cost of the teachers' signal where it learned from one."
    )
    header = ("Case", "Row", "Evaluations", "Seeds", "Best dev", "Test average", "FLOPs", "CPU s")
    notes = tuple(claim(looks, config, case) for case in config["studies"]["cost"]["cases"])
    return Grid(FOLDER, "Quality against price", caption, header, tuple(rows), notes, texts=2)


def claim(looks: Sequence[Look], config: Mapping[str, Any], case: str) -> str:
    """Say in a line what a case shows of claim C2, with numbers and their uncertainty."""
    study = config["studies"]["cost"]
    groups = grouped([look for look in looks if look.case == case])
    ours, theirs = (
        [group for (_, row, _), group in groups.items() if row == study[name]]
        for name in ("dam", "search")
    )
    if not ours or not theirs:
        return f"C2, {case}: {study['dam']} or {study['search']} has not been scored."
    # The last look has the full budget.
    dam, search = ours[-1], theirs[-1]
    gap, width = difference([look.test for look in dam], [look.test for look in search])
    if gap - width > 0:
        quality = "beats"
    else:
        quality = "stays behind" if gap + width < 0 else "cannot be distinguished from"
    flops, cpu_s = (
        mean([getattr(look, name) for look in search]) / mean([getattr(look, name) for look in dam])
        for name in ("flops", "cpu_s")
    )
    holds = gap + width >= 0 and flops >= MUCH_LOWER
    as_dear = [group for group in theirs if group[0].flops <= mean([look.flops for look in dam])]
    line = (
        f"C2, {case}: {dam[0].label} {quality} {search[0].label}: "
        f"{gap:+.3f} ± {width:.3f} (95 %, {len(dam)} and {len(search)} seeds), with "
        f"{1 / flops:.2f} times its FLOPs and {1 / cpu_s:.2f} times its CPU seconds. "
    )
    if as_dear:
        reached = mean([look.test.value for look in as_dear[-1]])
        line += (
            f"With no more FLOPs than {dam[0].label} the search is at {reached:.3f}, after "
            f"{as_dear[-1][0].evaluations} evaluations. "
        )
    return line + (
        f"The claim {'holds' if holds else 'does not hold'} here: it needs a quality not shown to "
        f"be lower, for at most 1/{MUCH_LOWER:g} of the FLOPs."
    )
