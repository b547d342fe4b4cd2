"""Merges of bfloat16 from patterns to patterns, without the values between them in memory.

What `merges.arithmetic.kernels` does in passes over float32 arrays, these kernels do in one pass
over the stored patterns, 512 values at a time: widen, merge, round. Each value goes through
the same operations in the same order, so the bits are the same; only bfloat16 is read and written.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from merges.arithmetic.compiling import (
    LANES,
    Kernels,
    addresses,
    as_bits,
    as_float,
    doubles,
    fused,
    lowest,
    singles,
    within,
)

if TYPE_CHECKING:
    from merges.engine.requests import TensorContext

# Values of a buffer. With its inputs, a merge of three experts fits a first-level cache of 32 kB;
# twice as many take 1.5 times as long.
_RUN = 512
_MOST = 16  # experts whose task vectors have room
_ROOM = _MOST * _RUN
_LARGEST = 0x7F7F0000  # the bits of the largest float32 that rounds to a finite bfloat16
_FINITE = 0x7F7FFFFF  # those of the largest float32
_INFINITE = 0x7F80  # the pattern of infinity
_TINY = np.float32(1.1754943508222875e-38)  # the smallest normal number
KERNELS = Kernels()
Patterns = np.ndarray  # uint16 [n]


@KERNELS.kernel("int64", "uint16**", "int64", "float32*", "uint16*", "int64", "uint16*", "int64")
def _mix(inputs, number, factors, base, from_base, merged, count):
    # A value that is not finite, of a model or on the way, makes the result so too.
    total, largest = singles(_RUN), np.uint32(0)
    for start in range(0, count, _RUN):
        size = min(_RUN, count - start)
        for i in range(number):
            x, factor = inputs[i], factors[i]
            for j in range(size):
                value = as_float(np.uint64(x[start + j]) << np.uint64(16))
                if from_base:
                    value -= as_float(np.uint64(base[start + j]) << np.uint64(16))
                total[j] = value * factor if i == 0 else fused(value, factor, total[j])
        for j in range(size):
            value = total[j]
            if from_base:
                value += as_float(np.uint64(base[start + j]) << np.uint64(16))
            bits = as_bits(value)
            largest = max(largest, np.uint32(bits & np.uint32(0x7FFFFFFF)))
            half = np.uint32(0x7FFF) + np.uint32(np.uint32(bits >> np.uint32(16)) & np.uint32(1))
            merged[start + j] = np.uint16(np.uint32(bits + half) >> np.uint32(16))
    return np.int64(largest <= _LARGEST)


@KERNELS.kernel(
    *("int64", "uint16**", "int64", "uint16*"),
    *("int64", "uint8**", "float32*", "float32*", "float32*", "int64*"),
    *("float32*", "int64", "float32", "uint16*", "int64"),
)
def _agree(
    inputs,
    number,
    base,
    dropping,
    masks,
    factors,
    first,
    rest,
    splits,
    weights,
    mean,
    scale,
    merged,
    count,
):
    deltas, sign, total, share = singles(_ROOM), singles(_RUN), singles(_RUN), singles(_RUN)
    zero, one, largest, widest = np.float32(0), np.float32(1), np.uint32(0), np.uint32(0)
    for start in range(0, count, _RUN):
        size = min(_RUN, count - start)
        for i in range(number):
            x, weight, own = inputs[i], weights[i], i * _RUN
            if dropping:
                mask, factor = masks[i], factors[i]
                for j in range(size):
                    value = as_float(np.uint64(x[start + j]) << np.uint64(16))
                    value -= as_float(np.uint64(base[start + j]) << np.uint64(16))
                    value = value * np.float32(mask[start + j]) * factor * weight
                    deltas[own + j] = value
                    sign[j] = sign[j] + value if i else value
                continue
            cut = min(max(splits[i] - start, 0), size)
            for behind in range(2):  # the values before the split, then the others
                limit = rest[i] if behind else first[i]
                for j in range(cut if behind else 0, size if behind else cut):
                    value = as_float(np.uint64(x[start + j]) << np.uint64(16))
                    value -= as_float(np.uint64(base[start + j]) << np.uint64(16))
                    value *= weight * np.float32(abs(value) > limit)
                    deltas[own + j] = value
                    sign[j] = sign[j] + value if i else value
        for j in range(size):
            # Of a value that is not finite, of a model or on the way, the sum is not finite either.
            widest = max(widest, np.uint32(as_bits(sign[j]) & np.uint32(0x7FFFFFFF)))
            value = sign[j] + _TINY
            sign[j] = one if value > zero else -one if value < zero else zero
        for i in range(number):
            weight, own = weights[i], i * _RUN
            for j in range(size):
                agreeing = max(zero, deltas[own + j] * sign[j])
                total[j] = (total[j] if i else zero) + agreeing
                if mean:
                    share[j] = (share[j] if i else zero) + (weight if agreeing > zero else zero)
        for j in range(size):
            value = total[j] / max(share[j], _TINY) if mean else total[j]
            value = value * sign[j] * scale
            value += as_float(np.uint64(base[start + j]) << np.uint64(16))
            bits = as_bits(value)
            largest = max(largest, np.uint32(bits & np.uint32(0x7FFFFFFF)))
            half = np.uint32(0x7FFF) + np.uint32(np.uint32(bits >> np.uint32(16)) & np.uint32(1))
            merged[start + j] = np.uint16(np.uint32(bits + half) >> np.uint32(16))
    return np.int64(largest <= _LARGEST and widest <= _FINITE)


@KERNELS.kernel(
    *("int64", "uint16*", "uint16*", "int64", "int64"),
    *("float32", "float32", "float32*", "int64*"),
)
def _between(x, base, count, step, low, high, found, counts):
    magnitudes = singles(_RUN)
    worst, inside = np.uint16(0), np.int64(0)
    for piece in range((count + step - 1) // step):
        end = min((piece + 1) * step, count)
        above = np.int64(0)
        for start in range(piece * step, end, _RUN):
            size = min(_RUN, end - start)
            for j in range(size):
                pattern, origin = x[start + j], base[start + j]
                worst = max(worst, np.uint16(pattern & np.uint16(0x7FFF)))
                worst = max(worst, np.uint16(origin & np.uint16(0x7FFF)))
                value = as_float(np.uint64(pattern) << np.uint64(16)) - as_float(
                    np.uint64(origin) << np.uint64(16)
                )
                magnitudes[j] = abs(value)
                above += np.int64(abs(value) > high)
            if low == high:
                for j in range(size):
                    inside += np.int64(magnitudes[j] == low)
                continue
            # Few are inside, where the bounds are near to each other: most blocks have none.
            for j in range(0, size - size % LANES, LANES):
                bits = within(magnitudes, j, low, high)
                while bits:
                    found[inside] = magnitudes[j + lowest(bits)]
                    inside += 1
                    bits &= bits - np.uint64(1)
            for j in range(size - size % LANES, size):
                value = magnitudes[j]
                found[inside] = value
                inside += np.int64(low <= value <= high)
        counts[2 * piece], counts[2 * piece + 1] = above, inside
    return np.int64(worst < _INFINITE)


@KERNELS.kernel("void", "uint16*", "uint16*", "int64", "float64*")
def _products(x, y, count, found):
    # As `kernels._product`: a sum for each of 32 places, in the same order. Of three products at
    # once, because widening takes as long as multiplying.
    own, mixed, other = doubles(32), doubles(32), doubles(32)
    for k in range(32):
        own[k] = mixed[k] = other[k] = 0.0
    whole = count - count % 32
    for j in range(0, whole, 32):
        for k in range(32):
            a = np.float64(as_float(np.uint64(x[j + k]) << np.uint64(16)))
            b = np.float64(as_float(np.uint64(y[j + k]) << np.uint64(16)))
            own[k] += a * a
            mixed[k] += a * b
            other[k] += b * b
    found[0] = found[1] = found[2] = 0.0
    for k in range(32):
        found[0] += own[k]
        found[1] += mixed[k]
        found[2] += other[k]
    for j in range(whole, count):
        a = np.float64(as_float(np.uint64(x[j]) << np.uint64(16)))
        b = np.float64(as_float(np.uint64(y[j]) << np.uint64(16)))
        found[0] += a * a
        found[1] += a * b
        found[2] += b * b


def mix(
    experts: Sequence[Patterns], factors: Sequence[float], base: Patterns | None = None
) -> Patterns | None:
    """Compute sum_i c_i x_i, or b + sum_i c_i (x_i - b) with a base, as `kernels.combine` does.

    Args:
        experts: x_i.
        factors: c_i.
        base: b.

    Returns:
        The result's patterns; None where an input or the result is not finite in bfloat16, which
        `merges.engine.pieces.ArrayPieces` and `kernels.narrow` explain.
    """
    merged = np.empty_like(experts[0])
    own = np.array(factors, dtype=np.float32)
    given = addresses(experts), len(experts), own, base, base is not None, merged, merged.size
    return merged if _mix(*given) else None


def mix_prepared(
    base: None, experts: Sequence[Patterns], context: TensorContext, **parameters: Any
) -> Patterns | None:
    """Do on patterns what a method does that combines experts by `context.prepared` alone."""
    return mix(experts, context.prepared)


def agree(
    experts: Sequence[Patterns],
    base: Patterns,
    weights: Sequence[float] | None,
    merge: Literal["mean", "sum"],
    scale: float,
    *,
    limits: Sequence[tuple[float, float, int]] = (),
    masks: Sequence[np.ndarray] = (),
    factors: Sequence[float] = (),
) -> Patterns | None:
    """Thin out task vectors and merge what agrees in sign, as TIES and DARE-TIES do.

    Args:
        experts: x_i.
        base: b.
        weights: w_i; None for 1 each.
        merge: See `merges.methods.ties.ties`, as for the scale.
        scale: lambda.
        limits: For each expert what `kernels.trim` wants; without masks.
        masks: For each expert what is kept, bool [n]; without limits.
        factors: With masks, what kept values are multiplied by.

    Returns:
        As `mix`; None for too many experts too.
    """
    if len(experts) > _MOST:
        return None
    merged, dropping = np.empty_like(base), bool(masks)
    first, rest, splits = zip(*limits, strict=True) if limits else ((), (), ())
    done = _agree(
        *(addresses(experts), len(experts), base),
        *(dropping, addresses(masks), _singles(factors), _singles(first), _singles(rest)),
        np.clip(np.array(splits, dtype=np.int64), 0, base.size),
        _singles([1.0] * len(experts) if weights is None else weights),
        *(merge == "mean", scale, merged, merged.size),
    )
    return merged if done else None


def _singles(numbers: Sequence[float]) -> np.ndarray:
    return np.array(numbers, dtype=np.float32)


def between(
    expert: Patterns, base: Patterns, low: float, high: float, step: int
) -> list[tuple[int, int, np.ndarray]] | None:
    """Compare the magnitudes of a task vector with two bounds.

    Args:
        expert: x.
        base: b.
        low: The lower bound.
        high: The upper one.
        step: Values of a piece.

    Returns:
        For each piece the number of magnitudes above `high`, the number of those from `low` to
        `high`, and these, float32 in their order; none of them where the bounds are equal. None
        where an input is not finite.
    """
    found = np.empty(0 if low == high else expert.size + 1, dtype=np.float32)
    counts = np.empty((-(-expert.size // step), 2), dtype=np.int64)
    if not _between(expert, base, expert.size, step, low, high, found, counts):
        return None
    ends = counts[:, 1].tolist()
    inside = found[: ends[-1]].copy() if ends else found
    starts = [0, *ends[:-1]]
    bounds = zip(starts, ends, counts[:, 0].tolist(), strict=True)
    return [(above, end - start, inside[start:end]) for start, end, above in bounds]


def gram(experts: Sequence[Patterns]) -> np.ndarray:
    """Compute the inner products, float64 [N, N], as `kernels.gram` does."""
    count = len(experts)
    products, found = np.empty((count, count)), np.empty(3)
    for i, j in itertools.combinations(range(count), 2) if count > 1 else [(0, 0)]:
        _products(experts[i], experts[j], experts[i].size, found)
        products[i, i], products[j, j] = found[0], found[2]
        products[i, j] = products[j, i] = found[1]
    return products
