"""Hashes of large files, computed once: a file that has not changed is not read again for them."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import time
from collections.abc import Mapping
from pathlib import Path

from common.errors import UserError
from common.files import write_bytes

VARIABLE = "BOTTLE_HASH_CACHE"  # a file to use instead, or "off"
_BLOCK = 8 << 20
_SETTLED_NS = 2_000_000_000  # a file changed twice within this may show one modification time
_MOST = 10_000  # entries; the oldest make room


def _cache_file() -> Path | None:
    chosen = os.environ.get(VARIABLE, "")
    if chosen == "off":
        return None
    return Path(chosen) if chosen else _standard_folder() / "hashes.json"


def cache_folder() -> Path | None:
    """Return the folder of all that commands recall from earlier ones; None without one."""
    file = _cache_file()
    return file.parent if file else None


def _standard_folder() -> Path:
    top = os.environ.get("XDG_CACHE_HOME", "")
    # The standard has relative paths ignored.
    folder = Path(top) if top and Path(top).is_absolute() else Path("~/.cache").expanduser()
    return folder / "merging-in-a-bottle"


_parsed: tuple[list[int], dict[str, list]] = ([], {})  # the cache as it was last, and its content
_unwritten: dict[str, list] = {}  # what this process could not write to the cache


def _read(cache: Path) -> dict[str, list]:
    """Read the cache; one that is damaged or of another form counts as empty."""
    global _parsed
    try:
        with open(cache, "rb") as stream:
            state = _state(stream)
            if state != _parsed[0]:
                value = json.load(stream)
                _parsed = (state, value if isinstance(value, dict) else {})
    except (OSError, ValueError, RecursionError):
        return {}
    return _parsed[1]


def _state(stream) -> list[int]:
    # The time of the last change of any kind cannot be set back, unlike that of modification.
    status = os.fstat(stream.fileno())
    return [status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino, status.st_dev]


def _remember(cache: Path, path: str, entry: list) -> None:
    # A cache that cannot be written is no reason to stop a merge, nor to read gigabytes again.
    _unwritten[path] = entry
    with contextlib.suppress(OSError, UserError):
        cache.parent.mkdir(parents=True, exist_ok=True)
        with open(cache.with_name(cache.name + ".lock"), "a") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            entries = {name: held for name, held in _read(cache).items() if name != path}
            entries[path] = entry
            kept = dict(list(entries.items())[-_MOST:])
            write_bytes(cache, json.dumps(kept).encode())
        del _unwritten[path]


def sha256_cached(path: Path | str) -> str:
    """Return a file's sha256 in hexadecimal digits, recalled where the file is as it was then.

    Recalled by resolved path, size, times of modification and change, inode and device, from
    ``$XDG_CACHE_HOME/merging-in-a-bottle/hashes.json`` (by default below ``~/.cache``), or from
    the file that the environment variable BOTTLE_HASH_CACHE names; ``off`` always reads. Files
    changed less than two seconds ago are not remembered.

    Raises:
        UserError: The file cannot be read.
    """
    cache, name = _cache_file(), os.path.realpath(path)
    try:
        with open(path, "rb", buffering=0) as stream:
            state = _state(stream)
            if cache is not None:
                entry = _read(cache).get(name, _unwritten.get(name))
                if isinstance(entry, list) and entry[:-1] == state and _is_hash(entry[-1]):
                    return entry[-1]
            settled = time.time_ns() - max(state[1:3]) > _SETTLED_NS
            digest = hashlib.sha256()
            block = memoryview(bytearray(min(_BLOCK, state[0] + 1)))
            while got := stream.readinto(block):
                digest.update(block[:got])
            settled = settled and _state(stream) == state  # else it changed while it was read
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); correct the path") from None
    if cache is not None and settled:
        _remember(cache, name, [*state, digest.hexdigest()])
    return digest.hexdigest()


def combined(hashes: Mapping[str, str]) -> str:
    """Hash the names and hashes of files, in the order given: one for a model of several files."""
    lines = "".join(f"{name} {sha256}\n" for name, sha256 in hashes.items())
    return hashlib.sha256(lines.encode()).hexdigest()


def _is_hash(value: object) -> bool:
    return isinstance(value, str) and len(value) == 64 and set(value) <= set("0123456789abcdef")
