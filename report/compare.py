"""Compares the tables of two runs: which cells agree within their printed errors."""

from __future__ import annotations

import csv
import io
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from common.errors import UserError, reason_of
from common.files import write_text
from report import fields, kept, tables
from report.differing import differences
from report.experiment import Experiment
from report.grid import number

_NAMES = ("case", "expert", "id", "seed", "column", "task")  # the fields that name a row
_SEED = re.compile(r"\bseed -?\d+\b")
# Tables of single worlds, whose errors are over items or over draws of a method's data.
_IN_ONE_WORLD = ("experts", "table3")
# How a file titles a value and its error, in the order of preference.
_ERRORS = (("{}", "{} stderr"), ("{} mean", "{} sd"), ("value", "stderr"))
_HEADER = ("table", "row", "column", "first", "first error", "second", "second error", "errors")
_MOST = 2  # combined errors that may separate two cells that agree
_SLACK = 1e-9  # of the files' six decimals

Table = dict[tuple[str, str], tuple[str, str]]  # by row and column: value and error as written


@dataclass(frozen=True)
class Pair:
    """One cell of both folders.

    Attributes:
        row: The row's names, joined by a space.
        column: The column's title.
        first: Value and error in one folder, as the file has them; empty where there is none.
        second: The same in the other.
    """

    row: str
    column: str
    first: tuple[str, str]
    second: tuple[str, str]

    @property
    def of_world(self) -> bool:
        """Whether the cell is of a single world of several, with an error over its items alone."""
        return bool(_SEED.search(self.row) or _SEED.search(self.column))

    @property
    def errors(self) -> float:
        """How many combined errors separate the values; infinite where only one is there."""
        if not (self.first[0] and self.second[0]):
            return math.inf
        apart = abs(float(self.first[0]) - float(self.second[0]))
        combined = math.hypot(*(float(error or 0) for _, error in (self.first, self.second)))
        if apart <= _SLACK:
            return 0.0
        return (apart - _SLACK) / combined if combined else math.inf


def _columns(header: Sequence[str], path: Path) -> dict[str, tuple[str, str]]:
    """Find the columns that hold a value with an error: by title, the names of both fields."""
    found: dict[str, tuple[str, str]] = {}
    for value, error in _ERRORS:
        suffix = error.removeprefix("{}")
        for field in header:
            title = field.removesuffix(suffix)
            if field.endswith(suffix) and value.format(title) in header and title != field:
                found.setdefault(title or value, (value.format(title), field))
    if not found:
        raise UserError(f"{path}: no standard errors to compare by; make the tables again")
    return found


def _named(row: Mapping[str, str], field: str, several: bool) -> str:
    """Write a field of a row's name; of the seed, one among several, and not all of a mean."""
    if field != "seed":
        return row[field]
    return f"seed {row[field]}" if several and " " not in row[field] else ""


def _read(path: Path, text: str | None = None) -> Table:
    """Read a file's table, or one whose text is known and that the path only names."""
    try:
        with path.open(encoding="utf-8", newline="") if text is None else io.StringIO(text) as file:
            reader = csv.DictReader(file)
            columns, rows = _columns(reader.fieldnames or (), path), list(reader)
            several, table = len({row.get("seed") for row in rows} - {"", None}) > 1, {}
            for row in rows:
                parts = [_named(row, field, several) for field in _NAMES if row.get(field)]
                name = " ".join(filter(None, parts))
                for title, (value, error) in columns.items():
                    table[name, title] = (row[value] or "", row[error] or "")
                    _ = [float(text) for text in table[name, title] if text]
    except (OSError, UnicodeDecodeError, ValueError, KeyError, csv.Error) as error:
        raise UserError(f"{path}: no table ({reason_of(error)}); make the tables again") from None
    return table


def tables_of(experiment: Experiment) -> dict[str, Table]:
    """Return what `read_tables` reads of an experiment's tables, without their files."""
    texts = {Path(name): text for name, text in tables.csv_texts(experiment).items()}
    return {path.stem: _read(path, text) for path, text in texts.items()}


def read_tables(results: Path) -> dict[str, Table]:
    """Read every table of a run that holds values with errors, by name.

    Args:
        results: Folder of a finished run, or the file with a run's kept scores (`report.kept`).

    Raises:
        UserError: There are no tables, or one has no errors or is damaged.
    """
    if results.is_file():
        with kept.opened(results) as experiment:
            return tables_of(experiment)
    paths = sorted((results / "tables").glob("*.csv"))
    if not paths:
        raise UserError(
            f"{results}: no tables/*.csv; give the folder of a finished run (snakemake tables)"
        )
    return {path.stem: _read(path) for path in paths}


def pairs(first: Table, second: Table) -> list[Pair]:
    """Pair the cells of rows and columns that both tables have and at least one has filled."""
    return [
        Pair(*place, first[place], second[place])
        for place in first
        if place in second and (first[place][0] or second[place][0])
    ]


def _unshared(first: Mapping, second: Mapping, names: Sequence[object]) -> Iterator[str]:
    """Say which rows and columns only one of two tables has."""
    for ours, theirs, name in ((first, second, names[0]), (second, first, names[1])):
        for part, what in enumerate(("rows", "columns")):
            others = {place[part] for place in theirs}
            if only := dict.fromkeys(place[part] for place in ours if place[part] not in others):
                yield f"{what} only in {name}: {', '.join(only)}"


def _told(text: tuple[str, str]) -> str:
    value, error = (number(float(part)) if part else "none" for part in text)
    return f"{value} ± {error}"


@dataclass(frozen=True)
class Agreement:
    """How far one table of two runs agrees.

    Attributes:
        name: The table's.
        cells: Those of rows and columns that both have.
        notes: Which rows and columns only one of them has.
    """

    name: str
    cells: list[Pair]
    notes: list[str]

    def within(self, errors: float) -> int:
        """Count the cells that agree within so many combined errors."""
        return sum(cell.errors <= errors for cell in self.cells)

    @property
    def over_worlds(self) -> Agreement:
        """The part whose errors cover another training: means over worlds."""
        if self.name in _IN_ONE_WORLD or not any(cell.of_world for cell in self.cells):
            return Agreement(self.name, [], [])
        return Agreement(self.name, [cell for cell in self.cells if not cell.of_world], [])

    @property
    def equal(self) -> int:
        """How many cells are the same as written."""
        return sum(cell.first == cell.second for cell in self.cells)

    @property
    def apart(self) -> list[Pair]:
        """The cells that do not agree within two errors."""
        return [cell for cell in self.cells if cell.errors > _MOST]


def agreements(
    first: Mapping[str, Table], second: Mapping[str, Table], names: Sequence[object]
) -> list[Agreement]:
    """Compare all tables of two runs.

    Args:
        first: One run's; see `read_tables`.
        second: The other's.
        names: What notes call the two.
    """
    made = []
    for name in dict.fromkeys([*first, *second]):
        one, two = first.get(name, {}), second.get(name, {})
        made.append(Agreement(name, pairs(one, two), list(_unshared(one, two, names))))
    return made


def compare(results: Path, other: Path, out: Path | None = None) -> int:
    """Print how far the tables of two runs agree, and what else differs between the runs.

    Args:
        results: Results folder of one, or its kept scores.
        other: The same of the other.
        out: Gets all cells as CSV; None for no file.

    Returns:
        0 where both have the same rows and columns and all cells agree within two errors, else 1.

    Raises:
        UserError: A folder has no tables, or the two have no cell in common.
    """
    code, written = 0, [_HEADER]
    for table in agreements(read_tables(results), read_tables(other), (results, other)):
        print(
            f"{table.name}: {len(table.cells)} cells: {table.within(1)} agree within their "
            f"combined error, {table.within(_MOST)} within two, {table.equal} are equal to the byte"
        )
        means = table.over_worlds
        if means.cells:
            told = f"{means.within(1)}, {means.within(_MOST)} within two"
            print(f"  of {len(means.cells)} means over worlds, within their combined error {told}")
        notes = list(table.notes)
        for cell in table.apart:
            told = f"{_told(cell.first)} and {_told(cell.second)}"
            notes.append(f"{cell.row}, {cell.column}: {told} ({cell.errors:.1f} errors)")
        print("".join(f"  {note}\n" for note in notes), end="")
        code = code or int(bool(notes))
        for cell in table.cells:
            apart_by = fields.decimals(cell.errors)
            written.append((table.name, cell.row, cell.column, *cell.first, *cell.second, apart_by))
    if len(written) == 1:
        raise UserError(f"{results} and {other} have no cell in common: other experiments")
    print("".join(f"{line}\n" for line in differences(results, other)), end="")
    if out:
        write_text(out, fields.text(written))
    return code
