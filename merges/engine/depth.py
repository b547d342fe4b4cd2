"""A model presented with other layers than its own: some left out, some there twice."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from checkpoints.architecture import architecture, parsed
from checkpoints.loading import DEPTHS
from checkpoints.names import text_part
from checkpoints.presented import Place, Presented
from common.errors import UserError
from merges.engine.stacks import Stacks, layer_of

if TYPE_CHECKING:
    from checkpoints.reading import Model

# Lists of a configuration with an entry for each layer, which goes where the layer goes.
PER_LAYER = ("layer_types", "no_rope_layers", "mlp_layer_types", "layers_block_type")


def within(name: str) -> str | None:
    """Return a parameter's name within its layer, None for one of no layer."""
    layer = layer_of(name)
    return None if layer is None else name.removeprefix(f"{layer.stack}.{layer.number}.")


def layers_of(model: Model) -> list[dict[str, str]]:
    """Return the parameters of a model's layers: by layer, their names by that within the layer.

    Raises:
        UserError: The model has no layers, or several stacks of them.
    """
    stacks = Stacks(model.names())
    if len(stacks.limits) != 1:
        has = f"several stacks of layers ({stacks.describe()})" if stacks.limits else "no layers"
        raise UserError(
            f"{model.path}: has {has}, and slices are for models with one stack; merge complete "
            "models instead"
        )
    ((_, last),) = stacks.limits.values()
    found: list[dict[str, str]] = [{} for _ in range(last + 1)]
    for name in model.names():
        if (layer := layer_of(name)) is not None:
            found[layer.number][within(name) or ""] = name
    return found


def kinds(config: Mapping[str, Any], depth: int) -> dict[str, list]:
    """Return what a configuration says of each of its layers, such as which of them slide.

    Its class is asked, which knows the defaults of keys that are left out.
    """
    built = parsed(config)
    about = vars(built.get_text_config()) if built is not None else {**config, **text_part(config)}
    found = ((key, about.get(key)) for key in PER_LAYER)
    return {key: own for key, own in found if isinstance(own, list) and len(own) == depth}


def with_layers(
    config: Mapping[str, Any], depth: int, said: Mapping[str, list], where: object
) -> dict[str, Any]:
    """Return a configuration for another number of layers.

    Args:
        config: A model's configuration.
        depth: The number of layers.
        said: What it is to say of each layer by itself, see `kinds`. Keys that it does not have
            are added only where its class would say something else.
        where: What to call it in messages.

    Raises:
        UserError: It does not say how many layers there are, or its class takes no such layers.
    """
    text = text_part(config)
    inner = text or config
    key = next((key for key in DEPTHS if key in inner), None)
    remedy = "such layers cannot be stacked; take others"
    if key is None:
        raise UserError(f"{where}: its config.json has no number of layers; {remedy}")
    changed = {**inner, key: depth}
    # A list that is not in the file has grown with the number, unless its class says otherwise.
    unknown = parsed(config) is None
    for lists in ({k: v for k, v in said.items() if isinstance(inner.get(k), list)}, said):
        changed |= lists
        found = {**config, "text_config": changed} if text else changed
        if kinds(found, depth) == dict(said) and (parsed(found) is None) == unknown:
            return found
    raise UserError(f"{where}: its config.json does not fit {depth} of its layers; {remedy}")


def with_depth(model: Model, layers: Sequence[int], config: dict[str, Any]) -> Model:
    """Present a model with other layers.

    Args:
        model: The model, with one stack of layers.
        layers: For each layer, the number of the model's layer that it is.
        config: The configuration for so many layers.

    Raises:
        UserError: The model has no layers, or several stacks of them.
    """
    own = layers_of(model)
    names = {name: name for name in model.names() if layer_of(name) is None}
    for number, layer in enumerate(layers):
        for within, name in own[layer].items():
            start = name.removesuffix(within).removesuffix(f"{layer}.")
            names[f"{start}{number}.{within}"] = name
    places = {new: Place(old, model.shape(old)) for new, old in names.items()}
    found = Presented(model, places, config)
    found.notes, found.copies = model.notes, model.copies
    return found


def check_class(model: Model, before: Model) -> None:
    """Refuse a model whose class has other parameters in some layer than are there.

    Args:
        model: The model with other layers.
        before: The model that it was made of; what its own class does not know stays unknown.

    Raises:
        UserError: A layer is of another kind than the configuration makes it.
    """
    built, own = architecture(model.config), architecture(before.config)
    if built is None or own is None:
        return

    new = {within(name) for name in model.names() if name not in built.weights}
    old = {within(name) for name in before.names() if name not in own.weights}
    if odd := sorted(filter(None, new - old)):
        raise UserError(
            f"{model.path}: a layer with {odd[0]} comes to a place where config.json makes another "
            "kind of layer; such layers cannot be stacked; take others"
        )
