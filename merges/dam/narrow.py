"""Merged weights in bfloat16 on a CPU, compiled: nothing is widened but in registers.

torch widens every model's weight to float32 in memory before it multiplies, which takes several
times as long as to read it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache

import numpy as np
import torch
from torch import Tensor

from merges.arithmetic.compiling import Kernels, addresses, as_bits, as_float, fused, singles

# Columns of a buffer: with those of the models, gradient and sums a row's part stays in a
# first-level cache of 32 kB.
_RUN = 512
_MOST = 8  # models whose sums have room
_ROOM = _MOST * _RUN
_ROWS = 64  # of a block, whose products are added up in float32; blocks are in float64
KERNELS = Kernels()


@KERNELS.kernel("void", "uint16**", "int64", "float32*", "uint16*", "int64", "int64", "int64")
def _merge(weights, number, factors, merged, first, last, columns):
    total = singles(_RUN)
    for row in range(first, last):
        for start in range(0, columns, _RUN):
            size, place = min(_RUN, columns - start), row * columns + start
            for i in range(number):
                x, own = weights[i], i * columns + start
                for j in range(size):
                    value = as_float(np.uint64(x[place + j]) << np.uint64(16))
                    factor = factors[own + j]
                    total[j] = fused(value, factor, total[j]) if i else value * factor
            for j in range(size):
                bits = as_bits(total[j])
                upper = np.uint32(bits >> np.uint32(16))
                half = np.uint32(0x7FFF) + np.uint32(upper & np.uint32(1))
                merged[place + j] = np.uint16(np.uint32(bits + half) >> np.uint32(16))


@KERNELS.kernel("void", "uint16*", "uint16**", "int64", "float64*", "int64", "int64", "int64")
def _reduce(gradient, weights, number, sums, first, last, columns):
    own, wide = singles(_ROOM), singles(_RUN)
    for start in range(0, columns, _RUN):
        size = min(_RUN, columns - start)
        for j in range(number * _RUN):
            own[j] = np.float32(0)
        for row in range(first, last):
            place = row * columns + start
            for j in range(size):
                wide[j] = as_float(np.uint64(gradient[place + j]) << np.uint64(16))
            for i in range(number):
                x, at = weights[i], i * _RUN
                for j in range(size):
                    value = as_float(np.uint64(x[place + j]) << np.uint64(16))
                    own[at + j] = fused(wide[j], value, own[at + j])
        for i in range(number):
            for j in range(size):
                sums[i * columns + start + j] += np.float64(own[i * _RUN + j])


def serves(weights: Sequence[Tensor], coefficients: Tensor) -> bool:
    """Whether these weights and their coefficients, each of a column or of all, go this way."""
    one = weights[0]
    return (
        one.dtype == torch.bfloat16
        and one.device.type == "cpu"
        and one.ndim == 2
        and len(weights) <= _MOST
        and all(weight.is_contiguous() for weight in weights)
        and coefficients.dtype == torch.float32
        and coefficients.ndim == 3
        and coefficients.shape[1] == 1
    )


@cache
def _pool(threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads)


def _in_blocks(work: Callable[[int, int, int], None], rows: int, most: int) -> None:
    """Call a function with the number of each block of rows, its first one and its last one's end.

    Args:
        work: The function; blocks go side by side, by as many threads as torch has.
        rows: How many there are.
        most: Rows of a block.
    """
    blocks = [(n, at, min(at + most, rows)) for n, at in enumerate(range(0, rows, most))]
    threads = min(torch.get_num_threads(), len(blocks))
    if threads < 2:
        for block in blocks:
            work(*block)
    else:
        for done in [_pool(threads).submit(work, *block) for block in blocks]:
            done.result()


def _patterns(tensor: Tensor) -> np.ndarray:
    return tensor.detach().contiguous().view(torch.int16).numpy().view(np.uint16)


def merge(weights: Sequence[Tensor], coefficients: Tensor) -> Tensor:
    """Compute W = sum_i W_i diag(c_i), added up in float32 and rounded once.

    Args:
        weights: M tensors (rows, columns), bfloat16, contiguous.
        coefficients: (M, 1, columns) or (M, 1, 1), float32.

    Returns:
        W (rows, columns), bfloat16: bit by bit what `MergedWeight` computes without kernels.
    """
    rows, columns = weights[0].shape
    merged = torch.empty_like(weights[0])
    factors = coefficients.detach().expand(-1, 1, columns).contiguous().numpy()
    own, result = [_patterns(weight) for weight in weights], _patterns(merged)
    places = addresses(own)

    def work(_: int, first: int, last: int) -> None:
        _merge(places, len(own), factors, result, first, last, columns)

    _in_blocks(work, rows, max(rows // torch.get_num_threads(), 1) + 1)
    return merged


def reduce(gradient: Tensor, weights: Sequence[Tensor], shape: Sequence[int]) -> Tensor:
    """Compute dL/dc_ij = sum_m (dL/dW)_mj (W_i)_mj, the same for every number of threads.

    Args:
        gradient: dL/dW (rows, columns), bfloat16.
        weights: M tensors (rows, columns), bfloat16, contiguous.
        shape: Of the coefficients: (M, 1, columns), or (M, 1, 1), where columns are added up too.

    Returns:
        dL/dc in that shape, float32.
    """
    rows, columns = weights[0].shape
    own, upstream = [_patterns(weight) for weight in weights], _patterns(gradient)
    places = addresses(own)
    sums = np.zeros((-(-rows // _ROWS), len(own), 1, columns))

    def work(block: int, first: int, last: int) -> None:
        _reduce(upstream, places, len(own), sums[block], first, last, columns)

    _in_blocks(work, rows, _ROWS)
    total = sums.sum(0) if shape[2] > 1 else sums.sum((0, 3), keepdims=True)[0]
    return torch.from_numpy(total.astype(np.float32))
