"""Hashes of files: of two kinds, and of large files computed once as long as these do not change.

Weights are hashed with BLAKE3, which takes less time than SHA-256, all else with SHA-256. A
recorded hash says which it is: 64 hexadecimal digits, after ``blake3:`` for the former.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import time
from collections.abc import Iterable, Mapping
from io import FileIO
from pathlib import Path
from typing import Any

from common.errors import UserError
from common.files import write_bytes

SHA256, BLAKE3 = "", "blake3:"  # how a hash of the kind begins
VARIABLE = "BOTTLE_HASH_CACHE"  # a file to use instead, or "off"
_BLOCK = 8 << 20
_SETTLED_NS = 2_000_000_000  # a file changed twice within this may show one modification time
_MOST = 10_000  # entries; the oldest make room


def kind_of(recorded: object) -> str | None:
    """Return the kind of a recorded hash, SHA256 or BLAKE3; None where it is of no known one."""
    kind = recorded[: recorded.find(":") + 1] if isinstance(recorded, str) else None
    return kind if kind in (SHA256, BLAKE3) else None


def kind_for(path: Path | str) -> str:
    """Return the kind of hash that a new record has of a file: BLAKE3 of weights."""
    return BLAKE3 if Path(path).suffix == ".safetensors" else SHA256


def named(recorded: str) -> str:
    """Write a recorded hash for readers: ``sha256 DIGITS`` or ``blake3 DIGITS``."""
    return recorded.replace(":", " ") if kind_of(recorded) == BLAKE3 else f"sha256 {recorded}"


class Digest:
    """A hash in the making.

    Args:
        kind: SHA256 or BLAKE3.

    Attributes:
        update: Takes further bytes.
    """

    def __init__(self, kind: str) -> None:
        self._kind, self._digest = kind, _blake3() if kind == BLAKE3 else hashlib.sha256()
        self.update = self._digest.update

    def text(self) -> str:
        """Return the hash as it is recorded."""
        return self._kind + self._digest.hexdigest()


def _blake3() -> Any:
    from blake3 import blake3  # most commands hash no weights

    return blake3()


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


def _hash(stream: FileIO, kind: str, size: int) -> str:
    digest = Digest(kind)
    block = memoryview(bytearray(min(_BLOCK, size + 1)))
    while got := stream.readinto(block):
        digest.update(block[:got])
    return digest.text()


def hash_file(path: Path | str, kind: str) -> str:
    """Read a file and return its hash of a kind.

    Raises:
        OSError: It cannot be read.
    """
    with open(path, "rb", buffering=0) as stream:
        return _hash(stream, kind, os.fstat(stream.fileno()).st_size)


def hash_cached(path: Path | str, kind: str) -> str:
    """Return a file's hash of a kind, recalled where the file is as it was then.

    Recalled by resolved path, size, times of modification and change, inode and device, from
    ``$XDG_CACHE_HOME/merging-in-a-bottle/hashes.json`` (by default below ``~/.cache``), or from
    the file that the environment variable BOTTLE_HASH_CACHE names; ``off`` always reads. Files
    changed less than two seconds ago are not remembered.

    Raises:
        UserError: The file cannot be read.
    """
    cache, name = _cache_file(), kind + os.path.realpath(path)
    try:
        with open(path, "rb", buffering=0) as stream:
            state = _state(stream)
            if cache is not None:
                entry = _read(cache).get(name, _unwritten.get(name))
                if isinstance(entry, list) and entry[:-1] == state and _is_hash(entry[-1], kind):
                    return entry[-1]
            settled = time.time_ns() - max(state[1:3]) > _SETTLED_NS
            found = _hash(stream, kind, state[0])
            settled = settled and _state(stream) == state  # else it changed while it was read
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); correct the path") from None
    if cache is not None and settled:
        _remember(cache, name, [*state, found])
    return found


def hash_text(text: str, kind: str) -> str:
    """Return the hash of a kind of a text's UTF-8."""
    digest = Digest(kind)
    digest.update(text.encode())
    return digest.text()


def combined(hashes: Mapping[str, str]) -> str:
    """Hash the names and hashes of files, in the order given: one for a model of several files.

    It is of their kind, of SHA256 where they are of several.
    """
    kind = BLAKE3 if {*map(kind_of, hashes.values())} == {BLAKE3} else SHA256
    return hash_text("".join(f"{name} {own}\n" for name, own in hashes.items()), kind)


def hash_files(paths: Iterable[Path], kind: str) -> str:
    """Hash the names and hashes of files, in the order given; see `hash_cached`."""
    return combined({path.name: hash_cached(path, kind) for path in paths})


def _is_hash(value: object, kind: str) -> bool:
    if not (isinstance(value, str) and kind_of(value) == kind):
        return False
    digits = value.removeprefix(kind)
    return len(digits) == 64 and set(digits) <= set("0123456789abcdef")
