"""Rows of SQL-Eval's question sets, with the wording and gold of both engines side by side."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from common.errors import UserError
from common.readers import read_csv
from evaluation.data.converters import Converter, Rows

_PER_ENGINE = ("question", "query", "instructions")


def _engine(row: Mapping[str, str]) -> dict[str, str]:
    return {key: row.get(key, "") for key in _PER_ENGINE}


def _converter(task: str) -> Converter:
    def convert(paths: Mapping[str, Path]) -> dict[str, Rows]:
        postgres, sqlite = read_csv(paths["items"]), read_csv(paths["sqlite"])
        if len(postgres) != len(sqlite):
            raise UserError(
                f"{paths['sqlite']}: {len(sqlite)} questions, but {paths['items']} has "
                f"{len(postgres)}; take both files from one revision"
            )
        rows: Rows = []
        for number, (row, twin) in enumerate(zip(postgres, sqlite, strict=True)):
            same = {key: row[key] for key in ("db_name", "query_category")}
            if any(twin[key] != value for key, value in same.items()):
                raise UserError(
                    f"{paths['sqlite']}, row {number + 1}: not the question of that row in "
                    f"{paths['items']}; take both files from one revision"
                )
            about: dict[str, Any] = {"id": f"{task}-{number}"} | same | _engine(row)
            further = {key: value for key, value in row.items() if key not in about}
            rows.append(about | further | {"sqlite": _engine(twin)})
        return {"items": rows}

    return convert


CONVERTERS = {task: _converter(task) for task in ("classic", "basic", "advanced")}
