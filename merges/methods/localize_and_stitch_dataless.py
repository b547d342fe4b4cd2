"""Localize-and-Stitch without data: each expert's largest changes, averaged where experts meet."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

from merges.arithmetic.stitching import stitch
from merges.engine.parameters import Densities, Scale
from merges.engine.registry import method
from merges.methods.ties import trim_thresholds

if TYPE_CHECKING:
    import torch

    from merges.arithmetic.selection import Threshold
    from merges.engine.pieces import Pieces
    from merges.engine.requests import TensorContext


def localized(pieces: Pieces, *, density: Sequence[float]) -> list[Threshold]:
    """Find which entries of each task vector are its largest."""
    return trim_thresholds(pieces, density=density)


@method(
    title="Localize-and-Stitch (dataless)",
    paper="arXiv:2408.13656",
    needs={"base"},
    unit="values",
    prepare="localized",
)
def localize_and_stitch_dataless(
    base: torch.Tensor,
    experts: Sequence[torch.Tensor],
    context: TensorContext,
    *,
    density: Densities = 0.1,
    scale: Scale = 1.0,
    scope: Literal["tensor", "model"] = "model",
) -> torch.Tensor:
    """Average the experts' largest changes where they meet: b + sum_i m_i d_i / sum_j m_j.

    d_i = x_i - b, and m_i holds the entries of largest |d_i|. Where no mask holds an entry it is
    the base's.

    Args:
        density: Share of the entries that a mask holds, one for all experts or one for each. The
            paper takes 5 to 10 %.
        scale: Factor of the stitched task vector; 1 in the paper.
        scope: What the density is a share of: the ``model``, as in the paper, or each ``tensor``.

    Source:
        Localize-and-Stitch: efficient model merging via sparse task arithmetic, 2024, the version
        without data. With three or more experts, MergeBench's denominator counts one other mask,
        the last; the authors' counts all.
    """
    deltas = [expert.sub_(base) for expert in experts]
    kept = [
        threshold.keep(delta, context.place)
        for threshold, delta in zip(context.prepared, deltas, strict=True)
    ]
    return stitch(kept, [values != 0 for values in kept]).mul_(scale).add_(base)
