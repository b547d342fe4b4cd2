"""Command line of `python -m evaluation`."""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from common.errors import UserError
from common.files import existing_above, write_json
from evaluation.suites import check_items, load_suites, select

if TYPE_CHECKING:
    from evaluation.harness import Harness

DATA = Path("results/evaluation/data")
OUT = Path("results/evaluation/scores")
COMMANDS = {
    "gate": "evaluation.gate",
    "data": "evaluation.data.cli",
    "postgres": "evaluation.sql.cli",
}
_EPILOG = """\
examples:
  python -m evaluation --list
  python -m evaluation data --suite ja8
  python -m evaluation --model models/ja --suites ja8,kobest,okapi_de,sql_eval
  python -m evaluation --model models/ja --suites ja8 --fidelity both --prompt 0.6 --limit 100
  python -m evaluation --model base=models/base --model ja=models/ja --suites bottle_ja8 \\
      --data data --split test --out-dir scores --store results/evaluation/store

Other commands, each with its own --help: python -m evaluation data (fetches and converts the
suites' data), gate (checks from the scores that every expert learned its domain), postgres.

A suite's name may say its variant: ja8:corrected, ja8:0.6, ja8:corrected:0.6. Plain names mean the
suite's first fidelity and prompt, unless --fidelity and --prompt say otherwise.
Beside NAME.json stand NAME.items.jsonl.gz (every answer), NAME.cost.json (time and memory) and
NAME.manifest.json (inputs, versions), which is written last.
"""


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m evaluation",
        description="Score models on suites of tasks with lm-eval, offline, from local JSON "
        "lines. Several models are served by one process, which saves its start-up.",
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
        "--fidelity",
        choices=("published", "corrected", "both"),
        help="as the published harness scored, or as one would today; default: the suite's first",
    )
    parser.add_argument("--prompt", metavar="VERSION", help="default: the suite's first")
    parser.add_argument(
        "--limit", type=int, metavar="N", help="items a task, after the published shuffle"
    )
    parser.add_argument(
        "--data",
        type=Path,
        default=DATA,
        metavar="DIR",
        help=f"folder with SPLIT/SUITE/TASK.jsonl, databases/ ({DATA})",
    )
    parser.add_argument("--split", choices=("dev", "test"), default="test")
    where = parser.add_mutually_exclusive_group()
    where.add_argument("--out", type=Path, metavar="FILE", help="scores of the one model")
    where.add_argument(
        "--out-dir", type=Path, metavar="DIR", help=f"scores go to DIR/NAME.json ({OUT})"
    )
    parser.add_argument(
        "--store",
        type=Path,
        metavar="DIR",
        help="keep finished tasks here and take them from here: a run cut short goes on",
    )
    parser.add_argument("--tokenizer", type=Path, metavar="DIR", help="default: each model's own")
    parser.add_argument(
        "--backend", choices=("hf", "vllm"), default="hf", help="hf: transformers (default)"
    )
    parser.add_argument(
        "--engine",
        choices=("sqlite", "postgres"),
        default="sqlite",
        help="what runs the SQL of sql_eval (sqlite)",
    )
    parser.add_argument(
        "--postgres",
        type=Path,
        metavar="DIR",
        help="a server started by `python -m evaluation postgres start`; default: one for the run",
    )
    parser.add_argument("--batch-size", type=int, default=64, metavar="N", help="prompts a pass")
    parser.add_argument(
        "--max-length",
        type=int,
        metavar="N",
        help="tokens a model reads at once; longer prompts lose their beginning (what its "
        "config.json says)",
    )
    parser.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), default="float32")
    parser.add_argument("--device", default="cpu", help="cpu, cuda, cuda:1 ...")
    parser.add_argument(
        "--tensor-parallel",
        type=int,
        default=1,
        metavar="N",
        help="vllm: GPUs over which a model is divided (1)",
    )
    parser.add_argument(
        "--data-parallel",
        type=int,
        default=1,
        metavar="N",
        help="vllm: engines that share the prompts, each with GPUs of its own (1)",
    )
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


def _number(part: Mapping[str, Any], scale: float, width: int = 0) -> str:
    """Write a value as its publication prints it."""
    if part["value"] is None:
        return f"{'-':>{width}}"
    return f"{part['value'] * scale:{width}.{3 if scale == 1 else 2}f}"


def _lines(name: str, task: Mapping[str, Any], width: int) -> Iterator[str]:
    """Write one task's lines: its scores, its groups', and what to know of them."""
    scale = task.get("scale", 1)

    def shown(part: Mapping[str, Any]) -> str:
        if part["value"] is None:
            return f"{_number(part, scale, 6)}  n={task['items']}"
        error = _number({"value": part["stderr"]}, scale)
        return f"{_number(part, scale, 6)} ± {error}  n={part.get('items', task['items'])}"

    chance = f"  chance {task['chance']:.2f}" if task["chance"] else ""
    others = ", ".join(
        f"{metric} {_number(other, scale)}"
        for metric, other in task["metrics"].items()
        if metric != task["metric"]
    )
    yield f"  {name:<{width}} {task['metric']:<13} {shown(task)}{chance}" + (
        f"  ({others})" if others else ""
    )
    for group, part in task.get("groups", {}).items():
        yield f"    {group:<{width + 11}} {shown(part)}"
    for metric, part in task["metrics"].items():
        if "undefined" in part:
            yield f"    {metric} is {part['undefined']}"
    for role, why in task.get("stand_in", {}).items():
        yield f"    not the benchmark's own {role}: {why}"


def summary(scores: dict[str, Any]) -> str:
    """Draw one model's scores as a small table.

    Args:
        scores: The content of its scores.json.

    Returns:
        A line a task, in the scale of its publication and with its standard error, and one a
        suite with the mean over its tasks of the scores shown (in brackets: with every item
        counted alike).
    """
    about = [scores["split"], scores["backend"], scores["dtype"]]
    about += [f"limit {scores['limit']}"] if "limit" in scores else []
    about += [f"max length {scores['max_length']}"] if "max_length" in scores else []
    lines = [f"{scores['model']} ({', '.join(about)}; ± standard error)"]
    width = max(len(name) for name in scores["tasks"])
    for suite, means in scores["suites"].items():
        for name, task in scores["tasks"].items():
            if name.rpartition("/")[0] == suite:
                lines += _lines(name, task, width)
        primary = means["primary"]
        if primary["tasks"] > 1:
            start = f"  {suite + ': mean of ' + str(primary['tasks']):<{width + 14}} "
            if "undefined" in primary:
                lines.append(f"{start}{'-':>6}  ({primary['undefined']})")
            else:
                mean, by_item = primary["mean"], primary["weighted_mean"]
                lines.append(f"{start}{mean:6.3f}  ({by_item:.3f} by item)")
    return "\n".join(lines)


def _check(arguments: argparse.Namespace) -> tuple[dict[str, Path], list[str]]:
    """Refuse what cannot work before anything heavy is imported."""
    models = _models(arguments.model)
    if arguments.suites is None:
        raise UserError("--suites is missing; python -m evaluation --help shows examples")
    if not models:
        raise UserError("no --model was given; python -m evaluation --help shows examples")
    if arguments.out and len(models) > 1:
        raise UserError("--out takes the scores of one model; give --out-dir DIR for several")
    parallel = ("tensor_parallel", "data_parallel")
    for name in ("batch_size", "limit", "max_length", "threads", *parallel):
        value = getattr(arguments, name)
        if value is not None and value < 1:
            raise UserError(f"--{name.replace('_', '-')} {value}: give 1 or more")
        if name in parallel and value > 1 and arguments.backend != "vllm":
            raise UserError(f"--{name.replace('_', '-')} {value} is for --backend vllm alone")
    suites = [name.strip() for name in arguments.suites.split(",") if name.strip()]
    tasks = select(suites, arguments.fidelity, arguments.prompt)
    check_items(arguments.data, arguments.split, tasks)
    _check_outputs(arguments, models)
    return models, suites


def _check_outputs(arguments: argparse.Namespace, names: Iterable[str]) -> None:
    """Refuse places that nothing can be written to, before hours of answers are lost."""
    outs = [arguments.out] if arguments.out else [_out(arguments, name) for name in names]
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

    store = None
    if arguments.store:
        from evaluation.store import Store

        store = Store(arguments.store)
    return Harness(
        arguments.data,
        suites,
        arguments.split,
        tokenizer,
        batch_size=arguments.batch_size,
        seed=arguments.seed,
        fidelity=arguments.fidelity,
        prompt=arguments.prompt,
        limit=arguments.limit,
        max_length=arguments.max_length,
        backend=arguments.backend,
        dtype=arguments.dtype,
        device=arguments.device,
        parallel={
            "tensor_parallel": arguments.tensor_parallel,
            "data_parallel": arguments.data_parallel,
        },
        engine=arguments.engine,
        postgres=arguments.postgres,
        store=store,
    )


def _evaluate_one(
    arguments: argparse.Namespace, suites: list[str], harness: Harness, name: str, folder: Path
) -> None:
    """Score one model and write its four files."""
    from common.cost import measure
    from common.manifest import write_manifest
    from evaluation.bar import Bar
    from evaluation.records import write_records

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
        out.with_name(f"{stem}.manifest.json"),
        kind="scores",
        parameters={
            "suites": suites,
            "split": arguments.split,
            "fidelity": arguments.fidelity,
            "prompt": arguments.prompt,
            "limit": arguments.limit,
            **({"max_length": arguments.max_length} if arguments.max_length else {}),
            "backend": arguments.backend,
            "engine": arguments.engine,
            "batch_size": arguments.batch_size,
            "dtype": arguments.dtype,
        },
        inputs={"weights": scores["weights"], **harness.inputs()},
        outputs={"scores": out, "items": items_path},
        seed=arguments.seed,
        packages=["evaluation"],
    )
    print(summary(scores))
    print(f"  written: {out}, its items, cost and manifest", flush=True)


def _evaluate(arguments: argparse.Namespace) -> None:
    models, suites = _check(arguments)
    from checkpoints.reading import Checkpoint
    from evaluation.backends import check_max_length

    for name, folder in models.items():
        config = Checkpoint(folder).config
        check_max_length(arguments.max_length, config, arguments.backend, name)

    import torch

    from evaluation.backends.hf import check_device
    from evaluation.harness import tokenizer_hash

    torch.set_num_threads(arguments.threads)
    if arguments.backend == "hf":
        check_device(arguments.device)
    harness: Harness | None = None
    try:
        for name, folder in models.items():
            tokenizer = arguments.tokenizer or folder
            if harness is None or harness.tokenizer_hash != tokenizer_hash(tokenizer):
                if harness is not None:
                    harness.close()
                harness = _harness(arguments, suites, tokenizer)
            _evaluate_one(arguments, suites, harness, name, folder)
    finally:
        if harness is not None:
            harness.close()


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        argv: The arguments after the program's name.

    Returns:
        The exit code.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    if argv and argv[0] in COMMANDS:
        return importlib.import_module(COMMANDS[argv[0]]).main(argv[1:]) or 0
    arguments = _parser().parse_args(argv)
    if arguments.list:
        _list()
    else:
        _evaluate(arguments)
    return 0
