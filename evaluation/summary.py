"""One model's scores as a small table for the terminal."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any


def _number(part: Mapping[str, Any], scale: float, width: int = 0) -> str:
    """Write a value as its publication prints it."""
    if part["value"] is None:
        return f"{'-':>{width}}"
    return f"{part['value'] * scale:{width}.{3 if scale == 1 else 2}f}"


def _lines(name: str, task: Mapping[str, Any], width: int) -> Iterator[str]:
    """Write one task's lines: its scores, its groups', and what to know of them."""
    scale = task.get("scale", 1)

    def shown(part: Mapping[str, Any]) -> str:
        value, items = _number(part, scale, 6), part.get("items", task["items"])
        if part["value"] is None:
            return f"{value}  n={task['items']}"
        if items == 1:  # the recorded 0 says nothing of how sure this is
            return f"{value}  n=1, which has no error"
        error = _number({"value": part["stderr"]}, scale)
        return f"{value} ± {error}  n={items}"

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
    if cut := task.get("cut"):
        yield (
            f"    {cut} of {task['items']} prompts are longer than the model reads and lost their "
            "beginning"
        )
    for role, why in task.get("stand_in", {}).items():
        yield f"    not the benchmark's own {role}: {why}"


def summary(scores: dict[str, Any]) -> str:
    """Draw one model's scores (its scores.json) as a small table.

    A line a task, in the scale of its publication and with its standard error, and one a suite with
    the mean over its tasks of the scores shown (in brackets: with every item counted alike).
    """
    about = [scores["split"], scores["backend"], scores["dtype"]]
    about += [f"limit {scores['limit']}"] if "limit" in scores else []
    about += [f"max length {scores['max_length']}"] if "max_length" in scores else []
    about += ["chat template"] if "chat_template" in scores else []
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
