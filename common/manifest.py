"""Manifests: what an artefact was made from, how, and with which code."""

from __future__ import annotations

import functools
import importlib.metadata
import platform
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from common import numerics, sources
from common.files import read_json, sha256_file, write_json

NAME = "manifest.json"
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
    """Hash an artefact: a file by its bytes, a folder by its manifest's."""
    path = Path(path)
    return sha256_file(path / NAME if path.is_dir() else path)


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
    write_json(path, manifest)
    return manifest


def read_manifest(path: Path | str) -> dict[str, Any]:
    """Read a manifest from its path or from its artefact's folder."""
    path = Path(path)
    return read_json(path / NAME if path.is_dir() else path)
