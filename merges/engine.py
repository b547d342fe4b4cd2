"""Running a merge method over models, in memory or from disk to disk."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from checkpoints.checking import check_compatible, check_finite
from checkpoints.names import kind
from checkpoints.reading import Checkpoint
from checkpoints.writing import write_checkpoint
from common import manifest
from common.cost import measure
from common.errors import UserError
from common.files import staged_directory, write_text
from common.progress import Progress
from merges import registry
from merges.checks import (
    check_data,
    check_names,
    check_output,
    check_request,
    check_result,
    numbers_by_expert,
)
from merges.layers import LayerRules
from merges.requests import (
    EmbeddingsAndNorms,
    TensorContext,
    WholeModelRequest,
    WholeModelResult,
)

if TYPE_CHECKING:
    import torch

ParametersFor = Callable[[str], Mapping[str, Any]]

_COST = "cost.json"
_EXTRA = Path("extra") / "coefficients.safetensors"
_LOG = "training.csv"


class _LazyTensors(Mapping):
    """A checkpoint as a mapping that reads a parameter each time it is asked for."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self._checkpoint = checkpoint
        self._names = checkpoint.names()

    def __getitem__(self, name: str) -> torch.Tensor:
        return self._checkpoint.load(name)

    def __contains__(self, name: object) -> bool:
        return name in self._names

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


class _Merger:
    """A method with its parameters, ready to merge one tensor after another."""

    def __init__(
        self,
        method: str,
        experts: Sequence[str],
        parameters: Mapping[str, Any],
        seed: int,
        embeddings_and_norms: str,
        parameters_for: ParametersFor | None,
    ) -> None:
        self._method = method
        self._info = registry.info(method)
        self._given = tuple(experts)
        # Sums in another order round differently: one order makes the order given immaterial.
        self.order = self._given if self._info.ordered else tuple(sorted(self._given))
        self._parameters = self._per_expert(registry.validate(method, parameters))
        self._function = registry.load(method)
        self._seed = seed
        self._policy = embeddings_and_norms
        self._parameters_for = parameters_for

    def _per_expert(self, values: Mapping[str, Any]) -> dict[str, Any]:
        return numbers_by_expert(self._method, self._info, values, self._given)

    def _parameters_of(self, tensor: str) -> dict[str, Any]:
        values = self._parameters
        if self._parameters_for is not None and (own := self._parameters_for(tensor)):
            values = {**values, **self._per_expert(registry.check(self._method, own))}
        return {
            name: [value[expert] for expert in self.order]
            if value is not None and self._info.parameters[name].kind.per_expert
            else value
            for name, value in values.items()
        }

    def merge(
        self, name: str, base: torch.Tensor | None, experts: Sequence[torch.Tensor]
    ) -> torch.Tensor:
        """Merge one parameter and round it once, to the stored type of the base."""
        import torch

        stored = experts[0] if base is None else base
        if self._policy == "base" and kind(name) in ("embedding", "norm"):
            return stored.clone()
        if not stored.is_floating_point():
            if any(not torch.equal(stored, expert) for expert in experts):
                raise UserError(
                    f"tensor {name} holds integers and differs between the models; "
                    "it cannot be merged"
                )
            return stored.clone()
        every = [*experts, stored]
        double = any(tensor.dtype == torch.float64 for tensor in every)
        work = torch.float64 if double else torch.float32
        merged = self._function(
            None if base is None else base.to(work),
            [expert.to(work) for expert in experts],
            TensorContext(name, self.order, self._seed),
            **self._parameters_of(name),
        ).to(stored.dtype)
        if not merged.isfinite().all():
            raise UserError(
                f"tensor {name}: the merge overflows {str(stored.dtype).removeprefix('torch.')}; "
                "use smaller weights or scale"
            )
        return merged


def merge_tensors(
    method: str,
    base: Mapping[str, torch.Tensor] | None,
    experts: Mapping[str, Mapping[str, torch.Tensor]],
    parameters: Mapping[str, Any],
    *,
    seed: int = 0,
    embeddings_and_norms: EmbeddingsAndNorms = "merged",
    parameters_for: ParametersFor | None = None,
    sources: Mapping[str, Path | str] | None = None,
    progress: str | None = None,
) -> dict[str, torch.Tensor]:
    """Merge models tensor by tensor, in memory.

    Arithmetic is in float32, in float64 where an input is float64; the result is rounded once, to
    the base's type. The inputs may be lazy mappings: each tensor is asked for once.

    Args:
        method: Name of a method that is not a whole-model one.
        base: Parameters of the common ancestor by name; None where the method needs none, then
            the first expert's types are those of the result.
        experts: Parameters by expert name, then by parameter name, shaped as the base's.
        parameters: The method's parameters; those left out have their defaults.
        seed: Seed of random masks.
        embeddings_and_norms: ``merged``, or ``base`` to take them from the base.
        parameters_for: Gives, for a tensor's name, parameters that differ for it; see
            `merges.layers.LayerRules`.
        sources: What to call the models in messages, by expert name and ``base``.
        progress: What to call this work in progress lines; None for none.

    Returns:
        The merged parameters, new tensors in the base's types and shapes.

    Raises:
        UserError: Unknown method or parameter, a value out of range, models that do not belong
            together, NaN or infinity in a model or in the result.
    """
    info = check_request(method, base is not None, list(experts), embeddings_and_norms)
    if info.whole_model:
        raise UserError(f"method {method} merges whole models; use merge_checkpoints")
    merger = _Merger(method, list(experts), parameters, seed, embeddings_and_norms, parameters_for)
    reference = next(iter(experts.values())) if base is None else base
    check_names(reference, experts)
    if isinstance(parameters_for, LayerRules):
        parameters_for.check_used(list(reference))
    labels = {
        "base": "base",
        **{expert: f"expert {expert}" for expert in experts},
        **(sources or {}),
    }
    counter = Progress(len(reference), progress or "")
    merged = {}
    for name in reference:
        root = None if base is None else base[name]
        branches = [experts[expert][name] for expert in merger.order]
        shape = (branches[0] if root is None else root).shape
        for expert, tensor in zip(merger.order, branches, strict=True):
            if tensor.shape != shape:
                raise UserError(
                    f"{labels[expert]}: tensor {name} has shape {list(tensor.shape)}, not "
                    f"{list(shape)}; merge only models fine-tuned from the same base"
                )
            check_finite(tensor, name, labels[expert])
        if root is not None:
            check_finite(root, name, labels["base"])
        merged[name] = merger.merge(name, root, branches)
        if progress:
            counter.step()
    return merged


def merge_checkpoints(
    method: str,
    base: Checkpoint | None,
    experts: Mapping[str, Checkpoint],
    parameters: Mapping[str, Any],
    *,
    seed: int = 0,
    embeddings_and_norms: EmbeddingsAndNorms = "merged",
    parameters_for: ParametersFor | None = None,
    calibration: Mapping[str, Path] | None = None,
    teachers: Path | None = None,
    threads: int = 1,
) -> WholeModelResult:
    """Merge checkpoints with any method, into memory.

    Args:
        method: Name of any method.
        base: The common ancestor; None where the method needs none.
        experts: The checkpoints to merge, by name.
        parameters: The method's parameters; those left out have their defaults.
        seed: Seed of random masks, or of a whole-model method's data draw and order.
        embeddings_and_norms: ``merged``, or ``base`` to take them from the base.
        parameters_for: As for `merge_tensors`; not for whole-model methods.
        calibration: Files of JSON lines by expert name, for methods that need data.
        teachers: Folder of precomputed teacher signals, for methods that use them.
        threads: Number of CPU threads.

    Returns:
        The merged model; only whole-model methods give more than its tensors.

    Raises:
        UserError: As for `merge_tensors`; also missing or superfluous data.
    """
    import torch

    info = check_request(method, base is not None, list(experts), embeddings_and_norms)
    resolved = registry.validate(method, parameters)
    calibration = dict(calibration or {})
    check_data(info, experts, calibration, teachers)
    check_compatible(next(iter(experts.values())) if base is None else base, experts)
    torch.set_num_threads(threads)
    if not info.whole_model:
        tensors = merge_tensors(
            method,
            None if base is None else _LazyTensors(base),
            {name: _LazyTensors(expert) for name, expert in experts.items()},
            parameters,
            seed=seed,
            embeddings_and_norms=embeddings_and_norms,
            parameters_for=parameters_for,
            sources={
                **{name: expert.path for name, expert in experts.items()},
                **({} if base is None else {"base": base.path}),
            },
            progress=f"merging ({method})",
        )
        return WholeModelResult(
            tensors, counted={"parameters": sum(tensor.numel() for tensor in tensors.values())}
        )
    if base is None:
        raise UserError(f"method {method}: no base given; name the experts' common ancestor")
    if parameters_for is not None:
        raise UserError(f"method {method} merges whole models and takes no layer rules")
    for checkpoint in (base, *experts.values()):
        for tensor in checkpoint.names():
            check_finite(checkpoint.load(tensor), tensor, checkpoint.path)
    request = WholeModelRequest(
        base, dict(experts), calibration, teachers, seed, embeddings_and_norms, threads
    )
    result = registry.load(method)(
        request, **numbers_by_expert(method, info, resolved, list(experts))
    )
    check_result(base, result, method)
    return result


def _table(rows: Sequence[Mapping[str, Any]]) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def merge_to_disk(
    out: Path,
    method: str,
    base: Checkpoint | None,
    experts: Mapping[str, Checkpoint],
    parameters: Mapping[str, Any],
    *,
    seed: int = 0,
    embeddings_and_norms: EmbeddingsAndNorms = "merged",
    parameters_for: LayerRules | None = None,
    calibration: Mapping[str, Path] | None = None,
    teachers: Path | None = None,
    threads: int = 1,
) -> Path:
    """Merge checkpoints into a Hugging Face folder with manifest.json and cost.json.

    The folder appears whole or not at all. Configuration and tokenizer come from the base, or
    from the first expert where there is no base.

    Args:
        out: The folder to make; an earlier model there is replaced.
        method: Name of any method.
        base: The common ancestor; None where the method needs none.
        experts: The checkpoints to merge, by name.
        parameters: The method's parameters; those left out have their defaults.
        seed: Seed of random masks, or of a whole-model method's data draw and order.
        embeddings_and_norms: ``merged``, or ``base`` to take them from the base.
        parameters_for: Parameters that differ between layers.
        calibration: Files of JSON lines by expert name, for methods that need data.
        teachers: Folder of precomputed teacher signals, for methods that use them.
        threads: Number of CPU threads.

    Returns:
        The folder.

    Raises:
        UserError: As for `merge_checkpoints`; also a full disk, or an output folder that holds
            anything else than an earlier model.
    """
    info = check_request(method, base is not None, list(experts), embeddings_and_norms)
    resolved = registry.validate(method, parameters)
    models = {
        **({} if base is None else {"base": base}),
        **{f"experts.{name}": expert for name, expert in experts.items()},
    }
    check_output(out, [model.path for model in models.values()])
    donor = next(iter(models.values()))
    with staged_directory(out) as folder:
        with measure(folder / _COST) as cost:
            result = merge_checkpoints(
                method,
                base,
                experts,
                resolved,
                seed=seed,
                embeddings_and_norms=embeddings_and_norms,
                parameters_for=parameters_for,
                calibration=calibration,
                teachers=teachers,
                threads=threads,
            )
            write_checkpoint(folder, result.tensors, donor.path)
            write_extras(folder, result)
            cost.count(**result.counted)
        recipe = {
            "method": method,
            "set": resolved,
            "experts": list(experts),
            "embeddings_and_norms": embeddings_and_norms,
            **({} if parameters_for is None else {"set_layers": parameters_for.as_json()}),
        }
        data = {f"calibration.{name}": path for name, path in (calibration or {}).items()}
        manifest.write_manifest(
            folder / manifest.NAME,
            kind="merge",
            parameters=recipe,
            inputs={
                **{name: model.fingerprint for name, model in models.items()},
                **data,
                **({} if teachers is None else {"teachers": teachers}),
            },
            outputs={
                str(path.relative_to(folder)): path
                for path in sorted(folder.rglob("*"))
                if path.is_file() and path.name != _COST
            },
            seed=seed,
            packages=("checkpoints", *registry.sources(info.name)),
        )
    return out


def write_extras(folder: Path, result: WholeModelResult) -> None:
    """Write what a whole-model method gives besides a model: coefficients and training log.

    Args:
        folder: The model's folder, staged by the caller.
        result: The merge's result; of a tensor-by-tensor method there is nothing to write.
    """
    if result.extra_tensors:
        from safetensors.torch import save_file

        (folder / _EXTRA).parent.mkdir()
        save_file(
            {name: tensor.contiguous() for name, tensor in sorted(result.extra_tensors.items())},
            folder / _EXTRA,
        )
    if result.log:
        write_text(folder / _LOG, _table(result.log))
