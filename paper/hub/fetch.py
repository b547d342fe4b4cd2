"""Downloads a reference at its one revision, resumes what was cut, and proves every file."""

from __future__ import annotations

import contextlib
import errno
import fnmatch
import json
import os
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

from common import manifest
from common.errors import UserError
from common.files import existing_above, sha256_file
from common.progress import Progress
from paper.hub.lock import Locked, locked, record
from paper.hub.places import Hub, Place, Remote, git_hash
from paper.hub.table import Reference

_INDEXES = ("model.safetensors.index.json", "pytorch_model.bin.index.json")
_SINGLE = ("model.safetensors", "pytorch_model.bin")
# What the hub itself writes beside a data set's rows, in JSON like some of them.
_ABOUT = ("dataset_infos.json", "dataset_info.json")


def _reason(reference: Reference, error: Exception) -> UserError:
    """Tell in one line why the hub did not give what was asked for."""
    from huggingface_hub import errors

    about = f"{reference.id} ({reference.repository})"
    if isinstance(error, errors.GatedRepoError):
        return UserError(
            f"{about} is gated: accept its licence on {reference.page} and give your token, "
            "HF_TOKEN=... or `hf auth login`"
        )
    if isinstance(error, errors.RevisionNotFoundError):
        return UserError(
            f"{about} lacks the revision that the table or the lock names; "
            f"choose another in the table (see {reference.page}) and take it out of the lock"
        )
    if isinstance(error, errors.RepositoryNotFoundError):
        return UserError(
            f"{about} is not on the hub, or hidden from you; correct its repository in the table, "
            "replace it by another in the configuration, or give a token that may see it"
        )
    for variable in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"):  # the hub's library obeys both
        if os.environ.get(variable, "").lower() in ("1", "true", "yes", "on"):
            return UserError(f"{about} was never fetched and {variable} is set; unset it")
    name = type(error).__name__
    return UserError(f"{about} could not be fetched ({name}); run the same command again")


@contextlib.contextmanager
def _telling(reference: Reference) -> Iterator[None]:
    try:
        yield
    except (UserError, KeyboardInterrupt):
        raise
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise UserError(
                f"the disk is full while fetching {reference.id}; free some space and run the same "
                "command again, what is here stays"
            ) from None
        raise _reason(reference, error) from None
    except Exception as error:
        raise _reason(reference, error) from None


def _weights(reference: Reference, files: dict[str, Remote]) -> tuple[str, str]:
    """Find what holds a model's weights: its index or single file, safetensors before pickles."""
    for index, single in zip(_INDEXES, _SINGLE, strict=True):
        name = index if index in files else single if single in files else ""
        if not name:
            continue
        if single.endswith(".bin") and not reference.pickle:
            raise UserError(
                f"{reference.id} ({reference.repository}) has its weights only as pickles; write "
                "yes under pickle in the table if you trust it, they are read as data only"
            )
        return name, single
    raise UserError(
        f"{reference.id} ({reference.repository}) has no weights under the usual names "
        f"({', '.join((*_INDEXES, *_SINGLE))}); choose another repository in the table"
    )


def _chosen(reference: Reference, files: dict[str, Remote]) -> list[Remote]:
    """Choose the files beside a model's sharded weights, and all of a data set."""
    top = reference.kind == "model"
    chosen = [
        file
        for name, file in sorted(files.items())
        if any(fnmatch.fnmatch(name, pattern) for pattern in reference.patterns)
        and not (top and "/" in name)
        and name not in _INDEXES
        and Path(name).name not in _ABOUT
        and not Path(name).name.startswith(".")
    ]
    if not chosen:
        raise UserError(
            f"{reference.id} ({reference.repository}) has no file like "
            f"{' or '.join(reference.patterns)}; correct files in the table"
        )
    return chosen


def _proved(reference: Reference, file: Remote, path: Path) -> str:
    """Hash a fetched file and compare it with what the hub says of it.

    Raises:
        UserError: It is another; the file is taken away, so that the next run fetches it again.
    """
    size, digest = path.stat().st_size, sha256_file(path)
    right = digest == file.sha256 if file.sha256 else git_hash(path) == file.blob
    if size != file.size or not right:
        path.unlink()
        raise UserError(
            f"{reference.id}: {file.path} arrived damaged ({size} of {file.size} bytes, or another "
            "hash than its place tells); run the same command again"
        )
    return digest


def _space(reference: Reference, files: Sequence[Remote], folder: Path) -> None:
    missing = sum(
        file.size
        for file in files
        if not (folder / file.path).exists() or (folder / file.path).stat().st_size != file.size
    )
    free = shutil.disk_usage(existing_above(folder)).free
    if missing > free:
        raise UserError(
            f"{reference.id} needs {missing / 1e9:.1f} GB more and {folder} has {free / 1e9:.1f} GB"
            " free; free some space, or put the results elsewhere"
        )


def _shards(index: Path, files: dict[str, Remote], reference: Reference) -> list[Remote]:
    try:
        names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    except (ValueError, KeyError, TypeError, AttributeError):
        raise UserError(
            f"{reference.id}: {index.name} of {reference.repository} names no shards; choose "
            "another revision in the table"
        ) from None
    for name in names:
        if name not in files:
            raise UserError(
                f"{reference.id}: its index names {name}, which {reference.repository} lacks; "
                "choose another revision in the table"
            )
    return [files[name] for name in names]


def whole(folder: Path, expected: Locked) -> bool:
    """Tell whether a folder holds a finished download of what the lock says.

    Args:
        folder: The download's folder.
        expected: The lock's entry.

    Returns:
        Whether its manifest names the same revision and hashes and each file has its size.
    """
    path = folder / manifest.NAME
    if not path.exists():
        return False
    about = manifest.read_manifest(path)
    wanted = {name: digest for name, (digest, _) in expected.files.items()}
    return (
        about.get("kind") == "fetched"
        and about.get("parameters", {}).get("revision") == expected.revision
        and about.get("outputs") == wanted
        and all(
            (folder / name).is_file() and (folder / name).stat().st_size == size
            for name, (_, size) in expected.files.items()
        )
    )


def fetch(reference: Reference, folder: Path, lock: Path, place: Place | None = None) -> Locked:
    """Fetch a reference into a folder; a whole one that is there already is left as it is.

    The first download of a reference without a revision takes the newest and records it in the
    lock, with the hash of each file; later ones must match. Parts of an earlier, cut download are
    gone on with. The manifest is the last file to appear.

    Args:
        reference: The row of the table.
        folder: Where its files go.
        lock: The lock; made if need be.
        place: Where from; None for the hub.

    Returns:
        What the folder holds.

    Raises:
        UserError: It is gated, gone, changed, damaged, or the disk is too small; one line each.
    """
    expected = locked(lock, reference)
    if expected and whole(folder, expected):
        return expected
    place = Hub() if place is None else place
    with _telling(reference):
        revision = expected.revision if expected else reference.revision
        commit, files = place.listing(reference, revision)
        chosen = _chosen(reference, files)
        index = None
        if reference.kind == "model":
            name, single = _weights(reference, files)
            if name == single:
                chosen.append(files[single])
            else:
                index = files[name]
        hashes: dict[str, tuple[str, int]] = {}
        if index is not None:
            path = place.download(reference, commit, index, folder)
            hashes[index.path] = (_proved(reference, index, path), index.size)
            chosen += _shards(path, files, reference)
        _space(reference, chosen, folder)
        _changed(reference, chosen, expected, lock)
        progress = Progress(sum(file.size for file in chosen) // 1_000_000, f"{reference.id}: MB")
        for file in chosen:
            path = place.download(reference, commit, file, folder)
            hashes[file.path] = (_proved(reference, file, path), file.size)
            progress.step(file.size // 1_000_000, file.path)
    got = Locked(reference.repository, commit, dict(sorted(hashes.items())))
    if expected and dict(expected.files) != got.files:
        changed = sorted(set(expected.files.items()) ^ set(got.files.items()))[0][0]
        raise UserError(
            f"{reference.id}: {changed} is not what {lock} recorded; the hub's files changed: "
            "take the entry out of the lock if the change is meant"
        )
    if not expected:
        record(lock, reference, got)
    shutil.rmtree(folder / ".cache", ignore_errors=True)
    manifest.write_manifest(
        folder / manifest.NAME,
        kind="fetched",
        parameters={"id": reference.id, "repository": got.repository, "revision": got.revision},
        outputs={name: digest for name, (digest, _) in got.files.items()},
        code=("paper/hub/fetch.py",),
    )
    return got


def _changed(
    reference: Reference, chosen: Sequence[Remote], expected: Locked | None, lock: Path
) -> None:
    """Refuse another set of files than the first download's before any byte is fetched."""
    if expected is None:
        return
    sizes = {name: size for name, (_, size) in expected.files.items()}
    for file in chosen:
        digest, size = expected.files.get(file.path, ("", -1))
        if size != file.size or (file.sha256 and file.sha256 != digest):
            raise UserError(
                f"{reference.id}: {file.path} is not what {lock} recorded "
                f"({sizes.get(file.path, 'no')} bytes); the table's patterns or the hub's files "
                "changed: take the entry out of the lock if the change is meant"
            )
