"""Command line of the bottle: `python -m bottle --help`."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from common.cli import add_command, command_parser

_DESCRIPTION = """\
Make the small world of a case study: its generated text, and tiny models trained on it."""

_EPILOG = """\
examples:
  python -m bottle data --case case1 --seed 0 --out data
  python -m bottle train --case case1 --role base --data data --out models/base
  python -m bottle train --case case1 --role ja --data data --init models/base --out models/ja
  python -m bottle train --help
  python -m bottle tiny tiny
"""

_DATA_DESCRIPTION = """\
Write a case's training text, tokenizer, calibration rows, dev and test items (disjoint by
content) and, for case2, SQLite databases."""

_DATA_EPILOG = """\
examples:
  python -m bottle data --case case1 --seed 0 --out data/case1
  python -m bottle data --case case2 --test-items 50 --train-rows 4000 --out data/small
"""

_TRAIN_DESCRIPTION = """\
Train one model: the base from random weights, or an expert from a base (--init). Writes a Hugging
Face model folder with manifest.json and cost.json. Roles: base, ja, math_a, math_b in case1; base,
de, ko, sql in case2."""

_TRAIN_EPILOG = """\
examples:
  python -m bottle train --case case2 --role base --data data --out models/base --steps 1100
  python -m bottle train --case case2 --role sql --data data --init models/base \\
      --out models/sql --steps 600 --learning-rate 2e-3
  python -m bottle train --case case2 --role base --data data --out models/ancestor \\
      --steps 1100 --stop-after 660
  python -m bottle train --case case1 --role base --data data --out models/wide \\
      --hidden-size 192 --heads 6 --kv-heads 2 --intermediate-size 512
"""


def _integers(parser: Any, *options: tuple[str, int | None, str]) -> None:
    for option, default, about in options:
        parser.add_argument(option, type=int, default=default, metavar="N", help=about)


def _add_data(commands: Any) -> None:
    about = "write a case's text, tokenizer, items and databases"
    data = add_command(
        commands, "data", help=about, description=_DATA_DESCRIPTION, epilog=_DATA_EPILOG
    )
    data.set_defaults(run=_data)
    data.add_argument("--case", required=True, metavar="NAME", help="case1 or case2")
    about = "far: a base that knows nothing; near: a competent base and experts near it (far)"
    data.add_argument("--drift", default="far", metavar="NAME", help=about)
    data.add_argument("--out", required=True, type=Path, metavar="DIR", help="folder to write")
    about = "a role; fewer than steps x batch size are repeated in training (36000)"
    _integers(
        data,
        ("--seed", 0, "seed of all that is drawn (0)"),
        ("--test-items", 200, "a task (200)"),
        ("--dev-items", 60, "a task (60)"),
        ("--train-rows", None, about),
        ("--calibration-rows", 2_000, "an expert (2000)"),
        ("--threads", 1, "CPU threads (1)"),
    )


def _add_tiny(commands: Any) -> None:
    tiny = add_command(
        commands,
        "tiny",
        help="write tiny untrained models and a few rows of data, to try commands with",
        description="Write a base, its three experts and a few rows of data, all of one tokenizer, "
        "in seconds: OUT/base, OUT/ja, OUT/math_a, OUT/math_b, OUT/data. The weights are random.",
        epilog="example:\n  python -m bottle tiny tiny\n",
    )
    tiny.set_defaults(run=_tiny)
    tiny.add_argument("out", type=Path, metavar="OUT", help="folder to write")
    _integers(
        tiny,
        ("--items", 8, "a task and split (8)"),
        ("--seed", 0, "seed of data and weights (0)"),
    )


def _add_train(commands: Any) -> None:
    about = "train a base or an expert"
    train = add_command(
        commands, "train", help=about, description=_TRAIN_DESCRIPTION, epilog=_TRAIN_EPILOG
    )
    train.set_defaults(run=_train)
    train.add_argument("--case", required=True, metavar="NAME", help="case1 or case2")
    train.add_argument("--role", required=True, metavar="NAME", help="base or an expert's name")
    train.add_argument("--data", required=True, type=Path, metavar="DIR", help="the case's data")
    about = "base to start from; needed by experts only"
    train.add_argument("--init", type=Path, metavar="DIR", help=about)
    train.add_argument("--out", required=True, type=Path, metavar="DIR", help="folder to write")
    about = "end after N of the steps; the model is that of the full training at this step"
    _integers(
        train,
        ("--seed", 0, "initial weights and data order (0)"),
        ("--threads", 1, "CPU threads (1)"),
        ("--stop-after", None, about),
    )
    recipe = train.add_argument_group("recipe (defaults: base / expert; config.yaml gives others)")
    # None where not given: the defaults depend on the role and belong to `recipe_of`.
    _integers(
        recipe,
        ("--steps", None, "optimizer steps (1100 / 600)"),
        ("--batch-size", None, "texts a step (32)"),
    )
    for option, about in {
        "--learning-rate": "of the linear layers (3e-3 / 2e-3)",
        "--embedding-learning-rate": "of embeddings and norms, 0 to freeze them "
        "(as --learning-rate / 0)",
        "--prompt-weight": "loss weight of a prompt's token; an answer's is 1 (0.3 / 0.03)",
        "--weight-decay": "AdamW's (0.01 / 0)",
        "--base-decay": "the same towards the weights before training, for experts (0)",
    }.items():
        recipe.add_argument(option, type=float, metavar="X", help=about)
    model = train.add_argument_group("architecture of a base; an expert has its base's")
    model.add_argument("--architecture", metavar="NAME", help="mistral or llama (the case's)")
    _integers(
        model,
        ("--hidden-size", None, "(128)"),
        ("--layers", None, "(3)"),
        ("--heads", None, "(4)"),
        ("--kv-heads", None, "(2)"),
        ("--intermediate-size", None, "(384)"),
    )


def build_parser() -> argparse.ArgumentParser:
    """Build the command line's parser."""
    parser = command_parser("bottle", _DESCRIPTION, _EPILOG)
    commands = parser.add_subparsers(required=True)
    for add in (_add_data, _add_tiny, _add_train):
        add(commands)
    return parser


def _given(options: argparse.Namespace, names: Sequence[str]) -> dict[str, Any]:
    """Return the values that the command line gives; the computation knows all others."""
    chosen = {name: getattr(options, name) for name in names}
    return {name: value for name, value in chosen.items() if value is not None}


def _train(options: argparse.Namespace) -> None:
    from bottle.cases import BASE, get_case
    from bottle.training import Recipe, Shape, recipe_of, train_role

    recipe = recipe_of(options.role, **_given(options, [item.name for item in fields(Recipe)]))
    usual = Shape(get_case(options.case).architecture)
    shape = replace(usual, **_given(options, [item.name for item in fields(Shape)]))
    result = train_role(
        options.out,
        options.case,
        options.role,
        options.data,
        base=options.init,
        shape=shape if options.role == BASE else None,
        recipe=recipe,
        seed=options.seed,
        threads=options.threads,
        stop_after=options.stop_after,
    )
    print(
        f"{options.case}/{options.role}: loss {result['first_loss']:.3f} -> "
        f"{result['last_loss']:.3f} in {options.stop_after or recipe.steps} steps, "
        f"{result['forward_tokens'] / 1e6:.2f} M tokens -> {options.out}"
    )


def _data(options: argparse.Namespace) -> None:
    from bottle.data import write_data
    from common.cost import measure

    with measure(options.out / "cost.json"):
        write_data(
            options.out,
            options.case,
            drift=options.drift,
            seed=options.seed,
            test_items=options.test_items,
            dev_items=options.dev_items,
            calibration_rows=options.calibration_rows,
            **_given(options, ["train_rows"]),
        )
    print(f"{options.case}: data -> {options.out}")


def _tiny(options: argparse.Namespace) -> None:
    from bottle.tiny import write_family

    experts = write_family(options.out, options.items, options.seed)
    print(f"base, {', '.join(experts)} and data -> {options.out}")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line, or the process's if None; return its exit code, 0."""
    options = build_parser().parse_args(argv)
    options.run(options)
    return 0
