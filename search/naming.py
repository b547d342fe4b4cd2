"""A model's parameters in memory under the names that its files give them, which may be others."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping
from typing import TYPE_CHECKING

from checkpoints.adapter_names import name_in

if TYPE_CHECKING:
    import torch

_STACKED = re.compile(r"(.+)\.experts\.(gate_up_proj|down_proj)$")
_LINEAR = {"gate_up_proj": "input_linear", "down_proj": "output_linear"}  # Granite's
# How files call an expert's matrices, by the stack into which transformers puts them.
_PARTS = {
    "gate_up_proj": (("w1", "w3"), ("gate_proj", "up_proj")),
    "down_proj": (("w2",), ("down_proj",)),
}


def _apart(
    names: Collection[str], module: str, kind: str, stack: torch.Tensor
) -> Iterator[tuple[str, torch.Tensor]]:
    """Give the views of a stack [experts, rows, columns] that files store one by one."""
    for where in (module, module.replace(".mlp", ".block_sparse_moe")):
        for parts in _PARTS[kind]:
            if f"{where}.experts.0.{parts[0]}.weight" in names:
                for number, expert in enumerate(stack):
                    for part, view in zip(parts, expert.chunk(len(parts)), strict=True):
                        yield f"{where}.experts.{number}.{part}.weight", view
                return


def as_in_files(
    parameters: Mapping[str, torch.Tensor], names: Collection[str]
) -> dict[str, torch.Tensor]:
    """Name a model's parameters as its files do; experts that files store singly become views.

    Args:
        parameters: The parameters by their names in memory.
        names: Those of the files. A parameter for which they have none keeps its name.

    Returns:
        The same memory, each value once.
    """
    found: dict[str, torch.Tensor] = {}
    for name, parameter in parameters.items():
        if name not in names and (match := _STACKED.match(name)):
            module, kind = match.groups()
            single = dict(_apart(names, module, kind, parameter))
            name = name if single else f"{module}.{_LINEAR[kind]}.weight"
            found |= single or {name: parameter}
        else:
            found[name_in(names, name)] = parameter
    return found
