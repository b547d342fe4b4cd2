"""Watching a layer: what enters its linear layers, and what gradients come to its parameters."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from merges.statistics.accumulators import Channels, Gram, PerSequence

Add = Callable[[Tensor], None]


def linear_modules(module: nn.Module, top: str) -> dict[str, nn.Module]:
    """Return the linear layers within a module by their names in the checkpoint."""
    return {f"{top}.{n}": m for n, m in module.named_modules() if isinstance(m, nn.Linear)}


class Inputs:
    """Sums over the distinct inputs of a layer's linear layers.

    Projections that read the same tensor (query, key and value; gate and up) share one sum, under
    the name of the first.

    Args:
        modules: The linear layers by name.
        grams: Whether Gram matrices are collected besides channels.

    Attributes:
        leaders: For each linear layer, the name under which its input's sums are kept.
    """

    def __init__(self, modules: dict[str, nn.Module], grams: bool) -> None:
        self._modules, self._grams = modules, grams
        self.leaders: dict[str, str] = {}
        self._sums: dict[str, list[Any]] = {}

    def _see(self, name: str, x: Tensor, seen: list[tuple[Tensor, str]]) -> None:
        leader = next((first for tensor, first in seen if tensor is x), None)
        if leader is None:
            seen.append((x, name))
            self.leaders[name] = name
            rows = x.detach().reshape(-1, x.shape[-1])
            if name not in self._sums:
                kinds = [Channels, Gram] if self._grams else [Channels]
                self._sums[name] = [kind(rows.shape[1], rows) for kind in kinds]
            for own in self._sums[name]:
                own.add(rows)
        else:
            self.leaders[name] = leader

    def add(self, name: str, x: Tensor) -> None:
        """Add one layer's inputs (tokens, width) by hand."""
        self._see(name, x, [])

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Collect what enters the linear layers within the block, one forward."""
        seen: list[tuple[Tensor, str]] = []

        def hook(name: str) -> Callable:
            return lambda module, given: self._see(name, given[0], seen)

        hooks = [m.register_forward_pre_hook(hook(n)) for n, m in self._modules.items()]
        try:
            yield
        finally:
            for each in hooks:
                each.remove()

    def means(self, tokens: int) -> dict[str, Tensor]:
        """Return the means by name: ``X.gram``, ``X.mean_abs``, ``X.mean_square``."""
        found = {}
        for name, (channels, *grams) in self._sums.items():
            found[f"{name}.mean_abs"], found[f"{name}.mean_square"] = channels.mean(tokens)
            if grams:
                found[f"{name}.gram"] = grams[0].mean(tokens)
        self._sums.clear()
        return found


def _normalized(norm: nn.Module, x: Tensor) -> Tensor:
    """Return what a norm multiplies with its gain."""
    epsilon: Any = getattr(norm, "variance_epsilon", None) or getattr(norm, "epsilon", 0.0)
    wide = x.float()
    return wide * (wide.square().mean(-1, keepdim=True) + epsilon).rsqrt()


class Gradients:
    """Sums over sequences of a module's gradients, or Gram matrices of gradients at outputs.

    A linear layer's gradient for one sequence is Y^T X, from its inputs X and the gradients Y at
    its outputs; rows of several sequences pass at once and are taken apart here.

    Args:
        module: A decoder layer or a norm, with frozen parameters.
        top: Its name in the checkpoint.
        kind: ``squares``, ``magnitudes`` or ``outputs`` (Gram matrices of Y of linear layers).
    """

    def __init__(self, module: nn.Module, top: str, kind: str) -> None:
        self._top, self._kind = top, kind
        self._watched = {
            f"{top}.{name}" if name else top: m
            for name, m in module.named_modules()
            if isinstance(m, nn.Linear) or (kind != "outputs" and _is_norm(m))
        }
        self._sums: dict[str, Any] = {}

    def _add(self, name: str, gradient: Tensor) -> None:
        if name not in self._sums:
            squared = self._kind == "squares"
            self._sums[name] = PerSequence(gradient.shape, squared, gradient)
        self._sums[name].add(gradient)

    def _linear(
        self, name: str, m: nn.Module, x: Tensor, y: Tensor, lengths: Sequence[int]
    ) -> None:
        x, y = x.reshape(-1, x.shape[-1]), y.reshape(-1, y.shape[-1])
        if self._kind == "outputs":
            if name not in self._sums:
                self._sums[name] = Gram(y.shape[1], y)
            self._sums[name].add(y)
            return
        for own_x, own_y in zip(x.split(list(lengths)), y.split(list(lengths)), strict=True):
            self._add(f"{name}.weight", own_y.T @ own_x)
            if getattr(m, "bias", None) is not None:
                self._add(f"{name}.bias", own_y.float().sum(0))

    def _norm(self, name: str, m: nn.Module, x: Tensor, y: Tensor, lengths: Sequence[int]) -> None:
        product = _normalized(m, x).mul_(y).reshape(sum(lengths), -1, x.shape[-1]).sum(1)
        for own in product.split(list(lengths)):
            self._add(f"{name}.weight", own.sum(0))

    @contextmanager
    def watching(self, lengths: Sequence[int]) -> Iterator[None]:
        """Collect from one forward and backward of packed rows of these lengths."""

        def forward(name: str, m: nn.Module) -> Callable:
            take = self._linear if isinstance(m, nn.Linear) else self._norm

            def hook(module: nn.Module, given: tuple[Tensor, ...], output: Tensor) -> None:
                x = given[0].detach()
                output.register_hook(lambda y: take(name, m, x, y.detach(), lengths))

            return hook

        hooks = [m.register_forward_hook(forward(n, m)) for n, m in self._watched.items()]
        try:
            yield
        finally:
            for each in hooks:
                each.remove()

    def means(self, count: int) -> dict[str, Tensor]:
        """Return the means over sequences by parameter, or ``X.output_gram`` over tokens."""
        suffix = ".output_gram" if self._kind == "outputs" else ""
        found = {f"{name}{suffix}": own.mean(count) for name, own in self._sums.items()}
        self._sums.clear()
        return found


def _is_norm(module: nn.Module) -> bool:
    return type(module).__name__.endswith("RMSNorm")


def sampled(logits: Tensor, generator: torch.Generator) -> Tensor:
    """Draw a token from each row of logits (tokens, vocabulary), on the CPU's generator."""
    odds = logits.float().softmax(-1).cpu()
    return torch.multinomial(odds, 1, generator=generator).squeeze(1).to(logits.device)
