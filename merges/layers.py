"""Parameters that differ between layers: rules from a file, applied by tensor name."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common.errors import UserError, nearest
from common.files import read_json
from merges import registry

_LAYER = re.compile(r"\blayers\.(\d+)\.")
_KEYS = ("match", "layers", "set")


@dataclass(frozen=True)
class Rule:
    """Settings for the tensors whose names match.

    Attributes:
        match: Regular expression searched for in the name, None to match any.
        layers: First and last layer number, both included, None for any tensor.
        set: Parameters of the method, checked.
    """

    match: str | None
    layers: tuple[int, int] | None
    set: dict[str, Any]

    def applies(self, tensor: str) -> bool:
        """Tell whether the rule is for this tensor."""
        if self.match is not None and not re.search(self.match, tensor):
            return False
        if self.layers is None:
            return True
        number = _LAYER.search(tensor)
        return number is not None and self.layers[0] <= int(number[1]) <= self.layers[1]


class LayerRules:
    """A method's parameters by tensor: where several rules apply, later ones win.

    It is what `merges.engine` takes as `parameters_for`.

    Args:
        method: Name of the method whose parameters the rules set.
        rules: Mappings with ``set`` (parameters) and ``match`` (a regular expression searched for
            in the tensor's name), ``layers`` ([first, last], included) or both.
        source: Where the rules come from, for messages.

    Raises:
        UserError: A rule is malformed, or sets what the method does not have.
    """

    def __init__(
        self, method: str, rules: Sequence[Mapping[str, Any]], source: str = "layer rules"
    ) -> None:
        if not isinstance(rules, list | tuple):
            raise UserError(f"{source}: give a list of rules")
        self.source = source
        self.rules = [
            _rule(method, rule, f"{source}, rule {number}") for number, rule in enumerate(rules, 1)
        ]

    def __call__(self, tensor: str) -> dict[str, Any]:
        """Return the settings that differ from the method's for this tensor."""
        overrides: dict[str, Any] = {}
        for rule in self.rules:
            if rule.applies(tensor):
                overrides.update(rule.set)
        return overrides

    def check_used(self, tensors: Collection[str]) -> None:
        """Refuse a rule that applies to none of the model's tensors, most likely a slip."""
        for number, rule in enumerate(self.rules, 1):
            if not any(rule.applies(tensor) for tensor in tensors):
                raise UserError(
                    f"{self.source}, rule {number}: it matches no tensor of the model; "
                    "correct its pattern or its layers"
                )

    def as_json(self) -> list[dict[str, Any]]:
        """Return the rules as they can be written to a file and read again."""
        return [
            {
                **({} if rule.match is None else {"match": rule.match}),
                **({} if rule.layers is None else {"layers": list(rule.layers)}),
                "set": rule.set,
            }
            for rule in self.rules
        ]


def _rule(method: str, rule: Any, where: str) -> Rule:
    if not isinstance(rule, Mapping) or not isinstance(rule.get("set"), Mapping):
        raise UserError(f'{where}: give {{"match": ..., "set": {{...}}}}')
    for key in rule:
        if key not in _KEYS:
            raise UserError(f"{where}: unknown key {key!r}{nearest(key, _KEYS)}")
    match, layers = rule.get("match"), rule.get("layers")
    if match is None and layers is None:
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
    try:
        settings = registry.check(method, rule["set"])
    except UserError as error:
        raise UserError(f"{where}: {error}") from None
    return Rule(match, None if layers is None else tuple(layers), settings)


def read_rules(method: str, path: Path) -> LayerRules:
    """Read layer rules from a JSON file.

    Args:
        method: Name of the method whose parameters the rules set.
        path: A list of rules as `LayerRules` takes them.

    Returns:
        The rules.

    Raises:
        UserError: The file is missing or malformed.
    """
    return LayerRules(method, read_json(path), str(path))
