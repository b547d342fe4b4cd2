"""What the first download of each reference got: its commit and the hash of every file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock

from common.errors import UserError
from common.files import read_json, write_json
from paper.hub.table import Reference


@dataclass(frozen=True)
class Locked:
    """What a reference's first download got.

    Attributes:
        repository: Where it came from.
        revision: Full commit.
        files: sha256 and size in bytes by path in the repository.
    """

    repository: str
    revision: str
    files: Mapping[str, tuple[str, int]]


def lock_of(table: Path) -> Path:
    """Name the lock that belongs to a table: hub.lock.json next to paper/hub.tsv."""
    return table.with_suffix(".lock.json")


def _read(path: Path) -> dict[str, Any]:
    return read_json(path) if path.exists() else {}


def locked(path: Path, reference: Reference) -> Locked | None:
    """Look up what a reference must be.

    Args:
        path: The lock; it may not exist yet.
        reference: The row of the table.

    Returns:
        The entry, None before the first download.

    Raises:
        UserError: Table and lock disagree, or the lock is damaged.
    """
    try:
        entry = _read(path).get(reference.id)
        if entry is None:
            return None
        files = {name: (about["sha256"], about["bytes"]) for name, about in entry["files"].items()}
        got = Locked(entry["repository"], entry["revision"], files)
    except (AttributeError, KeyError, TypeError):
        raise UserError(
            f"{path} is damaged at {reference.id}; restore it, or take the entry out of it"
        ) from None
    # A changed table must not silently keep the results of the former reference.
    if got.repository != reference.repository:
        raise UserError(
            f"{reference.id}: the table says {reference.repository}, {path} {got.repository}; "
            "take the entry out of the lock if the change is meant"
        )
    if reference.revision and got.revision != reference.revision:
        raise UserError(
            f"{reference.id}: the table pins revision {reference.revision[:12]}, {path} "
            f"{got.revision[:12]}; take the entry out of the lock if the change is meant"
        )
    return got


def record(path: Path, reference: Reference, got: Locked) -> None:
    """Write down what a first download got; other processes may do so at the same time."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(path.with_name(f".{path.name}.flock")):
        entries = _read(path)
        entries[reference.id] = {
            "repository": got.repository,
            "revision": got.revision,
            "files": {
                name: {"sha256": digest, "bytes": size}
                for name, (digest, size) in got.files.items()
            },
        }
        write_json(path, entries)
