"""Models that hold the same weights in unlike files, brought to one set of names."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from checkpoints.architecture import architecture, stacks_experts
from checkpoints.dtypes import torch_name
from checkpoints.layout import read_object
from checkpoints.names import is_embedding, is_head, text_part
from checkpoints.presented import Place, Presented, apart, whole
from checkpoints.reading import Model
from checkpoints.stored import TIE, head_and_embedding, says_tied, with_tie, without_quantisation
from common.errors import UserError
from common.files import write_json

_STACKED = re.compile(r"(.+\.experts)\.(gate_up_proj|down_proj)$")
_SINGLE = re.compile(r"(.+\.experts)\.(\d+)\.(\w+)\.weight$")
_MATRICES = (("w1", "w3", "w2"), ("gate_proj", "up_proj", "down_proj"))


@dataclass(frozen=True)
class Settled:
    """Models with the same weights under the same names, as far as they can be brought there.

    Attributes:
        base: The base, or the model in its place.
        experts: The experts by name.
        notes: What was done, a sentence each.
    """

    base: Model
    experts: dict[str, Model]
    notes: tuple[str, ...] = ()


def settle(base: Model, experts: Mapping[str, Model]) -> Settled:
    """Bring models that differ in what is stored, not in what they are, to one set of names.

    A head that one model ties and another stores becomes a separate head in all. Stacked experts
    are taken apart where another model has one matrix for each. Names with and without the prefix
    of the model's body become the base's. What the architecture leaves unread, and not all models
    store, is left out. All of this is exact; models that differ otherwise stay as they are, for
    `checkpoints.checking` to refuse. Nothing is read.

    Args:
        base: The base, or the model in its place, which may be among the experts.
        experts: The experts by name.

    Raises:
        UserError: Tied and untied models are mixed where a tied head is more than the embedding.
    """
    models = {"": _as_embedding(base)}
    models |= {name: _as_embedding(expert) for name, expert in experts.items()}
    notes: list[str] = []
    for step in (_named_alike, _tied_alike, _stacked_alike, _read_alike):
        if len({tuple(model.names()) for model in models.values()}) == 1:
            break
        models = step(models, notes)
    return Settled(models.pop(""), models, tuple(notes))


def _title(name: str) -> str:
    return f"expert {name}" if name else "the base"


def _named_alike(models: dict[str, Model], notes: list[str]) -> dict[str, Model]:
    """Give the parameters the prefix of the body that the base's have, or none."""
    base = models[""]
    found = {}
    for name, model in models.items():
        found[name] = model
        only, known = set(model.names()) - set(base.names()), set(base.names())
        built = architecture(base.config) if only and known - set(model.names()) else None
        if built is None or not built.prefix:
            continue
        start = f"{built.prefix}."
        for strip in (True, False):
            names = {
                n: n if n in known else n.removeprefix(start) if strip else start + n
                for n in model.names()
            }
            new = set(names.values())
            # All of the body moves: a part of it under another name is another model.
            if len(new) == len(names) and len(new & known) > len(known & set(names)):
                places = whole(model, {new: old for old, new in names.items()})
                found[name] = Presented(model, places, model.config)
                notes.append(f"{_title(name)}: names with or without {start} as the base has them")
                break
    return found


def _as_embedding(model: Model) -> Model:
    """Name the one matrix of a tied model after the embedding, where it was saved as the head."""
    heads = [name for name in model.names() if is_head(name)]
    if len(heads) != 1 or any(map(is_embedding, model.names())) or not says_tied(model.config):
        return model
    built = architecture(model.config)
    embedding = built.tied.get(heads[0]) if built is not None else None
    if embedding is None:
        return model
    names = {embedding if name == heads[0] else name: name for name in model.names()}
    return Presented(model, whole(model, names), model.config)


def _tied_alike(models: dict[str, Model], notes: list[str]) -> dict[str, Model]:
    """Give tied models a separate head where others have one."""
    pairs = {name: head_and_embedding(model) for name, model in models.items()}
    with_head = {name: pair for name, pair in pairs.items() if pair is not None}
    if not with_head or len(with_head) == len(models) or len(set(with_head.values())) > 1:
        return models
    head, embedding = next(iter(with_head.values()))
    tied = [name for name in models if name not in with_head]
    if not all(
        embedding in models[name].names()
        and not any(map(is_head, models[name].names()))
        and says_tied(models[name].config)
        for name in tied
    ):
        return models
    if any(model.config.get("is_encoder_decoder") for model in models.values()):
        raise UserError(
            f"{_title(tied[0])} ties its output head and {_title(next(iter(with_head)))} has a "
            "separate one, and encoder-decoder models scale a tied head; leave one of them out"
        )
    if any(f"{head.rpartition('.')[0]}.bias" in models[name].names() for name in with_head):
        return models  # a tied model has no such bias
    found = dict(models)
    for name in tied:
        model = models[name]
        places = whole(model, {n: n for n in model.names()} | {head: embedding})
        found[name] = Presented(model, places, with_tie(model.config, False))
    for name in with_head:
        if says_tied(models[name].config):  # as where a class ties by default
            own = whole(models[name], {n: n for n in models[name].names()})
            found[name] = Presented(models[name], own, with_tie(models[name].config, False))
    notes.append(
        f"{', '.join(map(_title, tied))} tied to {embedding}, others have a separate {head}: "
        f"the result is untied ({TIE} false)"
    )
    return found


def _stacked_alike(models: dict[str, Model], notes: list[str]) -> dict[str, Model]:
    """Take stacked experts apart where another model has one matrix for each expert."""
    single = next((m for m in models.values() if any(map(_SINGLE.match, m.names()))), None)
    stacked = [n for n, m in models.items() if any(map(_STACKED.match, m.names()))]
    if single is None or not stacked or not stacks_experts(single.config):
        return models
    found = dict(models)
    for name in stacked:
        if (places := _apart_like(models[name], single)) is not None:
            found[name] = Presented(models[name], places, models[name].config)
            notes.append(f"{_title(name)}: stacked experts read as one matrix for each expert")
    return found


def _apart_like(model: Model, single: Model) -> dict[str, Place] | None:
    """Say where the parameters of `single` are in a model of stacked experts."""
    held: dict[str, set[str]] = defaultdict(set)
    for name in single.names():
        if match := _SINGLE.match(name):
            held[match[1]].add(match[3])
    words = next((w for w in _MATRICES if all(set(w) == own for own in held.values())), None)
    if words is None:
        return None
    # Mixtral's files call the module block_sparse_moe, its class and its stacked files mlp.
    mixtral = words == _MATRICES[0]
    places: dict[str, Place] = {}
    for name in model.names():
        match = _STACKED.match(name)
        if match is None:
            new = name.replace(".mlp.", ".block_sparse_moe.") if mixtral else name
            places[new] = Place(name, model.shape(name))
            continue
        where = match[1].replace(".mlp.", ".block_sparse_moe.") if mixtral else match[1]
        parts = words[:2] if match[2] == "gate_up_proj" else words[2:]
        shape = model.shape(name)
        if len(shape) != 3 or shape[1] % len(parts):
            return None
        names = {n: [f"{where}.{n}.{part}.weight" for part in parts] for n in range(shape[0])}
        places |= apart(name, shape, names)
    fits = places.keys() == set(single.names()) and all(
        place.shape == single.shape(name) for name, place in places.items()
    )
    return places if fits else None


def _read_alike(models: dict[str, Model], notes: list[str]) -> dict[str, Model]:
    """Leave out what the architecture does not read and only some models store."""
    names: list[set[str]] = [set(model.names()) for model in models.values()]
    partial = names[0].union(*names) - names[0].intersection(*names)
    built = architecture(models[""].config)
    if built is None:
        return models
    unread = {name for name in partial if built.ignores(name)}
    if not unread:
        return models
    found = {}
    for name, model in models.items():
        own = unread & set(model.names())
        kept = {n: n for n in model.names() if n not in own}
        found[name] = Presented(model, whole(model, kept), model.config) if own else model
        if own:
            notes.append(
                f"{_title(name)}: {len(own)} tensor{'s' * (len(own) > 1)} (such as {min(own)}) "
                "left out: transformers does not read them, and not all models have them"
            )
    return found


def settle_config(folder: Path, result: Model, dtype: str | None = None) -> None:
    """Make a written configuration say what is true of the written weights.

    Ties, a leftover block on quantisation, and the type; a configuration that is right stays as it
    is, to the byte.

    Args:
        folder: The result's folder, with the donor's config.json.
        result: A model with the result's names, configuration and types.
        dtype: torch's name of the type of all weights; None for the result's own types.
    """
    path = folder / "config.json"
    config = read_object(path)
    changed = without_quantisation(config)
    wanted = result.config.get(TIE)
    if wanted is None and isinstance(config.get(TIE), bool):
        wanted = not any(map(is_head, result.names()))
    if isinstance(wanted, bool) and changed.get(TIE) != wanted:
        changed = with_tie(changed, wanted)
    changed = _typed(changed, result, dtype)
    if changed != config:
        write_json(path, changed)


def _typed(config: dict, result: Model, dtype: str | None) -> dict:
    """Return the configuration with the type of most values, where it says another one."""
    counts: dict[str, int] = defaultdict(int)
    for name in result.names():
        counts[result.stored(name)] += result.count(name)
    most = dtype or torch_name(max(counts, key=lambda kind: counts[kind]))
    said = config.get("dtype", config.get("torch_dtype"))
    # Where nothing is said, transformers takes the type of the first tensor for all.
    if said == most or (said is None and (len(counts) == 1 or dtype is not None)):
        return config
    changed = {key: value for key, value in config.items() if key != "torch_dtype"}
    text = text_part(config)
    if {"dtype", "torch_dtype"} & text.keys():
        inner = {key: value for key, value in text.items() if key != "torch_dtype"}
        changed["text_config"] = inner | {"dtype": most}
    return changed | {"dtype": most}


def check_allocatable(base: Model, settled: Model) -> None:
    """Refuse models that are searched in memory, where the base's folder makes another model.

    Args:
        base: The base as it is in its folder, whose class is allocated.
        settled: The base as the merges read it.

    Raises:
        UserError: The parameters are not the same.
    """
    if other := sorted(set(settled.names()) - set(base.names())):
        raise UserError(
            f"{base.path}: an expert stores {other[0]} and this base does not; search from a base "
            "of the expert's form: python -m merges --method linear --base EXPERT --experts "
            f"start={base.path} --out NEW makes it"
        )
