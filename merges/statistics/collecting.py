"""One pass over a model and its data, layer by layer, resumable after every layer."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from checkpoints.reading import Model
from common.errors import UserError
from common.files import read_json, write_json
from common.progress import Progress
from merges.dam.data import Calibration
from merges.dam.network import head_name
from merges.dam.packing import Packing
from merges.dam.products import linear, times
from merges.statistics.decoder import LayeredDecoder, batches
from merges.statistics.inputs import Gradients, Inputs, linear_modules, sampled
from merges.statistics.kinds import BACKWARD
from merges.statistics.streams import Stream

TOKENS = 2048  # of one forward: bounds the memory of activations
_HEAD_TOKENS = 256  # whose logits exist at a time
_STATE = "state.json"
_FORMS = {"gradients": "magnitudes", "kronecker": "outputs"}  # else squares


@dataclass(frozen=True)
class Order:
    """What to collect.

    Attributes:
        model: The checkpoint.
        data: Its rows, one or more files' end to end.
        kind: A key of `merges.statistics.kinds.KINDS`.
        seed: Of the labels that ``fisher`` draws.
        device: Where layers compute.
        tokens: Most tokens of one forward, but for a single longer row.
    """

    model: Model
    data: Sequence[Calibration]
    kind: str
    seed: int = 0
    device: str = "cpu"
    tokens: int = TOKENS

    @property
    def lengths(self) -> list[int]:
        """Tokens of every row."""
        return [own.length(row) for own in self.data for row in range(len(own))]

    @property
    def ids(self) -> Tensor:
        """Token ids of all rows end to end."""
        return torch.cat([own.ids for own in self.data])


class Pass:
    """The work in a folder that is resumed where it is found unfinished.

    A state of another order is begun anew. Between steps the folder holds the hidden states that
    the next step needs, and every shard that was written.

    Args:
        order: What to collect.
        folder: Where.
        key: Identifies the order.
    """

    def __init__(self, order: Order, folder: Path, key: str) -> None:
        self.order, self.folder, self._key = order, folder, key
        self.decoder = LayeredDecoder(order.model, order.device)
        self.leaders: dict[str, str] = {}
        self._done = 0
        state = folder / _STATE
        if state.exists() and (held := read_json(state))["key"] == key:
            self._done, self.leaders = held["done"], held["leaders"]
        self._backward = order.kind in BACKWARD

    def _stream(self, name: str | int) -> Stream:
        path = self.folder / f"hidden-{name}.bin"
        return Stream(path, self.decoder.hidden, self.decoder.dtype)

    def _write(self, name: str, tensors: Mapping[str, Tensor]) -> None:
        for tensor, values in tensors.items():
            if not values.isfinite().all():
                module = tensor.rpartition(".")[0]
                raise UserError(
                    f"{self.order.model.path}: NaN or infinity at {module} on this data; "
                    "the model overflows there, use it in float32 or other rows"
                )
        # A file for each module: the bytes of one are in memory twice while they are written.
        for module in {key.rpartition(".")[0] for key in tensors}:
            own = {k: v.contiguous() for k, v in tensors.items() if k.rpartition(".")[0] == module}
            save_file(own, self.folder / f"{name}-{module.rpartition('.')[2]}.safetensors")

    def _finish(self, step: int) -> None:
        state = {"key": self._key, "done": step, "leaders": self.leaders}
        write_json(self.folder / _STATE, state)
        self._done = step

    def run(self) -> None:
        """Go through all steps that are not done."""
        layers, last = self.decoder.layers, self.decoder.layers - 1
        steps: list[Callable[[], None]] = [
            self._embed,
            *(functools.partial(self._forward, n) for n in range(layers)),
        ]
        steps += [self._top]
        if self._backward:
            steps += [functools.partial(self._back, n) for n in range(last, -1, -1)]
        progress = Progress(len(steps), f"statistics ({self.order.kind}): layers")
        for number, step in enumerate(steps, 1):
            if number > self._done:
                step()
                self._finish(number)
            progress.step()
        for path in [*self.folder.glob("hidden-*.bin"), self.folder / _STATE]:
            path.unlink()

    def _batches(self) -> Iterator[tuple[int, int, list[int]]]:
        return batches(self.order.lengths, self.order.tokens)

    def _embed(self) -> None:
        out, ids = self._stream(0), self.order.ids
        out.start()
        for start, stop, _ in self._batches():
            out.append(self.decoder.embed(ids[start:stop]))

    def _forward(self, number: int) -> None:
        """Run a layer over all rows; keep what enters its linear layers."""
        source, out = self._stream(number), self._stream(number + 1)
        out.start()
        wanted = self.order.kind in ("channels", "gram", "kronecker")
        with self.decoder.layer(number) as module, torch.no_grad():
            modules = linear_modules(module, self.decoder.module_name(number))
            inputs = Inputs(modules if wanted else {}, self.order.kind != "channels")
            for start, stop, lengths in self._batches():
                hidden = source.read(start, stop).to(self.order.device)
                with inputs.watching():
                    output = self.decoder.run(hidden, Packing(lengths, self.order.device))
                out.append(output)
        self.leaders |= inputs.leaders
        self._write(f"layer-{number:04d}-inputs", inputs.means(sum(self.order.lengths)))
        if not self._backward:
            source.remove()

    def _top(self) -> None:
        """Collect the output head's input, or send the labels' gradient back to the last layer."""
        source = self._stream(self.decoder.layers)
        with self.decoder.final_norm() as norm:
            if self._backward:
                self._top_gradients(norm, source)
                return
            name = head_name(self.order.model.config, self.order.model.names())
            if name != "lm_head.weight":  # tied: the embedding, which is averaged
                return
            inputs = Inputs({}, self.order.kind == "gram")
            with torch.no_grad():
                for start, stop, _ in self._batches():
                    hidden = norm(source.read(start, stop).to(self.order.device))
                    inputs.add("lm_head", hidden)
        self.leaders |= inputs.leaders
        self._write("head-inputs", inputs.means(sum(self.order.lengths)))

    def _top_gradients(self, norm, source: Stream) -> None:
        order, out = self.order, self._stream(f"gradient-{self.decoder.layers}")
        out.start()
        form = _FORMS.get(order.kind, "squares")
        gradients = Gradients(norm, self.decoder.module_name(None), form)
        head = self.decoder.head(head_name(order.model.config, order.model.names()))
        labels, scales = self._labels()
        generator = torch.Generator().manual_seed(order.seed)
        for start, stop, lengths in self._batches():
            hidden = source.read(start, stop).to(order.device).requires_grad_()
            with gradients.watching(lengths):
                final = norm(hidden)
                back = torch.empty_like(final)
                for first in range(0, stop - start, _HEAD_TOKENS):
                    part = slice(first, min(first + _HEAD_TOKENS, stop - start))
                    whole = slice(start + part.start, start + part.stop)
                    logits = linear(final[part].detach(), head).float()
                    own = labels[whole].to(logits.device)
                    if order.kind == "fisher":
                        own = torch.where(own < 0, own, sampled(logits, generator))
                    back[part] = _to_hidden(logits, own, scales[whole], head).to(back.dtype)
                final.backward(back)
            assert hidden.grad is not None
            out.append(hidden.grad)
        self._write("top-gradients", gradients.means(self._divisor(form)))

    def _divisor(self, form: str) -> int:
        return sum(self.order.lengths) if form == "outputs" else len(self.order.lengths)

    def _labels(self) -> tuple[Tensor, Tensor]:
        """Return each position's next token, -1 where none counts, and the factor of its loss."""
        labels, scales = [], []
        for own in self.order.data:
            for row in range(len(own)):
                first, stop = own.loss_span(row, "all" if self.order.kind == "fisher" else "answer")
                ids = own.ids[own.starts[row] : own.starts[row + 1]]
                label = torch.full_like(ids, -1)
                label[first:stop] = ids[first + 1 : stop + 1]
                share = 1 / max(stop - first, 1) if self.order.kind == "gradients" else 1.0
                labels.append(label)
                scales.append(torch.full((len(ids),), share))
        return torch.cat(labels), torch.cat(scales)

    def _back(self, number: int) -> None:
        """Send the gradient through a layer, whose forward is run again."""
        source, into = self._stream(number), self._stream(f"gradient-{number + 1}")
        out = self._stream(f"gradient-{number}")
        out.start()
        form = _FORMS.get(self.order.kind, "squares")
        with self.decoder.layer(number) as module:
            gradients = Gradients(module, self.decoder.module_name(number), form)
            for start, stop, lengths in self._batches():
                hidden = source.read(start, stop).to(self.order.device).requires_grad_()
                with gradients.watching(lengths):
                    output = self.decoder.run(hidden, Packing(lengths, self.order.device))
                    output.backward(into.read(start, stop).to(self.order.device))
                assert hidden.grad is not None
                out.append(hidden.grad)
        self._write(f"layer-{number:04d}-gradients", gradients.means(self._divisor(form)))
        into.remove()
        self._stream(number + 1).remove()


def _to_hidden(logits: Tensor, labels: Tensor, scales: Tensor, head: Tensor) -> Tensor:
    """Return the gradient of the labels' log-probabilities at the final hidden states."""
    counted = labels >= 0
    gradient = logits.softmax(-1).neg_()
    places = counted.nonzero().squeeze(1)
    gradient[places, labels[places]] += 1
    gradient *= (counted * scales.to(logits.device))[:, None]
    return times(gradient.to(head.dtype), head)
