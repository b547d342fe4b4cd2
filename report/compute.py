"""Quality against compute: what each merge of a table scored and what it took to make it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from report.averages import Score
from report.cost import Cost, teachers_of
from report.experiment import Case, Model

CONFIDENCE = 1.96  # standard errors of a normal variable on each side of a 95 % interval


@dataclass(frozen=True)
class Point:
    """A merge's place in the figure."""

    model: Model
    score: Score
    flops: float  # FLOPs of making it, its search and the teachers that it learned from included
    cpu_s: float  # CPU seconds of the same


# What a merge was given of the experts' data, by the first word of its inputs' names.
WITH_ANSWERS = ("empirical_fisher", "gradients", "kronecker")
WITHOUT_ANSWERS = ("calibration", "teachers", "channels", "gram", "fisher")
# Methods whose loss is that of the calibration rows' answers.
SUPERVISED = ("localize_and_stitch", "supermerge", "fw_merging")


def data_of(model: Model) -> str:
    """Say what a merge knows of the experts' data: ``none``, ``rows`` or ``answers``.

    Dev items, on which some rows were tuned, are not among these data.
    """
    given = {name.partition(".")[0] for name in model.manifest.get("inputs", {})}
    if given & set(WITH_ANSWERS) or model.method in SUPERVISED:
        return "answers"
    return "rows" if given & set(WITHOUT_ANSWERS) else "none"


def points(case: Case, found: Sequence[Cost], beyond: bool = False) -> list[Point]:
    """Collect the merges of a case's main table that have a score and a cost, in its order.

    Of several worlds, both are means over them. With `beyond`, the other methods' follow.
    """
    worlds = {world.id for world in (case.worlds or case.each).values()}
    made = []
    for model in case.all_models if beyond else case.models:
        steps = [
            cost
            for cost in found
            if cost.case in worlds and cost.id == model.id and cost.stage != "evaluation"
        ]
        score = case.average(model)
        # The training of base and experts is in no merge's cost: all share it.
        if model.kind == "merge" and steps and score is not None:
            paid = {step.case for step in steps}
            steps += [step for world in sorted(paid) for step in teachers_of(world, model, found)]
            flops, cpu_s = (
                sum(getattr(step, name) for step in steps) / len(paid)
                for name in ("flops", "cpu_s")
            )
            made.append(Point(model, score, flops, cpu_s))
    return made


def pareto(costs: Sequence[float], values: Sequence[float]) -> list[int]:
    """Find what nothing beats: no other is both as cheap and as good, and better in one of them.

    Returns:
        Places in the sequences, by rising cost; the first of equals stands for all of them.
    """
    front: list[int] = []
    for place in sorted(range(len(costs)), key=lambda i: (costs[i], -values[i], i)):
        if not front or values[place] > values[front[-1]]:
            front.append(place)
    return front
