"""Atomic files and folders: written under another name, fsynced, renamed."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from common.errors import UserError

# What Python's reader of JSON and of UTF-8 raises: also for numbers of thousands of digits, and for
# what is nested too deeply.
MALFORMED = (ValueError, RecursionError)
_OS_ERROR = re.compile(r"\(os error (\d+)\)")


def sha256_file(path: Path | str) -> str:
    """Return the sha256 of a file's bytes as 64 hexadecimal digits."""
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def encoded(text: str) -> bytes:
    """Encode as UTF-8; half a surrogate, which JSON may hold, becomes its escape in JSON."""
    return text.encode(errors="backslashreplace")


def sha256_json(value: Any) -> str:
    """Hash a JSON value, whatever the order of its keys."""
    text = json.dumps(value, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    return hashlib.sha256(encoded(text)).hexdigest()


def _each_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"{twice[:50]!a} is there twice")
    return found


def read_json(path: Path | str, *, unique: bool = False) -> Any:
    """Read a JSON file.

    Args:
        path: The file.
        unique: Whether an object that has a name twice is refused, of which readers take either.

    Raises:
        UserError: The file is missing or is not JSON.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
        return json.loads(text, object_pairs_hook=_each_once if unique else None)
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; make it first, or correct the path") from None
    except MALFORMED as error:
        raise UserError(f"{path}: not valid JSON ({error}); make the file again") from None


def read_jsonl(path: Path | str) -> list[dict[str, Any]]:
    """Read a file of JSON lines, one value each.

    Raises:
        UserError: The file is missing or a line is not JSON.
    """
    rows = []
    try:
        with open(path, encoding="utf-8") as stream:
            for number, line in enumerate(stream, 1):
                try:
                    rows.append(json.loads(line))
                except MALFORMED as error:
                    raise UserError(
                        f"{path}, line {number}: not valid JSON ({error}); make the file again"
                    ) from None
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; make it first, or correct the path") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 ({error}); make the file again") from None
    return rows


def _failure(error: Exception, path: Path) -> tuple[int, str] | None:
    """Return the system's number and words for a failed write of a path; None for other errors."""
    if isinstance(error, OSError):
        # A file elsewhere, or one that is not there, was to be read: not this path's failure.
        names = [name for name in (error.filename, error.filename2) if isinstance(name, str | Path)]
        own = path.absolute()
        ours = not names or any(
            Path(name).absolute().is_relative_to(own.parent)
            or own.is_relative_to(Path(name).absolute())
            for name in names
        )
        if error.errno is None or error.errno == errno.ENOENT or not ours:
            return None
        return error.errno, error.strerror or os.strerror(error.errno)
    # Libraries in Rust wrap the system's error in another one and keep only its text.
    found = _OS_ERROR.search(str(error))
    return (int(found[1]), os.strerror(int(found[1]))) if found else None


@contextlib.contextmanager
def _explaining_a_failed_write(path: Path) -> Iterator[None]:
    try:
        yield
    except Exception as error:
        failure = _failure(error, path)
        if failure is None:
            raise
        number, words = failure
        if number in (errno.ENOSPC, errno.EDQUOT):
            raise UserError(
                f"the disk is full while writing {path}; nothing was left half-written: "
                "free some space and run the same command again"
            ) from None
        raise UserError(
            f"{path}: {words} while it was made; nothing was left half-written: make the place "
            "writable or give another, then run the same command again"
        ) from None


def existing_above(path: Path) -> Path:
    """Return a path, or the nearest folder above it that is there."""
    path = path.absolute()
    return next(place for place in (path, *path.parents) if place.exists())


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _aside(path: Path, what: str) -> Path:
    """Name a temporary sibling of a path, and clear those that killed processes left behind."""
    for left in path.parent.glob(f".{path.name}.*.*"):
        owner, _, kind = left.name.removeprefix(f".{path.name}.").partition(".")
        dead = owner.isdigit() and not Path("/proc", owner).exists()
        if dead and kind in ("partial", "replaced"):
            shutil.rmtree(left) if left.is_dir() else left.unlink(missing_ok=True)
    return path.with_name(f".{path.name}.{os.getpid()}.{what}")


def write_bytes(path: Path | str, content: bytes) -> None:
    """Write a file atomically: at any time it is the old one or the complete new one.

    Missing folders are made.

    Raises:
        UserError: The disk is full, or the system refuses; the old file, if any, is untouched.
    """
    path = Path(path)
    aside = _aside(path, "partial")
    with _explaining_a_failed_write(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with open(aside, "wb") as stream:
                stream.write(content)
                stream.flush()
                os.fsync(stream.fileno())
            os.replace(aside, path)
        finally:
            aside.unlink(missing_ok=True)
        _sync(path.parent)


def write_text(path: Path | str, text: str) -> None:
    """Write a text file (UTF-8) atomically; see `write_bytes`."""
    write_bytes(path, encoded(text))


def write_json(path: Path | str, value: Any) -> None:
    """Write JSON with sorted keys atomically; see `write_bytes`."""
    write_text(path, json.dumps(value, sort_keys=True, ensure_ascii=False, indent=1) + "\n")


def write_jsonl(path: Path | str, rows: Iterable[Any]) -> None:
    """Write one JSON value a line, atomically; see `write_bytes`."""
    write_text(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


@contextlib.contextmanager
def staged_directory(final: Path | str) -> Iterator[Path]:
    """Fill a folder aside and put it in its place only when it is complete.

    Args:
        final: The folder to make or replace.

    Yields:
        A new empty folder next to it, to be filled.

    Raises:
        UserError: The disk is full, or the system refuses; a folder at `final` is untouched.
    """
    final = Path(final)
    aside, old = _aside(final, "partial"), _aside(final, "replaced")
    with _explaining_a_failed_write(final):
        try:
            aside.mkdir(parents=True)
            yield aside
            for folder, _, files in os.walk(aside):
                for name in files:
                    _sync(Path(folder) / name)
                _sync(Path(folder))
            if final.exists():  # a folder that is not empty cannot be replaced in one step
                os.replace(final, old)
            try:
                os.replace(aside, final)
            except OSError:
                if old.exists():
                    os.replace(old, final)
                raise
            _sync(final.parent)
        finally:
            shutil.rmtree(aside, ignore_errors=True)
            shutil.rmtree(old, ignore_errors=True)
