"""The tables of docs that repeat the registry of methods and the suites."""

from __future__ import annotations

from pathlib import Path

from evaluation.suites import load_suites
from merges.engine import registry

ROOT = Path(__file__).resolve().parents[2]
_BEGIN, _END = "<!-- table of python -m workflow schema -->", "<!-- end of table -->"
_KINDS = {"multiple_choice": "choice", "generation": "text", "sql": "query"}


def _source(paper: str) -> str:
    number = paper.removeprefix("arXiv:")
    if number != paper:
        return f"[{paper}](https://arxiv.org/abs/{number})"
    return f"[its author's page]({paper})" if paper.startswith("https://") else paper


def _methods() -> list[str]:
    """List the published methods; one that names no paper is its user's own."""
    lines = ["| method | from | needs | acts on |", "|---|---|---|---|"]
    for name, info in registry.describe().items():
        experts = [f"{info.experts} experts"] if info.experts else []
        needs = ", ".join([*sorted(info.needs), *experts]) or "-"
        acts = "whole models" if info.whole_model else info.unit
        if info.paper:
            lines.append(f"| `{name}` | {info.title}, {_source(info.paper)} | {needs} | {acts} |")
    return lines


def _bottle_tasks() -> list[str]:
    lines = ["| task | shaped like | answer | score | chance |", "|---|---|---|---|---|"]
    tasks = [task for suite in load_suites().values() for task in suite.tasks.values()]
    for task in tasks:
        if task.maker == "bottle":
            answer = _KINDS[task.kind]
            answer += f", at most {task.max_tokens} tokens" if task.max_tokens else ""
            lines.append(
                f"| {task.name} | {task.like} | {answer} | {task.metric} | {task.chance:.2f} |"
            )
    return lines


def contents() -> dict[str, str]:
    """Write the pages anew.

    Returns:
        By path from the project's folder, the page with its table made again between the markers.
    """
    tables = {"docs/merging.md": _methods(), "docs/evaluation.md": _bottle_tasks()}
    pages = {}
    for page, lines in tables.items():
        text = (ROOT / page).read_text(encoding="utf-8")
        before, rest = text.split(f"{_BEGIN}\n", 1)
        after = rest.split(_END, 1)[1]
        pages[page] = "\n".join([before + _BEGIN, *lines, _END + after])
    return pages
