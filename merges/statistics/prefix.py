"""Regression layer by layer on the inputs that the merged layers below make."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from checkpoints.checking import check_finite
from checkpoints.dtypes import torch_type
from checkpoints.names import kind
from checkpoints.reading import Model
from common.errors import UserError
from merges.arithmetic.regression import Inputs as Regression
from merges.arithmetic.regression import mean_of
from merges.dam.flops import attention_flops
from merges.dam.packing import Packing
from merges.engine.requests import WholeModelRequest, WholeModelResult
from merges.engine.streaming import InMemory
from merges.statistics.collecting import TOKENS
from merges.statistics.decoder import LayeredDecoder, batches
from merges.statistics.files import read_rows
from merges.statistics.inputs import Inputs, linear_modules
from merges.statistics.streams import Stream


class _Grams:
    """One layer's Gram matrices, read as statistics on disk are."""

    def __init__(self, means: Mapping[str, Tensor], leaders: Mapping[str, str]) -> None:
        self._means, self._leaders = means, leaders

    def has(self, parameter: str, what: str) -> bool:
        return parameter.endswith(".weight") and parameter.removesuffix(".weight") in self._leaders

    def read(self, parameter: str, what: str, start: int = 0, stop: int | None = None) -> Tensor:
        leader = self._leaders[parameter.removesuffix(".weight")]
        return self._means[f"{leader}.{what}"].view(-1)[start:stop]


class _Prefix:
    """The merge: the experts, their rows' hidden states, and what is merged so far.

    Args:
        request: As for `merge_by_prefix`, as are alpha, ridge and rows.
        folder: Where hidden states are kept.
    """

    def __init__(
        self, request: WholeModelRequest, alpha: float, ridge: float, rows: int, folder: Path
    ) -> None:
        self._request, self._alpha, self._ridge = request, alpha, ridge
        self._folder = folder
        self._data = {}
        for name in request.experts:
            (data,) = read_rows(request.base, [request.calibration[name]], name)
            self._data[name] = data.first(rows) if rows else data
        self._experts = {n: LayeredDecoder(m, request.device) for n, m in request.experts.items()}
        self.merged = self._averaged()
        own = InMemory(self.merged, str(request.base.path))
        own.config = request.base.config
        self._decoder = LayeredDecoder(own, request.device)
        self.tokens = sum(len(data.ids) for data in self._data.values())
        self.flops = 0

    def _averaged(self) -> dict[str, Tensor]:
        """Merge every parameter as if it had no inputs; linear layers are overwritten later."""
        request, base = self._request, self._request.base
        tensors = {}
        for name in base.names():
            if request.embeddings_and_norms == "base" and kind(name) in ("embedding", "norm"):
                tensors[name] = base.load(name)
                continue
            tensors[name] = self._mean(name).to(torch_type(base.dtype(name)))
        return tensors

    def _wide(self, model: Model, name: str) -> Tensor:
        tensor = model.load(name)
        check_finite(tensor, name, model.path)
        return tensor.to(torch.promote_types(tensor.dtype, torch.float32), copy=True)

    def _mean(self, name: str) -> Tensor:
        experts = list(self._request.experts.values())
        return mean_of([self._wide(m, name) for m in experts], [1 / len(experts)] * len(experts))

    def _stream(self, expert: str, layer: int) -> Stream:
        path = self._folder / f"{expert}-{layer}.bin"
        return Stream(path, self._decoder.hidden, self._decoder.dtype)

    def _lengths(self, expert: str) -> list[int]:
        data = self._data[expert]
        return [data.length(row) for row in range(len(data))]

    def embed(self) -> None:
        """Start every expert's rows with the merged embedding."""
        for name, data in self._data.items():
            out = self._stream(name, 0)
            out.start()
            for start, stop, _ in batches(self._lengths(name), TOKENS):
                out.append(self._decoder.embed(data.ids[start:stop]))

    def _merge(self, names: list[str], grams: Mapping[str, _Grams]) -> None:
        experts, found = self._request.experts, list(grams.values())
        factors = [1 / len(experts)] * len(experts)
        for name in names:
            if all(own.has(name, "gram") for own in found):
                weights = [self._wide(model, name) for model in experts.values()]
                centre = self._mean(name)
                width = centre.shape[1]
                inputs = Regression(found, factors, name, width, self._alpha, self._ridge)
                self.merged[name].copy_(inputs.regress(centre, weights))

    def _checked(self, inputs: Inputs, expert: str) -> _Grams:
        means = inputs.means(len(self._data[expert].ids))
        for name, values in means.items():
            if not values.isfinite().all():
                raise UserError(
                    f"expert {expert}: NaN or infinity at {name.rpartition('.')[0]} on its rows; "
                    "use other rows, or the model in float32"
                )
        return _Grams(means, inputs.leaders)

    def layer(self, number: int) -> None:
        """Merge a layer, then run it."""
        grams, top = {}, self._decoder.module_name(number)
        for name, decoder in self._experts.items():
            with decoder.layer(number) as module, torch.no_grad():
                inputs = Inputs(linear_modules(module, top), grams=True)
                for start, stop, lengths in batches(self._lengths(name), TOKENS):
                    hidden = self._stream(name, number).read(start, stop).to(self._request.device)
                    with inputs.watching():
                        decoder.run(hidden, Packing(lengths, self._request.device))
            grams[name] = self._checked(inputs, name)
        self._merge([name for name in self.merged if name.startswith(f"{top}.")], grams)
        with self._decoder.layer(number), torch.no_grad():
            for name in self._experts:
                source, out = self._stream(name, number), self._stream(name, number + 1)
                out.start()
                for start, stop, lengths in batches(self._lengths(name), TOKENS):
                    hidden = source.read(start, stop).to(self._request.device)
                    out.append(self._decoder.run(hidden, Packing(lengths, self._request.device)))
                source.remove()

    def head(self) -> None:
        """Merge the output head, if it is none with the embedding."""
        if "lm_head.weight" not in self.merged or self._request.base.config.get(
            "tie_word_embeddings"
        ):
            return
        grams = {}
        with self._decoder.final_norm() as norm, torch.no_grad():
            for name in self._experts:
                inputs = Inputs({}, grams=True)
                source = self._stream(name, self._decoder.layers)
                for start, stop, _ in batches(self._lengths(name), TOKENS):
                    inputs.add("lm_head", norm(source.read(start, stop).to(self._request.device)))
                grams[name] = self._checked(inputs, name)
        self._merge(["lm_head.weight"], grams)

    def run(self) -> None:
        """Merge all layers."""
        self.embed()
        for number in range(self._decoder.layers):
            self.layer(number)
        self.head()
        body = sum(
            v.numel() for n, v in self.merged.items() if kind(n) == "linear" and v.dim() == 2
        )
        attention = sum(
            attention_flops(self._request.base.config, self._lengths(name)) for name in self._data
        )
        self.flops = 2 * (2 * body * self.tokens + attention)  # each layer as expert's and merged


def merge_by_prefix(
    request: WholeModelRequest, alpha: float, ridge: float, rows: int
) -> WholeModelResult:
    """Merge as `merges.methods.regmean_plus` says.

    Args:
        request: Base, experts and their data.
        alpha: Multiplier of Gram matrices off the diagonal.
        ridge: In units of their mean diagonal value.
        rows: Rows of each expert, 0 for all.
    """
    with tempfile.TemporaryDirectory() as folder:
        work = _Prefix(request, alpha, ridge, rows, Path(folder))
        work.run()
    counted: dict[str, float] = {"forward_tokens": 2 * work.tokens, "flops": work.flops}
    return WholeModelResult(work.merged, counted=counted)
