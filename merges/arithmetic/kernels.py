"""Compiled arithmetic on numpy arrays: what numpy lacks, and what it would take several passes for.

Every operation rounds as torch's own does, products that are added up with one rounding together
(fused multiply-add), so the results are torch's bit by bit. `merges.arithmetic.compiling` says how
kernels come to be.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np

from merges.arithmetic.compiling import Kernels, as_float, fused

_LARGEST = {  # finite magnitude of a stored type, as the bits of a float32
    "BF16": 0x7F7F0000,
    "F16": 0x477FE000,
    "F32": 0x7F7FFFFF,
}
_FINITE = _LARGEST["F32"]
TINY = np.float32(1.1754943508222875e-38)  # the smallest normal number
_COUNTERS = 1 << 16  # of a count: half a megabyte
KERNELS = Kernels()


@KERNELS.kernel("int64", "uint16*", "float32*", "int64")
def _widen(patterns, values, count):
    worst = np.uint16(0)
    for j in range(count):
        pattern = patterns[j]
        values[j] = as_float(np.uint64(pattern) << np.uint64(16))
        worst = max(worst, np.uint16(pattern & np.uint16(0x7FFF)))
    return np.int64(worst)


@KERNELS.kernel("void", "uint32*", "uint16*", "int64")
def _narrow(bits, patterns, count):
    for j in range(count):
        upper = bits[j] >> np.uint32(16)
        # To the nearest, halves to the even one: a carry continues into the exponent.
        half = np.uint32(0x7FFF) + np.uint32(upper & np.uint32(1))
        patterns[j] = np.uint16(np.uint32(bits[j] + half) >> np.uint32(16))


@KERNELS.kernel("int64", "uint32*", "int64")
def _largest(bits, count):
    worst = np.uint32(0)
    for j in range(count):
        worst = max(worst, np.uint32(bits[j] & np.uint32(0x7FFFFFFF)))
    return np.int64(worst)


@KERNELS.kernel("int64", "uint32*", "int64", "int64", "int64*")
def _ranked(bits, count, rank, counters):
    lowest, highest, shift = np.uint64(0xFFFFFFFF), np.uint64(0), np.uint64(0)
    for j in range(count):
        lowest = min(lowest, np.uint64(bits[j]))
        highest = max(highest, np.uint64(bits[j]))
    span = highest - lowest
    while span >> shift >= _COUNTERS:
        shift += np.uint64(1)
    # Twice: the upper bits say where the value is, the lower bits of those that are there which.
    while True:
        place = np.int64(span >> shift)
        for j in range(place + 1):
            counters[j] = 0
        for j in range(count):
            distance = np.uint64(bits[j]) - lowest
            if distance <= span:
                counters[np.int64(distance >> shift)] += 1
        while counters[place] < rank:
            rank -= counters[place]
            place -= 1
        lowest += np.uint64(place) << shift
        if not shift:
            return np.int64(lowest)
        span, shift = (np.uint64(1) << shift) - np.uint64(1), np.uint64(0)


@KERNELS.kernel("void", "float32*", "float32*", "float32", "int64")
def _add_multiple(total, values, factor, count):
    for j in range(count):
        total[j] = fused(values[j], factor, total[j])


@KERNELS.kernel("float64", "float32*", "float32*", "float64*", "int64")
def _product(x, y, places, count):
    # A separate sum for each of 32 places: the compiler computes several at once without
    # reordering any.
    whole = count - count % 32
    for j in range(0, whole, 32):
        for k in range(32):
            places[k] += np.float64(x[j + k]) * np.float64(y[j + k])
    total = 0.0
    for k in range(32):
        total += places[k]
    for j in range(whole, count):
        total += np.float64(x[j]) * np.float64(y[j])
    return total


@KERNELS.kernel("void", "float32*", "float32", "float32", "int64", "int64")
def _trim(values, first, rest, split, count):
    for j in range(count):
        limit = first if j < split else rest
        if -limit <= values[j] <= limit:
            values[j] = np.float32(0)


@KERNELS.kernel("void", "float32*", "int64")
def _elect(total, count):
    for j in range(count):
        value = total[j] + TINY
        total[j] = np.float32(value > 0) - np.float32(value < 0)


@KERNELS.kernel("void", "float32*", "float32*", "float32*", "float32*", "float32", "int64", "int64")
def _add_agreeing(merged, share, vector, sign, weight, sharing, count):
    zero = np.float32(0)
    for j in range(count):
        agreeing = vector[j] * sign[j]
        if agreeing < zero:
            agreeing = zero
        merged[j] += agreeing
        if sharing:
            share[j] += weight if agreeing > zero else zero


@KERNELS.kernel("void", "float32*", "float32*", "int64")
def _divide(merged, share, count):
    for j in range(count):
        merged[j] /= max(share[j], TINY)


def load() -> None:
    """Have the kernels ready: a process's first call of one loads them all."""
    KERNELS.load()


def widen(stored: np.ndarray, values: np.ndarray) -> bool:
    """Convert stored values to float32, exactly.

    Args:
        stored: Values [n] of float32 or float16, or the patterns of bfloat16 as uint16.
        values: Where to, float32 [n].

    Returns:
        Whether all are finite.
    """
    if stored.dtype == np.uint16:
        return bool(_widen(stored, values, values.size) < 0x7F80)
    values[:] = stored
    return bool(_largest(values, values.size) <= _FINITE)


def narrow(values: np.ndarray, dtype: str) -> np.ndarray | None:
    """Round values to the type in which they are stored, to the nearest, halves to even.

    Args:
        values: Float32 [n].
        dtype: BF16, F16 or F32.

    Returns:
        The values [n], bfloat16 as patterns in uint16; None where one is not finite or too large.
    """
    if _largest(values, values.size) > _LARGEST[dtype]:
        return None
    if dtype != "BF16":
        return values.astype(np.float16) if dtype == "F16" else values
    patterns = np.empty(values.shape, dtype=np.uint16)
    _narrow(values, patterns, values.size)
    return patterns


def combine(vectors: Sequence[np.ndarray], coefficients: Sequence[float]) -> np.ndarray:
    """Compute sum_i c_i v_i in place of the first vector; see `combination.combine`."""
    total = vectors[0]
    total *= np.float32(coefficients[0])
    for vector, coefficient in zip(vectors[1:], coefficients[1:], strict=True):
        _add_multiple(total, vector, coefficient, total.size)
    return total


def gram(vectors: Sequence[np.ndarray]) -> np.ndarray:
    """Compute the inner products, float64 [N, N], of N arrays of float32 [n]; sums are float64."""
    products = np.empty((len(vectors), len(vectors)))
    for i, first in enumerate(vectors):
        for j, second in enumerate(vectors[: i + 1]):
            products[i, j] = products[j, i] = _product(first, second, np.zeros(32), first.size)
    return products


def trim(values: np.ndarray, first: float, rest: float, split: int) -> np.ndarray:
    """Zero, in place, values that are not larger in magnitude than a limit.

    Args:
        values: Float32 [n].
        first: The limit before position `split`, which may be outside.
        rest: The limit from there on.
    """
    _trim(values, first, rest, min(max(split, 0), values.size), values.size)
    return values


def merge_agreeing(
    vectors: Sequence[np.ndarray],
    weights: Sequence[float] | None,
    merge: Literal["mean", "sum"],
) -> np.ndarray:
    """Do what `merges.methods.ties.merge_agreeing` does, for float32 [n] arrays."""
    if weights is not None:
        for vector, weight in zip(vectors, weights, strict=True):
            vector *= np.float32(weight)
    sign = vectors[0].copy()
    for vector in vectors[1:]:
        sign += vector
    _elect(sign, sign.size)
    merged = np.zeros_like(sign)
    share = np.zeros_like(sign if merge == "mean" else sign[:0])
    for vector, weight in zip(vectors, weights or [1.0] * len(vectors), strict=True):
        _add_agreeing(merged, share, vector, sign, weight, merge == "mean", sign.size)
    if merge == "mean":
        _divide(merged, share, merged.size)
    merged *= sign
    return merged


def ranked(magnitudes: np.ndarray, rank: int) -> float:
    """Return the rank-th largest of magnitudes.

    Their bits are in their order, and counting bits is faster than selecting values.

    Args:
        magnitudes: Not negative, no NaN, float32 [n].
        rank: From 1 to n.
    """
    counters = np.empty(_COUNTERS, dtype=np.int64)
    bits = _ranked(magnitudes.view(np.uint32), magnitudes.size, rank, counters)
    return float(np.uint32(bits).view(np.float32))
