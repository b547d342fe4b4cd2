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
from common.hashes import BLAKE3, kind_for
from common.progress import Progress
from paper.hub.lock import Locked, locked, record
from paper.hub.places import Hub, Mirror, Remote
from paper.hub.table import Reference

_INDEXES = ("model.safetensors.index.json", "pytorch_model.bin.index.json")
_WEIGHTS = (_INDEXES[0], "model.safetensors", _INDEXES[1], "pytorch_model.bin")
# The hub itself writes these next to a data set's rows, in JSON like some of them.
_ABOUT = ("dataset_infos.json", "dataset_info.json")


def _reason(reference: Reference, error: Exception) -> str:
    """Say in one line why the files did not come."""
    from huggingface_hub import errors

    about = f"{reference.id} ({reference.repository})"
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return (
            f"the disk is full while fetching {reference.id}; free some space and run the same "
            "command again, what is here stays"
        )
    if isinstance(error, errors.GatedRepoError):
        return (
            f"{about} is gated: accept its licence on {reference.page} and give your token, "
            "HF_TOKEN=... or `hf auth login`"
        )
    if isinstance(error, errors.RevisionNotFoundError):
        return (
            f"{about} lacks the revision that the table or the lock names; "
            f"choose another in the table (see {reference.page}) and take it out of the lock"
        )
    if isinstance(error, errors.RepositoryNotFoundError):
        return (
            f"{about} is not on the hub, or hidden from you; correct its repository in the table, "
            "replace it by another in the configuration, or give a token that may see it"
        )
    for variable in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"):  # the hub's library obeys both
        if os.environ.get(variable, "").lower() in ("1", "true", "yes", "on"):
            return f"{about} was never fetched and {variable} is set; unset it"
    return f"{about} could not be fetched ({type(error).__name__}); run the same command again"


@contextlib.contextmanager
def _explained(reference: Reference) -> Iterator[None]:
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        raise UserError(_reason(reference, error)) from None


def _weights(reference: Reference, files: dict[str, Remote]) -> Remote:
    """Find a model's index of weights or its only file, safetensors before pickles."""
    about = f"{reference.id} ({reference.repository})"
    name = next((name for name in _WEIGHTS if name in files), None)
    if name is None:
        raise UserError(
            f"{about} has no weights under the usual names ({', '.join(_WEIGHTS)}); choose another "
            "repository in the table"
        )
    if name.startswith("pytorch_model") and not reference.pickle:
        raise UserError(
            f"{about} has its weights only as pickles; write yes under pickle in the table if you "
            "trust it, they are read as data only"
        )
    return files[name]


def _chosen(reference: Reference, files: dict[str, Remote]) -> list[Remote]:
    """Choose the files that come with a model's weights, or all of a data set."""
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
    """Hash a fetched file; remove a damaged one, so that the next run fetches it again."""
    from huggingface_hub.utils.sha import git_hash

    size, digest = path.stat().st_size, sha256_file(path)
    # The hub gives a sha256 only for large files; it names the others as git does.
    right = digest == file.sha256 if file.sha256 else git_hash(path.read_bytes()) == file.blob
    if size != file.size or not right:
        path.unlink()
        raise UserError(
            f"{reference.id}: {file.path} arrived damaged ({size} of {file.size} bytes, or another "
            "hash than its place gives); run the same command again"
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


def _is_complete(folder: Path, expected: Locked) -> bool:
    """Return whether a folder holds a finished download of the lock's entry."""
    path = folder / manifest.NAME
    if not path.exists():
        return False
    about = manifest.read_manifest(path)
    extra = about.get("extra", {})
    fetched = extra.get("sha256", about.get("outputs"))  # earlier manifests have these alone
    wanted = {name: digest for name, (digest, _) in expected.files.items()}
    return (
        about.get("kind") == "fetched"
        and about.get("parameters", {}).get("revision") == expected.revision
        and fetched == wanted
        and "accepted" not in extra
        and all(
            (folder / name).is_file() and (folder / name).stat().st_size == size
            for name, (_, size) in expected.files.items()
        )
    )


def _refuse_change(reference: Reference, name: str, lock: Path) -> UserError:
    return UserError(
        f"{reference.id}: {name} is not what {lock} recorded; the table's patterns or the hub's "
        "files changed: take the entry out of the lock if the change is meant"
    )


def fetch(
    reference: Reference, folder: Path, lock: Path, place: Hub | Mirror | None = None
) -> Locked:
    """Fetch a reference into a folder; a complete one that is there already is left as it is.

    The first download of a reference without a revision takes the newest and records it in the
    lock, with the hash of each file; later ones must match. A download that was cut is resumed.
    The manifest is the last file to appear.

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
    if expected and _is_complete(folder, expected):
        return expected
    place = Hub() if place is None else place
    hashes: dict[str, tuple[str, int]] = {}
    with _explained(reference):
        revision = expected.revision if expected else reference.revision
        commit, files = place.listing(reference, revision)

        def get(file: Remote) -> Path:
            path = place.download(reference, commit, file, folder)
            hashes[file.path] = (_proved(reference, file, path), file.size)
            return path

        chosen = _chosen(reference, files)
        if reference.kind == "model":
            weights = _weights(reference, files)
            # Of many weight files only those that the index names belong to the model.
            sharded = weights.path in _INDEXES
            chosen += _shards(get(weights), files, reference) if sharded else [weights]
        _space(reference, chosen, folder)
        if expected:  # before gigabytes are fetched for nothing
            for file in chosen:
                digest, size = expected.files.get(file.path, ("", -1))
                if size != file.size or (file.sha256 and file.sha256 != digest):
                    raise _refuse_change(reference, file.path, lock)
        progress = Progress(sum(file.size for file in chosen) // 1_000_000, f"{reference.id}: MB")
        for file in chosen:
            get(file)
            progress.step(file.size // 1_000_000, file.path)
    got = Locked(reference.repository, commit, dict(sorted(hashes.items())))
    if expected and dict(expected.files) != got.files:
        changed = sorted(set(expected.files.items()) ^ set(got.files.items()))[0][0]
        raise _refuse_change(reference, changed, lock)
    if not expected:
        record(lock, reference, got)
    shutil.rmtree(folder / ".cache", ignore_errors=True)
    proved = {name: digest for name, (digest, _) in got.files.items()}
    manifest.write_manifest(
        folder / manifest.NAME,
        kind="fetched",
        parameters={"id": reference.id, "repository": got.repository, "revision": got.revision},
        outputs={
            name: folder / name if kind_for(name) == BLAKE3 else own for name, own in proved.items()
        },
        code=("paper/hub/fetch.py",),
        extra={"sha256": proved},
    )
    return got
