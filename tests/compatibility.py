"""The page docs/compatibility.md, from the records that tests keep in docs/data/compatibility.

`python -m tests.compatibility` writes the page. A record is a JSON file with `title`, `about` (a
paragraph), `columns` and `rows`; the page has their tables in the order of the files' names.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
RECORDS = ROOT / "docs" / "data" / "compatibility"
PAGE = ROOT / "docs" / "compatibility.md"
_HEAD = """\
# Compatibility

Which kinds of models were tried, and what came out. Each table is the record of a test;
`python -m tests.compatibility` writes this page from the records in
[data/compatibility](data/compatibility). With `BOTTLE_RECORD=1` in the environment, a test writes
its record anew, and without it, compares.
"""


def page() -> str:
    """Return the page's text."""
    parts = [_HEAD]
    for path in sorted(RECORDS.glob("*.json")):
        record = json.loads(path.read_text())
        rows = [record["columns"], ["---"] * len(record["columns"]), *record["rows"]]
        table = "\n".join("| " + " | ".join(map(str, row)) + " |" for row in rows)
        parts.append(f"## {record['title']}\n\n{record['about']}\n\n{table}\n")
    return "\n".join(parts)


def keep(
    name: str, title: str, about: str, columns: Sequence[str], rows: Sequence[Any], compared: int
) -> None:
    """Write a record and the page, or compare with the record that is kept.

    Args:
        name: The file's name without its ending; it decides the place on the page.
        title, about: Heading and paragraph above the table.
        columns: Names of the columns.
        rows: Lists of cells, as text.
        compared: How many of the first columns every machine must find as recorded.
    """
    path = RECORDS / f"{name}.json"
    record = {"title": title, "about": about, "columns": list(columns), "rows": list(rows)}
    if os.environ.get("BOTTLE_RECORD"):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n")
        PAGE.write_text(page())
        return
    kept = json.loads(path.read_text())
    first, second = ([list(row[:compared]) for row in r["rows"]] for r in (kept, record))
    assert first == second and kept | {"rows": 0} == record | {"rows": 0}, (
        "run this test with BOTTLE_RECORD=1"
    )


if __name__ == "__main__":
    PAGE.write_text(page())
