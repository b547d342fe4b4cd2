"""CoPA (RobustMerge): LoRA adapters merged factor by factor, their small entries pruned.

An adapter changes a layer by B A, with B of shape [m, r] and A of [r, n]. Of each matrix the
entries of largest magnitude are kept. What a row of A lost gives its direction a factor

    s_k = sum |A_k| / sum |kept A_k|, no less than a quantile of the adapter's own s

and the merged factors are A = c sum_t kept A_t and B = c sum_t s_t kept B_t / sum_t s_t, column by
column. So the merged change holds products of one adapter's B with another's A, which task vectors
do not have. Base and data are not looked at.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from common.cli import add_values
from common.errors import UserError, nearest
from merges.core_space import Factors, Pair, adapters_parser, read_adapters, write_factors
from merges.engine.parameters import Number

if TYPE_CHECKING:
    import torch

_DESCRIPTION = """\
Merge LoRA adapters (PEFT) of one base and one rank factor by factor (CoPA), into a LoRA adapter.
"""
_EPILOG = """\
example:
  python -m merges copa --base models/base --experts ja=lora/ja math=lora/math --out lora/merged
"""
# Default and range of each number.
SETTINGS = {
    "density": (0.2, Number(0, 1, low_included=False)),
    "quantile": (0.8, Number(0, 1)),
    "factor": (2.0, Number(0, low_included=False)),
}


def pruned(matrix: torch.Tensor, density: float) -> torch.Tensor:
    """Keep a share of a matrix's entries, those of largest magnitude; of equal ones the first."""
    import torch

    from merges.arithmetic.selection import kept

    flat = matrix.reshape(-1)
    places = flat.abs().argsort(descending=True, stable=True)[: kept(density, len(flat))]
    return torch.zeros_like(flat).index_copy_(0, places, flat[places]).view_as(matrix)


def factors_of_rows(a: torch.Tensor, kept: torch.Tensor, quantile: float) -> torch.Tensor:
    """Find the factor of each direction.

    Args:
        a: A, [r, n].
        kept: The same, pruned.
        quantile: No factor is below this quantile of those of the rows that kept something, which
            is the value at place floor(quantile * rows) in ascending order, or the last.

    Returns:
        s, [r]; 0 for a row of which nothing is kept.
    """
    import torch

    before, after = a.abs().sum(1), kept.abs().sum(1)
    alive = after > 0
    found = torch.where(alive, before / torch.where(alive, after, 1.0), 0.0)
    if not bool(alive.any()):
        return found
    ordered = found[alive].sort().values
    least = ordered[min(int(quantile * len(ordered)), len(ordered) - 1)]
    return torch.where(alive, found.clamp(min=least), 0.0)


def merge_copa(
    adapters: Mapping[str, Factors],
    density: float = 0.2,
    quantile: float = 0.8,
    factor: float = 2.0,
) -> Factors:
    """Merge adapters factor by factor.

    Args:
        adapters: Factors by adapter, which may lack a module (it takes no part there). Their scales
            are first multiplied into B.
        density: Share of each matrix's entries that is kept.
        quantile: As for `factors_of_rows`.
        factor: c.

    Returns:
        The merged factors by module, with scale 1.

    Raises:
        UserError: Adapters of unlike ranks, one adapter, or a merge to no change.

    Source:
        Parameter efficient merging for multimodal large language models with complementary
        parameter adaptation (later RobustMerge), arXiv:2502.17159; numbers are those of the
        authors' code. Its mask_ratio of 0.2 keeps a fifth of the entries, and a row of which
        nothing is kept gives infinity there. It reads the factors s for a B from whatever A came
        before it in the file.
    """
    import torch

    if len(adapters) < 2:
        raise UserError("CoPA merges two or more adapters; give --experts NAME=DIR NAME=DIR")
    found: Factors = {}
    for module in sorted({module for factors in adapters.values() for module in factors}):
        own = {name: factors[module] for name, factors in adapters.items() if module in factors}
        ranks = {name: pair.a.shape[0] for name, pair in own.items()}
        if len(set(ranks.values())) > 1:
            raise UserError(
                f"CoPA merges adapters of one rank; {module} has ranks {ranks}; use python -m "
                "merges core-space, which takes any"
            )
        a_all = torch.stack([pair.a for pair in own.values()])
        b_all = torch.stack([pair.scale * pair.b for pair in own.values()])
        a_kept = torch.stack([pruned(a, density) for a in a_all])
        b_kept = torch.stack([pruned(b, density) for b in b_all])
        weights = torch.stack(
            [factors_of_rows(a, kept, quantile) for a, kept in zip(a_all, a_kept, strict=True)]
        )
        total = weights.sum(0)
        # A direction of which no adapter keeps anything is zero in both factors.
        b = (weights[:, None, :] * b_kept).sum(0) / torch.where(total > 0, total, 1.0)
        pair = Pair(factor * b, factor * a_kept.sum(0))
        if bool((pair.b @ pair.a).any()):
            found[module] = pair
    if not found:
        raise UserError("CoPA: the adapters merge to no change; give others or a larger --density")
    return found


def settings_of(given: Mapping[str, Any]) -> dict[str, float]:
    """Complete and check the numbers of `merge_copa`.

    Raises:
        UserError: An unknown name, or a value out of range.
    """
    values = {name: default for name, (default, _) in SETTINGS.items()}
    for name, value in given.items():
        if name not in SETTINGS:
            raise UserError(f"CoPA has no parameter {name!r}{nearest(name, SETTINGS)}")
        kind = SETTINGS[name][1]
        try:
            values[name] = kind.check(value)
        except ValueError as error:
            raise UserError(f"CoPA, parameter {name}: {error}; give a {kind.describe()}") from None
    return values


def build_parser() -> argparse.ArgumentParser:
    """Build the command line's parser."""
    parser = adapters_parser("merges copa", _DESCRIPTION, _EPILOG)
    about = "density (0.2), quantile (0.8) and factor (2): see docs/merging.md"
    add_values(parser, "--set", metavar="NAME=VALUE", help=about)
    return parser


def main(argv: Sequence[str]) -> int:
    """Run the command line.

    Raises:
        UserError: What the user can fix.
    """
    given = build_parser().parse_args(argv)
    from merges.cli import read_settings

    settings = settings_of(read_settings(given.set))
    base, adapters, inputs = read_adapters(given)
    factors = merge_copa(adapters, **settings)
    about = {"method": "copa", "set": settings, "experts": list(adapters)}
    write_factors(given.out, base, factors, about, ("merges/copa.py",), inputs=inputs)
    print(
        f"merged {', '.join(adapters)} with CoPA into {given.out}: {len(factors)} layers of rank "
        f"{next(iter(factors.values())).a.shape[0]}"
    )
    return 0
