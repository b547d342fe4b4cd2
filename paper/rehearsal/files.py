"""Writes rows in the formats in which data sets are published."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any


def write_rows(path: Path, rows: Any) -> None:
    """Write rows in the format that a file's ending says.

    Args:
        path: A .parquet, .jsonl, .json or .csv file, or one of text; missing folders are made.
        rows: The rows as mappings of equal keys; of .json any value, of text the text.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".parquet":
        import pyarrow
        import pyarrow.parquet

        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    elif path.suffix == ".jsonl":
        lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        path.write_text("".join(lines), encoding="utf-8")
    elif path.suffix == ".json":
        path.write_text(json.dumps(rows, ensure_ascii=False), encoding="utf-8")
    elif path.suffix == ".csv":
        with open(path, "w", encoding="utf-8", newline="") as stream:
            table = csv.DictWriter(stream, list(rows[0]))
            table.writeheader()
            table.writerows(rows)
    else:
        path.write_text(rows, encoding="utf-8")
