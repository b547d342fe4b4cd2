"""The prompts of a data folder's tasks as models are asked them: `python -m evaluation prompts`."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from common.cli import command_parser
from common.errors import UserError
from evaluation.own_data import own_tasks
from evaluation.suites import Task, check_items, names, select

if TYPE_CHECKING:
    from lm_eval.api.instance import Instance

    from evaluation.harness import Harness

_EPILOG = """\
example:
  python -m evaluation prompts --data data --suites ja8,kobest --tokenizer models/base \\
      --out prompts

DIR/SUITE/TASK.jsonl.gz has an object for each item: id; before (a description and the solved
examples) and prompt, which together are what every model reads; choices, as they follow there, or
until and max_tokens, where an answer ends. `python -m report page` shows them in the place of the
rows of DATA, from results/NAME/CASE/prompts.
"""


def prompts_file(folder: Path, task: str) -> Path:
    """Return the file of a task's prompts, by the task's name; a variant has its own."""
    return folder / f"{task.replace(':', '-')}.jsonl.gz"


def _parser() -> argparse.ArgumentParser:
    parser = command_parser(
        "evaluation prompts",
        "Write the prompts of tasks as the harness asks them, solved examples included, once for "
        "all models of one tokenizer.",
        _EPILOG,
    )
    folder: dict[str, Any] = {"type": Path, "metavar": "DIR", "required": True}
    parser.add_argument("--data", **folder, help="folder with SPLIT/SUITE/TASK.jsonl")
    about = "suites, or single tasks as suite/task, by commas"
    parser.add_argument("--suites", metavar="A,B", required=True, help=about)
    parser.add_argument("--split", choices=("dev", "test"), default="test")
    about = "as the evaluation was given"
    parser.add_argument("--limit", type=int, metavar="N", help=f"items a task, {about}")
    parser.add_argument("--tokenizer", **folder, help="the models', or a folder of one of them")
    parser.add_argument("--chat-template", action="store_true", help=about)
    parser.add_argument("--out", **folder, help="folder of the prompts")
    return parser


def _parted(context: str, text: Any) -> tuple[str, str]:
    """Divide a context where the item's own text begins; where that is not found, at its start."""
    place = context.rfind(text) if isinstance(text, str) and text else 0
    return context[: max(place, 0)], context[max(place, 0) :]


def _record(id: Any, text: Any, requests: Sequence[Instance]) -> dict[str, Any]:
    """Describe an item by its requests.

    Args:
        id: The item's.
        text: What its task's template makes of its row, without examples.
        requests: What the model is asked, in the order of the choices.
    """
    contexts = {request.args[0] for request in requests}
    context, given = requests[0].args
    # Where each choice has its context, entire texts are compared.
    before, prompt = _parted(context, text) if len(contexts) == 1 else ("", "")
    about: dict[str, Any] = {"id": id, "before": before, "prompt": prompt}
    if isinstance(given, str):
        whole = len(contexts) > 1
        choices = [f"{r.args[0] * whole}{r.args[1]}" for r in requests]
        return about | {"choices": choices}
    return about | {"until": given.get("until", []), "max_tokens": given.get("max_gen_toks")}


def asked(harness: Harness, task: Task) -> Iterator[dict[str, Any]]:
    """Yield what a model is asked in each item of a task, in the items' order; see `_EPILOG`."""
    lm_task = harness._lm_tasks[task.name]
    lm_task.build_all_requests(rank=0, world_size=1, **harness._asking)
    by_item: dict[int, list[Instance]] = {}
    for instance in lm_task.instances:
        by_item.setdefault(instance.doc_id, []).append(instance)
    for _, requests in sorted(by_item.items()):
        requests.sort(key=lambda request: request.idx)
        doc = requests[0].doc
        yield _record(doc["id"], lm_task.doc_to_text(doc), requests)


def main(argv: Sequence[str]) -> int:
    """Run the command line: write the prompts; last, their manifest."""
    arguments = _parser().parse_args(argv)
    if arguments.limit is not None and arguments.limit < 1:
        raise UserError(f"--limit {arguments.limit}: give 1 or more")
    tasks = select(names(arguments.suites), own=own_tasks(arguments.data))
    check_items(arguments.data, arguments.split, tasks)

    # Only now what takes seconds to import.
    from common.manifest import NAME, write_manifest
    from evaluation.harness import Harness
    from evaluation.items import write_records
    from evaluation.sources import evaluation_files

    given = (arguments.data, names(arguments.suites), arguments.split, arguments.tokenizer)
    chat = arguments.chat_template
    harness = Harness(*given, limit=arguments.limit, chat_template=chat)
    manifest = arguments.out / NAME
    manifest.unlink(missing_ok=True)
    written = {task.name: prompts_file(arguments.out, task.name) for task in harness.tasks}
    for task in harness.tasks:
        write_records(written[task.name], list(asked(harness, task)))
    parameters = {"suites": arguments.suites, "split": arguments.split, "limit": arguments.limit}
    write_manifest(
        manifest,
        kind="prompts",
        parameters=parameters | {"chat_template": chat},
        inputs=harness.inputs(),
        outputs=written,
        code=("evaluation/asked.py", *evaluation_files(harness.tasks)),
    )
    print(f"{len(written)} tasks' prompts: {arguments.out}")
    return 0
