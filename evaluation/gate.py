"""The gate behind training: every expert must clearly beat its base in its own domain."""

from __future__ import annotations

import argparse
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from common.cli import add_values, command_parser
from common.errors import UserError, nearest
from common.files import read_json, write_json
from common.manifest import beside, check_recorded, write_manifest

_EPILOG = """\
example:
  python -m evaluation gate --base scores/base.json \\
      --expert ja=scores/ja.json:bottle_ja8/jcomqa,bottle_ja8/jnli \\
      --expert math_a=scores/math_a.json:bottle_gsm_en/gsm_en --out gate.json
  python -m evaluation gate --worlds case1/gate.json case1-seed2/gate.json --out gates.json
"""

_REMEDY = "train it longer or with another learning rate"
_LARGEST = 1e9  # of a score; what is not finite is no score either
CLEARLY = 2.0  # standard errors of the difference; 2.3 % of equal models would pass by chance


def _is_score(about: Any) -> bool:
    """Say whether a task's entry has a finite score with its error, or says why it has none."""
    if not isinstance(about, dict):
        return False
    if about.get("value", 0) is None and "undefined" in about:
        return True
    return all(
        isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < _LARGEST
        for value in (about.get("value"), about.get("stderr"))
    )


def _read(path: Path) -> dict[str, Any]:
    """Read a model's scores, and refuse a file that holds something else."""
    if path.is_dir():
        raise UserError(f"{path} is a folder; give a file of scores in it")
    check_recorded(path)
    scores = read_json(path)
    keys = {"model", "split", "tasks"}
    complete = isinstance(scores, dict) and keys <= scores.keys()
    tasks = scores["tasks"] if complete else None
    if not isinstance(tasks, dict) or not all(map(_is_score, tasks.values())):
        raise UserError(
            f"{path}: not a model's scores; give the file that python -m evaluation --out wrote"
        )
    return scores


def _entry(scores: Mapping[str, Any], task: str) -> Mapping[str, Any]:
    if task not in scores["tasks"]:
        raise UserError(
            f"the scores of {scores['model']} hold no task {task!r}{nearest(task, scores['tasks'])}"
        )
    if scores["tasks"][task]["value"] is None:
        why = scores["tasks"][task]["undefined"]
        raise UserError(f"task {task} has no score for {scores['model']}: {why}; name another task")
    return scores["tasks"][task]


def _compare(
    base: Mapping[str, Any], expert: Mapping[str, Any], domain: Sequence[str], clearly: float
) -> dict[str, Any]:
    tasks = {}
    variance = 0.0
    for task in domain:
        before, after = _entry(base, task), _entry(expert, task)
        stderr = math.hypot(before["stderr"], after["stderr"])
        variance += stderr**2
        tasks[task] = {
            "base": before["value"],
            "expert": after["value"],
            "learned": after["value"] - before["value"] > clearly * stderr,
        }
    return {
        "domain": list(domain),
        "base": math.fsum(task["base"] for task in tasks.values()) / len(tasks),
        "expert": math.fsum(task["expert"] for task in tasks.values()) / len(tasks),
        "stderr": math.sqrt(variance) / len(tasks),
        "tasks": tasks,
    }


def check(
    base: Mapping[str, Any],
    experts: Mapping[str, tuple[Mapping[str, Any], Sequence[str]]],
    clearly: float = CLEARLY,
    stop: bool = True,
) -> dict[str, Any]:
    """Compare every expert with the base on the average of its domain's tasks.

    The difference must exceed `clearly` standard errors. The tasks' items are independent, so the
    average of T differences has the standard error sqrt(sum of their variances) / T. (Base and
    expert answer the same items; taking them as independent errs on the strict side.)

    Args:
        base: The base's scores, as in scores.json.
        experts: By name, the expert's scores and the names of its domain's tasks.
        clearly: Standard errors by which an expert, and on each task what it learned, must lead.
        stop: Whether an expert that did not learn its domain is an error.

    Returns:
        By expert under ``experts``: domain, base and expert averages, standard error of their
        difference, and per task whether it was learned. Under ``failed``, the reasons by expert.

    Raises:
        UserError: An expert does not clearly beat the base, or a score is missing.
    """
    result = {}
    for name, (scores, domain) in experts.items():
        if not domain:
            raise UserError(f"expert {name} has no task to be judged by; name its domain's tasks")
        if scores["split"] != base["split"]:
            raise UserError(
                f"the scores of {scores['model']} are of the split {scores['split']!r}, the base's "
                f"of {base['split']!r}; evaluate both on one split"
            )
        result[name] = _compare(base, scores, domain, clearly)
    # After all comparisons, so that a missing score is reported before a weak expert.
    failed = {}
    for name, judged in result.items():
        gain = judged["expert"] - judged["base"]
        if not gain > clearly * judged["stderr"]:
            failed[name] = (
                f"expert {name} did not learn its domain: average {judged['expert']:.3f} against "
                f"the base's {judged['base']:.3f}, a gain of {gain:+.3f} where more than "
                f"{clearly * judged['stderr']:.3f} ({clearly:g} standard errors) is needed"
            )
    if stop and failed:
        raise UserError(f"{next(iter(failed.values()))}; {_REMEDY}")
    return {"experts": result, "failed": failed}


def check_worlds(gates: Mapping[str, Mapping[str, Any]]) -> dict[str, list[str]]:
    """Compare the gates of several worlds, of which one at least must have been passed.

    Args:
        gates: What `check` returned, by the world's name.

    Returns:
        The names of the worlds under ``passed`` and under ``failed``.

    Raises:
        UserError: No world passed.
    """
    failed = [name for name, gate in gates.items() if gate["failed"]]
    if len(failed) == len(gates):
        reasons = (f"{name}: {next(iter(gates[name]['failed'].values()))}" for name in failed)
        raise UserError(f"no world passed the gate; {'; '.join(reasons)}; {_REMEDY}")
    return {"passed": [name for name in gates if name not in failed], "failed": failed}


def _parser() -> argparse.ArgumentParser:
    parser = command_parser(
        "evaluation gate",
        "Check that every expert clearly beats its base (by two standard errors unless said "
        "otherwise) on the average of its domain's tasks, and note which task it learned.",
        _EPILOG,
    )
    parser.add_argument("--base", type=Path, metavar="FILE", help="its scores")
    about = "experts' scores and their domains' tasks as suite/task"
    add_values(parser, "--expert", metavar="NAME=FILE:TASK,TASK", help=about)
    about = f"by how many standard errors an expert must lead ({CLEARLY:g})"
    parser.add_argument("--standard-errors", type=float, default=CLEARLY, metavar="X", help=about)
    about = "only note what was learned; never an error"
    parser.add_argument("--go-on", action="store_true", help=about)
    about = "in place of scores: the files that this command wrote for several worlds of a case; "
    about += "an error only if no world passed"
    add_values(parser, "--worlds", metavar="FILE", help=about)
    parser.add_argument("--out", type=Path, required=True, metavar="FILE")
    return parser


def _write(out: Path, result: Mapping[str, Any], inputs: Mapping[str, Path]) -> None:
    """Write what was found, and next to it the manifest by which an edit is noticed."""
    write_json(out, result)
    write_manifest(
        beside(out),
        kind="gate",
        parameters={},
        inputs=inputs,
        outputs={out.name: out},
        code=("evaluation/gate.py",),
    )


def _of_worlds(arguments: argparse.Namespace) -> int:
    paths = {path.parent.name: path for path in map(Path, arguments.worlds)}
    for path in paths.values():
        check_recorded(path)
    gates = {name: read_json(path) for name, path in paths.items()}
    result = check_worlds(gates)
    _write(arguments.out, result, paths)
    for name in result["failed"]:
        reason = next(iter(gates[name]["failed"].values()))
        print(f"{name} is left out of the tables: {reason}")
    print(f"{len(result['passed'])} of {len(gates)} worlds passed the gate")
    return 0


def main(argv: Sequence[str]) -> int:
    """Run the command line of `python -m evaluation gate`; see `check`."""
    arguments = _parser().parse_args(argv)
    if arguments.worlds:
        return _of_worlds(arguments)
    if not (arguments.base and arguments.expert):
        raise UserError("give --base and --expert, or --worlds; see --help")
    experts, inputs = {}, {"base": arguments.base}
    for argument in arguments.expert:
        name, equals, rest = argument.partition("=")
        path, colon, tasks = rest.partition(":")
        if not (equals and colon and tasks):
            raise UserError(f"--expert {argument!r} is not of the form NAME=FILE:TASK,TASK")
        inputs[f"experts.{name}"] = Path(path)
        experts[name] = (_read(Path(path)), tasks.split(","))
    result = check(
        _read(arguments.base), experts, arguments.standard_errors, stop=not arguments.go_on
    )
    _write(arguments.out, result, inputs)
    for name, judged in result["experts"].items():
        weak = [task for task, about in judged["tasks"].items() if not about["learned"]]
        print(
            f"{name}: {judged['base']:.3f} -> {judged['expert']:.3f} (± {judged['stderr']:.3f})"
            + (f"; not learned: {', '.join(weak)}" if weak else "")
        )
    return 0
