"""Running a merge method over models, in memory or from disk to disk."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from checkpoints.chat import write_template
from checkpoints.checking import check_compatible, check_finite
from checkpoints.dtypes import stored_type
from checkpoints.names import is_head
from checkpoints.preflight import Report, check_merge
from checkpoints.settling import settle_config
from checkpoints.vocabulary import Alignment, align
from checkpoints.writing import (
    StreamedWeights,
    WithCopies,
    copy_companions,
    divided,
    with_copies,
    write_weights,
)
from common.cost import Cost, measure
from common.errors import UserError
from common.files import read_json, staged_directory, write_json
from merges.engine import registry
from merges.engine.checks import (
    check_config,
    check_donor,
    check_files,
    check_names,
    check_origin,
    check_output,
    check_result,
    check_whole,
    numbers_by_expert,
)
from merges.engine.config import MergeConfig
from merges.engine.merger import load_libraries
from merges.engine.output import COST, write_extras, write_record
from merges.engine.requests import WholeModelRequest, WholeModelResult

if TYPE_CHECKING:
    import torch


def merge_tensors(
    method: str,
    base: Mapping[str, torch.Tensor] | None,
    experts: Mapping[str, Mapping[str, torch.Tensor]],
    parameters: Mapping[str, Any],
    **options: Any,
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
        options: Other fields of `MergeConfig`.

    Returns:
        The merged parameters, new tensors on the CPU in the base's types and shapes.

    Raises:
        UserError: Unknown method or parameter, a value out of range, models that do not belong
            together, NaN or infinity in a model or in the result.
    """
    from merges.engine.streaming import Collected, InMemory, Merge

    config = MergeConfig(
        method,
        None if base is None else InMemory(base, "base"),
        {name: InMemory(tensors, f"expert {name}") for name, tensors in experts.items()},
        parameters,
        **options,
    )
    if config.info.whole_model:
        raise UserError(f"method {method} merges whole models; use merge_checkpoints")
    check_config(config)
    # Files are compared by `check_compatible`; tensors in memory have no configuration.
    reference = next(iter(experts.values())) if base is None else base
    check_names(reference, experts)
    merge = Merge(config)
    sink = Collected(merge.specs)
    merge.run(sink, list(reference))
    return sink.tensors


def _merge_whole(config: MergeConfig) -> WholeModelResult:
    import torch

    base, method = config.base, config.method
    if base is None:
        raise UserError(f"method {method}: no base given; name the experts' common ancestor")
    if config.parameters_for is not None:
        raise UserError(f"method {method} merges whole models and takes no layer rules")
    torch.set_num_threads(config.threads)
    for checkpoint in (base, *config.experts.values()):
        for tensor in checkpoint.names():
            check_finite(checkpoint.load(tensor), tensor, checkpoint.path)
    request = WholeModelRequest(
        base,
        dict(config.experts),
        dict(config.calibration),
        config.teachers,
        config.seed,
        config.embeddings_and_norms,
        config.threads,
        config.device,
        config.resuming,
    )
    parameters = numbers_by_expert(config.info, config.resolved, list(config.experts))
    result = registry.load(method)(request, **parameters)
    check_result(base, result, method)
    return result


def merge_checkpoints(config: MergeConfig) -> WholeModelResult:
    """Merge checkpoints with any method, into memory.

    Args:
        config: The merge; its models have one vocabulary. What is about files alone, the donor and
            the size of shards, has no effect.

    Raises:
        UserError: As for `merge_tensors`; also missing or superfluous data.
    """
    from merges.engine.streaming import Collected, Merge

    check_config(config)
    config = _aligned(config)[0]
    check_compatible(config.reference, config.experts, same_tokenizer=False)
    if config.info.whole_model:
        return _merge_whole(config)
    merge = Merge(config)
    merge.work_alone()
    sink = Collected(merge.specs)
    merge.run(sink, list(merge.specs), f"merging ({config.method})")
    parameters_merged = sum(tensor.numel() for tensor in sink.tensors.values())
    return WholeModelResult(sink.tensors, counted={"parameters": parameters_merged})


def _aligned(config: MergeConfig) -> tuple[MergeConfig, Alignment]:
    """Return the merge of the same models with one set of names and one vocabulary."""
    aligned = align(config.reference, config.experts, config.vocabulary, config.donor)
    base, experts = config.base and aligned.base, aligned.experts
    if config.slices is not None:
        base, experts = config.slices.stacked(base, experts)
    return dataclasses.replace(config, base=base, experts=experts), aligned


def _copies_of(config: MergeConfig, merged: MergeConfig) -> dict[str, str]:
    """Return the reference's copies that the result has: none where it is untied."""
    names = merged.reference.names()
    copies = config.reference.copies
    return {new: of for new, of in copies.items() if of in names and new not in names}


def plan(out: Path, config: MergeConfig) -> Report:
    """Check a merge before any byte is written, and estimate what it will take.

    Args:
        out: The folder to make.
        config: The merge.

    Returns:
        What was found in the models; see `checkpoints.preflight.check_merge`.

    Raises:
        UserError: The configuration itself is wrong, whatever the models hold.
    """
    from merges.engine.streaming import Merge

    check_config(config)
    models, whole_model = config.models.values(), config.info.whole_model
    data = [*config.calibration.values(), *([] if config.teachers is None else [config.teachers])]
    data += [found.path for found in config.statistics.values()]
    check_output(out, [*(folder for model in models for folder in model.folders), *data])
    check_donor(config)
    if whole_model:
        check_whole(config)
    notes = check_origin(config)
    report = check_merge(
        config.base,
        config.experts,
        out=out,
        dtype=None if config.dtype is None else stored_type(config.dtype),
        shard_bytes=config.shard_bytes,
        vocabulary=config.vocabulary,
        unit="tensor" if whole_model else config.info.unit,
        passes=1 if config.info.prepare is None else 2,
        threads=config.threads,
        donor=config.donor,
        chat_template=config.chat_template,
    )
    report.notes += notes
    if not whole_model and not report.errors:
        merge = Merge(_aligned(config)[0], arrays=True)  # checks its layers' rules
        read = {shard for model in models for shard in model.shards}
        check_files(len(read) + len(divided(merge.specs, config.shard_bytes)))
    return report


def _write_weights(
    folder: Path, config: MergeConfig, copies: Mapping[str, str], cost: Cost
) -> Mapping[str, str]:
    """Merge into a folder; return the sha256 of each weight file by its name.

    Args:
        folder: The result's, staged.
        config: The merge, its models with one set of names.
        copies: See `checkpoints.reading.Model`.
        cost: Takes the amounts.
    """
    from merges.engine.streaming import Merge

    if config.info.whole_model:
        result = _merge_whole(config)
        write_extras(folder, result)
        cost.count(**result.counted)
        tensors = with_copies(result.tensors, copies)
        return write_weights(folder, tensors, config.shard_bytes)
    merge = Merge(config, arrays=True)
    merge.work_alone()
    specs = with_copies(merge.specs, copies)
    with StreamedWeights(folder, specs, config.shard_bytes) as weights:
        order = [name for name in weights.names() if name in merge.specs]
        merge.run(WithCopies(weights, copies), order, f"merging ({config.method})")
    cost.count(**merge.counted())
    return weights.hashes


def merge_to_disk(
    out: Path, config: MergeConfig, note: Callable[[str], object] = lambda text: None
) -> Path:
    """Merge checkpoints into a Hugging Face folder with manifest.json and cost.json.

    The folder is complete or absent. A method that merges parameter by parameter reads, merges and
    writes in pieces: memory does not grow with the model.

    Args:
        out: The folder to make; an earlier model there is replaced.
        config: The merge.
        note: Is called with each note of the preflight: what should be known but stops nothing.

    Raises:
        UserError: As for `merge_checkpoints`; also a full disk, or an output folder that holds
            anything else than an earlier model.
    """
    report = plan(out, config)
    report.require()
    for text in report.notes:
        note(text)
    giver = check_donor(config)
    merged, aligned = _aligned(config)
    # A link leads to where the user wants the model: what it points to is replaced.
    with staged_directory(out.resolve()) as folder:
        load_libraries(config)
        with measure(folder / COST) as cost:
            hashes = _write_weights(folder, merged, _copies_of(config, merged), cost)
            copy_companions(giver.folders, folder, config.dtype)
            settle_config(folder, merged.reference, config.dtype)
            if config.slices is not None:
                path = folder / "config.json"
                write_json(path, config.slices.settle(read_json(path), giver.path))
            aligned.finish(folder)
            if config.chat_template is not None:
                write_template(folder, config.chat_template)
        notes = aligned.notes
        if config.slices is not None:
            head = any(map(is_head, merged.reference.names()))
            notes = (*notes, config.slices.note(head))
        write_record(folder, config, hashes, notes)
    return out
