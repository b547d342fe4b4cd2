"""Layers as they are: with slices, layers of several models in one (frankenmerging)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from merges.arithmetic.combination import combine
from merges.engine.parameters import Scales
from merges.engine.registry import method

if TYPE_CHECKING:
    from merges.engine.requests import TensorContext, Values


@method(title="Passthrough", paper="mergekit's passthrough", experts=1, unit="values", arrays=True)
def passthrough(
    base: Values | None,
    experts: Sequence[Values],
    context: TensorContext,
    *,
    scale: Scales = 1.0,
) -> Values:
    """Take one model's values, multiplied by a number: scale * x.

    With a scale of 1 every bit stays. Slices (`merges.engine.slices`) say which model's layer each
    layer is; the scale of a layer or of a part of it is set by rules (`--set-layers`).

    Args:
        scale: The factor.

    Source:
        mergekit's `passthrough`, with its `scale`.
    """
    return combine(experts, [float(number) for number in scale])
