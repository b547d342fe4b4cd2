"""Readers of the formats in which data sets are published; each gives rows as mappings."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

from common.errors import UserError
from common.files import MALFORMED


def _read_text(path: Path) -> str:
    try:
        # Line ends are kept as they are: the csv module must see those inside quotes.
        with open(path, encoding="utf-8-sig", newline="") as stream:
            return stream.read()
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 ({error}); get the file again") from None


def read_plain_tsv(path: Path) -> list[list[str]]:
    """Read the fields of each line of tab-separated text in which quotes have no meaning.

    Lines may end in LF or CRLF; empty ones are skipped.

    Raises:
        UserError: Lines differ in their number of fields, as in a truncated file.
    """
    lines = [line.rstrip("\r") for line in _read_text(path).split("\n")]
    rows = [line.split("\t") for line in lines if line]
    for number, row in enumerate(rows, 1):
        if len(row) != len(rows[0]):
            raise UserError(
                f"{path}, line {number}: {len(row)} fields where the first line has "
                f"{len(rows[0])}; the file is damaged: get it again"
            )
    return rows


def read_tsv(path: Path) -> list[dict[str, str]]:
    """Read a tab-separated table with a header line; see `read_plain_tsv`."""
    header, *rows = read_plain_tsv(path) or [[]]
    return [dict(zip(header, row, strict=True)) for row in rows]


def read_csv(path: Path) -> list[dict[str, str]]:
    """Read a comma-separated table with a header line, quoted as RFC 4180 says.

    Raises:
        UserError: A row has more or fewer fields than the header.
    """
    csv.field_size_limit(1 << 30)  # articles exceed the module's default of 128 KiB
    rows = list(csv.DictReader(io.StringIO(_read_text(path), newline="")))
    for number, row in enumerate(rows, 1):
        if None in row or None in row.values():
            raise UserError(
                f"{path}, row {number}: not as many fields as the header; the file is damaged: "
                "get it again"
            )
    return rows


def read_jsonl_rows(path: Path) -> list[Any]:
    """Read one JSON value a line; only LF ends a line, for texts hold other separators.

    Raises:
        UserError: A line is not JSON.
    """
    rows = []
    for number, line in enumerate(_read_text(path).split("\n"), 1):
        if line.strip():
            try:
                rows.append(json.loads(line))
            except MALFORMED as error:
                raise UserError(
                    f"{path}, line {number}: not valid JSON ({error}); the file is damaged: "
                    "get it again"
                ) from None
    return rows


def read_json_or_lines(path: Path) -> Any:
    """Read a .json file: its one value, or the list of its lines' values.

    Raises:
        UserError: It is neither.
    """
    try:
        return json.loads(_read_text(path))
    except MALFORMED:
        return read_jsonl_rows(path)


def read_parquet(path: Path) -> list[dict[str, Any]]:
    """Read a Parquet table.

    Raises:
        UserError: The file is not Parquet, or is truncated.
    """
    import pyarrow
    import pyarrow.parquet

    try:
        return pyarrow.parquet.read_table(path).to_pylist()
    except (pyarrow.ArrowInvalid, OSError) as error:
        problem = str(error).splitlines()[0]
        raise UserError(f"{path}: not a Parquet file ({problem}); get the file again") from None


_READERS = {
    ".tsv": read_tsv,
    ".csv": read_csv,
    ".json": read_json_or_lines,
    ".jsonl": read_jsonl_rows,
    ".parquet": read_parquet,
}


def read_table(path: Path) -> Any:
    """Read the rows of a .tsv, .csv, .jsonl or .parquet file, or the value of a .json file."""
    return _READERS[path.suffix](path)
