"""AdaRank's training: which singular directions of each task matrix take part, and how much."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from merges.arithmetic.spectral import top
from merges.dam.layers import MergedLayer, MergedLinear
from merges.dam.training import Trainer

if TYPE_CHECKING:
    from merges.dam.data import Batch
    from merges.dam.settings import Parameters
    from merges.dam.sources import Sources
    from merges.engine.requests import WholeModelRequest

LOGIT = 0.1  # of a direction that takes part at first; the others begin at minus this


class RankedLinear(MergedLinear):
    """A linear layer with the weight O + sum_i U_i diag(c_i) V_i^T.

    Args:
        origin: O, (out_features, in_features).
        models: The models' weights, of the same shape; U_i, s_i, V_i are the decomposition of
            W_i - O.
        share: Of min(out_features, in_features) directions, the leading ones that are held.
        biases: The origin's and the models', or None.

    Attributes:
        singular: s_i, end to end.
        ranks: Number of directions of each model.
    """

    def __init__(
        self,
        origin: Tensor,
        models: Sequence[Tensor],
        share: float,
        biases: Sequence[Tensor] | None = None,
    ) -> None:
        super().__init__([origin], biases)
        wide = torch.promote_types(origin.dtype, torch.float32)
        count = max(1, int(share * min(origin.shape)))
        parts = [top(model.to(wide) - origin.to(wide), count, "gram") for model in models]
        self.left = torch.cat([part.left for part in parts], 1)
        self.right = torch.cat([part.right for part in parts], 1)
        self.singular = torch.cat([part.values for part in parts])
        self.ranks = [len(part.values) for part in parts]

    def merged_weight(self) -> Tensor:
        """Return the weight, with the coefficients c_i (directions,) end to end."""
        change = (self.left * self.coefficients) @ self.right.T
        return (self.weights[0].to(change.dtype) + change).to(self.weights[0].dtype)

    def goes_by_model(self, tokens: int) -> bool:
        """Return False: the weight is always built."""
        return False


class Ranks:
    """What AdaRank trains: a logit for each direction, a coefficient for each model and layer.

    Args:
        layers: The layers by module name.
        models: How many models.
        start: Share of min(out_features, in_features) directions that take part at first.
        scale: All coefficients at first.
        temperature: Divides the logits.

    Attributes:
        flat: Every logit, then the coefficients of weights, then those of biases; a leaf.
    """

    def __init__(
        self,
        layers: Mapping[str, RankedLinear],
        models: int,
        start: float,
        scale: float,
        temperature: float,
    ) -> None:
        self._layers, self._models, self._temperature = layers, models, temperature
        logits = []
        for layer in layers.values():
            first = int(start * min(layer.weights[0].shape))
            for rank in layer.ranks:
                inside = torch.arange(rank, device=layer.left.device) < first
                logits.append(torch.where(inside, LOGIT, -LOGIT).to(layer.left.dtype))
        self._sizes = [sum(layer.ranks) for layer in layers.values()]
        with_bias = [name for name, layer in layers.items() if layer.biases is not None]
        self._names = [*(f"{name}.weight" for name in layers), *(f"{n}.bias" for n in with_bias)]
        scales = torch.full((len(self._names) * models,), scale).to(logits[0])
        self.flat = torch.cat([*logits, scales]).requires_grad_()

    def blocks(self, values: Tensor | None = None) -> list[Tensor]:
        """Return all trained values as one block."""
        return [self.flat if values is None else values]

    def _split(self) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Return logits by module, and coefficients (models,) by parameter."""
        total = sum(self._sizes)
        logits = dict(zip(self._layers, self.flat[:total].split(self._sizes), strict=True))
        scales = self.flat[total:].view(-1, self._models)
        return logits, dict(zip(self._names, scales, strict=True))

    def assign(self) -> list[Tensor]:
        """Give every layer lambda_i b_i s_i, with b_i in {0, 1} and a sigmoid's gradient."""
        logits, scales = self._split()
        for name, layer in self._layers.items():
            soft = (logits[name] / self._temperature).sigmoid()
            hard = soft + ((soft > 0.5).to(soft) - soft).detach()
            counts = torch.tensor(layer.ranks, device=soft.device)
            own = scales[f"{name}.weight"].repeat_interleave(counts)
            layer.coefficients = own * hard * layer.singular
            if layer.biases is not None:
                own = scales[f"{name}.bias"].unsqueeze(1)
                layer.bias_coefficients = torch.cat([1 - own.sum(0, keepdim=True), own])
        return [self.flat]

    def named(self, values: Tensor | None = None) -> dict[str, Tensor]:
        """Return the coefficients (models,) by parameter name and, as ``NAME.ranks``, how many
        directions of each model take part."""
        logits, scales = self._split()
        found = {name: own.detach().clone() for name, own in scales.items()}
        for name, layer in self._layers.items():
            parts = logits[name].detach().split(layer.ranks)
            counts = [int((part > 0).sum()) for part in parts]
            found[f"{name}.weight.ranks"] = torch.tensor(counts)
        return found


class RankTrainer(Trainer):
    """The training of ranks and coefficients.

    Args:
        request: As for `Trainer`.
        parameters: As there; its granularity and transform are not looked at, and ``start`` is
            the coefficients' initial value.
        sources: As there.
        mean: Whether the origin is the models' mean, not the base.
        held: Share of the directions that are held.
        share: Share that takes part at first.
        temperature: Divides the logits of the directions.
    """

    def __init__(
        self,
        request: WholeModelRequest,
        parameters: Parameters,
        sources: Sources,
        *,
        mean: bool,
        held: float,
        share: float,
        temperature: float,
    ) -> None:
        self._form = mean, held, share, temperature
        super().__init__(request, parameters, sources)

    def _coefficients(self, seed: int, kinds: Mapping[str, bool]) -> Ranks:  # type: ignore[override]  # what a step asks for
        mean, held, share, temperature = self._form
        # The layers take the places of those that `Trainer` made of base and experts.
        self._ranked = {name: _ranked(layer, mean, held) for name, layer in self.layers.items()}
        self.layers = dict(self._ranked)
        return Ranks(
            self._ranked, len(self.sources.experts), share, self.parameters.start, temperature
        )

    def _count(self, batch: Batch) -> None:
        super()._count(batch)
        # A product of both factors' sides for the weight, and one for the gradient.
        for layer in self._ranked.values():
            self.counted["flops"] += 4 * layer.weights[0].numel() * sum(layer.ranks)


def _ranked(layer: MergedLayer, mean: bool, held: float) -> RankedLinear:
    """Decompose a layer of base and experts, in this order."""
    origin, *models = layer.weights
    biases = None if layer.biases is None else list(layer.biases)
    if mean:
        origin = _mean(models)
        biases = biases and [_mean(biases[1:]), *biases[1:]]
    return RankedLinear(origin, models, held, biases)


def _mean(tensors: Sequence[Tensor]) -> Tensor:
    wide = torch.promote_types(tensors[0].dtype, torch.float32)
    return torch.stack([tensor.to(wide) for tensor in tensors]).mean(0).to(tensors[0].dtype)
