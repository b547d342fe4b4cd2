"""The stacks of layers that a model has, read from its parameters' names."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection
from typing import NamedTuple

# A list of layers, by its name or the end of it. Lists inside a layer (T5's sublayers, experts)
# come later in a name: the first list counts.
_STACK = re.compile(
    r"(?P<stack>(?:.*?\.)??(?:h|layers?|blocks?|\w+_layers?|\w+_blocks?|resblocks|stages|groups))"
    r"\.(?P<number>\d+)\."
)
# Modules of a layer that predicts further tokens (DeepSeek's MTP); it is stored behind the others.
_BEYOND = re.compile(r"\.(?:eh_proj|enorm|hnorm|shared_head)\b")
# Stacks of a model that the text passes through last, or not at all.
_ASIDE = re.compile(
    r"(?:^|[._])(?:vis\w*|vit|image|img|audio|speech|video|clip|siglip|sam|mtp\w*|resampler|qformer"
    r"|perceiver|\w*encoder\w*|draft\w*)(?=[._]|$)"
)
# What mergekit counts among the tensors before the layers; it takes the others for later ones.
# And what classes that it does not know have there (Bloom, OPT).
_BEFORE = re.compile(
    r"\b(?:embed_tokens|embed_in|embed_positions|tok_embeddings|word_embeddings|wte|wpe"
    r"|word_embeddings_layernorm|project_in)\."
)


class Layer(NamedTuple):
    """Where a parameter is.

    Attributes:
        stack: The path of the list of layers, such as ``model.layers``.
        number: The layer's number in it.
    """

    stack: str
    number: int


def layer_of(tensor: str) -> Layer | None:
    """Return the layer that a tensor belongs to, None for one of no layer.

    Layers inside a layer, and numbers of experts, are part of the layer that is outermost.
    """
    found = _STACK.match(tensor)
    return None if found is None else Layer(found["stack"], int(found["number"]))


def is_before(tensor: str) -> bool:
    """Return whether a tensor of no layer belongs to what comes before the layers."""
    return bool(_BEFORE.search(tensor))


def renumbered(tensor: str, by: int) -> str:
    """Return a tensor's name where its layer's number is larger by so many."""
    layer = layer_of(tensor)
    if layer is None or not by:
        return tensor
    start = f"{layer.stack}.{layer.number}."
    return f"{layer.stack}.{layer.number + by}.{tensor.removeprefix(start)}"


class Stacks:
    """The stacks of a model.

    Args:
        tensors: The names of its parameters.

    Attributes:
        limits: First and last number of each stack's layers, by its path. Layers behind the others
            that predict further tokens are a separate stack, with ``+`` behind the path.
        main: The path of the stack that the text passes through; None without layers.
    """

    def __init__(self, tensors: Collection[str]) -> None:
        layers = {tensor: layer for tensor in tensors if (layer := layer_of(tensor)) is not None}
        self._beyond = {layer for tensor, layer in layers.items() if _BEYOND.search(tensor)}
        sizes = Counter(self.stack_of(layer) for layer in layers.values())
        numbers: dict[str, list[int]] = {}
        for layer in set(layers.values()):
            numbers.setdefault(self.stack_of(layer), []).append(layer.number)
        self.limits = {stack: (min(own), max(own)) for stack, own in sorted(numbers.items())}
        text = [stack for stack in sizes if not (_ASIDE.search(stack) or stack.endswith("+"))]
        self.main = max(text or sizes, key=lambda stack: (sizes[stack], stack), default=None)

    def stack_of(self, layer: Layer) -> str:
        """Return the stack with which a layer is counted."""
        return f"{layer.stack}+" if layer in self._beyond else layer.stack

    def place(self, layer: Layer) -> float:
        """Return where a layer is in its stack: from 0 to 1, and 1 where it is the only one."""
        return position(layer.number, *self.limits[self.stack_of(layer)])

    def describe(self) -> str:
        """Return the stacks with their numbers of layers, for messages."""
        return ", ".join(
            f"{stack.removesuffix('+')} ({1 + last - first}{' behind' * stack.endswith('+')})"
            for stack, (first, last) in self.limits.items()
        )


def position(layer: int, first: int, last: int) -> float:
    """Return where a layer is among [first, last]: from 0 to 1, and 1 where it is the only one."""
    return 1.0 if first == last else (layer - first) / (last - first)


def count_layers(tensors: Collection[str]) -> int:
    """Return how many layers the deepest stack of a model has, those behind the others included."""
    return 1 + max((last for _, last in Stacks(tensors).limits.values()), default=-1)
