"""Colours of the figures: those of the families of methods, and of lines, text and grids."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from report.experiment import Model, searched

INK = "#222222"  # of marks; lines and text on a dark page show it as their text's colour
# Greys, from dark to light.
DARK_EDGE = "#333333"
EDGE = "#444444"  # of marks, and lines at a reference model's score
TITLE = "#555555"  # of panels but the first
LINE = "#666666"
NOTE = "#777777"  # text in the place of a bar
INTERVAL = "#888888"
LEADER = "#AAAAAA"  # from a label to its point
FRAME = "#BBBBBB"
SAMPLE = "#D0D0D0"  # of a legend
GRID = "#DDDDDD"
FINE_GRID = "#EEEEEE"
# Okabe and Ito's colours, which colour-blind readers can tell apart; the paper's method is black.
_FAMILIES = {
    "linear": ("Model Soups", "#0072B2"),
    "task_arithmetic": ("Task arithmetic", "#56B4E9"),
    "ties": ("TIES", "#009E73"),
    "dare_ties": ("DARE-TIES", "#E69F00"),
    "slerp": ("SLERP", "#CC79A7"),
    "evolutionary": ("Evolutionary", "#D55E00"),
    "adamerging": ("AdaMerging", "#B5A900"),
    "dam": ("DAM", INK),
}
SEED = "#56B4E9"  # a dot of one seed
SERIES = (INK, "#0072B2", "#D55E00", "#009E73")  # lines that stand for no method
SEARCHES = ("#D55E00", "#0072B2", "#009E73")  # two that differ in lightness as well, and one more
_PUBLISHED = ("Published merge", "#7F5BA6")  # what it was chosen on is not known here
_OTHER = ("Other methods", "#8C564B")
_REFERENCE = ("Base and experts", "#A6A6A6")
_PALE = 0.5  # share of white in the bars of rows that chose nothing on dev items


def family(model: Model, config: Mapping[str, Any]) -> tuple[str, str]:
    """Return the title and the colour (RGB in hexadecimal) of a model's family of methods."""
    if model.kind != "merge":
        return _REFERENCE
    if "evolve" in config["methods"].get(model.id, {}):
        return _FAMILIES["evolutionary"]
    if "hub" in config["methods"].get(model.id, {}):
        return _PUBLISHED
    return _FAMILIES.get(model.method, _OTHER)


# What a merge knows of the experts' data; see `report.compute.data_of`.
DATA = {
    "none": ("no data", "#0072B2"),
    "rows": ("the experts' rows", "#E69F00"),
    "answers": ("the experts' rows and answers", "#009E73"),
}


def colour(model: Model, config: Mapping[str, Any]) -> tuple[float, ...]:
    """Return the colour of a model's family (RGB in [0, 1]); see `paint`."""
    return paint(family(model, config)[1], model, config)


def pale(model: Model, config: Mapping[str, Any]) -> bool:
    """Return whether a model is a merge of which nothing was chosen on dev items."""
    row = config["methods"].get(model.id, {})
    return model.kind == "merge" and "hub" not in row and not searched(row)


def hollow(model: Model) -> bool:
    """Return whether a model's bar is an outline: the base's and experts', as pale DAM is grey."""
    return model.kind != "merge"


def paint(full: str, model: Model, config: Mapping[str, Any]) -> tuple[float, ...]:
    """Return a colour (RGB in [0, 1]), pale for a model of which nothing was chosen on dev."""
    from matplotlib.colors import to_rgb

    paint: tuple[float, ...] = to_rgb(full)
    if pale(model, config):
        paint = tuple(part + (1 - part) * _PALE for part in paint)
    return paint


def handles(models: Sequence[Model], config: Mapping[str, Any]) -> list[Any]:
    """Return the legend's entries for the families of these models."""
    from matplotlib.patches import Patch

    seen = dict.fromkeys(family(model, config) for model in models)
    made = [Patch(color=paint, label=label) for label, paint in seen]
    return [*made, Patch(color=SAMPLE, label="pale: nothing chosen on dev")]
