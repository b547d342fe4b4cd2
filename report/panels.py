"""The page's figures: sizes and places of all that its templates draw as SVG."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from report import palette
from report.averages import Score, spread
from report.case_table import table_title
from report.compute import CONFIDENCE, Point, pareto, points
from report.cost import Cost
from report.experiment import Ablation, Case, Experiment, Model
from report.grid import letters, number, shortened
from report.inspection import Inspection

# Sizes in units of a panel that is 360 wide, which are CSS pixels where there is room.
_LEFT, _WIDTH = 160.0, 160.0  # the labels' room, and the length of a bar of 1
_STEP = 15.0  # from one bar to the next
_LETTER, _SIZE = 0.56, 9.0  # mean width of a letter in font sizes, and the size of points' labels
_HALF = _SIZE / 2 + 0.5
_LONGEST = 28  # letters of a bar's label
_PLOT = (46.0, 12.0, 600.0, 330.0)  # left, top, right and bottom of a plot's axes
_CROWD = 60  # points; of more, only those on the Pareto line are named, the others by a pointer
_INSIDE = ("attention", "mlp", "other")  # modules of a layer that hold its linear layers


@dataclass(frozen=True)
class Mark:
    """A bar, or a point; coordinates in the units above."""

    label: str
    title: str  # what a pointer shows
    x: float
    y: float
    low: float = 0.0  # ends of its error, along x for a bar and along y for a point
    high: float = 0.0
    fill: str = "currentColor"
    pale: bool = False
    hollow: bool = False  # an outline of a bar
    square: bool = False
    text: str = ""  # at the right of a bar
    at: tuple[float, float] = (0.0, 0.0)  # of a point's label
    seeds: tuple[float, ...] = ()  # of each run, along x


@dataclass(frozen=True)
class Panel:
    """One panel of a figure."""

    title: str
    about: str  # its gist in words and numbers, for those who do not see it
    height: float
    marks: tuple[Mark, ...]
    lines: tuple[tuple[str, float], ...] = ()  # kind and x of lines over all bars
    ticks: tuple[tuple[float, str], ...] = ()  # along x
    levels: tuple[tuple[float, str], ...] = ()  # along y
    path: str = ""  # the Pareto line


def _fill(model: Model, config: Mapping[str, Any]) -> str:
    colour = palette.family(model, config)[1]
    return "currentColor" if colour == palette.INK else colour


def _short(label: str) -> str:
    return shortened(label, _LONGEST)


def _gist(title: str, scored: Sequence[tuple[Model, Score | None]]) -> str:
    """Say in words what a panel of bars shows: highest, lowest, base and best expert."""
    known = [(model, score) for model, score in scored if score is not None]
    ranked = sorted(known, key=lambda entry: -entry[1].value)

    def named(entries: Sequence[tuple[Model, Score]]) -> str:
        return ", ".join(f"{model.label} {number(score.value)}" for model, score in entries)

    merges = [entry for entry in ranked if entry[0].kind == "merge"]
    parts = [f"highest {named(merges[:3])}"] if merges else ["no merge has a score"]
    parts += [f"lowest {named(merges[-1:])}"] if merges[3:] else []
    parts += [named(entries[:1]) for kind in ("base", "expert")
              if (entries := [entry for entry in ranked if entry[0].kind == kind])]  # fmt: skip
    return f"{title}: {'; '.join(parts)}."


def _bar(place: int, model: Model, score: Score | None, config: Mapping[str, Any]) -> Mark:
    fill, pale, y = _fill(model, config), palette.pale(model, config), place * _STEP
    if score is None:
        why = model.status.split(":")[0]
        return Mark(_short(model.label), f"{model.label}: {model.status}", _LEFT, y, text=why)
    low, high = (max(0.0, score.value + side * score.stderr) for side in (-1, 1))
    text = f"{number(score.value)} ±{number(score.stderr)}"
    return Mark(
        _short(model.label),
        f"{model.label}: {text}",
        _WIDTH * score.value,
        y,
        _LEFT + _WIDTH * low,
        _LEFT + _WIDTH * high,
        fill,
        pale,
        hollow=palette.hollow(model),
        text=number(score.value),
    )


def _bars(
    title: str,
    models: Sequence[Model],
    parents: Sequence[Model],
    of: Callable[[Model], Score | None],
    config: Mapping[str, Any],
) -> Panel:
    """Lay out a panel of bars, with lines for chance, the base and the best expert."""
    scores = [of(model) for model in models]
    found = {"base": [of(m) for m in parents if m.kind == "base"]}
    found["expert"] = [of(m) for m in parents if m.kind == "expert"]
    best = {kind: max((s.value for s in group if s), default=None) for kind, group in found.items()}
    chance = next((score.chance for score in scores if score and score.chance), None)
    lines = {"chance": chance, **best}
    shown = [(kind, _LEFT + _WIDTH * value) for kind, value in lines.items() if value]
    pairs = list(zip(models, scores, strict=True))
    marks = [_bar(place, *pair, config) for place, pair in enumerate(pairs)]
    shown_ids = {model.id for model in models}
    gist = pairs + [(model, of(model)) for model in parents if model.id not in shown_ids]
    ticks = [(_LEFT + _WIDTH * tick / 4, ("0", "", ".5", "", "1")[tick]) for tick in range(5)]
    height = _STEP * len(models)
    return Panel(title, _gist(title, gist), height, tuple(marks), tuple(shown), tuple(ticks))


def averages(experiment: Experiment) -> list[Panel]:
    """Lay out the averages of all models, a panel a case, the highest on top."""
    panels = []
    for case in experiment.cases:
        title = f"{table_title(case.table)}. {case.title}"
        parents = [model for model in case.models if model.kind != "merge"]
        models = case.by_average(case.models)
        panels.append(_bars(title, models, parents, case.average, experiment.config))
    return panels


def tasks(case: Case, config: Mapping[str, Any]) -> list[Panel]:
    """Lay out every task of a case as a panel of its merges, in the order of their averages."""
    merges = case.by_average([model for model in case.models if model.kind == "merge"])
    parents = [model for model in case.models if model.kind != "merge"]

    def of_task(task: str, model: Model) -> Score | None:
        return model.tasks.get(task)

    return [
        _bars(case.task_label(task), merges, parents, functools.partial(of_task, task), config)
        for task in case.tasks
    ]


def ablation(entry: Ablation) -> Panel:
    """Lay out Table 3: every seed as a dot, and their mean with the deviation."""
    case, found = entry.case, []
    for objective in entry.objectives:
        scores = [case.average(run) for run in objective.runs]
        found.append((objective, [score.value for score in scores if score is not None]))
    values = [value for _, group in found for value in group] or [0.0, 1.0]
    low, high = min(values) - 0.01, max(values) + 0.01

    def x(value: float) -> float:
        return _LEFT + _WIDTH * (value - low) / (high - low)

    marks, words = [], []
    for place, (objective, group) in enumerate(found):
        y, label = place * 1.4 * _STEP, objective.label
        if not (total := spread(group)):
            marks.append(Mark(_short(label), f"{label}: not run", _LEFT, y, text="not run"))
            continue
        side = total.deviation or 0.0
        words.append(f"{label} {number(total.mean)}")
        ends = x(total.mean - side), x(total.mean + side)
        title = f"{label}: {number(total.mean)} ±{number(side)}, {total.runs} seeds"
        seeds = tuple(map(x, group))
        text = number(total.mean)
        at = x(total.mean), y, *ends
        marks.append(Mark(_short(label), title, *at, text=text, seeds=seeds))
    ticks = [(x(value), number(value)) for value in (low + 0.01, high - 0.01)]
    about = f"Mean over seeds: {', '.join(words)}."
    height = 1.4 * _STEP * len(found)
    return Panel("Table 3", about, height, tuple(marks), ticks=tuple(ticks))


def dots(title: str, rows: Sequence[tuple[str, float | None, Sequence[float | None]]]) -> Panel:
    """Lay out a panel with a row of dots for each model, and a mark for what they have together.

    Args:
        title: Of the panel.
        rows: Each with its label, the number for all parts together and that of every part.
    """
    values = [v for _, total, parts in rows for v in (total, *parts) if v is not None]
    low, high = min([0.0, *values]), max([1.0, *values])

    def x(value: float) -> float:
        return _LEFT + _WIDTH * (value - low) / (high - low)

    marks, known = [], []
    for place, (label, total, parts) in enumerate(rows):
        y, short = place * 1.4 * _STEP, _short(label)
        found = [part for part in parts if part is not None]
        if total is None or not found:
            marks.append(Mark(short, f"{label}: nothing to compare", _LEFT, y, text=number(total)))
            continue
        known.append((total, label))
        ends = min(found), max(found)
        words = f"{label}: {number(total)}, by layer and module {' to '.join(map(number, ends))}"
        at = x(total), y, x(ends[0]), x(ends[1])
        marks.append(Mark(short, words, *at, text=number(total), seeds=tuple(map(x, found))))
    said = [f"{label} {number(total)}" for total, label in sorted(known, reverse=True)]
    about = f"{title}: {', '.join(said[:3])}; lowest {said[-1]}." if said else f"{title}: nothing."
    # An end too near to 0 or 1 would cover its number.
    outer = [end for end in (low, high) if min(abs(end), abs(end - 1)) > 0.3 * (high - low) / 2]
    ticks = [(x(end), number(end)) for end in sorted({0.0, 1.0, *outer})]
    return Panel(title, about, 1.4 * _STEP * len(rows), tuple(marks), ticks=tuple(ticks))


def _inner(found: Inspection) -> list[tuple[int | None, str]]:
    return [place for place in found.places if place[0] is not None and place[1] in _INSIDE]


def kept(case: Case) -> list[Panel]:
    """Lay out a panel for each expert and one for what is along none: a dot a layer and module."""
    found = Inspection(case)
    places = _inner(found)

    def panel(title: str, *keys: str) -> Panel:
        name, *rest = keys
        rows = [
            (model.label, found.of(name, model.id, *rest),
             [found.of(name, model.id, *rest, place=place) for place in places])
            for model in found.merges
        ]  # fmt: skip
        return dots(title, rows)

    experts = [(case.experts[expert].get("label", expert), expert) for expert in found.experts]
    shares = [panel(f"Kept of {label}", "kept", expert) for label, expert in experts]
    return [*shares, panel("Outside", "outside")]


def coefficients(case: Case) -> list[Panel]:
    """Lay out a panel for the sum of learnt coefficients, and one for each model's share of it."""
    found = Inspection(case)

    def panel(title: str, *keys: str) -> Panel:
        rows = [
            (model.label, found.of("coefficients", model.id, *keys),
             [found.of("coefficients", model.id, *keys, place=place) for place in _inner(found)])
            for model in found.rescaled()
        ]  # fmt: skip
        return dots(title, rows)

    shares = [
        panel(f"Share of {case.experts.get(name, {}).get('label', name)}", "shares", name)
        for name in found.mixed()
    ]
    return [panel("Sum of coefficients", "sum"), *shares]


def _free_places(x: float, y: float, width: float) -> Iterator[tuple[float, float]]:
    """Yield places for the left end of a label's middle line, near ones first."""
    for radius in (8, *range(12, 160, 6)):
        for turn in (0, 8, 1, 15, 7, 9, 2, 14, 6, 10, 3, 13, 5, 11, 4, 12):
            angle = math.pi * turn / 8
            left = x + radius * 1.3 * math.cos(angle) - width * (1 - math.cos(angle)) / 2
            yield left, y - radius * math.sin(angle)


def _labelled(marks: Sequence[Mark], line: Sequence[Mark]) -> list[Mark]:
    """Give points' labels places where they cover no point, no step of a line, and no other."""
    taken = [(mark.x - 4, mark.y - 4, mark.x + 4, mark.y + 4) for mark in marks]
    for place, mark in enumerate(line):
        after = line[place + 1] if place + 1 < len(line) else Mark("", "", _PLOT[2], mark.y)
        taken.append((mark.x, mark.y - 1, after.x, mark.y + 1))
        taken.append((after.x - 1, after.y, after.x + 1, mark.y))
    placed = []

    def box(place: tuple[float, float], width: float) -> tuple[float, float, float, float]:
        return place[0], place[1] - _HALF, place[0] + width, place[1] + _HALF

    def free(left: float, top: float, right: float, bottom: float) -> bool:
        inside = left > _PLOT[0] + 2 and right < _PLOT[2] and top > 0 and bottom < _PLOT[3]
        return inside and not any(
            left < x1 and x0 < right and top < y1 and y0 < bottom for x0, y0, x1, y1 in taken
        )

    for mark in sorted(marks, key=lambda mark: (mark.y, mark.x)):
        if not mark.label:
            placed.append(mark)
            continue
        width = _LETTER * _SIZE * letters(mark.label)
        places = _free_places(mark.x, mark.y, width)
        at = next((place for place in places if free(*box(place, width))), (mark.x + 8, mark.y))
        taken.append(box(at, width))
        placed.append(dataclasses.replace(mark, at=at))
    return placed


class _Axes:
    """A logarithmic axis of costs, on which 0 has a place, and a linear one of scores."""

    def __init__(self, costs: Sequence[float], values: Sequence[float]) -> None:
        positive = [math.log10(cost) for cost in costs if cost > 0] or [0.0]
        self.free = min(costs) <= 0
        self.none = math.floor(min(positive)) - 1.0
        self.start = (self.none if self.free else min(positive)) - 0.3
        self.end = max(positive) + 0.3
        self.low, self.high = min(values), max(values) + 1e-9

    def x(self, cost: float) -> float:
        exponent = math.log10(cost) if cost > 0 else self.none
        return _PLOT[0] + (_PLOT[2] - _PLOT[0]) * (exponent - self.start) / (self.end - self.start)

    def y(self, value: float) -> float:
        room = _PLOT[3] - _PLOT[1] - 6
        return _PLOT[3] - 6 - room * (value - self.low) / (self.high - self.low)

    def ticks(self) -> list[tuple[float, str]]:
        decades = range(math.ceil(self.start), math.floor(self.end) + 1)
        shown = [n for n in decades if not self.free or n > self.none]
        found = [(self.x(10.0**n), f"1e{n}") for n in shown]
        return [*([(self.x(0), "none")] if self.free else []), *found]

    def levels(self) -> list[tuple[float, str]]:
        # The smallest round step of which at most six fit.
        span, steps = self.high - self.low, (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2)
        step = next((step for step in steps if span <= 6 * step), 1.0)
        first, last = math.ceil(self.low / step), math.floor(self.high / step)
        return [(self.y(n * step), number(n * step)) for n in range(first, last + 1)]


def _plot(
    title: str, found: Sequence[Point], costs: Sequence[float], config: Mapping[str, Any]
) -> Panel:
    """Lay out merges over what they cost, with the line that no cheaper merge is above."""
    # Long because the points, the line and the words for both share one list.
    ends = [p.score.value + side * CONFIDENCE * p.score.stderr for p in found for side in (-1, 1)]
    axes, marks = _Axes(costs, ends), []
    for point, cost in zip(found, costs, strict=True):
        score, model = point.score, point.model
        side = CONFIDENCE * score.stderr
        about = f"{model.label}: {number(score.value)} ±{number(score.stderr)}, {cost:.3g}"
        place = axes.x(cost), axes.y(score.value)
        ends_at = axes.y(score.value - side), axes.y(score.value + side)
        look = _fill(model, config), palette.pale(model, config)
        square = not model.best_of
        marks.append(Mark(_short(model.label), about, *place, *ends_at, *look, square=square))
    rivals = [place for place, point in enumerate(found) if point.model.best_of]
    values = [found[place].score.value for place in rivals]
    line = [rivals[place] for place in pareto([costs[place] for place in rivals], values)]
    path = [f"{marks[place].x:.1f}V{marks[place].y:.1f}" for place in line]
    best = ", ".join(f"{found[i].model.label} {number(found[i].score.value)}" for i in line)
    steps = [marks[place] for place in line]
    if len(marks) > _CROWD:
        named = set(line)
        marks = [m if i in named else dataclasses.replace(m, label="") for i, m in enumerate(marks)]
    return Panel(
        title,
        f"{title}: on the Pareto line, from cheap to dear, {best}.",
        _PLOT[3],
        tuple(_labelled(marks, steps)),
        ticks=tuple(axes.ticks()),
        levels=tuple(axes.levels()),
        path=f"M{marks[line[0]].x:.1f} {_PLOT[3]}H{'H'.join(path)}H{_PLOT[2]}" if line else "",
    )


def compute(case: Case, found: Sequence[Cost], config: Mapping[str, Any]) -> list[Panel]:
    """Lay out a case's merges over FLOPs and over CPU seconds; nothing where costs are missing."""
    merges = points(case, found)
    if not merges:
        return []
    name = f"{table_title(case.table)}, average over"
    return [
        _plot(f"{name} FLOPs (logarithmic)", merges, [p.flops for p in merges], config),
        _plot(f"{name} CPU seconds (logarithmic)", merges, [p.cpu_s for p in merges], config),
    ]


def legend(models: Sequence[Model], config: Mapping[str, Any]) -> list[tuple[str, str, bool]]:
    """Return families of models that have scores, their colours, and whether they are outlines."""
    shown = [model for model in models if model.tasks]
    looks = (
        (palette.family(model, config)[0], _fill(model, config), palette.hollow(model))
        for model in shown
    )
    return list(dict.fromkeys(looks))
