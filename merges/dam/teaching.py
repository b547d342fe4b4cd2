"""What the merged model does not learn: its unmerged parameters, and its teachers' signal."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from merges.dam.data import Batch
from merges.dam.layers import MergedLayer
from merges.dam.sources import Sources
from merges.dam.states import expert_states, read_teachers

if TYPE_CHECKING:
    from merges.dam.network import Decoder
    from merges.engine.requests import WholeModelRequest

Unmerged = Literal["policy", "tanh_mean"]
TeacherEmbeddings = Literal["own", "merged"]
Mixture = Literal["mean", "base"]


def unmerged_parameters(
    sources: Sources,
    layers: Mapping[str, MergedLayer],
    embeddings_and_norms: str,
    unmerged: Unmerged,
    moe_experts: Mixture = "mean",
) -> dict[str, Tensor]:
    """Return the parameters that no coefficient touches.

    Args:
        sources: Base and experts.
        layers: The merged layers by module name.
        embeddings_and_norms: ``base`` for the base's parameters, ``merged`` for the experts'
            average.
        unmerged: ``policy`` for what `embeddings_and_norms` says, ``tanh_mean`` for tanh(1/N)
            times the experts' sum: what the authors' frozen coefficients come to.
        moe_experts: What a mixture of experts has as its experts' and router's weights: the models'
            ``mean`` or the ``base``'s.

    Returns:
        Parameters by name, in the base's types.
    """
    merged = {f"{layer}.{leaf}" for layer in layers for leaf in ("weight", "bias")}
    from_base = embeddings_and_norms == "base" and unmerged == "policy"
    experts = list(sources.experts.values())
    result = {}
    for name in sources.base:
        if name in merged:
            continue
        inside = name in sources.architecture.experts
        if moe_experts == "base" if inside else from_base:
            result[name] = sources.base[name]
            continue
        # Summed in float32 and rounded once.
        wide = (
            expert[name].to(torch.promote_types(expert[name].dtype, torch.float32))
            for expert in experts
        )
        total = sum(wide, torch.zeros(()))
        if unmerged == "policy" or inside:
            total = total / len(experts)
        else:
            total = total * math.tanh(1 / len(experts))
        result[name] = total.to(sources.base[name].dtype)
    return result


class Teachers:
    """The experts' final hidden states at the loss positions of a batch, cached or computed.

    Args:
        request: Says where cached states are, if anywhere.
        sources: Experts and data.
        rest: The merged model's unmerged parameters, for teachers that share them; None for
            teachers as the experts are. Cached states are theirs and serve no others.

    Attributes:
        heads: Each teacher's output head.
        computed_flops: FLOPs spent so far on computing states.
    """

    def __init__(
        self, request: WholeModelRequest, sources: Sources, rest: Mapping[str, Tensor] | None
    ) -> None:
        self._sources = sources
        self._states: list[Tensor] | None = None
        self._decoders: list[Decoder] = []
        self.computed_flops = 0
        weights = [{**expert, **(rest or {})} for expert in sources.experts.values()]
        self.heads = [sources.output_head(own) for own in weights]
        if request.teachers is not None and rest is None:
            self._states = read_teachers(request.teachers, request.experts, sources.calibrations)
        else:
            self._decoders = [sources.decoder(own) for own in weights]

    def states(self, index: int, batch: Batch, rows: Sequence[int]) -> Tensor:
        """Return one expert's states (loss tokens, hidden) at its dataset's loss positions.

        Args:
            index: The expert's place.
            batch: The batch.
            rows: The dataset's rows in it.
        """
        source, matrix = batch.sources[index], self.heads[index].weight
        if self._states is not None:
            return self._states[index].index_select(0, source).to(matrix.device)
        if not rows:
            return matrix.new_empty(0, matrix.shape[1])
        data = self._sources.calibrations[index]
        lengths = [data.length(row) for row in rows]
        self.computed_flops += self._sources.forward_flops(lengths)
        hidden = expert_states(self._decoders[index], data, rows)
        positions = torch.cat(
            [torch.arange(data.starts[row], data.starts[row + 1]) for row in rows]
        )
        # Rows are drawn without replacement, but may be in any order.
        order = positions.argsort()
        return hidden[order[torch.searchsorted(positions[order], source)].to(hidden.device)]
