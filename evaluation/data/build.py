"""Converts sources to JSON lines, a suite's folder at a time, atomically."""

from __future__ import annotations

import functools
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common.errors import UserError, nearest
from common.files import read_json, sha256_file, staged_directory, write_bytes, write_jsonl
from common.manifest import NAME, write_manifest
from evaluation.data.converters import Rows, converter_of
from evaluation.data.remote import Remote
from evaluation.data.sources import File, Source, find_local
from evaluation.sources import data_files
from evaluation.sql.databases import read_dump
from evaluation.suites import select


@dataclass(frozen=True)
class Converted:
    """One task's rows and what is recorded of their origin.

    Attributes:
        source: The entry of the table.
        rows: By role, items and fewshot.
        copies: Bytes by name, of files that are copied unchanged.
        origin: For the manifest: repository, revision, licence, files with hashes, counts.
    """

    source: Source
    rows: dict[str, Rows]
    copies: dict[str, bytes]
    origin: dict[str, Any]


def _with_unique_ids(rows: Rows, prefix: str = "") -> Rows:
    """Distinguish rows of one id by their number, so that stored answers can be joined again."""
    seen: set[Any] = set()
    for number, row in enumerate(rows):
        if row["id"] in seen:
            row["id"] = f"{row['id']}#{number}"
        seen.add(row["id"])
        if prefix:
            row["id"] = f"{prefix}{row['id']}"
    return rows


def _check_count(source: Source, path: Path, file: File, found: int) -> None:
    if found == 0 or (file.rows is not None and file.rows != found):
        expected = "at least 1" if file.rows is None else file.rows
        raise UserError(
            f"{source.name}: {path} gives {found} rows where {expected} are expected; it is "
            "truncated or of another version: get it again"
        )


def _rows(source: Source, present: Mapping[str, tuple[Path, File]]) -> dict[str, Rows]:
    """Convert a task's files and check what comes out."""
    paths = {role: path for role, (path, _) in present.items()}
    try:
        rows = converter_of(source.suite, source.task)(paths)
    except (KeyError, IndexError, TypeError, ValueError) as error:
        named = ", ".join(str(path) for path in paths.values())
        raise UserError(
            f"{source.name}: {named} do not have the expected columns "
            f"({type(error).__name__}: {error}); get the files of {source.repository} again"
        ) from None
    for role in rows:
        _check_count(source, *present[role], found=len(rows[role]))
    _with_unique_ids(rows["items"])
    if "fewshot" in rows:
        # A pool that is the items themselves keeps their ids: a draw must leave out the item's own.
        own = paths["fewshot"] == paths["items"]
        _with_unique_ids(rows["fewshot"], "" if own else "fewshot-")
    return rows


def _check_hashes(
    source: Source, present: Mapping[str, tuple[Path, File]], hashes: Mapping[str, str]
) -> None:
    """Refuse files that are not those of the pinned revision, where its hashes are known."""
    for role, (path, file) in present.items():
        expected = source.sha256.get(role)
        if expected and not file.stand_in and hashes[role] != expected:
            raise UserError(
                f"{source.name}: {path} is not {source.files[role].path} of {source.repository} "
                f"at {source.revision} (sha256 {hashes[role][:12]}... where {expected[:12]}... is "
                "expected); it is damaged or of another version: get it again"
            )


def _rows_of_dumps(source: Source, present: Mapping[str, tuple[Path, File]]) -> dict[str, int]:
    """Read the dumps among files that are copied, and check how many rows their tables have."""
    counts = {}
    for role, (path, file) in present.items():
        if path.suffix == ".sql":
            counts[role] = sum(len(table.rows) for table in read_dump(path))
            _check_count(source, path, file, counts[role])
    return counts


def convert(source: Source, locate: Callable[[str], tuple[Path, File] | None]) -> Converted:
    """Read and convert one task's files.

    Args:
        source: The task's source.
        locate: Finds a role's file; None where it is absent and optional.

    Raises:
        UserError: A file is missing, damaged, or of another count or hash than the table says.
    """
    found = {role: locate(role) for role in source.files}
    present = {role: pair for role, pair in found.items() if pair is not None}
    rows: dict[str, Rows] = {}
    copies: dict[str, bytes] = {}
    hashes = {role: sha256_file(path) for role, (path, _) in present.items()}
    # Before conversion: of a wrong file, its hash says more than its rows.
    _check_hashes(source, present, hashes)
    if source.copies_to:
        copies = {role: path.read_bytes() for role, (path, _) in present.items()}
        counts = _rows_of_dumps(source, present)
    else:
        rows = _rows(source, present)
        counts = {role: len(rows[role]) for role in rows}
    origin = {
        "host": source.host,
        "repository": source.repository,
        "config": source.config,
        "licence": source.licence,
        "access": source.access,
        "files": {
            role: {"path": file.path, "sha256": hashes[role]} for role, (_, file) in present.items()
        },
        "rows": counts,
        "stand_in": {role: file.stand_in for role, (_, file) in present.items() if file.stand_in},
    }
    return Converted(source, rows, copies, origin)


def _check_copies(sources: Sequence[Source], folder: Path) -> None:
    """Refuse tasks whose files are missing, all of them at once."""
    lacking = {source.name: source.missing(folder) for source in sources}
    lacking = {name: files for name, files in lacking.items() if files}
    if not lacking:
        return
    files = "; ".join(f"{', '.join(files)} ({name})" for name, files in lacking.items())
    whole = [
        source.name for source in sources if source.name not in lacking and not source.copies_to
    ]
    rest = f", or leave those tasks out: --suite {','.join(whole)}" if whole else ""
    raise UserError(f"{folder} has no {files}; put the files there{rest}")


def convert_local(sources: Sequence[Source], folder: Path) -> list[Converted]:
    """Convert tasks from local copies, which have the names of the table; nothing is downloaded."""
    if not folder.is_dir():
        raise UserError(f"--source {folder}: no such folder; correct the path")
    _check_copies(sources, folder)
    converted = []
    for source in sources:
        one = convert(source, functools.partial(find_local, source, folder))
        # A local copy does not say which revision it is; its hash does, where that is known.
        proved = set(one.origin["files"]) <= set(source.sha256) and not one.origin["stand_in"]
        one.origin.update(host="local copy", revision=source.revision if proved else None)
        converted.append(one)
    return converted


def convert_remote(sources: Sequence[Source]) -> list[Converted]:
    """Download tasks' files at their pinned revisions and convert them."""
    converted = []
    with Remote() as remote:
        for source in sources:
            one = convert(source, functools.partial(remote.fetch, source))
            one.origin["revision"] = remote.revision(source)
            converted.append(one)
    return converted


def _file_name(task: str, role: str) -> str:
    return f"{task}.jsonl" if role == "items" else f"{task}.{role}.jsonl"


def _kept(folder: Path, replaced: set[str]) -> dict[str, Any]:
    """Return the manifest's entries of the tasks that stay from earlier calls."""
    path = folder / NAME
    if not path.is_file():
        return {}
    entries = read_json(path).get("extra", {}).get("tasks", {})
    return {task: entry for task, entry in entries.items() if task not in replaced}


def write_suite(out: Path, suite: str, converted: Sequence[Converted], split: str = "test") -> Path:
    """Write one suite's folder `out/SPLIT/SUITE` with its manifest; tasks of earlier calls stay.

    Raises:
        UserError: The disk is full; the old folder, if any, is untouched.
    """
    folder = out / split / suite
    kept = _kept(folder, {one.source.task for one in converted})
    tasks = dict(kept)
    with staged_directory(folder) as aside:
        for task, entry in kept.items():
            for role in entry["rows"]:
                shutil.copy2(folder / _file_name(task, role), aside)
        for one in converted:
            tasks[one.source.task] = one.origin
            for role in one.rows:
                write_jsonl(aside / _file_name(one.source.task, role), one.rows[role])
        outputs = {
            _file_name(task, role): aside / _file_name(task, role)
            for task, entry in tasks.items()
            for role in entry["rows"]
        }
        _write_manifest(aside, suite, tasks, outputs)
    return folder


def _write_manifest(
    folder: Path, suite: str, tasks: Mapping[str, Any], outputs: Mapping[str, Path]
) -> None:
    write_manifest(
        folder / NAME,
        kind="benchmark data",
        parameters={"suite": suite, "tasks": sorted(tasks)},
        outputs=outputs,
        code=data_files([suite]),
        extra={"tasks": dict(tasks)},
    )


def write_copies(out: Path, one: Converted) -> Path:
    """Write files that are copied unchanged, with their manifest; see `write_suite`."""
    folder = out / str(one.source.copies_to)
    with staged_directory(folder) as aside:
        for name, content in one.copies.items():
            write_bytes(aside / name, content)
        outputs = {name: aside / name for name in one.copies}
        _write_manifest(aside, one.source.suite, {one.source.task: one.origin}, outputs)
    return folder


def check_dev(sources: Sequence[Source], names: Sequence[str]) -> None:
    """Refuse names of tasks that have no dev items, or are not among the sources.

    Raises:
        UserError: One line that names all such tasks.
    """
    known = {source.name: source for source in sources}
    for name in names:
        if name not in known:
            raise UserError(
                f"--dev: {name} is not among the tasks of --suite{nearest(name, known)}"
            )
    lacking = [name for name in names if known[name].dev is None]
    if lacking:
        raise UserError(
            f"--dev: no dev items exist for {', '.join(lacking)}, of which only test items are "
            "published; leave them out"
        )


def _with_dev(one: Converted, count: int) -> Converted:
    """Take a task's dev items from its training split."""
    from evaluation.data.dev import choose_dev

    role = str(one.source.dev)
    if role not in one.rows:
        raise UserError(
            f"{one.source.name}: its dev items are taken from {one.source.files[role].path}, which "
            "is not there; put it there, or leave the task out of --dev"
        )
    (task,) = select([one.source.name])
    items, rest = choose_dev(task, one.rows["items"], one.rows[role], count)
    rows = {"items": items, "fewshot": rest} if task.shots else {"items": items}
    counts = {name: len(found) for name, found in rows.items()}
    stand_in = {"items": one.origin["stand_in"][role]} if role in one.origin["stand_in"] else {}
    origin = one.origin | {"rows": counts, "stand_in": stand_in, "dev_items_from": role}
    return Converted(one.source, rows, {}, origin)


def build(
    sources: Sequence[Source],
    folder: Path | None,
    out: Path,
    dev: Sequence[str] = (),
    dev_items: int = 60,
) -> list[Converted]:
    """Convert tasks and write their suites, after every task of every suite has been converted.

    Args:
        sources: The tasks.
        folder: Local copies; None downloads.
        out: The data folder.
        dev: Full names of the tasks that also get dev items; see `evaluation.data.dev`.
        dev_items: How many each.

    Raises:
        UserError: A file is missing or damaged, or a task has no dev items, or not so many.
    """
    check_dev(sources, dev)
    # Everything is read first, so that a damaged file leaves the old data complete.
    converted = convert_local(sources, folder) if folder else convert_remote(sources)
    chosen = [_with_dev(one, dev_items) for one in converted if one.source.name in dev]
    for suite in dict.fromkeys(source.suite for source in sources):
        own = [one for one in converted if one.source.suite == suite]
        for one in own:
            if one.copies:
                write_copies(out, one)
        for split, of in (("test", own), ("dev", chosen)):
            tasks = [one for one in of if one.rows and one.source.suite == suite]
            if tasks:
                write_suite(out, suite, tasks, split)
    _write_whole(out)
    return converted


def _write_whole(out: Path) -> None:
    """Write the manifest of the data folder, by which a workflow knows that everything is there."""
    suites = sorted(path for path in out.glob(f"*/*/{NAME}"))
    write_manifest(
        out / NAME,
        kind="benchmark data",
        parameters={"suites": [str(path.parent.relative_to(out)) for path in suites]},
        outputs={str(path.relative_to(out)): path for path in suites},
        code=data_files({path.parent.name for path in suites}),
    )
