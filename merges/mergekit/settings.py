"""The parameters of a mergekit configuration: filters, gradients, and whose counts first."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from common.errors import UserError, nearest
from merges.engine.layer_rules import LayerRules, interpolate
from merges.engine.stacks import Stacks, is_before, layer_of, position, renumbered
from merges.mergekit.recipes import SILENT, WORDS, Recipe, Word

SOURCE = "mergekit configuration"
_SCALAR = bool | int | float | str


@dataclass(frozen=True)
class Slice:
    """A range of layers with separate parameters.

    Attributes:
        first, last: Its layers in the result, `last` included and None for the last one.
        shared: Parameters of the slice.
        each: Parameters of its sources by model.
        shifts: How much larger a layer's number is in a source than in the result, by model: a
            filter of a parameter that each model has is compared with the model's own names.
    """

    first: int
    last: int | None
    shared: Mapping[str, Any]
    each: Mapping[str, Mapping[str, Any]]
    shifts: Mapping[str, int] = field(default_factory=dict)


def check_setting(word: str, setting: Any) -> None:
    """Refuse what is neither a value, nor a list of them, nor values by filter.

    Raises:
        UserError: It is neither.
    """
    conditions = [setting] if isinstance(setting, Mapping) else setting
    if isinstance(setting, _SCALAR) or (
        isinstance(setting, list) and all(isinstance(item, _SCALAR) for item in setting)
    ):
        return
    if not isinstance(conditions, list) or not all(
        isinstance(item, Mapping)
        and set(item) in ({"value"}, {"filter", "value"})
        and isinstance(item.get("filter"), str | None)
        and not isinstance(item["value"], Mapping)
        for item in conditions
    ):
        raise UserError(
            f"{SOURCE}: {word}: give a value, a list of numbers, or a list of "
            "{filter: TEXT, value: ...}"
        )
    for item in conditions:
        check_setting(word, item["value"])


def _value(about: Word, setting: Any, tensor: str, place: float) -> Any:
    """Evaluate a setting for a tensor; None if its filters leave the tensor out.

    A list of numbers is piecewise linear over a slice's layers. Of values by filter the first
    counts whose text is part of the tensor's name.
    """
    if isinstance(setting, Mapping):
        setting = [setting]
    if not isinstance(setting, list):
        return about.read(setting)
    if setting and isinstance(setting[0], Mapping):
        for item in setting:
            text = item.get("filter")
            if text in (None, "*") or text in tensor:
                return _value(about, item["value"], tensor, place)
        return None
    values = [about.read(item) for item in setting]
    if not values:
        return None
    if isinstance(about.default, bool):
        return values[int(place * (len(values) - 1))]
    return about.read(interpolate(values, place))


class Parameters:
    """Finds a method's parameters for each tensor.

    Precedence is mergekit's: of a model (or a slice's source), of the slice, of the
    configuration, mergekit's default. Tensors before the layers take the first slice's
    parameters, those after them the last one's, both the first value of a gradient.

    Args:
        method: mergekit's name of the method.
        recipe: The method in our words.
        names: What the configuration calls the experts, by our names.
        slices: The slices in order; one of open end for a configuration of whole models.
        shared: Parameters of the configuration.
        fixed: Ours that the configuration has no word for.

    Raises:
        UserError: A parameter is of no method, or malformed.
    """

    def __init__(
        self,
        method: str,
        recipe: Recipe,
        names: Mapping[str, str],
        slices: Sequence[Slice],
        shared: Mapping[str, Any],
        fixed: Mapping[str, Any],
    ) -> None:
        self._method = method
        self._recipe = recipe
        self._names = names
        self._slices = slices
        self._shared = shared
        self._fixed = fixed
        self.notes = tuple(dict.fromkeys(self._idle()))

    def _idle(self) -> list[str]:
        """Check every parameter's name and form; return notes on those without effect."""
        for_all = {*self._recipe.shared, *self._recipe.only}
        scopes: list[tuple[str | None, Mapping[str, Any]]] = [
            (None, self._shared),
            *((None, part.shared) for part in self._slices),
            *(item for part in self._slices for item in part.each.items()),
        ]
        notes = []
        for model, settings in scopes:
            for word, setting in settings.items():
                if word not in WORDS:
                    known = WORDS - set(SILENT)
                    raise UserError(f"{SOURCE}: unknown parameter {word!r}{nearest(word, known)}")
                check_setting(word, setting)
                if word in SILENT:
                    continue
                if word not in for_all and word not in self._recipe.each:
                    notes.append(f"{SOURCE}: {word} has no effect in {self._method}")
                elif model is not None and word in for_all:
                    notes.append(
                        f"{SOURCE}: {word} has no effect among the parameters of a model "
                        f"({model}); it is one for all"
                    )
                elif model is not None and model not in self._names.values():
                    notes.append(f"{SOURCE}: {word} has no effect for the base model")
        return notes

    def _part(self, tensor: str) -> Slice:
        layer = layer_of(tensor)
        if layer is None:
            return self._slices[0 if is_before(tensor) else -1]
        # A single slice speaks for all stacks; several are of a model with one stack.
        return next(
            (s for s in self._slices if s.last is None or layer.number <= s.last), self._slices[-1]
        )

    def _find(self, word: str, about: Word, tensor: str, model: str | None, stacks: Stacks) -> Any:
        part, layer, place = self._part(tensor), layer_of(tensor), 0.0
        if layer is not None:
            sliced = part.last is not None and stacks.stack_of(layer) == stacks.main
            place = (
                position(layer.number, part.first, part.last or 0)
                if sliced
                else stacks.place(layer)
            )
        own = renumbered(tensor, part.shifts.get(model or "", 0))
        for settings in (part.each.get(model or "", {}), part.shared, self._shared):
            if word in settings:
                try:
                    value = _value(about, settings[word], own, place)
                except ValueError as error:
                    raise UserError(f"{SOURCE}: {word}: {error}") from None
                if value is not None:
                    return value
        if about.default is None:
            of = f" of {model}" if model else ""
            raise UserError(f"{SOURCE}: no {word}{of} for tensor {tensor}; give one")
        return about.default

    def evaluate(self, tensor: str, stacks: Stacks) -> dict[str, Any]:
        """Return our method's parameters for a tensor of a model with these stacks of layers.

        Raises:
            UserError: One is missing, of another type, or not supported.
        """
        values = {}
        for word, about in self._recipe.shared.items():
            values[about.ours] = about.turn(self._find(word, about, tensor, None, stacks))
        for word, about in self._recipe.only.items():
            if (value := self._find(word, about, tensor, None, stacks)) != about.default:
                raise UserError(
                    f"{SOURCE}: {word}: {value} is not supported in {self._method}; "
                    "leave it out or choose another method"
                )
        for word, about in self._recipe.each.items():
            values[about.ours] = {
                name: self._find(word, about, tensor, model, stacks)
                for name, model in self._names.items()
            }
        return {**self._recipe.join(values), **self._fixed}

    def _check_slices(self, stacks: Stacks) -> None:
        """Refuse slices that divide one stack of several."""
        if len(self._slices) > 1 and len(stacks.limits) > 1:
            raise UserError(
                f"{SOURCE}: the model has several stacks of layers ({stacks.describe()}), and "
                "slices do not say which they divide; give models, with lists of numbers for "
                "parameters that differ between layers"
            )

    def resolve(self, tensors: Collection[str]) -> tuple[dict[str, Any], LayerRules | None]:
        """Work out the parameters for a model.

        Args:
            tensors: The names of its tensors.

        Returns:
            Our method's parameters that are the same for every tensor, and rules for the others.

        Raises:
            UserError: The slices divide one stack of several, or as for `evaluate`.
        """
        stacks = Stacks(tensors)
        self._check_slices(stacks)
        values = {tensor: self.evaluate(tensor, stacks) for tensor in tensors}
        first = next(iter(values.values()))
        common = {
            name: value
            for name, value in first.items()
            if all(own[name] == value for own in values.values())
        }
        # One rule for all tensors with equal values: a rule per tensor would fill the manifest.
        groups: dict[str, tuple[dict[str, Any], list[str]]] = {}
        for tensor, own in values.items():
            differing = {name: value for name, value in own.items() if name not in common}
            groups.setdefault(repr(differing), (differing, []))[1].append(tensor)
        if len(common) == len(first):
            return common, None
        rules = [
            {"match": f"^({'|'.join(map(re.escape, names))})$", "set": differing}
            for differing, names in groups.values()
        ]
        return common, LayerRules(self._recipe.ours, rules, SOURCE)
