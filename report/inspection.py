"""Why a merge works: what it kept of each expert's weights, next to what it kept of its scores."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from report.averages import Score, mean
from report.case_table import table_title
from report.experiment import Case, Model
from report.grid import MISSING, Cell, Grid, Row, number

Place = tuple[int | None, str]  # layer, None outside the layers, and module


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


class Inspection:
    """A case's inspections, averaged over its worlds.

    Args:
        case: The case.

    Attributes:
        merges: The rows that were inspected in a world at least, the highest average first.
        experts: The experts' names.
        places: Layer and module of every group, in their order.
    """

    def __init__(self, case: Case) -> None:
        self.case = case
        self._worlds = [world.inspection for world in case.each.values() if world.inspection]
        known = {name for world in self._worlds for name in world["merges"]}
        merges = [model for model in case.all_models if model.id in known]
        self.merges = case.by_average(merges)
        self.experts = list(case.experts)
        first = self._worlds[0]["groups"] if self._worlds else []
        self.places = [(group["layer"], group["module"]) for group in first]

    def _described(self, place: Place | None) -> list[Mapping[str, Any]]:
        """Return what each world's inspection says of a group, or of all linear layers."""
        if place is None:
            return [world["all"] for world in self._worlds]
        groups = (group for world in self._worlds for group in world["groups"])
        return [group for group in groups if (group["layer"], group["module"]) == place]

    def rescaled(self) -> list[Model]:
        """Return the rows that have coefficients of complete weights, the highest first."""
        return [m for m in self.merges if self.of("coefficients", m.id, "sum") is not None]

    def mixed(self) -> list[str]:
        """Return the models that have coefficients: the experts, and the base where it has some."""
        shares = [("coefficients", model.id, "shares", "base") for model in self.rescaled()]
        has_base = any(self.of(*keys) is not None for keys in shares)
        return ["base", *self.experts] if has_base else self.experts

    def pairs(self) -> list[str]:
        """Return the pairs of experts that have a cosine."""
        return list(self._worlds[0]["all"]["cosine"])

    def of(self, *keys: str, place: Place | None = None) -> float | None:
        """Return the mean over worlds of a number of a group, or of all linear layers.

        Args:
            keys: Where the number is: `kept`, a merge and an expert, or `outside` and a merge.
            place: Layer and module of the group; None for all linear layers.
        """
        found = []
        for described in self._described(place):
            value: Any = described
            for key in keys:
                value = value.get(key) if value is not None else None
            found.append(value)
        return _mean(found)


def _ratio(one: Score | None, two: Score | None) -> str:
    return f"{one.value / two.value:.2f}" if one and two and two.value else MISSING


def _at_home(case: Case, model: Model, expert: str) -> Score | None:
    return mean([model.tasks.get(task) for task in case.experts[expert]["domain"]])


def inspection_grid(case: Case) -> Grid:
    """Lay out what every merge kept of the experts' weights and scores, of an inspected case."""
    # Long, because each column is made here.
    found = Inspection(case)
    models = {model.id: model for model in case.models}
    held_out = case.held_out()

    def away(model: Model) -> Score | None:
        return mean([model.tasks.get(task) for task in held_out]) if held_out else None

    scores = [score for expert in found.experts if (score := away(models[expert]))]
    best = max(scores, key=lambda score: score.value, default=None)
    rows = []
    for model in found.merges:
        kept = [number(found.of("kept", model.id, expert)) for expert in found.experts]
        rest = [number(found.of(name, model.id)) for name in ("outside", "length")]
        parts = [
            _ratio(_at_home(case, model, e), _at_home(case, models[e], e)) for e in found.experts
        ]
        parts += [_ratio(away(model), best)] if held_out else []
        rows.append(Row(tuple(map(Cell, (model.label, *kept, *rest, *parts)))))
    labels = [case.experts[expert].get("label", expert) for expert in found.experts]
    header = ["Model", *(f"Kept: {label}" for label in labels), "Outside", "Length"]
    header += [f"Score: {label}" for label in labels]
    caption = (
        "Kept: the coefficients of the experts' changes of the base that come nearest to the "
        "merge's, over the linear layers between embedding and head. Outside: the share of its "
        "squared change that is along no expert. Length: its change in lengths of the base. Score: "
        "its score on an expert's domain in parts of that expert's own."
    )
    if held_out:
        header.append("Held out")
        caption += " Held out: on tasks of no expert's domain, in parts of the best expert's score."
    title = f"{table_title(case.table)}, weights and scores"
    return Grid(f"{case.table}_inspection", title, caption, tuple(header), tuple(rows))


def experts_grid(case: Case) -> Grid:
    """Lay out how far and how alike experts moved, by layer, of an inspected case."""
    found = Inspection(case)
    rows = []
    for place in (None, *found.places):
        drift = [found.of("drift", expert, place=place) for expert in found.experts]
        cosine = [found.of("cosine", pair, place=place) for pair in found.pairs()]
        numbers = map(number, (*drift, *cosine, found.of("conflict", place=place)))
        layer, module = place or ("all", "linear layers")
        start = MISSING if layer is None else str(layer), module
        rows.append(Row(tuple(map(Cell, (*start, *numbers)))))
    header = ["Layer", "Module", *(f"Drift: {expert}" for expert in found.experts)]
    header += [*(f"Cosine: {pair}" for pair in found.pairs()), "Conflict"]
    caption = (
        "Drift: the length of an expert's change in lengths of the base. Cosine: of two experts' "
        "changes. Conflict: the share of the weights that at least two experts changed in which "
        "their signs differ; chance makes it .5 for two experts and .75 for three."
    )
    title = f"{table_title(case.table)}, experts' changes"
    return Grid(f"{case.table}_drift", title, caption, tuple(header), tuple(rows), texts=2)


def coefficients_grid(case: Case) -> Grid | None:
    """Lay out rescaling and mixing by a case's learnt coefficients; None where it has none."""
    # Long, because each column is made here.
    found, rows = Inspection(case), []
    mixed = found.mixed()
    for model in found.rescaled():
        for place in (None, *found.places):
            keys = ("coefficients", model.id)
            if (total := found.of(*keys, "sum", place=place)) is None:
                continue
            spread = found.of(*keys, "spread", place=place)
            shares = [found.of(*keys, "shares", name, place=place) for name in mixed]
            layer, module = place or (None, "all")
            weights = module if layer is None else f"{layer} {module}"
            cells = (model.label, weights, *map(number, (total, spread, *shares)))
            rows.append(Row(tuple(map(Cell, cells)), group=model.id))
    if not rows:
        return None
    header = ["Model", "Weights", "Sum", "Spread", *(f"Share: {name}" for name in mixed)]
    caption = (
        "DAM adds models' weights up, each column times a coefficient. Weights: all linear layers "
        "between embedding and head, then each layer's parts. Sum: the mean over columns of the "
        "sum of the models' coefficients, by which all weights are rescaled; 1 is no rescaling. "
        "Spread: that sum's standard deviation over columns. Share: the mean of a model's "
        "coefficients in parts of the sum, which is how the models are mixed."
    )
    title = f"{table_title(case.table)}, learnt coefficients"
    name = f"{case.table}_coefficients"
    return Grid(name, title, caption, tuple(header), tuple(rows), texts=2)
