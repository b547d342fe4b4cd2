"""What DAM reads: weights of base and experts, their data, and the teachers' cached signal."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from transformers import AutoTokenizer

from checkpoints.checking import check_finite
from checkpoints.reading import Checkpoint
from common.errors import UserError
from merges.dam.data import Calibration, read_calibration
from merges.dam.network import Decoder, check_head, head_name


@dataclass(frozen=True)
class Sources:
    """Everything a training reads from disk; several trainings in one process share it.

    Attributes:
        base: The base's weights by parameter name.
        config: The base's config.json.
        experts: The experts' weights by expert name and parameter name, in the order of merging.
        calibrations: Each expert's data, in the same order.
        head: Name of the output head's parameter.
    """

    base: dict[str, Tensor]
    config: dict
    experts: dict[str, dict[str, Tensor]]
    calibrations: list[Calibration]
    head: str


def _state(path: Path) -> tuple:
    """Identify a file or a folder's files by size and time, to notice that they were replaced."""
    files = sorted(path.glob("*")) if path.is_dir() else [path]
    states = ((item.name, item.stat()) for item in files if item.exists())
    return (str(path), *((name, state.st_size, state.st_mtime_ns) for name, state in states))


_last: tuple[tuple, Sources] | None = None


def _load(checkpoint: Checkpoint) -> dict[str, Tensor]:
    tensors = checkpoint.state_dict()
    for name, tensor in tensors.items():
        check_finite(tensor, name, checkpoint.path)
    return tensors


def load_sources(
    base: Checkpoint, experts: Mapping[str, Checkpoint], calibration: Mapping[str, Path]
) -> Sources:
    """Read weights and data, or return what the last call read if the files are the same.

    Args:
        base: The common ancestor.
        experts: The experts by name.
        calibration: Each expert's file of calibration rows.

    Returns:
        The sources; shared, so not to be changed.

    Raises:
        UserError: An expert has no data, data no expert, a weight is not finite, the data are
            bad (`read_calibration`), or the architecture is unknown (`check_head`).
    """
    global _last
    if not experts:
        raise UserError("DAM needs at least one expert")
    for name in experts:
        if name not in calibration:
            raise UserError(
                f"expert {name} has no calibration data; add --calibration {name}=FILE.jsonl"
            )
    for name in calibration:
        if name not in experts:
            raise UserError(
                f"calibration data for {name!r}, which is no expert here "
                f"(experts: {', '.join(experts)}); remove it or add the expert"
            )
    key = (
        _state(base.path),
        *((name, _state(expert.path)) for name, expert in experts.items()),
        *(_state(Path(calibration[name])) for name in experts),
    )
    if _last is not None and _last[0] == key:
        return _last[1]
    tokenizer = AutoTokenizer.from_pretrained(base.path)
    context = base.config.get("max_position_embeddings", 1 << 30)
    calibrations = [
        read_calibration(name, Path(calibration[name]), tokenizer, context) for name in experts
    ]
    weights = {name: _load(expert) for name, expert in experts.items()}
    sources = Sources(
        base=_load(base),
        config=base.config,
        experts=weights,
        calibrations=calibrations,
        head=head_name(base.config, base.names()),
    )
    first = calibrations[0]
    with torch.no_grad():
        check_head(
            base.config,
            sources.base,
            first.ids[: first.length(0)],
            Decoder(base.config, sources.base),
        )
    _last = (key, sources)
    return sources
