"""Running a merge method over models, in memory or from disk to disk."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from checkpoints.checking import check_compatible, check_finite
from checkpoints.preflight import Report, preflight, types
from checkpoints.reading import Model, stored_type, torch_name
from checkpoints.vocabulary import align
from checkpoints.writing import (
    SHARD_BYTES,
    StreamedWeights,
    copy_companions,
    divided,
    write_weights,
)
from common.cost import measure
from common.errors import UserError
from common.files import staged_directory
from merges.engine import registry
from merges.engine.checks import (
    check_data,
    check_donor,
    check_files,
    check_names,
    check_output,
    check_request,
    check_result,
    check_whole,
    numbers_by_expert,
)
from merges.engine.output import COST, write_extras, write_record
from merges.engine.requests import (
    EmbeddingsAndNorms,
    Resuming,
    WholeModelRequest,
    WholeModelResult,
)

if TYPE_CHECKING:
    import torch

    from merges.engine.merger import ParametersFor, Settings
    from merges.engine.streaming import Merge


class Rules(Protocol):
    """Parameters that differ between tensors, as they can be written to a manifest."""

    def __call__(self, tensor: str) -> Mapping[str, Any]: ...
    def as_json(self) -> list[dict[str, Any]]: ...


def merge_tensors(
    method: str,
    base: Mapping[str, torch.Tensor] | None,
    experts: Mapping[str, Mapping[str, torch.Tensor]],
    parameters: Mapping[str, Any],
    *,
    seed: int = 0,
    embeddings_and_norms: EmbeddingsAndNorms = "merged",
    parameters_for: ParametersFor | None = None,
    compute_dtype: str = "float32",
    device: str = "cpu",
) -> dict[str, torch.Tensor]:
    """Merge models tensor by tensor, in memory.

    Arithmetic is in float32, in float64 where an input is float64 or on request; the result is
    rounded once, to the base's type.

    Args:
        method: Name of a method that is not a whole-model one.
        base: Parameters of the common ancestor by name; None where the method needs none, then
            the first expert's types are those of the result.
        experts: Parameters by expert name, then by parameter name, shaped as the base's.
        parameters: The method's parameters; those left out have their defaults.
        seed: Seed of random masks.
        embeddings_and_norms: ``merged``, or ``base`` to take them from the base.
        parameters_for: Gives, for a tensor's name, parameters that differ for it; see
            `merges.engine.layer_rules.LayerRules`.
        compute_dtype: ``float32`` or ``float64``.
        device: Torch device on which values are merged.

    Returns:
        The merged parameters, new tensors on the CPU in the base's types and shapes.

    Raises:
        UserError: Unknown method or parameter, a value out of range, models that do not belong
            together, NaN or infinity in a model or in the result.
    """
    from merges.engine.merger import Settings
    from merges.engine.streaming import Collected, InMemory, Merge

    info = check_request(method, base is not None, list(experts), embeddings_and_norms)
    if info.whole_model:
        raise UserError(f"method {method} merges whole models; use merge_checkpoints")
    reference = next(iter(experts.values())) if base is None else base
    check_names(reference, experts)
    merge = Merge(
        method,
        None if base is None else InMemory(base),
        {name: InMemory(tensors) for name, tensors in experts.items()},
        parameters,
        Settings(
            seed,
            embeddings_and_norms,
            parameters_for,
            compute_dtype=compute_dtype,
            device=device,
        ),
        {},
    )
    sink = Collected(merge.specs)
    merge.run(sink, list(reference))
    return sink.tensors


def _merge_of(
    method: str,
    base: Model | None,
    experts: Mapping[str, Model],
    parameters: Mapping[str, Any],
    settings: Settings,
    arrays: bool = True,
) -> Merge:
    from merges.engine.streaming import Merge

    return Merge(
        method,
        base,
        experts,
        parameters,
        settings,
        {
            **{name: expert.path for name, expert in experts.items()},
            **({} if base is None else {"base": base.path}),
        },
        arrays,
    )


def _merge_whole(
    method: str,
    base: Model | None,
    experts: Mapping[str, Model],
    parameters: Mapping[str, Any],
    settings: Settings,
    calibration: Mapping[str, Path],
    teachers: Path | None,
) -> WholeModelResult:
    import torch

    if base is None:
        raise UserError(f"method {method}: no base given; name the experts' common ancestor")
    if settings.parameters_for is not None:
        raise UserError(f"method {method} merges whole models and takes no layer rules")
    torch.set_num_threads(settings.threads)
    for checkpoint in (base, *experts.values()):
        for tensor in checkpoint.names():
            check_finite(checkpoint.load(tensor), tensor, checkpoint.path)
    how = (settings.seed, settings.embeddings_and_norms, settings.threads, settings.device)
    request = WholeModelRequest(
        base, dict(experts), dict(calibration), teachers, *how, settings.resuming
    )
    result = registry.load(method)(
        request, **numbers_by_expert(method, registry.info(method), parameters, list(experts))
    )
    check_result(base, result, method)
    return result


def merge_checkpoints(
    method: str,
    base: Model | None,
    experts: Mapping[str, Model],
    parameters: Mapping[str, Any],
    *,
    seed: int = 0,
    embeddings_and_norms: EmbeddingsAndNorms = "merged",
    parameters_for: ParametersFor | None = None,
    calibration: Mapping[str, Path] | None = None,
    teachers: Path | None = None,
    threads: int = 1,
    device: str = "cpu",
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
        device: Torch device on which values are merged, or a whole-model method computes.

    Returns:
        The merged model; only whole-model methods give more than its tensors.

    Raises:
        UserError: As for `merge_tensors`; also missing or superfluous data.
    """
    from merges.engine.merger import Settings
    from merges.engine.streaming import Collected

    info = check_request(method, base is not None, list(experts), embeddings_and_norms)
    resolved = registry.validate(method, parameters)
    check_data(info, experts, calibration or {}, teachers)
    check_compatible(next(iter(experts.values())) if base is None else base, experts)
    settings = Settings(seed, embeddings_and_norms, parameters_for, threads=threads, device=device)
    if info.whole_model:
        return _merge_whole(method, base, experts, resolved, settings, calibration or {}, teachers)
    merge = _merge_of(method, base, experts, resolved, settings, arrays=False)
    merge.work_alone()
    sink = Collected(merge.specs)
    merge.run(sink, list(merge.specs), f"merging ({method})")
    parameters_merged = sum(tensor.numel() for tensor in sink.tensors.values())
    return WholeModelResult(sink.tensors, counted={"parameters": parameters_merged})


def plan(
    out: Path,
    method: str,
    base: Model | None,
    experts: Mapping[str, Model],
    parameters: Mapping[str, Any],
    settings: Settings,
    *,
    calibration: Mapping[str, Path] | None = None,
    teachers: Path | None = None,
    donor: str | None = None,
    vocabulary: str = "refuse",
    shard_bytes: int = SHARD_BYTES,
) -> Report:
    """Check a merge before any byte is written, and foretell what it will take.

    Args:
        out, method, base, experts, parameters, calibration, teachers, donor, vocabulary,
            shard_bytes: As for `merge_to_disk`.
        settings: The other options of `merge_to_disk`.

    Returns:
        What was found in the models; see `checkpoints.preflight.preflight`.

    Raises:
        UserError: The order itself is wrong, whatever the models hold.
    """
    info = check_request(method, base is not None, list(experts), settings.embeddings_and_norms)
    resolved = registry.validate(method, parameters)
    check_data(info, experts, calibration or {}, teachers)
    models = {**({} if base is None else {"base": base}), **experts}
    data = [*(calibration or {}).values(), *([] if teachers is None else [teachers])]
    check_output(out, [*(folder for model in models.values() for folder in model.folders), *data])
    check_donor(donor, list(models), vocabulary)
    if info.whole_model:
        check_whole(method, settings.compute_dtype, settings.dtype, settings.device)
    report = preflight(
        base,
        experts,
        out=out,
        dtype=None if settings.dtype is None else stored_type(settings.dtype),
        shard_bytes=shard_bytes,
        vocabulary=vocabulary,
        unit="tensor" if info.whole_model else info.unit,
        passes=1 if info.prepare is None else 2,
        threads=settings.threads,
    )
    if not info.whole_model and not report.errors:
        merge = _merge_of(method, base, experts, resolved, settings)  # checks its layers' rules
        read = {shard for model in models.values() for shard in model.shards}
        check_files(len(read) + len(divided(merge.specs, shard_bytes)))
    return report


def merge_to_disk(
    out: Path,
    method: str,
    base: Model | None,
    experts: Mapping[str, Model],
    parameters: Mapping[str, Any],
    *,
    seed: int = 0,
    embeddings_and_norms: EmbeddingsAndNorms = "merged",
    parameters_for: Rules | None = None,
    calibration: Mapping[str, Path] | None = None,
    teachers: Path | None = None,
    compute_dtype: str = "float32",
    dtype: str | None = None,
    device: str = "cpu",
    threads: int = 1,
    resuming: Resuming | None = None,
    donor: str | None = None,
    vocabulary: str = "refuse",
    shard_bytes: int = SHARD_BYTES,
    tell: Callable[[str], object] | None = None,
) -> Path:
    """Merge checkpoints into a Hugging Face folder with manifest.json and cost.json.

    The folder appears whole or not at all. A method that merges parameter by parameter reads,
    merges and writes in pieces: memory does not grow with the model.

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
        compute_dtype: Type of the arithmetic, ``float32`` or ``float64``.
        dtype: Type in which to store floating parameters, by torch's name; None for the base's.
        device: Torch device on which values are merged.
        threads: Number of CPU threads.
        resuming: Where a whole-model method records how far it is; None for nowhere.
        donor: The model that configuration, tokenizer and chat template come from: an expert's
            name or ``base``; None for the base, or the first expert where there is no base.
        vocabulary: What to do where tokenizers differ; see `checkpoints.vocabulary.align`.
        shard_bytes: Most bytes of values in a weight file.
        tell: Is called with each note of the preflight: what should be known but stops nothing.

    Returns:
        The folder.

    Raises:
        UserError: As for `merge_checkpoints`; also a full disk, or an output folder that holds
            anything else than an earlier model.
    """
    from merges.engine.merger import Settings

    settings = Settings(
        seed, embeddings_and_norms, parameters_for, compute_dtype, dtype, device, threads, resuming
    )
    report = plan(
        out,
        method,
        base,
        experts,
        parameters,
        settings,
        calibration=calibration,
        teachers=teachers,
        donor=donor,
        vocabulary=vocabulary,
        shard_bytes=shard_bytes,
    )
    report.require()
    for note in report.notes if tell else []:
        tell(note)
    info, resolved = registry.info(method), registry.validate(method, parameters)
    models = {**({} if base is None else {"base": base}), **experts}
    reference = next(iter(models.values()))
    giver = models[check_donor(donor, list(models), vocabulary)]
    aligned = align(reference, experts, vocabulary)
    base, experts = base and aligned.base, aligned.experts
    # A link leads to where the user wants the model: what it points to is replaced.
    with staged_directory(out.resolve()) as folder:
        with measure(folder / COST) as cost:
            if info.whole_model:
                result = _merge_whole(
                    method, base, experts, resolved, settings, calibration or {}, teachers
                )
                hashes = write_weights(folder, result.tensors, shard_bytes)
                write_extras(folder, result)
                cost.count(**result.counted)
            else:
                merge = _merge_of(method, base, experts, resolved, settings)
                merge.work_alone()
                with StreamedWeights(folder, merge.specs, shard_bytes) as weights:
                    merge.run(weights, weights.names(), f"merging ({method})")
                hashes = weights.hashes
                cost.count(**merge.counted())
            # Another model's configuration may tell of another type than the weights have.
            own = None if giver is reference else torch_name(types(reference).split(", ")[0])
            copy_companions(giver.folders, folder, dtype or own)
            aligned.finish(folder)
        recipe = {
            "method": method,
            "set": resolved,
            "experts": list(experts),
            "embeddings_and_norms": embeddings_and_norms,
            "compute_dtype": compute_dtype,
            "dtype": dtype,
            "donor": donor,
            "vocabulary": vocabulary,
            **({} if parameters_for is None else {"set_layers": parameters_for.as_json()}),
        }
        data = {
            **{f"calibration.{name}": path for name, path in (calibration or {}).items()},
            **({} if teachers is None else {"teachers": teachers}),
        }
        write_record(folder, recipe, models, data, hashes, aligned.notes, seed)
    return out
