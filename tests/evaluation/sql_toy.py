"""A small shop as an SQL-Eval database, and the real question sets where they are at hand."""

from __future__ import annotations

import csv
import json
import os
from pathlib import Path
from typing import Any

import pytest

DUMP = """
CREATE SCHEMA IF NOT EXISTS crm;
CREATE TABLE public.items (
  id SERIAL PRIMARY KEY,
  name VARCHAR(20) NOT NULL, -- unique; as printed
  kind text,
  price DECIMAL(10,2),
  in_stock BOOLEAN DEFAULT true,
  added DATE NOT NULL,
  changed TIMESTAMP NOT NULL DEFAULT NOW()
);
CREATE TABLE crm.buyers (id bigint, "full name" text, month text, stamp bigint);
INSERT INTO items (name, kind, price, added) VALUES
  ('pen', 'office', 1.5, '2024-01-31'),
  ('ink; blue', 'office', 12, CURRENT_DATE - INTERVAL '1 month'),
  ('cup', 'kitchen', NULL, DATE_TRUNC('week', CURRENT_DATE) - INTERVAL '1 week' + INTERVAL '1 day');
INSERT INTO items (name, kind, price, in_stock, added, changed) VALUES
  ('pan', 'kitchen', 12.005, false, '2024-02-01', NOW() - INTERVAL '15 min'),
  ('it''s', NULL, -3, true, '2024-02-01', '2024-02-03');
INSERT INTO crm.buyers VALUES
  (1, 'Ann', TO_CHAR(CURRENT_DATE - INTERVAL '3 months', 'Month'),
   EXTRACT(EPOCH FROM NOW()) * 1000),
  (2, 'Bo', NULL, EXTRACT(YEAR FROM CURRENT_DATE) - 2);
"""
DESCRIPTION = {
    "table_metadata": {
        "items": [
            {"column_name": "id", "data_type": "SERIAL", "column_description": ""},
            {
                "column_name": "name",
                "data_type": "VARCHAR(20)",
                "column_description": "unique;\nas printed",
            },
            {"column_name": "order", "data_type": "bigint"},
        ],
        "crm.buyers": [{"column_name": "full name", "data_type": "text"}],
    },
    "glossary": "",
}
NAMES = ("SELECT name FROM items", ["pen", "ink; blue", "cup", "pan", "it's"])


def write_dumps(folder: Path) -> Path:
    """Write the toy database as SQL-Eval's dumps are."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "shop.sql").write_text(DUMP)
    (folder / "shop.json").write_text(json.dumps(DESCRIPTION))
    return folder


def item(query: str, category: str = "group_by", question: str = "Which?", id: str = "q") -> dict:
    """Make an item with one gold query for both engines."""
    about = {"question": question, "query": query, "instructions": ""}
    return {"id": id, "db_name": "shop", "query_category": category, **about, "sqlite": about}


def real_folder() -> Path:
    """Return the real data of SQL-Eval, or skip."""
    if "BOTTLE_DATA" not in os.environ:
        pytest.skip("BOTTLE_DATA is not set: no real SQL-Eval data")
    folder = Path(os.environ["BOTTLE_DATA"]) / "sql_eval"
    if not folder.is_dir():
        pytest.skip(f"{folder} does not exist: no real SQL-Eval data")
    return folder


def real_rows(name: str) -> list[dict[str, Any]]:
    """Read a real question set (classic or basic) as converted data have it."""
    stem = {"classic": "questions_gen", "basic": "instruct_basic"}[name]
    tables = []
    for engine in ("postgres", "sqlite"):
        path = real_folder() / f"questions/{stem}_{engine}.csv"
        with open(path, newline="", encoding="utf-8") as stream:
            tables.append(list(csv.DictReader(stream)))
    rows = []
    for number, (row, twin) in enumerate(zip(*tables, strict=True)):
        assert row["db_name"] == twin["db_name"]
        views = [
            {key: table.get(key) or "" for key in ("question", "query", "instructions")}
            for table in (row, twin)
        ]
        about = {key: row[key] for key in ("db_name", "query_category")}
        rows.append({"id": f"{name}-{number}", **about, **views[0], "sqlite": views[1]})
    return rows
