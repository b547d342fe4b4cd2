"""Training the merge coefficients."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from common.errors import UserError
from common.progress import Progress
from merges.dam.coefficients import Coefficients
from merges.dam.data import Batch, LossTokens, draw, make_batch
from merges.dam.flops import forward_flops
from merges.dam.head import OutputLoss, Segment
from merges.dam.layers import MergedLinear
from merges.dam.network import Decoder, merged_layers
from merges.dam.objective import KL_DIRECTIONS, Objective
from merges.dam.sources import Sources, load_sources
from merges.dam.states import expert_states, read_teachers
from merges.requests import WholeModelResult

if TYPE_CHECKING:
    from merges.requests import WholeModelRequest


@dataclass(frozen=True)
class Parameters:
    """How to train; `merges.dam.method.dam` explains each.

    Attributes are the method's parameters of the same names.
    """

    samples: int = 1729
    batch_size: int = 1
    epochs: int = 1
    learning_rate: float = 2e-3
    schedule: Literal["constant", "cosine"] = "constant"
    beta1: float = 0.9
    beta2: float = 0.999
    weight_decay: float = 0.0
    clip: float = 1.0
    temperature: float = 2.0
    kl_direction: str = KL_DIRECTIONS[0]
    objective: Mapping[str, float] = field(
        default_factory=lambda: {"kl": 1.0, "cosine": 0.01, "l1": 1e-6, "l2": 1e-6}
    )
    tokens: LossTokens = "all"
    merge_lm_head: bool = True


class _Teachers:
    """The experts' final hidden states at the loss positions of a batch, cached or computed."""

    def __init__(self, request: WholeModelRequest, sources: Sources) -> None:
        self._sources = sources
        self._states: list[Tensor] | None = None
        self._decoders: list[Decoder] = []
        self.computed_flops = 0
        if request.teachers is not None:
            self._states = read_teachers(request.teachers, request.experts, sources.calibrations)
        else:
            self._decoders = [
                Decoder(sources.config, weights) for weights in sources.experts.values()
            ]

    def states(self, index: int, batch: Batch, rows: Sequence[int]) -> Tensor:
        """Return one expert's states (loss tokens, hidden) at its dataset's loss positions.

        Args:
            index: The expert's place.
            batch: The batch.
            rows: The dataset's rows in it.
        """
        source = batch.sources[index]
        if self._states is not None:
            return self._states[index].index_select(0, source)
        data = self._sources.calibrations[index]
        lengths = [data.length(row) for row in rows]
        self.computed_flops += forward_flops(
            self._sources.config, self._sources.base, self._sources.head, lengths
        )
        hidden = expert_states(self._decoders[index], data, rows)
        positions = torch.cat(
            [torch.arange(data.starts[row], data.starts[row + 1]) for row in rows]
        )
        # Rows are drawn without replacement, but may be in any order.
        order = positions.argsort()
        return hidden[order[torch.searchsorted(positions[order], source)]]


def _unmerged(
    sources: Sources, layers: Mapping[str, MergedLinear], embeddings_and_norms: str
) -> dict[str, Tensor]:
    """Return the parameters that no coefficient touches: the base's or the experts' average."""
    merged = {f"{layer}.{leaf}" for layer in layers for leaf in ("weight", "bias")}
    names = [name for name in sources.base if name not in merged]
    if embeddings_and_norms == "base":
        return {name: sources.base[name] for name in names}
    experts = list(sources.experts.values())
    average = {}
    for name in names:
        total = sum(
            expert[name].to(torch.promote_types(expert[name].dtype, torch.float32))
            for expert in experts
        )
        average[name] = (total / len(experts)).to(sources.base[name].dtype)
    return average


class Trainer:
    """One training of merge coefficients.

    Args:
        request: What to merge.
        parameters: How to train.
        sources: What was read from disk.

    Raises:
        UserError: A bad objective or beta, too few rows, or a teacher cache of another expert or
            of other data.
    """

    def __init__(
        self, request: WholeModelRequest, parameters: Parameters, sources: Sources
    ) -> None:
        self.parameters, self.sources = parameters, sources
        self.objective = Objective(
            parameters.objective, parameters.temperature, parameters.kl_direction
        )
        if parameters.beta1 >= 1 or parameters.beta2 >= 1:
            raise UserError("DAM: beta1 and beta2 must be below 1; the usual are 0.9 and 0.999")
        experts = list(sources.experts.values())
        self.heads = [expert[sources.head] for expert in experts]
        self.layers = merged_layers(experts, sources.head, parameters.merge_lm_head)
        dtype = torch.promote_types(self.heads[0].dtype, torch.float32)
        self.coefficients = Coefficients(self.layers, len(experts), dtype)
        self.rest = _unmerged(sources, self.layers, request.embeddings_and_norms)
        self.decoder = Decoder(sources.config, self.rest, self.layers)
        self.rows = draw(sources.calibrations, parameters.samples, parameters.epochs, request.seed)
        self.teachers = _Teachers(request, sources) if self.objective.needs_teachers else None
        self.steps = math.ceil(len(self.rows[0]) / parameters.batch_size)
        self.optimizer = torch.optim.AdamW(
            [self.coefficients.flat],
            lr=parameters.learning_rate,
            betas=(parameters.beta1, parameters.beta2),
            weight_decay=parameters.weight_decay,
            fused=True,
        )
        self.log: list[dict[str, Any]] = []
        self.counted = {"forward_tokens": 0, "backward_tokens": 0, "flops": 0, "steps": 0}

    def head(self) -> Tensor:
        """Return the output matrix (vocabulary, hidden), merged where it is to be."""
        layer = self.layers.get(self.sources.head.rpartition(".")[0])
        return self.rest[self.sources.head] if layer is None else layer.merged_weight()

    def loss(self, batch: Batch, rows: Sequence[Sequence[int]]) -> tuple[Tensor, dict[str, Tensor]]:
        """Compute the objective on a batch, with its graph to the coefficients.

        Args:
            batch: The packed samples.
            rows: For each dataset, its rows in the batch.

        Returns:
            The weighted sum, and each term unweighted and without graph, by name.
        """
        columns = self.coefficients.assign()
        hidden = self.decoder.hidden_states(batch.ids, batch.packing).index_select(0, batch.loss)
        segments = [
            Segment(start, stop, self.teachers.states(index, batch, rows[index]), self.heads[index])
            if self.teachers
            else Segment(start, stop)
            for index, (start, stop) in enumerate(batch.segments)
        ]
        total, outputs = OutputLoss.apply(hidden, self.head(), segments, self.objective)
        terms = dict(zip(self.objective.output_terms, outputs, strict=True))
        for name, value in self.objective.penalties(columns).items():
            total = total + self.objective.weights[name] * value
            terms[name] = value.detach()
        return total, terms

    def learning_rate(self, step: int) -> float:
        """Return the learning rate of a step (from 0): constant, or half a cosine down to 0."""
        if self.parameters.schedule == "constant":
            return self.parameters.learning_rate
        return self.parameters.learning_rate * 0.5 * (1 + math.cos(math.pi * step / self.steps))

    def step(self) -> float:
        """Do the next optimiser step and add a row to the log.

        Returns:
            The objective before the update.

        Raises:
            UserError: The objective or a term is not finite.
        """
        step = len(self.log)
        size = self.parameters.batch_size
        rows = [drawn[step * size : (step + 1) * size] for drawn in self.rows]
        batch = make_batch(self.sources.calibrations, rows, self.parameters.tokens)
        flat = self.coefficients.flat
        flat.grad = None
        total, terms = self.loss(batch, rows)
        total.backward()
        if self.parameters.clip:
            norm = torch.nn.utils.clip_grad_norm_([flat], self.parameters.clip, foreach=False)
        else:
            norm = flat.grad.norm()
        values = torch.stack([*terms.values(), total.detach(), norm]).tolist()
        for name, value in zip([*terms, "loss", "gradient_norm"], values, strict=True):
            if not math.isfinite(value):
                raise UserError(
                    f"DAM: {name} became {value} at step {step + 1} of {self.steps}; lower the "
                    "learning rate or the term's weight"
                )
        rate = self.learning_rate(step)
        self.optimizer.param_groups[0]["lr"] = rate
        self.optimizer.step()
        self.log.append(
            {
                "step": step + 1,
                "learning_rate": rate,
                "loss": values[-2],
                **dict(zip(terms, values[:-2], strict=True)),
                "gradient_norm": values[-1],
            }
        )
        self._count(batch)
        return values[-2]

    def _count(self, batch: Batch) -> None:
        tokens, loss = batch.packing.tokens, len(batch.loss)
        head = self.heads[0].numel()
        merged = sum(weight.numel() for layer in self.layers.values() for weight in layer.weights)
        body = forward_flops(
            self.sources.config, self.sources.base, self.sources.head, batch.packing.lengths
        )
        self.counted["steps"] += 1
        self.counted["forward_tokens"] += tokens
        self.counted["backward_tokens"] += tokens
        # Backward costs twice the forward; merging is a multiply-add per expert's weight, its
        # backward another.
        products = 4 if self.teachers else 3
        self.counted["flops"] += 3 * body + products * 2 * head * loss + 4 * merged

    def result(self) -> WholeModelResult:
        """Return the merged model with the current coefficients, the log and the counts."""
        tensors = {name: self.rest[name] for name in self.sources.base if name in self.rest}
        with torch.no_grad():
            self.coefficients.assign()
            for name, layer in self.layers.items():
                tensors[f"{name}.weight"] = layer.merged_weight()
                if layer.biases is not None:
                    tensors[f"{name}.bias"] = layer.merged_bias()
        for name, tensor in tensors.items():
            tensors[name] = tensor.to(self.sources.base[name].dtype)
        counted = dict(self.counted)
        if self.teachers:
            counted["flops"] += self.teachers.computed_flops
        return WholeModelResult(
            tensors=tensors,
            extra_tensors=self.coefficients.named(),
            log=list(self.log),
            counted=counted,
        )


def train(request: WholeModelRequest, parameters: Parameters) -> WholeModelResult:
    """Learn the merge coefficients and merge.

    Weights and data are kept for the next call with the same files, so that a search over
    parameters reads them once.

    Args:
        request: What to merge, with the experts' data and perhaps their teacher signals.
        parameters: How to train.

    Returns:
        The merged tensors; the coefficients by parameter name, (N, in_features) fp32; a log row
        per step with every term's unweighted value; tokens, FLOPs and steps.

    Raises:
        UserError: Bad data, parameters or cache, or an objective that is not finite.
    """
    sources = load_sources(request.base, request.experts, request.calibration)
    trainer = Trainer(request, parameters, sources)
    progress = Progress(trainer.steps, "dam: training step")
    for _ in range(trainer.steps):
        progress.step(note=f"loss {trainer.step():.4f}")
    return trainer.result()
