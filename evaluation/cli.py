"""Command line of `python -m evaluation`."""

from __future__ import annotations

import argparse
import contextlib
import functools
import importlib
import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from common.cli import add_values, command_parser
from common.errors import UserError
from common.files import existing_above, write_json
from evaluation.own_data import add_all, own_tasks
from evaluation.suites import check_items, load_suites, names, select
from evaluation.summary import summary

if TYPE_CHECKING:
    from evaluation.harness import Harness
    from evaluation.suites import Task

DATA = Path("results/evaluation/data")
OUT = Path("results/evaluation/scores")
_PARALLEL = ("tensor_parallel", "data_parallel")
COMMANDS = {
    "gate": "evaluation.gate",
    "data": "evaluation.data.cli",
    "tasks": "evaluation.own_cli",
    "prompts": "evaluation.asked",
    "postgres": "evaluation.sql.cli",
}
_EPILOG = """\
examples:
  python -m evaluation --list
  python -m evaluation data --suite ja8
  python -m evaluation --model models/ja --suites ja8,kobest,okapi_de,sql_eval
  python -m evaluation --model models/ja --tasks quiz.yaml
  python -m evaluation --model chat=models/base --adapter lora --suites kobest --chat-template
  python -m evaluation --model models/ja --suites ja8 --fidelity both --prompt 0.6 --limit 100
  python -m evaluation --model base=models/base --model ja=models/ja --suites bottle_ja8 \\
      --data data --split test --out-dir scores --store results/evaluation/store

Other commands, each with its own --help: python -m evaluation data (fetches and converts the
suites' data), tasks (checks your own tasks and puts them into a data folder), prompts (writes every
prompt as models are asked it), gate (checks from the scores that every expert learned its domain),
postgres.

A suite's name may say its variant: ja8:corrected, ja8:0.6, ja8:corrected:0.6. Plain names mean the
suite's first fidelity and prompt, unless --fidelity and --prompt say otherwise.
Next to NAME.json are NAME.items.jsonl.gz (every answer), NAME.cost.json (time and memory) and
NAME.manifest.json (inputs, versions), which is written last.
"""


def _parser() -> argparse.ArgumentParser:
    parser = command_parser(
        "evaluation",
        "Score models on suites of tasks with lm-eval, offline, from local JSON lines. Several "
        "models are served by one process, which saves its start-up.",
        _EPILOG,
    )
    # What several options have in common.
    folder: dict[str, Any] = {"type": Path, "metavar": "DIR"}
    number: dict[str, Any] = {"type": int, "metavar": "N"}
    parser.add_argument("--list", action="store_true", help="show suites and tasks and stop")
    about = "Hugging Face model folders; NAME defaults to the folder's"
    add_values(parser, "--model", metavar="[NAME=]DIR", help=about)
    about = "a PEFT adapter of the one model, folded into it before it is scored"
    parser.add_argument("--adapter", **folder, help=about)
    about = "suites, or single tasks as suite/task, by commas"
    parser.add_argument("--suites", metavar="A,B", help=about)
    parser.add_argument(
        "--tasks",
        type=Path,
        metavar="FILE",
        help="a YAML whose `tasks` describe your own tasks, such as a configuration; they are put "
        "into --data and, without --suites, evaluated",
    )
    parser.add_argument(
        "--fidelity",
        choices=("published", "corrected", "both"),
        help="as the published harness scored, or as one would today; default: the suite's first",
    )
    parser.add_argument("--prompt", metavar="VERSION", help="default: the suite's first")
    parser.add_argument("--limit", **number, help="items a task, after the published shuffle")
    about = f"folder with SPLIT/SUITE/TASK.jsonl, databases/ ({DATA})"
    parser.add_argument("--data", default=DATA, **folder, help=about)
    parser.add_argument("--split", choices=("dev", "test"), default="test")
    where = parser.add_mutually_exclusive_group()
    where.add_argument("--out", type=Path, metavar="FILE", help="scores of the one model")
    where.add_argument("--out-dir", **folder, help=f"scores go to DIR/NAME.json ({OUT})")
    about = "keep finished tasks here and take them from here: a run cut short resumes"
    parser.add_argument("--store", **folder, help=about)
    parser.add_argument("--tokenizer", **folder, help="default: each model's own")
    parser.add_argument(
        "--chat-template",
        action="store_true",
        help="write prompts with the tokenizer's chat template, solved examples as turns",
    )
    about = "hf: transformers (default)"
    parser.add_argument("--backend", choices=("hf", "vllm"), default="hf", help=about)
    about = "what runs the SQL of sql_eval (sqlite)"
    parser.add_argument("--engine", choices=("sqlite", "postgres"), default="sqlite", help=about)
    about = "a server started by `python -m evaluation postgres start`; default: one for the run"
    parser.add_argument("--postgres", **folder, help=about)
    parser.add_argument("--batch-size", default=64, **number, help="prompts a pass")
    parser.add_argument(
        "--max-length",
        **number,
        help="tokens a model reads at once; longer prompts lose their beginning (what its "
        "config.json says)",
    )
    parser.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), default="float32")
    parser.add_argument("--device", default="cpu", help="cpu, cuda, cuda:1 ...")
    about = "vllm: GPUs over which a model is divided (1)"
    parser.add_argument("--tensor-parallel", default=1, **number, help=about)
    about = "vllm: engines that share the prompts, on separate GPUs (1)"
    parser.add_argument("--data-parallel", default=1, **number, help=about)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1, help="CPU threads")
    return parser


def _list() -> None:
    for suite in load_suites().values():
        variants = [*suite.fidelities, *suite.prompts]
        print(f"{suite.name}  {suite.label}" + (f"  [{', '.join(variants)}]" if variants else ""))
        for task in suite.tasks.values():
            shots = f"{task.shots} shot{'s' * (task.shots > 1)}" if task.shots else ""
            chance = f"chance {task.chance:.2f}" if task.chance else ""
            line = f"  {task.name:<28} {task.label:<18} {task.metric:<13} {shots:<8} {chance}"
            print(line.rstrip())


def _models(arguments: Sequence[str]) -> dict[str, Path]:
    models: dict[str, Path] = {}
    for argument in arguments:
        name, equals, folder = argument.partition("=")
        if not equals:
            # Not resolved: a link is called as it is named.
            name, folder = Path(os.path.abspath(argument)).name, argument
        if not name:
            raise UserError(f"--model {argument}: no name; give --model NAME=DIR")
        if name in models:
            raise UserError(f"two models are called {name!r}; name them: --model NAME=DIR")
        models[name] = Path(folder)
    return models


def _check(arguments: argparse.Namespace) -> tuple[dict[str, Path], list[str]]:
    """Refuse what cannot work before anything heavy is imported."""
    models = _models(arguments.model)
    if arguments.suites is None and arguments.tasks is None:
        raise UserError("--suites is missing; python -m evaluation --help shows examples")
    if not models:
        raise UserError("no --model was given; python -m evaluation --help shows examples")
    if arguments.adapter and len(models) > 1:
        raise UserError("--adapter is for one model; give its base alone with --model")
    if arguments.out and len(models) > 1:
        raise UserError("--out takes the scores of one model; give --out-dir DIR for several")
    for name in ("batch_size", "limit", "max_length", "threads", *_PARALLEL):
        value = getattr(arguments, name)
        if value is not None and value < 1:
            raise UserError(f"--{name.replace('_', '-')} {value}: give 1 or more")
        if name in _PARALLEL and value > 1 and arguments.backend != "vllm":
            raise UserError(f"--{name.replace('_', '-')} {value} is for --backend vllm alone")
    _check_outputs(arguments, models)
    return models, _suites(arguments)


def _suites(arguments: argparse.Namespace) -> list[str]:
    """Find what is evaluated, and refuse tasks without items."""
    own = add_all(arguments.tasks, arguments.data) if arguments.tasks else []
    suites = own if arguments.suites is None else names(arguments.suites)
    tasks = select(suites, arguments.fidelity, arguments.prompt, own_tasks(arguments.data))
    check_items(arguments.data, arguments.split, tasks)
    return suites


def _check_outputs(arguments: argparse.Namespace, models: Iterable[str]) -> None:
    """Refuse places that nothing can be written to, before hours of answers are lost."""
    outs = [arguments.out] if arguments.out else [_out(arguments, name) for name in models]
    for out in outs:
        if out.is_dir():
            raise UserError(f"{out} is a folder; give a file (--out FILE) or --out-dir {out}")
    for folder in {out.parent for out in outs} | ({arguments.store} - {None}):
        above = existing_above(folder)
        if not above.is_dir() or not os.access(above, os.W_OK | os.X_OK):
            raise UserError(
                f"{folder}: {above} is no folder that can be written to; give another place"
            )


def _out(arguments: argparse.Namespace, name: str) -> Path:
    return arguments.out or (arguments.out_dir or OUT) / f"{name}.json"


def _harness(arguments: argparse.Namespace, suites: list[str], tokenizer: Path) -> Harness:
    from evaluation.harness import Harness
    from evaluation.store import Store

    same = ["batch_size", "seed", "fidelity", "prompt", "limit", "max_length", "backend"]
    same += ["chat_template"]
    same += ["dtype", "device", "engine", "postgres"]
    return Harness(
        arguments.data,
        suites,
        arguments.split,
        tokenizer,
        parallel={name: getattr(arguments, name) for name in _PARALLEL},
        store=Store(arguments.store) if arguments.store else None,
        **{name: getattr(arguments, name) for name in same},
    )


@functools.cache  # once for all models that are evaluated
def _warn(groups: str, remedy: str) -> None:
    print(
        f"warning: {groups}: asked without the BOS that this tokenizer puts in front of a text, as "
        "published; a model that was trained behind it (Gemma) is another one without it. For its "
        f"own scores: --suites {remedy}",
        file=sys.stderr,
        flush=True,
    )


def _say_what_begins(tasks: Iterable[Task], tokenizer: Path) -> None:
    """Warn of tasks that leave out the token with which a tokenizer begins every text."""
    from checkpoints.loading import load_tokenizer
    from evaluation.backends.tokenisation import begins_with_bos

    left_out = (task for task in tasks if not task.bos and task.fidelity == "published")
    without = list(dict.fromkeys(task.suite for task in left_out))
    if without and begins_with_bos(load_tokenizer(tokenizer)):
        _warn(", ".join(without), ",".join(f"{suite}:corrected" for suite in without))


def _evaluate_one(
    arguments: argparse.Namespace, suites: list[str], harness: Harness, name: str, folder: Path
) -> None:
    """Score one model and write its four files."""
    from common.cost import measure
    from common.manifest import beside, write_manifest
    from evaluation.bar import Bar
    from evaluation.items import write_records
    from evaluation.sources import evaluation_files

    out = _out(arguments, name)
    # Not the stem: of m-v0.1 that is m-v0, and of m-v0.2 too.
    stem = out.name.removesuffix(".json")
    items_path = out.with_name(f"{stem}.items.jsonl.gz")
    harness.bar = bar = Bar(name)
    with measure(out.with_name(f"{stem}.cost.json")) as cost:
        try:
            scores, items = harness.evaluate_folder(folder, name)
        finally:
            bar.close()
        cost.count(**scores["counted"])
        write_records(items_path, items)
        write_json(out, scores)
    write_manifest(
        beside(out),
        kind="scores",
        parameters={
            "suites": suites,
            "split": arguments.split,
            "fidelity": arguments.fidelity,
            "prompt": arguments.prompt,
            "limit": arguments.limit,
            **({"max_length": arguments.max_length} if arguments.max_length else {}),
            **({"chat_template": True} if arguments.chat_template else {}),
            **({"adapter": str(arguments.adapter)} if arguments.adapter else {}),
            "backend": arguments.backend,
            "engine": arguments.engine,
            "batch_size": arguments.batch_size,
            "dtype": arguments.dtype,
        },
        inputs={"weights": scores["weights"], **harness.inputs()},
        outputs={"scores": out, "items": items_path},
        seed=arguments.seed,
        code=evaluation_files(harness.tasks, arguments.backend, arguments.engine),
    )
    print(summary(scores))
    print(f"  written: {out}, its items, cost and manifest", flush=True)


def _evaluate(arguments: argparse.Namespace) -> None:
    models, suites = _check(arguments)
    with contextlib.ExitStack() as folders:
        if arguments.adapter:
            from evaluation.adapted import folded

            models = {
                name: folders.enter_context(folded(base, arguments.adapter))
                for name, base in models.items()
            }
        _evaluate_all(arguments, models, suites)


def _evaluate_all(
    arguments: argparse.Namespace, models: Mapping[str, Path], suites: list[str]
) -> None:
    """Score models one after another; those with one tokenizer share what is prepared."""
    from checkpoints.reading import Checkpoint
    from evaluation.backends import check_max_length

    for name, folder in models.items():
        config = Checkpoint(folder).config
        check_max_length(arguments.max_length, config, arguments.backend, name)

    import torch

    from checkpoints.devices import check_device
    from evaluation.harness import tokenizer_hash

    torch.set_num_threads(arguments.threads)
    if arguments.backend == "hf":
        check_device(arguments.device)
    harness: Harness | None = None
    # Items are prepared as a tokenizer writes them, so that another tokenizer needs another.
    try:
        for name, folder in models.items():
            tokenizer = arguments.tokenizer or folder
            if harness is None or harness.tokenizer_hash != tokenizer_hash(tokenizer):
                if harness is not None:
                    harness.close()
                harness = _harness(arguments, suites, tokenizer)
                _say_what_begins(harness.tasks, tokenizer)
            _evaluate_one(arguments, suites, harness, name, folder)
    finally:
        if harness is not None:
            harness.close()


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit code."""
    argv = list(sys.argv[1:] if argv is None else argv)
    if argv and argv[0] in COMMANDS:
        return importlib.import_module(COMMANDS[argv[0]]).main(argv[1:]) or 0
    arguments = _parser().parse_args(argv)
    if arguments.list:
        _list()
    else:
        _evaluate(arguments)
    return 0
