"""The benchmarks' files of a rehearsal: copies of real ones, hand-made ones for the rest."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from common.files import write_text
from evaluation.data.sources import Source, find_local, select_sources
from paper.rehearsal import benchmark_rows
from paper.rehearsal.files import write_rows

TABLE = "stand-ins.yaml"
# Only the rehearsal's own table names this folder: a run of the published benchmarks cannot take
# hand-made files for real ones.
_FOLDER = "hand-made"
_WHY = "hand-made rows in the published columns"


def _copy(source: Source, folder: Path, out: Path) -> None:
    """Copy a source's real files under the names that they have."""
    for role in source.files:
        if found := find_local(source, folder, role):
            target = out / found[0].relative_to(folder)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(found[0], target)


def _make(source: Source, out: Path) -> Mapping[str, Any]:
    """Write a source's hand-made files and say what is in them."""
    about = {}
    for role, file in source.files.items():
        path = Path(_FOLDER, source.suite, source.task, Path(file.path).name)
        if source.copies_to:
            write_rows(out / path, benchmark_rows.database(path.suffix.removeprefix(".")))
            # Of a dump, the rows of its tables are counted.
            counted = {"rows": benchmark_rows.DATABASE_ROWS} if path.suffix == ".sql" else {}
            about[role] = {"path": str(path), **counted, "stand_in": _WHY}
            continue
        rows = benchmark_rows.rows_of(source.name, role)
        write_rows(out / path, rows)
        about[role] = {"path": str(path), "rows": len(rows), "stand_in": _WHY}
    return about


def text() -> list[str]:
    """Return what hand-made rows say, for the tokenizers."""
    sources = select_sources(["ja8", "kobest", "okapi_de"])
    rows = [row for source in sources for row in benchmark_rows.rows_of(source.name, "items")]
    return [value for row in rows for value in row.values() if isinstance(value, str)]


def write_benchmarks(tasks: Sequence[str], folder: Path | None, out: Path) -> list[str]:
    """Write the files of benchmarks, and the table of the hand-made ones.

    Args:
        tasks: Names of the tasks, suite/task.
        folder: Local copies of real files as `python -m evaluation data --source` reads them;
            None where there are none.
        out: A folder for that command's `--source`; gets `stand-ins.yaml` for `--stand-ins`.

    Returns:
        Names of those whose files are copies of the real ones.
    """
    sources = select_sources(tasks)
    copied = {source.suite for source in sources if source.copies_to}
    # Questions and databases belong together: all of them are real, or none.
    together = {suite: [source for source in sources if source.suite == suite] for suite in copied}
    real, table = [], {}
    for source in sources:
        group = together.get(source.suite, [source])
        if folder is not None and not any(one.missing(folder) for one in group):
            _copy(source, folder, out)
            real.append(source.name)
        else:
            table[source.name] = _make(source, out)
    write_text(out / TABLE, yaml.safe_dump(table, allow_unicode=True, sort_keys=False))
    return real
