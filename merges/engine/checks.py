"""Checks of a merge's order and of its result that need no arithmetic."""

from __future__ import annotations

import resource
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from common import manifest
from common.errors import UserError, nearest
from merges.engine import registry
from merges.engine.requests import EmbeddingsAndNorms, WholeModelResult

if TYPE_CHECKING:
    import torch

    from checkpoints.reading import Checkpoint

_OTHER_FILES = 64  # libraries, logs, the hashes' cache


def check_request(
    method: str, has_base: bool, experts: Sequence[str], embeddings_and_norms: str
) -> registry.MethodInfo:
    """Check what can be known of a merge before any tensor is read.

    Args:
        method: The method's name.
        has_base: Whether a base is given.
        experts: The experts' names.
        embeddings_and_norms: The policy, as text.

    Returns:
        The method's description.

    Raises:
        UserError: The method or the policy is unknown, the number of experts is not the
            method's, or a base is needed and not given.
    """
    info = registry.info(method)
    policies = get_args(EmbeddingsAndNorms)
    if embeddings_and_norms not in policies:
        raise UserError(
            f"embeddings and norms: {embeddings_and_norms!r} is unknown"
            f"{nearest(embeddings_and_norms, policies)}"
        )
    if not experts:
        raise UserError(f"method {method}: no expert given; name at least one")
    if info.experts is not None and len(experts) != info.experts:
        raise UserError(
            f"method {method} merges exactly {info.experts} experts; {len(experts)} are given"
        )
    if not has_base and ("base" in info.needs or embeddings_and_norms == "base"):
        what = f"method {method}" if "base" in info.needs else "embeddings and norms of the base"
        raise UserError(f"{what}: no base given; name the experts' common ancestor")
    return info


def numbers_by_expert(
    method: str, info: registry.MethodInfo, values: Mapping[str, Any], given: Sequence[str]
) -> dict[str, Any]:
    """Turn numbers per expert, given as lists or mappings, into mappings by expert name.

    Args:
        method: The method's name, for messages.
        info: Its description.
        values: Checked values by parameter name.
        given: The experts' names in the order in which lists are meant.

    Returns:
        The same parameters; those of a number per expert have every expert's.

    Raises:
        UserError: Too many or too few numbers, or a name that is no expert's.
    """
    resolved = dict(values)
    for name, value in values.items():
        if value is None or not info.parameters[name].kind.per_expert:
            continue
        where = f"method {method}, parameter {name}"
        if isinstance(value, int | float):
            value = dict.fromkeys(given, value)
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


def check_data(
    info: registry.MethodInfo,
    experts: Mapping[str, Checkpoint],
    calibration: Mapping[str, Path],
    teachers: Path | None,
) -> None:
    """Refuse data that a method lacks or has no use for.

    Args:
        info: The method's description.
        experts: The checkpoints by name.
        calibration: Files by expert name.
        teachers: Folder of teacher signals, if any.

    Raises:
        UserError: An expert's calibration file is not given or not there, data is given to a
            method that takes none, or for no expert.
    """
    if "data" not in info.needs:
        if calibration or teachers:
            raise UserError(f"method {info.name} takes no data; leave calibration and teachers out")
        return
    for expert in calibration:
        if expert not in experts:
            raise UserError(f"calibration: no expert {expert!r}{nearest(expert, experts)}")
    for expert in experts:
        if expert not in calibration:
            raise UserError(
                f"method {info.name} needs calibration data of every expert; "
                f"give --calibration {expert}=FILE too"
            )
    for path in [*calibration.values(), *([teachers] if teachers else [])]:
        if not path.exists():
            raise UserError(f"{path}: no such file or folder; make it first, or correct the path")


def check_result(base: Checkpoint, result: WholeModelResult, method: str) -> None:
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


def check_whole(method: str, compute_dtype: str, dtype: str | None, device: str) -> None:
    """Refuse options on the arithmetic that a whole-model method does not follow.

    Raises:
        UserError: A type is other than its default, or the device is not there.
    """
    given = {"compute dtype": compute_dtype != "float32", "dtype": dtype}
    for option, other in given.items():
        if other:
            raise UserError(
                f"method {method} merges whole models into the base's types; leave the {option} out"
            )
    from merges.engine.merger import check_device

    check_device(device)


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


def check_donor(donor: str | None, models: Sequence[str], vocabulary: str) -> str:
    """Return the model that configuration and tokenizer come from.

    Args:
        donor: A model's name, None for the first.
        models: The models' names.
        vocabulary: The policy; under another than ``refuse`` the tokenizer is the first's.

    Raises:
        UserError: There is no such model, or the policy says otherwise.
    """
    if donor not in (None, models[0]) and vocabulary != "refuse":
        raise UserError(
            f"donor: under the vocabulary policy {vocabulary} the tokenizer is that of "
            f"{models[0]!r}; leave the donor out"
        )
    if donor is not None and donor not in models:
        raise UserError(f"donor: no model {donor!r}{nearest(donor, models)}")
    return models[0] if donor is None else donor


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
    return isinstance(record, dict) and record.get("kind") == "merge"
