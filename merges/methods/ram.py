"""RAM: keep what one expert changed alone, average what several changed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

import torch

from merges.arithmetic.task_vectors import from_base
from merges.engine.parameters import NonNegative, Scale
from merges.engine.registry import method
from merges.methods.ties import deltas_of

if TYPE_CHECKING:
    from merges.engine.pieces import Pieces
    from merges.engine.requests import TensorContext


def _changed(deltas: Sequence[torch.Tensor], epsilon: float) -> tuple[list, torch.Tensor]:
    """Return which entries each expert changed, as booleans, and by how many each was changed."""
    masks = [delta.abs() > epsilon for delta in deltas]
    counts = torch.zeros_like(deltas[0])
    for mask in masks:
        counts += mask
    return masks, counts


def _combined(
    deltas: Sequence[torch.Tensor], epsilon: float, factors: Sequence[float]
) -> torch.Tensor:
    """Add up the changed entries: times an expert's factor where it is alone, else averaged."""
    masks, counts = _changed(deltas, epsilon)
    alone, shares = counts == 1, counts.clamp(min=1)
    merged = torch.zeros_like(deltas[0])
    for delta, mask, factor in zip(deltas, masks, factors, strict=True):
        delta *= mask
        if factor != 1:
            torch.where(alone, delta * factor, delta, out=delta)
        merged += delta.div_(shares)
    return merged


def unique_factors(pieces: Pieces, *, epsilon: float, r: float, alpha: float) -> list[float]:
    """Find the factor on each expert's unique entries.

    Args:
        pieces: A parameter, or all.
        epsilon: As for `ram_plus`, as are the others.
    """
    shared, unique = [0] * len(pieces.experts), [0] * len(pieces.experts)
    for piece in pieces:
        masks, counts = _changed(deltas_of(piece), epsilon)
        alone = counts == 1
        for number, mask in enumerate(masks):
            own = int((mask & alone).sum())
            unique[number] += own
            shared[number] += int(mask.sum()) - own
    # Without unique entries the factor has nothing to act on.
    ratios = [s / u if u else alpha for s, u in zip(shared, unique, strict=True)]
    return [1 + r * min(ratio, alpha) for ratio in ratios]


@method(title="RAM", paper="arXiv:2601.13572", needs={"base"}, unit="values")
def ram(
    base: torch.Tensor,
    experts: Sequence[torch.Tensor],
    context: TensorContext,
    *,
    epsilon: NonNegative = 0.00001,
    scale: Scale = 1.0,
) -> torch.Tensor:
    """Merge by who changed an entry: b + lambda * sum_i m_i d_i / max(1, sum_i m_i).

    d_i = x_i - b and m_i = [|d_i| > epsilon]. An entry that one expert changed alone is kept whole,
    one that several changed is averaged over these.

    Args:
        epsilon: What counts as a change, in the units of the weights and not relative to them;
            mergekit's default.
        scale: lambda; mergekit has none.

    Source:
        Reinforced Agent Merging, 2026, as mergekit 0.1.5 has it under `ram`.
    """
    deltas = [expert.sub_(base) for expert in experts]
    return from_base(_combined(deltas, epsilon, [1.0] * len(deltas)), scale, base)


@method(
    title="RAM+",
    paper="arXiv:2601.13572",
    needs={"base"},
    unit="values",
    prepare="unique_factors",
)
def ram_plus(
    base: torch.Tensor,
    experts: Sequence[torch.Tensor],
    context: TensorContext,
    *,
    epsilon: NonNegative = 0.00001,
    r: NonNegative = 0.1,
    alpha: NonNegative = 0.2,
    scale: Scale = 1.0,
    scope: Literal["tensor", "model"] = "model",
) -> torch.Tensor:
    """Merge as RAM does, with unique entries amplified where an expert shares many.

    With m_i = [|d_i| > epsilon], s_i the number of expert i's changed entries that others changed
    too, and u_i that of the others, an entry that expert i changed alone is multiplied by
    1 + r * min(s_i / u_i, alpha). Shared entries are averaged over the experts that changed them.

    Args:
        epsilon: What counts as a change, as for `ram`.
        r: Strength of the amplification; mergekit's default.
        alpha: Bound of the ratio; mergekit's default.
        scale: lambda, a factor on the merged task vector; mergekit has none.
        scope: What the entries are counted over: the ``model`` as in the paper, or each ``tensor``
            as in mergekit's `ramplus_tl`.

    Source:
        Reinforced Agent Merging, 2026; mergekit 0.1.5 has it tensor by tensor under `ramplus_tl`.
    """
    deltas = [expert.sub_(base) for expert in experts]
    return from_base(_combined(deltas, epsilon, context.prepared), scale, base)
