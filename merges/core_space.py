"""Core Space: LoRA adapters merged by any method without folding them, into one adapter.

A layer's change by adapter t is s_t B_t A_t, with B_t of shape [m, r_t] and A_t of [r_t, n]. All of
them are in the space that U, the left singular vectors of [B_1 ... B_T], and V, the right ones of
the stacked A_1 ... A_T, span. The method merges

    M_t = U^T s_t B_t A_t V

as experts of a base of zeros, and U M V^T is the layer's merged change. M_t has at most as many
rows and columns as all ranks together, which makes methods that decompose matrices cheap. Nothing
is lost on the way. A method that is linear in the changes gives what it gives with folded adapters.
One that looks at single values (their signs, magnitudes, or masks) sees other values here.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from common.cli import add_values, command_parser, pairs
from common.errors import UserError
from merges.engine import registry

if TYPE_CHECKING:
    import torch

    from checkpoints.reading import Model

_DESCRIPTION = """\
Merge LoRA adapters (PEFT) of one base in the space that their factors span, into a LoRA adapter.
"""
_EPILOG = """\
example:
  python -m merges core-space --base models/base --experts ja=lora/ja math=lora/math \\
      --method ties --set density=0.5 --out lora/merged

Any method that merges parameter by parameter and needs no statistics will do. The base of its
arithmetic is zero: the adapters' changes are what it merges.
"""
_LEAST = 1e-12  # of the largest singular value; below it float64's rounding alone may be left


class Pair(NamedTuple):
    """A layer's change s B A: B [m, r] and A [r, n] in float64, and s."""

    b: torch.Tensor
    a: torch.Tensor
    scale: float = 1.0


Factors = dict[str, Pair]  # by module


def read_factors(path: Path, base: Model) -> tuple[Factors, str]:
    """Read an adapter's factors.

    Args:
        path: The adapter's folder.
        base: The model that it was trained on.

    Returns:
        The factors, and the fingerprint of base and adapter.

    Raises:
        UserError: The adapter does not fit the base, or changes more than linear layers.
    """
    from checkpoints.adapter_settings import Settings
    from checkpoints.adapters import PREFIX, WEIGHTS, Adapter, is_adapter
    from checkpoints.checking import check_finite
    from checkpoints.reading import open_weights

    if not is_adapter(path) or not (path / WEIGHTS).is_file():
        raise UserError(f"{path}: no LoRA adapter with {WEIGHTS}; give an adapter's folder")
    known = Adapter(path, base)  # checks that each pair of factors fits a parameter
    settings, weights = Settings(path), open_weights(path / WEIGHTS, None, "", False)
    found: Factors = {}
    for key in weights.stored:
        match = re.fullmatch(rf"{re.escape(PREFIX)}(.+)\.lora_[AB]\.weight", key)
        if match is None:
            raise UserError(
                f"{path}: {key} is no factor of a linear layer, and these alone have a core space; "
                "merge with python -m merges --method, which folds adapters"
            )
        module = match[1]
        if module in found:
            continue
        pair = []
        for half in ("B", "A"):
            name = f"{PREFIX}{module}.lora_{half}.weight"
            rows, columns = weights.stored[name].shape
            values = weights.read(name, 0, rows * columns).double().reshape(rows, columns)
            check_finite(values, name, path)
            pair.append(values)
        found[module] = Pair(pair[0], pair[1], settings.scale(module, pair[1].shape[0]))
    return found, known.fingerprint


def _span(vectors: torch.Tensor) -> torch.Tensor:
    """Return an orthonormal basis of the columns' space, as columns."""
    import torch

    left, values, _ = torch.linalg.svd(vectors, full_matrices=False)
    return left[:, : max(1, int((values > _LEAST * values[0]).sum()))]


def merge_factors(
    adapters: Mapping[str, Factors], method: str, parameters: Mapping[str, Any], seed: int = 0
) -> Factors:
    """Merge adapters in their core space.

    Args:
        adapters: Factors by adapter, which may lack a module (it then does not change it), and
            may be of unlike ranks.
        method: A method that merges parameter by parameter.
        parameters: Its parameters.
        seed: Of random masks.

    Returns:
        The factors of each module that changes, with the singular values of the merged change
        divided evenly; their rank is its rank.

    Raises:
        UserError: The method merges complete models or needs statistics; or as `merge_tensors`.

    Source:
        Accurate and efficient low-rank model merging in core space, arXiv:2509.17786.
    """
    import torch

    from merges.engine.run import merge_tensors

    info = registry.info(method)
    if info.whole_model or info.statistics:
        raise UserError(
            f"method {method} needs complete models; merge with python -m merges --method, which "
            "folds adapters"
        )
    # An adapter that lacks a module has a matrix of zeros there: it then changes nothing.
    modules = sorted({module for factors in adapters.values() for module in factors})
    spans: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}
    cores: dict[str, dict[str, torch.Tensor]] = {name: {} for name in adapters}
    for module in modules:
        own = {name: found[module] for name, found in adapters.items() if module in found}
        left = _span(torch.cat([pair.b for pair in own.values()], dim=1))
        right = _span(torch.cat([pair.a for pair in own.values()]).T)
        spans[module] = left, right
        for name, core in cores.items():
            core[f"{module}.weight"] = left.new_zeros(left.shape[1], right.shape[1])
            if name in own:
                b, a, scale = own[name]
                core[f"{module}.weight"] = scale * (left.T @ b) @ (a @ right)
    zeros = {key: torch.zeros_like(core) for key, core in next(iter(cores.values())).items()}
    merged = merge_tensors(method, zeros, cores, parameters, seed=seed)
    found: Factors = {}
    for module, (left, right) in spans.items():
        u, values, v = torch.linalg.svd(merged[f"{module}.weight"], full_matrices=False)
        rank = int((values > _LEAST * values[0]).sum())
        roots = values[:rank].sqrt()
        if rank:
            b, a = (left @ u[:, :rank]) * roots, roots[:, None] * (v[:rank] @ right.T)
            found[module] = Pair(b, a)
    if not found:
        raise UserError(f"method {method}: the adapters merge to no change; give other parameters")
    return found


def write_factors(
    out: Path,
    base: Model,
    factors: Factors,
    about: Mapping[str, Any],
    code: Sequence[str],
    **recorded: Any,
) -> None:
    """Write factors as a PEFT adapter with a manifest; the factors are rounded to float32.

    Args:
        out: The folder to make.
        base: The model that the adapter is for.
        factors: B and A by module.
        about: The recipe.
        code: Files that computed the factors.
        recorded: What else the manifest records: the adapters' fingerprints, the masks' seed.

    Raises:
        UserError: transformers cannot build the base; or the disk is full.
    """
    from checkpoints.adapters import PREFIX
    from checkpoints.architecture import architecture
    from checkpoints.extraction import peft_config, write_adapter

    if (built := architecture(base.config)) is None:
        raise UserError(f"{base.path}: transformers cannot build this model; give one that it can")
    ranks = {name: pair.a.shape[0] for name, pair in sorted(factors.items())}
    tensors = {
        f"{PREFIX}{name}.lora_{half}.weight": values.float().contiguous()
        for name, pair in factors.items()
        for half, values in zip("BA", pair[:2], strict=True)
    }
    config = peft_config(base.path, ranks, built)
    write_adapter(
        out.resolve(), tensors, config, base.path, {}, parameters=about, code=code, **recorded
    )


def adapters_parser(name: str, description: str, epilog: str) -> argparse.ArgumentParser:
    """Begin the parser of a command that merges adapters into one."""
    parser = command_parser(name, description, epilog)
    parser.add_argument("--base", type=Path, required=True, metavar="DIR", help="their base")
    about = "the adapters to merge"
    add_values(parser, "--experts", required=True, metavar="NAME=DIR", help=about)
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder to write")
    return parser


def read_adapters(
    given: argparse.Namespace,
) -> tuple[Model, dict[str, Factors], dict[str, str]]:
    """Read what such a command was given.

    Returns:
        The base, the adapters' factors by name, and fingerprints of the inputs for the manifest.

    Raises:
        UserError: As for `read_factors`, or an output folder that cannot be written.
    """
    from checkpoints.reading import Checkpoint
    from merges.engine.checks import check_output

    folders = pairs(given.experts, "--experts")
    check_output(given.out, [given.base, *folders.values()])
    base = Checkpoint(given.base)
    read = {name: read_factors(path, base) for name, path in folders.items()}
    inputs = {f"experts.{name}": fingerprint for name, (_, fingerprint) in read.items()}
    factors = {name: own for name, (own, _) in read.items()}
    return base, factors, {"base": base.fingerprint, **inputs}


def build_parser() -> argparse.ArgumentParser:
    """Build the command line's parser."""
    parser = adapters_parser("merges core-space", _DESCRIPTION, _EPILOG)
    parser.add_argument("--method", required=True, metavar="NAME", help="as merges --list shows it")
    add_values(parser, "--set", metavar="NAME=VALUE", help="parameters of the method")
    parser.add_argument("--seed", type=int, default=0, help="seed of random masks (0)")
    return parser


def main(argv: Sequence[str]) -> int:
    """Run the command line.

    Raises:
        UserError: What the user can fix.
    """
    given = build_parser().parse_args(argv)
    from merges.cli import read_settings

    parameters = registry.validate(given.method, read_settings(given.set))
    base, adapters, inputs = read_adapters(given)
    factors = merge_factors(adapters, given.method, parameters, given.seed)
    about = {"method": given.method, "set": parameters, "experts": list(adapters)}
    code = ("merges/core_space.py", *registry.sources(given.method))
    write_factors(given.out, base, factors, about, code, inputs=inputs, seed=given.seed)
    ranks = sorted({pair.a.shape[0] for pair in factors.values()})
    print(
        f"merged {', '.join(adapters)} with {given.method} in core space into {given.out}: "
        f"{len(factors)} layers of rank {ranks[0]} to {ranks[-1]}"
    )
    return 0
