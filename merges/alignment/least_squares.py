"""Least squares of each linear layer on the experts' mean activations."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable
from pathlib import Path

import torch
from torch import Tensor

from checkpoints.dtypes import torch_type
from checkpoints.names import kind
from checkpoints.reading import Model
from merges.alignment.lockstep import Lockstep, Seen
from merges.arithmetic.regression import mean_of
from merges.dam.network import head_name
from merges.engine.requests import WholeModelRequest, WholeModelResult
from merges.statistics.files import read_rows


class Regression:
    """The sums of one layer: E[x x^T] and E[y x^T], in float64."""

    def __init__(self) -> None:
        self._count = 0
        self._gram: Tensor | None = None
        self._cross: Tensor | None = None

    def add(self, inputs: Iterable[Tensor], outputs: Iterable[Tensor]) -> None:
        """Add the experts' inputs and outputs on the same tokens, (tokens, values) each."""
        x = torch.stack([own.double() for own in inputs]).mean(0)
        y = torch.stack([own.double() for own in outputs]).mean(0)
        gram, cross = x.T @ x, y.T @ x
        self._gram = gram if self._gram is None else self._gram + gram
        self._cross = cross if self._cross is None else self._cross + cross
        self._count += len(x)

    def solve(self, centre: Tensor, ridge: float) -> Tensor:
        """Return the weights, (outputs, inputs) in float64.

        Args:
            centre: The mean of the experts' weights, kept where no input speaks.
            ridge: In units of the mean square of an input.
        """
        assert self._gram is not None and self._cross is not None
        gram, cross = self._gram / self._count, self._cross / self._count
        own = ridge * float(gram.diagonal().mean())
        wide = centre.double()
        # W = M + (C - M G)(G + r I)^-1; least squares of least norm without a ridge.
        gap = cross - wide @ gram
        if own == 0:
            return wide + torch.linalg.lstsq(gram, gap.T, driver="gelsd").solution.T
        return wide + torch.linalg.solve(gram + own * torch.eye(len(gram)).double(), gap.T).T


def _mean(request: WholeModelRequest, name: str) -> Tensor:
    """Return the mean of a parameter, or the base's, in its stored type."""
    base, experts = request.base, request.experts.values()
    stored = torch_type(base.dtype(name))
    if request.embeddings_and_norms == "base" and kind(name) in ("embedding", "norm"):
        return base.load(name)
    own = [model.load(name) for model in experts]
    wide = [x.to(torch.promote_types(x.dtype, torch.float32), copy=True) for x in own]
    return mean_of(wide, [1 / len(wide)] * len(wide)).to(stored)


def merge(request: WholeModelRequest, rows: int, ridge: float) -> WholeModelResult:
    """Merge as `merges.methods.pleas` says.

    Args:
        request: Base, experts and their data.
        rows: Rows of each expert's data.
        ridge: In units of the mean square of an input.
    """
    # Long because layers and the head are merged here in turn.
    experts, base = list(request.experts.values()), request.base
    data = [
        read_rows(base, [path], name)[0].first(rows) for name, path in request.calibration.items()
    ]
    merged = {name: _mean(request, name) for name in base.names()}

    def solve(name: str, found: Regression) -> None:
        merged[name] = found.solve(merged[name], ridge).to(merged[name].dtype)

    with tempfile.TemporaryDirectory() as folder:
        steps = Lockstep(experts, data, Path(folder))
        for number in range(steps.layers):
            found: dict[str, Regression] = {}
            biases = [_biases(model, steps.name(number)) for model in experts]

            def see(
                seen: list[Seen],
                found: dict[str, Regression] = found,
                biases: list[dict[str, Tensor]] = biases,
            ) -> None:
                for module in seen[0].inputs:
                    outputs = (
                        each.outputs[module] - own.get(module, 0.0)
                        for each, own in zip(seen, biases, strict=True)
                    )
                    own = found.setdefault(module, Regression())
                    own.add((each.inputs[module] for each in seen), outputs)

            steps.layer(number, see)
            for module, regression in found.items():
                solve(f"{steps.name(number)}.{module}.weight", regression)
        head = head_name(base.config, base.names())
        if head == "lm_head.weight":
            last, weights = Regression(), [model.load(head).double() for model in experts]
            steps.final(
                lambda x: last.add(x, (a.double() @ w.T for a, w in zip(x, weights, strict=True)))
            )
            solve(head, last)
        tokens = steps.tokens
    return WholeModelResult(merged, counted={"forward_tokens": tokens * len(experts)})


def _biases(model: Model, top: str) -> dict[str, Tensor]:
    """Return the biases of a layer's linear layers by their names within the layer."""
    names = [n for n in model.names() if n.startswith(f"{top}.") and n.endswith(".bias")]
    return {n.removeprefix(f"{top}.").removesuffix(".bias"): model.load(n) for n in names}
