"""Manifests: what an artefact was made from, how, and with which code."""

from __future__ import annotations

import functools
import importlib.metadata
import os
import platform
import re
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common import numerics, sources
from common.cost import count_check
from common.errors import UserError
from common.files import read_json, sha256_json, write_json
from common.hashes import SHA256, combined, hash_cached, hash_file, kind_for, kind_of

NAME = "manifest.json"
SEAL = "sha256"  # what a manifest calls the hash of all else in it
ACCEPT = "python -m checkpoints accept"
# The libraries that determine the numbers; the lock pins all others.
_LIBRARIES = (
    *("torch", "transformers", "tokenizers", "safetensors", "numpy", "numba", "lm_eval"),
    "cmaes",
)


@functools.cache
def library_versions() -> dict[str, str]:
    """Return the versions of Python and of the libraries that determine the numbers."""
    versions = {"python": platform.python_version()}
    for name in _LIBRARIES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions


def hash_of(path: Path | str) -> str:
    """Hash an artefact for a new record: a file by its bytes, a folder by its manifest's."""
    path = Path(path) / NAME if Path(path).is_dir() else Path(path)
    return hash_file(path, kind_for(path))


def _weights(outputs: Mapping[str, str]) -> dict[str, str]:
    # Those in folders below are coefficients and the like.
    files = sorted(n for n in outputs if n.endswith(".safetensors") and "/" not in n)
    return {name: outputs[name] for name in files}


def fingerprint(outputs: Mapping[str, str]) -> str | None:
    """Return a model's fingerprint from the hashes of its files by name; None without weights."""
    return combined(found) if (found := _weights(outputs)) else None


def has_fingerprint(recorded: object, outputs: Mapping[str, str], folder: Path) -> bool | None:
    """Say whether a recorded fingerprint is that of a model's weights.

    Args:
        recorded: The fingerprint.
        outputs: What the model's manifest says of its files.
        folder: The model's. Its weights are read, or their hashes recalled, where the manifest has
            hashes of another kind than the fingerprint.

    Returns:
        None where that cannot be said: the manifest lists no weights, or they cannot be read.
    """
    kind, found = kind_of(recorded), _weights(outputs)
    if not found:
        return None
    if kind is not None and {*map(kind_of, found.values())} != {kind}:
        try:
            found = {name: hash_cached(folder / name, kind) for name in found}
        except UserError:
            return None
    return combined(found) == recorded


def write_manifest(
    path: Path | str,
    *,
    kind: str,
    parameters: Mapping[str, Any],
    inputs: Mapping[str, Path | str] | None = None,
    outputs: Mapping[str, Path | str] | None = None,
    seed: int | None = None,
    code: Iterable[str] = (),
    extra: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Write an artefact's manifest, its last file to appear, and return it.

    Holds no time and no absolute path, so that equal work gives equal bytes.

    Args:
        path: The manifest's path, usually `manifest.json` in the artefact's folder.
        kind: What the artefact is: data, base, expert, merge, scores, table ...
        parameters: The resolved parameters of the step.
        inputs: By name, what was read: a file or folder to hash, or a ready hash as text.
        outputs: By name, what was written: a file to hash, or a ready hash as text.
        seed: The seed of the step, None where nothing is drawn.
        code: The entry points that made it; see `common.sources.reachable`.
        extra: Anything else that belongs to the record.
    """

    def hashes(items: Mapping[str, Path | str] | None) -> dict[str, str]:
        # Steps that hashed a file while they wrote it give the hash.
        named = (items or {}).items()
        return {name: hash_of(item) if isinstance(item, Path) else item for name, item in named}

    manifest = {
        "kind": kind,
        "parameters": dict(parameters),
        "inputs": hashes(inputs),
        "outputs": hashes(outputs),
        "seed": seed,
        "versions": library_versions(),
        "code": sources.version(code),
        "numerics": numerics.record(),
    }
    if extra:
        manifest["extra"] = dict(extra)
    _write_sealed(Path(path), manifest)
    return manifest


def _seal(record: Mapping[str, Any]) -> str:
    """Hash all of a manifest but its seal."""
    return sha256_json({name: value for name, value in record.items() if name != SEAL})


def _write_sealed(path: Path, record: dict[str, Any]) -> None:
    record[SEAL] = _seal(record)
    write_json(path, record)


def _is_whole(record: Any) -> bool:
    """Say whether a manifest is as it was written; older ones and those of others have no seal."""
    return not isinstance(record, dict) or SEAL not in record or record[SEAL] == _seal(record)


def read_manifest(path: Path | str) -> dict[str, Any]:
    """Read a manifest from its path or from its artefact's folder.

    Raises:
        UserError: There is none, it is not JSON, or it has other content than was written.
    """
    path = Path(path)
    path = path / NAME if path.is_dir() else path
    record: dict[str, Any] = read_json(path, unique=True)
    if not _is_whole(record):
        made = path.parent if path.name == NAME else path
        raise UserError(
            f"{path}: was changed or damaged since it was written; remove it and make again what "
            f"it describes, or, if this is meant, accept it: {ACCEPT} {made}"
        )
    return record


# In a folder that is opened, what no loader reads: an edit of it changes no number.
_UNREAD = (".md", ".png", ".pdf", ".tex")
# What may be gone: weights in other formats are often removed once they are converted.
_MAY_BE_GONE = (*_UNREAD, ".bin", ".pt", ".pth", ".csv")
_HASHED_AT_ONCE = 1 << 20  # bytes; a smaller file is hashed sooner than looked up in the cache
_DEPTH = 4  # folders above a file that may record it, as data does its test/SUITE/TASK.jsonl
# By the end of a file's name, what a manifest next to it may call it.
_ROLES = {".items.jsonl.gz": "items", ".json": "scores", ".jsonl": "rows"}


def beside(path: Path) -> Path:
    """Return the place of a single file's manifest: soup.json has soup.manifest.json.

    A name without a known ending, such as v0.1, is kept whole.
    """
    ending = next((ending for ending in _ROLES if path.name.endswith(ending)), "")
    return path.with_name(f"{path.name.removesuffix(ending)}.{NAME}")


@dataclass(frozen=True)
class _Claim:
    """What a manifest says of a file: its name there and its hash.

    Attributes:
        manifest: The manifest.
        name: The file's name in it.
        path: The file.
        hash: As recorded.
        made: What is removed and made again if the file is not so: the file or its folder.
    """

    manifest: Path
    name: str
    path: Path
    hash: str
    made: Path

    def found(self) -> str | None:
        """Return the file's hash, of the recorded one's kind; None where it is missing.

        Raises:
            OSError: It cannot be read.
        """
        try:
            small = self.path.stat().st_size < _HASHED_AT_ONCE
            return (hash_file if small else hash_cached)(self.path, kind_of(self.hash) or SHA256)
        except FileNotFoundError:
            return None

    def differs(self, found: str | None) -> str | None:
        """Say how a file with this hash (None: missing) differs from the record; None if not."""
        if found is None:
            return None if self.path.suffix in _MAY_BE_GONE else "is missing"
        return None if found == self.hash else "was changed, damaged or exchanged"

    def fault(self) -> str | None:
        """Say how the file differs from the record; None if it does not."""
        try:
            return self.differs(self.found())
        except OSError as error:
            return f"cannot be read ({error.strerror})"


def _outputs(manifest: Path) -> dict[str, str]:
    """Read the hashes in a manifest; none from a file of that name that is not one of ours."""
    record = read_manifest(manifest)
    outputs = record.get("outputs") if isinstance(record, dict) and "kind" in record else None
    if not isinstance(outputs, dict):
        return {}
    for name, recorded in outputs.items():
        # An own task has its items with those of the others, three folders up.
        inside = re.sub(r"^(\.\./){1,3}", "", name)
        plain = inside.isprintable() and inside and inside[0] != "/"
        if not plain or ".." in Path(inside).parts or not isinstance(recorded, str):
            raise UserError(
                f"{manifest}: {name!a} is no output with its hash; remove it and make again what "
                "it describes"
            )
        if kind_of(recorded) is None:
            raise UserError(
                f"{manifest}: {name!a} has a hash of an unknown kind, {recorded[:20]!a}; use the "
                "version that wrote it, or remove it and make again what it describes"
            )
    return outputs


def _claims(path: Path) -> Iterator[_Claim]:
    """Find what manifests say of a folder's files, or of one file; nothing where there is none.

    A path may have a name from a damaged file in it, longer than any that a system has: Path's own
    questions raise an error of it, those of os.path say that it is not there.
    """
    if os.path.isdir(path):
        manifest = path / NAME
        for name, recorded in _outputs(manifest).items() if manifest.is_file() else ():
            if not name.endswith(_UNREAD):
                yield _Claim(manifest, name, path / name, recorded, path)
        return
    for ending, role in _ROLES.items():
        if path.name.endswith(ending):
            manifest = beside(path)
            outputs = _outputs(manifest) if os.path.isfile(manifest) else {}
            for name in {path.name, role} & outputs.keys():
                yield _Claim(manifest, name, path, outputs[name], path)
                return
            if outputs:
                raise UserError(
                    f"{manifest}: does not record {path}, and may belong to another file; remove "
                    "it, or remove both and make them again"
                )
    for above in list(path.absolute().parents)[:_DEPTH]:
        # Messages name a folder as the user named the file.
        folder = above if path.is_absolute() else Path(os.path.relpath(above))
        name = path.absolute().relative_to(above).as_posix()
        outputs = _outputs(folder / NAME) if os.path.isfile(folder / NAME) else {}
        if name in outputs:
            yield _Claim(folder / NAME, name, path, outputs[name], folder)
            return


def recorded_hash(path: Path | str) -> str | None:
    """Return the hash that a file's manifest says, None where there is none."""
    return next((claim.hash for claim in _claims(Path(path))), None)


def check_recorded(path: Path | str) -> None:
    """Refuse files that are not as their manifest says; called wherever such a file is opened.

    Hashes of large files are recalled while the file stays as it is (`common.hashes`). Without
    a manifest, nothing can be said.

    Args:
        path: A folder with its manifest.json, or one file, whose manifest is next to it
            (NAME.manifest.json) or in a folder above it.

    Raises:
        UserError: A file that the manifest lists is missing or has other bytes.
    """
    began = time.thread_time()
    try:
        for claim in _claims(Path(path)):
            if fault := claim.fault():
                raise UserError(
                    f"{claim.path}: {fault} since {claim.manifest} was written; remove "
                    f"{claim.made} and make it again, or, if this is meant, accept it: "
                    f"{ACCEPT} {path}"
                )
    finally:
        count_check(time.thread_time() - began)


def accept(path: Path | str) -> list[str]:
    """Bring a manifest up to files that were changed on purpose; it keeps the earlier hashes.

    Args:
        path: As `check_recorded`.

    Returns:
        A line for each file that differed.

    Raises:
        UserError: No manifest records the path, or a file that one records cannot be read.
    """
    path, lines = Path(path), []
    # First the manifest itself: while its seal is wrong, nothing that it says is believed.
    own = path / NAME if path.is_dir() else path if path.name.endswith(NAME) else beside(path)
    if own.is_file() and not _is_whole(record := read_json(own)):
        record.setdefault("extra", {}).setdefault("accepted", {}).setdefault(NAME, record[SEAL])
        _write_sealed(own, record)
        lines.append(f"{own}: was changed; accepted in it")
    claims = list(_claims(path))
    if not claims and not lines:
        raise UserError(f"{path}: no manifest records it, so that there is nothing to accept")
    for claim in claims:
        try:
            found = claim.found()
        except OSError as error:
            raise UserError(
                f"{claim.path}: cannot be read ({error.strerror}) and so not accepted; make it "
                f"readable, or remove {claim.made} and make it again"
            ) from None
        if not (fault := claim.differs(found)):
            continue
        record = read_manifest(claim.manifest)
        accepted = record.setdefault("extra", {}).setdefault("accepted", {})
        accepted.setdefault(claim.name, claim.hash)
        if found is None:
            del record["outputs"][claim.name]
        else:
            record["outputs"][claim.name] = found
        _write_sealed(claim.manifest, record)
        lines.append(f"{claim.path}: {fault}; accepted in {claim.manifest}")
    return lines
