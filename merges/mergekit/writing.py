"""A recipe of ours as a mergekit configuration, where mergekit can say the same."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import yaml

from merges.engine import registry
from merges.mergekit.recipes import RECIPES, Recipe, Word

# mergekit draws other random masks, so that the same settings give another model.
_RANDOM = ("dare_ties", "dare_linear", "della", "della_linear")
_NOWHERE = object()  # a value that mergekit cannot say


def _said(word: Word, value: Any) -> Any:
    """Find mergekit's value for one of ours."""
    tried = (True, False) if isinstance(word.default, bool) else (value,)
    return next((each for each in tried if word.turn(each) == value), _NOWHERE)


def _shares(word: Word, value: Any, experts: Sequence[str]) -> Sequence[Any]:
    """Spread a parameter over the experts; where ours leaves it out, all have the same."""
    if value is None:
        value = 1.0 if word.default is None else word.default
    if isinstance(value, Mapping):
        return [value[expert] for expert in experts]
    return value if isinstance(value, list) else [value] * len(experts)


def _words(
    recipe: Recipe, given: Mapping[str, Any], experts: Sequence[str]
) -> tuple[dict, list[dict]] | None:
    """Say parameters in mergekit's words: those of all models, and each expert's own."""
    left = dict(given)
    shared = {name: _said(word, left.pop(word.ours, None)) for name, word in recipe.shared.items()}
    own: list[dict[str, Any]] = [{} for _ in experts]
    for name, word in recipe.each.items():
        values = _shares(word, left.pop(word.ours, None), experts)
        for entry, value in zip(own, values, strict=True):
            entry[name] = value
    expected = {
        name: entry.default for name, entry in registry.info(recipe.ours).parameters.items()
    }
    expected |= recipe.fixed
    fits = all(name in expected and expected[name] == value for name, value in left.items())
    return (shared, own) if fits and _NOWHERE not in shared.values() else None


def mergekit_yaml(recipe: Mapping[str, Any]) -> str | None:
    """Write a recipe as a mergekit configuration.

    Args:
        recipe: The parameters in a merge's manifest.

    Returns:
        The configuration as YAML, in which models have the recipe's names; None where mergekit
        has no word for a part of it.
    """
    experts, method = recipe["experts"], recipe["method"]
    plain = recipe["embeddings_and_norms"] == "merged" and "set_layers" not in recipe
    plain = plain and not recipe.get("donor") and recipe.get("vocabulary") in (None, "refuse")
    for name, about in RECIPES.items() if plain and method not in _RANDOM else ():
        if about.ours != method or about.with_base:
            continue
        if words := _words(about, recipe["set"], experts):
            shared, own = words
            models = [
                {"model": expert, **({"parameters": values} if values else {})}
                for expert, values in zip(experts, own, strict=True)
            ]
            base = experts[0] if method == "slerp" else None if about.base_is_expert else "base"
            content = {
                "merge_method": name,
                **({"base_model": base} if base else {}),
                "models": models,
                **({"parameters": shared} if shared else {}),
                **({"dtype": recipe["dtype"]} if recipe.get("dtype") else {}),
            }
            return yaml.safe_dump(content, sort_keys=False, allow_unicode=True)
    return None
