"""Command line of the searches: `python -m search --help`."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from common.cli import add_values, command_parser, json_list
from common.errors import UserError
from merges.cli import read_settings
from merges.engine import registry
from search.sources import ALGORITHMS, PARAMETER_SPACE_ONLY

_DESCRIPTION = """\
Choose a merge by its average on the dev items and write the best one as a model folder. `tune`
tries a list of candidates; `evolve` searches with CMA-ES, over a method's weights and densities in
each group of layers or over paths through the experts' layers; `greedy` averages the best expert
with each next one that does not make it worse. Candidates are merged and scored in memory;
search.csv in the result lists them all. The same command given again resumes a search that was
killed. `replay` writes the model that a finished search would have chosen after
fewer evaluations. `kinship` shows how alike experts are, and which pairs to merge next.
"""

_EPILOG = """\
examples:
  python -m search tune --method ties --base models/base --experts ja=models/ja math=models/math \\
      --candidates '[{"density": 0.2}, {"density": 0.5}]' \\
      --data data --suites bottle_ja8 --out merges/ties_tuned
  python -m search evolve --method dare_ties --base models/base \\
      --experts ja=models/ja math=models/math --budget 96 --granularity 2 --kinds separate \\
      --data data --suites bottle_ja8 --out merges/evolutionary
  python -m search evolve --space data-flow --base models/base \\
      --experts ja=models/ja math=models/math --budget 96 --seconds 3600 \\
      --data data --suites bottle_ja8 --out merges/stacked
  python -m search greedy --base models/base --experts ja=models/ja math=models/math \\
      --data data --suites bottle_ja8 --out merges/greedy_soup
  python -m search replay --of merges/evolutionary --evaluations 24 --base models/base \\
      --experts ja=models/ja math=models/math --out merges/evolutionary_24
  python -m search kinship --help

docs/evolutionary.md explains more.
"""


def build_parser() -> argparse.ArgumentParser:
    """Build the command line's parser."""
    parser = command_parser("search", _DESCRIPTION, _EPILOG)
    parser.add_argument("command", choices=["tune", "evolve", "greedy", "replay"])
    parser.add_argument("--base", type=Path, required=True, metavar="DIR")
    add_values(parser, "--experts", required=True, metavar="NAME=DIR")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR")
    parser.add_argument("--threads", type=int, default=1, metavar="N")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--vocabulary",
        default="refuse",
        choices=["refuse", "crop-to-base"],
        help="where an expert's tokenizer has more tokens behind the base's (refuse)",
    )
    # One parser for all commands: `_check_options` refuses options of another command.
    group = parser.add_argument_group("what is merged (tune, evolve)")
    group.add_argument(
        "--method",
        help="as python -m merges --list shows it; greedy and the data-flow space take none",
    )
    add_values(group, "--set", metavar="NAME=VALUE", help="fixed parameters")
    group.add_argument("--embeddings-and-norms", default="merged", choices=["merged", "base"])
    add_values(group, "--calibration", metavar="NAME=FILE")
    group.add_argument("--teachers", type=Path, metavar="DIR")
    add_values(group, "--statistics", metavar="NAME=DIR")
    group = parser.add_argument_group("how it is scored (tune, evolve, greedy)")
    group.add_argument("--data", type=Path, metavar="DIR", help="folder with the dev items")
    group.add_argument("--suites", metavar="A,B", help="suites to score")
    group.add_argument(
        "--average",
        metavar="JSON",
        help="the table's columns, each a list of suite/task, whose mean is maximised "
        "(default: the mean over all tasks)",
    )
    group.add_argument("--batch-size", type=int, default=64, metavar="N")
    group.add_argument("--device", default="cpu", help="of the model that is scored: cpu, cuda ...")
    group.add_argument(
        "--dtype",
        default="float32",
        choices=["float32", "bfloat16", "float16"],
        help="in which it is scored (float32)",
    )
    group.add_argument(
        "--engine", default="sqlite", choices=["sqlite", "postgres"], help="runs SQL (sqlite)"
    )
    group.add_argument(
        "--fitness-items",
        type=int,
        metavar="N",
        help="score candidates on N items of each task, chosen by the seed (default: all)",
    )
    group.add_argument(
        "--rescored",
        type=int,
        default=16,
        metavar="M",
        help="with --fitness-items: candidates that are scored on all items afterwards, for the "
        "rank correlation (16)",
    )
    group = parser.add_argument_group("tune")
    group.add_argument("--candidates", metavar="JSON", help="a list of parameter mappings")
    group = parser.add_argument_group("evolve")
    group.add_argument("--budget", type=int, metavar="N", help="evaluations in all")
    group.add_argument(
        "--seconds", type=float, metavar="S", help="begin no candidate after S seconds in all"
    )
    group.add_argument("--population", type=int, metavar="N", help="candidates in a generation")
    group.add_argument(
        "--algorithm",
        choices=list(ALGORITHMS),
        help="cma-es (default); nsga2 and map look for merges that no other beats in all columns; "
        "m2n2 mates candidates that complement each other; merge3 estimates scores from "
        "--fitness-items (5)",
    )
    group.add_argument("--sigma", type=float, help="first step size, in units of the genes (0.3)")
    group.add_argument("--space", default="parameter", choices=["parameter", "data-flow"])
    group.add_argument(
        "--granularity", type=int, metavar="N", help="parameter space: layers in a group (1)"
    )
    group.add_argument(
        "--kinds",
        choices=["together", "separate"],
        help="parameter space: whether attention, mlp, norms ... of a group share their genes "
        "(together)",
    )
    group.add_argument(
        "--repeats", type=int, metavar="N", help="data-flow space: how often layers may follow"
    )
    group.add_argument(
        "--scales",
        choices=["network", "matrix", "none"],
        help="data-flow space: where the factors between layers come from (network)",
    )
    group.add_argument(
        "--max-depth", type=int, metavar="N", help="data-flow space: most layers of a candidate"
    )
    group.add_argument(
        "--embedding-from", metavar="NAME", help="data-flow space: whose embedding and head"
    )
    group = parser.add_argument_group("replay")
    group.add_argument("--of", type=Path, metavar="DIR", help="the result of a finished search")
    group.add_argument("--evaluations", type=int, metavar="K", help="how many of them count")
    return parser


_ONLY_FOR = {
    "candidates": ("tune", None),
    "budget": ("evolve", None),
    "seconds": ("evolve", None),
    "population": ("evolve", None),
    "algorithm": ("evolve", None),
    "granularity": ("evolve", "parameter"),
    "kinds": ("evolve", "parameter"),
    "repeats": ("evolve", "data-flow"),
    "scales": ("evolve", "data-flow"),
    "max_depth": ("evolve", "data-flow"),
    "embedding_from": ("evolve", "data-flow"),
    "of": ("replay", None),
    "evaluations": ("replay", None),
}


def _check_options(given: argparse.Namespace) -> None:
    # In the order in which they are read: what belongs elsewhere, what is missing, what is wrong.
    for name, (command, space) in _ONLY_FOR.items():
        value = getattr(given, name)
        option = f"--{name.replace('_', '-')}"
        if value is not None and given.command != command:
            raise UserError(f"{given.command} has no use for {option}; leave it out")
        if value is not None and space not in (None, given.space):
            raise UserError(f"the {given.space} space has no use for {option}; leave it out")
    if given.space != "parameter" and given.command != "evolve":
        raise UserError(f"{given.command} has no use for --space; leave it out")
    if given.command == "replay":
        if given.of is None or given.evaluations is None:
            raise UserError("replay needs --of DIR and --evaluations K")
        return
    for name in ("data", "suites"):
        if getattr(given, name) is None:
            raise UserError(f"{given.command} needs --{name}")
    for name in ("fitness_items", "rescored", "batch_size", "threads"):
        if getattr(given, name) is not None and getattr(given, name) < 1:
            raise UserError(f"--{name.replace('_', '-')}: give 1 or more")
    if given.seconds is not None and not given.seconds > 0:
        raise UserError(f"a budget of {given.seconds:g} seconds is none; give more")
    if given.command == "evolve" and given.budget is None and given.seconds is None:
        raise UserError(
            "evolve needs --budget N, the number of dev evaluations, or --seconds S, or both"
        )
    if given.algorithm in PARAMETER_SPACE_ONLY and given.space != "parameter":
        raise UserError(
            f"algorithm {given.algorithm} searches the parameter space; leave --space out, or "
            "take cma-es or nsga2"
        )
    if given.algorithm == "map" and given.budget is None:
        raise UserError("algorithm map needs --budget N, of which it samples two thirds at most")


def _check_method(given: argparse.Namespace) -> None:
    """Report mistakes in the method and its parameters before torch is imported."""
    stacks = given.command == "evolve" and given.space == "data-flow"
    if given.command == "greedy" or stacks:
        if given.method not in (None, "linear") or given.set:
            what = "the data-flow space takes layers as they are"
            what = what if stacks else "greedy is a uniform soup"
            raise UserError(f"{what}; leave --method and --set out")
        given.method = "linear"
        return
    if given.method is None:
        raise UserError(f"{given.command} needs --method; see python -m merges --list")
    fixed = registry.check(given.method, read_settings(given.set))
    if given.command == "evolve":
        from search.parameters import check_method

        check_method(given.method, registry.validate(given.method, fixed))
        return
    for candidate in json_list(given.candidates, "--candidates"):
        if not isinstance(candidate, dict):
            raise UserError("--candidates: each must be a mapping of parameters to values")
        registry.validate(given.method, {**fixed, **candidate})


def main(arguments: Sequence[str]) -> int:
    """Run the command line; see `python -m search --help`.

    Raises:
        UserError: What the user can fix.
    """
    if arguments and arguments[0] == "kinship":
        from search import kinship

        return kinship.main(list(arguments[1:]))
    if arguments and arguments[0] == "front":
        from search.goals import front

        return front.main(list(arguments[1:]))
    given = build_parser().parse_args(arguments)
    _check_options(given)
    if given.command != "replay":
        _check_method(given)
    import torch

    torch.set_num_threads(given.threads)
    if given.command == "replay":
        from search.replay import replay

        print(replay(given))
    elif given.algorithm not in (None, "cma-es"):
        from search.goals.searching import SearchingGoals

        print(SearchingGoals(given).run())
    else:
        from search.searches import Searching

        print(Searching(given).run())
    return 0
