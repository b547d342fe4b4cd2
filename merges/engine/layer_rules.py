"""Parameters that differ between layers: rules from a file, applied by tensor name."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common.errors import UserError, nearest
from common.files import read_json
from merges.engine import registry
from merges.engine.stacks import Stacks, layer_of, position

_KEYS = ("match", "layers", "set", "gradient")


def interpolate(values: Sequence[float], place: float) -> float:
    """Evaluate at a place of [0, 1] the piecewise linear function with evenly spaced values."""
    scaled = place * (len(values) - 1)
    low = int(scaled)
    high = min(low + 1, len(values) - 1)
    share = scaled - low
    return (1 - share) * values[low] + share * values[high]


@dataclass(frozen=True)
class Rule:
    """Settings for the tensors whose names match.

    Attributes:
        match: Regular expression searched for in the name, None to match any.
        layers: First and last layer number, both included, in every stack; None for any tensor.
        set: Parameters of the method, checked.
        gradient: Parameters that change from layer to layer: the values between which they are
            interpolated, or these by expert (a number is the same in every layer).
    """

    match: str | None
    layers: tuple[int, int] | None
    set: dict[str, Any]
    gradient: dict[str, list[float] | dict[str, float | list[float]]]

    def applies(self, tensor: str) -> bool:
        """Return whether the rule is for this tensor."""
        if self.match is not None and not re.search(self.match, tensor):
            return False
        if self.layers is None:
            return True
        layer = layer_of(tensor)
        return layer is not None and self.layers[0] <= layer.number <= self.layers[1]

    def settings(self, tensor: str, stacks: Stacks) -> dict[str, Any]:
        """Return the rule's parameters for a tensor that it is for.

        Args:
            tensor: The tensor's name.
            stacks: The model's stacks of layers; a gradient goes over each.
        """
        layer = layer_of(tensor)
        if layer is None or not self.gradient:
            return self.set
        place = position(layer.number, *self.layers) if self.layers else stacks.place(layer)

        def value(points: Any) -> Any:
            if isinstance(points, dict):
                return {expert: value(own) for expert, own in points.items()}
            return interpolate(points, place) if isinstance(points, list) else points

        return {**self.set, **{name: value(points) for name, points in self.gradient.items()}}

    def as_json(self) -> dict[str, Any]:
        """Return the rule as it can be written to a file."""
        return {
            **({} if self.match is None else {"match": self.match}),
            **({} if self.layers is None else {"layers": list(self.layers)}),
            **({"set": self.set} if self.set or not self.gradient else {}),
            **({"gradient": self.gradient} if self.gradient else {}),
        }


class LayerRules:
    """A method's parameters by tensor: where several rules apply, later ones win.

    It is what `merges.engine.run` takes as `parameters_for`.

    Args:
        method: Name of the method whose parameters the rules set.
        rules: Mappings with ``match`` (a regular expression searched for in the tensor's name),
            ``layers`` ([first, last], included) or both, and with ``set`` (parameters),
            ``gradient`` or both. A gradient has for a parameter a list of numbers, evenly spread
            over the layers of each stack (or ``layers``) with straight lines between, or such
            a list for each expert; tensors of no layer are not touched by it. A rule of a gradient
            alone needs neither match nor layers.
        source: Where the rules come from, for messages.

    Raises:
        UserError: A rule is malformed, or sets what the method does not have.
    """

    def __init__(
        self, method: str, rules: Sequence[Mapping[str, Any]], source: str = "layer rules"
    ) -> None:
        if not isinstance(rules, list | tuple):
            raise UserError(f"{source}: give a list of rules")
        self.method = method
        self.source = source
        self.rules = [
            _rule(method, rule, f"{source}, rule {number}") for number, rule in enumerate(rules, 1)
        ]
        self._stacks = Stacks(())

    def __call__(self, tensor: str) -> dict[str, Any]:
        """Return the settings that differ from the method's for this tensor."""
        overrides: dict[str, Any] = {}
        for rule in self.rules:
            if rule.applies(tensor):
                if rule.gradient and not self._stacks.limits:
                    raise RuntimeError(
                        "a gradient needs check_used first, which counts the model's layers"
                    )
                overrides.update(rule.settings(tensor, self._stacks))
        return overrides

    def check_used(self, tensors: Collection[str]) -> None:
        """Take note of the model's layers, and refuse a rule that changes nothing in the model.

        Args:
            tensors: The names of the model's tensors.

        Raises:
            UserError: A rule applies to no tensor, most likely a slip, or a gradient reaches a
                value that the parameter cannot have.
        """
        self._stacks = Stacks(tensors)
        for number, rule in enumerate(self.rules, 1):
            where = f"{self.source}, rule {number}"
            touched = [tensor for tensor in tensors if rule.applies(tensor)]
            if not touched:
                raise UserError(
                    f"{where}: it matches no tensor of the model; correct its pattern or its layers"
                )
            if rule.gradient and all(layer_of(tensor) is None for tensor in touched):
                raise UserError(
                    f"{where}: its gradient is over layers, and it matches no tensor of a layer; "
                    "use 'set', or correct its pattern"
                )
            if rule.gradient:
                for tensor in touched:
                    _check(self.method, rule.settings(tensor, self._stacks), where)

    def as_json(self) -> list[dict[str, Any]]:
        """Return the rules as they can be written to a file and read again."""
        return [rule.as_json() for rule in self.rules]


def _check(method: str, settings: Mapping[str, Any], where: str) -> dict[str, Any]:
    try:
        return registry.check(method, settings)
    except UserError as error:
        raise UserError(f"{where}: {error}") from None


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_points(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(map(_is_number, value))


def _gradient(method: str, gradient: Any, where: str) -> dict[str, Any]:
    if not isinstance(gradient, Mapping) or not gradient:
        raise UserError(f'{where}: give "gradient" as {{"parameter": [0, 0.5, 1]}}')
    for name, points in gradient.items():
        own = points if isinstance(points, Mapping) else {}
        if not (
            _is_points(points)
            or (own and all(_is_points(value) or _is_number(value) for value in own.values()))
        ):
            raise UserError(
                f"{where}: gradient of {name}: give a list of numbers, or one for each expert"
            )
        # Between two valid numbers all are: it is enough to look at these.
        most = max((len(value) for value in own.values() if isinstance(value, list)), default=1)
        for number in range(most if own else len(points)):
            values = {
                expert: value[min(number, len(value) - 1)] if isinstance(value, list) else value
                for expert, value in own.items()
            }
            _check(method, {name: values or points[number]}, where)
    return {name: dict(p) if isinstance(p, Mapping) else list(p) for name, p in gradient.items()}


def _rule(method: str, rule: Any, where: str) -> Rule:
    if not isinstance(rule, Mapping) or not (
        "gradient" in rule if "set" not in rule else isinstance(rule["set"], Mapping)
    ):
        raise UserError(f'{where}: give {{"match": ..., "set": {{...}}}}, or "gradient" for "set"')
    for key in rule:
        if key not in _KEYS:
            raise UserError(f"{where}: unknown key {key!r}{nearest(key, _KEYS)}")
    match, layers = rule.get("match"), rule.get("layers")
    if match is None and layers is None and "set" in rule:
        raise UserError(f"{where}: give 'match' or 'layers', to say which tensors it is for")
    try:
        re.compile(match or "")
    except (re.error, TypeError) as error:
        raise UserError(f"{where}: 'match' is no regular expression ({error})") from None
    if layers is not None and not (
        isinstance(layers, list | tuple)
        and len(layers) == 2
        and all(type(number) is int for number in layers)
        and 0 <= layers[0] <= layers[1]
    ):
        raise UserError(f"{where}: 'layers' must be [first, last], both included")
    settings = _check(method, rule.get("set", {}), where)
    gradient = _gradient(method, rule["gradient"], where) if "gradient" in rule else {}
    if both := sorted(set(settings) & set(gradient)):
        raise UserError(f"{where}: {both[0]} is in 'set' and in 'gradient'; keep one")
    return Rule(match, None if layers is None else tuple(layers), settings, gradient)


def read_rules(method: str, path: Path) -> LayerRules:
    """Read layer rules from a JSON file.

    Args:
        method: Name of the method whose parameters the rules set.
        path: A list of rules as `LayerRules` takes them.

    Raises:
        UserError: The file is missing or malformed.
    """
    return LayerRules(method, read_json(path), str(path))
