"""The table of references to the hub, paper/hub.tsv, which people edit."""

from __future__ import annotations

import csv
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from common.errors import UserError, nearest
from common.sources import ROOT

TABLE = ROOT / "paper" / "hub.tsv"
KINDS = ("model", "dataset")
# Files that come with a model's weights; of weights only those that its index names are taken.
_MODEL_FILES = ("*.json", "*.txt", "*.model", "*.jinja")
_COLUMNS = (
    *("id", "kind", "repository", "revision", "gb", "parameters", "licence", "gated"),
    *("pickle", "files", "note"),
)
_REPOSITORY = re.compile(r"[\w.-]+/[\w.-]+")
_COMMIT = re.compile(r"[0-9a-f]{40}")
_N = TypeVar("_N", int, float)


@dataclass(frozen=True)
class Reference:
    """One row of the table.

    Attributes:
        id: The name by which configurations refer to it.
        kind: ``model`` or ``dataset``.
        repository: ``owner/name`` on the hub.
        revision: Full commit; empty where it could not be looked up when the table was made.
        gb: Size of the files to fetch in GB (10^9 bytes), None where unknown.
        parameters: Of a model, the number of its parameters, None where unknown.
        licence: As its page says; empty where unknown.
        gated: Whether a token of somebody who accepted the licence is needed.
        pickle: Whether weights that exist only as pickles may be taken.
        files: Patterns of the data files of a data set, relative to the repository.
        note: For readers.
    """

    id: str
    kind: str
    repository: str
    revision: str
    gb: float | None
    parameters: int | None
    licence: str
    gated: bool
    pickle: bool
    files: tuple[str, ...]
    note: str

    @property
    def patterns(self) -> tuple[str, ...]:
        """Patterns of the files to fetch: of a data set all, of a model those without weights."""
        return _MODEL_FILES if self.kind == "model" else self.files

    @property
    def page(self) -> str:
        """Address of its page, for people."""
        folder = "" if self.kind == "model" else "datasets/"
        return f"https://huggingface.co/{folder}{self.repository}"


def _flag(text: str, where: str, column: str) -> bool:
    if text not in ("yes", "no"):
        raise UserError(f"{where}: {column} is {text!r}; write yes or no")
    return text == "yes"


def _number(text: str, kind: type[_N], where: str, column: str) -> _N | None:
    if not text:
        return None
    try:
        value = kind(text)
    except ValueError:
        value = kind(-1)
    if not 0 < value < math.inf:  # nan is in no order
        raise UserError(f"{where}: {column} is {text!r}; write a positive number, or nothing")
    return value


def _reference(row: Mapping[str, str], where: str) -> Reference:
    if row["kind"] not in KINDS:
        raise UserError(f"{where}: kind is {row['kind']!r}{nearest(row['kind'], KINDS)}")
    if not _REPOSITORY.fullmatch(row["repository"]):
        raise UserError(f"{where}: repository is {row['repository']!r}; write owner/name")
    if row["revision"] and not _COMMIT.fullmatch(row["revision"]):
        raise UserError(
            f"{where}: revision is {row['revision']!r}; write the commit's 40 digits, which do "
            "not move as a branch or a tag does, or nothing"
        )
    if row["kind"] == "dataset" and not row["files"]:
        raise UserError(f"{where}: a data set needs files, patterns such as data/*.parquet")
    return Reference(
        id=row["id"],
        kind=row["kind"],
        repository=row["repository"],
        revision=row["revision"],
        gb=_number(row["gb"], float, where, "gb"),
        parameters=_number(row["parameters"], int, where, "parameters"),
        licence=row["licence"],
        gated=_flag(row["gated"], where, "gated"),
        pickle=_flag(row["pickle"], where, "pickle"),
        files=tuple(row["files"].split()),
        note=row["note"],
    )


def read_table(path: Path = TABLE) -> dict[str, Reference]:
    """Read the table: its references by id, in its order.

    Raises:
        UserError: The file is missing or a field is wrong; names line and column.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; correct the path, or restore the table") from None
    except (IsADirectoryError, UnicodeDecodeError):
        raise UserError(f"{path}: is no text in UTF-8; correct the path, or restore it") from None
    header = lines[0].split("\t") if lines else []
    if tuple(header) != _COLUMNS:
        raise UserError(f"{path}: the first line must hold, by tabs: {' '.join(_COLUMNS)}")
    references: dict[str, Reference] = {}
    rows = csv.reader(lines[1:], delimiter="\t", quoting=csv.QUOTE_NONE)
    for number, fields in enumerate(rows, 2):
        where = f"{path}, line {number}"
        if len(fields) != len(header):
            raise UserError(f"{where}: {len(fields)} fields; {len(header)} are needed, by tabs")
        reference = _reference(dict(zip(header, fields, strict=True)), where)
        if reference.id in references:
            raise UserError(f"{where}: {reference.id} is in the table twice; rename one")
        references[reference.id] = reference
    return references


def find(name: str, path: Path = TABLE) -> Reference:
    """Look a reference up by its id.

    Raises:
        UserError: There is none, or the table is damaged.
    """
    references = read_table(path)
    if name not in references:
        raise UserError(f"{path} has no reference {name!r}{nearest(name, references)}")
    return references[name]
