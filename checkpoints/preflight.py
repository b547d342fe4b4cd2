"""All that can be known of a merge before a byte is written, in one report."""

from __future__ import annotations

import dataclasses
import math
import os
import shutil
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from checkpoints.chat import chat_of, differences
from checkpoints.checking import check_compatible, flat_config
from checkpoints.companions import companions_of
from checkpoints.configs import config_differences
from checkpoints.dtypes import FLOATS
from checkpoints.names import is_head
from checkpoints.reading import Model
from checkpoints.settling import settle
from checkpoints.tokens import TOKENIZER
from checkpoints.vocabulary import align
from checkpoints.writing import SHARD_BYTES, TensorSpec, divided
from common.errors import UserError, nearest
from common.files import existing_above

# The model of memory and time: rough, but of the right order on an ordinary machine.
_LIBRARIES = 400e6  # bytes that torch takes once imported
_PIECE = 1 << 16  # values that are merged at a time where a method allows it
_BUFFERS = 6  # work buffers of a method, besides one for each model
_DISK = 1e9  # bytes a second, reading and writing alike
_NANOSECONDS = 2.0  # of arithmetic for each value of each model
_TOKENS = ("bos_token_id", "eos_token_id", "pad_token_id")


@dataclass
class Report:
    """What a preflight found.

    Attributes:
        facts: What the merge is and costs, a line each.
        notes: What should be known but stops nothing.
        errors: What stops the merge, a line each.
    """

    facts: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)

    def lines(self) -> list[str]:
        """Return the report for printing."""
        return [
            *self.facts,
            *(f"note: {note}" for note in self.notes),
            *(f"error: {error}" for error in self.errors),
        ]

    def require(self) -> None:
        """Raise the first error, if there is one."""
        if self.errors:
            raise UserError(self.errors[0])


def amount(count: float) -> str:
    """Write a number of bytes for readers."""
    for unit in ("B", "KB", "MB"):
        if count < 999.5:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:,.1f} GB"


def counted(count: int, noun: str) -> str:
    """Write a number of things."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def _specs(model: Model, dtype: str | None) -> dict[str, TensorSpec]:
    """Describe each parameter, floating ones in another type if one is given."""
    return {
        name: TensorSpec(
            dtype if dtype and model.dtype(name) in FLOATS else model.stored(name),
            model.shape(name),
        )
        for name in model.names()
    }


def _bytes(specs: Mapping[str, TensorSpec]) -> int:
    return sum(spec.bytes for spec in specs.values())


def types(model: Model) -> str:
    """Name the types in which a model is stored, by falling number of values."""
    counts: Counter[str] = Counter()
    for name in model.names():
        counts[model.stored(name)] += model.count(name)
    return ", ".join(dtype for dtype, _ in counts.most_common())


def describe(model: Model) -> str:
    """Summarise a model in a line: its type, parameters, layers, stored types."""
    config = flat_config(model.config)
    parameters = sum(map(model.count, model.names()))
    head = "" if any(map(is_head, model.names())) else ", head tied to the embedding"
    return (
        f"{config.get('model_type', 'unknown type')}, {parameters:,} parameters in "
        f"{len(model.names())} tensors, {config.get('num_hidden_layers', '?')} layers of width "
        f"{config.get('hidden_size', '?')}, {types(model)}{head}"
    )


def _compare(report: Report, base: Model, name: str, expert: Model, donor: str) -> None:
    ours, theirs = flat_config(base.config), flat_config(expert.config)
    told = config_differences(base.config, expert.config)
    told |= {key: (ours[key], theirs[key]) for key in _TOKENS if key in ours and key in theirs}
    report.notes += [
        f"expert {name}: {key} is {other}, the base's {own}; the result has {donor}'s"
        for key, (own, other) in told.items()
        if own != other
    ]
    if types(base) != types(expert):
        report.notes.append(
            f"expert {name} is stored in {types(expert)}, the base in {types(base)}; "
            "the arithmetic is in float32 at least, rounded once at the end"
        )
    has = [any((f / TOKENIZER).is_file() for f in model.folders) for model in (base, expert)]
    if has == [True, False]:
        report.notes.append(
            f"expert {name} has no {TOKENIZER}; its vocabulary is taken for the base's"
        )


def _describe_donor(
    report: Report, donor: tuple[str, Model], models: Mapping[str, Model], template: str | None
) -> None:
    """Note what comes from the donor with the weights, and what of the others is lost by it."""
    title, giver = donor
    companions = companions_of(giver.folders)
    ours = chat_of(companions)
    report.notes.append(companions.note())
    for name, model in models.items():
        if model is giver:
            continue
        theirs = chat_of(companions_of(model.folders))
        if template is not None:  # neither's
            theirs = dataclasses.replace(theirs, templates=ours.templates)
        lost = differences(theirs, ours)
        if lost:
            label = name if name == "base" else f"expert {name}"
            report.notes.append(
                f"{label} {' and '.join(lost)}; the result has those of the donor ({title}); "
                f"for {name}'s own give --donor {name}"
            )


def _check_disk(report: Report, out: Path, needed: int) -> None:
    parent = existing_above(out)
    if not parent.is_dir():
        report.errors.append(f"{parent}: is a file and no folder to write in; correct the path")
        return
    free = shutil.disk_usage(parent).free
    report.facts.append(f"disk: {amount(free)} free for {out}")
    if free < needed:
        report.errors.append(
            f"the disk is full: {amount(free)} are free for {out}, {amount(needed)} are needed; "
            "free some space or write elsewhere"
        )
    if not os.access(parent, os.W_OK):
        report.errors.append(f"{parent}: no permission to write there; choose another folder")


def check_merge(
    base: Model | None,
    experts: Mapping[str, Model],
    *,
    out: Path | None = None,
    dtype: str | None = None,
    shard_bytes: int = SHARD_BYTES,
    vocabulary: str = "refuse",
    unit: Literal["values", "rows", "tensor"] = "values",
    passes: int = 1,
    threads: int = 1,
    donor: str | None = None,
    chat_template: str | None = None,
) -> Report:
    """Check a merge and estimate its size, memory and time; nothing is read but headers.

    Args:
        base: The common ancestor; None for a merge without one.
        experts: The models to merge by name.
        out: The folder to be written; None leaves the disk out.
        dtype: Type of the result by its safetensors name, None for the base's own.
        shard_bytes: Most bytes of values in a weight file.
        vocabulary: Policy for vocabularies that differ; see `checkpoints.vocabulary.align`.
        unit: What the method works on at a time.
        passes: How often the method reads every model.
        threads: Parameters that are merged at a time.
        donor: The model that gives configuration and tokenizer; None for the base, or without
            one the first expert.
        chat_template: The result's chat template; None for the donor's.

    Returns:
        The report; its errors are all that were found, not only the first.

    Raises:
        UserError: The type is unknown, or there is no model.
    """
    if dtype is not None and dtype not in FLOATS:
        raise UserError(f"type {dtype!r} of the result is unknown{nearest(dtype, FLOATS)}")
    if not experts:
        raise UserError("no expert is given; name at least one")
    reference = next(iter(experts.values())) if base is None else base
    report = Report([f"{'base' if base else 'first expert'}: {describe(reference)}"])
    for name, expert in experts.items():
        report.facts.append(f"expert {name}: {types(expert)}, {expert.path}")
        whose = donor if donor and donor != "base" else "the base"
        _compare(report, reference, name, expert, whose)
        _check_expert(report, reference, name, expert, vocabulary)
    for name, model in {**({} if base is None else {"the base": base}), **experts}.items():
        report.notes += [f"{'expert ' * (model is not base)}{name}: {n}" for n in model.notes]
    try:
        aligned = align(reference, experts, vocabulary, donor)
        report.notes += [note.rstrip(".") for note in aligned.notes]
        result = aligned.base
    except UserError as error:
        if str(error) not in report.errors:
            report.errors.append(str(error))
        result = reference
    _note_tensors(report, reference)
    named = {**({} if base is None else {"base": base}), **experts}
    title = donor or next(iter(named))
    _describe_donor(report, (title, named[title]), named, chat_template)
    # Weights are described in the type and with the rows of the result, which may be new to both.
    specs = _specs(result, dtype)
    companions = (path for path in reference.path.glob("*.json") if path.is_file())
    written = _bytes(specs) + sum(path.stat().st_size for path in companions)
    report.facts.append(
        f"result: {amount(_bytes(specs))} in "
        f"{counted(len(divided(specs, shard_bytes)), 'weight file')}, {dtype or types(result)}"
    )
    if out is not None:
        _check_disk(report, out, written)
    models = [*([] if base is None else [base]), *experts.values()]
    report.facts += _costs(models, result, written, unit, passes, threads)
    return report


def _costs(
    models: Sequence[Model], result: Model, written: int, unit: str, passes: int, threads: int
) -> list[str]:
    """Estimate a merge's memory and time.

    Memory is that of torch, and in every thread of one unit of work for each model and for the
    method's buffers, in float32: a piece of 65,536 values, a block of complete rows, or the largest
    parameter. Time is reading every model as often as the method passes over it and writing the
    result, at 1 GB a second, and 2 ns of arithmetic for each value and model; hashing overlaps.
    """
    largest = max(map(result.count, result.names()))
    columns = max((result.shape(name) or (1,))[-1] for name in result.names())
    values = {"values": _PIECE, "rows": max(_PIECE, columns), "tensor": largest}[unit]
    memory = _LIBRARIES + threads * (len(models) + _BUFFERS) * 4 * min(values, largest)
    read = passes * sum(_bytes(_specs(model, None)) for model in models)
    arithmetic = sum(sum(map(model.count, model.names())) for model in models) * _NANOSECONDS / 1e9
    seconds = (read + written) / _DISK + passes * arithmetic
    return [
        f"memory: about {amount(memory)}",
        f"time: about {math.ceil(seconds):,} s ({amount(read)} to read, {amount(written)} to "
        "write), more for methods with much arithmetic",
    ]


def _check_expert(report: Report, base: Model, name: str, expert: Model, vocabulary: str) -> None:
    """Collect what the merge itself would stop at, without the rows that a policy brings."""
    try:
        if vocabulary == "refuse":
            settled = settle(base, {name: expert})
            check_compatible(settled.base, settled.experts)
        else:
            aligned = align(base, {name: expert}, vocabulary)
            check_compatible(aligned.base, aligned.experts, same_tokenizer=False)
    except UserError as error:
        report.errors.append(str(error))


def _note_tensors(report: Report, base: Model) -> None:
    if fixed := [name for name in base.names() if base.dtype(name) not in FLOATS]:
        report.notes.append(
            f"{counted(len(fixed), 'tensor')} without floating-point values (such as {fixed[0]}) "
            "must be equal in all models"
        )
    if biases := sum(name.endswith(".bias") for name in base.names()):
        report.notes.append(f"{counted(biases, 'bias vector')} merged like weights")
    if not (base.path / TOKENIZER).is_file():
        report.notes.append(f"{base.path} has no {TOKENIZER}; vocabularies are not compared")
