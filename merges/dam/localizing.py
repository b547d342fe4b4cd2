"""Masks of single weights, learnt for each expert alone, and what they stitch together."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from merges.arithmetic.selection import kept
from merges.arithmetic.stitching import stitch
from merges.dam.method import training_parameters
from merges.dam.sources import Sources, load_sources
from merges.dam.supervised import LabelledTrainer, run
from merges.dam.teaching import unmerged_parameters
from merges.engine.requests import WholeModelResult

if TYPE_CHECKING:
    from merges.dam.layers import MergedLayer
    from merges.engine.requests import WholeModelRequest


class Masks:
    """A trained number S for each weight of an expert, in one flat tensor.

    Args:
        layers: Layers of base and expert, in this order, by module name.
        density: Share of the weights, those that changed most, that begin at `bias`; a weight that
            did not change is not among them.
        bias: The others begin at minus this.
        dtype: The computation's type.

    Attributes:
        flat: Every S, a leaf that requires its gradient.
    """

    def __init__(
        self, layers: Mapping[str, MergedLayer], density: float, bias: float, dtype: torch.dtype
    ) -> None:
        self._layers = layers
        pairs = {f"{name}.weight": layer.weights for name, layer in layers.items()}
        pairs |= {
            f"{name}.bias": tuple(layer.biases)
            for name, layer in layers.items()
            if layer.biases is not None
        }
        self._shapes = {name: first.shape for name, (first, _) in pairs.items()}
        moved = torch.cat([(x.to(dtype) - b.to(dtype)).abs().view(-1) for b, x in pairs.values()])
        least = moved.topk(kept(density, len(moved))).values[-1]
        inside = (moved >= least) & (moved > 0)
        self.flat = torch.where(inside, bias, -bias).to(dtype).requires_grad_()

    def named(self, values: Tensor | None = None) -> dict[str, Tensor]:
        """Cut S, or something else as long, into the parameters' shapes."""
        parts = (self.flat if values is None else values).split(
            [math.prod(shape) for shape in self._shapes.values()]
        )
        shaped = zip(self._shapes.items(), parts, strict=True)
        return {name: part.view(shape) for (name, shape), part in shaped}

    def blocks(self, values: Tensor | None = None) -> list[Tensor]:
        """Return all of S as the one block of trained values."""
        return [self.flat if values is None else values]

    def assign(self) -> list[Tensor]:
        """Give every layer 1 - sigmoid(S) for the base and sigmoid(S) for the expert."""
        shares = self.named(self.flat.sigmoid())
        for name, layer in self._layers.items():
            own = shares[f"{name}.weight"]
            layer.coefficients = torch.stack([1 - own, own])
            if layer.biases is not None:
                own = shares[f"{name}.bias"]
                layer.bias_coefficients = torch.stack([1 - own, own])
        return [self.flat]


class MaskTrainer(LabelledTrainer):
    """The training of one expert's masks by plain gradient descent; arguments as for `localize`."""

    def __init__(
        self,
        request: WholeModelRequest,
        sources: Sources,
        density: float,
        bias: float,
        l1: float,
        binary: bool,
        **given: Any,
    ) -> None:
        self._start = density, bias
        parameters = training_parameters(
            clip=0.0, task_vectors=True, granularity="layer", title="Localize-and-Stitch", **given
        )

        def penalty(blocks: Sequence[Tensor]) -> Tensor:
            signs = torch.where(blocks[0] > 0, -1.0, 1.0) if binary else 1.0
            return (signs * blocks[0].sigmoid()).sum()

        # The optimiser multiplies all by the learning rate, the method this term by nothing.
        own = {"l1": (l1 / parameters.learning_rate, penalty)} if l1 else {}
        super().__init__(request, parameters, sources, own)
        self.optimizer = torch.optim.SGD([self.coefficients.flat], lr=parameters.learning_rate)

    def _coefficients(self, seed: int, kinds: Mapping[str, bool]) -> Masks:  # type: ignore[override]  # what a step asks for
        dtype = torch.promote_types(self.sources.base[self.sources.head].dtype, torch.float32)
        return Masks(self.layers, *self._start, dtype)

    def masks(self) -> dict[str, Tensor]:
        """Return which weights sigmoid(S) rounds to 1, by parameter name."""
        return self.coefficients.named(self.coefficients.flat.detach() > 0)


def localize(
    request: WholeModelRequest,
    *,
    density: float,
    bias: float,
    samples: int,
    steps: int,
    learning_rate: float,
    l1: float,
    binary: bool,
    tokens: str,
) -> WholeModelResult:
    """Train masks for one expert after the other and stitch.

    Arguments, results and errors are those of `merges.methods.localize_and_stitch`, with `binary`
    for its penalty of that name.
    """
    sources = load_sources(request.base, request.experts, request.calibration, request.device)
    found: list[dict[str, Tensor]] = []
    log: list[dict[str, Any]] = []
    counted: dict[str, float] = {}
    for name, data in zip(request.experts, sources.calibrations, strict=True):
        own = dataclasses.replace(
            request,
            experts={name: request.experts[name]},
            calibration={name: request.calibration[name]},
            resuming=None,  # one file holds one training
        )
        alone = dataclasses.replace(
            sources, experts={name: sources.experts[name]}, calibrations=[data]
        )
        trainer = MaskTrainer(
            own,
            alone,
            density,
            bias,
            l1,
            binary,
            samples=samples,
            batch_size=samples,
            epochs=steps,
            learning_rate=learning_rate,
            tokens=tokens,
        )
        run(trainer, own)
        found.append(trainer.masks())
        log += [{"expert": name, **row} for row in trainer.log]
        for what, amount in trainer.counted.items():
            counted[what] = counted.get(what, 0) + amount
    # Every expert was trained with the same layers.
    rest = unmerged_parameters(sources, trainer.layers, request.embeddings_and_norms, "policy")
    tensors = {name: rest[name] for name in sources.base if name in rest}
    base = sources.whole_base()
    for name in found[0]:
        turned = sources.architecture.linear.get(name.removesuffix(".weight"))
        masks = [own[name].T if turned else own[name] for own in found]
        wide = base[name].to(torch.promote_types(base[name].dtype, torch.float32))
        deltas = [expert[name].to(wide.dtype) - wide for expert in sources.experts.values()]
        tensors[name] = (wide + stitch(deltas, masks)).to(base[name].dtype)
    shares = {
        f"kept.{name}": torch.cat([own.reshape(-1) for own in masks.values()]).float().mean()
        for name, masks in zip(request.experts, found, strict=True)
    }
    tensors = {name: tensor.to("cpu").contiguous() for name, tensor in tensors.items()}
    extra = {name: share.cpu() for name, share in shares.items()}
    return WholeModelResult(tensors, extra, list(log), counted)
