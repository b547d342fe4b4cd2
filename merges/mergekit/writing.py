"""A recipe of ours as a mergekit configuration, where mergekit can say the same."""

from __future__ import annotations

import itertools
import json
import re
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

import yaml

from checkpoints.names import kind
from common.errors import UserError
from merges.engine import registry
from merges.engine.checks import numbers_by_expert
from merges.engine.layer_rules import LayerRules
from merges.engine.slices import Slices, recorded
from merges.engine.stacks import layer_of, renumbered
from merges.mergekit.recipes import RECIPES, Recipe

# What draws random masks where its density is below 1.
_RANDOM = ("dare_ties", "dare_linear", "della", "della_linear")
MASKS = (
    "mergekit draws other random masks than this merge did: the weights that it makes differ from "
    "it as those of another seed do"
)
# With a lambda of 0 these leave the base as it is.
_SCALED = {about.ours for about in RECIPES.values() if "lambda" in about.shared}
_Words = dict[tuple[str | None, str], Any]  # by expert (None: of all) and mergekit's word


def _refuse(part: str, why: str) -> UserError:
    return UserError(
        f"mergekit 0.1.5 cannot express {part}: {why}; change it, or run the merge with "
        "python -m merges"
    )


def _shown(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


def _shared(about: Recipe, left: dict[str, Any]) -> _Words:
    """Say the parameters of all models, and remove them from those that are left to say."""
    options = [
        (True, False) if isinstance(word.default, bool) else (left[word.ours],)
        for word in about.shared.values()
    ]
    # All that the words can say; one of them may be made of several words.
    sayings = [
        (
            about.join(
                {w.ours: w.turn(v) for w, v in zip(about.shared.values(), chosen, strict=True)}
            ),
            chosen,
        )
        for chosen in itertools.product(*options)
    ]
    said, chosen = next(
        ((ours, c) for ours, c in sayings if all(left[n] == v for n, v in ours.items())),
        ({}, ()),
    )
    if about.shared and not said:
        name = next(n for n in sayings[0][0] if all(o[n] != left[n] for o, _ in sayings))
        known = " or ".join(dict.fromkeys(_shown(ours[name]) for ours, _ in sayings))
        raise _refuse(f"{name}={_shown(left[name])}", f"it has {known}")
    for name in said:
        del left[name]
    return {(None, word): value for word, value in zip(about.shared, chosen, strict=True)}


def _words(about: Recipe, values: Mapping[str, Any], experts: Sequence[str], based: bool) -> _Words:
    """Say one tensor's parameters in mergekit's words.

    Args:
        about: mergekit's method.
        values: All parameters of ours, numbers of each expert by name.
        experts: The experts' names.
        based: Whether the configuration has a base model.
    """
    left = dict(values)
    words = _shared(about, left)
    for word, entry in about.each.items():
        numbers = left.pop(entry.ours)
        for expert in experts:
            words[expert, word] = 1.0 if numbers is None else numbers[expert]
    fixed = {name: p.default for name, p in registry.info(about.ours).parameters.items()}
    fixed |= {**about.fixed, **(about.with_base if based else {})}
    for name, value in left.items():
        if fixed[name] != value:
            raise _refuse(f"{name}={_shown(value)}", f"it has {_shown(fixed[name])} alone")
    return words


def _texts(tensor: str) -> Iterator[str]:
    """Return filters that may give a tensor's value: its layer, its place in it, its name."""
    if layer := layer_of(tensor):
        found = re.match(rf"{re.escape(layer.stack)}\.{layer.number}\.", tensor)
        if found:
            yield found[0]
            yield tensor[found.end() :]
    yield tensor


def _setting(values: Mapping[str, Any]) -> Any:
    """Return a value, or values by filter, that give each tensor its value.

    A filter is part of a tensor's name, and the first that fits counts. Each one here is part of
    the names of tensors with one value alone, so that their order has no meaning.

    Raises:
        UserError: A name is part of another, whose value differs.
    """
    shown = {tensor: _shown(value) for tensor, value in values.items()}
    counts = Counter(shown.values())
    common = max(counts, key=lambda text: counts[text])
    filters: dict[str, Any] = {}
    for tensor, value in values.items():
        if shown[tensor] == common or any(text in tensor for text in filters):
            continue
        for text in _texts(tensor):
            if {shown[other] for other in values if text in other} == {shown[tensor]}:
                filters[text] = value
                break
        else:
            raise _refuse(
                f"a parameter of {tensor} alone", "its filters also take tensors with longer names"
            )
    if not filters:
        return json.loads(common)
    listed = [{"filter": text, "value": value} for text, value in filters.items()]
    return [*listed, {"value": json.loads(common)}]


def _check_said(recipe: Mapping[str, Any]) -> None:
    """Refuse what no method of mergekit has a word for."""
    if recipe["method"] not in {about.ours for about in RECIPES.values()}:
        raise _refuse(f"the method {recipe['method']}", "it has none like it")
    if recipe["embeddings_and_norms"] == "base" and recipe["method"] not in _SCALED:
        raise _refuse("embeddings and norms of the base", "this method has no lambda to set to 0")
    if recipe.get("donor"):
        raise _refuse(f"the donor {recipe['donor']}", "it chooses the configuration's model itself")
    if recipe.get("align"):
        raise _refuse(f"the alignment {recipe['align']}", "it moves no units")
    if (vocabulary := recipe.get("vocabulary")) not in (None, "refuse"):
        why = "it puts appended tokens in another order and cuts rows without a token off"
        raise _refuse(f"the vocabulary policy {vocabulary}", why)


def _by_tensor(
    about: Recipe, recipe: Mapping[str, Any], tensors: Collection[str], based: bool
) -> dict[str, _Words]:
    """Say the parameters of every tensor in mergekit's words."""
    info, rules = registry.info(about.ours), None
    if recipe.get("set_layers"):
        rules = LayerRules(about.ours, recipe["set_layers"])
        rules.check_used(tensors)
    found: dict[str, _Words] = {}
    known: dict[str, _Words] = {}
    for tensor in tensors:
        values = {**recipe["set"], **(rules(tensor) if rules else {})}
        if (key := _shown(values)) not in known:
            own = numbers_by_expert(info, values, recipe["experts"])
            known[key] = _words(about, own, recipe["experts"], based)
        kept = recipe["embeddings_and_norms"] == "base" and kind(tensor) in ("embedding", "norm")
        found[tensor] = known[key] | ({(None, "lambda"): 0.0} if kept else {})
    return found


def _check_masks(name: str, by_tensor: Mapping[str, _Words], experts: Sequence[str]) -> bool:
    """Return whether masks are drawn; refuse probabilities with which mergekit ends in an error."""
    drawn = False
    for words in by_tensor.values() if name in _RANDOM else ():
        for expert in experts:
            density, half = words[expert, "density"], words.get((expert, "epsilon"), 0.0)
            if density < 1:
                drawn = True
                if (expert, "epsilon") in words and not 0 < density - half < density + half < 1:
                    why = "it wants density - epsilon and density + epsilon between 0 and 1"
                    raise _refuse(f"density={density} with epsilon={half}", why)
    return drawn


def _own(words: Mapping[str, _Words], owner: str | None) -> dict[str, Any]:
    """Return the parameters of an expert (None: of all) for some tensors."""
    named = [word for whose, word in next(iter(words.values())) if whose == owner]
    return {word: _setting({t: own[owner, word] for t, own in words.items()}) for word in named}


def _models(
    experts: Sequence[str], places: Mapping[str, str], by_tensor: Mapping[str, _Words]
) -> dict[str, Any]:
    """List complete models, each with its parameters."""
    found = [(places[expert], _own(by_tensor, expert)) for expert in experts]
    return {"models": [{"model": m, **({"parameters": own} if own else {})} for m, own in found]}


def _slices(
    slices: Slices, places: Mapping[str, str], by_tensor: Mapping[str, _Words]
) -> dict[str, Any]:
    """List slices, each with its models, their layers and parameters."""
    found = []
    for number, part in enumerate(slices.parts):
        words = {t: own for t, own in by_tensor.items() if slices.part_of(t) == number}
        models = {names[number]: column for column, names in slices.columns.items()}
        sources = []
        for model, limits in part.items():
            # Filters of a parameter that each model has are compared with the model's own names.
            shift = limits[0] - slices.owners.index(number)
            named = {renumbered(tensor, shift): own for tensor, own in words.items()}
            own = _own(named, models[model]) if model in models else {}
            source = {"model": places[model], "layer_range": list(limits)}
            sources.append(source | ({"parameters": own} if own else {}))
        found.append({"sources": sources})
    return {"slices": found}


def mergekit_yaml(
    recipe: Mapping[str, Any],
    tensors: Collection[str],
    stored: Collection[str],
    places: Mapping[str, str] | None = None,
) -> tuple[str, bool]:
    """Write a recipe as a mergekit configuration.

    mergekit computes in float32 there and rounds once, as our engine does, so that the weights are
    the same up to the order of float32 operations. Parameters that differ between tensors become
    filters.

    Args:
        recipe: The parameters in a merge's manifest.
        tensors: The names of the merge's tensors.
        stored: The types in which they are stored, by torch's names.
        places: What to call the models, by the recipe's names; None for these names.

    Returns:
        The configuration as YAML, and whether mergekit draws other random masks, which a
        comment in it then says.

    Raises:
        UserError: mergekit has no word for a part of the recipe; the message names it.
    """
    _check_said(recipe)
    experts, method = list(recipe["experts"]), recipe["method"]
    places = places or {name: name for name in ("base", *experts)}
    name, about = next(item for item in RECIPES.items() if item[1].ours == method)
    if len(stored) > 1:
        raise _refuse(f"the types {', '.join(sorted(stored))} in one model", "it stores one")
    based = not about.base_is_expert
    if about.with_base:
        based = recipe["set"]["origin"] == "base"
    slices = recorded(recipe["slices"]) if recipe.get("slices") else None
    columns = slices.columns if slices else {name: [name] for name in experts}
    experts = list(columns)
    by_tensor = _by_tensor(about, {**recipe, "experts": experts}, tensors, based)
    drawn = _check_masks(name, by_tensor, experts)
    shared = _own(by_tensor, None)
    # As a base model, slerp takes the one at which it begins.
    starts = dict.fromkeys(places[model] for model in columns[experts[0]])
    if method == "slerp" and len(starts) > 1:
        raise _refuse("slerp from another model in each slice", "it begins at one base model")
    base = next(iter(starts)) if method == "slerp" else places["base"] if based else None
    used = [*(places[n] for n in recipe["experts"]), *([places["base"]] if based else [])]
    if twice := next((place for place in used if used.count(place) > 1), None):
        raise _refuse(f"{twice} as two models", "it takes a folder once")
    (kept,) = stored
    computed = "float64" if "float64" in (recipe["compute_dtype"], kept) else "float32"
    content = {
        "merge_method": name,
        **({"base_model": base} if base else {}),
        **(_slices(slices, places, by_tensor) if slices else _models(experts, places, by_tensor)),
        **({"parameters": shared} if shared else {}),
        "dtype": computed,
        "out_dtype": kept,
        **({"chat_template": recipe["chat_template"]} if recipe.get("chat_template") else {}),
    }
    text = yaml.safe_dump(content, sort_keys=False, allow_unicode=True)
    return (f"# {MASKS}.\n" if drawn else "") + text, drawn
