"""The paper's stated values and claims, read from `report/published/` and checked."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from common.errors import UserError, nearest
from common.sources import ROOT

SAID = ("above", "below", "near", "matches", "not_above")  # of a difference; see report.verdicts
PAPER = ROOT / "report" / "published" / "merging-in-a-bottle.yaml"
# What the claims came to in the experiments whose scores are kept; `report.together` reads it.
CLAIMS = ROOT / "docs" / "results" / "claims.json"


@dataclass(frozen=True)
class Claim:
    """A claim of the paper that a reproduction can test."""

    id: str  # C1, C2 ...
    sentence: str
    tables: tuple[str, ...]  # the tables that bear on it
    tests: tuple[Mapping[str, Any], ...] = ()  # how it is decided; the file of the values says how


@dataclass(frozen=True)
class PublishedRow:
    """A row of a published table."""

    label: str
    ours: tuple[str, ...]  # ids of the configuration's rows that stand for it
    cells: Mapping[str, float]  # stated values by column; every other cell is unknown


@dataclass(frozen=True)
class PublishedTable:
    """What the text states of one table."""

    title: str
    columns: tuple[str, ...]
    rows: Mapping[str, PublishedRow]  # its rows by name
    statements: tuple[str, ...]


@dataclass(frozen=True)
class Published:
    """A paper's results as data."""

    paper: Mapping[str, Any]  # title, authors, identifier, year
    scale: str  # what kind of models its numbers are of
    tables: Mapping[str, PublishedTable]
    claims: tuple[Claim, ...]
    unknown: tuple[str, ...]  # what the paper leaves open


def _row(where: str, columns: tuple[str, ...], row: Mapping[str, Any]) -> PublishedRow:
    cells = {}
    for column, value in row["cells"].items():
        if column not in columns:
            raise UserError(f"{where}: unknown column {column!r}{nearest(column, columns)}")
        if value is None:
            continue
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1:
            raise UserError(f"{where}, {column}: {value!r} is not a score between 0 and 1")
        cells[column] = float(value)
    return PublishedRow(row["label"], tuple(row["ours"]), cells)


def _tests(claim: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    return claim.get("tests") or []


def _test(
    where: str, test: Mapping[str, Any], tables: Mapping[str, PublishedTable]
) -> Mapping[str, Any]:
    """Check a claim's test; see the file of the paper's values."""
    table = test["table"]
    if table not in tables:
        raise UserError(f"{where}: unknown table {table!r}{nearest(table, tables)}")
    said = test.get("is", "near" if "price" in test else None)
    if said not in SAID:
        raise UserError(f"{where}: unknown 'is' {said!r}{nearest(str(said), SAID)}")
    rows = [] if "same_but" in test else [test["row"], *test["than"]]
    known = [*tables[table].rows, "others"]
    for row in rows if tables[table].rows else ():
        if row not in known:
            raise UserError(f"{where}: unknown row {row!r}{nearest(row, known)}")
    return test


def load(path: Path = PAPER) -> Published:
    """Read and check a file of published values.

    Args:
        path: A YAML file like `report/published/merging-in-a-bottle.yaml`.

    Returns:
        The paper's values, statements and claims.

    Raises:
        UserError: The file is missing or wrong, with the place.
    """
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
        tables = {}
        for name, table in content["tables"].items():
            columns = tuple(table["columns"])
            rows = {
                row: _row(f"{path.name}: {name}.{row}", columns, about)
                for row, about in table["rows"].items()
            }
            tables[name] = PublishedTable(table["title"], columns, rows, tuple(table["statements"]))
        claims = tuple(
            Claim(
                claim["id"],
                claim["sentence"],
                tuple(claim["tables"]),
                tuple(_test(f"{path.name}: claim {claim['id']}", t, tables) for t in _tests(claim)),
            )
            for claim in content["claims"]
        )
        published = Published(
            content["paper"], content["scale"], tables, claims, tuple(content["unknown"])
        )
    except FileNotFoundError:
        raise UserError(f"{path}: no such file of published values; correct the path") from None
    except (yaml.YAMLError, AttributeError, KeyError, TypeError) as error:
        raise UserError(
            f"{path}: not a file of published values ({' '.join(str(error).split())}); "
            "compare it with report/published/merging-in-a-bottle.yaml"
        ) from None
    # A claim is cited by its number, so a gap or a second C2 would cite another sentence.
    for number, claim in enumerate(claims, 1):
        if claim.id != f"C{number}":
            raise UserError(f"{path}: claim {claim.id!r} is in the place of C{number}")
        for table in claim.tables:
            if table not in tables:
                raise UserError(
                    f"{path}: claim {claim.id}: unknown table {table!r}{nearest(table, tables)}"
                )
    return published
