"""Checks of a merge's configuration and of its result that need no arithmetic."""

from __future__ import annotations

import resource
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from checkpoints.devices import check_device
from common import manifest
from common.errors import UserError, nearest
from merges.engine import registry
from merges.engine.requests import EmbeddingsAndNorms, WholeModelResult

if TYPE_CHECKING:
    import torch

    from checkpoints.reading import Model
    from merges.engine.config import MergeConfig

_OTHER_FILES = 64  # libraries, logs, the hashes' cache


def check_config(config: MergeConfig) -> None:
    """Check what can be known of a merge before any tensor is read.

    Raises:
        UserError: The method, a parameter or the policy for embeddings and norms is unknown, a
            value is out of its range, the number of experts is not the method's, a base is needed
            and not given, or data is missing or superfluous.
    """
    info, method = config.info, config.method
    policies = get_args(EmbeddingsAndNorms)
    if config.embeddings_and_norms not in policies:
        raise UserError(
            f"embeddings and norms: {config.embeddings_and_norms!r} is unknown"
            f"{nearest(config.embeddings_and_norms, policies)}"
        )
    if not config.experts:
        raise UserError(f"method {method}: no expert given; name at least one")
    given = len(config.merged_names)
    if info.experts not in (None, given):
        raise UserError(
            f"method {method} merges exactly {info.experts} expert{'s' * (info.experts != 1)}; "
            f"{given} are given{' in a slice' if config.slices else ''}"
        )
    needed = "base" in info.needs
    if config.base is None and (needed or config.embeddings_and_norms == "base"):
        what = f"method {method}" if needed else "embeddings and norms of the base"
        raise UserError(f"{what}: no base given; name the experts' common ancestor")
    _ = config.resolved  # checks the parameters
    _check_data(config)
    _check_statistics(config)
    if config.slices is not None:
        _check_slices(config)


def numbers_by_expert(
    info: registry.MethodInfo, values: Mapping[str, Any], given: Sequence[str]
) -> dict[str, Any]:
    """Turn numbers per expert, given as lists or mappings, into mappings by expert name.

    Args:
        info: The method's description.
        values: Checked values by parameter name.
        given: The experts' names in the order in which lists are meant.

    Raises:
        UserError: Too many or too few numbers, or a name that is no expert's.
    """
    resolved = dict(values)
    for name, value in values.items():
        if value is None or not info.parameters[name].kind.per_expert:
            continue
        where = f"method {info.name}, parameter {name}"
        if isinstance(value, int | float):
            value = dict.fromkeys(given, value)
        # By name, because the engine may sort the experts in another order.
        if isinstance(value, list):
            if len(value) != len(given):
                raise UserError(
                    f"{where}: {len(value)} numbers for {len(given)} experts; "
                    f"give one each, in the order {', '.join(given)}"
                )
            value = dict(zip(given, value, strict=True))
        for expert in value:
            if expert not in given:
                raise UserError(f"{where}: no expert {expert!r}{nearest(expert, given)}")
        if missing := [expert for expert in given if expert not in value]:
            raise UserError(f"{where}: no number for expert {missing[0]!r}; give one each")
        resolved[name] = value
    return resolved


def check_names(
    reference: Mapping[str, torch.Tensor], experts: Mapping[str, Mapping[str, torch.Tensor]]
) -> None:
    """Refuse experts that have not exactly the reference's parameters, in shape and kind."""
    for expert, tensors in experts.items():
        if odd := sorted(set(reference) ^ set(tensors)):
            word = "lacks" if odd[0] in reference else "alone has"
            raise UserError(
                f"expert {expert} {word} tensor {odd[0]}; "
                "merge only models fine-tuned from the same base"
            )
        for name, tensor in tensors.items():
            if tensor.shape != reference[name].shape:
                raise UserError(
                    f"expert {expert}: tensor {name} has shape {list(tensor.shape)}, not "
                    f"{list(reference[name].shape)}; "
                    "merge only models fine-tuned from the same base"
                )
            if tensor.is_floating_point() != reference[name].is_floating_point():
                raise UserError(
                    f"expert {expert}: tensor {name} is of type {tensor.dtype}, not "
                    f"{reference[name].dtype}; merge only models fine-tuned from the same base"
                )


def _check_slices(config: MergeConfig) -> None:
    """Refuse slices for methods that need complete models, or layers that the slices lack."""
    info, based = config.info, config.slices is not None and config.slices.based
    if info.whole_model or info.statistics:
        raise UserError(
            f"method {config.method} needs complete models and takes no slices; stack the layers "
            "with --method passthrough first"
        )
    wants = "base" in info.needs or config.embeddings_and_norms == "base"
    if (wants or config.resolved.get("origin") == "base") and not based:
        raise UserError(
            f"method {config.method} needs layers of the base in each slice; give "
            "base=FIRST:END in each"
        )


def _check_data(config: MergeConfig) -> None:
    """Refuse data that a method lacks or has no use for."""
    method, calibration, teachers = config.method, config.calibration, config.teachers
    if "data" not in config.info.needs:
        if calibration or teachers:
            raise UserError(f"method {method} takes no data; leave calibration and teachers out")
        return
    for expert in calibration:
        if expert not in config.experts:
            raise UserError(f"calibration: no expert {expert!r}{nearest(expert, config.experts)}")
    for expert in config.experts:
        if expert not in calibration:
            raise UserError(
                f"method {method} needs calibration data of every expert; "
                f"give --calibration {expert}=FILE too"
            )
    for path in [*calibration.values(), *([teachers] if teachers else [])]:
        if not path.exists():
            raise UserError(f"{path}: no such file or folder; make it first, or correct the path")


def _check_statistics(config: MergeConfig) -> None:
    """Refuse statistics that a method lacks or has no use for, and those of another kind."""
    wanted: dict[str, str] = {}
    for whose, kind in config.info.statistics.items():
        wanted |= dict.fromkeys(config.experts if whose == "experts" else [whose], kind)
    for name in config.statistics:
        if name not in wanted:
            takes = ", ".join(wanted) or "none"
            raise UserError(
                f"method {config.method} takes no statistics of {name!r} (it takes {takes}); "
                "leave them out"
            )
    for name, kind in wanted.items():
        if name not in config.statistics:
            raise UserError(
                f"method {config.method} needs statistics ({kind}) of {name}; make them with "
                f"python -m merges statistics --collect {kind}, and give --statistics {name}=DIR"
            )
        if (found := config.statistics[name].kind) != kind:
            raise UserError(
                f"statistics of {name}: method {config.method} needs {kind}, these are {found}; "
                f"make them with python -m merges statistics --collect {kind}"
            )


def check_origin(config: MergeConfig) -> list[str]:
    """Refuse statistics of another model than is merged; say where they saw few tokens.

    Returns:
        Notes, one for each of the statistics whose Gram matrices lack full rank.

    Raises:
        UserError: They are of another model.
    """
    notes = []
    for name, found in config.statistics.items():
        if not config.models[name].has_fingerprint(found.model):
            raise UserError(
                f"statistics of {name}: they are those of another checkpoint than "
                f"{config.models[name].path}; make them again with python -m merges statistics"
            )
        if few := {layer: width for layer, width in found.widths().items() if width > found.tokens}:
            layer, width = max(few.items(), key=lambda item: item[1])
            more = f" and {len(few) - 1} more" if len(few) > 1 else ""
            notes.append(
                f"statistics of {name}: {found.tokens:,} tokens for the {width:,} inputs of "
                f"{layer}{more}; where no token speaks, the ridge of "
                f"{config.resolved.get('ridge', 0.0):g} decides"
            )
    return notes


def check_result(base: Model, result: WholeModelResult, method: str) -> None:
    """Refuse a whole-model method's result that is not a finite model of the base's shapes.

    Raises:
        UserError: A value is not finite, for example after a diverged training.
        RuntimeError: Names or shapes differ, a fault of the method.
    """
    if sorted(result.tensors) != base.names():
        raise RuntimeError(f"method {method} returned other tensors than the base has")
    for name, tensor in result.tensors.items():
        if tuple(tensor.shape) != base.shape(name):
            raise RuntimeError(f"method {method} returned tensor {name} in another shape")
        if not tensor.isfinite().all():
            raise UserError(
                f"method {method}: tensor {name} of the result is not finite; "
                "lower the learning rate or the scale"
            )


def check_whole(config: MergeConfig) -> None:
    """Refuse options on the arithmetic that a whole-model method does not follow.

    Raises:
        UserError: A type is other than its default, or the device is not there.
    """
    given = {"compute dtype": config.compute_dtype != "float32", "dtype": config.dtype}
    for option, other in given.items():
        if other:
            raise UserError(
                f"method {config.method} merges whole models into the base's types; "
                f"leave the {option} out"
            )
    check_device(config.device)


def check_files(count: int) -> None:
    """Let the process open many files at once, where the system lets it.

    Args:
        count: Weight files that a merge reads and writes.

    Raises:
        UserError: The system does not.
    """
    needed = count + _OTHER_FILES
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= needed:
        return
    if hard != resource.RLIM_INFINITY and hard < needed:
        raise UserError(
            f"{count} weight files are open at once, and the system allows {hard} files; "
            "raise its limit (ulimit -n), or write larger files"
        )
    resource.setrlimit(resource.RLIMIT_NOFILE, (needed, hard))


def check_donor(config: MergeConfig) -> Model:
    """Return the model that configuration and tokenizer come from.

    Raises:
        UserError: There is no such model, or the vocabulary policy takes the first one's.
    """
    models, donor = config.models, config.donor
    first = next(iter(models))
    if donor not in (None, first) and config.vocabulary == "crop-to-base":
        raise UserError(
            f"donor: under the vocabulary policy crop-to-base the tokenizer is that of {first!r}; "
            "leave the donor out"
        )
    if donor is not None and donor not in models:
        raise UserError(f"donor: no model {donor!r}{nearest(donor, models)}")
    return models[donor or first]


def check_output(out: Path, inputs: Sequence[Path]) -> None:
    """Refuse an output folder whose replacement would destroy what is no earlier result.

    Args:
        out: The folder to be written.
        inputs: Folders that are read.

    Raises:
        UserError: It is or holds an input, is a file, or is filled with other things.
    """
    place = out.resolve()
    for path in inputs:
        if place == path.resolve() or place in path.resolve().parents:
            raise UserError(f"{out}: holds the input {path}; give another output folder")
    if out.is_file():
        raise UserError(f"{out}: is a file; give a folder")
    if out.is_dir() and any(out.iterdir()) and not _is_merge(out):
        raise UserError(
            f"{out}: is not empty and holds no earlier merge (no {manifest.NAME} of one); give "
            "another output folder, or remove this one"
        )


def _is_merge(folder: Path) -> bool:
    try:
        record = manifest.read_manifest(folder)
    except (UserError, OSError):
        return False
    return isinstance(record, dict) and record.get("kind") in ("merge", "aligned")
