"""What DAM reads: weights of base and experts, their data, and the teachers' cached signal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from checkpoints.checking import check_finite
from checkpoints.loading import check_weights, load_tokenizer
from checkpoints.reading import Model
from common.errors import UserError
from merges.dam.architecture import Architecture
from merges.dam.checking import goes_packed
from merges.dam.data import Calibration, read_calibration
from merges.dam.flops import forward_flops
from merges.dam.head import OutputHead
from merges.dam.network import Decoder


@dataclass(frozen=True)
class Sources:
    """Everything a training reads from disk; several trainings in one process share it.

    Attributes:
        base: The base's weights by parameter name; those of learned layers but the output head,
            which few trainings look at, have no more than shape and type (`whole_base` reads them).
        config: The base's config.json.
        experts: The experts' weights by expert name and parameter name, in the order of merging.
        calibrations: Each expert's data, in the same order.
        architecture: The models' class.
        packed: Whether samples go through it together, see `merges.dam.network.Decoder`.
        origin: The base's checkpoint.
    """

    base: dict[str, Tensor]
    config: dict
    experts: dict[str, dict[str, Tensor]]
    calibrations: list[Calibration]
    architecture: Architecture
    packed: bool = True
    origin: Model | None = None

    @property
    def head(self) -> str:
        """Name of the output head's parameter."""
        return self.architecture.head

    def output_head(self, tensors: Mapping[str, Tensor]) -> OutputHead:
        """Return the head of a model of this class, from its weights."""
        bias = self.architecture.head_bias
        return OutputHead(
            tensors[self.head],
            None if bias is None else tensors[bias],
            self.architecture.finish,
        )

    def decoder(self, tensors: Mapping[str, Tensor]) -> Decoder:
        """Return the body of a model of this class, from its weights."""
        return Decoder(self.architecture, tensors, packed=self.packed)

    def forward_flops(self, lengths: Sequence[int]) -> int:
        """Count one forward of the body over samples of these lengths."""
        return forward_flops(self.architecture, self.base, lengths)

    def whole_base(self) -> dict[str, Tensor]:
        """Read the base's weights that are not held, and return all of them."""
        if self.origin is None:  # all are held
            return self.base
        return {
            name: self.origin.load(name).to(self.base[self.head].device)
            if tensor.is_meta
            else tensor
            for name, tensor in self.base.items()
        }


def _state(path: Path) -> tuple:
    """Identify a file or a folder's files by size and time, to notice that they were replaced."""
    files = sorted(path.glob("*")) if path.is_dir() else [path]
    states = ((item.name, item.stat()) for item in files if item.exists())
    return (str(path), *((name, state.st_size, state.st_mtime_ns) for name, state in states))


_last: tuple[tuple, Sources] | None = None


def _load(checkpoint: Model, device: str) -> dict[str, Tensor]:
    """Read weights one by one to where they are used, so that no second copy of all exists."""
    tensors = {}
    for name in checkpoint.names():
        tensor = checkpoint.load(name)
        check_finite(tensor, name, checkpoint.path)
        tensors[name] = tensor.to(device)
    return tensors


def load_sources(
    base: Model,
    experts: Mapping[str, Model],
    calibration: Mapping[str, Path],
    device: str = "cpu",
) -> Sources:
    """Read weights and data, or return what the last call read if the files are the same.

    Args:
        base: The common ancestor.
        experts: The experts by name.
        calibration: Each expert's file of calibration rows.
        device: Where the weights are to be.

    Returns:
        The sources; shared, so not to be changed.

    Raises:
        UserError: An expert has no data, data no expert, a weight is not finite, the data are
            bad (`read_calibration`), or the architecture is unknown (`goes_packed`).
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
        device,
        _state(base.path),
        *((name, _state(expert.path)) for name, expert in experts.items()),
        *(_state(Path(calibration[name])) for name in experts),
    )
    if _last is not None and _last[0] == key:
        return _last[1]
    check_weights(base.path)  # the experts have the same names
    tokenizer = load_tokenizer(base.path)
    context = base.config.get("max_position_embeddings", 1 << 30)
    calibrations = [
        read_calibration(name, Path(calibration[name]), tokenizer, context) for name in experts
    ]
    _last = None  # what is not wanted any more goes before the new comes
    architecture = Architecture.of(base.config, base.names())
    whole = _load(base, device)
    packed = goes_packed(architecture, whole, calibrations)
    held = {n: t.to("meta") if n in architecture.held_back else t for n, t in whole.items()}
    del whole
    sources = Sources(
        base=held,
        config=base.config,
        experts={name: _load(expert, device) for name, expert in experts.items()},
        calibrations=calibrations,
        architecture=architecture,
        packed=packed,
        origin=base,
    )
    _last = (key, sources)
    return sources
