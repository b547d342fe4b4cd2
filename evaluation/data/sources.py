"""The table of sources, and where a source's files are."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from common.errors import UserError, nearest
from common.yaml_files import read_yaml

TABLE = Path(__file__).with_name("sources.yaml")


@dataclass(frozen=True)
class File:
    """One file of a source.

    Attributes:
        path: Inside the repository, or below the folder given by `--source`.
        rows: Items that its conversion yields, None where unknown.
        stand_in: What it lacks to be the benchmark's own file; None where it is.
    """

    path: str
    rows: int | None = None
    stand_in: str | None = None


@dataclass(frozen=True)
class Source:
    """Where one task's data come from.

    The fields are those of `sources.yaml`; `copies_to` is the folder, below the data folder, of
    files that are copied unchanged, None where they are converted. `sha256` holds, by role,
    the hashes of the files at the pinned revision, as far as they are known; `dev` is the role of
    the rows from which dev items are taken, None where a benchmark has none.
    """

    suite: str
    task: str
    licence: str
    access: str
    host: str
    repository: str
    config: str
    revision: str | None
    files: Mapping[str, File]
    local: Mapping[str, Sequence[File]] = field(default_factory=dict)
    optional: Sequence[str] = ()
    copies_to: str | None = None
    sha256: Mapping[str, str] = field(default_factory=dict)
    dev: str | None = None

    @property
    def name(self) -> str:
        """The full name, suite/task."""
        return f"{self.suite}/{self.task}"

    def candidates(self, role: str) -> list[File]:
        """List the local files that can serve a role: REPOSITORY/PATH, then the table's others."""
        own = self.files[role]
        copy = File(f"{self.repository}/{own.path}", own.rows)
        return [copy, *self.local.get(role, ())]

    def missing(self, folder: Path) -> list[str]:
        """List what a folder of local copies lacks: by needed role, the paths that would do."""
        return [
            " or ".join(file.path for file in self.candidates(role))
            for role in self.files
            if role not in self.optional
            and not any((folder / file.path).is_file() for file in self.candidates(role))
        ]


def _copies(about: Mapping[str, Any]) -> dict[str, Any]:
    """Write out the paths of files that are copied unchanged: a dump and its description."""
    files, local = {}, {}
    for dump, rows in about["rows"].items():
        name = Path(dump).stem
        for role, count in ((dump, rows), (f"{name}.json", None)):
            place = {"name": name, "ending": Path(role).suffix[1:]}
            files[role] = File(about["path"].format(**place), count)
            local[role] = [File(about["local"].format(**place), count)]
    return {"files": files, "local": local, "copies_to": about["to"]}


def _source(suite: str, task: str, entry: Mapping[str, Any]) -> Source:
    fields = dict(entry)
    if "copies" in fields:
        copies = _copies(fields.pop("copies"))
        return Source(suite, task, **fields, **copies)
    fields["files"] = {role: File(**about) for role, about in entry["files"].items()}
    fields["local"] = {
        role: [File(**about) for about in abouts] for role, abouts in entry.get("local", {}).items()
    }
    return Source(suite, task, **fields)


@functools.cache
def load_sources() -> dict[str, Source]:
    """Read the table: sources by full name (suite/task), in its order."""
    table = yaml.safe_load(TABLE.read_text(encoding="utf-8"))
    sources = [
        _source(suite, task, entry)
        for suite, tasks in table.items()
        for task, entry in tasks.items()
    ]
    return {source.name: source for source in sources}


def select_sources(names: Sequence[str]) -> list[Source]:
    """Find the sources meant by names of suites (`kobest`) and of tasks (`kobest/copa`).

    Returns:
        Each source once, in the order asked for, and what is copied with every task of its suite.

    Raises:
        UserError: A name is neither, or there is none.
    """
    sources = load_sources()
    suites = {source.suite for source in sources.values()}
    chosen: dict[str, Source] = {}
    for name in names:
        if name in suites:
            chosen |= {key: source for key, source in sources.items() if source.suite == name}
        elif name in sources:
            chosen[name] = sources[name]
        else:
            valid = sources if "/" in name else suites
            raise UserError(f"no benchmark data are known for {name!r}{nearest(name, valid)}")
    if not chosen:
        raise UserError(f"no suite was named; give some of: {', '.join(sorted(suites))}")
    used = {source.suite for source in chosen.values()}
    chosen |= {
        name: source
        for name, source in sources.items()
        if source.copies_to and source.suite in used
    }
    return list(chosen.values())


def with_stand_ins(sources: Sequence[Source], table: Path) -> list[Source]:
    """Add files that stand in for the sources' own, which are looked for after all others.

    Args:
        sources: The sources.
        table: A YAML file in the form of `sources.yaml`'s `local`, by full name (suite/task) and
            role: `{path, rows, stand_in}`, the path below the folder given by `--source`. Every
            entry has to say what its file is instead of the benchmark's own.

    Raises:
        UserError: The table is missing or is not one, or names what is not known.
    """
    if not table.exists():
        raise UserError(f"{table}: no such table of stand-ins; correct the path")
    try:
        entries = read_yaml(table)
        given = {
            name: {role: [File(**about)] for role, about in roles.items()}
            for name, roles in entries.items()
        }
    except (AttributeError, TypeError) as error:
        problem = " ".join(str(error).split())
        raise UserError(f"{table}: not a table of stand-ins ({problem}); correct it") from None
    # Rows that are not the benchmark's must say so in every table: `stand_in` is required.
    known = load_sources()
    for name, roles in given.items():
        if name not in known:
            raise UserError(f"{table}: no benchmark {name!r}{nearest(name, known)}")
        for role, files in roles.items():
            if role not in known[name].files:
                hint = nearest(role, known[name].files)
                raise UserError(f"{table}: {name} has no files {role!r}{hint}")
            if not files[0].stand_in:
                raise UserError(
                    f"{table}: {name}, {role} does not say what it is; add the key stand_in"
                )
    return [
        dataclasses.replace(
            source,
            local={
                role: [*source.local.get(role, ()), *given.get(source.name, {}).get(role, ())]
                for role in source.files
            },
        )
        for source in sources
    ]


def find_local(source: Source, folder: Path, role: str) -> tuple[Path, File] | None:
    """Find a role's file below a folder of local copies.

    Args:
        source: The task's source.
        role: items, fewshot or another key of `files`.
        folder: The folder given by `--source`.

    Returns:
        The path and its entry in the table; None where an optional file is absent.

    Raises:
        UserError: The file is absent and the task needs it.
    """
    candidates = source.candidates(role)
    for file in candidates:
        if (folder / file.path).is_file():
            return folder / file.path, file
    if role in source.optional:
        return None
    paths = " or ".join(file.path for file in candidates)
    raise UserError(
        f"{source.name}: {folder} has no {paths}; put the file there, or leave the task out "
        f"(name the others: --suite {source.suite}/TASK,{source.suite}/TASK)"
    )
