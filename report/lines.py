"""The loss on the straight lines between base, merges and experts: is there a barrier?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from markupsafe import Markup

from report import palette, render
from report.drawing import MOST
from report.experiment import Case, Model
from report.grid import number

# Of a small panel, in CSS pixels: where its axes begin and end.
_LEFT, _TOP, _RIGHT, _BOTTOM = 26.0, 6.0, 164.0, 86.0
_CLEAR = 0.01  # nats: less is no rise that counts
_FEW = 3  # merges that a sentence names


class _Curve(NamedTuple):
    """One expert's losses in a panel: its points, what a pointer shows, and how it looks."""

    points: tuple[tuple[float, float], ...]
    title: str
    fill: str
    style: int


@dataclass(frozen=True)
class _Panel:
    """A merge's panel; `levels` are heights and numbers of horizontal lines."""

    title: str
    about: str
    curves: tuple[_Curve, ...]
    levels: tuple[tuple[float, str], ...]


def _usable(found: Mapping[str, Any]) -> bool:
    """Say whether every line of an inspection has a loss at each place."""
    sides = [line for side in ("base", "experts") for line in found[side].values()]
    count = len(found["places"])
    return count > 1 and all(len(losses) == count for line in sides for losses in line.values())


class Lines:
    """A case's losses on lines, averaged over the worlds that have them.

    Args:
        case: The case.

    Attributes:
        seeds: Of these worlds; None for a case of one world.
        merges: The rows that have lines, the highest average first.
        experts: Their names and labels.
        places: Shares of the second model, from 0 to 1.
        rows: The fewest rows of an expert behind a loss.
    """

    def __init__(self, case: Case) -> None:
        there = {seed: world.inspection.get("lines") for seed, world in case.each.items()}
        found = {seed: lines for seed, lines in there.items() if lines and _usable(lines)}
        nothing: Mapping[str, Any] = {"places": [], "rows": {}, "base": {}}
        first = next(iter(found.values()), nothing)
        alike = {s: each for s, each in found.items() if each["places"] == first["places"]}
        self.case, self._worlds, self.seeds = case, list(alike.values()), list(alike)
        self.places: list[float] = first["places"]
        self.rows = min(first["rows"].values(), default=0)
        names = {e: about.get("label", e) for e, about in case.experts.items()}
        self.experts = {name: label for name, label in names.items() if name in first["rows"]}
        known = [m for m in case.all_models if m.kind == "merge" and self._of(m.id)]
        self.merges = case.by_average(known)

    def _of(self, merge: str) -> list[Mapping[str, Any]]:
        """Return the worlds that have all of a merge's lines."""
        wanted = set(self.experts)
        return [
            world
            for world in self._worlds
            if wanted
            and all(wanted <= set(world[side].get(merge, {})) for side in ("base", "experts"))
        ]

    def of(self, side: str, merge: str, expert: str) -> list[float]:
        """Return the losses on an expert's rows, nats a token of the answer, at `places`.

        Args:
            side: `base` for the line from the base to the merge, `experts` for that from the merge
                to the expert.
            merge: The merge's row.
            expert: The expert's name.
        """
        each = [world[side][merge][expert] for world in self._of(merge)]
        return [sum(values) / len(values) for values in zip(*each, strict=True)]

    def whole(self, merge: str, expert: str) -> list[float]:
        """Return the losses from the base to the merge and on to the expert."""
        return self.of("base", merge, expert) + self.of("experts", merge, expert)[1:]


def barrier(line: Sequence[float]) -> float:
    """Return how far losses on a line rise above the higher of its ends; 0 where they do not."""
    return max(line) - max(line[0], line[-1])


def past(found: Lines, merge: str) -> float:
    """Return how much lower the experts' mean loss is on the way from the base than at its end."""
    each = [found.of("base", merge, expert) for expert in found.experts]
    means = [sum(values) / len(values) for values in zip(*each, strict=True)]
    return means[-1] - min(means)


def said(found: Lines) -> str:
    """Answer in words whether there is a barrier, and which merges went too far."""
    rises = [
        (barrier(found.of(side, model.id, expert)), model.label, side, label)
        for model in found.merges
        for side in ("base", "experts")
        for expert, label in found.experts.items()
    ]
    highest, merge, side, label = max(rises)
    over = sum(rise > _CLEAR for rise, *_ in rises)
    if not over:
        text = f"No barrier: none of {len(rises)} lines rises by {number(_CLEAR)} above both ends. "
    else:
        way = f"from the base to {merge}" if side == "base" else f"from {merge} to the expert"
        text = (
            f"Barriers: {over} of {len(rises)} lines rise by more than {number(_CLEAR)} above both "
            f"ends, the highest by {number(highest)}, {way}, on the rows of {label}. "
        )
    gains = [
        (gain, model.label) for model in found.merges if (gain := past(found, model.id)) > _CLEAR
    ]
    if gains:
        names = [label for _, label in sorted(gains, reverse=True)]
        more = f" and {len(names) - _FEW} more" if names[_FEW:] else ""
        text += (
            f"{', '.join(names[:_FEW])}{more} went too far: before them, on the way from the base, "
            f"the experts' mean loss was lower by up to {number(max(gains)[0])}. "
        )
    return text


def _panel(found: Lines, model: Model, top: float, levels: Sequence[float]) -> _Panel:
    """Lay out a merge's lines, one for each expert; losses above `top` leave the panel."""

    def y(loss: float) -> float:
        return _BOTTOM - (_BOTTOM - _TOP) * loss / top

    half = (_RIGHT - _LEFT) / 2
    places = [*found.places, *(1 + place for place in found.places[1:])]
    colours = [*palette.SERIES[1:], "currentColor"]
    curves, words = [], []
    for place, (expert, label) in enumerate(found.experts.items()):
        losses = found.whole(model.id, expert)
        points = tuple((_LEFT + half * x, y(loss)) for x, loss in zip(places, losses, strict=True))
        parts = zip(("base", "merge", "expert"), losses[:: len(found.places) - 1], strict=True)
        text = f"{label}: {', '.join(f'{name} {number(loss)}' for name, loss in parts)}"
        style = place % len(colours)
        curves.append(
            _Curve(points, f"{model.label}, loss on the rows of {text}", colours[style], style)
        )
        words.append(text)
    at = tuple((y(level), f"{level:.3g}".removeprefix("0") or "0") for level in levels)
    about = f"{model.label}, loss: {'; '.join(words)}."
    return _Panel(model.label, about, tuple(curves), at)


def figure(case: Case) -> Markup:
    """Draw a case's lines, a small panel for each merge; nothing where it has none."""
    found = Lines(case)
    if not found.merges:
        return Markup("")
    shown = found.merges[:MOST]
    losses = {
        (model.id, expert): found.whole(model.id, expert)
        for model in shown
        for expert in found.experts
    }
    highest = max(map(max, losses.values()))
    # One merge that broke must not flatten the others.
    top = min(highest, 2 * max(line[0] for line in losses.values())) * 1.04 or 1.0
    step = next((s for s in (0.1, 0.2, 0.5, 1.0, 2.0, 5.0) if top < 5 * s), top / 2)
    levels = [step * count for count in range(int(top / step) + 1)]
    panels = [_panel(found, model, top, levels) for model in shown]
    worlds = [f"seed {seed}" for seed in found.seeds if seed is not None]
    where = f" in the world of {', '.join(worlds)}" if worlds else ""
    about = (
        f"{case.title}: {said(found)}Each panel goes in straight lines from the base through a "
        "merge to each expert; its height is the loss in nats a token of the answer, on "
        f"{found.rows} calibration rows of the expert{where}. A barrier is a rise above the higher "
        "end of base and merge, or of merge and expert."
    )
    if highest > top:
        about += f" Lines that leave a panel at the top reach at most {number(highest)}."
    if len(found.merges) > len(shown):
        about += f" Of {len(found.merges)} merges, the {MOST} with the highest averages are shown."
    names = [(label, *panels[0].curves[n][2:]) for n, label in enumerate(found.experts.values())]
    return render.part("lines", f"{case.table}_lines", about, panels, names, file="lines.html.j2")
