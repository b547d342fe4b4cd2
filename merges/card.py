"""Command line of `python -m merges card`: adds scores and a mergekit recipe to a model card."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from common.cli import add_values, command_parser
from common.errors import UserError, reason_of
from common.files import read_json, write_text
from common.manifest import check_recorded, has_fingerprint
from merges.mergekit.exporting import read_merge

_EPILOG = """\
example (R stands for results/bottle):
  python -m merges card R/case1/merges/soup --scores R/case1/scores/test/soup.json

The scores become the `model-index` that the Hugging Face Hub reads. Scores of other weights are
refused. The command may be given again: it replaces its earlier additions.
"""
_SCORES, _KIT = "\n## Scores\n", "\n## As a mergekit configuration\n"


def _result(task: str, split: str, entry: Mapping[str, Any]) -> dict[str, Any]:
    suite, _, name = task.partition("/")
    about = {"type": suite, "name": task, "config": name, "split": split}
    metric = {"type": entry["metric"], "name": entry["metric"], "value": entry["value"]}
    return {"task": {"type": "text-generation"}, "dataset": about, "metrics": [metric]}


def _scores(paths: Sequence[Path], outputs: Mapping[str, str], model: Path) -> list[dict[str, Any]]:
    """Read score files, which must be of a model's weights."""
    results = []
    for path in paths:
        check_recorded(path)
        content = read_json(path)
        if not has_fingerprint(content.get("weights"), outputs, model):
            raise UserError(f"{path}: scores of other weights than this model's; evaluate it again")
        for task, entry in content["tasks"].items():
            if entry.get("value") is not None:
                results.append(_result(task, content["split"], entry))
    return results


def _kit(folder: Path, about: Mapping[str, Any]) -> str | None:
    """Return a merge's recipe as a mergekit configuration that makes the same weights, if any."""
    from merges.mergekit.exporting import recipe_in_folder

    try:
        text, drawn = recipe_in_folder(folder, about)
    except UserError:
        return None
    return None if drawn else text


def with_scores(card: str, name: str, results: list[dict[str, Any]], kit: str | None) -> str:
    """Add scores and a mergekit configuration to the text of a model card.

    Args:
        card: The card, with front matter.
        name: The model's name.
        results: Entries of the model index.
        kit: The configuration as YAML, None where there is none.

    Raises:
        ValueError: The card does not begin with front matter.
    """
    try:
        before, front, body = card.split("---\n", 2)
        values = yaml.safe_load(front)
    except (ValueError, yaml.YAMLError):
        raise ValueError("does not begin with front matter between two lines of ---") from None
    if before or not isinstance(values, dict):
        raise ValueError("does not begin with front matter between two lines of ---")
    for heading in (_SCORES, _KIT):
        body = body.split(heading)[0]
    body = body.rstrip("\n") + "\n"
    if results:
        values["model-index"] = [{"name": name, "results": results}]
        body += f"{_SCORES}\n| task | split | metric | score |\n|---|---|---|---:|\n"
        for entry in results:
            about, (metric,) = entry["dataset"], entry["metrics"]
            body += f"| {about['name']} | {about['split']} | {metric['name']} "
            body += f"| {metric['value']:.3f} |\n"
    if kit:
        body += f"{_KIT}\n```yaml\n{kit}```\n"
    front = yaml.safe_dump(values, sort_keys=False, allow_unicode=True, width=100)
    return f"---\n{front}---\n{body}"


def build_parser() -> argparse.ArgumentParser:
    """Build the command line's parser."""
    parser = command_parser("merges card", "Add scores and a mergekit recipe to a card.", _EPILOG)
    parser.add_argument("model", type=Path, help="folder of a merged model")
    add_values(parser, "--scores", metavar="FILE", help="its score files")
    return parser


def main(argv: Sequence[str]) -> int:
    """Run the command line.

    Raises:
        UserError: The folder is no merge of ours, or the scores are not its own.
    """
    given = build_parser().parse_args(argv)
    path = given.model / "README.md"
    about = read_merge(given.model)
    if not path.is_file():
        raise UserError(f"{given.model}: no merge with a card; give its folder")
    kit = _kit(given.model, about)
    results = _scores([Path(path) for path in given.scores], about["outputs"], given.model)
    try:
        card = path.read_text(encoding="utf-8")
        text = with_scores(card, given.model.resolve().name, results, kit)
    except ValueError as error:  # also of a file that is no UTF-8
        why = f"{path}: {reason_of(error)}"
        raise UserError(f"{why}; put back the card that the merge wrote, or merge again") from None
    write_text(path, text)
    parts = [f"{len(results)} scores", "a mergekit configuration" if kit else "no mergekit recipe"]
    print(f"{path}: {', '.join(parts)}")
    return 0
