"""Training the merge coefficients."""

from __future__ import annotations

import functools
import math
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from common.errors import UserError
from common.hashes import BLAKE3
from common.progress import Progress
from merges.dam.coefficients import Coefficients, Form
from merges.dam.data import Batch, count_loss_tokens, draw, make_batch, split
from merges.dam.head import OutputHead, Segment, output_loss
from merges.dam.layers import MergedEmbedding, MergedLinear
from merges.dam.network import Decoder, merged_layers
from merges.dam.objective import Objective
from merges.dam.optimizers import make_optimizer, moments, restore_moments
from merges.dam.resuming import read_state, training_key, write_state
from merges.dam.settings import Parameters, check
from merges.dam.sources import Sources, load_sources
from merges.dam.teaching import Teachers, unmerged_parameters
from merges.engine.requests import WholeModelResult

if TYPE_CHECKING:
    from pathlib import Path

    from merges.engine.requests import WholeModelRequest


class Trainer:
    """One training of merge coefficients.

    Args:
        request: What to merge, and where to record the training's state; an existing one
            is resumed.
        parameters: How to train.
        sources: What was read from disk.

    Raises:
        UserError: A bad objective or beta, options that exclude each other, too few rows, a
            teacher cache of another expert or of other data, or the state of another training.
    """

    def __init__(
        self, request: WholeModelRequest, parameters: Parameters, sources: Sources
    ) -> None:
        self.parameters, self.sources, self._device = parameters, sources, request.device
        experts = list(sources.experts.values())
        self.objective = Objective(
            parameters.objective,
            parameters.temperature,
            parameters.kl_direction,
            parameters.formulas,
            len(experts),
        )
        check(parameters)
        with_base = parameters.task_vectors or parameters.base_source
        kinds = {
            kind: choice == "vector"
            for kind, choice in (("embedding", parameters.embeddings), ("norm", parameters.norms))
            if choice != "frozen"
        }
        # The base comes first, as its coefficients do, or what the experts' leave to 1.
        self.layers = merged_layers(
            [sources.whole_base(), *experts] if with_base else experts,
            sources.architecture,
            parameters.merge_lm_head,
            kinds,
        )
        self.coefficients = self._coefficients(request.seed, kinds)
        self.rest = unmerged_parameters(
            sources,
            self.layers,
            request.embeddings_and_norms,
            parameters.unmerged,
            parameters.moe_experts,
        )
        self.decoder = Decoder(
            sources.architecture,
            self.rest,
            self.layers,
            parameters.recompute_activations,
            sources.packed,
        )
        self.rows = draw(sources.calibrations, parameters.samples, parameters.epochs, request.seed)
        shared = self.rest if parameters.teacher_embeddings == "merged" else None
        self.teachers = (
            Teachers(request, sources, shared) if self.objective.needs_teachers else None
        )
        self.steps = math.ceil(len(self.rows[0]) / parameters.batch_size)
        self.optimizer = make_optimizer(
            parameters.optimizer,
            self.coefficients.flat,
            self.coefficients.blocks,
            fraction=parameters.mofo_fraction,
            learning_rate=parameters.learning_rate,
            betas=(parameters.beta1, parameters.beta2),
            weight_decay=parameters.weight_decay,
        )
        self.log: list[dict[str, Any]] = []
        amounts = ("forward_tokens", "backward_tokens", "flops", "steps")
        self.counted: dict[str, float] = dict.fromkeys(amounts, 0)
        self._resuming = request.resuming
        if self._resuming is not None:
            key = functools.partial(training_key, request, parameters, sources)
            self._key = functools.cache(key)
            if saved := self._saved():
                self._resume(saved)

    def _coefficients(self, seed: int, kinds: Mapping[str, bool]) -> Coefficients:
        parameters, about = self.parameters, self.sources.architecture.about
        dtype = torch.promote_types(self.sources.base[self.sources.head].dtype, torch.float32)
        vectors = {
            name: kinds["embedding" if isinstance(layer, MergedEmbedding) else "norm"]
            for name, layer in self.layers.items()
            if not isinstance(layer, MergedLinear)
        }
        form = Form(
            granularity=parameters.granularity,
            transform=parameters.transform,
            init=parameters.init,
            start=parameters.start,
            task_vectors=parameters.task_vectors,
            seed=seed,
            dtype=torch.bfloat16 if parameters.coefficient_dtype == "bfloat16" else None,
        )
        heads = about("num_attention_heads") or 1
        head_dim = about("head_dim") or about("hidden_size") // heads
        models = len(self.sources.experts) + parameters.base_source
        return Coefficients(self.layers, models, dtype, form, vectors, head_dim, self._device)

    def head(self) -> OutputHead:
        """Return the output head, merged where it is to be."""
        layer = self.layers.get(self.sources.head.rpartition(".")[0])
        if layer is None:
            return self.sources.output_head(self.rest)
        return OutputHead(
            layer.merged_weight(), layer.merged_bias(), self.sources.architecture.finish
        )

    def loss(
        self,
        batch: Batch,
        rows: Sequence[Sequence[int]],
        counts: Sequence[int] | None = None,
        penalties: bool = True,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Compute the objective on a batch, with its graph to the coefficients.

        Args:
            batch: The packed samples.
            rows: For each dataset, its rows in the batch.
            counts: Each dataset's loss tokens in the step that the batch is a part of; None where
                the batch is the step.
            penalties: Whether the coefficients' penalties are in it.

        Returns:
            The weighted sum, and each term unweighted and without graph, by name.
        """
        # Penalties use the same tensors as the layers, so that one backward serves both.
        columns = self.coefficients.assign()
        hidden = self.decoder.states_at(batch.ids, batch.packing, batch.loss)
        segments = []
        for index, (start, stop) in enumerate(batch.segments):
            count = None if counts is None else counts[index]
            signal: tuple[Tensor | None, OutputHead | None] = (None, None)
            if self.teachers:
                signal = self.teachers.states(index, batch, rows[index]), self.teachers.heads[index]
            segments.append(Segment(start, stop, *signal, count))
        total, outputs = output_loss(hidden, self.head(), segments, self.objective)
        terms = dict(zip(self.objective.output_terms, outputs, strict=True))
        if penalties:
            for name, value in self.objective.penalties(columns).items():
                total = total + self.objective.weights[name] * value
                terms[name] = value.detach()
        for name, value in self.state_terms(hidden, segments).items():
            total = total + self.objective.weights[name] * value
            terms[name] = value.detach()
        return total, terms

    def state_terms(self, hidden: Tensor, segments: Sequence[Segment]) -> dict[str, Tensor]:
        """Compute terms of hidden states (tokens, hidden) and the teachers' in segments: none."""
        return {}

    def learning_rate(self, step: int) -> float:
        """Return the learning rate of a step (from 0): constant, or half a cosine down to 0."""
        if self.parameters.schedule == "constant":
            return self.parameters.learning_rate
        return self.parameters.learning_rate * 0.5 * (1 + math.cos(math.pi * step / self.steps))

    def _gradient(self, rows: Sequence[Sequence[int]]) -> dict[str, Tensor]:
        """Leave the step's gradient in the flat tensor; return its terms and the loss."""
        p, data = self.parameters, self.sources.calibrations
        counts = count_loss_tokens(data, rows, p.tokens, p.last_position)
        self.coefficients.flat.grad = None
        sums: dict[str, Tensor] = {}
        for part in split(data, rows, p.tokens_per_forward):
            batch = make_batch(data, part, p.tokens, p.last_position, self._device)
            total, terms = self.loss(batch, part, counts, penalties=not sums)
            total.backward()
            for name, value in {**terms, "loss": total.detach()}.items():
                sums[name] = sums[name] + value if name in sums else value
            self._count(batch)
        return sums

    def step(self) -> float:
        """Do the next optimiser step and add a row to the log.

        Returns:
            The objective before the update.

        Raises:
            UserError: The objective or a term is not finite; the coefficients are left as they
                were before the step, and the recorded state is one whose terms were finite.
        """
        step = len(self.log)
        size = self.parameters.batch_size
        counted = dict(self.counted)
        flops = self.teachers.computed_flops if self.teachers else 0
        sums = self._gradient([drawn[step * size : (step + 1) * size] for drawn in self.rows])
        flat = self.coefficients.flat
        if self.parameters.clip:
            norm = torch.nn.utils.clip_grad_norm_([flat], self.parameters.clip, foreach=False)
        else:
            assert flat.grad is not None  # `_gradient` has just left it
            norm = flat.grad.norm()
        names = [*(name for name in sums if name != "loss"), "loss", "gradient_norm"]
        sums["gradient_norm"] = norm
        values = dict(zip(names, torch.stack([sums[name] for name in names]).tolist(), strict=True))
        for name, value in values.items():
            if not math.isfinite(value):
                saved = self._saved()
                kept = f"; {saved} keeps the last good state" if saved else ""
                raise UserError(
                    f"{self.parameters.title}: {name} became {value} at step {step + 1} of "
                    f"{self.steps}; lower the learning rate or the term's weight{kept}"
                )
        if self._resuming is not None and step and step % self._resuming.every == 0:
            self._record(self._resuming.path, counted, flops)
        rate = self.learning_rate(step)
        self.optimizer.param_groups[0]["lr"] = rate
        self.optimizer.step()
        terms = {name: values[name] for name in names[:-2]}
        self.log.append(
            {
                "step": step + 1,
                "learning_rate": rate,
                "loss": values["loss"],
                **terms,
                "gradient_norm": values["gradient_norm"],
            }
        )
        self.counted["steps"] += 1
        return values["loss"]

    def _saved(self) -> Path | None:
        path = None if self._resuming is None else self._resuming.path
        return path if path is not None and path.exists() else None

    def _record(self, path: Path, counted: Mapping[str, float], teacher_flops: int) -> None:
        """Record the state before the step whose terms have just been seen to be finite."""
        write_state(
            path,
            self._key(BLAKE3),
            {
                "flat": self.coefficients.flat.detach(),
                "moments": moments(self.optimizer),
                "log": self.log,
                "counted": dict(counted),
                "teacher_flops": teacher_flops,
            },
        )

    def _resume(self, path: Path) -> None:
        state = read_state(path, self._key)
        with torch.no_grad():
            self.coefficients.flat.copy_(state["flat"])
        restore_moments(self.optimizer, state["moments"])
        self.log, self.counted = state["log"], state["counted"]
        if self.teachers:
            self.teachers.computed_flops = state["teacher_flops"]

    def _count(self, batch: Batch) -> None:
        tokens, loss = batch.packing.tokens, len(batch.loss)
        head = self.sources.base[self.sources.head].numel()
        body = self.sources.forward_flops(batch.packing.lengths)
        self.counted["forward_tokens"] += tokens
        self.counted["backward_tokens"] += tokens
        # Backward costs twice the forward, or by model as many products as there are models.
        products = 4 if self.teachers else 3
        passes = 4 if self.parameters.recompute_activations else 3
        self.counted["flops"] += passes * body + products * 2 * head * loss
        for name, layer in self.layers.items():
            models, size = len(layer.weights), layer.weights[0].numel()
            by_model = f"{name}.weight" != self.sources.head and layer.goes_by_model(tokens)
            # Merging is a multiply-add per model's weight, its backward another.
            self.counted["flops"] += (2 if by_model else 4) * models * size
            self.counted["flops"] += by_model * 2 * (models - 2) * size * tokens

    def result(self) -> WholeModelResult:
        """Return the merged model with the current coefficients, the log and the counts."""
        tensors = {name: self.rest[name] for name in self.sources.base if name in self.rest}
        transposed = self.sources.architecture.linear
        with torch.no_grad():
            self.coefficients.assign()
            for name, layer in self.layers.items():
                weight = layer.merged_weight()
                tensors[f"{name}.weight"] = weight.T if transposed.get(name) else weight
                if (bias := layer.merged_bias()) is not None:
                    tensors[f"{name}.bias"] = bias
        for name, tensor in tensors.items():
            tensors[name] = tensor.to("cpu", self.sources.base[name].dtype).contiguous()
        counted = dict(self.counted)
        if self.teachers:
            counted["flops"] += self.teachers.computed_flops
        return WholeModelResult(
            tensors=tensors,
            extra_tensors={name: own.cpu() for name, own in self.coefficients.named().items()},
            log=list(self.log),
            counted=counted,
        )


def train(request: WholeModelRequest, parameters: Parameters) -> WholeModelResult:
    """Learn the merge coefficients and merge.

    Weights and data are kept for the next call with the same files, so that a search over
    parameters reads them once.

    Args:
        request: What to merge, with the experts' data and perhaps their teacher signals; a state
            of the training that it asks for is removed at the end.
        parameters: How to train.

    Returns:
        The merged tensors; the coefficients by parameter name, (N, in_features) fp32; a log row
        per step with every term's unweighted value; tokens, FLOPs and steps.

    Raises:
        UserError: Bad data, parameters or cache, the state of another training, or an objective
            that is not finite.
    """
    sources = load_sources(request.base, request.experts, request.calibration, request.device)
    trainer = Trainer(request, parameters, sources)
    done, before = len(trainer.log), trainer.counted["forward_tokens"]
    progress = Progress(trainer.steps - done, "dam: training step")
    start = time.monotonic()
    for _ in range(trainer.steps - done):
        loss = trainer.step()
        tokens = trainer.counted["forward_tokens"] - before
        rate = tokens / max(time.monotonic() - start, 1e-9)
        progress.step(note=f"loss {loss:.4f}, {rate:.0f} tokens/s")
    result = trainer.result()
    if request.resuming is not None:
        request.resuming.path.unlink(missing_ok=True)
    return result
