"""Hidden states of all tokens on disk, read and written a batch of rows at a time."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor


class Stream:
    """One vector for each token, in a file.

    Args:
        path: The file.
        width: Length of a vector.
        dtype: Its type.
    """

    def __init__(self, path: Path, width: int, dtype: torch.dtype) -> None:
        self.path, self._width, self._dtype = path, width, dtype
        self._bytes = width * dtype.itemsize

    def start(self) -> None:
        """Begin the file anew."""
        self.path.write_bytes(b"")

    def append(self, values: Tensor) -> None:
        """Write the next tokens' vectors, (tokens, width)."""
        values = values.detach().to("cpu", self._dtype).contiguous()
        with open(self.path, "ab") as file:
            file.write(values.view(torch.uint8).numpy().data)

    def read(self, start: int, stop: int) -> Tensor:
        """Read the vectors of tokens [start, stop), (tokens, width)."""
        values = torch.empty(stop - start, self._width, dtype=self._dtype)
        with open(self.path, "rb") as file:
            file.seek(start * self._bytes)
            file.readinto(values.view(torch.uint8).numpy().data)
        return values

    def remove(self) -> None:
        """Delete the file."""
        self.path.unlink(missing_ok=True)
