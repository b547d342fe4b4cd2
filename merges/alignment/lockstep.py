"""Several models run on the same rows, one layer of each in memory at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from checkpoints.reading import Model
from common.errors import UserError
from merges.dam.data import Calibration
from merges.dam.packing import Packing
from merges.statistics.collecting import TOKENS
from merges.statistics.decoder import LayeredDecoder, batches
from merges.statistics.inputs import linear_modules
from merges.statistics.streams import Stream


class Seen(NamedTuple):
    """What one model's layer made of a batch of tokens.

    Attributes:
        hidden: What enters the layer, (tokens, width).
        inputs: What enters each linear layer, by its name within the layer, (tokens, inputs).
        outputs: What leaves it, (tokens, outputs).
    """

    hidden: Tensor
    inputs: dict[str, Tensor]
    outputs: dict[str, Tensor]


See = Callable[[list[Seen]], None]  # of one batch, a `Seen` for each model


class Lockstep:
    """Models and their hidden states, which are on disk between layers.

    Args:
        models: Models of one vocabulary and depth, of an architecture that statistics know.
        data: The rows that all of them read.
        folder: Where hidden states are kept.

    Attributes:
        layers: Number of layers.

    Raises:
        UserError: An architecture is not known.
    """

    def __init__(self, models: Sequence[Model], data: Sequence[Calibration], folder: Path) -> None:
        self._models = models
        self._decoders = [LayeredDecoder(model) for model in models]
        self._lengths = [own.length(row) for own in data for row in range(len(own))]
        self._folder = folder
        self.layers = self._decoders[0].layers
        ids = torch.cat([own.ids for own in data])
        for number, decoder in enumerate(self._decoders):
            out = self._stream(number, 0)
            out.start()
            for start, stop, _ in self._batches():
                out.append(decoder.embed(ids[start:stop]))

    @property
    def tokens(self) -> int:
        """Tokens that each model reads."""
        return sum(self._lengths)

    def _stream(self, model: int, layer: int) -> Stream:
        decoder = self._decoders[model]
        return Stream(self._folder / f"{model}-{layer}.bin", decoder.hidden, decoder.dtype)

    def _batches(self) -> Iterator[tuple[int, int, list[int]]]:
        return batches(self._lengths, TOKENS)

    def name(self, layer: int | None) -> str:
        """Return the name of a layer's module in the checkpoint, of the final norm for None."""
        return self._decoders[0].module_name(layer)

    def layer(self, number: int, see: See) -> None:
        """Run a layer of every model; layers are run in their order.

        Raises:
            UserError: A model's hidden states are no longer finite.
        """
        sources = [self._stream(n, number) for n in range(len(self._models))]
        outs = [self._stream(n, number + 1) for n in range(len(self._models))]
        for out in outs:
            out.start()
        with ExitStack() as stack, torch.no_grad():
            held = [stack.enter_context(decoder.layer(number)) for decoder in self._decoders]
            for start, stop, lengths in self._batches():
                seen = []
                for n, (decoder, module) in enumerate(zip(self._decoders, held, strict=True)):
                    hidden = sources[n].read(start, stop)
                    with _watching(module) as (inputs, outputs):
                        output = decoder.run(hidden, Packing(lengths))
                    if not output.isfinite().all():
                        raise UserError(
                            f"{self._models[n].path}: NaN or infinity after layer {number} on "
                            "these rows; use other rows, or the model in float32"
                        )
                    outs[n].append(output)
                    seen.append(Seen(hidden, inputs, outputs))
                see(seen)
        for source in sources:
            source.remove()

    def final(self, see: Callable[[list[Tensor]], None]) -> None:
        """Run the final norms behind the last layer; `see` gets what leaves each, by batch."""
        with ExitStack() as stack, torch.no_grad():
            norms = [stack.enter_context(decoder.final_norm()) for decoder in self._decoders]
            for start, stop, _ in self._batches():
                hidden = [self._stream(n, self.layers).read(start, stop) for n in range(len(norms))]
                see([norm(own) for norm, own in zip(norms, hidden, strict=True)])


@contextmanager
def _watching(module: nn.Module) -> Iterator[tuple[dict[str, Tensor], dict[str, Tensor]]]:
    """Collect inputs and outputs of a layer's linear layers during one forward."""
    inputs: dict[str, Tensor] = {}
    outputs: dict[str, Tensor] = {}

    def hook(name: str) -> Callable:
        def see(_: nn.Module, given: tuple[Tensor, ...], output: Tensor) -> None:
            inputs[name] = given[0].flatten(0, -2)
            outputs[name] = output.flatten(0, -2)

        return see

    modules = linear_modules(module, "")
    hooks = [m.register_forward_hook(hook(n.lstrip("."))) for n, m in modules.items()]
    try:
        yield inputs, outputs
    finally:
        for each in hooks:
            each.remove()
