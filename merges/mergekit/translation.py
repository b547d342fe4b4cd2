"""Reads a mergekit configuration, translates it, and refuses by name what is unsupported."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from common.errors import UserError, nearest
from common.yaml_files import read_yaml
from merges.engine.slices import BASE, Ranges, columns_of
from merges.mergekit.recipes import RECIPES
from merges.mergekit.settings import SOURCE, Parameters, Slice
from merges.mergekit.templates import check_template

if TYPE_CHECKING:
    from checkpoints.reading import Model
    from merges.engine.layer_rules import LayerRules

_TOP = (
    "merge_method",
    "models",
    "slices",
    "base_model",
    "parameters",
    "dtype",
    "out_dtype",
    "tokenizer_source",
    "tokenizer",
    "chat_template",
)
_REMEDIES = {
    "modules": "give models or slices",
    "tokens": "only the tokenizer's source can be given",
    "pad_to_multiple_of": "only the tokenizer's source can be given",
    "residual_weight": "leave it out",
    "base_model": "give it once, at the top level",
}
_DTYPES = ("float32", "float16", "bfloat16", "float64")


@dataclass(frozen=True)
class Translated:
    """A merge as a mergekit configuration orders it.

    Attributes:
        method: Our method.
        base: The base's folder, None without one.
        experts: The experts' folders by name, in the configuration's order.
        adapters: LoRA adapters' folders by the name of the expert that each makes.
        parameters: The method's parameters by tensor.
        dtype: Type in which to store, None if the configuration leaves it to the inputs.
        vocabulary: ``base`` or ``union`` where the configuration asks for it.
        donor: The expert whose tokenizer is asked for.
        notes: Parts of the configuration without effect, a line each.
        slices: Which layers of which experts (and of ``base``) are merged into each layer; empty
            for complete models.
        chat_template: ``auto``, a template's text, or None for the donor's.
        wide: Whether it is computed in float64, to which mergekit casts its input then.
    """

    method: str
    base: Path | None
    experts: dict[str, Path]
    adapters: dict[str, Path]
    parameters: Parameters
    dtype: str | None
    vocabulary: str | None
    donor: str | None
    notes: tuple[str, ...]
    slices: tuple[Ranges, ...] = ()
    chat_template: str | None = None
    wide: bool = False

    def resolve(
        self, base: Model | None, experts: Mapping[str, Model]
    ) -> tuple[dict[str, Any], LayerRules | None, str | None]:
        """Work out what depends on the models.

        Args:
            base: The base, opened.
            experts: The experts, opened.

        Returns:
            Parameters that are the same for every tensor, rules for the others, and the type in
            which to store (None for the base's).

        Raises:
            UserError: A parameter is missing, wrong or not supported, or models of different types
                and no type to store.
        """
        models = [*([] if base is None else [base]), *experts.values()]
        settings, rules = self.parameters.resolve(models[0].names())
        return settings, rules, self.dtype or _promoted(models)


def _promoted(models: Sequence[Model]) -> str | None:
    """Return the type that all models' values fit into, None where it is the first one's."""
    import torch

    from checkpoints.dtypes import torch_type

    first, found = models[0], set()
    changes = False
    for name in first.names():
        own = joint = torch_type(first.dtype(name))
        for model in models[1:]:
            if name in model.names():
                joint = torch.promote_types(joint, torch_type(model.dtype(name)))
        if own.is_floating_point:
            found.add(joint)
            changes |= joint != own
    if changes and len(found) > 1:
        raise UserError(f"{SOURCE}: the models are stored in different types; give dtype")
    return str(found.pop()).removeprefix("torch.") if changes else None


def _refuse(what: str, remedy: str) -> UserError:
    return UserError(f"{SOURCE}: {what} is not supported; {remedy}")


def _mapping(value: Any, what: str, keys: Sequence[str], remedy: str) -> Mapping[str, Any]:
    """Check that something is a mapping with some of the keys."""
    if not isinstance(value, Mapping):
        raise UserError(f"{SOURCE}: {what}: {value!r} is no mapping; {remedy}")
    for key in value:
        if key not in keys:
            if key in _REMEDIES:
                raise _refuse(f"{str(key)!r} in {what}", _REMEDIES[key])
            raise UserError(f"{SOURCE}: unknown key {key!r} in {what}{nearest(str(key), keys)}")
    return value


def _list(value: Any, what: str) -> list[Any]:
    if not isinstance(value, list) or not value:
        raise UserError(f"{SOURCE}: {what} must be a list with at least one item")
    return value


def _parameters(item: Mapping[str, Any], what: str) -> Mapping[str, Any]:
    value = item.get("parameters")
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        raise UserError(
            f"{SOURCE}: parameters of {what}: {value!r} is no mapping; give NAME: VALUE"
        )
    return {str(word): setting for word, setting in value.items()}


def _entries(value: Any, what: str, keys: Sequence[str]) -> dict[str, Mapping[str, Any]]:
    """Check a list of models, return its items by model."""
    found: dict[str, Mapping[str, Any]] = {}
    for item in _list(value, what):
        item = _mapping(item, what, keys, "give 'model: FOLDER'")
        model = item.get("model")
        if not isinstance(model, str):
            raise _refuse(f"a model given as {model!r} in {what}", "give its folder as text")
        if model in found:
            raise UserError(f"{SOURCE}: {what} have {model} twice; keep one")
        found[model] = item
    return found


def _whole(content: Mapping[str, Any]) -> list[Slice]:
    entries = _entries(content["models"], "models", ("model", "parameters"))
    each = {model: _parameters(item, model) for model, item in entries.items()}
    base = content.get("base_model")
    # mergekit adds a base model that is not listed behind the others.
    return [Slice(0, None, {}, each if base is None else {**each, base: each.get(base, {})})]


def _slices(content: Mapping[str, Any]) -> tuple[list[Slice], list[Ranges]]:
    """Return the slices with their parameters, and their models' layers, in the order of lists."""
    found: list[Slice] = []
    parts: list[Ranges] = []
    reached = 0
    for item in _list(content["slices"], "slices"):
        item = _mapping(item, "a slice", ("sources", "parameters"), "give its sources")
        entries = _entries(item.get("sources"), "sources", ("model", "layer_range", "parameters"))
        ranges: dict[str, tuple[int, int]] = {}
        for model, entry in entries.items():
            limits = entry.get("layer_range")
            if not isinstance(limits, list) or [type(n) for n in limits] != [int, int]:
                raise UserError(f"{SOURCE}: layer_range {limits!r}: give [first, last + 1]")
            first, end = limits
            if not 0 <= first < end:
                raise UserError(
                    f"{SOURCE}: layer_range {limits!r} of {model} has no layers; give [first, "
                    "last + 1], counted from 0"
                )
            ranges[model] = (first, end)
        each = {model: _parameters(entry, model) for model, entry in entries.items()}
        parts.append(ranges)
        shifts = {model: first - reached for model, (first, _) in ranges.items()}
        last = reached + end - first - 1
        found.append(Slice(reached, last, _parameters(item, "a slice"), each, shifts))
        reached = last + 1
    return found, parts


def _by_column(
    slices: Sequence[Slice], columns: Mapping[str, Sequence[str]], texts: Mapping[str, str]
) -> list[Slice]:
    """Give the slices' parameters to the columns that the engine merges.

    Args:
        slices: The slices, with the parameters of their sources by the configuration's names.
        columns: Our names of the models of each column, slice by slice.
        texts: What the configuration calls them.
    """
    found = []
    for number, part in enumerate(slices):
        each = {name: part.each[texts[models[number]]] for name, models in columns.items()}
        each |= {text: own for text, own in part.each.items() if text not in texts.values()}
        shifts = {name: part.shifts[texts[models[number]]] for name, models in columns.items()}
        found.append(replace(part, each=each, shifts=shifts))
    return found


def _read(path: Path) -> Mapping[str, Any]:
    content = read_yaml(path, aliases=False)
    if not isinstance(content, Mapping) or not isinstance(content.get("merge_method"), str):
        raise UserError(f"{path}: no merge_method; give a mergekit configuration")
    method = content["merge_method"]
    if method not in RECIPES:
        raise _refuse(f"merge_method {method}", f"supported are {', '.join(RECIPES)}")
    _mapping(content, "the configuration", _TOP, "")
    if ("models" in content) == ("slices" in content):
        raise UserError(f"{SOURCE}: give either models or slices")
    if not isinstance(content.get("base_model"), str | None):
        raise _refuse(f"base_model {content['base_model']!r}", "give its folder as text")
    return content


def _dtype(content: Mapping[str, Any]) -> str | None:
    for key in ("out_dtype", "dtype"):
        if (value := content.get(key)) is not None:
            name = str(value).removeprefix("torch.")
            if name not in _DTYPES:
                raise UserError(f"{SOURCE}: {key} {name!r} is unknown{nearest(name, _DTYPES)}")
            return name
    return None


def _tokenizer(content: Mapping[str, Any], names: Mapping[str, str]) -> tuple[str | None, ...]:
    """Return the vocabulary policy and the donor that a configuration asks for."""
    source = content.get("tokenizer_source")
    if (about := content.get("tokenizer")) is not None:
        if source is not None:
            raise UserError(f"{SOURCE}: give tokenizer_source or tokenizer, not both")
        source = _mapping(about, "tokenizer", ("source",), "give its source").get("source", "union")
    if source is None:
        return None, None
    if source in ("base", "union"):
        return source, None
    if source == content.get("base_model"):
        return "base", None
    donor = next((name for name, text in names.items() if text == source), None)
    if donor is None:
        raise _refuse(f"tokenizer source {source!r}", "give base, union or one of the models")
    return "base", donor  # the vocabulary of that model, instead of the base's


class _Places:
    """Finds the folders of the models that a configuration names."""

    def __init__(self, top: Path, located: Mapping[str, Path]) -> None:
        self._top = top
        self._located = located

    def _find(self, text: str) -> Path:
        for path in (self._located.get(text), Path(text), self._top / text):
            # Unlike Path.is_dir, this takes a name of any length.
            if path is not None and os.path.isdir(path):
                return path
        what = "no folder" if "@" not in text else "revisions are not fetched, and no folder"
        raise UserError(
            f"{SOURCE}: {what} {text!r}; fetch the model and say where it is with "
            f"--locate {text}=DIR"
        )

    def find(self, text: str) -> tuple[Path, Path | None]:
        """Return a model's folder and its LoRA adapter's, as in ``model+adapter``."""
        model, _, adapter = text.partition("+")
        return self._find(model), self._find(adapter) if adapter else None


def _short_names(models: Sequence[str]) -> dict[str, str]:
    """Name models by the last part of their path in the configuration."""
    names: dict[str, str] = {}
    for text in models:
        short = re.sub(r"[^\w.-]", "_", Path(text).name)
        while short in names or short == "base":
            short += "_"
        names[short] = text
    return names


def translate(path: Path, located: Mapping[str, Path] | None = None) -> Translated:
    """Read a mergekit configuration.

    Args:
        path: The YAML file.
        located: Folders of models by the names that the configuration gives them.

    Raises:
        UserError: The file is no configuration, a model is not there, or it asks for what is not
            supported: the message names it.
    """
    content = _read(path)
    method = content["merge_method"]
    recipe = RECIPES[method]
    base = content.get("base_model")
    slices, ranges = (_whole(content), []) if "models" in content else _slices(content)
    if method == "slerp":
        if any(base not in part.each for part in slices):
            raise UserError(f"{SOURCE}: slerp needs base_model, and as one of its two models")
        for number, part in enumerate(slices):  # t = 0 is the base model
            each = dict(sorted(part.each.items(), key=lambda item: item[0] != base))
            slices[number] = replace(part, each=each)
    models = list(dict.fromkeys(model for part in slices for model in part.each))
    names = _short_names([m for m in models if recipe.base_is_expert or m != base])
    vocabulary, donor = _tokenizer(content, names)
    dtype = _dtype(content)
    ours = {text: name for name, text in names.items()}
    parts = [
        {ours.get(m, BASE): own[m] for m in part.each}
        for part, own in zip(slices, ranges, strict=False)
    ]
    columns = columns_of(parts) if parts else {}
    titles: Mapping[str, str] = names
    if columns and columns.keys() != names.keys():
        slices = _by_column(slices, columns, names)
        titles = {name: name for name in columns}
    parameters = Parameters(
        method,
        recipe,
        titles,
        slices,
        _parameters(content, "the configuration"),
        {**recipe.fixed, **(recipe.with_base if base else {})},
    )
    places = _Places(path.parent, located or {})
    found = {name: places.find(text) for name, text in names.items()}
    root, adapter = places.find(base) if base else (None, None)
    if adapter:
        raise _refuse(f"an adapter on the base model ({base})", "fold it into the base first")
    return Translated(
        recipe.ours,
        root,
        {name: model for name, (model, _) in found.items()},
        {name: adapter for name, (_, adapter) in found.items() if adapter},
        parameters,
        dtype,
        vocabulary,
        donor,
        parameters.notes,
        tuple(parts),
        check_template(content.get("chat_template")),
        str(content.get("dtype")).removeprefix("torch.") == "float64",
    )
