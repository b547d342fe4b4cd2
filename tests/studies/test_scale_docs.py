"""The study of scale's page against its record: every mean of its tables, computed again."""

from __future__ import annotations

import csv
import json
import re
from collections import defaultdict
from pathlib import Path
from statistics import fmean

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "studies/scale/README.md").read_text(encoding="utf-8")
METHODS = {
    "Average": "average",
    "Task arithmetic": "task_arithmetic",
    "TIES": "ties",
    "DARE-TIES": "dare_ties",
    "DAM": "dam",
    "base": "base",
    "multitask": "multitask",
}
NAMES = {
    "CKA": "cka",
    "score of mergelens": "mergelens",
    "loss half-way": "midpoint",
    "unevenness of lengths": "unevenness",
    "sign conflict": "conflict",
    "effective rank": "rank",
    "number of experts": "experts",
}


def tables() -> list[tuple[list[str], list[list[str]]]]:
    """Return the page's tables: header and rows, as texts."""
    found = []
    for block in re.findall(r"(?:^\|.*\n)+", PAGE, re.MULTILINE):
        header, _, *rows = [
            [cell.strip() for cell in line.strip("|").split("|")] for line in block.splitlines()
        ]
        found.append((header, rows))
    return found


def mean_of(value: str, size: str, method: str, experts: int) -> str:
    """Compute a mean over sets, then over worlds, as the page writes it."""
    worlds: dict[str, list[float]] = defaultdict(list)
    with (ROOT / "docs/data/study-scale.csv").open(encoding="utf-8") as stream:
        for row in csv.DictReader(stream):
            own = (row["size"], row["base"], row["method"], row["experts"])
            if own == (size, "strong", method, str(experts)):
                worlds[row["seed"]].append(float(row[value]))
    assert len(worlds) == 3
    return f"{fmean(map(fmean, worlds.values())):.3f}".removeprefix("0")


def test_every_mean_is_that_of_the_record():
    held_in, held_out, by_task = (table for table in tables() if table[0][0] == "size")
    for size, label, *cells in held_in[1]:
        wanted = [mean_of("held_in", size, METHODS[label], k) for k in (2, 4, 6, 8)]
        assert cells == wanted, (size, label)
    for (header, rows), tasks in ((held_out, False), (by_task, True)):
        labels = [METHODS[label] for label in header[1 + tasks :]]
        counts = [0 if label in ("base", "multitask") else 8 for label in labels]
        for size, *cells in rows:
            value = cells.pop(0) if tasks else "held_out"
            pairs = zip(labels, counts, strict=True)
            wanted = [mean_of(value, size, label, count) for label, count in pairs]
            assert cells == wanted, (size, value)


def test_the_worth_of_measures_is_that_of_the_record():
    worth = json.loads((ROOT / "checkpoints/worth.json").read_text(encoding="utf-8"))
    [rows] = (rows for header, rows in tables() if header[0] == "measure")
    assert {NAMES.get(row[0], row[0]) for row in rows} == set(worth)
    for name, better, every, equal, earned, _ in rows:
        own = worth[NAMES.get(name, name)]
        for text, found in ((every, own), (equal, own["equal"])):
            numbers = [float(number) for number in re.findall(r"[-+]\d?\.\d+", text)]
            wanted = [] if found is None else [found[end] for end in ("rho", "low", "high")]
            assert numbers == pytest.approx(wanted, abs=5.1e-4), name
        assert (better in ("higher",)) == own["higher"], name
        assert earned == ("" if own["equal"] is None else "yes" if own["earned"] else "no"), name
