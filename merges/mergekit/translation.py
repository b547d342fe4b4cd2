"""Runs an ordinary mergekit configuration: its words in ours, and plainly what has none."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from common.errors import UserError, nearest
from common.files import read_json
from merges.mergekit.recipes import IDLE, IGNORED, RECIPES, Recipe, Word

_LAYER = re.compile(r"\blayers\.(\d+)\.")
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
    "modules",
)
_DTYPES = ("float32", "float16", "bfloat16", "float64")
_VOCABULARIES = {"base": "base", "union": "union"}


@dataclass(frozen=True)
class Slice:
    """A range of layers with parameters of its own.

    Attributes:
        first, last: Its layers, `last` included.
        parameters: Of the slice.
        each: By model, of the slice's source.
    """

    first: int
    last: int
    parameters: Mapping[str, Any]
    each: Mapping[str, Mapping[str, Any]]

    def position(self, layer: int) -> float:
        """Return where in the slice a layer is, from 0 to 1."""
        return 1.0 if self.last == self.first else (layer - self.first) / (self.last - self.first)


def _number(value: Any) -> Any:
    """Read numbers that YAML takes for text, such as 1e-3."""
    if isinstance(value, str):
        try:
            return float(value)
        except ValueError:
            return value
    return value


def _value(setting: Any, tensor: str, position: float) -> Any:
    """Evaluate a setting for a tensor: a value, a gradient over layers, or values by filter.

    A list of numbers is piecewise linear over the slice's layers. Of values by filter the first
    counts whose text is part of the tensor's name. None if there is none.
    """
    if isinstance(setting, Mapping):
        setting = [setting]
    if not isinstance(setting, list):
        return _number(setting)
    if any(isinstance(item, Mapping) for item in setting):
        for item in setting:
            text = item.get("filter")
            if text in (None, "*") or text in tensor:
                return _value(item.get("value"), tensor, position)
        return None
    if not setting:
        return None
    values = [_number(item) for item in setting]
    place = position * (len(values) - 1)
    if any(isinstance(value, bool | str) for value in values):
        return values[int(place)]
    low = int(place)
    high = min(low + 1, len(values) - 1)
    share = place - low
    return (1 - share) * values[low] + share * values[high]


class Parameters:
    """A mergekit configuration's parameters for each tensor, in our words.

    It is what `merges.engine` takes as `parameters_for`. Precedence is mergekit's: of a slice's
    source (or of a model), of the slice, of the whole configuration. Tensors of no layer take the
    first value of a gradient, and a slice's parameters from the first slice.
    """

    def __init__(
        self,
        recipe: Recipe,
        names: Mapping[str, str],
        slices: Sequence[Slice],
        shared: Mapping[str, Any],
        fixed: Mapping[str, Any],
    ) -> None:
        self._recipe = recipe
        self._names = names
        self._slices = slices
        self._shared = shared
        self._fixed = fixed

    def _find(self, word: str, about: Word, tensor: str, model: str | None) -> Any:
        layer = _LAYER.search(tensor)
        number = None if layer is None else int(layer[1])
        part = next(
            (s for s in self._slices if number is not None and s.first <= number <= s.last),
            self._slices[0],
        )
        position = 0.0 if number is None else part.position(number)
        for settings in (part.each.get(model, {}), part.parameters, self._shared):
            if word in settings:
                value = _value(settings[word], tensor, position)
                if value is not None:
                    return value
        if about.default is None:
            of = f" of {model}" if model else ""
            raise UserError(f"mergekit configuration: no {word}{of} for tensor {tensor}; give one")
        return about.default

    def __call__(self, tensor: str) -> dict[str, Any]:
        """Return our method's parameters for a tensor."""
        values = dict(self._fixed)
        for word, about in self._recipe.shared.items():
            values[about.ours] = about.turn(self._find(word, about, tensor, None))
        if self._recipe.ours == "nuslerp":
            flat = self._find("nuslerp_flatten", Word("along", True), tensor, None)
            columns = self._find("nuslerp_row_wise", Word("along", False), tensor, None)
            values["along"] = "tensor" if flat else "columns" if columns else "rows"
        for word, about in self._recipe.each.items():
            values[about.ours] = {
                name: self._find(word, about, tensor, model) for name, model in self._names.items()
            }
        return values

    def check_used(self, tensors: Sequence[str]) -> None:
        """Do nothing: mergekit's filters may match nothing."""

    def as_json(self) -> list[dict[str, Any]]:
        """Return the parameters as they stand in the configuration."""
        return [
            {"parameters": self._shared},
            *(
                {"layers": [s.first, s.last], "parameters": s.parameters, "models": s.each}
                for s in self._slices
            ),
        ]


@dataclass(frozen=True)
class Translated:
    """A merge as a mergekit configuration orders it.

    Attributes:
        method: Our method.
        base: The base's folder, None without one.
        experts: The experts' folders by name, in the configuration's order.
        adapters: LoRA adapters' folders by the name of the expert that each makes.
        parameters: The method's parameters by tensor.
        dtype: Stored type, None for the inputs'.
        vocabulary: ``base`` or ``union`` where the configuration asks for it.
        donor: Whose configuration and tokenizer the result gets, where it is said.
    """

    method: str
    base: Path | None
    experts: dict[str, Path]
    adapters: dict[str, Path]
    parameters: Parameters
    dtype: str | None
    vocabulary: str | None
    donor: str | None


def _refuse(what: str, mend: str) -> UserError:
    return UserError(f"mergekit configuration: {what} is not supported; {mend}")


class _Places:
    """Finds the folders of the models that a configuration names."""

    def __init__(self, top: Path, located: Mapping[str, Path]) -> None:
        self._top = top
        self._located = located

    def find(self, text: str) -> Path:
        for path in (self._located.get(text), Path(text), self._top / text):
            if path is not None and path.is_dir():
                return path
        raise UserError(
            f"mergekit configuration: no folder {text!r}; fetch the model and say where it is with "
            f"--locate {text}=DIR"
        )

    def model(self, text: Any) -> tuple[Path, Path | None]:
        """Return a model's folder and its LoRA adapter's, as in ``model+adapter``."""
        if not isinstance(text, str):
            raise _refuse(f"a model given as {text!r}", "give its folder as text")
        if "@" in Path(text).name and text not in self._located:
            raise _refuse(f"the revision in {text!r}", "fetch it, and give --locate")
        model, _, adapter = text.partition("+")
        return self.find(model), self.find(adapter) if adapter else None


def _slices(content: Mapping[str, Any], layers: int) -> list[Slice]:
    if "models" in content:
        each = {item["model"]: item.get("parameters") or {} for item in content["models"]}
        return [Slice(0, layers - 1, {}, each)]
    found, reached = [], 0
    for entry in content["slices"]:
        sources = entry.get("sources") or []
        ranges = {tuple(source["layer_range"]) for source in sources}
        if len(ranges) != 1 or next(iter(ranges))[0] != reached:
            raise _refuse(
                "a slice that moves, repeats or leaves out layers",
                "every source of a slice must have the same layer_range, and the slices must "
                "follow each other from 0",
            )
        first, reached = next(iter(ranges))
        each = {source["model"]: source.get("parameters") or {} for source in sources}
        found.append(Slice(first, reached - 1, entry.get("parameters") or {}, each))
    if reached != layers:
        raise _refuse(f"leaving out layers ({reached} of {layers} in the slices)", "name them all")
    return found


def _check(content: Any, path: Path) -> Recipe:
    if not isinstance(content, Mapping) or "merge_method" not in content:
        raise UserError(f"{path}: no merge_method; give a mergekit configuration")
    for key in content:
        if key not in _TOP:
            raise UserError(f"{path}: unknown key {key!r}{nearest(str(key), _TOP)}")
    method = content["merge_method"]
    if method not in RECIPES:
        raise _refuse(f"merge_method {method}", f"supported are {', '.join(RECIPES)}")
    if content.get("modules"):
        raise _refuse("'modules'", "give models or slices")
    if content.get("chat_template"):
        raise _refuse("'chat_template'", "the donor's is copied; leave the key out")
    if bool(content.get("models")) == bool(content.get("slices")):
        raise UserError(f"{path}: give either models or slices")
    for key in ("dtype", "out_dtype"):
        if content.get(key) not in (None, *_DTYPES):
            raise UserError(f"{path}: {key} {content[key]!r}{nearest(str(content[key]), _DTYPES)}")
    return RECIPES[method]


def _check_words(method: str, recipe: Recipe, slices: Sequence[Slice], top: Mapping) -> None:
    idle = (*IGNORED, *IDLE.get(method, ()))
    known = [*recipe.shared, *recipe.each, *idle]
    for settings in (
        top,
        *(s.parameters for s in slices),
        *(e for s in slices for e in s.each.values()),
    ):
        for word in settings:
            if word not in known:
                raise UserError(
                    f"mergekit configuration: {method} has no parameter {word!r} here"
                    f"{nearest(word, known)}"
                )


def _tokenizer(content: Mapping[str, Any]) -> str | None:
    source = content.get("tokenizer_source")
    about = content.get("tokenizer")
    if about:
        for key in about:
            if key != "source":
                raise _refuse(f"'tokenizer: {key}'", "only its source can be given")
        source = about.get("source", "union")
    return source


def translate(path: Path, located: Mapping[str, Path] | None = None) -> Translated:
    """Read a mergekit configuration.

    Args:
        path: The YAML file.
        located: Folders of models by the names that the configuration gives them.

    Returns:
        The merge it orders.

    Raises:
        UserError: The file is no configuration, a model is not there, or it asks for what is not
            supported: the message names it.
    """
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; correct the path") from None
    except yaml.YAMLError as error:
        problem = str(error).replace("\n", " ")
        raise UserError(f"{path}: not valid YAML ({problem}); correct the file") from None
    recipe = _check(content, path)
    places = _Places(path.parent, located or {})
    base = content.get("base_model")
    entries = content.get("models") or content["slices"][0].get("sources") or []
    named = list(dict.fromkeys(entry["model"] for entry in entries))
    if recipe.ours == "slerp":
        if base not in named:
            raise UserError(f"{path}: slerp's base_model must be one of its two models")
        named.sort(key=lambda name: name != base)  # t = 0 is the base model
    experts = named if recipe.base_is_expert else [name for name in named if name != base]
    names: dict[str, str] = {}
    for text in experts:
        short = re.sub(r"[^\w.-]", "_", Path(text.rstrip("/")).name)
        while short in names or short == "base":
            short += "_"
        names[short] = text
    found = {name: places.model(text) for name, text in names.items()}
    root = places.model(base)[0] if base else None
    some = root or next(iter(found.values()))[0]
    slices = _slices(content, int(read_json(some / "config.json")["num_hidden_layers"]))
    top = content.get("parameters") or {}
    _check_words(content["merge_method"], recipe, slices, top)
    source = _tokenizer(content)
    donor = next((name for name, text in names.items() if text == source), None)
    if source not in (None, *_VOCABULARIES, base) and donor is None:
        raise _refuse(f"tokenizer source {source!r}", "give base, union or one of the models")
    return Translated(
        recipe.ours,
        root,
        {name: model for name, (model, _) in found.items()},
        {name: adapter for name, (_, adapter) in found.items() if adapter},
        Parameters(
            recipe, names, slices, top, {**recipe.fixed, **(recipe.with_base if base else {})}
        ),
        content.get("out_dtype") or content.get("dtype"),
        _VOCABULARIES.get(source),
        "base" if source == base and base else donor,
    )
