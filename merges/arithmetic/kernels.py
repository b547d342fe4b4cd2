"""Compiled arithmetic on numpy arrays: what numpy lacks, and what it would take several passes for.

Python's lock is free while these run, so that threads merge side by side. Every operation rounds
as torch's own does, products that are added up with one rounding together (fused multiply-add), so
the results are torch's bit by bit. Nothing is reordered: they are the same on every processor.

The first use on a machine compiles; the result is kept next to this file, or in the user's cache
where this folder cannot be written.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

import numba
import numpy as np
from numba.extending import intrinsic

_OPTIONS = {"nogil": True, "error_model": "numpy"}
_LARGEST = {  # finite magnitude of a stored type, as the bits of a float32
    "BF16": 0x7F7F0000,
    "F16": 0x477FE000,
    "F32": 0x7F7FFFFF,
}
_FINITE = _LARGEST["F32"]


def _compiled(function: Callable) -> Any:
    try:
        return numba.njit(cache=True, **_OPTIONS)(function)
    except RuntimeError:  # no folder to keep the outcome in
        return numba.njit(**_OPTIONS)(function)


@intrinsic
def _fused(context, x, y, z):
    """Compute x * y + z with one rounding."""

    def build(context, builder, signature, arguments):
        return builder.fma(*arguments)

    return x(x, y, z), build


@_compiled
def _widen(patterns, values):
    bits = values.view(np.uint32)
    worst = np.uint16(0)
    for j in range(patterns.size):
        pattern = patterns[j]
        bits[j] = np.uint32(pattern) << np.uint32(16)
        worst = max(worst, np.uint16(pattern & np.uint16(0x7FFF)))
    return worst < 0x7F80


@_compiled
def _narrow(values, patterns):
    bits = values.view(np.uint32)
    for j in range(patterns.size):
        upper = bits[j] >> np.uint32(16)
        # To the nearest, halves to the even one: a carry continues into the exponent.
        half = np.uint32(0x7FFF) + np.uint32(upper & np.uint32(1))
        patterns[j] = np.uint16(np.uint32(bits[j] + half) >> np.uint32(16))


@_compiled
def _largest(values):
    bits = values.view(np.uint32)
    worst = np.uint32(0)
    for j in range(bits.size):
        worst = max(worst, np.uint32(bits[j] & np.uint32(0x7FFFFFFF)))
    return worst


@_compiled
def _add_multiple(total, values, factor):
    for j in range(total.size):
        total[j] = _fused(values[j], factor, total[j])


@_compiled
def _product(x, y):
    # A separate sum for each of 32 places: the compiler computes several at once without
    # reordering any.
    places = np.zeros(32)
    whole = x.size - x.size % 32
    for j in range(0, whole, 32):
        for k in range(32):
            places[k] += np.float64(x[j + k]) * np.float64(y[j + k])
    total = 0.0
    for k in range(32):
        total += places[k]
    for j in range(whole, x.size):
        total += np.float64(x[j]) * np.float64(y[j])
    return total


@_compiled
def _trim(values, first, rest, split):
    for j in range(values.size):
        limit = first if j < split else rest
        if -limit <= values[j] <= limit:
            values[j] = np.float32(0)


@_compiled
def _elect(total):
    tiny = np.float32(1.1754943508222875e-38)
    for j in range(total.size):
        value = total[j] + tiny
        total[j] = np.float32(value > 0) - np.float32(value < 0)


@_compiled
def _add_agreeing(merged, share, vector, sign, weight):
    zero = np.float32(0)
    for j in range(vector.size):
        agreeing = vector[j] * sign[j]
        if agreeing < zero:
            agreeing = zero
        merged[j] += agreeing
        if share.size:
            share[j] += weight if agreeing > zero else zero


@_compiled
def _divide(merged, share):
    tiny = np.float32(1.1754943508222875e-38)
    for j in range(merged.size):
        merged[j] /= max(share[j], tiny)


def load() -> None:
    """Have numba load all that its first call of a process needs, about a CPU second."""
    widen(np.zeros(1, dtype=np.float32), np.empty(1, dtype=np.float32))


def widen(stored: np.ndarray, values: np.ndarray) -> bool:
    """Convert stored values to float32, exactly.

    Args:
        stored: Values [n] of float32 or float16, or the patterns of bfloat16 as uint16.
        values: Where to, float32 [n].

    Returns:
        Whether all are finite.
    """
    if stored.dtype == np.uint16:
        return bool(_widen(stored, values))
    values[:] = stored
    return bool(_largest(values) <= _FINITE)


def narrow(values: np.ndarray, dtype: str) -> np.ndarray | None:
    """Round values to the type in which they are stored, to the nearest, halves to even.

    Args:
        values: Float32 [n].
        dtype: BF16, F16 or F32.

    Returns:
        The values [n], bfloat16 as patterns in uint16; None where one is not finite or too large.
    """
    if _largest(values) > _LARGEST[dtype]:
        return None
    if dtype != "BF16":
        return values.astype(np.float16) if dtype == "F16" else values
    patterns = np.empty(values.shape, dtype=np.uint16)
    _narrow(values, patterns)
    return patterns


def combine(vectors: Sequence[np.ndarray], coefficients: Sequence[float]) -> np.ndarray:
    """Compute sum_i c_i v_i in place of the first vector; see `combination.combine`."""
    total = vectors[0]
    total *= np.float32(coefficients[0])
    for vector, coefficient in zip(vectors[1:], coefficients[1:], strict=True):
        _add_multiple(total, vector, np.float32(coefficient))
    return total


def gram(vectors: Sequence[np.ndarray]) -> np.ndarray:
    """Compute the inner products, float64 [N, N], of N arrays of float32 [n]; sums are float64."""
    products = np.empty((len(vectors), len(vectors)))
    for i, first in enumerate(vectors):
        for j, second in enumerate(vectors[: i + 1]):
            products[i, j] = products[j, i] = _product(first, second)
    return products


def trim(values: np.ndarray, first: float, rest: float, split: int) -> np.ndarray:
    """Zero, in place, values that are not larger in magnitude than a limit.

    Args:
        values: Float32 [n].
        first: The limit before position `split`, which may be outside.
        rest: The limit from there on.
    """
    _trim(values, np.float32(first), np.float32(rest), split)
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
    _elect(sign)
    merged = np.zeros_like(sign)
    share = np.zeros_like(sign if merge == "mean" else sign[:0])
    for vector, weight in zip(vectors, weights or [1.0] * len(vectors), strict=True):
        _add_agreeing(merged, share, vector, sign, np.float32(weight))
    if merge == "mean":
        _divide(merged, share)
    merged *= sign
    return merged
