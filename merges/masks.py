"""Random masks that depend on nothing but what they are a mask of."""

from __future__ import annotations

import hashlib
import json
import math

import numpy as np
import torch

_CHUNK = 1 << 20  # bounds the memory of the 64-bit draws; a multiple of Philox's four per block


def _generator(seed: int, expert: str, tensor: str) -> np.random.Philox:
    identity = json.dumps([seed, expert, tensor], ensure_ascii=False).encode()
    return np.random.Philox(key=int.from_bytes(hashlib.sha256(identity).digest()[:16], "little"))


def keep_mask(
    shape: torch.Size | tuple[int, ...], density: float, *, seed: int, expert: str, tensor: str
) -> torch.Tensor:
    """Draw a Bernoulli mask that is a pure function of seed, expert, tensor name and position.

    Position p (row-major) is kept where the upper 53 bits of the p-th output of the counter-based
    generator Philox4x64-10, keyed by a sha256 of seed, expert and tensor name, are less than
    density * 2^53. Order of the tensors, threads, shards and device have no part in it.

    Args:
        shape: The parameter's shape.
        density: Probability of being kept, in (0, 1].
        seed: Seed of the merge.
        expert: The expert's name.
        tensor: The parameter's name.

    Returns:
        A bool tensor of that shape, True where the value is kept.

    Source:
        Salmon et al., Parallel random numbers: as easy as 1, 2, 3, SC 2011 (Philox).
    """
    generator = _generator(seed, expert, tensor)
    limit = np.uint64(math.ceil(density * 2.0**53))
    count = math.prod(shape)
    mask = np.empty(count, dtype=bool)
    for start in range(0, count, _CHUNK):
        draws = generator.random_raw(min(_CHUNK, count - start))
        np.less(draws >> np.uint64(11), limit, out=mask[start : start + len(draws)])
    return torch.from_numpy(mask).reshape(tuple(shape))
