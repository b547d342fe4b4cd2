"""NearSwap: swap in another model's values where they are near the base's."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from merges.engine.parameters import Positive
from merges.engine.registry import method

if TYPE_CHECKING:
    import torch

    from merges.engine.requests import TensorContext


@method(title="NearSwap", paper="mergekit's nearswap", needs={"base"}, experts=1, unit="values")
def nearswap(
    base: torch.Tensor,
    experts: Sequence[torch.Tensor],
    context: TensorContext,
    *,
    t: Positive = 0.0001,
) -> torch.Tensor:
    """Move every value by at most t towards the expert's: b + k d, k = min(1, t / |d|).

    d = x - b. Values that are nearer than t become the expert's, all others move by t; the same as
    limiting d to the range from -t to t, which is how it is computed.

    Args:
        t: The largest move, in the units of the weights. 0.0001 is that of QuartetAnemoi 70B, the
            model for which the method was made; mergekit has no default.

    Source:
        mergekit's `nearswap`, after the model card of alchemonaut/QuartetAnemoi-70B-t0.0001.
        mergekit divides t by |d| in the type of the inputs, which rounds k, and takes |d| as at
        least 1e-6, which counts for t below that.
    """
    return experts[0].sub_(base).clamp_(-t, t).add_(base)
