"""Random numbers that depend only on the seed, the expert, the tensor and the position."""

from __future__ import annotations

import functools
import hashlib
import json
import math
import threading
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import torch

Stream = tuple[int, str, str]

_KEPT = 64  # generators a thread keeps: more than a merge has experts
_CHUNK = 1 << 20  # values at a time; bounds the memory of the draws


@functools.lru_cache(maxsize=256)
def _key(stream: Stream) -> int:
    identity = json.dumps(list(stream), ensure_ascii=False).encode()
    return int.from_bytes(hashlib.sha256(identity).digest()[:16], "little")


class _Generators(threading.local):
    """A thread's latest generators: pieces come in order, and seeding costs as much as drawing."""

    def __init__(self) -> None:
        self.kept: dict[int, tuple[np.random.PCG64DXSM, int]] = {}


_generators = _Generators()


def _draws(key: int, start: int, count: int, dtype: str) -> np.ndarray:
    """Return the draws at positions [start, start + count) of a stream."""
    a_word = 8 // np.dtype(dtype).itemsize
    word, skip = divmod(start, a_word)
    kept = _generators.kept
    generator, position = kept.pop(key, (None, 0))
    if generator is None:
        generator = np.random.PCG64DXSM(key)
    if word != position:
        generator.advance(word - position)
    words = generator.random_raw(-(-(skip + count) // a_word))
    kept[key] = generator, word + len(words)
    if len(kept) > _KEPT:
        del kept[next(iter(kept))]
    return words.astype("<u8", copy=False).view(dtype)[skip : skip + count]


def _hash(values: np.ndarray) -> np.ndarray:
    """Scramble 64-bit integers (the finaliser of SplitMix64)."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


def _places(rare: np.ndarray) -> np.ndarray:
    """Return where a bool array [n] is True, as `np.flatnonzero`, quickly where it seldom is."""
    whole = len(rare) - len(rare) % 8
    words = np.flatnonzero(rare[:whole].view(np.uint64) != 0)
    found = np.flatnonzero(rare[:whole].reshape(-1, 8)[words])
    near = 8 * words[found >> 3] + (found & 7)
    return np.concatenate([near, whole + np.flatnonzero(rare[whole:])])


def keep_array(stream: Stream, start: int, count: int, density: float) -> np.ndarray:
    """Draw a Bernoulli mask that is a pure function of seed, expert, tensor name and position.

    Position p (row-major) is kept where the p-th byte of the generator PCG64DXSM, seeded with a
    sha256 of seed, expert and tensor name, is less than density * 2^8. Where it equals the integer
    part of that, which happens once in 256, 53 more bits, hashed from position and stream, decide,
    so that the probability is the density to double precision. Order of the tensors, threads,
    pieces, shards and device have no part in it.

    Args:
        stream: Seed of the merge, the expert's name, the parameter's name.
        start: Position of the first value.
        count: Number of values.
        density: Probability of being kept, in (0, 1].

    Returns:
        A bool array [count], True where the value is kept.

    Source:
        O'Neill, PCG: a family of simple fast space-efficient statistically good algorithms for
        random number generation, 2014; it can be advanced to any position.
    """
    if density >= 1:
        return np.ones(count, dtype=bool)
    mask = np.empty(count, dtype=bool)
    key = _key(stream)
    whole = math.floor(density * 256)
    fraction = np.uint64((density * 256 - whole) * 2.0**53)
    for low in range(0, count, _CHUNK):
        part = mask[low : low + _CHUNK]
        draws = _draws(key, start + low, len(part), "u1")
        np.less(draws, np.uint8(whole), out=part)
        # A byte resolves 1/256: where it equals the integer part, finer hashed bits decide.
        if fraction:
            undecided = _places(draws == whole)
            bits = _hash((undecided + (start + low)).astype(np.uint64) ^ np.uint64(key >> 64))
            part[undecided] = (bits >> np.uint64(11)) < fraction
    return mask


def keep_mask(stream: Stream, start: int, count: int, density: float) -> torch.Tensor:
    """Draw the mask of `keep_array` as a tensor."""
    import torch

    return torch.from_numpy(keep_array(stream, start, count, density))


def uniform(stream: Stream, start: int, count: int) -> torch.Tensor:
    """Draw numbers of [0, 1), a pure function of seed, expert, tensor name and position.

    They are the upper 24 bits of 32-bit draws of the generator of `keep_mask`, exact in float32.

    Args:
        stream: Seed of the merge, the expert's name, the parameter's name.
        start: Position of the first value.
        count: Number of values.

    Returns:
        A float32 tensor [count].
    """
    import torch

    draws = _draws(_key(stream), start, count, "<u4")
    return torch.from_numpy((draws >> np.uint32(8)).astype(np.float32) * np.float32(2.0**-24))
