"""Command line of `python -m search kinship`: how alike experts are, and which to merge next."""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from checkpoints.differences import differences, not_finite, opened
from checkpoints.likeness import kinship
from common.cli import add_values, command_parser, pairs
from common.errors import UserError
from common.files import read_json, write_json
from common.manifest import check_recorded

if TYPE_CHECKING:
    from checkpoints.reading import Model

_DESCRIPTION = """\
Show how alike the task vectors of experts are. With a score file of each, also show the K best
experts and the pairs to merge next: all pairs of these, and the best expert with the one that is
least like it.
"""
_EPILOG = """\
examples:
  python -m search kinship --base models/base --experts ja=models/ja math=models/math
  python -m search kinship --base models/base \\
      --experts ja=models/ja math=models/math sql=models/sql \\
      --scores ja=scores/ja.json math=scores/math.json sql=scores/sql.json \\
      --top 2 --out kinship.json
"""


def inner_products(base: Model, experts: Mapping[str, Model]) -> tuple[np.ndarray, np.ndarray, int]:
    """Compute the inner products of task vectors over all parameters, in one pass over the files.

    Args:
        base: The experts' common ancestor.
        experts: The experts by name, with the base's parameters.

    Returns:
        The products [N, N] and the sums of values [N], both float64, and the number of values.

    Raises:
        UserError: A value is NaN or infinite.
    """
    total, sums = np.zeros((len(experts), len(experts))), np.zeros(len(experts))
    for name, _, deltas in differences(base, experts):
        if not_finite(deltas, experts):
            raise UserError(f"tensor {name}: a model holds NaN or infinity; repair or remove it")
        total += deltas @ deltas.T
        sums += deltas.sum(axis=1)
    return total, sums, sum(map(base.count, base.names()))


def next_merges(
    scores: Sequence[float], alike: np.ndarray, top: int
) -> tuple[list[int], list[tuple[int, int]]]:
    """Choose the best experts and the pairs to merge next.

    Args:
        scores: A score of each expert, higher is better.
        alike: Their kinship [N, N].
        top: K, how many of the best are paired, from 1 to N.

    Returns:
        The K best experts, best first (of equal ones the first); and pairs, the better one first:
        all of these, then the best expert with the one of lowest kinship to it, unless it is there.

    Source:
        Hu et al. 2024, arXiv:2410.12613: a round of top-k greedy merging with exploration.
    """
    order = sorted(range(len(scores)), key=lambda n: -scores[n])
    best = order[:top]
    chosen = list(itertools.combinations(best, 2))
    least = min(order[1:], key=lambda n: alike[best[0], n])
    if (best[0], least) not in chosen:
        chosen.append((best[0], least))
    return best, chosen


def build_parser() -> argparse.ArgumentParser:
    """Build the command line's parser."""
    parser = command_parser("search kinship", _DESCRIPTION, _EPILOG)
    parser.add_argument("--base", type=Path, required=True, metavar="DIR")
    add_values(parser, "--experts", required=True, metavar="NAME=DIR", help="at least two")
    metrics = ("cosine", "pearson")
    parser.add_argument("--metric", choices=metrics, default="cosine", help="(cosine)")
    about = "drop the sign, as the authors' code does"
    parser.add_argument("--absolute", action="store_true", help=about)
    about = "a score file of each expert; its score is the mean over tasks"
    add_values(parser, "--scores", metavar="NAME=FILE", help=about)
    about = "how many of the best experts are paired (2)"
    parser.add_argument("--top", type=int, metavar="K", help=about)
    parser.add_argument("--out", type=Path, metavar="FILE", help="JSON to write")
    return parser


def _score(path: Path, name: str, expert: Model) -> float:
    """Read the mean score of a file, which must be of this expert's weights."""
    check_recorded(path)
    content = read_json(path)
    if not isinstance(content, dict) or not content.get("tasks"):
        raise UserError(f"{path}: no scores; give a file that python -m evaluation wrote")
    if not expert.has_fingerprint(content.get("weights")):
        raise UserError(f"{path}: scores of other weights than {name}'s; evaluate it again")
    values = [entry.get("value") for entry in content["tasks"].values()]
    if None in values:
        raise UserError(f"{path}: a task has no value; evaluate {name} again without this task")
    return float(np.mean(values))


def _scores(files: Mapping[str, Path], experts: Mapping[str, Model], top: int) -> dict[str, float]:
    """Read a score of each expert."""
    if odd := sorted(set(files) ^ set(experts)):
        what = "no expert of this name" if odd[0] in files else "no score file"
        raise UserError(f"--scores {odd[0]}: {what}; give one file for each expert")
    if not 1 <= top <= len(experts):
        raise UserError(f"--top {top}: give a number from 1 to {len(experts)}, the experts given")
    return {name: _score(files[name], name, expert) for name, expert in experts.items()}


def main(argv: Sequence[str]) -> int:
    """Run the command line.

    Raises:
        UserError: What the user can fix.
    """
    given = build_parser().parse_args(argv)
    top = 2 if given.top is None else given.top
    folders, files = pairs(given.experts, "--experts"), pairs(given.scores, "--scores")
    if given.top is not None and not files:
        raise UserError("--top needs --scores NAME=FILE of each expert")
    if len(folders) < 2:
        raise UserError("--experts: give at least two")
    base, experts = opened(given.base, folders)
    names, found = list(experts), {}
    if files:  # before the pass over all weights: mistakes are reported at once
        found = _scores(files, experts, top)
    alike = kinship(*inner_products(base, experts), given.metric, given.absolute)
    for name, own in zip(names, np.diagonal(alike), strict=True):
        if np.isnan(own):
            raise UserError(f"expert {name}: its task vector has no direction; leave it out")
    result: dict[str, Any] = {
        "metric": given.metric,
        "absolute": given.absolute,
        "kinship": {
            name: dict(zip(names, map(float, row), strict=True))
            for name, row in zip(names, alike, strict=True)
        },
    }
    for one, other in itertools.combinations(range(len(names)), 2):
        print(f"{names[one]} {names[other]}: {alike[one, other]:.4f}")
    if files:
        best, chosen = next_merges(list(found.values()), alike, top)
        result |= {"scores": found, "best": [names[n] for n in best]}
        result["pairs"] = [[names[one], names[other]] for one, other in chosen]
        print(f"best: {', '.join(result['best'])}")
        print(f"merge next: {', '.join('+'.join(pair) for pair in result['pairs'])}")
    if given.out:
        write_json(given.out, result)
    return 0
