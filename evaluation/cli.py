"""Command line of `python -m evaluation`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from common.errors import UserError
from common.files import read_json, write_json, write_jsonl
from evaluation.suites import load_suites, select

_EPILOG = """\
examples:
  python -m evaluation --list
  python -m evaluation --model models/ja --suites bottle_ja8,bottle_gsm_en \\
      --data data --split test --out scores/ja.json
  python -m evaluation --model base=models/base --model ja=models/ja --suites bottle_ja8 \\
      --data data --split test --out-dir scores
  python -m evaluation gate --base scores/base.json \\
      --expert ja=scores/ja.json:bottle_ja8/jcomqa,bottle_ja8/jnli --out gate.json

Beside NAME.json stand NAME.items.jsonl (every answer), NAME.cost.json (time and memory) and
NAME.manifest.json (inputs, versions), which is written last.
"""

_GATE_EPILOG = """\
example:
  python -m evaluation gate --base scores/base.json \\
      --expert ja=scores/ja.json:bottle_ja8/jcomqa,bottle_ja8/jnli \\
      --expert math_a=scores/math_a.json:bottle_gsm_en/gsm_en --out gate.json
"""


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m evaluation",
        description="Score models on suites of tasks with lm-eval, offline, from local JSON "
        "lines. Several models are served by one process, which saves its start-up. A second "
        "command, `gate`, checks from the scores that every expert learned its domain.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--list", action="store_true", help="show suites and tasks and stop")
    parser.add_argument(
        "--model",
        action="append",
        default=[],
        metavar="[NAME=]DIR",
        help="a Hugging Face model folder; may be repeated. NAME defaults to the folder's",
    )
    parser.add_argument(
        "--suites", metavar="A,B", help="suites, or single tasks as suite/task, by commas"
    )
    parser.add_argument(
        "--data", type=Path, metavar="DIR", help="folder with SPLIT/SUITE/TASK.jsonl, databases/"
    )
    parser.add_argument("--split", choices=("dev", "test"), default="test")
    where = parser.add_mutually_exclusive_group()
    where.add_argument("--out", type=Path, metavar="FILE", help="scores of the one model")
    where.add_argument("--out-dir", type=Path, metavar="DIR", help="scores go to DIR/NAME.json")
    parser.add_argument("--tokenizer", type=Path, metavar="DIR", help="default: the first model's")
    parser.add_argument("--backend", choices=("hf",), default="hf", help="hf: transformers")
    parser.add_argument("--batch-size", type=int, default=64, metavar="N", help="prompts a pass")
    parser.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), default="float32")
    parser.add_argument("--device", default="cpu", help="cpu, cuda, cuda:1 ...")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1, help="CPU threads")
    return parser


def _gate_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m evaluation gate",
        description="Check that every expert clearly beats its base (by two standard errors "
        "unless said otherwise) on the average of its own domain's tasks, and note which task it "
        "learned.",
        epilog=_GATE_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--base", type=Path, required=True, metavar="FILE", help="its scores")
    parser.add_argument(
        "--expert",
        action="append",
        required=True,
        metavar="NAME=FILE:TASK,TASK",
        help="an expert's scores and its domain's tasks as suite/task; may be repeated",
    )
    parser.add_argument(
        "--standard-errors",
        type=float,
        default=2.0,
        metavar="X",
        help="by how many standard errors an expert must lead (2)",
    )
    parser.add_argument(
        "--go-on", action="store_true", help="only note what was learned; never an error"
    )
    parser.add_argument("--out", type=Path, required=True, metavar="FILE")
    return parser


def _list() -> None:
    for suite in load_suites().values():
        print(f"{suite.name}  {suite.label}")
        for task in suite.tasks.values():
            chance = f"chance {task.chance:.2f}" if task.chance else ""
            print(f"  {task.name:<28} {task.label:<18} {task.metric:<13} {chance}".rstrip())


def _models(arguments: Sequence[str]) -> dict[str, Path]:
    models: dict[str, Path] = {}
    for argument in arguments:
        name, equals, folder = argument.partition("=")
        if not equals:
            name, folder = Path(argument).name, argument
        if name in models:
            raise UserError(f"two models are called {name!r}; name them: --model NAME=DIR")
        models[name] = Path(folder)
    return models


def summary(scores: dict[str, Any]) -> str:
    """Draw one model's scores as a small table."""
    lines = [f"{scores['model']} ({scores['split']})"]
    for name, task in scores["tasks"].items():
        chance = f"  chance {task['chance']:.2f}" if task["chance"] else ""
        lines.append(
            f"  {name:<28} {task['metric']:<13} {task['value']:.3f} ± {task['stderr']:.3f}"
            f"  n={task['items']}{chance}"
        )
    return "\n".join(lines)


def _evaluate(arguments: argparse.Namespace) -> None:
    models = _models(arguments.model)
    for flag in ("suites", "data"):
        if getattr(arguments, flag) is None:
            raise UserError(f"--{flag} is missing; python -m evaluation --help shows examples")
    if not models:
        raise UserError("no --model was given; python -m evaluation --help shows examples")
    if not (arguments.out or arguments.out_dir):
        raise UserError("say where the scores go: --out FILE, or --out-dir DIR")
    if arguments.out and len(models) > 1:
        raise UserError("--out takes the scores of one model; give --out-dir DIR for several")
    if arguments.batch_size < 1:
        raise UserError(f"--batch-size {arguments.batch_size}: give 1 or more")
    suites = [name.strip() for name in arguments.suites.split(",") if name.strip()]
    select(suites)
    from checkpoints.reading import Checkpoint

    checkpoints = {name: Checkpoint(folder) for name, folder in models.items()}

    import torch

    from common.cost import measure
    from common.manifest import write_manifest
    from common.progress import Progress
    from evaluation.harness import Harness, items_file, load_model

    torch.set_num_threads(arguments.threads)
    harness = Harness(
        arguments.data,
        suites,
        arguments.split,
        arguments.tokenizer or next(iter(models.values())),
        batch_size=arguments.batch_size,
        seed=arguments.seed,
    )
    files = {task.name: items_file(harness.data, harness.split, task) for task in harness.tasks}
    progress = Progress(len(models), "evaluation")
    for name, checkpoint in checkpoints.items():
        out = arguments.out or arguments.out_dir / f"{name}.json"
        items_path = out.with_name(f"{out.stem}.items.jsonl")
        with measure(out.with_name(f"{out.stem}.cost.json")) as cost:
            model = load_model(checkpoint.path, arguments.dtype, arguments.device)
            scores, items = harness.evaluate_with_items(model, name, checkpoint.fingerprint)
            cost.count(**scores["counted"])
            write_jsonl(items_path, items)
            write_json(out, scores)
        write_manifest(
            out.with_name(f"{out.stem}.manifest.json"),
            kind="scores",
            parameters={
                "suites": suites,
                "split": arguments.split,
                "backend": arguments.backend,
                "batch_size": arguments.batch_size,
                "dtype": arguments.dtype,
            },
            inputs={"weights": checkpoint.fingerprint, **files},
            outputs={"scores": out, "items": items_path},
            seed=arguments.seed,
            packages=["evaluation"],
        )
        print(summary(scores), flush=True)
        progress.step(note=name)


def _gate(argv: Sequence[str]) -> None:
    from evaluation.gate import check

    arguments = _gate_parser().parse_args(argv)
    experts = {}
    for argument in arguments.expert:
        name, equals, rest = argument.partition("=")
        path, colon, tasks = rest.rpartition(":")
        if not (equals and colon and tasks):
            raise UserError(f"--expert {argument!r} is not of the form NAME=FILE:TASK,TASK")
        experts[name] = (read_json(path), tasks.split(","))
    result = check(
        read_json(arguments.base), experts, arguments.standard_errors, stop=not arguments.go_on
    )
    write_json(arguments.out, result)
    for name, judged in result["experts"].items():
        weak = [task for task, about in judged["tasks"].items() if not about["learned"]]
        print(
            f"{name}: {judged['base']:.3f} -> {judged['expert']:.3f} (± {judged['stderr']:.3f})"
            + (f"; not learned: {', '.join(weak)}" if weak else "")
        )


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        argv: The arguments after the program's name.

    Returns:
        The exit code.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    if argv[:1] == ["gate"]:
        _gate(argv[1:])
        return 0
    arguments = _parser().parse_args(argv)
    if arguments.list:
        _list()
    else:
        _evaluate(arguments)
    return 0
