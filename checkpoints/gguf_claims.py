"""The counts and lengths in a GGUF file, compared with its size before a library believes them."""

from __future__ import annotations

import io
import struct
from collections.abc import Iterator
from typing import BinaryIO

_SCALARS = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}  # bytes by type
_TEXT, _LIST = 8, 9
_MOST = 1 << 22  # entries of a list; the largest vocabularies have a quarter of a million
_DEEPEST = 4  # lists in one another; the format's own keys have one


class _Walker:
    """Goes through a file's keys and tensors without keeping what they say.

    Args:
        stream: The file, at its beginning.
        size: Its size.
    """

    def __init__(self, stream: BinaryIO, size: int) -> None:
        self._stream, self._size = stream, size
        magic, version = self._stream.read(4), self._stream.read(4)
        if magic != b"GGUF" or len(version) < 4:
            raise ValueError("it does not begin as a GGUF file")
        # Written for machines of the other byte order, the version is in the upper half.
        self._order = "<" if struct.unpack("<I", version)[0] & 0xFFFF else ">"

    def number(self, kind: str = "Q") -> int:
        """Read a number: Q of 8 bytes, I of 4."""
        content = self._stream.read(struct.calcsize(f"<{kind}"))
        try:
            return int(struct.unpack(self._order + kind, content)[0])
        except struct.error:
            raise ValueError("it ends within its header") from None

    def skip(self, length: int) -> None:
        """Pass over so many bytes, which must be there."""
        if length > self._size - self._stream.tell():
            raise ValueError("a length in its header is beyond its end")
        self._stream.seek(length, io.SEEK_CUR)

    def counted(self, count: int, least: int) -> Iterator[int]:
        """Yield the numbers of entries that take at least so many bytes each."""
        if count * least > self._size - self._stream.tell() or count > _MOST:
            raise ValueError(f"its header has a count of {count}, too many for it")
        return iter(range(count))

    def value(self, kind: int, depth: int = 0) -> None:
        """Pass over a value of a type."""
        if kind in _SCALARS:
            self.skip(_SCALARS[kind])
        elif kind == _TEXT:
            self.skip(self.number())
        elif kind == _LIST and depth < _DEEPEST:
            inner, count = self.number("I"), self.number()
            entries = self.counted(count, _SCALARS.get(inner, 8))
            if inner in _SCALARS:
                self.skip(count * _SCALARS[inner])
                return
            for _ in entries:
                self.value(inner, depth + 1)
        else:
            raise ValueError(f"its header has a value of type {kind}")


def check_claims(stream: BinaryIO, size: int) -> None:
    """Compare every count and length in a GGUF file's header with what the file can hold.

    Readers go through as many entries as a header says, whether or not the file has them.

    Args:
        stream: The file, at its beginning.
        size: Its size in bytes.

    Raises:
        ValueError: A claim cannot be true; says which kind.

    Source:
        The format's description, ggml-org/ggml, docs/gguf.md, versions 2 and 3.
    """
    walker = _Walker(stream, size)
    tensors, keys = walker.number(), walker.number()
    for _ in walker.counted(keys, 12):
        walker.skip(walker.number())
        walker.value(walker.number("I"))
    for _ in walker.counted(tensors, 24):
        walker.skip(walker.number())
        dimensions = walker.number("I")
        walker.counted(dimensions, 8)
        walker.skip(8 * dimensions + 12)
